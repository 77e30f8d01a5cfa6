"""Text to evaluate a checkpoint on, tokenized as it was trained."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shoal_core.errors import UserError
from shoal_workloads.checkpoint import Checkpoint

__all__ = ["corpus_of"]


@contextlib.contextmanager
def corpus_of(
    checkpoint: str | Path, data: str, *, column: str = "text", join: str | None = None, split: str | None = None
) -> Iterator[tuple[str, str]]:
    """A corpus of `data`, and what was left out of it in words, empty for nothing.

    A corpus is taken as it is. Anything that `shoal data tokenize --input` takes is made one, with the tokenizer of the
    corpus that the checkpoint was trained on, in a folder that is removed at the end.

    Raises:
        UserError: it is neither, nothing in it can be read, or the tokenizer is not there any more.
    """
    if _is_corpus(data):
        yield data, ""
        return
    from shoal_data.files import read_lines
    from shoal_data.reading.reader import Corpus
    from shoal_data.sources.causes import common_causes
    from shoal_data.writing.options import TokenizeOptions
    from shoal_data.writing.tokenize import tokenize

    source = Checkpoint(checkpoint)
    try:
        trained = Corpus.open(source.config.data.corpus)
    except UserError as error:
        raise UserError(
            f"--data {data}: it is text, and the tokenizer is not to be had: {error.problem}",
            "put the run's corpus back, or name a corpus of this text made by its tokenizer (shoal data tokenize)",
        ) from error
    source.fits(trained)
    with tempfile.TemporaryDirectory(prefix="shoal-eval-") as folder:
        out = Path(folder, "corpus")
        tokenize([data], trained.tokenizer_path, out, TokenizeOptions(column, join=join, split=split))
        yield str(out), common_causes(read_lines(out / "quarantine.jsonl"))


def _is_corpus(data: str) -> bool:
    """Whether `data` is a corpus, or so much like one that its own message tells best what is wrong with it."""
    from shoal_data.place import is_address, place_at
    from shoal_data.reading.manifest import MANIFEST

    if is_address(data):
        return bool((place_at(data) / MANIFEST).exists())
    if not os.path.isdir(data):
        return False
    return not any(os.path.exists(os.path.join(data, name)) for name in ("state.json", "dataset_dict.json"))
