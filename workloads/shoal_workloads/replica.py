"""One worker's share of a replica of the model: what the platform drives through a step.

Gradients, loads and losses are handed out as sums over samples and divided once, in `commit`, by the step's batch. The
loss of a sample is that of the report: mean over its T positions of the cross-entropy, plus lambda/D times the MTP
modules' (also over T), plus alpha times the balance loss. How the workers of a cell make them together is the engine's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from shoal_core.ckpt.pieces import Piece
from shoal_core.ckpt.state import held
from shoal_core.grid import Grid
from shoal_core.workload import ReplicaShard
from shoal_workloads.config import PretrainConfig
from shoal_workloads.optimizer import Optimizer
from shoal_workloads.parallel.engine import Engine, Figures
from shoal_workloads.parallel.fsdp import Fsdp
from shoal_workloads.parallel.initial import init_shards
from shoal_workloads.parallel.pipeline.pipeline import Pipeline
from shoal_workloads.parallel.rebalance import Rebalance
from shoal_workloads.parallel.traffic import SCOPES
from shoal_workloads.precision.choose import choose
from shoal_workloads.progress import Progress
from shoal_workloads.recipe.guard import Guard
from shoal_workloads.samples import Samples

__all__ = ["PretrainShard"]


class PretrainShard(ReplicaShard):
    """See `ReplicaShard`, whose methods these are."""

    def __init__(self, config: PretrainConfig, seed: int | None, origin: tuple[int, int] = (0, 0)) -> None:
        """seed: of the initial values; none: all state is written later. Collective over the cell."""
        self.config, self._origin = config, origin
        self._rank, self._workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        dtype, products = choose(config.precision, config.device)
        kind = Pipeline if config.parallel.pp > 1 and self._workers > 1 else Fsdp
        self.engine: Engine = kind(config, self._rank, self._workers, dtype, products)
        self.model, self.shards = self.engine.model, self.engine.shards
        for block in self.model.blocks():
            block.recompute = config.parallel.recompute
        if seed is not None:
            init_shards(self.shards, seed, config.model.init_std, config.init)
        self._parameters = [shard.local for shard in self.shards]
        self._biases = [moe.router.bias for moe in self.model.moe_layers()]
        self._exchange = self.engine.exchange if self._biases else None
        self._optimizer = Optimizer(config, self._parameters, self._biases)
        self._numel = sum(p.numel() for p in self._parameters)
        self._guard = Guard(config.guard)
        self._rebalance: Rebalance | None = None
        if config.parallel.rebalance and self._exchange is not None:
            self._rebalance = Rebalance(self.model, self.shards, self._exchange, config.parallel.rebalance)
        self._notes: list[dict[str, Any]] = []
        self._rounds = False
        data = config.data
        self._train = Samples(data.corpus, data.seq_len, data.seed, config.device)
        self._heldout = Samples(data.heldout, data.seq_len, data.seed, config.device) if data.heldout else None
        self.begin(origin[0])

    def generation_began(self) -> None:
        """The crew of the run has changed: experts may be placed anew, if the run is told so."""
        if self._rebalance is not None:
            self._rebalance.generation_began()

    def begin(self, step: int) -> None:
        """See `ReplicaShard`."""
        self._progress = Progress.at(self.config, step, self._origin)
        loads = torch.zeros(len(self._biases), self.config.model.n_experts, device=self.config.device)
        self._figures = Figures(loads)
        self._read = self._train.waits, self._train.waited
        self.engine.begin(step)
        if self._exchange is not None:
            self._exchange.traffic.take()

    def accumulate(self, micro_batches: Sequence[Sequence[int]]) -> None:
        """See `ReplicaShard`."""
        self.engine.accumulate(micro_batches, self._train.tokens, self._progress.factors(), self._figures)

    def expect(self, steps: Iterable[Sequence[Sequence[int]]]) -> None:
        """See `ReplicaShard`."""
        self._train.expect(ids for micro_batches in steps for ids in self.engine.reads(micro_batches))

    def notes(self) -> list[dict[str, Any]]:
        """What the engine tells, and `experts_placed`: see `Rebalance.measure`."""
        found, self._notes = [*self.engine.notes(), *self._notes], []
        return found

    def round_to(self, grid: Grid) -> int:
        """See `ReplicaShard`."""
        self.engine.round_to(grid)
        self._rounds = True
        return self._numel

    def sums(self) -> torch.Tensor:
        """Local gradient shards, then the load of every router, summed over the cell. float32, or int64 if they are
        rounded; flat, made anew whenever it is asked for from what every parameter has. Collective."""
        dtype = torch.int64 if self._rounds else torch.float32
        loads = self._figures.loads.to(dtype, copy=True)
        out = torch.empty(self._numel + loads.numel(), dtype=dtype, device=self.config.device)
        parts = self._optimizer.split(out[: self._numel])
        self.engine.reduce(parts)
        if self._rebalance is not None and self._rebalance.due:
            self._rebalance.prepare(list(self._optimizer.kinds().values()), parts)
        if self._workers > 1:
            dist.all_reduce(loads)
        out[self._numel :] = loads.flatten()
        return out

    def sums_to_keep(self) -> torch.Tensor:
        """See `ReplicaShard`: no copy."""
        return self.sums()

    def stats(self) -> list[float]:
        """Nats of the main head, of the MTP heads, the balance loss, the number of samples; where experts are shared,
        bytes sent for them across nodes and inside; where the corpus lies on a store, batches that were waited for, and
        seconds."""
        seen, (waits, waited) = self._figures, self._read
        sent = [] if self._exchange is None else [float(self._exchange.traffic.total(scope)) for scope in SCOPES]
        read = [float(self._train.waits - waits), self._train.waited - waited] if self._train.far else []
        return [*seen.nats.tolist(), float(seen.samples), *sent, *read]

    def norm_sq(self, total: torch.Tensor) -> float:
        """This worker's part of the squared norm of the gradient averaged over the global batch."""
        grads = total[: self._numel]
        return float(torch.linalg.vector_norm(grads, dtype=torch.float64)) ** 2 / self._progress.batch**2

    @torch.no_grad()
    def commit(self, total: torch.Tensor, stats: Sequence[float], norm_sq: float) -> dict[str, float]:
        """Apply the step: clip, AdamW, router biases. Not collective.

        Returns `loss, lm_loss, mtp_loss, balance_loss` (nats a token), `grad_norm` (before clipping), `lr`, `tokens`
        (of this step), `max_violation` (mean over routers) and `max_violation.I` (of router I); where workers share
        experts `exchange_across` and `exchange_inside`, bytes that rows and what goes with them took between nodes and
        inside them; where the corpus lies on a store `data_waits`, batches that were not there in time on any
        worker, and `data_wait_seconds`, of all workers; `fault` and `roll_back` as `GuardConfig` says."""
        if self._rebalance is not None and self._rebalance.commit():
            self.engine.updated()
        loads = total[self._numel :].view(len(self._biases), self.config.model.n_experts)
        read = stats[-2:] if self._train.far else []
        metrics = self._progress.metrics(loads, stats[: len(stats) - len(read)], norm_sq)
        metrics.update(zip(("data_waits", "data_wait_seconds"), read, strict=False))
        found = self._guard.judge(metrics["loss"], metrics["grad_norm"])
        if found != "fine":
            metrics["fault"] = 1.0 if found == "spike" else 2.0
            metrics["roll_back"] = float(self.config.guard.action == "roll_back")
        if self._guard.applies(found):
            self._optimizer.step(total[: self._numel], loads, metrics["grad_norm"], self._progress)
            self.engine.updated()
            told = None if self._rebalance is None else self._rebalance.measure(loads)
            if told is not None and self._rank == 0:
                self._notes.append(told)
        self.begin(self._progress.step + 1)
        return metrics

    @torch.no_grad()
    def evaluate(self, part: int, parts: int) -> list[float]:
        """Nats, bytes and tokens of every `parts`-th held-out sample from `part`. Collective over the cell."""
        data, wanted = self._heldout, self.config.eval.samples
        nats = size = count = 0.0
        if data is None:
            return [nats, size, count]

        def read(ids: Sequence[int]) -> torch.Tensor:
            return data.tokens([i if i < wanted else 0 for i in ids])

        # The same number of forward passes everywhere: surplus samples count for nothing.
        for ids, losses in self.engine.nats(part, parts, -(-wanted // parts), read):
            seen = [(i, loss) for i, loss in zip(ids, losses, strict=False) if i < wanted]
            lengths = data.lengths([i for i, _ in seen]) if seen else []
            for (_, loss), length in zip(seen, lengths, strict=True):
                nats, size, count = nats + loss, size + length, count + self.config.data.seq_len
        return [nats, size, count]

    def eval_metrics(self, stats: Sequence[float]) -> dict[str, float]:
        """`bpb`: bits a byte of text, comparable across tokenizers; `heldout_loss`: nats a token. Nothing without a
        held-out set."""
        nats, size, count = stats
        return {"bpb": nats / math.log(2) / size, "heldout_loss": nats / count} if size else {}

    def tensors(self) -> list[torch.Tensor]:
        """Local parameters, both moments, averages, router biases, the guard's state, and where experts lie."""
        placement = [] if self._rebalance is None else self._rebalance.tensors()
        kinds = [tensor for kind in self._optimizer.kinds().values() for tensor in kind]
        return [*kinds, *self._biases, self._guard.state, *placement]

    def state_dict(self) -> dict[str, Any]:
        """`model.NAME`, `adam_m.NAME`, `adam_v.NAME`, `ema.NAME` if averaged, `router_bias.I`, `guard`: views of the
        whole, sharded as they are here; where experts were moved, copies in their own order. Collective over the cell
        then."""
        state: dict[str, Any] = {}
        for kind, tensors in self._optimizer.kinds().items():
            for i, (shard, local) in enumerate(zip(self.shards, tensors, strict=True)):
                mine = local if self._rebalance is None else self._rebalance.in_order(local, i)
                state[f"{kind}.{shard.name}"] = shard.whole(mine)
        state.update({f"router_bias.{i}": bias for i, bias in enumerate(self._biases)})
        state["guard"] = self._guard.state
        return state

    @property
    def placings(self) -> int:  # type: ignore[override]
        """See `ReplicaShard`."""
        return 0 if self._rebalance is None else self._rebalance.placings

    def placed(self) -> list[tuple[Piece, torch.Tensor]]:
        """See `ReplicaShard`: of experts that were moved each by its own number."""
        state: dict[str, Any] = {f"router_bias.{i}": bias for i, bias in enumerate(self._biases)}
        state["guard"] = self._guard.state
        state.update(self.arrangement())
        moved: list[tuple[Piece, torch.Tensor]] = []
        for kind, tensors in self._optimizer.kinds().items():
            for i, (shard, local) in enumerate(zip(self.shards, tensors, strict=True)):
                experts = None if self._rebalance is None else self._rebalance.experts(i)
                if experts is None:
                    state[f"{kind}.{shard.name}"] = shard.whole(local)
                else:
                    moved += shard.by_row(f"{kind}.{shard.name}", local, experts)
        return [*held(state).items(), *moved]

    def arrangement(self) -> dict[str, torch.Tensor]:
        """See `ReplicaShard`: where experts lie, and their load so far."""
        return {} if self._rebalance is None else self._rebalance.arrangement()

    def arranged(self) -> None:
        """See `ReplicaShard`."""
        if self._rebalance is not None:
            self._rebalance.loaded()

    def loaded(self, step: int) -> None:
        """See `ReplicaShard`."""
        if self._rebalance is not None:
            self._rebalance.loaded()
        self.engine.updated()
        self.begin(step)

    def restart_averages(self) -> None:
        """Average from the parameters as they are now, after they were written to from elsewhere than a checkpoint."""
        self._optimizer.restart_averages()
