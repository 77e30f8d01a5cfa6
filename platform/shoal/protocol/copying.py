"""What workers say to each other about states that they hold for others, each call begun by a proof:

    holder   Challenge(version, nonce)
    caller   Keep, with a copy and its table behind it, or Enter; with its version, and a proof over all of it and the
             holder's nonce
    holder   Refused(why): the version is another; to Keep: Whole

and whoever entered asks as often as it likes:

    caller   Look(prefix)
    holder   Whole, with the tables of what is held behind it, in JSON
    caller   Ranges(file, ranges)
    holder   Missing; or Coming, with the ranges behind it, and then Whole, or Missing: they are not what was asked for
             any more

A sum is the XXH3 (64 bits) of what it is of. Nothing else is said to who does not know the run's secret.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from shoal.protocol.greeting import VERSION, matches, proof

__all__ = ["Coming", "Enter", "Keep", "Look", "Missing", "Ranges", "Whole", "proves", "signed"]


@dataclass(frozen=True)
class Keep:
    """Keep a copy of the shard of `rank` after `steps` committed steps, in the shape of the number `shape`: of `bytes`,
    and the `table` (so many bytes) of what they are. `era`: see `orders.Keeper`; `sum`: of both."""

    rank: int
    steps: int
    era: int
    bytes: int
    table: int
    sum: int
    shape: int = 0
    version: int = VERSION
    proof: str = ""


@dataclass(frozen=True)
class Enter:
    """Let me ask for what is held here."""

    version: int = VERSION
    proof: str = ""


@dataclass(frozen=True)
class Look:
    """What is held here, by names that begin so?"""

    prefix: str = ""


@dataclass(frozen=True)
class Ranges:
    """Give these ranges of a file that is held: where each begins, and how many bytes it has."""

    file: str
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Coming:
    """What was asked for follows, of a file of so many bytes."""

    bytes: int


@dataclass(frozen=True)
class Whole:
    """All of it was there: so many bytes, of this sum."""

    bytes: int
    sum: int


@dataclass(frozen=True)
class Missing:
    """No such thing is held here."""


def proof_of(secret: str, asked: Keep | Enter, challenge: str) -> str:
    """The proof that belongs to a caller's word: over all its other fields, and the holder's nonce."""
    return proof(secret, type(asked).__name__, challenge, asdict(replace(asked, proof="")))


def signed(secret: str, asked: Keep | Enter, challenge: str) -> Keep | Enter:
    """A caller's word with its proof. `challenge`: the holder's nonce."""
    return replace(asked, proof=proof_of(secret, asked, challenge))


def proves(secret: str, asked: Keep | Enter, challenge: str) -> bool:
    """Whether the proof in a caller's word shows that it knows the secret."""
    return matches(asked.proof, proof_of(secret, asked, challenge))
