"""Training a byte-level BPE tokenizer on any amount of text: counted in parallel, merged once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models

from shoal_data.build.arrow import text_buffers
from shoal_data.build.compile import compile_loops
from shoal_data.build.count_job import count_words, quarantined
from shoal_data.build.inputs import plan_parts
from shoal_data.build.merges import Merges, learn_merges
from shoal_data.build.patterns import PATTERNS, pre_tokenizer
from shoal_data.build.special import BOS, EOS, SPECIAL_TOKENS
from shoal_data.errors import InputError
from shoal_data.files import sweep_temporary, write_json, write_lines, write_whole

__all__ = ["TrainOptions", "byte_alphabet", "character_of_byte", "train"]


@dataclass(frozen=True)
class TrainOptions:
    """How a tokenizer is trained.

    Attributes:
        vocab_size: entries of the vocabulary, special tokens and the 256 bytes included.
        column: column or field that holds the text.
        pattern: pre-tokenizer, a key of `shoal_data.build.patterns.PATTERNS`.
        min_frequency: pairs that occur less often are not merged.
        min_word_count: pre-tokens that occur less often are left out, which bounds the memory of the merge loop on
            very large text; above 1 the merges are no longer exactly those of the whole text.
        special: special token -> id; the others take the ids that are left, in order.
        part_bytes: bytes of text a task counts; 0 to choose by the size of the text.
    """

    vocab_size: int
    column: str = "text"
    pattern: str = "deepseek-v3"
    min_frequency: int = 0
    min_word_count: int = 1
    special: Mapping[str, int] = field(default_factory=lambda: {name: at for at, name in enumerate(SPECIAL_TOKENS)})
    part_bytes: int = 0


def train(inputs: Sequence[str], out: str | Path, options: TrainOptions) -> Path:
    """Train on the files that the globs `inputs` name; write `tokenizer.json`, its config and its card into `out`.

    What cannot be read is named in `quarantine.jsonl` and left out.

    The merges are those of `tokenizers`' BpeTrainer on the same text. A finished tokenizer with the same inputs and
    options is left as it is; an unfinished one goes on from the parts that were counted.

    Returns:
        the path of `tokenizer.json`.

    Raises:
        InputError: nothing matches, a setting is out of range, or `out` holds another job's work.
    """
    _check(options)
    folder = Path(out)
    parts = plan_parts(inputs, options.column, options.part_bytes)
    job = json.loads(json.dumps({"options": asdict(options), "parts": [part.to_json() for part in parts]}))
    path, record = folder / "tokenizer.json", folder / "job" / "job.json"
    if record.exists() and json.loads(record.read_bytes()) != job:
        raise InputError(
            f"{folder}: it belongs to a job with other inputs or options", "choose another --out, or delete this folder"
        )
    if record.exists() and path.exists():
        return path
    write_json(record, job)
    sweep_temporary(record.parent)
    compile_loops()  # once, here, and not in every worker
    words, counts = count_words(parts, options.column, options.pattern, record.parent, options.min_word_count)
    write_lines(folder / "quarantine.jsonl", quarantined(parts, record.parent))
    specials = sorted(options.special, key=lambda name: options.special[name])
    alphabet, byte_ids = byte_alphabet(specials)
    with ThreadPoolExecutor(1) as beside:  # the merge loop leaves the other cores idle
        learning = beside.submit(
            learn_merges, words, counts, alphabet, byte_ids, options.vocab_size, options.min_frequency
        )
        from shoal_data.build.card import read_sample, write_card  # brings a plotting library, slowly

        sample = read_sample(parts, options.column)
        merges = learning.result()
    content = _assemble(merges, specials, options).to_str().encode()
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS if BOS in options.special else None,
            "eos_token": EOS if EOS in options.special else None,
            "clean_up_tokenization_spaces": False,
        },
    )
    lengths = np.diff(text_buffers(words)[0])
    write_card(folder, content, sample, merges, int((lengths * counts).sum()))
    write_whole(path, content)
    for pattern in ("counts-*.arrow", "reduced-*.arrow", "left-out-*.json"):
        for partial in record.parent.glob(pattern):
            partial.unlink()
    return path


def byte_alphabet(specials: Sequence[str]) -> tuple[list[bytes], np.ndarray]:
    """The tokens before the first merge, by id, and the id of each byte: specials first, then the bytes in the order
    of the characters that stand for them in byte-level BPE."""
    byte_of = _byte_of()
    ids = {name: at for at, name in enumerate(specials)}
    tokens = [_spell(name, byte_of) for name in specials]
    for character in sorted(byte_of):
        if character not in ids:
            ids[character] = len(tokens)
            tokens.append(bytes([byte_of[character]]))
    byte_ids = np.zeros(256, np.int32)
    for character, byte in byte_of.items():
        byte_ids[byte] = ids[character]
    return tokens, byte_ids


def character_of_byte() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary."""
    return {byte: name for name, byte in _byte_of().items()}


def _byte_of() -> dict[str, int]:
    """Byte-level BPE's character -> byte (GPT-2's table: printable Latin-1 stands for itself, the rest from U+0100)."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in itself}
    for number, byte in enumerate(sorted(set(range(256)) - set(itself))):
        table[chr(256 + number)] = byte
    return table


def _spell(name: str, byte_of: Mapping[str, int]) -> bytes:
    """The bytes that merges would have to make to reach a special token's entry; empty if they never can."""
    return bytes(byte_of[one] for one in name) if all(one in byte_of for one in name) else b""


def _check(options: TrainOptions) -> None:
    if options.pattern not in PATTERNS:
        raise InputError(f"--pattern {options.pattern!r} is not known", f"choose one of {', '.join(PATTERNS)}")
    least = 256 + len(options.special)
    if options.vocab_size < least:
        raise InputError(f"--vocab-size {options.vocab_size} is too small", f"bytes and special tokens take {least}")
    ids = list(options.special.values())
    if len(set(ids)) < len(ids) or not all(0 <= token < options.vocab_size for token in ids):
        raise InputError(
            f"special token ids {ids} must differ and lie in 0 .. {options.vocab_size - 1}", "mend --special NAME=ID"
        )


def _assemble(merges: Merges, specials: Sequence[str], options: TrainOptions) -> Tokenizer:
    """The `tokenizers` object: special tokens at their ids, all others in the ids that are left, in order."""
    character = character_of_byte()
    names = [*specials, *("".join(character[byte] for byte in token) for token in merges.tokens[len(specials) :])]
    total = max(len(names), 1 + max(options.special.values(), default=-1))
    taken = set(options.special.values())
    free = (token for token in range(total) if token not in taken)
    vocab = {name: options.special[name] if name in options.special else next(free) for name in names}
    pairs = [(names[left], names[right]) for left, right in merges.pairs.tolist()]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizer(options.pattern)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in specials])
    return tokenizer
