"""From a Hugging Face model to one that answers as given conversations do:
`python docs/examples/fine_tuning.py MODEL TRAIN.jsonl HELDOUT.jsonl FOLDER`, all of which every node sees."""

import sys
from pathlib import Path

from ray.train import RunConfig, ScalingConfig

from shoal.train import ShoalTrainer
from shoal_data.chat.prepare import ChatOptions, prepare
from shoal_workloads.hf.export import export

if __name__ == "__main__":
    model, train, heldout, folder = (str(Path(path).absolute()) for path in sys.argv[1:])  # workers have other folders
    for name, conversations in (("train", train), ("heldout", heldout)):
        prepare([conversations], model, f"{folder}/{name}", ChatOptions(seq_len=256))
    result = ShoalTrainer(
        "shoal_workloads.sft:Sft",
        workload_config={
            "model": model,
            "data": f"{folder}/train",
            "heldout": f"{folder}/heldout",
            "global_batch": 8,
            "lr": 1e-3,
        },
        shoal_config={"steps": 20, "mlflow": {"enabled": False}},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="tuned", storage_path=folder),
    ).fit()
    print(export(result.checkpoint.path, f"{folder}/model"))
