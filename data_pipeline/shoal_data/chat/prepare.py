"""Files of conversations to a folder of packed samples, whole or not at all.

All conversations are held in memory, 5 bytes a token, since any may share a sample with any other; and so is the file
that is made of them: 30 bytes a token in all, at the end.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.errors import UserError
from shoal_data.arrow import write_batches
from shoal_data.chat.conversations import Conversation, NoConversationError, conversation_of
from shoal_data.chat.packing import pack
from shoal_data.chat.rows import READ, rows_of
from shoal_data.chat.samples import IGNORED, MANIFEST, SAMPLES, ChatManifest, digest_of
from shoal_data.chat.template import ChatTokenizer, Encoded
from shoal_data.files import sweep_temporary, write_json, write_lines
from shoal_data.jobs.claim import FORMAT, belongs, check_out, claim, difference
from shoal_data.jobs.lock import held
from shoal_data.place import Place
from shoal_data.progress import Count
from shoal_data.sources.causes import common_causes
from shoal_data.sources.columns import Quarantined
from shoal_data.sources.dataset_folder import MAPPED
from shoal_data.sources.documents import in_runs
from shoal_data.sources.formats import format_of
from shoal_data.sources.gather import check_apart, gather
from shoal_data.sources.parts import Part, Piece

__all__ = ["ChatOptions", "prepare"]

_AT_ONCE = 512  # conversations that are encoded together


@dataclass(frozen=True)
class ChatOptions:
    """What a folder of packed samples is made with; recorded in its manifest.

    Attributes:
        seq_len: tokens of a sample at most.
        too_long: what becomes of a conversation of more: `drop` it, or `truncate` it at the end.
        answers: of a conversation, predict `all` answers or the `last`.
        plain: prompt and completion that are text are taken as they stand, without the chat template.
        template: file with another chat template than the tokenizer's.
        strict: a bad row is an error instead of a line in quarantine.jsonl.
        split: which split of a folder that has several.
    """

    seq_len: int
    too_long: str = "drop"
    answers: str = "all"
    plain: bool = False
    template: str = ""
    strict: bool = False
    split: str | None = None

    def check(self) -> None:
        """Raises UserError on a setting out of range."""
        if not 2 <= self.seq_len <= 1 << 24:
            raise UserError(
                f"--seq-len {self.seq_len}: no length of samples", "choose what the model takes, such as 4096"
            )
        for name, known in (("too_long", ("drop", "truncate")), ("answers", ("all", "last"))):
            if getattr(self, name) not in known:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}", f"choose {' or '.join(known)}")


def prepare(inputs: Sequence[str], tokenizer: str, out: str, options: ChatOptions) -> ChatManifest:
    """Encode and pack the conversations in the files that the globs `inputs` name, into the folder `out`.

    Run again after it finished it does nothing; after it was killed, or a file was lost or damaged, it does it all.

    Raises:
        UserError: nothing matches; a file of another format; the tokenizer or its template cannot be used; `out` holds
            something else; no conversation is left, or (strict) a bad row.
        StoreError: a store did not give what it holds.
    """
    options.check()
    folder = check_out(out)
    check_apart(inputs, out)
    pieces = _pieces(inputs, options.split)
    chat = ChatTokenizer(tokenizer, options.template, options.answers, options.plain)
    parts = [Part(at, "", (piece,)).to_json() for at, piece in enumerate(pieces)]
    settings = {**asdict(options), "template": chat.template_digest}
    plan = {"format": FORMAT, "tokenizer": chat.digest, "options": settings, "parts": parts}
    job = json.loads(json.dumps(plan))
    if (finished := _finished(folder, job)) is not None:
        return finished
    with held(folder):
        claim(folder, job, [MANIFEST, SAMPLES])
        for place in (folder, folder / "job"):
            sweep_temporary(place)
        (folder / MANIFEST).unlink(missing_ok=True)
        taken = _Taken(options)
        with Count("conversations", "rows") as count:
            for at, piece in enumerate(pieces):
                taken.take(at, piece, chat, count.advance)
        return _write(folder, pieces, chat, settings, taken)


def _pieces(inputs: Sequence[str], split: str | None) -> list[Piece]:
    with Count("planning", "names") as named:
        files = [file for _, file in gather(inputs, named.advance, split)]
    kinds = [file.format or format_of(file.path) for file in files]
    for file, kind in zip(files, kinds, strict=True):
        if kind == MAPPED:
            raise UserError(
                f"{file.path}: a dataset whose rows this file picks, which is not read for conversations",
                "save it again: dataset.flatten_indices().save_to_disk(FOLDER)",
            )
        if kind not in READ:
            raise UserError(
                f"{file.path}: conversations are read from JSON lines, Parquet and Arrow, not from other text",
                "name such files, or a folder that `datasets` saved",
            )
    return [Piece(file.path, kind, 0, 0, 0, file.size, file.stamp) for file, kind in zip(files, kinds, strict=True)]


def _finished(folder: Place, job: dict[str, object]) -> ChatManifest | None:
    """The manifest, if `job` has been done and all of its files stand."""
    if not (belongs(folder) and (folder / MANIFEST).exists()):
        return None
    try:
        if difference(json.loads((folder / "job" / "job.json").read_bytes()), job):
            return None
        return ChatManifest.read(folder)
    except UserError as error:
        print(f"{error.problem}: it is written anew", file=sys.stderr)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # job.json is damaged, as `claim` will say
    return None


@dataclass
class _Taken:
    """Conversations that are kept, as columns of one entry each, and what was left out."""

    options: ChatOptions
    ids: list[npt.NDArray[np.int32]] = field(default_factory=list)
    answer: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    file: list[int] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    quarantine: list[Quarantined] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def take(self, at: int, piece: Piece, chat: ChatTokenizer, said: Callable[[int], None]) -> None:
        """All of file `at`."""
        lost: list[Quarantined] = []
        for batch in _batches(rows_of(piece, lost), piece.path, lost):
            rows = [row for row, _ in batch]
            for row, found in zip(rows, chat.encode([one for _, one in batch]), strict=True):
                if isinstance(found, NoConversationError):
                    lost.append(Quarantined(piece.path, row, str(found)))
                else:
                    self._keep(at, row, found)
            said(len(batch))
            self._refuse(lost)
        self._refuse(lost)
        self.quarantine += in_runs(lost)

    def _keep(self, at: int, row: int, found: Encoded) -> None:
        room = self.options.seq_len
        ids, answer = found.ids, found.answer
        if len(ids) > room:
            ids, answer = ids[:room], answer[:room]
            if self.options.too_long == "drop" or not answer[1:].any():
                self.counts["dropped"] += 1
                self.counts["dropped_tokens"] += len(found.ids)
                return
            self.counts["truncated"] += 1
            self.counts["truncated_tokens"] += len(found.ids) - room
        self.counts["across"] += found.across
        self.ids.append(ids)
        self.answer.append(answer)
        self.file.append(at)
        self.row.append(row)

    def _refuse(self, lost: Sequence[Quarantined]) -> None:
        if lost and self.options.strict:
            first = min(lost, key=lambda entry: -1 if entry.row is None else entry.row)
            where = first.file if first.row is None else f"{first.file}, row {first.row} (from 0)"
            raise UserError(f"{where}: {first.cause}", "mend the input, or leave out --strict to quarantine it")


def _batches(
    rows: Iterator[tuple[int, dict[str, object]]], path: str, lost: list[Quarantined]
) -> Iterator[list[tuple[int, Conversation]]]:
    batch: list[tuple[int, Conversation]] = []
    for row, value in rows:
        try:
            batch.append((row, conversation_of(value)))
        except NoConversationError as error:
            lost.append(Quarantined(path, row, str(error)))
        if len(batch) == _AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _write(
    folder: Place, pieces: Sequence[Piece], chat: ChatTokenizer, settings: dict[str, Any], taken: _Taken
) -> ChatManifest:
    """Pack what is taken; samples, quarantine and, last of all, the manifest."""
    seq_len = taken.options.seq_len
    if not taken.ids:
        causes = common_causes(asdict(entry) for entry in taken.quarantine)
        if dropped := taken.counts["dropped"]:
            causes = "; ".join(filter(None, (causes, f"{dropped:,} of more than {seq_len:,} tokens")))
        raise UserError(
            f"{folder}: no conversation is left: {causes or 'the files are empty'}", "mend --input, or the options"
        )
    lengths = np.array([len(ids) for ids in taken.ids], np.int64)
    samples = pack(lengths, seq_len)
    order = np.concatenate([np.array(sample, np.int64) for sample in samples])
    sizes = np.array([len(sample) for sample in samples])
    ids = np.concatenate([taken.ids[at] for at in order])
    labels = np.where(np.concatenate([taken.answer[at] for at in order]), ids, np.int32(IGNORED))
    labels[np.cumsum(lengths[order]) - lengths[order]] = IGNORED  # nothing comes before the first of a conversation
    packed = np.concatenate(([0], np.cumsum(np.add.reduceat(lengths[order], np.cumsum(sizes) - sizes))))
    ends = np.concatenate(([0], np.cumsum(sizes)))

    def lists(values: npt.NDArray, offsets: npt.NDArray[np.int64]) -> pa.LargeListArray:
        return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values, pa.int32()))

    columns = {
        "input_ids": lists(ids, packed),
        "labels": lists(labels, packed),
        "lengths": lists(lengths[order], ends),
        "file": lists(np.array(taken.file)[order], ends),
        "row": pa.LargeListArray.from_arrays(pa.array(ends), pa.array(np.array(taken.row)[order], pa.int64())),
    }
    write_batches(folder / SAMPLES, [pa.record_batch(columns)])
    write_lines(folder / "quarantine.jsonl", [asdict(entry) for entry in taken.quarantine])
    manifest = ChatManifest(
        seq_len=seq_len,
        tokenizer=chat.digest,
        vocab_size=chat.size,
        inputs=[piece.path for piece in pieces],
        totals={
            "conversations": len(lengths),
            "samples": len(samples),
            "tokens": int(lengths.sum()),
            "answers": int((labels != IGNORED).sum()),
            **{name: taken.counts[name] for name in _COUNTED},
            "quarantined": len(taken.quarantine),
        },
        files={
            role: {"file": name, "sha256": digest_of(folder / name)}
            for role, name in (("samples", SAMPLES), ("quarantine", "quarantine.jsonl"))
        },
        options=settings,
        version=importlib.metadata.version("shoal"),
    )
    write_json(folder / MANIFEST, manifest.to_json())
    return manifest


_COUNTED = ("dropped", "dropped_tokens", "truncated", "truncated_tokens", "across")
