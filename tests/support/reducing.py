"""What FSDP reduces in a step, and what it holds until then; runs in every process of a `World`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from shoal_workloads.config import PretrainConfig
from tests.support import synthetic


@dataclass
class Reduced:
    """`gradient`: see `synthetic.gradients`. `groups`: of parameters that FSDP reduces together. `scatters`: how often
    one was reduced. `held`: bytes of gradients that were not reduced yet, before each micro-batch and at last."""

    gradient: dict[str, np.ndarray]
    groups: int
    scatters: int
    held: list[int]


def reduced(config: PretrainConfig, given: Sequence[int]) -> Reduced:
    """The micro-batches of step 0, in several calls of so many each."""
    replica = synthetic.build(config)
    held: list[int] = []
    samples: Any = replica._train
    replica._train = Watched(samples, replica.model, held)  # type: ignore[assignment]
    all_of_them = synthetic.micro_batches(config, 0, dist.get_world_size())
    ends = [sum(given[:calls]) for calls in range(len(given) + 1)]
    assert ends[-1] == len(all_of_them)
    with mock.patch.object(dist, "reduce_scatter_single", wraps=dist.reduce_scatter_single) as scatter:
        for first, end in pairwise(ends):
            replica.accumulate(all_of_them[first:end])
    held.append(unreduced(replica.model))
    return Reduced(synthetic.whole_sums(replica), len(list(groups(replica.model))), scatter.call_count, held)


class Watched:
    """Samples that note what is held of a model's gradients whenever they are read: before a micro-batch."""

    def __init__(self, samples: Any, model: nn.Module, held: list[int]) -> None:
        self.samples, self.model, self.held = samples, model, held

    def tokens(self, ids: Sequence[int]) -> Any:
        self.held.append(unreduced(self.model))
        return self.samples.tokens(ids)


def groups(model: nn.Module) -> Iterator[Any]:
    """FSDP's groups of parameters."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            yield from module._get_fsdp_state()._fsdp_param_groups


def unreduced(model: nn.Module) -> int:
    """Bytes of gradients, as large as the parameters they are of, that FSDP has not reduced yet."""
    parameters = [parameter for group in groups(model) for parameter in group.fsdp_params]
    made = [parameter._unsharded_param.grad for parameter in parameters if hasattr(parameter, "_unsharded_param")]
    found = [*made, *(parameter.unsharded_accumulated_grad for parameter in parameters)]
    return sum(grad.nbytes for grad in found if grad is not None)
