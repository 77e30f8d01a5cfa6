"""One worker's share of one copy of the model: what the platform drives through a step.

Gradients, loads and losses are handed out as sums over samples and divided once, in `commit`, by the step's batch. The
loss of a sample is that of the report: mean over its T positions of the cross-entropy, plus lambda/D times the MTP
modules' (also over T), plus alpha times the balance loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from shoal_workloads.config import PretrainConfig
from shoal_workloads.parallel.init import init_slots
from shoal_workloads.parallel.layout import layout_of, shard_model
from shoal_workloads.parallel.pipeline.pipeline import Pipeline
from shoal_workloads.parallel.pipeline.stages import Factors
from shoal_workloads.parallel.rebalance import Rebalance
from shoal_workloads.parallel.traffic import SCOPES
from shoal_workloads.precision.choose import choose
from shoal_workloads.recipe.adamw import AdamW
from shoal_workloads.recipe.balance import max_violation, update_bias
from shoal_workloads.recipe.ema import Ema
from shoal_workloads.recipe.guard import Guard
from shoal_workloads.samples import Samples

__all__ = ["PretrainReplica"]


class PretrainReplica:
    """See `shoal_core.workload.Replica`, whose methods these are."""

    def __init__(self, config: PretrainConfig, seed: int, origin: tuple[int, int] = (0, 0)) -> None:
        self.config, self._origin = config, origin
        workers = dist.get_world_size() if dist.is_initialized() else 1
        self._world = dist.group.WORLD if workers > 1 else None
        dtype, products = choose(config.precision, config.device)
        self.pipeline: Pipeline | None = None
        if config.parallel.pp > 1 and workers > 1:
            self.pipeline = Pipeline(config, dtype, products)
            self.model, self.slots = self.pipeline.model, self.pipeline.zero.slots
        else:
            self.model, self.slots = shard_model(
                config.model,
                layout_of(config.device, config.parallel),
                device=config.device,
                dtype=dtype,
                products=products,
                reshard_after_forward=config.parallel.reshard_after_forward,
            )
        for block in self.model.blocks():
            block.recompute = config.parallel.recompute
        init_slots(self.slots, seed, config.model.init_std)
        self._parameters = [slot.local for slot in self.slots]
        self._biases = [moe.router.bias for moe in self.model.moe_layers()]
        self._optimizer = AdamW(self._parameters, config.optim)
        self._numel = sum(p.numel() for p in self._parameters)
        self._guard = Guard(config.guard)
        self._ema = Ema(self._parameters, config.ema_decay) if config.ema_decay else None
        self._exchange = next((moe.exchange for moe in self.model.moe_layers()), None)
        self._rebalance: Rebalance | None = None
        if config.parallel.rebalance and self._exchange is not None:
            self._rebalance = Rebalance(self.model, self.slots, self._exchange, config.parallel.rebalance)
        self._notes: list[dict[str, Any]] = []
        self._train: Samples | None = None
        self._heldout: Samples | None = None
        self.begin(origin[0])

    def generation_began(self) -> None:
        """The crew of the run has changed: experts may be placed anew, if the run is told so."""
        if self._rebalance is not None:
            self._rebalance.generation_began()

    def begin(self, step: int) -> None:
        """Forget what was accumulated and start step `step` (0-based)."""
        self._step = step
        first, last = self.config.batch.samples(step, self.config.data.seq_len, self._origin)
        self._tokens, self._batch = first * self.config.data.seq_len, last - first
        self._loads = torch.zeros(len(self._biases), self.config.model.n_experts, device=self.config.device)
        self._lm = self._mtp = self._balance = 0.0
        self._samples = 0
        self._summed: torch.Tensor | None = None
        for slot in self.slots:
            slot.parameter.grad = None
        if self.pipeline is not None:
            self.pipeline.zero.begin()
        if self._exchange is not None:
            self._exchange.traffic.take()

    def accumulate(self, ids: Sequence[int]) -> None:
        """Forward and backward over the samples at positions `ids`. Collective over the cell.

        Raises:
            RuntimeError: a peer of the cell is gone.
        """
        assert self.pipeline is None, "a pipeline takes the cell's micro-batches whole: accumulate_all"
        tokens, _ = self._training_samples().read(ids)
        losses = self.model(tokens)
        length = tokens.shape[1] - 1
        factors = self._factors(length)
        total = losses.lm * factors.lm + losses.mtp * factors.mtp + losses.balance * factors.balance
        total.backward()
        self._loads += losses.loads
        self._lm += float(losses.lm.detach())
        self._mtp += float(losses.mtp.detach())
        self._balance += float(losses.balance.detach())
        self._samples += len(ids)
        self._summed = None

    def accumulate_all(self, micro_batches: Sequence[Sequence[int]]) -> None:
        """The same for whole micro-batches of the cell, ids of all its workers in the order of ranks, at once.

        Raises:
            RuntimeError: a peer of the cell is gone.
        """
        if self.pipeline is None:
            rank, size = dist.get_rank() if self._world is not None else 0, self.config.batch.micro_batch
            for ids in micro_batches:
                self.accumulate(ids[rank * size : (rank + 1) * size])
            return
        factors, every = self._factors(self.config.data.seq_len), self.config.parallel.timed_every
        self.pipeline.measure = every > 0 and self._step % every == 1 % every
        figures = self.pipeline.accumulate(micro_batches, self._training_samples().read, factors)
        self._loads += figures.loads
        self._lm += figures.lm
        self._mtp += figures.mtp
        self._balance += figures.balance
        self._samples += figures.samples
        self._summed = None
        if self.pipeline.measure:
            timed = self.pipeline.picture(len(micro_batches))
            self._notes = [{"kind": "pipeline_step", **timed}] if self.pipeline.grid.rank == 0 else []

    def notes(self) -> list[dict[str, Any]]:
        """`pipeline_step`: when each rank of a chain did what, planned beside measured, every so many steps;
        `experts_placed`: see `Rebalance.measure`."""
        found, self._notes = self._notes, []
        return found

    def sums(self) -> torch.Tensor:
        """Local gradient shards, then the load of every router, summed over the cell. float32, flat. Collective."""
        if self._summed is None:
            if self.pipeline is not None:
                self.pipeline.zero.scatter()
            out = torch.empty(self._numel + self._loads.numel(), device=self.config.device)
            parts, first = [], 0
            for slot, local in zip(self.slots, self._parameters, strict=True):
                part, grad = out[first : first + local.numel()].view_as(local), slot.local_grad
                if grad is None:
                    part.zero_()
                else:
                    torch.mul(grad, slot.grad_scale, out=part)
                parts.append(part)
                first += local.numel()
            if self._rebalance is not None and self._rebalance.due:
                self._rebalance.prepare(list(self._kinds().values()), parts)
            loads = self._loads.clone()
            if self._world is not None:
                dist.all_reduce(loads, group=self._world)
            out[first:] = loads.flatten()
            self._summed = out
        return self._summed

    def stats(self) -> list[float]:
        """Nats of the main head, of the MTP heads, the balance loss, the number of samples; where experts are shared,
        bytes sent for them across nodes and inside."""
        sent = [] if self._exchange is None else [float(self._exchange.traffic.total(scope)) for scope in SCOPES]
        return [self._lm, self._mtp, self._balance, float(self._samples), *sent]

    def norm_sq(self, total: torch.Tensor) -> float:
        """This worker's part of the squared norm of the gradient averaged over the global batch."""
        grads = total[: self._numel]
        return float(torch.linalg.vector_norm(grads, dtype=torch.float64)) ** 2 / self._batch**2

    @torch.no_grad()
    def commit(self, total: torch.Tensor, stats: Sequence[float], norm_sq: float) -> dict[str, float]:
        """Apply the step: clip, AdamW, router biases. Not collective.

        Returns `loss, lm_loss, mtp_loss, balance_loss` (nats a token), `grad_norm` (before clipping), `lr`, `tokens`
        (of this step), `max_violation` (mean over routers) and `max_violation.I` (of router I); where workers share
        experts `exchange_across` and `exchange_inside`, bytes that rows and what goes with them took between nodes and
        inside them; `fault` and `roll_back` as `GuardConfig` says."""
        config, schedule = self.config, self.config.schedule
        lm, mtp, balance, _, *sent = stats
        if self._rebalance is not None and self._rebalance.commit() and self.pipeline is not None:
            self.pipeline.zero.changed()
        tokens = self._batch * config.data.seq_len
        depth = max(1, config.model.mtp_depth)
        metrics = {
            "lm_loss": lm / tokens,
            "mtp_loss": mtp / tokens / depth,
            "balance_loss": balance / self._batch,
            "grad_norm": math.sqrt(norm_sq),
            "lr": schedule.lr_at(self._step, self._tokens),
            "tokens": float(tokens),
        }
        mtp_part = self._mtp_weight() * depth * metrics["mtp_loss"]
        metrics["loss"] = metrics["lm_loss"] + mtp_part + self._alpha() * metrics["balance_loss"]
        loads = total[self._numel :].view(len(self._biases), config.model.n_experts)
        if self._biases:
            by_layer = [max_violation(load) for load in loads]
            metrics["max_violation"] = sum(by_layer) / len(by_layer)
            metrics.update({f"max_violation.{i}": value for i, value in enumerate(by_layer)})
        if sent:
            metrics.update({f"exchange_{scope}": size for scope, size in zip(SCOPES, sent, strict=True)})
        verdict = self._guard.judge(metrics["loss"], metrics["grad_norm"])
        if verdict != "fine":
            metrics["fault"] = 1.0 if verdict == "spike" else 2.0
            metrics["roll_back"] = float(config.guard.action == "roll_back")
        if self._guard.apply(verdict):
            self._apply(total, loads, metrics["grad_norm"], metrics["lr"])
        self.begin(self._step + 1)
        return metrics

    def _apply(self, total: torch.Tensor, loads: torch.Tensor, norm: float, lr: float) -> None:
        """Clip, update parameters and router biases, and begin to average."""
        config = self.config
        if self._ema is not None:
            self._ema.wait()
        scale = min(1.0, config.optim.clip / (norm + 1e-6)) / self._batch
        flat = total[: self._numel] * scale
        grads = [
            g.view_as(p)
            for g, p in zip(flat.split([p.numel() for p in self._parameters]), self._parameters, strict=True)
        ]
        self._optimizer.step(grads, lr, self._step + 1)
        if self.pipeline is not None:
            self.pipeline.zero.changed()
        gamma = config.schedule.gamma_at(self._tokens)
        for bias, load in zip(self._biases, loads, strict=True):
            update_bias(bias, load, gamma)
        if self._ema is not None:
            self._ema.update()
        if self._rebalance is not None:
            told = self._rebalance.measure(loads)
            if told is not None and dist.get_rank() == 0:
                self._notes.append(told)

    @torch.no_grad()
    def evaluate(self, part: int, parts: int) -> list[float]:
        """Nats, bytes and tokens of every `parts`-th held-out sample from `part`. Collective over the cell."""
        if self.config.data.heldout is None:
            return [0.0, 0.0, 0.0]
        data, micro, wanted = self._heldout_samples(), self.config.batch.micro_batch, self.config.eval.samples
        each = -(-wanted // parts)  # the same number of forward passes everywhere: surplus samples count for nothing
        if self.pipeline is not None:
            return self._evaluate_chain(self.pipeline, part, parts, each)
        nats = size = count = 0.0
        for first in range(0, each, micro):
            ids = [part + parts * i for i in range(first, min(first + micro, each))]
            tokens, lengths = data.read([i if i < wanted else 0 for i in ids])
            losses = self.model(tokens, mtp=False).lm_each.tolist()
            for i, loss, length in zip(ids, losses, lengths.tolist(), strict=True):
                if i < wanted:
                    nats, size, count = nats + loss, size + length, count + tokens.shape[1] - 1
        return [nats, size, count]

    def _evaluate_chain(self, pipeline: Pipeline, part: int, parts: int, each: int) -> list[float]:
        """The same for all parts of this worker's chain, whose last stage says what came out."""
        data, micro, wanted = self._heldout_samples(), self.config.batch.micro_batch, self.config.eval.samples
        grid, batches = pipeline.grid, []
        for stage_rank in range(grid.pp):
            of = part - grid.rank + grid.at(stage_rank)
            ids = [of + parts * i for i in range(each)]
            ids += [wanted] * (-each % micro)
            batches += [ids[first : first + micro] for first in range(0, len(ids), micro)]

        def read(ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
            return data.read([i if i < wanted else 0 for i in ids])

        nats = size = count = 0.0
        for ids, losses in zip(batches, pipeline.nats(batches, read), strict=True):
            lengths = read(ids)[1].tolist() if losses else []
            for i, loss, length in zip(ids, losses, lengths, strict=False):
                if i < wanted:
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
        kinds = [tensor for kind in self._kinds().values() for tensor in kind]
        return [*kinds, *self._biases, self._guard.state, *placement]

    def state_dict(self) -> dict[str, Any]:
        """`model.NAME`, `adam_m.NAME`, `adam_v.NAME`, `ema.NAME` if averaged, `router_bias.I`, `guard`: views of the
        whole, sharded as they are here; where experts were moved, copies in their own order. Collective over the cell
        then."""
        state: dict[str, Any] = {}
        for kind, tensors in self._kinds().items():
            for i, (slot, local) in enumerate(zip(self.slots, tensors, strict=True)):
                mine = local if self._rebalance is None else self._rebalance.in_order(local, i)
                state[f"{kind}.{slot.name}"] = slot.whole(mine)
        state.update({f"router_bias.{i}": bias for i, bias in enumerate(self._biases)})
        state["guard"] = self._guard.state
        return state

    def loaded(self, step: int) -> None:
        """The state was written to and is that of `step` committed steps."""
        if self._rebalance is not None:
            self._rebalance.loaded()
        if self.pipeline is not None:
            self.pipeline.zero.changed()
        self.begin(step)

    def restart_averages(self) -> None:
        """Average from the parameters as they are now, after they were written to from elsewhere than a checkpoint."""
        if self._ema is not None:
            self._ema.reset()

    def _kinds(self) -> dict[str, list[torch.Tensor]]:
        """What is kept of every slot: parameters, both moments, and averages (after every update begun) if any."""
        kinds = {"model": self._parameters, "adam_m": self._optimizer.m, "adam_v": self._optimizer.v}
        if self._ema is not None:
            self._ema.wait()
            kinds["ema"] = self._ema.averages
        return kinds

    def _training_samples(self) -> Samples:
        if self._train is None:
            data = self.config.data
            self._train = Samples(data.corpus, data.seq_len, data.seed, self.config.device)
        return self._train

    def _heldout_samples(self) -> Samples:
        if self._heldout is None:
            data = self.config.data
            assert data.heldout is not None
            self._heldout = Samples(data.heldout, data.seq_len, data.seed, self.config.device)
        return self._heldout

    def _factors(self, length: int) -> Factors:
        """Of the parts of the loss of samples of `length` tokens."""
        return Factors(1 / length, self._mtp_weight() / length, self._alpha())

    def _mtp_weight(self) -> float:
        return self.config.schedule.mtp_weight_at(self._tokens) / max(1, self.config.model.mtp_depth)

    def _alpha(self) -> float:
        return self.config.balance_alpha
