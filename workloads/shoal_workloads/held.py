"""What a worker holds of a model all the time, to the byte, in closed form: parameters as it computes with them,
gradients, masters, moments, averages, and what the routers count by.

Every parameter is cut for itself, along its rows, into as many parts as it has holders, as torch.chunk cuts: the first
have the most rows, the last may have fewer or none. FSDP stores each part as long as the first (padding), gathered ones
and gradients too; a pipeline stores what there is. What an allocator adds to a tensor is not counted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from shoal_core.mesh import Mesh
from shoal_workloads.activations import FP32
from shoal_workloads.config import PretrainConfig
from shoal_workloads.parallel.schedule import Schedule
from shoal_workloads.precision.fp8 import TILE

__all__ = ["Held", "Weight"]

FLOAT64 = 8


@dataclass(frozen=True)
class Weight:
    """A parameter of (`rows`, `columns`), `stack` of them in one tensor. `wide`: in a pipeline float32 whatever is
    computed in; `multiplied`: in the format of the products; `spread`: experts, which `ep` workers share."""

    rows: int
    columns: int = 1
    stack: int = 1
    wide: bool = False
    multiplied: bool = False
    spread: bool = False

    @property
    def count(self) -> int:
        return self.stack * self.rows * self.columns

    @property
    def in_fp8(self) -> int:
        """Bytes of its codes and of a scale for each block of 128 x 128. The rows of a single matrix are filled up to
        whole blocks (its columns are whole ones)."""
        rows = -(-self.rows // TILE)
        codes = (rows * TILE if self.stack == 1 else self.rows) * self.columns
        return self.stack * (codes + FP32 * rows * -(-self.columns // TILE))

    def stored(self, holders: int) -> int:
        """Elements of the first of so many parts."""
        return self.stack * self.columns * -(-self.rows // holders)

    def share(self, holders: int, place: int) -> int:
        """Elements of part number `place`."""
        each = -(-self.rows // holders)
        return self.stack * self.columns * (min(self.rows, (place + 1) * each) - min(self.rows, place * each))


@dataclass(frozen=True)
class Part:
    """Weights, each `times` over, of which a worker holds part number `place` of `holders`, of experts `expert_place`
    of `expert_holders`."""

    weights: Sequence[Weight]
    holders: int
    place: int
    expert_holders: int
    expert_place: int
    times: int = 1

    def mine(self) -> int:
        """Elements whose masters are this worker's."""
        return self.times * sum(weight.share(*self._of(weight)) for weight in self.weights)

    def stored(self) -> int:
        """The same with FSDP's padding."""
        return self.times * sum(weight.stored(self._of(weight)[0]) for weight in self.weights)

    def whole(self) -> int:
        """Elements of what FSDP gathers."""
        return sum(weight.count for weight in self.weights if self._of(weight)[0] > 1)

    def gathered(self, width: int) -> int:
        """Bytes of what FSDP gathers of it; and of copies that a product makes of float32 weights that lie whole."""
        found = 0
        for weight in self.weights:
            holders, _ = self._of(weight)
            if holders > 1:
                found += holders * weight.stored(holders) * width
            elif weight.multiplied and width < FP32:
                found += weight.count * width
        return found

    def _of(self, weight: Weight) -> tuple[int, int]:
        return (self.expert_holders, self.expert_place) if weight.spread else (self.holders, self.place)


class Held:
    """Of one job in cells of `mesh`. `width`: bytes of a number while it computes."""

    def __init__(self, config: PretrainConfig, mesh: Mesh) -> None:
        self._config, self._model, self._mesh = config, config.model, mesh
        self._width = FP32 if config.precision == "fp32" else 2
        self.layer = cache(self._layer)

    # ---- what there is

    def _layer(self, dense: bool) -> tuple[Weight, ...]:
        c, d = self._model, self._model.d_model
        query = c.n_heads * (c.d_head + c.d_rope)
        found = [vector(d), vector(d), vector(c.d_kv)]
        found += [matrix(query, d)] if c.d_q is None else [matrix(c.d_q, d), vector(c.d_q), matrix(query, c.d_q)]
        found += [matrix(c.d_kv + c.d_rope, d), matrix(c.n_heads * (c.d_head + c.d_v), c.d_kv)]
        found.append(matrix(d, c.n_heads * c.d_v))
        if dense:
            return (*found, matrix(2 * c.d_ffn, d), matrix(d, c.d_ffn))
        if c.n_shared:
            hidden = c.n_shared * c.d_expert
            found += [matrix(2 * hidden, d), matrix(d, hidden)]
        experts = c.n_experts // self._mesh.ep
        for rows, columns in ((2 * c.d_expert, d), (d, c.d_expert)):
            found.append(Weight(rows, columns, experts, multiplied=True, spread=True))
        return (*found, Weight(c.n_experts, d, wide=True))

    def embedding(self) -> tuple[Weight, ...]:
        """Of the input, which is no product."""
        return (Weight(self._model.vocab_size, self._model.d_model),)

    def end(self) -> tuple[Weight, ...]:
        """Final norm, head, and what MTP modules have beside their layer."""
        d, depth = self._model.d_model, self._model.mtp_depth
        head = Weight(self._model.vocab_size, d)
        return (vector(d), head, *depth * (vector(d), vector(d), vector(d), matrix(d, 2 * d)))

    # ---- what of it a worker has

    def blocks(self, rank: int = 0) -> list[Part]:
        """Without pipeline stages: what FSDP gathers and reduces together, block by block, at last what is left."""
        mesh, model = self._mesh, self._model
        module = (*self.layer(False), *self.end()[2:6])
        layers = [self.layer(i < model.n_dense) for i in range(model.n_layers)] + [module] * model.mtp_depth
        rest = (*self.embedding(), *self.end()[:2])
        return [Part(one, mesh.workers, rank, mesh.fsdp, rank // mesh.ep) for one in (*layers, rest)]

    def flat(self, rank: int = 0) -> dict[str, int]:
        """Of a worker without pipeline stages; parameters that are gathered at once at most."""
        blocks = self.blocks(rank)
        sizes = [one.gathered(self._width) for one in blocks]
        again = self._config.parallel.reshard_after_forward and self._mesh.workers > 1
        together = sizes[-1] + sum(sorted(sizes[:-1])[-2:]) if again else sum(sizes)
        mine, stored = sum(one.mine() for one in blocks), sum(one.stored() for one in blocks)
        return {"parameters": together, "gradients": FP32 * stored, **self._masters(mine, stored)}

    def staged(self, rank: int, schedule: Schedule, layers: Sequence[range]) -> dict[str, int]:
        """Of a worker in a pipeline."""
        mesh, model, final = self._mesh, self._model, schedule.stages - 1
        place, _ = mesh.coords(rank)

        def part(weights: Sequence[Weight], places: Sequence[int], times: int = 1) -> Part:
            ranks = mesh.holders(places)
            at = ranks.index(rank)
            return Part(weights, len(ranks), at, len(ranks) // mesh.ep, at // mesh.ep, times)

        parts = list[Part]()
        if self.embeds(place, schedule):
            parts.append(part(self.embedding(), self._embedders(schedule)))
        for stage in schedule.stages_of(place):
            places = schedule.holders(stage)
            dense = sum(i < model.n_dense for i in layers[stage])
            sparse = len(layers[stage]) - dense + (model.mtp_depth if stage == final else 0)
            parts += [part(self.layer(True), places, dense), part(self.layer(False), places, sparse)]
            if stage == final:
                parts.append(part(self.end(), places))
        weights = [(one.times, weight) for one in parts for weight in one.weights]
        fp8, mine = self._config.precision == "fp8", sum(one.mine() for one in parts)
        return {
            "parameters": sum(n * one.count * (FP32 if one.wide else self._width) for n, one in weights),
            "parameters in FP8": sum(n * one.in_fp8 for n, one in weights if one.multiplied and fp8),
            "gradients": FP32 * sum(n * one.count for n, one in weights),
            **self._masters(mine, mine),
        }

    def embeds(self, place: int, schedule: Schedule) -> bool:
        """Whether a pipeline rank has the embedding: of the first stage, or of the last if MTP modules read tokens."""
        return place in self._embedders(schedule)

    def _embedders(self, schedule: Schedule) -> list[int]:
        readers = {0, schedule.stages - 1} if self._model.mtp_depth else {0}
        return sorted({place for stage in readers for place in schedule.holders(stage)})

    def _masters(self, mine: int, stored: int) -> dict[str, int]:
        """Masters of `mine` elements, which lie in `stored`, and what is kept beside them."""
        moment = FP32 if self._config.optim.moments == "fp32" else 2
        averages = {"averages": FP32 * mine} if self._config.ema_decay is not None else {}
        return {
            "master parameters": FP32 * stored,
            "moments": 2 * moment * mine,
            **averages,
            "gradients, flat": FP32 * (mine + self._routed),
            "buffers": self._buffers(),
        }

    @property
    def _routed(self) -> int:
        """Experts of all routers."""
        return (self._model.n_moe + self._model.mtp_depth) * self._model.n_experts

    def _buffers(self) -> int:
        """Of every router the biases, and the load of a step; three sums of losses; the rotations of positions."""
        rotations = self._config.data.seq_len * self._model.d_rope
        return FP32 * (2 * self._routed + rotations) + 3 * FLOAT64


def vector(width: int) -> Weight:
    return Weight(width, wide=True)


def matrix(rows: int, columns: int) -> Weight:
    return Weight(rows, columns, multiplied=True)
