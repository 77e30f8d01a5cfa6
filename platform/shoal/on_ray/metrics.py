"""A run's figures for Prometheus, through Ray's metrics: `ray_shoal_*` at the node where the controller lives.

The controller feeds it the same lines that it writes into the record, so the two cannot disagree. Durations are
counters of seconds, not histograms: Ray's agent passes on a histogram by its buckets, and its sum is a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge, Metric

__all__ = ["RunMetrics"]

GAUGES = {
    "shoal_step": "Committed steps of the run",
    "shoal_loss": "Training loss of the last committed step, nats a token",
    "shoal_lm_loss": "Next-token loss of the last committed step, nats a token",
    "shoal_mtp_loss": "Multi-token-prediction loss of the last committed step, nats a token",
    "shoal_grad_norm": "Gradient norm of the last committed step, before clipping",
    "shoal_lr": "Learning rate of the last committed step",
    "shoal_tokens_per_second": "Tokens of the last committed step over its seconds, by the workers' clock",
    "shoal_tokens_per_second_per_gpu": "The same over the GPUs that took part",
    "shoal_mfu": "Share of the GPUs' BF16 peak in the last committed step, causal FLOPs",
    "shoal_peak_memory_bytes": "Most device memory of the worker that told of the last committed step",
    "shoal_cells": "Cells that took part in the last committed step",
    "shoal_generation": "Generation of the last committed step: membership changes so far",
    "shoal_heldout_bpb": "Bits per byte on held-out text at the last evaluation",
    "shoal_heldout_loss": "Loss on the held-out set at the last evaluation",
    "shoal_checkpoint_step": "Committed steps that the last whole checkpoint holds",
}
COUNTERS = {
    "shoal_tokens_total": "Tokens of committed steps",
    "shoal_step_seconds_total": "Seconds between commits, added up",
    "shoal_deaths_total": "Workers that died",
    "shoal_nodes_lost_total": "Nodes that were lost",
    "shoal_recoveries_total": "Recoveries that ended",
    "shoal_recovery_seconds_total": "Seconds from the first sign of a death to the next committed step, added up",
    "shoal_steps_lost_total": "Committed steps that were taken back",
}
OF_STEP = {
    "shoal_loss": "loss",
    "shoal_lm_loss": "lm_loss",
    "shoal_mtp_loss": "mtp_loss",
    "shoal_grad_norm": "grad_norm",
    "shoal_lr": "lr",
    "shoal_tokens_per_second_per_gpu": "tokens_per_second_per_gpu",
    "shoal_mfu": "mfu",
    "shoal_peak_memory_bytes": "peak_memory_bytes",
    "shoal_cells": "cells",
    "shoal_generation": "generation",
}
OF_EVALUATION = {"shoal_heldout_bpb": "bpb", "shoal_heldout_loss": "heldout_loss"}


class RunMetrics:
    """The metrics of one run, tagged `run_id`. Made and used in one process of the cluster."""

    def __init__(self, run_id: str) -> None:
        def tagged(metric: Metric) -> Any:
            return metric.set_default_tags({"run_id": run_id})

        tags = ("run_id",)
        self._gauges = {name: tagged(Gauge(name, about, tags)) for name, about in GAUGES.items()}
        self._counters = {name: tagged(Counter(name, about, tags)) for name, about in COUNTERS.items()}

    def step(self, record: Mapping[str, Any]) -> None:
        """Take a line of `steps.jsonl`."""
        self._gauges["shoal_step"].set(record["step"] + 1)
        for name, field in OF_STEP.items():
            if record.get(field) is not None:
                self._gauges[name].set(float(record[field]))
        self._counters["shoal_tokens_total"].inc(float(record["tokens"]))
        if (own := record.get("worker_seconds") or record["seconds"]) > 0:
            self._gauges["shoal_tokens_per_second"].set(record["tokens"] / own)
        if record["seconds"] > 0:
            self._counters["shoal_step_seconds_total"].inc(record["seconds"])

    def event(self, event: Mapping[str, Any]) -> None:
        """Take a line of `events.jsonl`; kinds without a figure change nothing."""
        match event["kind"]:
            case "death":
                self._counters["shoal_deaths_total"].inc()
            case "node_lost":
                self._counters["shoal_nodes_lost_total"].inc()
            case "recovery":
                self._counters["shoal_recoveries_total"].inc()
                if event.get("next_commit"):
                    self._counters["shoal_recovery_seconds_total"].inc(event["next_commit"])
            case "rewound" if event.get("lost"):
                self._counters["shoal_steps_lost_total"].inc(event["lost"])
            case "evaluation":
                for name, field in OF_EVALUATION.items():
                    if event.get(field) is not None:
                        self._gauges[name].set(float(event[field]))
            case "checkpoint":
                self._gauges["shoal_checkpoint_step"].set(float(event["step"]))
