"""A tokenizer's card: what it was trained on and how well it compresses, in words, figures and a plot."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from shoal_data.bpe.merges import Merges
from shoal_data.files import write_json, write_whole
from shoal_data.place import Place
from shoal_data.sources.documents import Documents, Quarantined, read_piece
from shoal_data.sources.parts import Part
from shoal_data.tokenizer.encoder import Encoder

__all__ = ["read_sample", "write_card"]

_SAMPLE_BYTES = 8 << 20


def write_card(folder: Place, tokenizer: bytes, sample: Sequence[Documents], merges: Merges, text_bytes: int) -> None:
    """Write `card.md`, `card.json` and `compression.png` into `folder`.

    Args:
        tokenizer: the content of `tokenizer.json`.
        sample: training text of each language, encoded to compare them.
        merges: what training found; its counts give the exact size of the training text at every vocabulary size.
        text_bytes: bytes of the training text.
    """
    languages = _by_language(Encoder(tokenizer, "tokenizer.json"), sample)
    tokens = text_bytes - np.concatenate(([0], np.cumsum(merges.counts)))
    first = len(merges.tokens) - len(merges.pairs)
    sizes = first + np.arange(len(tokens))
    points = np.unique(np.geomspace(first, sizes[-1], 24).astype(int)) - first
    curve = [[int(sizes[at]), round(text_bytes / max(1, int(tokens[at])), 4)] for at in points]
    write_json(
        folder / "card.json",
        {
            "vocab_size": len(merges.tokens),
            "merges": len(merges.pairs),
            "training_bytes": text_bytes,
            "bytes_per_token": curve[-1][1],
            "bytes_per_token_by_language": languages,
            "curve": curve,
        },
    )
    rows = "".join(f"| {name} | {value:.3f} |\n" for name, value in languages.items())
    text = (
        f"# Tokenizer of {len(merges.tokens):,} tokens\n\n"
        f"Byte-level BPE, {len(merges.pairs):,} merges, learnt from {text_bytes:,} bytes of text, which it writes in "
        f"{int(tokens[-1]):,} tokens: {curve[-1][1]:.3f} bytes a token.\n\n"
        f"| language (sample of the training text) | bytes a token |\n|---|---|\n{rows}\n"
        "![bytes a token against vocabulary size](compression.png)\n"
    )
    write_whole(folder / "card.md", text.encode())
    _plot(folder / "compression.png", curve)


def read_sample(parts: Sequence[Part], column: str, join: str | None) -> list[Documents]:
    """Some 8 MB of the training text, as much from the beginning of every part."""
    share = _SAMPLE_BYTES // max(1, len(parts))
    return [documents for part in parts for documents in _beginning(part, column, join, share)]


def _beginning(part: Part, column: str, join: str | None, size: int) -> Iterator[Documents]:
    quarantine: list[Quarantined] = []  # counting has said what is broken
    for piece in part.pieces:
        for read in read_piece(piece, column, quarantine, join):
            ends = np.cumsum(pc.binary_length(read.text).to_numpy())
            count = min(len(ends), 1 + int(np.searchsorted(ends, size)))
            text = pa.concat_arrays([read.text.slice(0, count)])  # a copy: the rest need not stay in memory
            yield Documents(read.path, text, read.row[:count], read.lang.slice(0, count))
            size -= int(ends[count - 1])
            if size <= 0:
                return


def _by_language(encoder: Encoder, sample: Sequence[Documents]) -> dict[str, float]:
    size: dict[str, int] = {}
    tokens: dict[str, int] = {}
    for documents in sample:
        for lang in documents.lang.unique().to_pylist():
            text = documents.text.filter(pc.equal(documents.lang, lang))
            size[lang] = size.get(lang, 0) + pc.sum(pc.binary_length(text)).as_py()
            tokens[lang] = tokens.get(lang, 0) + len(encoder.encode(text).ids)
    return {lang: round(size[lang] / max(1, tokens[lang]), 4) for lang in sorted(size)}


def _plot(path: Place, curve: Sequence[Sequence[float]]) -> None:
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.add_axes((0.1, 0.14, 0.87, 0.76))
    axes.semilogx([point[0] for point in curve], [point[1] for point in curve], marker=".")
    axes.set(xlabel="vocabulary size", ylabel="bytes a token", title="Compression of the training text")
    axes.grid(visible=True, alpha=0.3)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
    write_whole(path, content.getvalue())
