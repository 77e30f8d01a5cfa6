"""A small convolutional network that reads digits: `python docs/examples/digits.py [STORAGE]`."""

import sys

import torch
import torch.nn.functional as F
from ray.train import RunConfig, ScalingConfig
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from shoal.train import ShoalTrainer, TorchWorkload

HELD_OUT = 297


def images() -> TensorDataset:
    """1,797 images of 8 x 8, which scikit-learn ships, and the digits that they show."""
    found = load_digits()
    return TensorDataset(torch.tensor(found.images / 16, dtype=torch.float32).unsqueeze(1), torch.tensor(found.target))


class Digits(TorchWorkload):
    class Config(TorchWorkload.Config):
        channels: int = 16

    def build_model(self, config: Config) -> nn.Module:
        few, many = config.channels, 2 * config.channels
        convolutions = [nn.Conv2d(1, few, 3, padding=1), nn.ReLU(), nn.Conv2d(few, many, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(many * 16, 10))

    def dataset(self, config: Config) -> Dataset:
        return Subset(images(), range(HELD_OUT, 1797))

    def heldout(self, config: Config) -> Dataset:
        return Subset(images(), range(HELD_OUT))

    def loss(self, model: nn.Module, batch: list[Tensor]) -> tuple[Tensor, int]:
        pixels, digits = batch
        return F.cross_entropy(model(pixels), digits, reduction="sum"), len(digits)


if __name__ == "__main__":
    result = ShoalTrainer(
        Digits,
        workload_config={"global_batch": 64, "micro_batch": 16, "lr": 1e-3, "heldout_samples": HELD_OUT},
        shoal_config={"steps": 200},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="digits", storage_path=sys.argv[1] if len(sys.argv) > 1 else None),
    ).fit()
    print(result.metrics_dataframe[["step", "loss"]].iloc[::20])
