"""A worker's side of the rendezvous: meetings, and the keys by which a group's members find each other. Both travel
over the lifeline, so nobody takes part whom the controller does not know.

Answers arrive in the link's receiving thread and wake whoever asked; none of them passes through the inbox, where it
would be taken for an order.
"""

from __future__ import annotations

import base64
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

__all__ = ["Keys", "Question", "Rendezvous"]


class Question:
    """One that the controller will answer; `answer` is None until then, and the text of a failure if it never will."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] | str | None = None
        self._answered = threading.Event()

    def settle(self, answer: dict[str, Any] | str) -> None:
        self.answer = answer
        self._answered.set()

    def settled(self) -> bool:
        return self.answer is not None

    def result(self, timeout: float) -> dict[str, Any]:
        """The answer, which is waited for.

        Raises:
            DistError: there is none, or not in time.
        """
        if not self._answered.wait(timeout):
            raise dist.DistStoreError(f"no answer from the rendezvous within {timeout:.1f} s")
        if not isinstance(self.answer, dict):
            raise dist.DistStoreError(str(self.answer))
        return self.answer


class Rendezvous:
    """Asks over a lifeline. `say` sends a message to the controller; false if there is none.

    `scope`: the membership that is spoken of from now on (`control.rendezvous`).
    """

    def __init__(self, say: Callable[[dict[str, Any]], bool]) -> None:
        self.scope = ""
        self._say = say
        self._ids = itertools.count()
        self._open: dict[int, Question] = {}
        self._lock = threading.Lock()

    def put(self, scope: str, key: str, value: bytes) -> None:
        """Raises DistError: there is no controller."""
        coded = base64.b64encode(value).decode()
        if not self._say({"type": "put", "scope": scope, "key": key, "value": coded}):
            raise dist.DistStoreError("the controller is gone")

    def ask(self, message: Mapping[str, Any]) -> Question:
        """Any thread."""
        id, question = next(self._ids), Question()
        with self._lock:
            self._open[id] = question
        if not self._say({**message, "id": id}):
            self._settle(id, "the controller is gone")
        return question

    def forget(self, question: Question) -> None:
        """Nobody waits for its answer any more."""
        with self._lock:
            self._open = {id: other for id, other in self._open.items() if other is not question}

    def meet(self, key: str, size: int) -> Question:
        """Come to a meeting of `size` members; the answer's `go` says whether all go on, or none."""
        return self.ask({"type": "meet", "scope": self.scope, "key": key, "size": size})

    def turn(self, key: str, size: int) -> Question:
        """Turn round at a meeting, unless all have come; the same answer."""
        return self.ask({"type": "turn", "scope": self.scope, "key": key, "size": size})

    def heard(self, order: Mapping[str, Any]) -> bool:
        """In the link's thread: whether this was an answer."""
        if order["type"] not in ("values", "met", "closed"):
            return False
        self._settle(order["id"], "this membership is over" if order["type"] == "closed" else dict(order))
        return True

    def lost(self) -> None:
        """In the link's threads: the controller that was asked is gone; no question of its time will be answered."""
        with self._lock:
            left, self._open = self._open, {}
        for question in left.values():
            question.settle("the controller is gone")

    def _settle(self, id: int, answer: dict[str, Any] | str) -> None:
        with self._lock:
            question = self._open.pop(id, None)
        if question is not None:
            question.settle(answer)


class Keys(dist.Store):
    """What torch is given for a store: the keys of the membership that the rendezvous speaks of now.

    It does what gloo needs (set, get, wait); torch calls it in whatever thread builds a group. `timeout`: seconds.
    Failures are DistErrors.
    """

    def __init__(self, rendezvous: Rendezvous, timeout: float) -> None:
        super().__init__()
        self._rendezvous, self._scope, self._timeout = rendezvous, rendezvous.scope, timeout
        self._known: dict[str, bytes] = {}
        self._said: list[bytes] = []

    def mention(self, text: bytes) -> bool:
        """Whether a value that was exchanged contains this."""
        return any(text in value for value in [*self._said, *self._known.values()])

    def set(self, key: str, value: str | bytes) -> None:
        self._said.append(value.encode() if isinstance(value, str) else bytes(value))
        self._rendezvous.put(self._scope, key, self._said[-1])

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._known[key]

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        self._fetch([key for key in keys if key not in self._known], timeout)

    def check(self, keys: Sequence[str]) -> bool:
        raise NotImplementedError("nobody looks for keys: they are waited for")

    def set_timeout(self, timeout: timedelta) -> None:
        self._timeout = timeout.total_seconds()

    def _fetch(self, keys: Sequence[str], timeout: timedelta | None) -> None:
        if not keys:
            return
        seconds = self._timeout if timeout is None else timeout.total_seconds()
        question = self._rendezvous.ask({"type": "want", "scope": self._scope, "keys": list(keys)})
        try:
            found = question.result(seconds)["values"]
        finally:
            self._rendezvous.forget(question)
        self._known.update(zip(keys, (base64.b64decode(value) for value in found), strict=True))
