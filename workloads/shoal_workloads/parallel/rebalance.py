"""Moves experts between the workers of a cell when a generation began, by the load measured so far.

The move is part of a step, and so of its commit, by which either everybody changes or nobody:

    commit of step s      the load of enough steps is known: the wanted placements follow from it, alike everywhere
    sums of step s + 1    experts' state is brought to its new places, beside the old, which is still computed with;
                          gradients, made in the old places, are handed out in the new ones
    commit of step s + 1  the new state takes the place of the old, and the step is applied to it

What is done of a step that is cut short is therefore never of another placement than the rest of it, a state after so
many steps has one placement whoever holds it, and a worker that heals gets it with the state. Router, bias, loads and
checkpoints go by the experts' own numbers. R routers, E experts, H places a worker (see `placement`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from shoal_workloads.model.deepseek import DeepSeekV3
from shoal_workloads.model.moe import MoE
from shoal_workloads.parallel.dispatch import Exchange
from shoal_workloads.parallel.placement import identity, imbalance, moved, place_experts
from shoal_workloads.parallel.shards import ParamShard

__all__ = ["Rebalance"]


class Rebalance:
    """`steps`: how many the load is measured over. `shards`: of the model's parameters here."""

    def __init__(self, model: DeepSeekV3, shards: Sequence[ParamShard], exchange: Exchange, steps: int) -> None:
        self._moes, self._groups = model.moe_layers(), model.config.n_groups
        self._exchange, self._steps = exchange, steps
        names = {name: self._moes.index(part) for name, part in model.named_modules() if isinstance(part, MoE)}
        self._router_of = [names.get(shard.name.partition(".experts.")[0]) for shard in shards]
        self._own = identity(model.config.n_experts)
        self._held = self._own.repeat(len(self._moes), 1)  # (R, E)
        self._wanted = self._held.clone()
        self._load = torch.zeros(self._held.shape, dtype=torch.float64)
        self._state = torch.zeros(2, dtype=torch.int64)  # steps measured, and whether experts move with this step
        self._asked = False
        self._arrived: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        self.placings = 0
        """How often experts were placed otherwise."""

    def tensors(self) -> list[torch.Tensor]:
        """What a twin needs beside the experts themselves."""
        return [self._held, self._wanted, self._load, self._state]

    def arrangement(self) -> dict[str, torch.Tensor]:
        """The same by name. How many workers share the experts is not in it: cells of another shape go by it too."""
        names = ("experts.places", "experts.wanted", "experts.load", "experts.measured")
        return dict(zip(names, self.tensors(), strict=True))

    def loaded(self) -> None:
        """The state was written to: compute by its placement."""
        self._arrived = None
        self.placings += 1
        for moe, places in zip(self._moes, self._held, strict=True):
            moe.placement = None if torch.equal(places, self._own) else places.to(moe.router.bias.device)

    def generation_began(self) -> None:
        """Experts may be placed anew, as soon as the load of enough steps is known."""
        self._asked = True

    def measure(self, loads: torch.Tensor) -> dict[str, Any] | None:
        """Count the load of a step that is committed, (R, E) over all cells, and decide. Returns what there is to tell
        if experts will move: how far the busiest worker lies over the mean, by router, before and after."""
        self._load += loads.cpu()
        self._state[0] += 1
        if not self._asked or self._state[0] < self._steps:
            return None
        ranks, per_node = self._exchange.ranks, self._exchange.per_node
        before, after = [], []
        for router, load in enumerate(self._load.tolist()):
            held = self._held[router]
            found = place_experts(load, ranks, per_node, self._groups)
            before.append(imbalance(load, held, ranks))
            after.append(imbalance(load, found, ranks))
            if after[-1] >= before[-1]:
                found, after[-1] = held, before[-1]
            self._wanted[router] = found
        steps, moves = int(self._state[0]), not torch.equal(self._held, self._wanted)
        self._asked = False
        self._load.zero_()
        self._state[0], self._state[1] = 0, int(moves)
        if not moves:
            return None
        return {"kind": "experts_placed", "measured": steps, "before": before, "after": after}

    @property
    def due(self) -> bool:
        """Whether experts move with this step."""
        return bool(self._state[1])

    def prepare(self, kinds: Sequence[Sequence[torch.Tensor]], grads: Sequence[torch.Tensor]) -> None:
        """In a step that is due: bring the experts' state to its new places, once, beside the old; and `grads`, in
        place. kinds: of parameters, moments, averages, the local tensors shard by shard; grads: so too. Collective over
        the cell.

        Raises:
            RuntimeError: a peer is gone. Nothing is changed then but `grads`.
        """
        if self._arrived is None:
            # One word for all: loads beyond 2**24 are rounded sums, which may differ between ranks.
            dist.broadcast(self._wanted, 0)
            self._arrived = [
                (local, self._moved(local, router))
                for kind in kinds
                for local, router in zip(kind, self._router_of, strict=True)
                if router is not None and self._moves(router)
            ]
        for grad, router in zip(grads, self._router_of, strict=True):
            if router is not None and self._moves(router):
                grad.copy_(self._moved(grad, router))

    def commit(self) -> bool:
        """Whether experts moved with this step: what was prepared is now the state."""
        if not self.due:
            return False
        assert self._arrived is not None, "a step that moves experts is committed without its sums"
        for local, arrived in self._arrived:
            local.copy_(arrived)
        self._held.copy_(self._wanted)
        self._state[1] = 0
        self.loaded()
        return True

    def in_order(self, local: torch.Tensor, shard: int) -> torch.Tensor:
        """A local tensor of shard number `shard` with the experts in the order of their numbers, as checkpoints have
        them: itself, or a copy where they lie otherwise. Collective over the cell.

        Raises:
            RuntimeError: a peer is gone.
        """
        router = self._router_of[shard]
        if router is None or torch.equal(self._held[router], self._own):
            return local
        return moved(local, self._held[router], self._own, self._exchange)

    def experts(self, shard: int) -> list[int] | None:
        """The expert in every place of all workers, for shard number `shard`; none where it has no experts, or those in
        the order of their numbers."""
        router = self._router_of[shard]
        if router is None or torch.equal(self._held[router], self._own):
            return None
        return [int(expert) for expert in self._held[router].argsort()]

    def _moves(self, router: int) -> bool:
        return not torch.equal(self._held[router], self._wanted[router])

    def _moved(self, local: torch.Tensor, router: int) -> torch.Tensor:
        return moved(local, self._held[router], self._wanted[router], self._exchange)
