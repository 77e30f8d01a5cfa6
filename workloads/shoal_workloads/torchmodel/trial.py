"""What a user wrote is tried before any worker starts: one sample goes through the model in this process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import nn

from shoal_core.errors import UserError
from shoal_workloads.torchmodel.building import built, hollow
from shoal_workloads.torchmodel.losses import loss_of
from shoal_workloads.torchmodel.optimizer import check_by_element
from shoal_workloads.torchmodel.order import moved
from shoal_workloads.torchmodel.randomness import seeded
from shoal_workloads.torchmodel.theirs import their_code
from shoal_workloads.torchmodel.weights import Weights

if TYPE_CHECKING:
    from shoal_workloads.torchmodel.workload import TorchWorkload

__all__ = ["LARGEST", "try_out"]

LARGEST = 100_000_000
"""Parameters of the largest model that is built whole here."""
SHOWN = 3
TAKEN = {
    *("step", "time", "kind", "samples", "cells", "generation", "seconds", "worker_seconds", "stats", "norm_sq"),
    *("loss", "lm_loss", "mtp_loss", "grad_norm", "lr", "tokens", "fault", "roll_back", "count"),
    *("tokens_per_second_per_gpu", "mfu", "peak_memory_bytes"),
}
"""Names that the record of a step or of an evaluation has for something else."""


def try_out(workload: TorchWorkload) -> list[str]:
    """Call everything that the user wrote, once. Returns what the user should know, a sentence each.

    Raises:
        UserError: something is wrong, told with its line; or something cannot be trained so, and what to do.
    """
    name, config, notes = type(workload).__name__, workload.config, list[str]()
    if isinstance(workload.figures, str):
        raise UserError(f"{name}.figures is a text", f'make it a tuple of names: figures = ("{workload.figures}",)')
    if taken := TAKEN & set(workload.figures):
        raise UserError(f"{name}.figures: {', '.join(sorted(taken))} is a figure already", "give it another name")
    empty = hollow(workload, 0)
    check_blocks(workload, empty)
    if workload.start is not None:
        Weights.of(workload.start, empty).check(empty)
    if workload.own_optimizer is not None:
        with their_code(f"{name}.optimizer"):
            check_by_element(workload.own_optimizer, [len(shape) for shape, _ in workload.blueprint.trained.values()])
    first = workload.samples(0)[0]
    with their_code(f"{name}.dataset or {name}.collate"):
        workload.items.batch(range(first, first + config.micro_batch))
        batches = [workload.items.batch([first])]
    if workload.heldout_items is not None:
        with their_code(f"{name}.heldout or {name}.collate"):
            batches.append(workload.heldout_items.batch([0]))
    if workload.blueprint.parameters > LARGEST:
        return [f"{name}.loss was not tried: the model has more than {LARGEST:,} parameters"]
    model = built(workload, 0)
    check_same(workload, model)
    before = {key: buffer.clone() for key, buffer in model.named_buffers()}
    for batch in batches:
        try:
            _try_loss(workload, model, batch)
        except UserError as error:
            if config.device == "cpu" or not isinstance(error.__cause__, Exception):
                raise
            return [*notes, f"on the CPU the model cannot be tried: {error.problem}"]  # kernels that a GPU alone has
    for key, buffer in model.named_buffers():
        if not torch.equal(buffer, before[key]):
            raise UserError(
                f"{name}.build_model: buffer {key} changes in training, and would hang on who trains which sample",
                "leave it out, or make it a parameter",
            )
    if silent := [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]:
        more = f" and {len(silent) - SHOWN} more" if len(silent) > SHOWN else ""
        notes.append(f"the sample that was tried gives no gradient to {', '.join(silent[:SHOWN])}{more}")
    if sparse := [key for key, p in model.named_parameters() if p.grad is not None and p.grad.is_sparse]:
        raise UserError(f"{name}.loss: the gradient of {sparse[0]} is sparse, which FSDP cannot add up", "sparse=False")
    with their_code(f"{name}.metrics"):
        found = workload.metrics(dict.fromkeys(("loss", "count", *workload.figures), 1.0))
    if not isinstance(found, Mapping) or not all(isinstance(value, Real) for value in found.values()):
        raise UserError(f"{name}.metrics returned no mapping from names to numbers", "return {NAME: float(value), ...}")
    if taken := (TAKEN | set(workload.figures)) & set(found):
        raise UserError(f"{name}.metrics: {', '.join(sorted(taken))} is a figure of every step", "give it another name")
    return notes


def check_blocks(workload: TorchWorkload, model: nn.Module) -> None:
    """Raises: UserError: a block is no part of the model, or nothing that can be called."""
    who = f"{type(workload).__name__}.blocks"
    with their_code(who):
        blocks = list(workload.blocks(model))
    inside = set(model.modules())
    for block in blocks:
        if not isinstance(block, nn.Module) or block not in inside:
            raise UserError(f"{who}: {type(block).__name__} is no module of the model", "return some of its modules")
        if isinstance(block, (nn.ModuleList, nn.ModuleDict)):
            raise UserError(f"{who}: a {type(block).__name__} is never called itself", "return its children")


def check_same(workload: TorchWorkload, model: nn.Module) -> None:
    """Whether the model is the same each time it is built with a seed, and buffers that are not kept with any.

    Raises:
        UserError: it is not, and cells would train different models.
    """
    who = f"{type(workload).__name__}.build_model"
    again, other = built(workload, 0), hollow(workload, 1)
    kept, found = again.state_dict(), dict([*again.named_parameters(), *again.named_buffers()])
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        same = found.get(name)
        if same is None or not torch.equal(value, same):
            raise UserError(
                f"{who}: {name} is not the same each time",
                "draw what is random from the generators of torch, Python or NumPy, which are seeded",
            )
    drawn = dict(other.named_buffers())
    for name, value in model.named_buffers():
        if name not in kept and not torch.equal(value, drawn[name]):
            raise UserError(
                f"{who}: buffer {name} is drawn, and is not kept: a worker that heals would have another",
                "register it with persistent=True",
            )


def _try_loss(workload: TorchWorkload, model: nn.Module, batch: object) -> None:
    with seeded(0), their_code(f"{type(workload).__name__}.loss"):
        found = loss_of(workload, model, moved(batch, "cpu"), "cpu")
        found.total.backward()
    total, count, *_ = found.figures.tolist()
    if not math.isfinite(count) or count < 0:
        raise UserError(
            f"{type(workload).__name__}.loss: its count is {count}", "count what the mean of the loss divides by"
        )
    if count and not math.isfinite(total):
        raise UserError(f"{type(workload).__name__}.loss: of the first sample it is {total}", "see what it is given")
