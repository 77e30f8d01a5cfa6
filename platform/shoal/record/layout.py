"""What a run directory holds: the names of its files and the fields of its lines. A contract (docs/record.md)."""

from __future__ import annotations

from typing import TypedDict

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "EVENTS",
    "EVENT_FIELDS",
    "GPU_FIGURES",
    "INNER",
    "LEASE",
    "MLFLOW",
    "PLAN",
    "RAY_TRAIN",
    "REPORT",
    "RUN",
    "SAMPLES",
    "STATUS",
    "STEPS",
    "STEP_FIELDS",
    "STEP_FIGURES",
    "StepRecord",
]

CONFIG = "config.yaml"
PLAN = "plan.json"
STEPS = "steps.jsonl"
SAMPLES = "samples.jsonl"
EVENTS = "events.jsonl"
STATUS = "status.json"
RUN = "run.json"
REPORT = "report.html"
CHECKPOINTS = "checkpoints"
RAY_TRAIN = "checkpoint_manager_snapshot.json"
MLFLOW = "mlflow.json"
LEASE = "lease.json"


class StepRecord(TypedDict):
    """A line of `steps.jsonl`: one committed step. A workload's further figures may stand beside these."""

    step: int  # 0-based: step k consumes samples [k*B, (k+1)*B)
    time: float  # unix seconds of the commit
    loss: float  # nats a token: lm_loss + weighted mtp_loss
    lm_loss: float
    mtp_loss: float
    grad_norm: float  # before clipping
    lr: float
    tokens: int  # of this step
    samples: list[int]  # [first, last) in the global order
    cells: int  # cells that took part
    generation: int
    seconds: float  # since the commit before (or the start of training)


STEP_FIELDS: tuple[str, ...] = tuple(StepRecord.__annotations__)
# Of these, what a workload computes: null where it does not.
STEP_FIGURES: tuple[str, ...] = ("loss", "lm_loss", "mtp_loss", "grad_norm", "lr")
INNER: tuple[str, ...] = ("stats", "norm_sq")
"""What a line of `steps.jsonl` holds for other workers alone."""
# What the platform adds where workers compute on GPUs (`shoal.worker.device.figures`).
GPU_FIGURES: tuple[str, ...] = ("tokens_per_second_per_gpu", "mfu", "peak_memory_bytes")

# What each kind of line in `events.jsonl` holds beside `time` (unix seconds) and `kind`.
EVENT_FIELDS: dict[str, tuple[str, ...]] = {
    "run_started": ("run_id", "steps", "cells", "workers_per_cell", "resumed_from"),
    "config_changed": ("changes",),
    "worker_ready": ("actor", "node", "pid", "device"),
    "death": ("actor", "node", "pid", "cell", "coords", "how", "step"),
    "node_lost": ("node", "actors"),
    "drain": ("generation", "reason"),
    "decision": ("rung", "cells", "reason"),
    "rewound": ("to", "lost"),
    "generation": ("generation", "step", "live", "cells", "attempts", "since", "changed", "gone", "shape"),
    "controller_back": ("seconds", "workers"),
    "node_draining": ("node", "deadline"),
    "node_aside": ("node", "reason"),
    "device_failed": ("actor", "node", "step", "what", "message"),
    "fenced": ("actor", "node", "how", "stacks"),
    "rolled_back": ("step", "to", "samples"),
    "disagreement": ("step", "cell", "checksums"),
    "straggler": ("actor", "node", "seconds", "typical"),
    "profile_wanted": ("steps", "actors", "problem"),
    "profile": ("step", "actor", "steps", "path", "problem"),
    "device": ("actor", "step", "device", "memory", "shape", "mesh", "cells", "workers"),
    "predicted": ("shape", "cells", "workers", "nodes", "device", "figures"),
    "memory": ("actor", "step", "bytes", "measured", "shape"),
    "pipeline_step": ("step", "cell", "schedule", "planned", "measured", "planned_idle", "measured_idle"),
    "experts_placed": ("step", "cell", "measured", "before", "after"),
    "nothing_counted": ("step", "cell"),
    "recovery": (
        "rung",
        "cell",
        "nodes",
        "actors",
        "reason",
        "phases",
        "next_commit",
        "full_strength",
        "steps_lost",
        "sentence",
    ),
    "reshaped": (
        "before",
        "after",
        "reason",
        "phases",
        "seconds",
        "bytes",
        "most",
        "expected",
        "idle",
        "steps_lost",
        "sentence",
    ),
    "checkpoint": ("step", "path", "seconds", "bytes"),
    "checkpoint_failed": ("step", "reason", "remedy"),
    "checkpoints_swept": ("folders",),
    "last_save": ("step", "cell", "way", "alone", "fits", "left", "seconds", "checkpoint"),
    "checkpoint_passed_over": ("step", "path", "reason"),
    "not_started": ("actor", "node", "how", "trace"),
    "formation_failed": ("cell", "attempt", "actor", "reason"),
    "record_stalled": ("reason", "since", "seconds", "lines"),
    "record_gap": ("steps",),
    "record_behind": ("reason", "remedy"),
    "record_caught_up": ("seconds",),
    "no_progress": ("step", "seconds"),
    "checkpoint_overdue": ("step", "last", "seconds"),
    "notified": ("channel", "events", "counts"),
    "notify_failed": ("channel", "reason"),
    "spares_given": ("actors", "to"),
    "nodes_asked": ("slots", "each"),
    "nodes_came": ("nodes", "slots", "seconds"),
    "nodes_withdrawn": ("slots", "left"),
    "nodes_not_given": ("slots", "seconds", "again"),
    "nodes_short_lived": ("nodes", "again"),
    "error": ("actor", "step", "samples", "trace"),
    "evaluation": ("step", "bpb"),
    "callback_failed": ("callback", "problem", "times"),
    "run_ending": ("status", "reason", "by_controller"),
    "run_ended": ("status", "reason", "by_controller"),
}
