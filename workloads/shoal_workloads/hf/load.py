"""A checkpoint in Hugging Face's format -> a checkpoint that a run starts from, a part at a time.

Nothing of either is ever whole in memory: of the one the rows that the next block of the other is made of are read, a
few blocks ahead of what is being written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from shoal_core.ckpt import alone
from shoal_core.ckpt.boxes import Box, whole
from shoal_core.ckpt.dtypes import itemsize
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.index import Described
from shoal_core.ckpt.pieces import Piece, block_bytes
from shoal_core.ckpt.state import bytes_of
from shoal_core.ckpt.write import in_order
from shoal_core.errors import UserError
from shoal_core.loading import own_settings
from shoal_core.store import Store, open_store
from shoal_workloads.config import PretrainConfig, wrong_fields
from shoal_workloads.hf.config import THEIRS, from_hf_config, scaled_blocks
from shoal_workloads.hf.files import Files, read_json
from shoal_workloads.hf.names import Part, parts_of
from shoal_workloads.hf.weights import box_of, check, part_values
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.parallel.initial import init_shards
from shoal_workloads.parallel.shards import ParamShard
from shoal_workloads.recipe.guard import Guard
from shoal_workloads.shapes import state_of
from shoal_workloads.start import check_target, drop_half_written

__all__ = ["Progress", "import_checkpoint", "read_config"]

AHEAD = 4
"""Blocks that are made before their turn comes: far stores give each of several readers only so much a second."""

Progress = Callable[[int, int], None]
"""Is told bytes of the checkpoint that were handed to be written, and all of them."""


def read_config(store: Store) -> tuple[ModelConfig, tuple[int, int]]:
    """The shape of the model in `store`, and the blocks of its FP8 weights that share a scale.

    Raises:
        UserError: no readable `config.json`, or another architecture. StoreError: the store does not answer.
    """
    found = read_json(store, "config.json", "name a folder with config.json and safetensors")
    where = store.where("config.json")
    try:
        return from_hf_config(found, where), scaled_blocks(found, where)
    except ValidationError as error:
        raise UserError(
            f"{where}: describes no model of that architecture ({wrong_fields(error, THEIRS)})",
            "give a checkpoint of the DeepSeek-V3 architecture",
        ) from error


def import_checkpoint(
    source: str | Path, workload: dict[str, Any], out: str | Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the weights at the address `source` as a checkpoint of 0 steps to the address `out`, whole or not at all:
    what an import that was killed left there is removed, a checkpoint is not.

    Args:
        workload: a job's `workload` section; its `model` is replaced by that of `source`, whose MTP modules, if it has
            none, are new ones.

    Returns:
        `tensors` and `bytes` of `source`, `parameters`, and `written`, the bytes of the checkpoint.

    Raises:
        UserError: another architecture, tensors missing or too many or of another shape or type, or a bad section: told
            before anything is written. Or a value that is not finite.
    """
    drop_half_written(out)
    check_target(out)
    store = open_store(source)
    model, block = read_config(store)
    has_mtp = model.mtp_depth > 0
    given = workload.get("model")
    asked = given.get("mtp_depth") if isinstance(given, dict) else None
    if asked is not None and not has_mtp:
        model = model.model_copy(update={"mtp_depth": asked})
    path = workload.get("path", "shoal_workloads.pretrain:Pretrain")
    section = {"path": path, **own_settings(workload), "model": model.model_dump()}
    try:
        config = PretrainConfig.model_validate(own_settings(section))
    except ValidationError as error:
        raise UserError(f"workload: {wrong_fields(error)}", "mend the job's workload section") from error
    files = Files.open(source)
    check(model, files, mtp=has_mtp, block=block)
    start = _Start(config, files, block, has_mtp)
    size = sum(piece.bytes for piece in start.pieces)
    about = {"steps": 0, "samples": 0, "workers": 1, "workload": section}
    with torch.no_grad(), ThreadPoolExecutor(AHEAD, thread_name_prefix="import") as pool:
        made = _made_ahead(in_order(start.pieces), start.made, pool)
        done = 0

        def content(piece: Piece) -> memoryview:
            nonlocal done
            its, tensor = next(made)
            assert its == piece, "they are asked for in order"
            done += piece.bytes
            if progress is not None:
                progress(done, size)
            return bytes_of(tensor)

        try:
            written = alone.stream(Folder.at(out), start.pieces, content, start.zeros, about)
        finally:
            pool.shutdown(cancel_futures=True)
    return {
        "tensors": len(files.tensors),
        "parameters": start.parameters,
        "bytes": sum(files.sizes.values()),
        "written": written,
    }


def _made_ahead(
    pieces: Sequence[Piece], make: Callable[[Piece], torch.Tensor], pool: ThreadPoolExecutor
) -> Iterator[tuple[Piece, torch.Tensor]]:
    """Each of `pieces` with what is made of it, so many ahead as `AHEAD` says."""
    waiting: deque[tuple[Piece, Future[torch.Tensor]]] = deque()
    left = iter(pieces)
    for piece in left:
        waiting.append((piece, pool.submit(make, piece)))
        if len(waiting) >= AHEAD:
            first, future = waiting.popleft()
            yield first, future.result()
    for piece, future in waiting:
        yield piece, future.result()


class _Start:
    """The state of a run after 0 steps, with the weights of `files`, in pieces.

    Attributes:
        pieces: whole rows of one of their tensors each, or of one that is new.
        zeros: the moments, which are nothing else yet.
        parameters: how many there are.
    """

    def __init__(self, config: PretrainConfig, files: Files, block: tuple[int, int], mtp: bool) -> None:
        self._config, self._files, self._block = config, files, block
        state = state_of(config)
        self.zeros: Described = {name: kind for name, kind in state.items() if name.startswith(("adam_m.", "adam_v."))}
        kept = {name: kind for name, kind in state.items() if name not in self.zeros}
        self.parameters = sum(whole(shape).numel for name, (shape, _) in state.items() if name.startswith("model."))
        parts: dict[str, list[Part]] = {}
        for part in parts_of(config.model, mtp=mtp):
            if not part.copy:
                parts.setdefault(part.ours, []).append(part)
        self._parts: dict[Piece, Part] = {}
        limit = block_bytes([Piece(name, dtype, shape, whole(shape)) for name, (shape, dtype) in kept.items()])
        self.pieces: list[Piece] = []
        for name, (shape, dtype) in kept.items():
            theirs = parts.get(_parameter(name))
            if theirs is None:  # new: drawn matrix by matrix
                self.pieces += [Piece(name, dtype, shape, box) for box in _matrices(shape)]
                continue
            for part in theirs:
                boxes = _even_rows(box_of(part), itemsize(dtype), limit)
                some = [Piece(name, dtype, shape, box) for box in boxes]
                self._parts.update(dict.fromkeys(some, part))
                self.pieces += some

    def made(self, piece: Piece) -> torch.Tensor:
        """The values of a piece.

        Raises: as `values`.
        """
        part = self._parts.get(piece)
        if part is not None:
            return part_values(self._files, part, piece.box, self._block)
        if piece.name == "guard":
            return Guard(self._config.guard).state
        if piece.name.startswith("router_bias."):
            return torch.zeros(piece.shape)
        new = torch.nn.Parameter(torch.empty(piece.box.lengths))
        shard = ParamShard(_parameter(piece.name), new, piece.shape, piece.box.offsets, 1.0, None, ())
        init_shards([shard], 0, self._config.model.init_std, self._config.init)
        return shard.local


def _parameter(name: str) -> str:
    """What a tensor of the state is of: its parameter, or itself."""
    return name.removeprefix("model.").removeprefix("ema.")


def _matrices(shape: tuple[int, ...]) -> Iterator[Box]:
    """A tensor, or each of the matrices that are stacked in it."""
    if len(shape) < 3:
        yield whole(shape)
        return
    for place in range(shape[0]):
        yield Box((place, *(0,) * (len(shape) - 1)), (1, *shape[1:]))


def _even_rows(box: Box, size: int, limit: int) -> list[Box]:
    """Parts of `box`, whole rows, of at most `limit` bytes (size: of an element), halved as long as that goes: ranks
    share out rows by halves too, and each reads all of a block that it holds a part of."""
    along = next((at for at, length in enumerate(box.lengths) if length != 1), 0)
    count = box.lengths[along]
    row = max(1, box.numel // max(1, count) * size)
    step = count
    while step * row > limit and step % 2 == 0:
        step //= 2
    if step * row > limit:
        step = max(1, limit // row)
    return [
        Box(
            (*box.offsets[:along], box.offsets[along] + first, *box.offsets[along + 1 :]),
            (*box.lengths[:along], min(step, count - first), *box.lengths[along + 1 :]),
        )
        for first in range(0, count, step)
    ]
