"""Models as users write them, small, each with something that is easily done wrong."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from shoal_workloads.torchmodel.workload import TorchWorkload

CLASSES, WORDS = 5, 23
SAMPLES = 50


class Block(nn.Module):
    """Its matrices have 7 rows, which no number of workers below that divides."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 7), nn.Linear(7, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = x + self.dropout(self.down(F.gelu(self.up(self.norm(x)))))
        return found


class Net(nn.Module):
    """Words to the next word: the embedding is the head, and the first block's norm is frozen; a temperature that has
    no dimensions, and a buffer that is drawn."""

    shift: torch.Tensor

    def __init__(self, width: int, layers: int, dropout: float, point: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, width)
        self.layers = nn.ModuleList(Block(width, dropout) for _ in range(layers))
        self.head = nn.Linear(width, WORDS)
        self.head.weight = self.embedding.weight
        self.temperature = nn.Parameter(torch.tensor(1.5) if point else torch.tensor([1.5]))
        self.register_buffer("shift", torch.randn(width))
        self.layers[0].norm.requires_grad_(False)  # type: ignore[union-attr]

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embedding(words) + self.shift
        for layer in self.layers:
            x = layer(x)
        logits: torch.Tensor = self.head(x) * self.temperature
        return logits


class Words:
    """Item i: a sentence of 3 to 9 words that hangs on i, and whether it counts."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        length = int(torch.randint(3, 10, (), generator=generator))
        words = torch.full((10,), -100)
        start = int(torch.randint(WORDS, (), generator=generator))
        words[:length] = (start + torch.arange(length) * 3) % WORDS
        return words


class Language(TorchWorkload):
    """The mean is over words that count, of which samples have several, and every fifth none."""

    figures: ClassVar[tuple[str, ...]] = ("right",)

    class Config(TorchWorkload.Config):
        width: int = 12
        layers: int = 2
        dropout: float = 0.1
        point: bool = True
        length: int = SAMPLES
        seconds: float = 0.0  # that a batch takes, until the file `hurry` is there
        hurry: Path | None = None

    def build_model(self, config: Config) -> nn.Module:
        return Net(config.width, config.layers, config.dropout, config.point)

    def dataset(self, config: Config) -> Words:
        return Words(config.length)

    def heldout(self, config: Config) -> Words:
        return Words(11)

    def loss(self, model: nn.Module, batch: torch.Tensor) -> tuple[Any, ...]:
        if self.config.hurry is not None and not self.config.hurry.exists():
            time.sleep(self.config.seconds)
        read, wanted = batch[:, :-1].clamp(min=0), batch[:, 1:].clone()
        wanted[batch[:, 0] % 5 == 0] = -100
        logits = model(read)
        total = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum", ignore_index=-100)
        right = ((logits.argmax(-1) == wanted) & (wanted >= 0)).sum()
        return total, (wanted >= 0).sum(), {"right": right}


class FromWeights(Language):
    """Begins with what lies in a folder."""

    class Config(Language.Config):
        folder: str

    def weights(self, config: Config) -> str:  # type: ignore[override]
        return config.folder


class WithSgd(Language):
    """Its optimizer begins otherwise than with zeros: dampening spares the first gradient."""

    figures = ()

    def optimizer(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, dampening=0.5)

    def loss(self, model: nn.Module, batch: torch.Tensor) -> tuple[Any, ...]:
        return super().loss(model, batch)[:2]
