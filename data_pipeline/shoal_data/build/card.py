"""A tokenizer's card: what it was trained on and how well it compresses, in words, figures and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from shoal_data.build.documents import Quarantined, read_piece
from shoal_data.build.encode import Encoder
from shoal_data.build.inputs import Part
from shoal_data.build.merges import Merges
from shoal_data.files import write_json, write_whole

__all__ = ["write_card"]

_SAMPLE_BYTES = 8 << 20


def write_card(
    folder: Path, tokenizer: bytes, parts: Sequence[Part], column: str, merges: Merges, text_bytes: int
) -> None:
    """Write `card.md`, `card.json` and `compression.png` into `folder`.

    Args:
        tokenizer: the content of `tokenizer.json`.
        parts: the training text, of which a sample from each part is encoded to compare languages.
        merges: what training found; its counts give the exact size of the training text at every vocabulary size.
        text_bytes: bytes of the training text.
    """
    languages = _by_language(Encoder(tokenizer, "tokenizer.json"), parts, column)
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


def _by_language(encoder: Encoder, parts: Sequence[Part], column: str) -> dict[str, float]:
    size: dict[str, int] = {}
    tokens: dict[str, int] = {}
    share = _SAMPLE_BYTES // max(1, len(parts))
    for part in parts:
        quarantine: list[Quarantined] = []
        read = 0
        for piece in part.pieces:
            for documents in read_piece(piece, column, quarantine):
                for lang in documents.lang.unique().to_pylist():
                    text = documents.text.filter(pc.equal(documents.lang, lang))
                    size[lang] = size.get(lang, 0) + pc.sum(pc.binary_length(text)).as_py()
                    tokens[lang] = tokens.get(lang, 0) + len(encoder.encode(text).ids)
                read += documents.text.nbytes
                if read > share:
                    break
            if read > share:
                break
    return {lang: round(size[lang] / max(1, tokens[lang]), 4) for lang in sorted(size)}


def _plot(path: Path, curve: Sequence[Sequence[float]]) -> None:
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.semilogx([point[0] for point in curve], [point[1] for point in curve], marker=".")
    axes.set(xlabel="vocabulary size", ylabel="bytes a token", title="Compression of the training text")
    axes.grid(visible=True, alpha=0.3)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
    write_whole(path, content.getvalue())
