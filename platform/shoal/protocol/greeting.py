"""The first words on a lifeline. Both sides prove that they know the run's secret, which itself never crosses:

    controller  Challenge(version, nonce)
    worker      Hello(version, who it is and what it is doing, nonce, proof over all of it and the controller's nonce)
    controller  Welcome(proof over both nonces), or Refused(why) if the worker speaks another version

Nothing else is said to a stranger.
"""

from __future__ import annotations

import hmac
import json
import secrets
from dataclasses import asdict, dataclass
from typing import Any

from shoal.protocol.said import Phase
from shoal_core.mesh import Mesh

__all__ = [
    "GREETING_LIMIT",
    "GREETING_TIME",
    "VERSION",
    "Challenge",
    "Greeting",
    "Hello",
    "Refused",
    "Welcome",
    "hello",
    "knows",
    "matches",
    "nonce",
    "other_version",
    "proof",
]

VERSION = 5
"""Of the protocol, on lifelines and about copies; whoever speaks another is refused."""
GREETING_LIMIT, GREETING_TIME = 4096, 5.0
"""Of a greeting: longest line in bytes, and the seconds it may take."""


@dataclass(frozen=True)
class Greeting:
    """Who a worker is, and what it is doing (for a controller that came back).

    `home`: the (cell, rank) it was started for; `seat`: the one it sits on; `attempt`, `generation`: the newest it was
    in; `steps`: committed ones of its state; `copies`: where it keeps copies for others. -1 and None: nothing yet.
    `device`: the number of its own GPU on its node, if the cluster gave it one; `shape`, `mesh`: of the world that it
    stands in, as in `orders.Form`; `kept`: (number of the shape, steps, rank) of shards that it keeps of others.
    """

    worker: str
    node: str
    pid: int
    home: tuple[int, int] | None = None
    seat: tuple[int, int] | None = None
    attempt: int = -1
    generation: int = -1
    phase: Phase = Phase.SPARE
    steps: int = -1
    copies: tuple[str, int] | None = None
    device: str = ""
    shape: int = 0
    mesh: Mesh | None = None
    kept: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Challenge:
    version: int
    nonce: str


@dataclass(frozen=True)
class Hello:
    version: int
    greeting: Greeting
    nonce: str
    proof: str


@dataclass(frozen=True)
class Welcome:
    proof: str


@dataclass(frozen=True)
class Refused:
    reason: str


def nonce() -> str:
    return secrets.token_hex(16)


def proof(secret: str, *said: Any) -> str:
    """Of knowing a secret, good for exactly what is said (JSON), in hexadecimal."""
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hmac.new(secret.encode(), text.encode(), "sha256").hexdigest()


def matches(given: str, wanted: str) -> bool:
    """Whether a stranger's proof is the wanted one; takes as long whichever it is."""
    return hmac.compare_digest(given.encode(errors="replace"), wanted.encode())


def hello(secret: str, greeting: Greeting, challenge: str) -> Hello:
    """A worker's answer to a challenge (the controller's nonce)."""
    mine = nonce()
    return Hello(VERSION, greeting, mine, proof(secret, "worker", challenge, mine, VERSION, asdict(greeting)))


def knows(secret: str, said: Hello, challenge: str) -> bool:
    """Whether a hello proves that the worker knows the secret, after `challenge`."""
    wanted = proof(secret, "worker", challenge, said.nonce, said.version, asdict(said.greeting))
    return matches(said.proof, wanted)


def other_version(theirs: int) -> str:
    """Why one who speaks another version is refused."""
    return (
        f"two processes of the run speak versions {VERSION} and {theirs} of the protocol: "
        "all of them need the same Shoal"
    )
