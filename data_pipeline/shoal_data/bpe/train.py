"""Training a byte-level BPE tokenizer on any amount of text: counted in parallel, merged once."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models

from shoal_core.errors import UserError
from shoal_data.arrow import text_buffers
from shoal_data.bpe.compile import compile_loops
from shoal_data.bpe.count_job import count_words, forget, has_words, quarantined
from shoal_data.bpe.merges import Merges, learn_merges
from shoal_data.bpe.special_names import check_special
from shoal_data.files import sweep_temporary, write_json, write_lines, write_whole
from shoal_data.jobs.claim import FORMAT, as_recorded, check_out, claim
from shoal_data.jobs.imports import import_early
from shoal_data.jobs.lock import held
from shoal_data.jobs.session import RaySession
from shoal_data.jobs.tasks import use_ray
from shoal_data.place import Place
from shoal_data.sources.causes import common_causes
from shoal_data.sources.gather import check_apart
from shoal_data.sources.parts import Part, plan_parts
from shoal_data.tokenizer.byte_level import byte_of_character, character_of_byte, spell
from shoal_data.tokenizer.patterns import PATTERNS, pre_tokenizer
from shoal_data.tokenizer.special import BOS, EOS, SPECIAL_TOKENS

__all__ = ["TrainOptions", "byte_alphabet", "train"]

_MOST_ENTRIES = 1 << 24  # of a vocabulary: many times what anybody trains


@dataclass(frozen=True)
class TrainOptions:
    """How a tokenizer is trained.

    Attributes:
        vocab_size: entries of the vocabulary, special tokens and the 256 bytes included.
        column: column or field that holds the text.
        join: what is put between the strings of a list, where the column holds lists.
        split: which of the datasets of a folder that `datasets` wrote, where there are several.
        pattern: pre-tokenizer, a key of `shoal_data.tokenizer.patterns.PATTERNS`.
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
    join: str | None = None
    split: str | None = None


def train(inputs: Sequence[str], out: str | Path, options: TrainOptions) -> Place:
    """Train on the files that the globs `inputs` name; write `tokenizer.json`, its config and its card into `out`.

    What cannot be read is named in `quarantine.jsonl` and left out.

    The merges are those of `tokenizers`' BpeTrainer on the same text. A finished tokenizer with the same inputs and
    options is left as it is; an unfinished one goes on from the parts that were counted.

    Returns:
        where `tokenizer.json` is.

    Raises:
        UserError: nothing matches, a setting is out of range, `out` holds other things, another job's work or a job
            that runs, there is nothing to learn from, or nothing can be written.
    """
    _check(options)
    folder = check_out(out)
    check_apart(inputs, str(out))
    import_early()
    with RaySession() as session:  # a cluster that is named is joined meanwhile
        parts = plan_parts(inputs, options.column, options.part_bytes, join=options.join, split=options.split)
        path = folder / "tokenizer.json"
        if not path.exists():
            use_ray(session, parts, wait=False)
        plan = {"format": FORMAT, "options": as_recorded(options), "parts": [part.to_json() for part in parts]}
        with held(folder):
            claim(folder, json.loads(json.dumps(plan)), ["tokenizer.json", "job/counts-*.arrow"])
            if not path.exists():
                _train(folder, parts, options, session)
            return path


def _train(folder: Place, parts: Sequence[Part], options: TrainOptions, session: RaySession) -> None:
    """Count, merge and write; `tokenizer.json` comes last."""
    job = folder / "job"
    sweep_temporary(folder)
    sweep_temporary(job)
    compile_loops()  # once, here, and not in every worker
    column, join, pattern = options.column, options.join, options.pattern
    words, counts = count_words(parts, column, join, pattern, job, options.min_word_count, session)
    left_out = quarantined(parts, job)
    write_lines(folder / "quarantine.jsonl", left_out)
    if not len(words):
        problem = _no_words(options, left_out, rare=has_words(parts, job))
        forget(job)
        raise problem
    if left_out:
        _warn(f"left out: {common_causes(left_out)}; {folder / 'quarantine.jsonl'} has each of them")
    specials = sorted(options.special, key=lambda name: options.special[name])
    alphabet, byte_ids = byte_alphabet(specials)
    with ThreadPoolExecutor(1) as beside:  # the merge loop leaves the other cores idle
        learning = beside.submit(
            learn_merges, words, counts, alphabet, byte_ids, options.vocab_size, options.min_frequency
        )
        from shoal_data.bpe.card import read_sample, write_card  # brings a plotting library, slowly

        sample = read_sample(parts, options.column, options.join)
        merges = learning.result()
    _check_merges(merges, options, len(alphabet))
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
    write_whole(folder / "tokenizer.json", content)
    forget(job)


def _no_words(options: TrainOptions, left_out: Sequence[Mapping[str, Any]], *, rare: bool) -> UserError:
    """Why there is nothing to learn from."""
    if rare:
        return UserError(
            f"--min-word-count {options.min_word_count}: every word is rarer, so there is nothing to learn from",
            "choose a smaller one, or train on more text",
        )
    causes = common_causes(left_out) or "all files are empty"
    return UserError(
        f"no document could be read, so there is nothing to learn from: {causes}", "mend --input or --column"
    )


def _check_merges(merges: Merges, options: TrainOptions, first: int) -> None:
    """Say it if fewer merges were found than were asked for.

    Raises:
        UserError: none was found at all.
    """
    found = len(merges.tokens)
    if found >= options.vocab_size:
        return
    least = f" {options.min_frequency} times" if options.min_frequency > 1 else ""
    if found == first:
        raise UserError(
            f"no two neighbours occur{least} in this text, so there is nothing to learn",
            "train on more text, or with a smaller --min-frequency",
        )
    _warn(
        f"the vocabulary has {found:,} entries where {options.vocab_size:,} were asked for: no pair is left that occurs"
        f"{least} in this text"
    )


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def byte_alphabet(specials: Sequence[str]) -> tuple[list[bytes], np.ndarray]:
    """The tokens before the first merge, by id, and the id of each byte: specials first, then the bytes in the order
    of the characters that stand for them in byte-level BPE."""
    byte_of = byte_of_character()
    ids = {name: at for at, name in enumerate(specials)}
    tokens = [spell(name) for name in specials]
    for character in sorted(byte_of):
        if character not in ids:
            ids[character] = len(tokens)
            tokens.append(bytes([byte_of[character]]))
    byte_ids = np.zeros(256, np.int32)
    for character, byte in byte_of.items():
        byte_ids[byte] = ids[character]
    return tokens, byte_ids


def _check(options: TrainOptions) -> None:
    if options.pattern not in PATTERNS:
        raise UserError(f"--pattern {options.pattern!r} is not known", f"choose one of {', '.join(PATTERNS)}")
    least = 256 + len(options.special)
    if options.vocab_size < least:
        raise UserError(f"--vocab-size {options.vocab_size} is too small", f"bytes and special tokens take {least}")
    if options.vocab_size > _MOST_ENTRIES:
        raise UserError(f"--vocab-size {options.vocab_size} is too large", f"choose {_MOST_ENTRIES} at most")
    for name in ("min_frequency", "min_word_count", "part_bytes"):
        if getattr(options, name) < 0:
            option = name.replace("_", "-")
            raise UserError(f"--{option} {getattr(options, name)} is below 0", "choose 0 or more")
    check_special(options.special, options.pattern, options.vocab_size)


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
