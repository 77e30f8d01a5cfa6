"""A network that reads digits, trained by two workers: `python FILE [STORAGE]`."""

import sys

import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from shoal.train import ShoalTrainer, TorchWorkload


def get_dataset():
    digits = load_digits()  # images of 8 x 8, which scikit-learn ships
    return TensorDataset(torch.tensor(digits.images / 16, dtype=torch.float32), torch.tensor(digits.target))


class NeuralNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.flatten = nn.Flatten()
        self.stack = nn.Sequential(
            nn.Linear(8 * 8, 512), nn.ReLU(), nn.Dropout(0.25),
            nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.25),
            nn.Linear(512, 10),
        )  # fmt: skip

    def forward(self, images):
        return self.stack(self.flatten(images))


class Digits(TorchWorkload):
    def build_model(self, config):
        return NeuralNetwork()

    def dataset(self, config):
        return get_dataset()

    def loss(self, model, batch):
        images, labels = batch
        return nn.CrossEntropyLoss(reduction="sum")(model(images), labels), len(labels)


if __name__ == "__main__":
    trainer = ShoalTrainer(
        Digits,
        workload_config={"lr": 1e-3, "global_batch": 64, "micro_batch": 32},
        shoal_config={"steps": 280},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name="digits",
            storage_path=sys.argv[1] if len(sys.argv) > 1 else None,
            failure_config=FailureConfig(max_failures=-1),
        ),
    )
    result = trainer.fit()
    print(result.metrics)
