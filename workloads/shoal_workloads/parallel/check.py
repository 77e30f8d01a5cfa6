"""Refuses layouts that do not fit the model, the batch or the cell, before any worker is placed."""

from __future__ import annotations

from shoal_core.errors import UserError
from shoal_workloads.config import PretrainConfig
from shoal_workloads.parallel.schedule import needed_micro_batches, stages_of_model
from shoal_workloads.parallel.schedule.balance import stage_layers

__all__ = ["check_layout"]


def check_layout(config: PretrainConfig, workers: int) -> None:
    """Whether `workers` workers can share the model as `config.parallel` says.

    Raises:
        UserError: they cannot; the field, the numbers and the nearest settings that would fit.
    """
    parallel, model = config.parallel, config.model
    pp, ep = parallel.pp, parallel.ep
    if workers % pp:
        raise UserError(
            f"workload.parallel.pp: {pp} pipeline ranks do not divide the {workers} workers of a cell",
            f"pp {_nearest(pp, workers)}, or cells of {_multiples(pp, workers)} workers",
        )
    chains = workers // pp
    if chains % ep:
        each = f"the {workers} workers of a cell" if pp == 1 else f"the {chains} workers a stage"
        raise UserError(f"workload.parallel.ep: {ep} does not divide {each}", f"ep {_nearest(ep, chains)}")
    if model.n_experts % ep:
        raise UserError(
            f"workload.parallel.ep: {ep} does not divide {model.n_experts} experts",
            f"ep {_nearest(ep, model.n_experts)}, or model.n_experts {_multiples(ep, model.n_experts)}",
        )
    if parallel.ep_node is not None and ep % parallel.ep_node:
        raise UserError(
            f"workload.parallel.ep_node: {parallel.ep_node} workers a node do not divide the {ep} that share experts",
            f"ep_node {_nearest(parallel.ep_node, ep)}",
        )
    if parallel.rebalance and ep == 1:
        raise UserError(
            "workload.parallel.rebalance: with ep 1 every worker holds all experts, there is nothing to balance",
            "rebalance 0, or ep of 2 or more",
        )
    if pp == 1:
        _check_fsdp(config, workers // ep)
    else:
        _check_pipeline(config, workers)


def _check_fsdp(config: PretrainConfig, rest: int) -> None:
    """Whether experts can be cut along their width between `rest` workers."""
    for field, width in (("d_expert", 2 * config.model.d_expert), ("d_model", config.model.d_model)):
        if width % rest:
            raise UserError(
                f"workload.model.{field}: experts of width {width} do not divide by the {rest} workers a group",
                "raise parallel.ep or change the width",
            )


def _check_pipeline(config: PretrainConfig, workers: int) -> None:
    """Whether there are layers for every stage and micro-batches for the schedule."""
    parallel, batch = config.parallel, config.batch
    pp, name = parallel.pp, parallel.schedule
    stages = stages_of_model(name, pp, parallel.virtual)
    try:
        stage_layers(config.model, stages, config.data.seq_len)
    except UserError as error:
        raise UserError(
            f"workload.parallel.pp: {name} on {pp} ranks cuts the model into {stages} stages: {error.problem}",
            f"{error.remedy}: a smaller pp, a schedule with fewer stages a rank, or model.n_layers {stages} or more",
        ) from error
    one = workers * batch.micro_batch
    first, end = batch.samples(0, config.data.seq_len)
    found, least = (end - first) // one * pp, needed_micro_batches(name, pp, 1)
    if found < least:
        raise UserError(
            f"workload.batch: a step of {end - first} samples gives each chain of {pp} ranks {found} micro-batches of "
            f"{batch.micro_batch}, {name} wants at least {least}",
            f"a batch of at least {-(-least // pp) * one} samples, a smaller micro_batch, or parallel.schedule 1f1b",
        )


def _nearest(value: int, whole: int) -> str:
    """The divisors of `whole` next to `value`."""
    divisors = [n for n in range(1, whole + 1) if whole % n == 0]
    below, above = [n for n in divisors if n < value][-1:], [n for n in divisors if n > value][:1]
    return " or ".join(map(str, below + above))


def _multiples(unit: int, value: int) -> str:
    """The multiples of `unit` next to `value`."""
    below = value // unit * unit
    return " or ".join(str(n) for n in (below, below + unit) if n)
