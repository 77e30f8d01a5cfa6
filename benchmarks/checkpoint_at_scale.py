"""DeepSeek-V3's state on 2,048 GPUs, as the same code would save and load it.

    python benchmarks/checkpoint_at_scale.py [--gpus 2048] [--store 2.0] ...

Nothing is written. The pieces of every rank are dealt out, laid into files and cut into blocks by what saves a state,
and read onto half as many GPUs by what plans a restore. The state is that of the paper: parameters in float32, both
moments in bfloat16. 16 stages of even bytes, in each every tensor cut over its ranks along its first dimension where it
is long enough, and held by all where it is not. What only a cluster could tell are assumptions: bytes a second of a
GPU's way to memory, of a node's disk and of its way to the object store; of the rate of failures it is Llama 3's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch

from shoal.saving.interval import Cost, between, lost, mean_time
from shoal.saving.rhythm import copies_every
from shoal_core.ckpt.boxes import Box, rows, whole
from shoal_core.ckpt.index import Block, File, Index, Tensor
from shoal_core.ckpt.pieces import Piece, block_bytes, deal
from shoal_core.ckpt.plan import Want, plan
from shoal_core.ckpt.safetensors import header, parts
from shoal_core.ckpt.write import PART, Attempt
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.deepseek import DeepSeekV3

STAGES, SLOTS = 16, 8
KINDS = {"model": "float32", "adam_m": "bfloat16", "adam_v": "bfloat16"}
NOBODY = "0" * 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="deepseek-v3")
    parser.add_argument("--gpus", type=int, default=2048)
    parser.add_argument("--step", type=float, default=15.0, help="seconds of a step")
    parser.add_argument("--memory", type=float, default=25.0, help="GB/s of a GPU into pinned memory")
    parser.add_argument("--disk", type=float, default=4.0, help="GB/s of a node's own disk")
    parser.add_argument("--store", type=float, default=2.0, help="GB/s of a node to the object store")
    parser.add_argument("--notice", type=float, default=30.0, help="seconds of a preemption notice")
    args = parser.parse_args()
    print(json.dumps(simulate(args), indent=2))


def simulate(args: argparse.Namespace) -> dict[str, Any]:
    """All figures, of one state."""
    began = time.perf_counter()
    shapes = shapes_of(args.preset)
    held = held_by(shapes, args.gpus)
    dealt = deal(held)
    index = laid_out(dealt)
    planned = time.perf_counter() - began
    writes = [sum(piece.bytes for piece in pieces) for pieces in dealt]
    nodes = [sum(writes[first : first + SLOTS]) for first in range(0, len(writes), SLOTS)]
    stall, disk, store = max(writes) / args.memory / 1e9, max(nodes) / args.disk / 1e9, max(nodes) / args.store / 1e9
    mean = mean_time(args.gpus, 0, 0.0)
    ways = {"by way of disks": disk + store, "straight to the store": store}
    began = time.perf_counter()
    reads = [read_by(index, shapes, rank, args.gpus // 2) for rank in range(0, args.gpus // 2, args.gpus // 64)]
    return {
        "state_bytes": sum(writes),
        "written_of_state": sum(file.bytes for file in index.files.values()) / sum(writes),
        "files": len(index.files),
        "blocks": sum(1 for _ in index.blocks()),
        "index_bytes": len(index.written()),
        "bytes_a_rank": {"mean": statistics.mean(writes), "most": max(writes)},
        "seconds_to_plan": planned,
        "assumed": {name: getattr(args, name) for name in ("step", "memory", "disk", "store", "notice")},
        "seconds": {"training stands still": stall, "to disks": disk, **ways},
        "seconds_between_failures": mean,
        "interval": {
            way: {
                "seconds": (every := between(Cost(stall, seconds), mean)),
                "steps": round(every / args.step),
                "part_of_time_lost": lost(every, stall, mean),
            }
            for way, seconds in ways.items()
        },
        "steps_between_copies": copies_every(stall / args.step),
        "restore_on_half": {
            "bytes_a_rank": statistics.mean(reads),
            "of_its_state": statistics.mean(reads) * (args.gpus // 2) / sum(writes),
            "seconds_to_plan_a_rank": (time.perf_counter() - began) / len(reads),
            "seconds_from_the_store": max(reads) * SLOTS / args.store / 1e9,
        },
        "a_node_that_goes": going(held, args),
    }


def shapes_of(preset: str) -> list[tuple[int, str, str, tuple[int, ...]]]:
    """Stage, name, type and shape of every tensor."""
    with torch.device("meta"):
        model = DeepSeekV3(ModelConfig.from_preset(preset))
    sizes = [(name, tuple(parameter.shape), parameter.numel()) for name, parameter in model.named_parameters()]
    total, before, found = sum(size for *_, size in sizes), 0, []
    for name, shape, size in sizes:
        stage = before * STAGES // total
        before += size
        found += [(stage, f"{kind}.{name}", dtype, shape) for kind, dtype in KINDS.items()]
    return found


def box_of(shape: tuple[int, ...], place: int, ranks: int) -> Box | None:
    """What rank `place` of a stage of `ranks` holds of a tensor."""
    if shape[0] < ranks:
        return whole(shape)
    first, end = (shape[0] * at // ranks for at in (place, place + 1))
    return Box((first, *(0,) * (len(shape) - 1)), (end - first, *shape[1:])) if end > first else None


def held_by(shapes: list[tuple[int, str, str, tuple[int, ...]]], gpus: int) -> list[list[Piece]]:
    held: list[list[Piece]] = [[] for _ in range(gpus)]
    each = gpus // STAGES
    for stage, name, dtype, shape in shapes:
        for place in range(each):
            if (box := box_of(shape, place, each)) is not None:
                held[stage * each + place].append(Piece(name, dtype, shape, box))
    return held


def laid_out(dealt: list[list[Piece]]) -> Index:
    """The index that the ranks' files would have."""
    limit = block_bytes([piece for pieces in dealt for piece in pieces])
    files: dict[str, File] = {}
    blocks: dict[str, list[Block]] = {}
    kinds: dict[str, Piece] = {}
    for rank, pieces in enumerate(dealt):
        for number, part in enumerate(parts(pieces, PART)):
            name, at = Attempt(0, "0").file(rank, number), (head := len(header(part, {"format": "pt"})))
            for piece in part:
                kinds[piece.name] = piece
                for box, _ in rows(piece.box, piece.itemsize, limit):
                    size = box.numel * piece.itemsize
                    blocks.setdefault(piece.name, []).append(Block(box, name, at, size, NOBODY))
                    at += size
            files[name] = File(at, head, NOBODY)
    return Index(files, {n: Tensor(kinds[n].dtype, kinds[n].shape, tuple(found)) for n, found in blocks.items()})


def read_by(index: Index, shapes: list[tuple[int, str, str, tuple[int, ...]]], rank: int, gpus: int) -> int:
    """Bytes that a rank of another mesh reads."""
    each = gpus // STAGES
    wanted = {
        name: Want(dtype, shape, (box,))
        for stage, name, dtype, shape in shapes
        if stage == rank // each and (box := box_of(shape, rank % each, each)) is not None
    }
    return sum(read.bytes for read in plan(index, wanted, ""))


def going(held: list[list[Piece]], args: argparse.Namespace) -> dict[str, Any]:
    """What a node of the first stage that is about to go writes, and whether it has the time."""
    dealt = deal(held[: args.gpus // STAGES], dict.fromkeys(range(SLOTS), 0.0))
    size = sum(piece.bytes for pieces in dealt[:SLOTS] for piece in pieces)
    seconds = size / args.store / 1e9
    return {"bytes": size, "seconds_to_the_store": seconds, "in_time": seconds < args.notice}


if __name__ == "__main__":
    main()
