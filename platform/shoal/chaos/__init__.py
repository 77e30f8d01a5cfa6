"""Faults at random, on purpose: `shoal chaos`."""
