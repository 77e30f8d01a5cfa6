"""A finished checkpoint, opened without a process group: its configuration and its tensors by name.

A checkpoint is a folder written by torch's distributed checkpoint with `COMMITTED.json`, written last, beside it. That
file holds the `steps` and the `workload` section of the run, and the size and SHA-256 of every file: what is unpickled
here (the index, `.metadata`) is checked against it first.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from pydantic import ValidationError
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from shoal_data.errors import InputError
from shoal_workloads.config import PretrainConfig

__all__ = ["Checkpoint", "alone"]

MARKER = "COMMITTED.json"


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
        """Open the checkpoint folder `path`.

        Raises:
            InputError: it is not whole, or of another workload.
        """
        self.path = Path(path)
        remedy = "name a folder like RUN/checkpoints/step-00000100 that holds COMMITTED.json"
        try:
            marker: dict[str, Any] = json.loads((self.path / MARKER).read_text())
            self.steps = int(marker["steps"])
            section = {key: value for key, value in marker["workload"].items() if key != "path"}
            files: dict[str, Any] = marker.get("files", {})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.path}: is no finished checkpoint ({error})", remedy) from error
        try:
            self.config = PretrainConfig.model_validate(section)
        except ValidationError as error:
            raise InputError(
                f"{self.path / MARKER}: workload is none of shoal_workloads.pretrain:Pretrain ({error})", remedy
            ) from error
        for name, expected in files.items():
            file = self.path / name
            if not file.is_file() or file.stat().st_size != expected["bytes"]:
                raise InputError(f"{file}: missing or of another size than was committed", "use an older checkpoint")
        index = self.path / ".metadata"
        if index.name in files and hashlib.sha256(index.read_bytes()).hexdigest() != files[index.name]["sha256"]:
            raise InputError(f"{index}: differs from what was committed", "use an older checkpoint")
        metadata = dcp.FileSystemReader(self.path).read_metadata().state_dict_metadata
        self._tensors = {k: v for k, v in metadata.items() if isinstance(v, TensorStorageMetadata)}
        self.shapes = {name: tuple(entry.size) for name, entry in self._tensors.items()}

    def load(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The named tensors, whole, in CPU memory.

        Raises:
            InputError: there is no such tensor.
        """
        wanted: dict[str, Any] = {}
        for name in names:
            if name not in self._tensors:
                raise InputError(f"{self.path}: tensor {name} is missing", "use a checkpoint of this version")
            wanted[name] = torch.empty(self.shapes[name], dtype=self._tensors[name].properties.dtype)
        with alone():
            dcp.load(wanted, checkpoint_id=self.path, no_dist=True)
        return wanted

    def weights(self, *, ema: bool = False) -> dict[str, torch.Tensor]:
        """Parameters by the model's names and `router_bias.I`; the averages instead of the parameters if `ema`.

        Raises:
            InputError: averages are asked for and none were kept.
        """
        kind = "ema." if ema else "model."
        names = [name for name in self.shapes if name.startswith(kind)]
        if ema and not names:
            raise InputError(
                f"{self.path}: holds no averages", "train with workload.ema_decay=0.999, or leave --ema out"
            )
        biases = [name for name in self.shapes if name.startswith("router_bias.")]
        return {name.removeprefix(kind): tensor for name, tensor in self.load([*names, *biases]).items()}
