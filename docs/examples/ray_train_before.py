"""A network that reads digits, trained by two workers: `python FILE [STORAGE]`."""

import os
import sys
import tempfile

import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


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


def train_func(config):  # after Ray Train's PyTorch tutorial and its guide to failures
    model = ray.train.torch.prepare_model(NeuralNetwork())
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    loader = DataLoader(get_dataset(), batch_size=config["batch_size"], shuffle=True)
    loader = ray.train.torch.prepare_data_loader(loader)
    first = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            saved = torch.load(os.path.join(folder, "state.pt"))
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["epoch"] + 1
    for epoch in range(first, config["epochs"]):
        if ray.train.get_context().get_world_size() > 1:
            loader.sampler.set_epoch(epoch)
        for images, labels in loader:
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with tempfile.TemporaryDirectory() as folder:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
            torch.save(state, os.path.join(folder, "state.pt"))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"loss": loss.item(), "epoch": epoch}, checkpoint=checkpoint)


if __name__ == "__main__":
    trainer = ray.train.torch.TorchTrainer(
        train_func,
        train_loop_config={"lr": 1e-3, "batch_size": 32, "epochs": 10},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name="digits",
            storage_path=sys.argv[1] if len(sys.argv) > 1 else None,
            failure_config=FailureConfig(max_failures=-1),
        ),
    )
    result = trainer.fit()
    print(result.metrics)
