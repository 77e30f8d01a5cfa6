"""Rank functions that run a model whose experts are spread over the workers of a world. They return plain data."""

from __future__ import annotations

from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist

from shoal_core.errors import UserError
from shoal_workloads.config import DispatchKind, PretrainConfig
from shoal_workloads.model import moe as moe_module
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.deepseek import DeepSeekV3
from shoal_workloads.model.moe import MoE
from shoal_workloads.parallel.dispatch import Exchange
from shoal_workloads.parallel.exchange import make_exchange
from shoal_workloads.parallel.placement import identity, moved
from shoal_workloads.precision.fp8 import EmulatedFp8
from shoal_workloads.precision.products import Products
from tests.support import synthetic

VOCAB, LENGTH, SEQUENCES = 64, 24, 4


class Case(NamedTuple):
    """How a model is spread. ep: 1 for a single process; bias: added to the router's choice of the first experts;
    placement: the place of each expert, weights moved there from their own."""

    ep: int = 1
    kind: DispatchKind = "flat"
    per_node: int = 1
    fp8: bool = False
    dtype: torch.dtype = torch.float32
    bias: float = 0.0
    favoured: int = 0
    placement: tuple[int, ...] | None = None


class Answer(NamedTuple):
    """Sums over this worker's sequences. grads: by parameter, experts by number (those that are not here: zero);
    traffic: bytes sent; loads: (routers, E); experts: (tokens, K) of every router."""

    loss: float
    balance: float
    grads: dict[str, np.ndarray]
    loads: np.ndarray
    experts: list[np.ndarray]
    traffic: dict[str, int]


def config(**fields: Any) -> ModelConfig:
    """Two MoE layers and an MTP module of 8 experts in 4 groups, of which a token uses 2, and 3 experts in these."""
    small = {
        "vocab_size": VOCAB, "d_model": 32, "n_layers": 3, "n_heads": 2, "d_head": 8, "d_rope": 4, "d_v": 8, "d_kv": 12,
        "d_q": 20, "n_experts": 8, "d_expert": 16, "d_ffn": 40, "top_k": 3, "n_groups": 4, "topk_groups": 2,
    }  # fmt: skip
    return ModelConfig.from_preset("demo", **{**small, **fields})


def exchange_of(case: Case) -> Exchange | None:
    """The exchange of this worker's group of `ep` consecutive ranks."""
    if case.ep == 1:
        return None
    if case.ep == dist.get_world_size():
        group = dist.group.WORLD
    else:
        groups = [dist.new_group(range(r, r + case.ep)) for r in range(0, dist.get_world_size(), case.ep)]
        group = groups[dist.get_rank() // case.ep]
    assert isinstance(group, dist.ProcessGroup)
    return make_exchange(group, kind=case.kind, per_node=case.per_node)


def build(c: ModelConfig, case: Case) -> tuple[DeepSeekV3, Exchange | None]:
    """The same model in every process; of the experts, those that belong here."""
    torch.manual_seed(0)
    exchange, products = exchange_of(case), EmulatedFp8() if case.fp8 else Products()
    whole = DeepSeekV3(c)
    for p in whole.parameters():
        p.data.normal_(0.0, 0.2) if p.dim() > 1 else p.data.fill_(1.0)
    model = DeepSeekV3(c, exchange, case.dtype, products)
    for (name, p), q in zip(model.named_parameters(), whole.parameters(), strict=True):
        if ".experts." in name and exchange is not None:
            p.data.copy_(q.data[exchange.rank * p.shape[0] :][: p.shape[0]])
        else:
            p.data.copy_(q.data)
    for moe in model.moe_layers():
        moe.router.bias[: case.favoured] += case.bias
        if case.placement is not None:
            place(moe, torch.tensor(case.placement), [p.data for p in moe.experts.parameters()])
    return model, exchange


def place(moe: MoE, placement: torch.Tensor, tensors: list[torch.Tensor]) -> None:
    """Hold the experts of a layer by `placement` from now on. tensors: all that belongs to them here."""
    old = identity(moe.n_experts) if moe.placement is None else moe.placement
    exchange: Any = moe.exchange
    for tensor in tensors:
        tensor.copy_(moved(tensor, old, placement, exchange))
    moe.placement = placement


def sequences() -> torch.Tensor:
    """All sequences of the step: (SEQUENCES, LENGTH + 1)."""
    return torch.randint(VOCAB, (SEQUENCES, LENGTH + 1), generator=torch.Generator().manual_seed(1))


def step(c: ModelConfig, case: Case) -> Answer:
    """Forward and backward over this worker's share of the sequences."""
    model, exchange = build(c, case)
    experts: list[np.ndarray] = []
    for moe in model.moe_layers():
        moe.router.register_forward_hook(lambda _m, _i, routing: experts.append(routing.experts.numpy()))
    rank, world = (dist.get_rank(), dist.get_world_size()) if case.ep > 1 else (0, 1)
    losses = model(sequences().chunk(world)[rank])
    loss = losses.lm + 0.3 * losses.mtp + 0.1 * losses.balance
    loss.backward()
    grads = {}
    for name, p in model.named_parameters():
        assert p.grad is not None
        grad = p.grad.float()
        if ".experts." in name and exchange is not None:
            held, places = len(grad), torch.zeros(c.n_experts, *grad.shape[1:])
            places[exchange.rank * held :][:held] = grad
            grad = places if case.placement is None else places[torch.tensor(case.placement)]
        grads[name] = grad.numpy()
    taken = {} if exchange is None else exchange.traffic.take()
    return Answer(loss.item(), losses.balance.item(), grads, losses.loads.numpy(), experts, taken)


def together(answers: list[Answer]) -> Answer:
    """The sum over workers."""
    return Answer(
        sum(a.loss for a in answers),
        sum(a.balance for a in answers),
        {name: np.sum([a.grads[name] for a in answers], axis=0) for name in answers[0].grads},
        np.sum([a.loads for a in answers], axis=0),
        [np.concatenate(parts) for parts in zip(*(a.experts for a in answers), strict=True)],
        {key: sum(a.traffic.get(key, 0) for a in answers) for key in sorted({k for a in answers for k in a.traffic})},
    )


def order_of_calls(c: ModelConfig, case: Case) -> tuple[list[str], list[str]]:
    """What one MoE layer does, forward and backward: rows sent and waited for, shared experts and balance loss."""
    log: list[str] = []
    send = dist.all_to_all_single

    class Watched:
        def __init__(self, work: Any) -> None:
            self.work = work

        def wait(self) -> None:
            log.append("wait")
            self.work.wait()

    def watched(out: torch.Tensor, x: torch.Tensor, *sizes: Any, **options: Any) -> Any:
        work = send(out, x, *sizes, **options)
        if x.dim() == 2 and x.shape[1] == c.d_model:
            log.append("send")
            return Watched(work)
        return work

    moe, balance = build(c, case)[0].moe_layers()[0], moe_module.sequence_balance

    def watched_balance(*args: Any) -> torch.Tensor:
        log.append("balance")
        found = balance(*args)
        found.register_hook(lambda _: log.append("balance"))
        return found

    assert moe.shared is not None
    moe.shared.register_forward_hook(lambda *_: log.append("shared"))
    moe.shared.gate_up.weight.register_hook(lambda _: log.append("shared"))
    moe.experts.register_forward_hook(lambda *_: log.append("experts"))
    moe.experts.gate_up.register_hook(lambda _: log.append("experts"))
    with (
        patch.object(dist, "all_to_all_single", watched),
        patch.object(moe_module, "sequence_balance", watched_balance),
    ):
        y, _, loss = moe(torch.randn(2, 6, c.d_model, requires_grad=True))
        forward = log.copy()
        log.clear()
        (y.sum() + loss).backward()
    return forward, log


def told(config: PretrainConfig) -> tuple[dict[str, float], dict[str, int]]:
    """The metrics of a step of one micro-batch a worker, and what this worker's exchange counts in it."""
    replica, micro = synthetic.build(config), config.batch.micro_batch
    replica.accumulate([range(dist.get_world_size() * micro)])
    exchange: Any = replica.model.moe_layers()[0].exchange
    taken = exchange.traffic.take()
    return synthetic.run_step(replica, 0), taken


def refused(per_node: int) -> str:
    """What a group that does not divide into nodes of `per_node` is told."""
    try:
        exchange_of(Case(ep=dist.get_world_size(), per_node=per_node))
    except UserError as error:
        return str(error)
    return ""
