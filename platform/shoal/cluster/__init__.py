"""Clusters of nodes on this machine (`local`), and how to talk to them (`connect`)."""
