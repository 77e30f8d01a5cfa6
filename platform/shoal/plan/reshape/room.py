"""Whether what workers of another shape would hold fits into the memory of their nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from shoal.plan.reshape.costs import Costs, holds
from shoal.plan.reshape.place import Survivor
from shoal_core.mesh import Mesh
from shoal_core.units import size

__all__ = ["ANYWHERE", "Room"]


@dataclass(frozen=True)
class Room:
    """`memory`: bytes of a node's that its workers may hold, all together; 0 if nobody says. `on_device`: the state
    that is trained is in the memory of devices, which the workload counts itself."""

    memory: Callable[[str], float] = lambda node: 0.0
    on_device: bool = False

    def tight(
        self, present: Mesh, meshes: Iterable[Mesh], living: Mapping[str, Survivor], costs: Costs
    ) -> dict[Mesh, str]:
        """Of some meshes those whose workers would hold more than the scarcest node has for each of its own, and that
        in words. Of a state whose size nobody said none are."""
        on_node = Counter(one.node for one in living.values())
        each = [(memory / count, node) for node, count in on_node.items() if (memory := self.memory(node)) > 0]
        if not each or not costs.state_bytes:
            return {}
        least, node = min(each)
        needs = {mesh: holds(mesh, present, costs, on_device=self.on_device) for mesh in meshes}
        return {
            mesh: f"a worker would hold {size(need)} while it is filled, and {node} has {size(least)} for each"
            for mesh, need in needs.items()
            if need > least
        }


ANYWHERE = Room()
"""Nobody says what nodes have."""
