"""A run on whatever cluster there is, or on this machine: `python docs/examples/first_run.py [STORAGE]`."""

import sys

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from shoal.train import ShoalTrainer

trainer = ShoalTrainer(
    "shoal_workloads.synthetic:Synthetic",
    workload_config={"global_batch": 8, "seconds": 0.01},
    shoal_config={"steps": 40, "checkpoint": {"every": 10}, "mlflow": {"enabled": False}},
    scaling_config=ScalingConfig(num_workers=2),
    run_config=RunConfig(
        name="first-run",
        storage_path=sys.argv[1] if len(sys.argv) > 1 else None,
        checkpoint_config=CheckpointConfig(
            num_to_keep=2, checkpoint_score_attribute="loss", checkpoint_score_order="min"
        ),
        failure_config=FailureConfig(max_failures=3),
    ),
)
result = trainer.fit()
print(result.metrics_dataframe[["step", "loss", "tokens"]].tail(3), result.checkpoint, sep="\n")
