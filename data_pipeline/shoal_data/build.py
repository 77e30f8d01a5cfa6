"""The way in for programs that build a corpus: `tokenize(inputs, tokenizer, out)`, of files or a `ray.data.Dataset`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal_data.jobs.claim import check_out
from shoal_data.writing.options import Recipe, TokenizeOptions
from shoal_data.writing.tokenize import tokenize as tokenize_files

if TYPE_CHECKING:
    from shoal_data.reading.manifest import Manifest

__all__ = ["Recipe", "TokenizeOptions", "tokenize"]


def tokenize(
    inputs: str | Sequence[str] | Any,
    tokenizer: str | Path,
    out: str | Path,
    options: TokenizeOptions | None = None,
    *,
    name: str = "ray",
    staging: str | Path | None = None,
) -> Manifest:
    """Encode text into the corpus `out`, as `shoal data tokenize` does; run again, it finishes what is missing.

    Args:
        inputs: what `--input` takes, one or several; or a `ray.data.Dataset`, whose rows are first written to
            `staging` in the order of its blocks, once: run again, with the same `out`, the pipeline is not.
        tokenizer: a byte-level BPE tokenizer.json.
        out: a folder that all nodes see, or s3://bucket/prefix.
        options: the column and what happens to documents on the way.
        name: of the source that a dataset of Ray is.
        staging: where its rows lie, which all nodes see too; `out` with `-text` at its end if it is left out. They
            stay: whoever has the corpus may delete them.

    Raises:
        UserError, StoreError: as `shoal data tokenize` says.
    """
    options = options or TokenizeOptions()
    if not hasattr(inputs, "iter_batches"):
        return tokenize_files([inputs] if isinstance(inputs, str) else inputs, tokenizer, out, options)
    from shoal_data.jobs.staging import stage

    options.check()
    check_out(out)
    rows = stage(inputs, check_out(staging or f"{str(out).rstrip('/')}-text"), options.column, options.join)
    options = replace(options, column="text", join=None, split=None)
    return tokenize_files([f"{name}={rows}"], tokenizer, out, options)
