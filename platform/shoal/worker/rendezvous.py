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

import torch.distributed as dist

from shoal.protocol.orders import Order
from shoal.protocol.rendezvous import Answer, Closed, Meet, Met, Put, Question, Turn, Values, Want

__all__ = ["Keys", "OpenQuestion", "Rendezvous", "RingKeys"]


class OpenQuestion:
    """A question that the controller will answer; `answer` is None until then, and the text of a failure if it never
    will."""

    def __init__(self) -> None:
        self.answer: Values | Met | str | None = None
        self._answered = threading.Event()

    def settle(self, answer: Values | Met | str) -> None:
        self.answer = answer
        self._answered.set()

    def settled(self) -> bool:
        """Whether the answer is there for whoever takes it now: asked in a thread beside the one that settles."""
        return self._answered.is_set()

    def _result(self, timeout: float) -> Values | Met:
        if not self._answered.wait(timeout):
            raise dist.DistStoreError(f"no answer from the rendezvous within {timeout:.1f} s")
        if self.answer is None or isinstance(self.answer, str):
            raise dist.DistStoreError(str(self.answer))
        return self.answer

    def go(self, timeout: float) -> bool:
        """Of a meeting: whether all go on. Waits for the answer; raises DistError: there is none, or not in time."""
        answer = self._result(timeout)
        return isinstance(answer, Met) and answer.go

    def told(self) -> tuple[tuple[str, str], ...]:
        """Of a meeting: (key, value) of what was wanted there, if all go on."""
        return self.answer.values if isinstance(self.answer, Met) else ()

    def values(self, timeout: float) -> tuple[str, ...]:
        """Of values that were wanted. Waits for the answer; raises DistError: there is none, or not in time."""
        answer = self._result(timeout)
        return answer.values if isinstance(answer, Values) else ()


class Rendezvous:
    """Asks over a lifeline. `say` sends a question to the controller; false if there is none.

    `scope`: the membership that is spoken of from now on (`control.rendezvous`).
    """

    def __init__(self, say: Callable[[Question], bool]) -> None:
        self.scope = ""
        self._say = say
        self._ids = itertools.count()
        self._open: dict[int, OpenQuestion] = {}
        self._lock = threading.Lock()

    def put(self, scope: str, key: str, value: bytes) -> None:
        """Raises DistError: there is no controller."""
        if not self._say(Put(scope, key, base64.b64encode(value).decode())):
            raise dist.DistStoreError("the controller is gone")

    def want(self, scope: str, keys: Sequence[str]) -> OpenQuestion:
        """Ask for the values of all these keys. Any thread."""
        return self._ask(Want(scope, next(self._ids), tuple(keys)))

    def meet(
        self, key: str, size: int, keys: Sequence[str] = (), puts: Mapping[str, bytes] | None = None
    ) -> OpenQuestion:
        """Come to a meeting of `size` members; the answer says whether all go on, or none. Values are kept before
        (`puts`), and those of `keys` come with the answer if all go on."""
        kept = tuple((key, base64.b64encode(value).decode()) for key, value in (puts or {}).items())
        return self._ask(Meet(self.scope, next(self._ids), key, size, tuple(keys), kept))

    def turn(self, key: str, size: int) -> OpenQuestion:
        """Turn round at a meeting, unless all have come; the same answer."""
        return self._ask(Turn(self.scope, next(self._ids), key, size))

    def _ask(self, question: Want | Meet | Turn) -> OpenQuestion:
        asked = OpenQuestion()
        with self._lock:
            self._open[question.id] = asked
        if not self._say(question):
            self._settle(question.id, "the controller is gone")
        return asked

    def forget(self, asked: OpenQuestion) -> None:
        """Nobody waits for its answer any more."""
        with self._lock:
            self._open = {id: other for id, other in self._open.items() if other is not asked}

    def heard(self, order: Order) -> bool:
        """In the link's thread: whether this was an answer."""
        if not isinstance(order, Answer):
            return False
        self._settle(order.id, "this membership is over" if isinstance(order, Closed) else order)
        return True

    def lost(self) -> None:
        """In the link's threads: the controller that was asked is gone; no question of its time will be answered."""
        with self._lock:
            left, self._open = self._open, {}
        for asked in left.values():
            asked.settle("the controller is gone")

    def _settle(self, id: int, answer: Values | Met | str) -> None:
        with self._lock:
            asked = self._open.pop(id, None)
        if asked is not None:
            asked.settle(answer)


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
        """What is known here: keys are waited for, and whoever looks for one before finds none."""
        return all(key in self._known for key in keys)

    def set_timeout(self, timeout: timedelta) -> None:
        self._timeout = timeout.total_seconds()

    def _fetch(self, keys: Sequence[str], timeout: timedelta | None) -> None:
        if not keys:
            return
        seconds = self._timeout if timeout is None else timeout.total_seconds()
        asked = self._rendezvous.want(self._scope, keys)
        try:
            found = asked.values(seconds)
        finally:
            self._rendezvous.forget(asked)
        self._learn(keys, found)

    def _learn(self, keys: Sequence[str], values: Sequence[str]) -> None:
        self._known.update(zip(keys, map(base64.b64decode, values), strict=True))


class RingKeys(Keys):
    """The same for groups that connect when their members first speak. Members tell what each says of itself, and learn
    their neighbours' addresses, where they meet: `introduction`, `learn`; others are asked for when needed."""

    def __init__(self, rendezvous: Rendezvous, timeout: float) -> None:
        super().__init__(rendezvous, timeout)
        self._mine: dict[str, bytes] = {}

    def set(self, key: str, value: str | bytes) -> None:
        self._mine[key] = value.encode() if isinstance(value, str) else bytes(value)
        self._said.append(self._mine[key])

    def introduction(self, groups: Mapping[str, tuple[int, int]]) -> tuple[list[str], dict[str, bytes]]:
        """Keys that this worker wants to know, and what it says of itself. `groups`: its (rank, size) in each; gloo
        names an address by its group and ends with the rank."""
        ahead: list[str] = []
        for key in self._mine:
            head, _, last = key.rpartition("/")
            rank, size = groups[head.removesuffix("/0")]
            assert last == str(rank), f"gloo does not name its addresses by rank any more: {key}"
            ahead += sorted({f"{head}/{(rank + step) % size}" for step in (1, -1)})
        return ahead, self._mine

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        super().wait(keys)  # a group has a longer timeout; but whoever is in it has told all when it met the others

    def learn(self, told: Sequence[tuple[str, str]]) -> None:
        """Values of some keys are known."""
        self._learn([key for key, _ in told], [value for _, value in told])
