"""A finished checkpoint, opened without a process group: its configuration and its tensors by name.

Its marker, `COMMITTED.json`, holds the `steps` and the `workload` section of the run. Marker, index and the sizes of
all files are checked when it is opened; every byte of a tensor when that is read (`shoal_core.ckpt`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from shoal_core.ckpt import alone
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.marker import MARKER
from shoal_core.ckpt.whole import Checkpoint as Stored
from shoal_core.errors import UserError
from shoal_core.loading import own_settings
from shoal_core.workload import ORIGIN
from shoal_workloads.config import PretrainConfig, wrong_fields
from shoal_workloads.shapes import state_of

if TYPE_CHECKING:
    from shoal_data.reading.reader import Corpus

__all__ = ["Checkpoint"]


class Checkpoint:
    """Attributes:
    stored: its marker and its index.
    address, steps, config: where it lies, how many steps it stands for, what was trained.
    shapes: shape of every tensor by name (`model.NAME`, `ema.NAME`, `router_bias.I`, ...).
    """

    def __init__(self, path: str | Path | Stored) -> None:
        """Open the checkpoint at the address `path`, or take one that is open.

        Raises:
            UserError: it is not whole, or not as it was committed, or of another workload.
        """
        stored = path if isinstance(path, Stored) else Stored.open(Folder.at(path))
        self.stored, said, self.steps, self.address = stored, stored.marker, stored.steps, stored.folder.address
        self._data: dict[str, Any] = {}
        self.shapes = {name: tensor.shape for name, tensor in stored.index.tensors.items()}
        where = stored.folder.where(MARKER)
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
                    f"{self.address}: tensor {name} has shape {found}, its marker's model {list(shape)}",
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
                f"{corpus.address}: its tokenizer (SHA-256 {found[:12]}) is not the one that {self.address} was "
                f"trained with ({trained[:12]})",
                remedy,
            )

    def load(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The named tensors, whole, in CPU memory.

        Raises:
            UserError: there is no such tensor, or it differs from what was committed.
        """
        wanted = list(names)
        for name in wanted:
            if name not in self.shapes:
                raise UserError(f"{self.address}: tensor {name} is missing", "use a checkpoint of this version")
        return alone.read(self.stored, wanted)

    def kind_of_weights(self, *, ema: bool) -> str:
        """What begins the names of parameters, or of their averages if `ema`, before a dot.

        Raises:
            UserError: averages are asked for and none were kept.
        """
        if ema and not any(name.startswith("ema.") for name in self.shapes):
            raise UserError(
                f"{self.address}: holds no averages", "train with workload.ema_decay=0.999, or leave --ema out"
            )
        return "ema" if ema else "model"

    def weights(self, *, ema: bool = False) -> dict[str, torch.Tensor]:
        """Parameters by the model's names and `router_bias.I`; the averages instead of the parameters if `ema`.

        Raises:
            UserError: averages are asked for and none were kept.
        """
        kind = f"{self.kind_of_weights(ema=ema)}."
        names = [name for name in self.shapes if name.startswith((kind, "router_bias."))]
        return {name.removeprefix(kind): tensor for name, tensor in self.load(names).items()}
