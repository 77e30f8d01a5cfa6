"""The pre-training workload, whose workers write down what they have of the state: after every step, and when it was
filled from the memory of others. By names and places that the model itself tells, not by what fills it.

Into the folder `watch` beside the corpus: `STEP/LAYOUT-RANK-PID.KIND`, with KIND `had` (in memory after so many steps)
or `got` (as it was filled), and `STEP/PID.given`: how many bytes it had of whom.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shoal.worker import courier
from shoal_core.ckpt import alone, together
from shoal_core.ckpt.folder import Folder
from shoal_workloads.config import PretrainConfig
from shoal_workloads.pretrain import Pretrain
from shoal_workloads.replica import PretrainShard
from tests.support.meshes import rank_of

KEPT = 3
"""Newest steps that a worker leaves written down."""

Places = list[tuple[tuple[int, ...], tuple[int, ...], torch.Tensor]]
"""Of a tensor: shape of the whole, where a part begins, and the part."""


def watch_of(config: PretrainConfig) -> Path:
    """The folder."""
    return Path(config.data.corpus).parent / "watch"


def parts_of(replica: PretrainShard) -> dict[str, Places]:
    """What a worker has of the state, by name; experts by their own numbers wherever they lie."""
    found: dict[str, Places] = defaultdict(list)
    moves = replica._rebalance
    for kind, tensors in replica._optimizer.kinds().items():
        for number, (shard, local) in enumerate(zip(replica.shards, tensors, strict=True)):
            router = None if moves is None else moves._router_of[number]
            if moves is None or router is None:
                found[f"{kind}.{shard.name}"].append((shard.shape, shard.first, local.detach().clone()))
                continue
            numbers = moves._held[router].argsort()[shard.first[0] : shard.first[0] + len(local)]
            for expert, row in zip(numbers.tolist(), local.detach().clone(), strict=True):
                found[f"{kind}.{shard.name}"].append((shard.shape, (expert, *shard.first[1:]), row[None]))
    alike = {f"router_bias.{number}": bias for number, bias in enumerate(replica._biases)}
    alike["guard"], now = replica._guard.state, replica._progress
    alike["schedules"] = torch.tensor([now.step, now.tokens, now.batch, now.lr], dtype=torch.float64)
    if moves is not None:
        names = ("experts.places", "experts.wanted", "experts.load", "experts.measured")
        alike |= dict(zip(names, moves.tensors(), strict=True))
    for name, tensor in alike.items():
        found[name].append((tuple(tensor.shape), (0,) * tensor.dim(), tensor.detach().clone()))
    return dict(found)


class WatchedShard(PretrainShard):
    filling = False

    def begin(self, step: int) -> None:
        super().begin(step)
        if step and not self.filling:
            self.write(step, "had")

    def loaded(self, step: int) -> None:
        self.filling = True
        super().loaded(step)
        self.filling = False
        self.write(step, "got")

    def write(self, step: int, kind: str) -> None:
        parallel, root = self.config.parallel, watch_of(self.config)
        folder = root / f"{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        layout = f"{self._workers}.{parallel.pp}.{parallel.ep}"
        file = folder / f"{layout}-{self._rank}-{os.getpid()}.{kind}"
        torch.save(parts_of(self), file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)
        if kind == "had":
            (root / f"{step - KEPT:06d}" / file.name).unlink(missing_ok=True)


class Watched(Pretrain):
    """See the module."""

    def build(self, seed: int) -> WatchedShard:
        return WatchedShard(self.config, seed, self._origin)

    def build_to_fill(self, seed: int) -> WatchedShard:
        fill: Callable[..., Counter[str]] = counted
        courier.put_together = fill
        return WatchedShard(self.config, None, self._origin)


plain_fill = courier.put_together


def counted(step: Any, holders: Any, shelf: Any, own: str, *more: Any) -> Counter[str]:
    """`courier.put_together`, which writes down what came from whom."""
    given = plain_fill(step, holders, shelf, own, *more)
    ((_, names), *_) = holders.values()
    folder = watch_of(step.shard.config) / f"{int(names[0].rpartition('/')[2]):06d}"
    size = sum(local.nbytes for _, local in courier.placed(step))
    (folder / f"{os.getpid()}.given").write_text(json.dumps({"own": own, "bytes": size, "given": given}))
    return given


# ---- looked at


@dataclass(frozen=True)
class Changed:
    """A change of shape after so many `steps`. `had`, `got`: parts of every worker before and after, by layout, rank
    and process; `given`: see `counted`."""

    steps: int
    had: Mapping[str, dict[str, Places]]
    got: Mapping[str, dict[str, Places]]
    given: list[dict[str, Any]]

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """The state before, whole, by name: what all that held a part of it say alike."""
        return whole(self.had.values())

    def differing(self) -> list[str]:
        """What is not, to the bit, what it was before."""
        state = self.state
        return [
            f"{who}: {name}"
            for who, parts in self.got.items()
            for name, places in parts.items()
            if name in state
            for _, first, part in places
            if not torch.equal(part, state[name][box(first, part)])
        ]

    def differing_from_checkpoint(self, section: Mapping[str, Any], folder: Path) -> list[str]:
        """The same, against a checkpoint of the state before that is restored onto the new mesh, rank by rank, without
        the run."""
        names = {name: tensor for name, tensor in self.state.items() if name.partition(".")[0] not in OURS}
        alone.write(Folder.at(folder), names, {"steps": self.steps})
        own = {key: value for key, value in section.items() if key != "path"}
        (layout,) = {who.partition("-")[0] for who in self.got}
        workers, pp, ep = map(int, layout.split("."))
        mesh = {"pp": pp, "fsdp": workers // pp // ep, "ep": ep, "ep_node": 1}
        workload, restored = Pretrain(PretrainConfig.model_validate(own)).shaped(mesh), []
        for rank in range(workers):
            with rank_of(rank, workers):
                replica = workload.build_to_fill(0)
                together.load(Folder.at(folder), replica.state_dict(), together.ALONE, lambda _: False)
                replica.loaded(self.steps)
                restored.append(parts_of(replica))
        mine, theirs = whole(restored), whole(self.got.values())
        assert mine.keys() == theirs.keys()
        return [name for name in mine if not name.startswith("experts.") and not torch.equal(mine[name], theirs[name])]


OURS = ("schedules", "experts")
"""What is written down and no checkpoint holds."""


def box(first: tuple[int, ...], part: torch.Tensor) -> tuple[slice, ...]:
    return tuple(slice(start, start + length) for start, length in zip(first, part.shape, strict=True))


def whole(workers: Any) -> dict[str, torch.Tensor]:
    """The tensors that workers hold parts of. Every element must be held, and alike by all that hold it."""
    found: dict[str, torch.Tensor] = {}
    held: dict[str, torch.Tensor] = {}
    for parts in workers:
        for name, places in parts.items():
            for shape, first, part in places:
                if name not in found:
                    found[name] = torch.zeros(shape, dtype=part.dtype)
                    held[name] = torch.zeros(shape, dtype=torch.bool)
                known = held[name][box(first, part)]
                assert torch.equal(found[name][box(first, part)][known], part[known]), f"{name}: two hold another"
                found[name][box(first, part)] = part
                known.fill_(True)
    for name, there in held.items():
        assert there.all(), f"{name}: nobody held all of it"
    return found


def changes(folder: Path) -> Iterator[Changed]:
    """The changes of shape that were written down."""
    for at in sorted(folder.iterdir()):
        given = [json.loads(file.read_text()) for file in at.glob("*.given")]
        if not given:
            continue
        got = {file.stem: torch.load(file) for file in at.glob("*.got")}
        after = {who.partition("-")[0] for who in got}
        had = {file.stem: torch.load(file) for file in at.glob("*.had") if file.stem.partition("-")[0] not in after}
        yield Changed(int(at.name), had, got, given)
