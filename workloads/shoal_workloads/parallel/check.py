"""Refuses layouts that do not fit the model, the batch or the cell, before any worker is placed."""

from __future__ import annotations

from shoal_core.errors import UserError
from shoal_core.mesh import Mesh, divisors_near, multiples_near
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
    ep = parallel.ep
    try:
        mesh = Mesh.of({"pp": parallel.pp, "ep": ep}, workers)
    except UserError as error:
        raise UserError(f"workload.parallel.{error.problem}", error.remedy) from error
    if model.n_experts % ep:
        raise UserError(
            f"workload.parallel.ep: {ep} does not divide {model.n_experts} experts",
            f"ep {divisors_near(ep, model.n_experts)}, or model.n_experts {multiples_near(ep, model.n_experts)}",
        )
    if parallel.ep_node is not None and ep % parallel.ep_node:
        raise UserError(
            f"workload.parallel.ep_node: {parallel.ep_node} workers a node do not divide the {ep} that share experts",
            f"ep_node {divisors_near(parallel.ep_node, ep)}",
        )
    if parallel.rebalance and ep == 1:
        raise UserError(
            "workload.parallel.rebalance: with ep 1 every worker holds all experts, there is nothing to balance",
            "rebalance 0, or ep of 2 or more",
        )
    if parallel.reduce_once is True and (mesh.pp > 1 or workers == 1):
        raise UserError(
            f"workload.parallel.reduce_once: a pipeline (pp {mesh.pp}) reduces gradients once a step by itself"
            if mesh.pp > 1
            else "workload.parallel.reduce_once: in a cell of one worker there is nothing to reduce",
            "leave reduce_once out",
        )
    if mesh.pp == 1:
        _check_fsdp(config, mesh.fsdp)
    else:
        _check_pipeline(config, mesh)


def _check_fsdp(config: PretrainConfig, fsdp: int) -> None:
    """Whether experts can be cut along their width between `fsdp` workers."""
    for field, width in (("d_expert", 2 * config.model.d_expert), ("d_model", config.model.d_model)):
        if width % fsdp:
            raise UserError(
                f"workload.model.{field}: experts of width {width} do not divide by the {fsdp} workers a group",
                "raise parallel.ep or change the width",
            )


def _check_pipeline(config: PretrainConfig, mesh: Mesh) -> None:
    """Whether there are layers for every stage and micro-batches for the schedule."""
    parallel, batch = config.parallel, config.batch
    pp, name = mesh.pp, parallel.schedule
    stages = stages_of_model(name, pp, parallel.virtual)
    try:
        stage_layers(config.model, stages, config.data.seq_len)
    except UserError as error:
        raise UserError(
            f"workload.parallel.pp: {name} on {pp} ranks cuts the model into {stages} stages: {error.problem}",
            f"{error.remedy}: a smaller pp, a schedule with fewer stages a rank, or model.n_layers {stages} or more",
        ) from error
    one = mesh.workers * batch.micro_batch
    first, end = batch.samples(0, config.data.seq_len)
    found, least = (end - first) // one * pp, needed_micro_batches(name, pp, 1)
    if found < least:
        raise UserError(
            f"workload.batch: a step of {end - first} samples gives each chain of {pp} ranks {found} micro-batches of "
            f"{batch.micro_batch}, {name} wants at least {least}",
            f"a batch of at least {-(-least // pp) * one} samples, a smaller micro_batch, or parallel.schedule 1f1b",
        )
