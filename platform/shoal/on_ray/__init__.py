"""All that Shoal asks of Ray: actors, nodes, drains, metrics, and a driver's way to a run's controller.

No other package of the platform imports Ray, but for `shoal.cluster`, which starts clusters of nodes. What the
controller needs of a cluster is a protocol (`shoal.control.fleet`), so that it runs without one.
"""

from __future__ import annotations

NAMESPACE = "shoal"
"""Ray namespace of controllers and workers."""
