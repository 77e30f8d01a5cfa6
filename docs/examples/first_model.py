"""A model of one's own, on whatever cluster there is or on this machine: `python docs/examples/first_model.py`."""

import torch
from ray.train import ScalingConfig

from shoal.train import ShoalTrainer, TorchWorkload


class Line(TorchWorkload):
    def build_model(self, config):
        return torch.nn.Linear(1, 1)

    def dataset(self, config):
        return [(torch.tensor([x / 100]), torch.tensor([3 * x / 100 + 2])) for x in range(100)]

    def loss(self, model, batch):
        x, y = batch
        return (model(x) - y).square().sum(), len(x)


if __name__ == "__main__":
    trainer = ShoalTrainer(
        Line,
        workload_config={"global_batch": 10, "lr": 0.1},
        shoal_config={"steps": 100},
        scaling_config=ScalingConfig(num_workers=2),
    )
    print(trainer.fit().metrics)
