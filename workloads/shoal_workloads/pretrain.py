"""The DeepSeek-V3 pre-training workload, named in a job file as `shoal_workloads.pretrain:Pretrain`."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import torch

from shoal_core.errors import UserError
from shoal_core.workload import Crew, Identity, Workload
from shoal_workloads.config import PretrainConfig
from shoal_workloads.flops import token_flops
from shoal_workloads.footprint import GB
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.parallel.check import check_layout
from shoal_workloads.parallel.fits import check_fits
from shoal_workloads.parallel.layout import Layout, shard_model
from shoal_workloads.params import count_parameters
from shoal_workloads.places import check_from_root
from shoal_workloads.recipe.adamw import AdamW, AdamWConfig
from shoal_workloads.replica import PretrainShard
from shoal_workloads.shapes import state_of

__all__ = ["Pretrain"]


class Pretrain(Workload):
    """See `Workload`, whose methods these are."""

    Config = PretrainConfig

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self._origin = (0, 0)

    def preflight(self, workers_per_cell: int) -> dict[str, Any]:
        """Check corpora, vocabulary and divisibility, and describe the run.

        Raises:
            UserError: what is wrong and how to mend it.
        """
        from shoal_data.reading.entropy import unigram_entropy
        from shoal_data.reading.reader import Corpus
        from shoal_data.reading.verify import verify

        config = self.config
        check_layout(config, workers_per_cell)
        need = check_fits(config, workers_per_cell) if config.device == "cuda" else None
        for field in ("corpus", "heldout"):
            path = getattr(config.data, field)
            if path is None:
                continue
            check_from_root(f"workload.data.{field}", path)
            verify(path, full=config.data.reads_all_of(path))
            opened = Corpus.open(path)
            if not opened.samples(config.data.seq_len):
                raise UserError(
                    f"data.seq_len: {config.data.seq_len} is longer than the text of {path} ({opened.tokens} tokens)",
                    f"choose a smaller data.seq_len, or give data.{field} more text",
                )
            vocabulary = opened.vocab_size
            if vocabulary > config.model.vocab_size:
                raise UserError(
                    f"data.{field}: the tokenizer of {path} has {vocabulary} tokens, the embedding "
                    f"{config.model.vocab_size} rows",
                    f"set model.vocab_size to at least {vocabulary}, or tokenize with a smaller vocabulary",
                )
        count = count_parameters(config.model)
        return {
            **({} if need is None else {"gb_a_worker": round(need.total / GB, 1)}),
            "parameters": count.total + count.mtp,
            "active_parameters": count.active,
            "tokens_per_step": config.batch.global_batch * config.data.seq_len,
            "unigram_entropy": unigram_entropy(Corpus.open(config.data.corpus)),
        }

    def samples(self, step: int) -> tuple[int, int]:
        """Positions in the global order that step `step` (0-based) consumes."""
        return self.config.batch.samples(step, self.config.data.seq_len, self._origin)

    def go_on(self, steps: int, samples: int) -> None:
        """From now on step `steps` begins at position `samples`."""
        self._origin = (steps, samples)

    def identity(self) -> Identity:
        """Tensors of a checkpoint; and what the positions of the global order mean: the text by its manifest's digest,
        its tokenizer, the length of a sample and the seed of the order. The held-out text is named beside."""
        from shoal_data.reading.reader import Corpus

        data = self.config.data
        corpus = Corpus.open(data.corpus)
        identity: dict[str, str | int | None] = {
            "corpus": corpus.digest,
            "tokenizer": corpus.manifest.files["tokenizer"]["sha256"],
            "seq_len": data.seq_len,
            "seed": data.seed,
            "heldout": None if data.heldout is None else Corpus.open(data.heldout).digest,
        }
        return {"state": state_of(self.config), "data": identity}

    def remarks(self, start: int, steps: int) -> list[str]:
        """What the schedule comes to in a run of `steps` steps."""
        return self.config.schedule.remarks(steps, self.samples(steps - 1)[1] * self.config.data.seq_len)

    @property
    def micro_batch(self) -> int:
        """See `Workload`."""
        return self.config.batch.micro_batch

    @property
    def runs_on(self) -> str:
        """See `Workload`."""
        return self.config.device

    def tokens(self, samples: int) -> int:
        """See `Workload`."""
        return samples * self.config.data.seq_len

    def flops(self, step: int) -> float:
        """See `Workload`; by `token_flops`."""
        first, last = self.samples(step)
        length = self.config.data.seq_len
        return (last - first) * length * token_flops(self.config.model, length)

    def mesh(self, workers_per_cell: int) -> dict[str, int]:
        """Axes of a cell; what `pp` and `ep` leave of its workers is FSDP."""
        parallel = self.config.parallel
        return {"pp": parallel.pp, "ep": parallel.ep, "ep_node": parallel.ep_node or 1}

    def shaped(self, sizes: Mapping[str, int]) -> Pretrain:
        """See `Workload`. What cells of that shape have no use for is left out."""
        pp, ep, workers = sizes["pp"], sizes["ep"], sizes["pp"] * sizes["fsdp"] * sizes["ep"]
        parallel = self.config.parallel
        once = parallel.reduce_once if pp == 1 and workers > 1 else "auto"
        axes = {
            "pp": pp,
            "ep": ep,
            "ep_node": parallel.ep_node and sizes["ep_node"],
            "rebalance": parallel.rebalance if ep > 1 else 0,
            "reduce_once": once,
        }
        config = self.config.model_copy(update={"parallel": parallel.model_copy(update=axes)})
        check_layout(config, workers)
        if config.device == "cuda":
            check_fits(config, workers)
        other = type(self)(config)
        other._origin = self._origin
        return other

    def other_bits(self, own: Mapping[str, int], other: Mapping[str, int]) -> str | None:
        """See `Workload`."""
        parallel, precision = self.config.parallel, self.config.precision
        if own["pp"] > 1 or other["pp"] > 1:
            return "a pipeline adds its micro-batches' gradients up before they are rounded"
        if precision == "fp8":
            return "FP8 rounds rows that travel to experts, and elsewhere they do not travel"
        if parallel.dispatch == "hierarchical" and max(own["ep"], other["ep"]) > 1:
            return "dispatch: hierarchical adds up what comes of a token node by node"
        if self.config.device == "cuda" and own["ep"] != other["ep"]:
            return "a GPU multiplies the rows of all experts of a worker at once, and there it would hold others"
        if precision == "bf16" and (own["fsdp"] * own["ep"] == 1) != (other["fsdp"] * other["ep"] == 1):
            return "a worker that is alone keeps embedding and norms in float32, where FSDP gathers them in bfloat16"
        return None

    @property
    def reduces_once(self) -> bool:
        """See `Workload`."""
        return self.config.parallel.reduce_once is True  # left to be chosen, it gives way to sums in fixed point

    @property
    def rolls_back(self) -> bool:
        """Whether the guard may ask to go back to the last good state."""
        return self.config.guard.action == "roll_back"

    def predicted(self, step: int, cells: int, crew: Crew) -> dict[str, Any]:
        """See `Workload`."""
        from shoal_workloads.estimate.expected import expected

        first, last = self.samples(step)
        return expected(self.config, last - first, cells, crew)

    def warm_up(self, workers: int) -> None:
        """One step of a tiny model, without a process group: imports, kernels, thread pools."""
        tiny = ModelConfig.from_preset("demo", d_model=32, n_heads=2, n_layers=2, vocab_size=64)
        model, shards = shard_model(tiny, Layout(), device=self.config.device)
        for shard in shards:
            torch.nn.init.normal_(shard.parameter, std=0.02)
        losses = model(torch.zeros(2, 17, dtype=torch.int64, device=self.config.device))
        (losses.lm + losses.mtp + losses.balance).backward()
        optimizer = AdamW([shard.local for shard in shards], AdamWConfig())
        optimizer.step([torch.zeros_like(shard.local) for shard in shards], 1e-3, 1)
        del model, shards, losses, optimizer
        gc.collect()

    def build(self, seed: int) -> PretrainShard:
        """This worker's share in the current default process group. Collective over the cell."""
        return PretrainShard(self.config, seed, self._origin)

    def build_to_fill(self, seed: int) -> PretrainShard:
        """The same with values of no meaning."""
        return PretrainShard(self.config, None, self._origin)
