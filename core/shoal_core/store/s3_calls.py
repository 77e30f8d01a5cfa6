"""Requests to S3, made until they are answered, refused for good, or out of time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from shoal_core.errors import StoreError
from shoal_core.s3_client import connect, found_now
from shoal_core.s3_errors import final_error, is_answer, refuses_caller, told

__all__ = ["CONNECTIONS", "Calls", "pause"]

Result = TypeVar("Result")

CONNECTIONS = 32
"""At most so many requests of one store at once."""
#: seconds for which a connection may be silent before the request is made anew
_PATIENCE = 20.0
#: how often a store that never answered is asked: its address is likelier wrong than the store down
_FIRST_ATTEMPTS = 2


def pause(attempt: int, chance: float) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 1 on); `chance`, from 0 to 1, keeps those apart who
    were turned away together.

    >>> pause(1, 1.0), pause(3, 0.0), pause(99, 1.0)
    (0.2, 0.4, 8.0)
    """
    return min(8.0, 0.1 * 2 ** min(attempt, 20)) * (0.5 + chance / 2)


class Calls:
    """A store's client, made when it is first needed.

    Args:
        address: the store's, for messages.
        endpoint, region: of the store, where the address names them; else from the environment.
        deadline: seconds after which a request that failed is not made again.
        sleep: called with the seconds between two attempts.
        clock: says the time in seconds.
    """

    def __init__(
        self,
        address: str,
        endpoint: str | None = None,
        region: str | None = None,
        deadline: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address, self._endpoint, self._region = address, endpoint, region
        self._deadline, self._sleep, self._clock = deadline, sleep, clock
        self._lock = threading.Lock()
        self._made: Any = None
        self._by: object = None
        """The credentials of what was made."""
        self._answered = False

    def client(self) -> Any:
        """The boto3 client.

        Raises:
            StoreError: there are no credentials, or settings of AWS that cannot be used.
        """
        with self._lock:
            if self._made is None:
                patience = min(_PATIENCE, self._deadline)
                self._by = found_now()
                self._made = connect(
                    self._address, CONNECTIONS, patience=patience, endpoint=self._endpoint, region=self._region
                )
            return self._made

    def ask(self, where: str, doing: str, request: Callable[[Any, int], Result]) -> Result:
        """What `request` returns, called with the client and the number of the attempt, from 1 on. Where credentials
        are refused that have been replaced since, it is made once more with those of now.

        Args:
            where: the object that it is about.
            doing: `reading`, `writing` or `deleting`.

        Raises:
            FileNotFoundError, EOFError: there is no such object, or it is shorter.
            StoreError: the store refuses, does not answer, or is busy for too long.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        client, begun, attempt, renewed = self.client(), self._clock(), 0, False
        while True:
            attempt += 1
            try:
                result = request(client, attempt)
            except (BotoCoreError, ClientError, OSError) as error:
                self._answered = self._answered or is_answer(error)
                if not renewed and refuses_caller(error) and self._outdated(client):
                    client, renewed = self.client(), True
                    continue
                if (final := final_error(error, where, again=self._answered, doing=doing)) is not None:
                    raise final from error
                if not self._answered and attempt >= _FIRST_ATTEMPTS:
                    raise StoreError(
                        f"{where}: nobody answers at {client.meta.endpoint_url} ({told(error)})",
                        "check AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3, AWS_DEFAULT_REGION, the address's options, "
                        "and this machine's network",
                    ) from error
                wait = pause(attempt, random.random())
                if self._clock() - begun + wait > self._deadline:
                    raise StoreError(
                        f"{where}: {doing} failed for {self._clock() - begun:.0f} s, {attempt} attempts "
                        f"({told(error)})",
                        "check the network and the object store; it is worth another try when it answers",
                    ) from error
                self._sleep(wait)
            else:
                self._answered = True
                return result

    def _outdated(self, client: Any) -> bool:
        """Whether there are other credentials by now than `client` has: then the next one is made with those."""
        with self._lock:
            if self._made is client and found_now() != self._by:
                self._made = None
            return self._made is not client
