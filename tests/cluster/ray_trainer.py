"""A driver inside a cluster, as a user of Ray Train writes one: callbacks, a selector, an environment of workers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, RunConfig, ScalingConfig, UserCallback

from shoal.cluster.launch import NODE_LABEL
from shoal.train import ShoalTrainer

storage, node = Path(sys.argv[1]), sys.argv[2]


class Writes(UserCallback):
    """Writes down what it is told; made of no module that the controller could import."""

    def __init__(self, file: str) -> None:
        self.file = file

    def say(self, **told: Any) -> None:
        with open(self.file, "a") as out:
            out.write(json.dumps(told) + "\n")

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        files = None if checkpoint is None else len(list(Path(checkpoint.path).iterdir()))
        self.say(step=metrics[0]["step"], files=files, name=run_context.get_run_config().name)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self.say(died=sorted(worker_exceptions))


class Raises(UserCallback):
    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        raise RuntimeError("it has a fault")


run: Any = RunConfig  # its types are those of Ray Train's first version
scaling: Any = ScalingConfig
trainer = ShoalTrainer(
    "shoal_workloads.synthetic:Synthetic",
    workload_config={"global_batch": 8, "seconds": 0.4, "hurry": str(storage / "hurry")},
    shoal_config={"steps": 300, "mlflow": {"enabled": False}},
    scaling_config=scaling(num_workers=2, resources_per_worker={"slot": 1}, label_selector={NODE_LABEL: f"in({node})"}),
    run_config=run(
        name="told",
        storage_path=str(storage / "runs"),
        callbacks=[Raises(), Writes(str(storage / "told.jsonl"))],
        worker_runtime_env={"env_vars": {"MARK": "of the workers"}},
    ),
)
print(trainer.fit().metrics)
