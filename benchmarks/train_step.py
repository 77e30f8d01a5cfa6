"""Tokens a second and peak memory of one training step, beside `transformers`' model of the same shape and batch.

    python benchmarks/train_step.py [--repeats 5] [--threads 2] [--variants ours-fp32,...] [--json FILE]

Every variant runs in a process of its own (so that its peak memory is its own), and the variants take turns, so that a
noisy machine disturbs them alike; the figure is the median over the repeats. Tokens a CPU second (of all threads) says
more where other programs share the machine. A step is forward, backward, clipping and
AdamW (fused) on 8 x 512 tokens, 6 layers, d 256, 16 experts, top 4, no MTP, which `transformers` does not train.
torchtitan's model takes part, `--variants ...,torchtitan-fp32,torchtitan-bf16`, where torchtitan 0.3.0 can be imported
(with tyro, spmd_types 0.2.3, torch_checkpointing, torchdata, einops and triton, none of which Shoal needs). Its experts
multiply in bf16 in either. `products-fp32` and `products-bf16` do the matrix products of our step and nothing else.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import step_products

BATCH, LENGTH, WARM, STEPS = 8, 512, 1, 3
SHAPE: dict[str, Any] = {
    "vocab_size": 4096,
    "d_model": 256,
    "n_layers": 6,
    "n_dense": 1,
    "n_heads": 8,
    "d_head": 32,
    "d_rope": 16,
    "d_v": 32,
    "d_kv": 128,
    "d_q": 128,
    "n_experts": 16,
    "n_shared": 1,
    "top_k": 4,
    "d_expert": 256,
    "d_ffn": 1024,
    "n_groups": 4,
    "topk_groups": 2,
    "route_scale": 2.5,
    "mtp_depth": 0,
    "init_std": 0.03,
}
VARIANTS = ("ours-fp32", "ours-bf16", "transformers-fp32", "transformers-bf16", "products-fp32", "products-bf16")
OPTIONAL = ("torchtitan-fp32", "torchtitan-bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--variants", default=",".join(VARIANTS), help="which ones, separated by commas; also " + ", ".join(OPTIONAL)
    )
    parser.add_argument("--json", help="write the figures here as well")
    parser.add_argument("--state", type=Path, help="keep every run in this file; interrupted, go on where it was")
    parser.add_argument("--one", choices=VARIANTS + OPTIONAL, help="measure one variant in this process and print it")
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(options.threads)
        print(json.dumps(measure(options.one)))
        return
    names = options.variants.split(",")
    if unknown := [name for name in names if name not in VARIANTS + OPTIONAL]:
        parser.error(f"no variant {unknown[0]!r}: some of {', '.join(VARIANTS + OPTIONAL)}")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    if options.state and options.state.is_file():
        runs |= json.loads(options.state.read_text())
    for repeat in range(options.repeats):
        for name in names:
            if len(runs[name]) > repeat:
                continue
            command = [sys.executable, __file__, "--one", name, "--threads", str(options.threads)]
            runs[name].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
            print(f"{repeat + 1}/{options.repeats} {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
            if options.state:
                options.state.write_text(json.dumps(runs))
    summary = {**compare(runs), "torch": torch.__version__, "threads": options.threads}
    print(json.dumps(summary, indent=2))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(summary, file, indent=2)


def compare(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of each variant, and of each over the faster of `transformers`': the median of the ratios within a
    repeat, which a machine that slows down for a while disturbs least."""
    medians = {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]} for name, found in runs.items()
    }
    peers = [name for name in runs if name.startswith("transformers")]
    if not peers:
        return {"variants": medians}
    peer = max(peers, key=lambda name: medians[name]["tokens_per_second"])
    ratios = {
        name: {
            key: statistics.median(a[key] / b[key] for a, b in zip(found, runs[peer], strict=True)) for key in found[0]
        }
        for name, found in runs.items()
        if name != peer
    }
    return {"variants": medians, "peer": peer, "over_peer": ratios}


def measure(name: str) -> dict[str, float]:
    """Build a variant, warm it up, time some steps. peak_mib: growth of the process over what its imports took."""
    library, kind = name.split("-")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[kind]
    torch.manual_seed(0)
    tokens = torch.randint(SHAPE["vocab_size"], (BATCH, LENGTH + 1))
    make = {"ours": ours, "transformers": transformers_step, "torchtitan": torchtitan_step, "products": products_alone}[
        library
    ]
    warm_libraries()
    before = peak_mib()
    step = make(dtype, tokens)
    first = step()
    for _ in range(WARM - 1):
        step()
    times, busy = [], []
    for _ in range(STEPS):
        start, worked = time.perf_counter(), time.process_time()
        last = step()
        times.append(time.perf_counter() - start)
        busy.append(time.process_time() - worked)
    assert library == "products" or last < first, "the loss must fall on a repeated batch"
    return {
        "tokens_per_second": BATCH * LENGTH / statistics.median(times),
        "tokens_per_cpu_second": BATCH * LENGTH / statistics.median(busy),
        "peak_mib": peak_mib() - before,
    }


def warm_libraries() -> None:
    """Import and touch what both variants need, so that memory counts the step and not the libraries."""
    import transformers  # noqa: F401

    x = torch.randn(64, 64, requires_grad=True)
    (x @ x).sum().backward()


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(dtype: torch.dtype, tokens: torch.Tensor) -> Callable[[], float]:
    from shoal_workloads.model.config import ModelConfig
    from shoal_workloads.model.deepseek import DeepSeekV3

    config = ModelConfig.model_validate(SHAPE)
    model = DeepSeekV3(config, dtype=dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0) if p.dim() == 1 else p.normal_(0.0, config.init_std)
    return stepping(model, lambda: model(tokens).lm / (BATCH * LENGTH))


def transformers_step(dtype: torch.dtype, tokens: torch.Tensor) -> Callable[[], float]:
    import transformers

    from shoal_workloads.hf.config import to_hf_config
    from shoal_workloads.model.config import ModelConfig

    shape = to_hf_config(ModelConfig.model_validate(SHAPE), max_positions=LENGTH, dtype="float32", mtp=False, eos=None)
    model = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**shape)).to(dtype).train()
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return stepping(model, lambda: model(inputs, labels=targets, shift_labels=targets).loss)


def torchtitan_step(dtype: torch.dtype, tokens: torch.Tensor) -> Callable[[], float]:
    from torchtitan.models import deepseek_v3
    from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
    from torchtitan.models.common.attention import ScaledDotProductAttention

    d, vocab = SHAPE["d_model"], SHAPE["vocab_size"]
    layers = deepseek_v3._build_dsv3_layers(
        n_layers=SHAPE["n_layers"],
        n_dense_layers=SHAPE["n_dense"],
        dim=d,
        n_heads=SHAPE["n_heads"],
        q_lora_rank=SHAPE["d_q"],
        kv_lora_rank=SHAPE["d_kv"],
        qk_nope_head_dim=SHAPE["d_head"],
        qk_rope_head_dim=SHAPE["d_rope"],
        v_head_dim=SHAPE["d_v"],
        mscale=1.0,
        dense_hidden_dim=SHAPE["d_ffn"],
        moe_hidden_dim=SHAPE["d_expert"],
        num_experts=SHAPE["n_experts"],
        num_shared_experts=SHAPE["n_shared"],
        router_top_k=SHAPE["top_k"],
        router_score_func="sigmoid",
        router_num_expert_groups=SHAPE["n_groups"],
        router_num_limited_groups=SHAPE["topk_groups"],
        router_route_scale=SHAPE["route_scale"],
        router_route_norm=True,
        attn_backend="flex",
        moe_comm_backend="standard",
        non_blocking_capacity_factor=None,
        rope=ComplexRoPE.Config(dim=SHAPE["d_rope"], max_seq_len=LENGTH, theta=10_000.0),
    )
    for layer in layers:  # uncompiled, its flex attention makes all scores; its other kind is causal here as well
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    model = deepseek_v3.DeepSeekV3Model.Config(
        vocab_size=vocab,
        dim=d,
        tok_embeddings=Embedding.Config(num_embeddings=vocab, embedding_dim=d),
        norm=RMSNorm.Config(normalized_shape=d),
        lm_head=Linear.Config(in_features=d, out_features=vocab),
        layers=layers,
        mtp_layers=[],
    ).build()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0) if p.dim() == 1 else p.normal_(0.0, SHAPE["init_std"])
            p.data = p.data.to(dtype)  # parameters alone: the table of rotations is complex
    inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()
    positions = torch.arange(LENGTH).expand(BATCH, LENGTH)

    def loss() -> torch.Tensor:
        logits = model(inputs, positions=positions).flatten(0, 1).float()
        return torch.nn.functional.cross_entropy(logits, targets)

    return stepping(model, loss)


def products_alone(dtype: torch.dtype, tokens: torch.Tensor) -> Callable[[], float]:
    wanted = step_products.products(SHAPE, *tokens[:, 1:].shape)
    run = step_products.multiplying(wanted, dtype)

    def step() -> float:
        run()
        return sum(p.flops for p in wanted) / 1e9

    return step


def stepping(model: torch.nn.Module, loss_of: Callable[[], torch.Tensor]) -> Callable[[], float]:
    """A step: forward, backward, clipping, AdamW; returns the loss before it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)

    def step() -> float:
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    main()
