"""Clusters of nodes on this machine (`local`), and how to talk to them (`connect`).

Only the process that becomes a node's (`start_node`) imports Ray here; what is asked of a cluster is in `shoal.on_ray`.
"""
