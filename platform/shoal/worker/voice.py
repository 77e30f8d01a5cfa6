"""What a worker says of itself."""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.protocol.said import (
    Ack,
    Acked,
    Adopted,
    Beat,
    Checkpointed,
    Committed,
    CopyHeld,
    Damage,
    Evaluated,
    Failed,
    Finished,
    Noted,
    NotSaved,
    Number,
    Phase,
    Ready,
    Where,
)
from shoal.record.masking import mask_text
from shoal.worker.calls import Calls
from shoal.worker.faults import ENDS, meaning, memory_figures
from shoal.worker.link import Link
from shoal.worker.step import Commit, Step

__all__ = ["Voice"]

UNSAID = 8
"""Commits that are kept to be said: whoever should have said them may be cut off for a while before it is noticed."""


@dataclass
class Voice:
    """What the worker `name` says of itself: every message of `protocol.said` but its questions is made here.
    `audited`: takers of samples are told; `generation`: the newest it has taken part in.

    Every worker knows what a step did, but one word of each cell is enough: its first worker says each commit. The
    others keep their last ones, and say them as soon as the generation is stopped and before they leave it, since
    whoever would have said it may be dead. What is committed after the stop everybody says at once: a worker that
    nobody knows to be ahead may wait for ever, inside its cell, for one that was stopped behind it.
    """

    name: str
    link: Link
    audited: bool
    calls: Calls
    phase: Phase = Phase.SPARE
    generation: int = -1
    unsaid: deque[Committed] = field(default_factory=lambda: deque(maxlen=UNSAID))
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Of `unsaid`, which the link's thread says too."""

    def beat(self, step: Step | None) -> Beat:
        """The sign of life of a worker with this part in its cell's steps."""
        phase = step.phase if step is not None and self.phase is Phase.INSIDE else self.phase
        return Beat(phase, -1 if step is None else step.steps)

    def ready(self, cell: int, attempt: int, seconds: float = 0.0, size: int = 0, held: int = 0) -> None:
        """`seconds`, `size`, `held`: see `said.Ready`."""
        self.phase = Phase.READY
        self.link.send(Ready(self.name, cell, attempt, seconds, size, held))

    def entered(self, generation: int) -> None:
        """A generation begins for this worker: all that was committed before is known."""
        self.phase, self.generation = Phase.JOINING, generation
        with self.lock:
            self.unsaid.clear()

    def adopted(self, seconds: float) -> None:
        """Of those who had state copied to or from them."""
        self.link.send(Adopted(self.name, self.generation, seconds))

    def committed(self, commit: Commit, step: Step) -> None:
        """Say at once that a step is committed, or keep the word."""
        speaks = step.member.rank == 0
        first = speaks and step.standing.in_first_cell
        message = Committed(
            self.name,
            self.generation,
            commit.steps,
            commit.seconds,
            len(step.standing.cells),
            commit.metrics,
            tuple(commit.stats),
            commit.norm_sq,
            tuple(commit.takers) if self.audited else (),
            step.standing.crew,
            tuple(cell for cell in step.standing.cells for _ in range(step.member.size)) if self.audited else (),
            tuple(commit.pace) if first else (),
            commit.rolled_back,
            tuple(commit.checksums) if first else (),
        )
        with self.lock:
            if speaks or self.calls.stopped >= self.generation:
                self.link.send(message)
            else:
                self.unsaid.append(message)
        for note in step.shard.notes():
            self.noted(step.steps - 1, note)

    def noted(self, step: int, note: Mapping[str, Any]) -> None:
        """What the journal should know of a step: a line of the note's `kind`."""
        fields = {key: value for key, value in note.items() if key not in ("kind", "step")}
        self.link.send(Noted(self.name, self.generation, step, str(note["kind"]), fields))

    def evaluated(self, steps: int, metrics: Mapping[str, Number | None]) -> None:
        self.link.send(Evaluated(self.name, self.generation, steps, metrics))

    def finished(self) -> None:
        self.phase = Phase.FINISHED
        self.link.send(Finished(self.name, self.generation))

    def acked(self, generation: int, ack: Ack, known: int = -1) -> None:
        """Answer a stop. `known`: committed steps that the controller knows of."""
        self.phase = Phase.SPARE if ack.out else Phase.STOPPED
        self.settle(known)
        self.link.send(Acked(self.name, generation, ack))

    def broke(self, error: Exception) -> None:
        """Tell what the training code met, unless this process does not go on after it: then that is told as it ends
        (`main`), and the error is raised again."""
        if meaning(error) in ENDS:
            raise error
        self.failed("code", error)

    def failed(self, where: Where, error: BaseException, attempt: int = -1, damaged: Damage | None = None) -> None:
        """Tell what happened, credentials in it masked: it goes on record. The controller decides what follows."""
        self.phase = Phase.FAILED
        self.settle(-1)
        trace = "".join(traceback.format_exception(error)) if where == "code" else ""
        text = memory_figures(str(error)) if where == "memory" else str(error)
        message = f"{type(error).__name__}: {'; '.join(line.strip() for line in text.splitlines())}"
        self.link.send(
            Failed(self.name, self.generation, where, mask_text(message), attempt, mask_text(trace), damaged)
        )

    def settle(self, known: int) -> None:
        """Say the commits that were kept and that the controller may not know of. Any thread."""
        with self.lock:
            for message in self.unsaid:
                if message.steps > known:
                    self.link.send(message)
            self.unsaid.clear()

    def held(self, rank: int, steps: int, era: int, shape: int) -> None:
        """A copy has arrived whole. Any thread."""
        self.link.send(CopyHeld(self.name, rank, steps, era, shape))

    def saved(self, steps: int, address: str, seconds: float, size: int) -> None:
        """A checkpoint is whole. Any thread."""
        self.link.send(Checkpointed(steps, self.name, address, seconds, size))

    def not_saved(self, steps: int, reason: str, remedy: str) -> None:
        """A checkpoint never will be. Any thread."""
        self.link.send(NotSaved(steps, reason, self.name, remedy))
