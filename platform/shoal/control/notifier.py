"""Tells people outside what happens to a run (`decisions.notices` says what and when), and never holds it up.

Each hook tells from a thread of its own. The journal says what was told (`notified`), so that a controller that takes
over goes on there: what was told in the second before one died is told once too often, and nothing is left out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.config import Job
from shoal.decisions.notices import Gathered, Message, checkpoint_overdue, told_before
from shoal.hooks import Hook, HookFailed, hooks_of
from shoal.record.masking import masked
from shoal.record.sentences import count, sentence
from shoal_core.errors import UserError

__all__ = ["Notifier", "words_of"]

logger = logging.getLogger(__name__)
SHOWN = 5
"""Sentences of a message; of the others it says how many."""
PERIOD = 1.0
"""Seconds between two looks."""


def words_of(run: str, message: Message) -> str:
    """A message for people: a sentence, or of many how often each thing was and the newest sentences."""
    told = [text for event in message.events if (text := sentence(event)) is not None]
    total = sum(message.counts.values())
    if total == 1 and told:
        return f"{run}: {told[0]}"
    counted = ", ".join(f"{topic.replace('_', ' ')} {number} x" for topic, number in message.counts.items())
    shown = told[-SHOWN:]
    before = [f"... {total - len(shown)} before"] if total > len(shown) else []
    return "\n".join([f"{run}: {counted}", *before, *shown])


@dataclass
class Channel:
    """A hook, what it has to tell, and how its last telling went. `busy`: the thread that tells now."""

    hook: Hook
    gathered: Gathered
    busy: threading.Thread | None = None
    telling: Message | None = None
    problem: str | None = None
    complained: bool = False
    """That it fails is on record."""


@dataclass
class Progress:
    """Of the session, by the journal and the steps. Times are monotonic."""

    since: float
    committed: int
    saved: int
    saved_at: float
    stood: bool = False
    """That there is none is on record."""
    overdue: bool = False
    """That a checkpoint is overdue is on record."""


class Notifier:
    """Of the job's `notify`; without it nothing is told and nothing watched. `start`: committed steps that the session
    begins with; `journal`: writes a line of the journal, and gives it to `event`; `hooks`: by default the job's."""

    def __init__(
        self,
        job: Job,
        start: int,
        journal: Callable[..., Any],
        hooks: Sequence[Hook] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job, self._journal, self._clock = job, journal, clock
        self._settings = job.notify
        self._channels: list[Channel] = []
        now = clock()
        self._progress = Progress(now, start, start, now)
        if self._settings is None:
            return
        topics, wait = frozenset(self._settings.on), self._settings.wait_s
        try:
            found = hooks_of(self._settings) if hooks is None else hooks
        except UserError as error:  # checked before the start: another node's environment, perhaps
            logger.warning("nobody will be told of what happens to the run: %s", error.problem)
            return
        self._channels = [Channel(hook, Gathered(topics, wait)) for hook in found]

    def again(self, events: Sequence[Mapping[str, Any]], committed: int) -> None:
        """Another controller had the run before, and wrote this journal; so many steps are committed."""
        self._progress.committed = committed
        session, told = told_before(events)
        for channel in self._channels:
            channel.gathered.told(told.get(channel.hook.name, 0))
        for event in session:
            self.event(event)

    # ---- what is heard: the lines of the record, in the event loop

    def event(self, event: Mapping[str, Any]) -> None:
        """Take a line of the journal."""
        if event["kind"] == "checkpoint":
            progress = self._progress
            progress.saved, progress.saved_at, progress.overdue = int(event["step"]), self._clock(), False
        for channel in self._channels:
            channel.gathered.take(event)

    def step(self, record: Mapping[str, Any]) -> None:
        """Take a line of `steps.jsonl`."""
        progress = self._progress
        progress.since, progress.committed, progress.stood = self._clock(), int(record["step"]) + 1, False

    # ---- what is done

    async def look(self) -> float:
        """Watch the clock, note how telling went, and tell what is due; returns the seconds until the next look."""
        if self._channels:
            now = self._clock()
            self._watch(now)
            for channel in self._channels:
                self._note(channel, now)
                if channel.busy is None and channel.gathered.due(now):
                    self._begin(channel, now)
        return PERIOD

    def _watch(self, now: float) -> None:
        assert self._settings is not None
        progress, limit = self._progress, self._settings.no_progress_s
        if not progress.stood and now - progress.since > limit:
            progress.stood = True
            self._journal("no_progress", step=progress.committed, seconds=round(now - progress.since, 1))
        steps, seconds = progress.committed - progress.saved, now - progress.saved_at
        every, allowed = self._job.checkpoint.every, self._settings.checkpoint_overdue_s
        if not progress.overdue and checkpoint_overdue(every, allowed, steps, seconds):
            progress.overdue = True
            self._journal("checkpoint_overdue", step=progress.committed, last=progress.saved, seconds=round(seconds, 1))

    def _begin(self, channel: Channel, now: float) -> None:
        message = channel.gathered.message(now)
        if message is None:
            return
        said = {
            "run_id": self._job.run_id,
            "text": words_of(str(self._job.run_id), message),
            "counts": dict(message.counts),
            "events": [masked(dict(event)) | {"sentence": sentence(event)} for event in message.events],
        }
        channel.telling, channel.problem = message, None
        channel.busy = threading.Thread(target=_tell, args=(channel, said), daemon=True, name=channel.hook.name)
        channel.busy.start()

    def _note(self, channel: Channel, now: float) -> None:
        """Put on record how a telling went that is over."""
        message = channel.telling
        if message is None or channel.busy is None or channel.busy.is_alive():
            return
        channel.busy = channel.telling = None
        name = channel.hook.name
        if channel.problem is None:
            channel.gathered.done()
            channel.complained = False
            self._journal("notified", channel=name, events=message.number, counts=dict(message.counts))
            return
        channel.gathered.failed(message, now)
        if not channel.complained:
            channel.complained = True
            logger.warning(
                "the %s of notify failed: %s; training goes on, and it is tried again", name, channel.problem
            )
            self._journal("notify_failed", channel=name, reason=channel.problem)

    def close(self) -> None:
        """Tell what is left, each hook once more, for at most twice `notify.timeout_s` in all. The record is closed by
        then; any thread."""
        if self._settings is None:
            return
        deadline = time.monotonic() + 2 * self._settings.timeout_s
        self._journal = lambda kind, **fields: None
        for last in (False, True):
            for channel in self._channels:
                if channel.busy is not None:
                    channel.busy.join(max(0.0, deadline - time.monotonic()))
                self._note(channel, self._clock())
                if channel.busy is None and not last:
                    self._begin(channel, self._clock())
        left = {c.hook.name: n for c in self._channels if (n := c.gathered.waiting + (c.telling is not None))}
        for name, number in left.items():
            logger.warning("the %s of notify did not take the last %s", name, count(number, "thing"))


def _tell(channel: Channel, said: Mapping[str, Any]) -> None:
    try:
        channel.hook.tell(said)
    except HookFailed as error:
        channel.problem = str(error)
    except Exception as error:  # whatever it is, it is no matter of the run's
        channel.problem = type(error).__name__
