"""Makes the exchange between the workers of an expert group."""

from __future__ import annotations

import torch.distributed as dist

from shoal_core.errors import UserError
from shoal_workloads.config import DispatchKind
from shoal_workloads.parallel.dispatch import Exchange, Flat
from shoal_workloads.parallel.hierarchical import Hierarchical

__all__ = ["make_exchange"]


def make_exchange(
    group: dist.ProcessGroup,
    *,
    kind: DispatchKind = "flat",
    per_node: int | None = None,
    gradients: dist.ProcessGroup | None = None,
) -> Exchange:
    """The exchange of `group`, `per_node` consecutive ranks of which are on each node (none: all are on one). Makes no
    further groups, is not collective, and holds no tensors: one object serves all MoE layers of a model. gradients:
    another group of the same workers, where backward is to run beside a forward.

    Raises:
        UserError: the group does not divide into nodes.
    """
    per_node = group.size() if per_node is None else per_node
    if per_node < 1 or group.size() % per_node:
        fitting = ", ".join(str(n) for n in range(1, group.size() + 1) if group.size() % n == 0)
        raise UserError(
            f"parallel.ep_node: {per_node} workers a node do not divide the {group.size()} that share the experts",
            f"one of {fitting}",
        )
    return (Flat if kind == "flat" else Hierarchical)(group, per_node, gradients)
