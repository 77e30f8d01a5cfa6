"""A tiny model on a language that can be learnt in a few steps, and rank functions that drive replicas of it.

The functions run in this process or in those of a `World`; what they return is plain data.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from shoal.checkpoint import Group
from shoal_core.ckpt import together
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.stage import Stage
from shoal_core.ckpt.state import held
from shoal_core.lane import Lane
from shoal_workloads.config import PretrainConfig
from shoal_workloads.parallel.dispatch import Route, Transfer
from shoal_workloads.precision.fp8 import dequantize_tiles, quantize_tiles
from shoal_workloads.pretrain import Pretrain
from shoal_workloads.replica import PretrainShard

VOCAB, SEQ = 64, 16


class SyntheticSamples:
    """Sample p depends on p alone: an affine walk over the vocabulary with some noise. What is read is among what is
    expected, where anything is."""

    far, waits, waited = False, 0, 0.0
    expected: tuple[Sequence[int], ...] = ()

    def __init__(self, corpus: str, seq_len: int, seed: int, device: str) -> None:
        self.seq_len, self.device = seq_len, device

    def expect(self, coming: Iterable[Sequence[int]]) -> None:
        self.expected = tuple(coming)

    def tokens(self, ids: Sequence[int]) -> torch.Tensor:
        assert not self.expected or ids in self.expected
        rows = []
        for i in ids:
            random = np.random.default_rng(i)
            start, noise = random.integers(VOCAB), random.integers(0, 2, self.seq_len + 1)
            rows.append((start + 5 * np.arange(self.seq_len + 1) + noise) % VOCAB)
        return torch.from_numpy(np.stack(rows))

    def lengths(self, ids: Sequence[int]) -> list[int]:
        return [2 * self.seq_len] * len(ids)


def tiny(**sections: Any) -> PretrainConfig:
    """A configuration of a model of some ten thousand parameters; `sections` replace or extend its sections."""
    base: dict[str, Any] = {
        "model": {
            "preset": "demo",
            "vocab_size": VOCAB,
            "d_model": 32,
            "n_layers": 3,
            "n_heads": 2,
            "d_head": 8,
            "d_rope": 4,
            "d_v": 8,
            "d_kv": 12,
            "d_q": 20,
            "n_experts": 8,
            "d_expert": 12,
            "d_ffn": 40,
            "top_k": 2,
            "init_std": 0.1,
        },
        "data": {"corpus": "synthetic", "heldout": "synthetic", "seq_len": SEQ},
        "batch": {"global_batch": 8, "micro_batch": 2},
        "schedule": {"budget": 100 * 8 * SEQ, "lr": 3e-3, "warmup_steps": 0},
        "eval": {"samples": 5},
    }
    for name, section in sections.items():
        base[name] = {**base[name], **section} if isinstance(base.get(name), dict) else section
    return PretrainConfig.model_validate(base)


def build(config: PretrainConfig) -> PretrainShard:
    """A replica on synthetic samples, in the current process group or alone."""
    return with_samples(Pretrain(config).build(seed=7))


def with_samples(replica: PretrainShard) -> PretrainShard:
    """A replica that reads synthetic samples."""
    config = replica.config
    data: Any = ("synthetic", config.data.seq_len, config.data.seed, config.device)
    training: Any = SyntheticSamples(*data)
    heldout: Any = SyntheticSamples(*data)
    replica._train, replica._heldout = training, heldout
    return replica


def micro_batches(config: PretrainConfig, step: int, workers: int) -> list[range]:
    """Those of a step of a run of a single cell, each of all its workers."""
    one = workers * config.batch.micro_batch
    first = step * config.batch.global_batch
    return [range(i, i + one) for i in range(first, first + config.batch.global_batch, one)]


def run_step(replica: PretrainShard, step: int) -> dict[str, float]:
    """One step of a run of a single cell, as the platform drives it."""
    workers = dist.get_world_size() if dist.is_initialized() else 1
    config = replica.config
    replica.begin(step)
    coming = micro_batches(config, step, workers)
    replica.expect([coming])
    replica.accumulate(coming)
    replica.expect([])
    total = replica.sums()
    figures = torch.tensor([*replica.stats(), replica.norm_sq(total)], dtype=torch.float64)
    if workers > 1:
        dist.all_reduce(figures)
    *stats, norm_sq = figures.tolist()
    return replica.commit(total, stats, norm_sq)


def whole(tensor: Any) -> np.ndarray:
    """The full value of a (possibly sharded) tensor. Collective."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone().float().numpy()


def gradients(config: PretrainConfig) -> dict[str, np.ndarray]:
    """The gradient summed over the samples of step 0, whole, by parameter; `loads`: the router loads."""
    replica = build(config)
    workers = dist.get_world_size() if dist.is_initialized() else 1
    replica.accumulate(micro_batches(config, 0, workers))
    return whole_sums(replica)


def whole_sums(replica: PretrainShard) -> dict[str, np.ndarray]:
    """`PretrainShard.sums` as `gradients` returns them. Collective."""
    total, first, out = replica.sums(), 0, {}
    for shard in replica.shards:
        local = shard.local
        out[shard.name] = whole(shard.whole(total[first : first + local.numel()].view_as(local).clone()))
        first += local.numel()
    out["loads"] = total[first:].clone().numpy()
    return out


def train(config: PretrainConfig, steps: int) -> tuple[list[dict[str, float]], dict[str, np.ndarray], list[float]]:
    """Metrics by step, the whole state at the end, and the figures of an evaluation."""
    replica = build(config)
    metrics = [run_step(replica, step) for step in range(steps)]
    workers = dist.get_world_size() if dist.is_initialized() else 1
    figures = torch.tensor(replica.evaluate(dist.get_rank() if workers > 1 else 0, workers), dtype=torch.float64)
    if workers > 1:
        dist.all_reduce(figures)
    return metrics, {name: whole(t) for name, t in replica.state_dict().items()}, figures.tolist()


def save(config: PretrainConfig, steps: int, path: str) -> dict[str, np.ndarray]:
    """Train, write a checkpoint as ranks do together, and return the whole state."""
    replica = build(config)
    for step in range(steps):
        run_step(replica, step)
    together.save(Folder.at(path), 0, Stage(Lane()).take(held(replica.state_dict())).read(), peers(), {"steps": steps})
    return {name: whole(t) for name, t in replica.state_dict().items()}


def load(config: PretrainConfig, steps: int, path: str) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Load a checkpoint of `steps` steps; the state, and the metrics of the next step."""
    replica = build(config)
    replica.loaded(together.load(Folder.at(path), replica.state_dict(), peers(), lambda _: False).steps)
    return {name: whole(t) for name, t in replica.state_dict().items()}, run_step(replica, steps)


def peers() -> Group:
    """All ranks of this world."""
    return Group(dist.group.WORLD if dist.is_initialized() else None)


def twin(config: PretrainConfig) -> bool:
    """Whether a replica that receives `tensors()` goes on bit for bit like its source."""
    source, other = build(config), build(config)
    for step in range(2):
        run_step(source, step)
    for mine, theirs in zip(other.tensors(), source.tensors(), strict=True):
        mine.copy_(theirs)
    other.loaded(2)
    same = [run_step(source, step) == run_step(other, step) for step in (2, 3)]
    return all(same) and all(torch.equal(a, b) for a, b in zip(source.tensors(), other.tensors(), strict=True))


def exchange() -> tuple[bool, tuple[bool, bool], tuple[bool, bool]]:
    """Send rows between two ranks: whether they arrive exactly without FP8; and with FP8 for one direction, whether
    what arrives, and the gradient that comes back, are rounded (they must then equal the rounding done here)."""
    rank, group = dist.get_rank(), dist.group.WORLD
    assert group is not None
    values = [torch.randn(5, 200, generator=torch.Generator().manual_seed(r)) for r in range(2)]
    grads = [torch.randn(n, 200, generator=torch.Generator().manual_seed(9 + n)) for n in (4, 6)]
    sent = [[1, 4], [3, 2]]  # sent[r][j]: rows that rank r sends to rank j
    receive = [sent[0][rank], sent[1][rank]]

    def route(rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([rows[r].split(sent[r])[rank] for r in range(2)])

    def back(rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([rows[j].split([sent[0][j], sent[1][j]])[rank] for j in range(2)])

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return dequantize_tiles(*quantize_tiles(x, power_of_2=True))

    out = []
    for fp8 in ((False, False), (True, False), (False, True)):
        x = values[rank].clone().requires_grad_()
        y = Transfer(x, Route(group, list(sent[rank]), list(receive)), fp8=fp8).land()
        y.backward(grads[rank])
        assert x.grad is not None
        pairs = ((y.detach(), route(values)), (x.grad, back(grads)))
        found = []
        for value, plain in pairs:
            if torch.equal(value, plain):
                found.append(False)
            else:
                assert torch.equal(value, rounded(plain))
                found.append(True)
        out.append((found[0], found[1]))
    return out[0] == (False, False), out[1], out[2]


def forgotten(config: PretrainConfig) -> list[bool]:
    """Train a step and drop the replica: whether model, layout's mesh and expert group are gone with it."""
    replica = build(config)
    run_step(replica, 0)
    mesh = replica.shards[0].mesh
    watched = [weakref.ref(replica), weakref.ref(replica.model), weakref.ref(replica.shards[-1].parameter)]
    if mesh is not None:
        watched.append(weakref.ref(mesh))
    del replica, mesh
    gc.collect()
    return [reference() is None for reference in watched]
