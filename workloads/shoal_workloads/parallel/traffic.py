"""Counts what expert parallelism sends, and says what it must send in closed form.

What a token costs on the wire (report, section 3.2.2; D width, n nodes): dispatch n (D + 4 D/128) bytes in FP8, combine
n 2D in BF16. Here n counts the nodes a token goes to **other than its own**, since only those copies cross: a token
whose experts lie on 4 nodes, its own among them, has n = 3, and n = 4 where its own is not among them. (The report's
"at most 4 nodes" bounds either.) Under the flat exchange n is the number of a token's experts on other nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from shoal_workloads.precision.fp8 import TILE

__all__ = ["SCOPES", "Kind", "Pass", "Traffic", "row_bytes"]

Kind = Literal["dispatch", "combine", "metadata"]
Pass = Literal["forward", "backward"]
Scope = Literal["across", "inside"]
SCOPES: tuple[Scope, ...] = ("across", "inside")


def row_bytes(d_model: int, *, fp8: bool, width: int = 2) -> int:
    """Bytes of one token's row on the wire: E4M3 codes and a float32 scale for every 128 channels, or `width` bytes a
    channel."""
    return d_model + 4 * -(-d_model // TILE) if fp8 else d_model * width


class Traffic:
    """Bytes this worker sent to other workers of its expert group since they were last taken.

    `dispatch`: rows on their way to experts: activations forward, gradients of outputs backward. `combine`: rows on
    their way from experts: outputs forward, gradients of inputs backward. `metadata`: counts, indices and gates. What a
    worker keeps for itself is not sent. `across` nodes or `inside` one: `per_node` workers of a group are on one node,
    in rank order."""

    def __init__(self, rank: int, per_node: int) -> None:
        self._rank, self._per_node = rank, per_node
        self._bytes: Counter[tuple[Kind, Pass, Scope]] = Counter()

    def count(self, kind: Kind, direction: Pass, rows: Sequence[int], bytes_a_row: int) -> None:
        """`rows[j]` rows went to rank j of the group."""
        node = self._rank // self._per_node
        for peer, n in enumerate(rows):
            if peer != self._rank:
                scope: Scope = "inside" if peer // self._per_node == node else "across"
                self._bytes[kind, direction, scope] += n * bytes_a_row

    def sent(self, kind: Kind, scope: Scope, direction: Pass | None = None) -> int:
        """Bytes so far, of one pass or both."""
        passes: tuple[Pass, ...] = ("forward", "backward") if direction is None else (direction,)
        return sum(self._bytes[kind, one, scope] for one in passes)

    def total(self, scope: Scope) -> int:
        """Bytes of all kinds so far."""
        return sum(n for (_, _, where), n in self._bytes.items() if where == scope)

    def take(self) -> dict[str, int]:
        """What was sent since the last call, as `KIND.PASS.SCOPE`: bytes. Called once a step."""
        taken = {".".join(key): n for key, n in sorted(self._bytes.items())}
        self._bytes.clear()
        return taken
