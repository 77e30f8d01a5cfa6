"""Training a byte-level BPE tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel

from shoal_data.build.documents import Quarantined, read_piece
from shoal_data.build.inputs import plan_parts
from shoal_data.build.patterns import pre_tokenizer
from shoal_data.build.progress import Progress
from shoal_data.build.special import BOS, EOS, SPECIAL_TOKENS
from shoal_data.files import write_json, write_whole

__all__ = ["TrainOptions", "train"]


@dataclass(frozen=True)
class TrainOptions:
    """How a tokenizer is trained.

    Attributes:
        vocab_size: entries of the vocabulary, special tokens and the 256 bytes included.
        column: column or field that holds the text.
        pattern: pre-tokenizer, a key of `shoal_data.build.patterns.PATTERNS`.
        min_frequency: pairs that occur less often are not merged.
    """

    vocab_size: int
    column: str = "text"
    pattern: str = "deepseek-v3"
    min_frequency: int = 0
    part_bytes: int = 32 << 20


def train(inputs: Sequence[str], out: str | Path, options: TrainOptions) -> Path:
    """Train on the files that the globs `inputs` name; write `tokenizer.json` and its config into `out`.

    A finished one with the same inputs and options is left as it is.

    Returns:
        the path of `tokenizer.json`.
    """
    folder = Path(out)
    parts = plan_parts(inputs, options.column, options.part_bytes)
    job = json.loads(json.dumps({"options": asdict(options), "parts": [part.to_json() for part in parts]}))
    path, record = folder / "tokenizer.json", folder / "job.json"
    if path.exists() and record.exists() and json.loads(record.read_bytes()) == job:
        return path
    progress = Progress("tokenizer-train", sum(piece.size for part in parts for piece in part.pieces))
    quarantine: list[Quarantined] = []

    def texts() -> Iterator[list[str]]:
        for part in parts:
            for piece in part.pieces:
                for documents in read_piece(piece, options.column, quarantine):
                    progress.advance(documents.text.nbytes)
                    yield documents.text.to_pylist()

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer(options.pattern)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab_size,
        min_frequency=options.min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    progress.finish()
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "model_max_length": 4096},
    )
    write_whole(path, tokenizer.to_str().encode())
    write_json(record, job)
    return path
