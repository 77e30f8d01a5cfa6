"""A folder of packed samples: its manifest, and reading it by number. Knows no tokenizer and no torch."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal_core.errors import UserError
from shoal_core.files import parse_json
from shoal_data.arrow import read_batch
from shoal_data.files import sha256_file
from shoal_data.place import Place, place_at

__all__ = ["IGNORED", "MANIFEST", "SAMPLES", "ChatManifest", "PackedSample", "PackedSamples", "digest_of"]

MANIFEST, SAMPLES = "chat.json", "samples.arrow"
IGNORED = -100  # the label of a token that is not predicted, as in PyTorch and transformers
_FORMAT = 1


@dataclass(frozen=True)
class ChatManifest:
    """What a folder holds and was made of; written last, so that a folder that has it is whole.

    Attributes:
        seq_len: tokens of a sample at most.
        tokenizer: digest of the tokenizer (`ChatTokenizer.digest`).
        vocab_size: ids that the tokenizer may give.
        inputs: the files that were read; `file` of a sample counts in them.
        totals: conversations, samples, tokens, answers (tokens that are predicted), and what was left out.
        files: by role, name and SHA-256.
        options: what it was made with; `template` is the digest of the chat template.
        version: of Shoal.
    """

    seq_len: int
    tokenizer: str
    vocab_size: int
    inputs: list[str]
    totals: dict[str, int]
    files: dict[str, dict[str, str]]
    options: dict[str, Any]
    version: str
    format: int = _FORMAT

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @staticmethod
    def read(folder: Place, *, check: bool = True) -> ChatManifest:
        """The manifest of a folder; `check`: and see that its files are as it says.

        Raises:
            UserError: there is none, or something is damaged.
        """
        path = folder / MANIFEST
        try:
            found = parse_json(path.read_bytes())
            manifest = ChatManifest(**found)
            names = {role: (entry["file"], entry["sha256"]) for role, entry in manifest.files.items()}
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{folder}: no {MANIFEST}: this is no folder of packed conversations, or its writing was stopped",
                "name what `shoal data chat --out` wrote, or run that command again",
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path}: damaged ({type(error).__name__}: {error})", "delete the folder and prepare it again"
            ) from error
        if manifest.format != _FORMAT:
            raise UserError(f"{path}: of format {manifest.format}, this version reads {_FORMAT}", "prepare it again")
        for name, digest in names.values() if check else ():
            try:
                same = digest_of(folder / name) == digest
            except FileNotFoundError:
                raise UserError(f"{folder / name}: missing", "run `shoal data chat` again: it writes it anew") from None
            if not same:
                raise UserError(
                    f"{folder / name}: not what {MANIFEST} says (SHA-256)",
                    "run `shoal data chat` again: it writes it anew",
                )
        return manifest


def digest_of(file: Place) -> str:
    """Hex SHA-256 of a file here or on a store."""
    return sha256_file(file) if isinstance(file, Path) else hashlib.sha256(file.read_bytes()).hexdigest()


@dataclass(frozen=True)
class PackedSample:
    """Conversations that share a sample, one after the other. All int64, (n,), n <= seq_len.

    Attributes:
        input_ids: their tokens.
        labels: the same where a token is predicted, `IGNORED` elsewhere; never at the first of a conversation, which
            nothing comes before. As transformers takes them: not shifted.
        position_ids: place in its conversation, from 0 on.
        document_ids: which conversation of the sample, from 0 on.
    """

    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    position_ids: npt.NDArray[np.int64]
    document_ids: npt.NDArray[np.int64]


class PackedSamples:
    """The samples of a folder of `shoal data chat`, by number; a folder's are mapped, a store's read at once.

    Args:
        address: the folder, or s3://bucket/prefix.

    Attributes:
        manifest: what they were made of.
        fingerprint: the same for the same samples.

    Raises:
        UserError: it is none, or damaged: every byte is compared with the manifest.
    """

    def __init__(self, address: str | Path) -> None:
        folder = place_at(address)
        self.manifest = ChatManifest.read(folder)
        self.fingerprint = self.manifest.files["samples"]["sha256"]
        batch = read_batch(folder / SAMPLES, 0)
        self._columns = {name: batch.column(name) for name in ("input_ids", "labels", "lengths")}

    def __len__(self) -> int:
        return len(self._columns["input_ids"])

    def __getitem__(self, number: int) -> PackedSample:
        if not 0 <= number < len(self):
            raise IndexError(number)
        ids, labels, lengths = (
            self._columns[name][number].values.to_numpy().astype(np.int64)
            for name in ("input_ids", "labels", "lengths")
        )
        starts = np.cumsum(lengths) - lengths
        positions = np.arange(len(ids)) - np.repeat(starts, lengths)
        return PackedSample(ids, labels, positions, np.repeat(np.arange(len(lengths)), lengths))
