"""A finished checkpoint, opened without a process group: its configuration and its tensors by name.

A checkpoint is a folder written by torch's distributed checkpoint with `COMMITTED.json`, written last, beside it. That
file holds the `steps` and the `workload` section of the run, and the size and SHA-256 of every file: all of them are
checked when it is opened, before anything is unpickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from pydantic import ValidationError

from shoal_core import marker
from shoal_core.dcp import Reader, described, in_words, read_index
from shoal_core.errors import UserError
from shoal_core.workload import ORIGIN, own_settings
from shoal_workloads.config import PretrainConfig, wrong_fields
from shoal_workloads.shapes import state_of

if TYPE_CHECKING:
    from shoal_data.reading.reader import Corpus

__all__ = ["Checkpoint", "alone"]


@contextmanager
def alone() -> Iterator[None]:
    """torch warns of what is meant here: that a checkpoint is read or written by one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


class Checkpoint:
    """Attributes:
    path, steps, config: where it lies, how many steps it stands for, what was trained.
    shapes: shape of every tensor by name (`model.NAME`, `ema.NAME`, `router_bias.I`, ...).
    """

    def __init__(self, path: str | Path) -> None:
        """Open the checkpoint folder `path` and read every byte of it once.

        Raises:
            UserError: it is not whole, a file differs from what was committed, or it is of another workload.
        """
        self.path = Path(path)
        try:
            said = marker.verify(self.path)
            self._tensors = described(read_index(self.path))
        except marker.Damaged as error:
            raise UserError(error.problem, error.remedy) from error
        self.steps = int(said["steps"])
        self._data: dict[str, Any] = {}
        self.shapes = {name: shape for name, (shape, _) in self._tensors.items()}
        where = self.path / marker.MARKER
        try:
            self.config = PretrainConfig.model_validate(own_settings(said["workload"]))
            self._data = (said["workload"].get(ORIGIN) or {}).get("data") or {}
        except (KeyError, TypeError, AttributeError, ValidationError) as error:
            why = wrong_fields(error) if isinstance(error, ValidationError) else repr(error)
            raise UserError(
                f"{where}: workload is none of shoal_workloads.pretrain:Pretrain ({why})",
                "name a checkpoint that a run of that workload wrote",
            ) from error
        try:
            expected = state_of(self.config)
        except (RuntimeError, TypeError, OverflowError) as error:
            raise UserError(f"{where}: its model cannot be built ({error})", "use another checkpoint") from error
        for name, (shape, _) in expected.items():
            if name.startswith(("model.", "router_bias.")) and self.shapes.get(name) != shape:
                found = list(self.shapes[name]) if name in self.shapes else "none"
                raise UserError(
                    f"{self.path}: tensor {name} has shape {found}, its marker's model {list(shape)}",
                    "use a checkpoint as its run wrote it",
                )

    def fits(self, corpus: Corpus) -> None:
        """Whether the tokens of `corpus` are those that the model knows.

        Raises:
            UserError: they are another tokenizer's, or there are more of them than rows in the embedding.
        """
        remedy = "tokenize the text with the tokenizer of the run"
        rows = self.config.model.vocab_size
        if corpus.vocab_size > rows:
            raise UserError(
                f"{corpus.address}: {corpus.vocab_size} tokens in its vocabulary, {rows} rows in the embedding", remedy
            )
        trained, found = self._data.get("tokenizer"), corpus.manifest.files["tokenizer"]["sha256"]
        if trained not in (None, found):
            raise UserError(
                f"{corpus.address}: its tokenizer (SHA-256 {found[:12]}) is not the one that {self.path} was trained "
                f"with ({trained[:12]})",
                remedy,
            )

    def load(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The named tensors, whole, in CPU memory.

        Raises:
            UserError: there is no such tensor, or it cannot be read.
        """
        wanted: dict[str, Any] = {}
        for name in names:
            if name not in self._tensors:
                raise UserError(f"{self.path}: tensor {name} is missing", "use a checkpoint of this version")
            shape, dtype = self._tensors[name]
            wanted[name] = torch.empty(shape, dtype=getattr(torch, dtype))
        try:
            with alone():
                dcp.load(wanted, storage_reader=Reader(self.path), no_dist=True)
        except dcp.api.CheckpointException as error:
            raise UserError(f"{self.path}: cannot be read ({in_words(error)})", "use another checkpoint") from error
        return wanted

    def weights(self, *, ema: bool = False) -> dict[str, torch.Tensor]:
        """Parameters by the model's names and `router_bias.I`; the averages instead of the parameters if `ema`.

        Raises:
            UserError: averages are asked for and none were kept.
        """
        kind = "ema." if ema else "model."
        names = [name for name in self.shapes if name.startswith(kind)]
        if ema and not names:
            raise UserError(
                f"{self.path}: holds no averages", "train with workload.ema_decay=0.999, or leave --ema out"
            )
        biases = [name for name in self.shapes if name.startswith("router_bias.")]
        return {name.removeprefix(kind): tensor for name, tensor in self.load([*names, *biases]).items()}
