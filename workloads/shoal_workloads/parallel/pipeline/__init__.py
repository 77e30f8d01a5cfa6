"""Runs a model in stages, by a schedule: who holds what, the walk through a rank's order, and parameters by ZeRO-1."""
