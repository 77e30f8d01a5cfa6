"""What a rank of a cell really holds of a model, counted storage by storage; runs in every process of a `World`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from shoal_workloads.config import PretrainConfig
from shoal_workloads.parallel.engine import Factors
from shoal_workloads.parallel.pipeline.pipeline import Pipeline
from shoal_workloads.replica import PretrainShard
from tests.support import layouts_world, synthetic


def holding(config: PretrainConfig, workers: int, cells: int, folder: str) -> dict[str, int] | None:
    """Bytes by part, on one rank of one cell, in and after its first step."""
    place = layouts_world.enter(workers, cells, folder)
    if place is None:
        return None
    replica = synthetic.build(config)
    gathered = _Gathered(replica)
    with gathered:
        replica.begin(0)
        one = workers * config.batch.micro_batch
        replica.accumulate([range(place.cell * one, (place.cell + 1) * one)])
    found = {**gathered.found, "gradients": stored(gradients(replica)), "gradients, flat": replica.sums().nbytes}
    figures = replica._figures
    buffers = [*replica._biases, figures.loads, figures.nats, *rotations(replica)]
    kinds = replica._optimizer.kinds()
    return {
        **found,
        "master parameters": stored(kinds["model"]),
        "moments": stored([*kinds["adam_m"], *kinds["adam_v"]]),
        **({"averages": stored(kinds["ema"])} if "ema" in kinds else {}),
        "buffers": stored(buffers),
    }


def stored(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the memory that they lie in, each once."""
    return sum({one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors}.values())


def gradients(replica: PretrainShard) -> Iterator[torch.Tensor]:
    if isinstance(replica.engine, Pipeline):
        yield from (total for _, total in replica.engine.zero._sums)
        yield from (p.grad for p in replica.model.parameters() if p.grad is not None)
        return
    yield from (shard.local_grad for shard in replica.shards if shard.local_grad is not None)


def rotations(replica: PretrainShard) -> list[torch.Tensor]:
    kept = replica.model._rotations
    return [] if kept is None else [kept]


def groups(model: nn.Module) -> Iterator[Any]:
    """FSDP's groups of parameters."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            state: Any = module._get_fsdp_state()
            yield from state._fsdp_param_groups


class Copies(TorchDispatchMode):
    """Copies in another type of some tensors, as long as somebody holds them."""

    def __init__(self, of: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._of = {one.untyped_storage()._cdata for one in of}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._of:
            storage = out.untyped_storage()
            self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def bytes(self) -> int:
        return sum(size for ref, size in self._made.values() if not ref.expired())


class _Gathered:
    """Of a pipeline what is computed with, and its codes; else, between forward and backward or while layers are
    gathered, whatever is more, what FSDP gathered and copies of what it does not gather."""

    def __init__(self, replica: PretrainShard) -> None:
        self.replica, self.found = replica, dict[str, int]()
        self._patch: Any = None

    def __enter__(self) -> None:
        model, loss = self.replica.model, Factors.loss
        if isinstance(self.replica.engine, Pipeline):
            return
        spread = {id(p) for group in groups(model) for one in group.fsdp_params for p in [one.sharded_param]}
        copies = self._copies = Copies(p for p in model.parameters() if id(p) not in spread)
        self.found["parameters"] = 0

        def note(*_: Any, copies: int = 0) -> None:
            here = [one._unsharded_param for group in groups(model) for one in group.fsdp_params if unsharded(one)]
            coming = [group._all_gather_result.all_gather_output for group in groups(model) if group._all_gather_result]
            now = stored(p.data for p in here) + stored(coming) + copies
            self.found["parameters"] = max(self.found["parameters"], now)

        def between(factors: Factors, losses: Any) -> torch.Tensor:
            note(copies=copies.bytes())
            return loss(factors, losses)

        self._hooks = [block.register_forward_pre_hook(note) for block in model.blocks()]
        self._patch = mock.patch.object(Factors, "loss", between)
        self._patch.start()
        self._copies.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._patch is not None:
            self._copies.__exit__(*error)
            self._patch.stop()
            for hook in self._hooks:
                hook.remove()
            return
        engine = self.replica.engine
        assert isinstance(engine, Pipeline)
        self.found["parameters"] = stored(p for p in self.replica.model.parameters() if not p.is_meta)
        settled: Any = getattr(engine._products, "_settled", {})
        self.found["parameters in FP8"] = stored(one for pair in settled.values() for one in pair)


def unsharded(one: Any) -> bool:
    return hasattr(one, "_unsharded_param") and one._unsharded_param.untyped_storage().nbytes() > 0
