"""What workers say to each other about copies of snapshots, one call a copy:

    keeper   Challenge(version, nonce)
    caller   Keep, with the copy behind it, or Give; with its version, and a proof over all of it and the keeper's nonce
    keeper   Whole, with the copy behind it if it was asked for; Missing; or Refused(why): the version is another

Nothing else is said to who does not know the run's secret.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from shoal.protocol.greeting import VERSION, matches, proof

__all__ = ["Give", "Keep", "Missing", "Whole", "proves", "signed"]


@dataclass(frozen=True)
class Keep:
    """Keep a copy of the shard of `rank` after `steps` committed steps, of `bytes` with the CRC-32 `crc`. `era`: see
    `orders.Keeper`."""

    rank: int
    steps: int
    era: int
    bytes: int
    crc: int
    version: int = VERSION
    proof: str = ""


@dataclass(frozen=True)
class Give:
    """Give such a copy back."""

    rank: int
    steps: int
    version: int = VERSION
    proof: str = ""


@dataclass(frozen=True)
class Whole:
    """The copy is held here whole: of so many bytes, with this CRC-32."""

    bytes: int
    crc: int


@dataclass(frozen=True)
class Missing:
    """No such copy is held here."""


def proof_of(secret: str, asked: Keep | Give, challenge: str) -> str:
    """The proof that belongs to a caller's word: over all its other fields, and the keeper's nonce."""
    return proof(secret, type(asked).__name__, challenge, asdict(replace(asked, proof="")))


def signed(secret: str, asked: Keep | Give, challenge: str) -> Keep | Give:
    """A caller's word with its proof. `challenge`: the keeper's nonce."""
    return replace(asked, proof=proof_of(secret, asked, challenge))


def proves(secret: str, asked: Keep | Give, challenge: str) -> bool:
    """Whether the proof in a caller's word shows that it knows the secret."""
    return matches(asked.proof, proof_of(secret, asked, challenge))
