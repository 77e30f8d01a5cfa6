"""What a run's steps should take, asked of its workload once for each shape of cells and put on record; training never
waits for it.

The first worker says what it computes on (`device` in the journal); the answer is made in a process of its own
(`foretell`) and is the line `predicted`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from shoal.config import Job
from shoal.control.foretell import Question
from shoal.decisions.state import State
from shoal_core.workload import Crew

__all__ = ["Forecast"]

PATIENCE = 120.0
"""Seconds that an answer may take."""
END = 30.0
"""Seconds that the end of a run waits for them: of a run that is over at once, on a machine that has much to do."""
PERIOD = 0.5
"""Seconds between two looks."""


class Forecast:
    """Listens to a run's journal, and writes into it by `journal`. `state`: what is known of the run."""

    def __init__(self, job: Job, state: Callable[[], State], journal: Callable[..., Any]) -> None:
        self._job, self._state, self._journal = job, state, journal
        self._asked: dict[int, Asked] = {}
        """By the number of the shape, until the answer is on record."""
        self._told = set[int]()

    def step(self, record: Mapping[str, Any]) -> None:
        """Of steps it takes nothing."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Take a line of the journal."""
        if event["kind"] == "device" and self._job.predict:
            self._ask(event)

    def again(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Go on where the controller before this one was, by the journal: what it asked and wrote no answer to is asked
        again."""
        asked = dict[int, Mapping[str, Any]]()
        for event in events:
            if event["kind"] == "run_started":
                asked.clear()
                self._told.clear()
            elif event["kind"] == "device":
                asked.setdefault(int(event["shape"]), event)
            elif event["kind"] == "predicted":
                self._told.add(int(event["shape"]))
        for event in asked.values():
            self._ask(event)

    def _ask(self, event: Mapping[str, Any]) -> None:
        number = int(event["shape"])
        if number in self._told or number in self._asked:
            return
        workers = self._state().workers
        held = Counter(workers[name].node for name in self._state().seats if name in workers)
        crew = Crew(
            workers=event["workers"], nodes=max(1, len(held)), slots=max(held.values(), default=1),
            device=event["device"], memory=event["memory"],
        )  # fmt: skip
        question = Question(self._job.workload, int(event["step"]), event["cells"], event["mesh"], crew)
        shape = {name: event[name] for name in ("shape", "cells", "workers", "device")}
        self._asked[number] = Asked(question, {**shape, "nodes": crew.nodes})

    async def look(self) -> float:
        """Put answers that came on record. Returns seconds until the next look."""
        self._put()
        return PERIOD

    def close(self) -> None:
        """The run ends: wait for answers that are on their way, a little, and say of the others that there is none."""
        until = time.monotonic() + END
        for asked in self._asked.values():
            asked.wait(max(0.0, until - time.monotonic()))
        self._put()
        for number, asked in list(self._asked.items()):
            asked.end()
            self._tell(number, asked, {"why": [f"it was not reckoned within {END:g} s of the run's end"]})

    def _put(self) -> None:
        for number, asked in list(self._asked.items()):
            if asked.answer is not None:
                self._tell(number, asked, asked.answer)

    def _tell(self, number: int, asked: Asked, figures: Mapping[str, Any]) -> None:
        del self._asked[number]
        self._told.add(number)
        self._journal("predicted", **asked.shape, figures=figures)


class Asked:
    """A question that is being answered; `answer`: None as long as it is."""

    def __init__(self, question: Question, shape: Mapping[str, Any]) -> None:
        self.shape = shape
        self.answer: dict[str, Any] | None = None
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._work, args=(question,), daemon=True, name="forecast")
        self._thread.start()

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)

    def end(self) -> None:
        """Nobody needs an answer any more."""
        if self._process is not None:
            self._process.kill()

    def _work(self, question: Question) -> None:
        try:
            self.answer = self._answered(question)
        except (OSError, ValueError) as error:
            self.answer = {"why": [f"it could not be reckoned ({type(error).__name__}: {error})"]}

    def _answered(self, question: Question) -> dict[str, Any]:
        process = self._process = subprocess.Popen(
            [sys.executable, "-m", "shoal.control.foretell"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={
                **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
            },
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(PATIENCE, process.kill)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(question.line())
            process.stdin.flush()
            said = process.stdout.read()
        finally:
            timer.cancel()
            process.kill()
            code = process.wait()
            process.stdout.close()
            with suppress(BrokenPipeError):  # it ended before it had read all
                process.stdin.close()
        if not said:
            return {"why": [f"the process that reckons it ended without an answer (exit code {code})"]}
        found: dict[str, Any] = json.loads(said)
        return found
