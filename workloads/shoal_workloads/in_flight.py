"""What the micro-batches of a worker hold over a step: the very order of its pipeline rank is walked.

Three kinds of bytes. What is **kept** of a micro-batch between its forward and backward pass, and what **waits** until
its gradients of weights are made, change from action to action; so do hidden states under way to and from other
stages. What is **at work** is there within an action. Widths: see `params`; sizes of a layer: `activations`, `at_work`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

from shoal_core.mesh import Mesh
from shoal_workloads.activations import FP32, INT64, Manner, layer_parts
from shoal_workloads.at_work import Layer, head_forward
from shoal_workloads.config import PretrainConfig
from shoal_workloads.parallel.schedule import Kind, Schedule, Turn, turns

__all__ = ["InFlight"]

WAITS, BUFFERS, WORK = "activations: weights' gradients that wait", "pipeline buffers", "a layer at work"
_Key = tuple[int, str]
"""A stage, and of a micro-batch what it keeps (`kept`) or what waits (`waits`)."""


@dataclass
class _Piece:
    """A part of a stage, in the order of its forward pass: what it keeps and what of it waits; and the most that its
    passes hold, from what was there before it, which backward finds its own part of: see `at_work`."""

    kept: Counter[str] = field(default_factory=Counter)
    waits: int = 0
    forward: int = 0
    backward: int = 0
    inputs: int = 0
    weights: int = 0


class InFlight:
    """Of a job in cells of `mesh`. `load`: rows that a worker's experts get, of the mean."""

    def __init__(self, config: PretrainConfig, mesh: Mesh, load: float = 1.0) -> None:
        self.config, self.mesh, self.model = config, mesh, config.model
        self.load = load if mesh.ep > 1 else 1.0
        self.width = FP32 if config.precision == "fp32" else 2
        fp8, fused = config.precision == "fp8", config.device != "cpu"
        self.manner = Manner(config.parallel.recompute, self.width, fp8, fused, mesh.ep > 1)
        self.sequences, self.length = config.batch.micro_batch, config.data.seq_len
        self.hidden = self.sequences * self.length * self.model.d_model * self.width
        self.layer = cache(self._layer)

    # ---- a stage

    def pieces(self, layers: range, *, first: bool, last: bool) -> Iterator[_Piece]:
        """Those of a stage."""
        model, position = self.model, self.sequences * self.model.d_model * self.width
        tokens, table = INT64 * self.sequences * (self.length + 1), model.vocab_size * model.d_model * self.width
        if first:  # one position more is embedded than goes on
            yield _Piece(Counter({"activations: handed on": position + tokens}), backward=table + self.hidden)
        for i in layers:
            yield self.layer(i < model.n_dense, self.length)
        if not last:
            return
        if model.mtp_depth:  # what all modules read
            embedded = position * (self.length + 1)
            yield _Piece(Counter({"activations: norms": embedded + tokens}), backward=table + 2 * embedded)
        yield self._head(self.length)
        for k in range(1, model.mtp_depth + 1):
            length = self.length - k
            yield self._merge(length)
            yield self.layer(False, length)
            yield self._head(length)

    def _layer(self, dense: bool, length: int) -> _Piece:
        model, manner = self.model, self.manner
        parts = layer_parts(model, self.sequences, length, dense=dense, manner=manner, load=self.load)
        kept = Counter({f"activations: {name}": size for name, size in parts.items()})
        one = Layer(model, self.sequences, length, dense, manner, self.load, model.n_experts // self.mesh.ep)
        return _Piece(kept, one.waits, one.forward(), one.backward(), one.inputs(), one.weights())

    def _head(self, length: int) -> _Piece:
        """A norm and the head: the norm's input, and gradients, which forward makes."""
        model, tokens = self.model, self.sequences * length
        hidden = tokens * model.d_model * self.width
        kept = hidden + model.vocab_size * model.d_model * self.width
        most = head_forward(model, tokens, self.width, fused=self.manner.fused)
        back = tokens * FP32 + hidden + kept + kept  # both of what is kept are scaled
        return _Piece(
            Counter({"activations: norms": hidden + tokens * FP32, "loss": kept}),
            forward=most,
            backward=back,
            inputs=back,
        )

    def _merge(self, length: int) -> _Piece:
        """An MTP module before its block: inputs of its two norms, one of which all share, and of what merges them."""
        model, tokens = self.model, self.sequences * length
        merged, wide = self.manner.linear(2 * model.d_model), model.d_model * self.width
        kept = tokens * (wide + 2 * FP32 + merged)
        waits = tokens * (merged + wide)
        weights = 2 * model.d_model**2 * self.width
        back = kept + 3 * tokens * wide + weights
        return _Piece(
            Counter({"activations: norms": kept}), waits, kept + 2 * tokens * wide, back, kept + waits, waits + weights
        )

    # ---- a worker

    def whole(self, layers: range) -> dict[str, int]:
        """Of a model without stages: bytes by part where they are most."""
        pieces = list(self.pieces(layers, first=True, last=True))
        kept, rises = _sum(pieces), _rises(pieces)
        return {**kept, WORK: max(rises["F"], rises["B"]) - kept.total()}

    def most(self, schedule: Schedule, place: int, layers: Sequence[range]) -> dict[str, int]:
        """Of a pipeline rank: bytes by part where they are most. `layers`: of every stage."""
        stages, most = self._stages(schedule, place, layers), 0
        then: tuple[int, dict[_Key, int]] = (0, {})
        for total, under_way, counts in self._walk(schedule, place, stages):
            if total > most:
                most, then = total, (under_way, dict(counts))
        return _named(most, *then, stages)

    def walked(self, schedule: Schedule, place: int, layers: Sequence[range]) -> Iterator[dict[str, int]]:
        """The same within and after each step of its order."""
        stages = self._stages(schedule, place, layers)
        for moment in self._walk(schedule, place, stages):
            yield _named(*moment, stages)

    def _stages(self, schedule: Schedule, place: int, layers: Sequence[range]) -> dict[int, list[_Piece]]:
        final = schedule.stages - 1
        return {
            stage: list(self.pieces(layers[stage], first=stage == 0, last=stage == final))
            for stage in schedule.stages_of(place)
        }

    def _walk(
        self, schedule: Schedule, place: int, stages: Mapping[int, list[_Piece]]
    ) -> Iterator[tuple[int, int, Counter[_Key]]]:
        """Within and after each step of a rank's order: the bytes held; those of hidden states under way; and
        micro-batches by what of them is held, in the same object each time."""
        sizes, rises = dict[_Key, int](), dict[tuple[int, Kind], int]()
        for stage, pieces in stages.items():
            sizes[stage, "kept"], sizes[stage, "waits"] = _sum(pieces).total(), sum(piece.waits for piece in pieces)
            rises.update({(stage, kind): rise for kind, rise in _rises(pieces).items()})
        counts, sent = Counter[_Key](), False
        held = under_way = self.hidden  # what the executor makes others like
        for turn in _turns(schedule, place):
            held, under_way = (size + self.hidden * len(turn.ask) for size in (held, under_way))
            now = most = together = held
            then = under_way
            for action, need, make in zip(turn.actions, turn.needs, turn.makes, strict=True):
                kept, waits = (action.stage, "kept"), (action.stage, "waits")
                come = {"F": sizes[kept], "I": sizes[waits]}.get(action.kind, 0)
                gone = {"F": 0, "W": sizes[waits]}.get(action.kind, sizes[kept])
                # What came from another stage is part of what a pass holds; of what was sent the last is held.
                rise = rises[action.stage, action.kind] - gone - self.hidden * (need is not None)
                most, together = max(most, now + rise), together + rise
                change = self.hidden * ((make is not None and (make.local or not sent)) - (need is not None))
                sent = sent or (make is not None and not make.local)
                now, then = now + come - gone + change, then + change
                counts[kept] += action.kind == "F"
            # Both of a pair are at work at once where one computes while rows of the other travel.
            yield max(most, together) if self.mesh.ep > 1 else most, under_way, counts
            for action in turn.actions:
                counts[action.stage, "kept"] -= action.kind in "BI"
                counts[action.stage, "waits"] += {"I": 1, "W": -1}.get(action.kind, 0)
            held, under_way = now, then
            yield held, under_way, counts


@lru_cache(maxsize=1024)
def _turns(schedule: Schedule, place: int) -> tuple[Turn, ...]:
    """Kept, since a search asks for those of one schedule in many layouts."""
    return tuple(turns(schedule, place))


def _named(
    total: int, under_way: int, counts: Mapping[_Key, int], stages: Mapping[int, list[_Piece]]
) -> dict[str, int]:
    """By part; what is left is held for a moment."""
    named = Counter[str]({BUFFERS: under_way})
    for (stage, what), count in counts.items():
        parts = _sum(stages[stage]) if what == "kept" else {WAITS: sum(piece.waits for piece in stages[stage])}
        named.update({name: count * size for name, size in parts.items()})
    return {**named, WORK: total - named.total()}


def _sum(pieces: Sequence[_Piece]) -> Counter[str]:
    total = Counter[str]()
    for piece in pieces:
        total.update(piece.kept)
    return total


def _rises(pieces: Sequence[_Piece]) -> dict[Kind, int]:
    """The most that a pass of some pieces holds, of what it begins without in forward, and ends without in others."""
    kept = [0]
    for piece in pieces:
        kept.append(kept[-1] + piece.kept.total())
    waits = [0]
    for piece in pieces:
        waits.append(waits[-1] + piece.waits)
    every = list(enumerate(pieces))
    return {
        "F": max(kept[i] + piece.forward for i, piece in every),
        "B": max(kept[i] + piece.backward for i, piece in every),
        "I": max(kept[i] + piece.inputs + waits[-1] - waits[i + 1] for i, piece in every),
        "W": max(waits[i] + piece.weights for i, piece in every),
    }
