"""Read from standard input by a Python that has no file of its own, as a notebook's has none: what a user of Ray Train
does there, in one process. Prints what came of it as one line of JSON, the last."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ray.train import Result, RunConfig, ScalingConfig

from shoal.record import read
from shoal.train import ShoalTrainer

storage, example = sys.argv[1:]
sys.argv = [example, storage]
exec(Path(example).read_text())

run, hurry = Path(storage) / "long", Path(storage) / "hurry"
long = ShoalTrainer(
    "shoal_workloads.synthetic:Synthetic",
    workload_config={"global_batch": 8, "seconds": 0.4, "hurry": str(hurry)},
    shoal_config={"steps": 300, "mlflow": {"enabled": False}},
    scaling_config=ScalingConfig(num_workers=1),
    run_config=RunConfig(name="long", storage_path=storage),
)


def interrupt() -> None:
    while not (run / "steps.jsonl").exists() or len(read.steps(run)) < 3:
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)


threading.Thread(target=interrupt, daemon=True).start()
interrupted = ""
try:
    long.fit()
except KeyboardInterrupt as error:
    interrupted = str(error)
stopped: Any = Result.from_path(str(run)).metrics
hurry.touch()
restored: Any = ShoalTrainer.restore(str(run)).fit()
again: Any = long.fit()
print(json.dumps({
    "interrupted": interrupted, "stopped": stopped["step"], "steps": list(restored.metrics_dataframe["step"]),
    "path": restored.path, "best": len(restored.best_checkpoints), "again": again.metrics["step"],
    "resumed": [event["resumed_from"] for event in read.events(run) if event["kind"] == "run_started"],
}))  # fmt: skip
