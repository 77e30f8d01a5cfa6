"""A Hugging Face model from its config, tiny here: `python docs/examples/causal_lm.py [llama|qwen] [STORAGE]`.

Needs `transformers`: `pip install 'shoal[hf]'`.
"""

import sys
from pydoc_data.topics import topics
from typing import Literal

import torch
import torch.nn.functional as F
from ray.train import RunConfig, ScalingConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from shoal.train import ShoalTrainer, TorchWorkload

SIZES = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


class CausalLM(TorchWorkload):
    class Config(TorchWorkload.Config):
        shape: Literal["llama", "qwen"] = "llama"
        context: int = 128

    def build_model(self, config: Config) -> nn.Module:
        if config.shape == "llama":
            return AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, **HEADS))
        return AutoModelForCausalLM.from_config(Qwen3Config(**SIZES, **HEADS, tie_word_embeddings=True))

    def dataset(self, config: Config) -> Tensor:
        tokens = torch.tensor(list("\n".join(topics.values()).encode()))  # Python's own manual, each byte a token
        return tokens.unfold(0, config.context + 1, config.context)

    def loss(self, model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
        logits, wanted = model(input_ids=batch[:, :-1], use_cache=False).logits, batch[:, 1:]
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum"), wanted.numel()


if __name__ == "__main__":
    shape = sys.argv[1] if len(sys.argv) > 1 else "llama"
    storage = sys.argv[2] if len(sys.argv) > 2 else None
    result = ShoalTrainer(
        CausalLM,
        workload_config={"shape": shape, "global_batch": 16, "micro_batch": 4, "lr": 1e-3, "warmup_steps": 20},
        shoal_config={"steps": 200},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name=f"tiny-{shape}", storage_path=storage),
    ).fit()
    print(result.metrics_dataframe[["step", "loss"]].iloc[::20])
