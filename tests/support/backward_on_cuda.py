"""Forward and backward of the model's parts on tensors that say they are on CUDA, in a process of its own.

    LD_PRELOAD=<cuda_library.DEVICE> python -m tests.support.backward_on_cuda

prints `{part: {"forward": Count, "backward": Count}}` as JSON: what was asked of the device, and how often the host
waited for it. Operands on different devices end it. `careless` is there to show that both are found.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypedDict

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError

from shoal_workloads.config import DispatchKind
from shoal_workloads.model.deepseek import Block, DeepSeekV3
from shoal_workloads.model.exchange import Exchange
from shoal_workloads.model.loss import head_nll
from shoal_workloads.model.mla import MLA
from shoal_workloads.model.moe import MoE
from shoal_workloads.model.recompute import Level
from shoal_workloads.model.rope import rope_table
from shoal_workloads.parallel.engine import Factors
from shoal_workloads.parallel.exchange import make_exchange
from tests.support.fake_cuda import Watch, fake_cuda
from tests.support.on_cuda import CONFIG, TOKENS, WORKERS, evenly, nobody_else

__all__ = ["Count", "main"]

LAYER = CONFIG.model
Outputs = Sequence[torch.Tensor | None]


class Count(TypedDict):
    """`operators`: that are no views; `waits`: of the host for the device, by what it waits in."""

    operators: int
    waits: dict[str, int]


def states() -> torch.Tensor:
    return torch.zeros(1, TOKENS, LAYER.d_model, dtype=torch.bfloat16, requires_grad=True)


def experts(kind: DispatchKind | None) -> Callable[[], Outputs]:
    layer, x = MoE(LAYER, exchange_of(kind)), states()
    return lambda: layer(x)


def block(kind: DispatchKind | None, level: Level) -> Callable[[], Outputs]:
    layer, x, rope = Block(LAYER, exchange_of(kind), dense=False), states(), rope_of_all()
    layer.recompute = level
    return lambda: layer(x, rope)


def attention() -> Callable[[], Outputs]:
    layer, x, rope = MLA(LAYER), states(), rope_of_all()
    return lambda: [layer(x, rope)]


def head() -> Callable[[], Outputs]:
    hidden, weight = states()[0], torch.zeros(LAYER.vocab_size, LAYER.d_model, requires_grad=True)
    targets = torch.zeros(TOKENS, dtype=torch.int64)
    return lambda: head_nll(hidden, weight, targets)[:1]


def model(kind: DispatchKind | None) -> Callable[[], Outputs]:
    whole = DeepSeekV3(LAYER, exchange_of(kind), torch.bfloat16)
    tokens = torch.zeros(2, TOKENS // 2 + 1, dtype=torch.int64)
    whole.rope(TOKENS // 2, tokens.device)
    return lambda: [Factors(1.0, 0.3, 0.1).loss(whole(tokens, mtp=kind is None))]


def exchange_of(kind: DispatchKind | None) -> Exchange | None:
    return None if kind is None else make_exchange(dist.group.WORLD, kind=kind, per_node=2)  # type: ignore[arg-type]


def rope_of_all() -> torch.Tensor:
    return rope_table(LAYER, TOKENS, torch.device("cuda"))


class Careless(torch.autograd.Function):
    """Its backward reads a value, or (`mixes`) adds what lies in the CPU's memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mixes: bool) -> torch.Tensor:
        ctx.mixes = mixes
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad,) = grads
        return (grad + torch.zeros(grad.shape, device="cpu") if ctx.mixes else grad * float(grad.sum())), None


def careless(mixes: bool) -> Callable[[], Outputs]:
    x = states()
    return lambda: [Careless.apply(x, mixes)]


PARTS: dict[str, Callable[[], Callable[[], Outputs]]] = {
    "careless": partial(careless, False),
    "experts here": partial(experts, None),
    "experts flat": partial(experts, "flat"),
    "experts hierarchical": partial(experts, "hierarchical"),
    "attention": attention,
    "head": head,
    "layer, norms made again": partial(block, None, True),
    "layer, rows sent again": partial(block, "flat", "dispatch"),
    "model here": partial(model, None),
    "model flat": partial(model, "flat"),
}


def measure(watch: Watch, run: Callable[[], Outputs]) -> dict[str, Count]:
    def taken() -> Count:
        found = Count(operators=sum(watch.operators.values()), waits=dict(watch.waits))
        watch.operators.clear()
        watch.waits.clear()
        return found

    taken()
    with watch.reading(evenly):
        outputs = [one for one in run() if one is not None and one.requires_grad]
        forward = taken()
        # autograd's own threads know nothing of what watches this one
        with torch.autograd.set_multithreading_enabled(False):
            torch.autograd.backward(outputs, [torch.ones_like(one) for one in outputs])
    return {"forward": forward, "backward": taken()}


def main() -> None:
    """Print it."""
    found = {}
    with nobody_else(WORKERS), fake_cuda(preloaded=True) as watch:
        with torch.device("cuda"):
            mixed = careless(True)
        try:
            measure(watch, mixed)
        except FakeTensorDeviceMismatchError:
            pass
        else:
            raise AssertionError("operands on different devices are not found in backward")
        for name, make in PARTS.items():
            with torch.device("cuda"):
                run = make()
            found[name] = measure(watch, run)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
