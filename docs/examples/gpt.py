"""A GPT on the text of Python's own manual, each byte a token: `python docs/examples/gpt.py [STORAGE]`."""

import sys
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from ray.train import RunConfig, ScalingConfig
from torch import Tensor, nn

from shoal.train import ShoalTrainer, TorchWorkload


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, context: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class GPT(TorchWorkload):
    class Config(TorchWorkload.Config):
        context: int = 128
        width: int = 128
        heads: int = 4
        layers: int = 4

    def build_model(self, config: Config) -> nn.Module:
        return Transformer(config.context, config.width, config.heads, config.layers)

    def dataset(self, config: Config) -> Tensor:
        tokens = torch.tensor(list("\n".join(topics.values()).encode()))
        return tokens.unfold(0, config.context + 1, config.context)

    def loss(self, model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
        logits, wanted = model(batch[:, :-1]), batch[:, 1:]
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum"), wanted.numel()


if __name__ == "__main__":
    result = ShoalTrainer(
        GPT,
        workload_config={"global_batch": 16, "micro_batch": 4, "lr": 1e-3, "warmup_steps": 20},
        shoal_config={"steps": 200},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="gpt", storage_path=sys.argv[1] if len(sys.argv) > 1 else None),
    ).fit()
    print(result.metrics_dataframe[["step", "loss"]].iloc[::20])
