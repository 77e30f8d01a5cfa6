"""One worker's share of a replica of a user's model: what the platform drives through a step.

The loss of a batch is a sum and a count. Gradients are those of sums; both sums and counts of a step are added up over
all workers, and the one is divided by the other once, in `commit`. Counts travel among the figures of the vote, which
are float64 and so exact up to 2**53. What is random hangs on the seed, the step and the first position of a worker's
micro-batch: those stand the same in cells of every shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from shoal_core.grid import Grid
from shoal_core.workload import ReplicaShard
from shoal_workloads.parallel.layout import let_go
from shoal_workloads.recipe.ema import Ema
from shoal_workloads.recipe.guard import Guard
from shoal_workloads.torchmodel.building import built, hollow, kept_buffers
from shoal_workloads.torchmodel.losses import Loss, loss_of
from shoal_workloads.torchmodel.optimizer import Ours, Theirs, Updates
from shoal_workloads.torchmodel.order import Items, moved
from shoal_workloads.torchmodel.randomness import key_of, seeded
from shoal_workloads.torchmodel.spread import Rounds, spread, whole_blocks
from shoal_workloads.torchmodel.weights import Weights

if TYPE_CHECKING:
    from shoal_workloads.torchmodel.workload import TorchWorkload

__all__ = ["TorchShard"]


class TorchShard(ReplicaShard):
    """See `ReplicaShard`, whose methods these are."""

    def __init__(self, workload: TorchWorkload, seed: int, *, state_follows: bool = False) -> None:
        """seed: of the initial values. Collective over the cell. Each worker holds the whole model, in the memory of
        the CPU, until its part is cut out; if its state follows, or is read, it takes no memory for that."""
        self.workload, self.config = workload, workload.config
        device = self.config.device
        address = None if state_follows else workload.start
        drawn = not state_follows and address is None
        model = built(workload, seed) if drawn else hollow(workload, seed)
        weights = None if address is None else Weights.of(address, model)
        found = spread(model, whole_blocks(model, workload.blocks(model)), device)
        self.model, self.shards, self._rank, self._workers = found.model, found.shards, found.rank, found.workers
        cut, points = ([s for s in self.shards if bool(s.shape) is dims] for dims in (True, False))
        self._trained = [s for s in (*cut, *points) if s.parameter.requires_grad]
        self._parameters = [shard.local.detach() for shard in self._trained]
        self._cut = sum(shard.local.numel() for shard in self._trained if shard.shape)
        self._numel = sum(p.numel() for p in self._parameters)
        self._frozen = [shard for shard in self.shards if not shard.parameter.requires_grad]
        self._buffers = kept_buffers(self.model)
        if weights is not None:
            weights.read(self.shards, self._buffers)
        make = workload.own_optimizer
        self._updates: Updates = Ours(self._parameters, self.config) if make is None else Theirs(self._parameters, make)
        self._averages = Ema(self._parameters, self.config.ema_decay) if self.config.ema_decay else None
        self._guard = Guard(self.config.guard)
        self._train = workload.items
        self._heldout = workload.heldout_items
        self._rounds: Rounds | None = None
        self._notes: list[dict[str, Any]] = []
        self.begin(0)

    def begin(self, step: int) -> None:
        """See `ReplicaShard`."""
        let_go(self.model)  # what an evaluation gathered, if that was the last
        self._step = step
        self._seen = torch.zeros(2 + len(self.workload.figures), dtype=torch.float64, device=self.config.device)
        if self._rounds is not None:
            self._rounds.begin()
        for shard in self._trained:
            shard.parameter.grad = None

    def accumulate(self, micro_batches: Sequence[Sequence[int]]) -> None:
        """See `ReplicaShard`: one micro-batch after the other, of each the part that is this worker's by its rank.
        What is reduced once is so with the last of them, since the sums may be asked for next."""
        for number, ids in enumerate(micro_batches, 1):
            mine = self._mine(ids)
            if isinstance(self.model, FSDPModule) and self.config.reduce_once:
                self.model.set_requires_gradient_sync(number == len(micro_batches))
            with seeded(key_of("step", self.config.seed, self._step, mine[0])):
                loss = self._loss(self._train, mine)
                loss.total.backward()
            self._seen += loss.figures

    def expect(self, steps: Iterable[Sequence[Sequence[int]]]) -> None:
        """See `ReplicaShard`: the dataset is told, if it wants to know."""
        self._train.expect(self._mine(ids) for micro_batches in steps for ids in micro_batches)

    def round_to(self, grid: Grid) -> int | None:
        """See `ReplicaShard`. A parameter without dimensions is added up otherwise."""
        if self._cut < self._numel:
            return None
        self._rounds = Rounds(self.model, grid)
        return self._numel

    def sums(self) -> torch.Tensor:
        """Local gradient shards of all that is trained, summed over the cell, flat: float32, or int64 if they are
        rounded. What has no dimensions comes last, and is whole everywhere."""
        out = torch.empty(
            self._numel, dtype=torch.float32 if self._rounds is None else torch.int64, device=self.config.device
        )
        if self._rounds is not None:
            self._rounds.write(self._trained, self._split(out))
            return out
        for shard, part in zip(self._trained, self._split(out), strict=True):
            grad = shard.local_grad
            part.zero_() if grad is None else part.copy_(grad)
        if self._cut < self._numel and self._workers > 1:
            dist.all_reduce(out[self._cut :])
        return out

    def sums_to_keep(self) -> torch.Tensor:
        """See `ReplicaShard`: no copy."""
        return self.sums()

    def stats(self) -> list[float]:
        """Sum of the losses, their count, and the workload's further figures."""
        return [float(value) for value in self._seen.tolist()]

    def norm_sq(self, total: torch.Tensor) -> float:
        """This worker's part of the squared norm of the gradient averaged over the samples of the step: by what they
        count is known in `commit`."""
        mine = total if self._rank == 0 else total[: self._cut]
        return float(torch.linalg.vector_norm(mine, dtype=torch.float64)) ** 2 / self._samples**2

    @torch.no_grad()
    def commit(self, total: torch.Tensor, stats: Sequence[float], norm_sq: float) -> dict[str, float]:
        """Apply the step: clip, update, average. Not collective.

        Returns `loss` and `lm_loss` (the sum divided by the count), `mtp_loss` (0), `grad_norm` (before clipping),
        `lr`, `tokens` (the count), and the workload's figures, divided by the count too; `fault` and `roll_back` as
        `GuardConfig` says. A step that counts nothing changes nothing; its losses are 0, and the journal says so."""
        step, (summed, count, *others) = self._step, stats
        rate = self.config.rate_at(step)
        figures = {"mtp_loss": 0.0, "lr": rate * self._updates.lr, "tokens": count}
        if count == 0.0:
            if self._rank == 0:
                self._notes.append({"kind": "nothing_counted", "step": step})
            figures |= dict.fromkeys(("loss", "lm_loss", "grad_norm", *self.workload.figures), 0.0)
            self.begin(step + 1)
            return figures
        loss, norm = summed / count, math.sqrt(norm_sq) * self._samples / count
        figures |= {"loss": loss, "lm_loss": loss, "grad_norm": norm}
        figures |= {name: value / count for name, value in zip(self.workload.figures, others, strict=True)}
        found = self._guard.judge(loss, norm)
        if found != "fine":
            figures["fault"] = 1.0 if found == "spike" else 2.0
            figures["roll_back"] = float(self.config.guard.action == "roll_back")
        if self._guard.applies(found):
            if self._averages is not None:
                self._averages.wait()
            clip = self.config.clip
            scale = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
            self._updates.step(self._split(total.mul_(scale / count)), rate, step + 1)
            if self._averages is not None:
                self._averages.update()
        self.begin(step + 1)
        return figures

    @torch.no_grad()
    def evaluate(self, part: int, parts: int) -> list[float]:
        """The figures of every `parts`-th held-out item from `part`. Collective over the cell."""
        seen, data = torch.zeros_like(self._seen), self._heldout
        if data is None:
            return [float(value) for value in seen.tolist()]
        wanted, size = self.workload.heldout_length, self.config.micro_batch
        each = -(-wanted // parts)
        self.model.eval()
        try:
            # The same number of forward passes everywhere: what is read once more counts for nothing.
            for first in range(0, each, size):
                ids = [part + parts * i for i in range(first, min(first + size, each))]
                mine = [i for i in ids if i < wanted]
                with seeded(key_of("heldout", self.config.seed, ids[0])):
                    loss = self._loss(data, mine or [0])
                if mine:
                    seen += loss.figures
        finally:
            self.model.train()
        return [float(value) for value in seen.tolist()]

    def eval_metrics(self, stats: Sequence[float]) -> dict[str, float]:
        """What the workload makes of the sums; nothing without a held-out set, or where nothing counts."""
        if not stats[1]:
            return {}
        return self.workload.metrics(dict(zip(("loss", "count", *self.workload.figures), stats, strict=True)))

    def tensors(self) -> list[torch.Tensor]:
        """See `ReplicaShard`: local tensors of all that `state_dict` has."""
        return [local for _, local, _ in self._state()]

    def state_dict(self) -> dict[str, Any]:
        """`model.NAME` of every parameter, `buffer.NAME`, `adam_m.NAME` and `adam_v.NAME`, or `optim.KEY.NAME` of an
        optimizer of the user's; `ema.NAME` if averaged; `guard`."""
        return {name: local if place is None else place.whole(local) for name, local, place in self._state()}

    def loaded(self, step: int) -> None:
        """See `ReplicaShard`."""
        self.begin(step)

    def notes(self) -> list[dict[str, Any]]:
        """See `ReplicaShard`: `nothing_counted`: a step whose samples count nothing."""
        found, self._notes = self._notes, []
        return found

    @property
    def _samples(self) -> int:
        """Of the step."""
        first, last = self.workload.samples(self._step)
        return last - first

    def _mine(self, ids: Sequence[int]) -> Sequence[int]:
        """Of a micro-batch of the cell the part that is this worker's."""
        each = len(ids) // self._workers
        return ids[self._rank * each : (self._rank + 1) * each]

    def _loss(self, items: Items, ids: Sequence[int]) -> Loss:
        device = self.config.device
        return loss_of(self.workload, self.model, moved(items.batch(ids), device), device)

    def _split(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Views of a flat tensor in the shapes of the local parameters that are trained."""
        parts = flat.split([p.numel() for p in self._parameters])
        return [part.view_as(p) for part, p in zip(parts, self._parameters, strict=True)]

    def _state(self) -> list[tuple[str, torch.Tensor, Any]]:
        """Name and local tensor of all that is state, and the shard of the parameter that it lies as; none: whole."""
        found: list[tuple[str, torch.Tensor, Any]] = []
        kinds: dict[str, list[torch.Tensor | None]] = {"model": list(self._parameters), **self._updates.kinds()}
        if self._averages is not None:
            self._averages.wait()
            kinds["ema"] = list(self._averages.averages)
        for kind, tensors in kinds.items():
            for shard, local in zip(self._trained, tensors, strict=True):
                if local is not None:
                    place = shard if local.shape == shard.local.shape else None
                    found.append((f"{kind}.{shard.name}", local, place))
        found += [(f"model.{shard.name}", shard.local.detach(), shard) for shard in self._frozen]
        found += [(f"buffer.{name}", buffer, None) for name, buffer in self._buffers.items()]
        found += [(name, tensor, None) for name, tensor in self._updates.others().items()]
        return [*found, ("guard", self._guard.state, None)]
