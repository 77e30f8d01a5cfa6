"""Which fault comes when, and whom it hits: pure functions of a seed and of who is there."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shoal_core.errors import UserError

__all__ = ["FAULTS", "WITHOUT_VICTIM", "Fault", "Seen", "choose_victim", "parse_faults", "parse_seconds", "schedule"]

FAULTS: Mapping[str, str] = {
    "kill-worker": "SIGKILL one worker",
    "kill-node": "SIGKILL every process of a node; a fresh one joins later",
    "freeze-worker": "SIGSTOP one worker: it keeps its connections and answers nothing",
    "freeze-node": "SIGSTOP every process of a node",
    "partition": "cut a node's network: packets vanish, nothing is reset",
    "drain": "tell Ray that a node will be taken away, and kill it at the deadline",
    "kill-controller": "SIGKILL the run's controller",
    "slow-worker": "stop and continue one worker in turn for some seconds, so that it computes at half speed",
    "fill-disk": "for some seconds the kernel refuses every write to a file by the controller and by the workers "
    "(prlimit RLIMIT_FSIZE on their processes: EFBIG where a full disk says ENOSPC)",
    "freeze-controller": "SIGSTOP the run's controller, SIGCONT after some seconds",
    "cut-store": "cut all nodes off from the controller's port, where workers meet: packets vanish for some seconds "
    "(ip rule in the nodes' network namespaces)",
    "slow-disk": "for some seconds every line of the record, and every checkpoint, is written half a second late "
    "(injected: Shoal itself waits before it writes, while a file in the run's folder says so)",
}
WITHOUT_VICTIM = frozenset({"kill-controller", "fill-disk", "freeze-controller", "cut-store", "slow-disk"})
"""They hit the run itself."""


@dataclass(frozen=True)
class Fault:
    """One fault. `at`: seconds after the beginning; `pick`: in [0, 1), which of the possible victims."""

    at: float
    kind: str
    pick: float


@dataclass(frozen=True)
class Seen:
    """A worker as the run's status shows it."""

    actor: str
    node: str
    pid: int
    cell: int | None


def parse_faults(text: str) -> list[str]:
    """`kill-worker,drain` or `all`.

    Raises:
        UserError: an unknown fault.
    """
    kinds = list(FAULTS) if text == "all" else [kind.strip() for kind in text.split(",") if kind.strip()]
    unknown = [kind for kind in kinds if kind not in FAULTS]
    if unknown or not kinds:
        raise UserError(f"--faults: {', '.join(unknown) or 'none'} unknown", f"choose from {', '.join(FAULTS)} or all")
    return kinds


def parse_seconds(text: str) -> float:
    """`20s`, `5m`, `1h` or plain seconds.

    Raises:
        UserError: no duration.
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UserError(f"{text!r} is no duration", "write 20s, 5m or 1h")
    return seconds


def schedule(kinds: Sequence[str], every: float, seed: int) -> Iterator[Fault]:
    """Faults without end, on average one in `every` seconds, never two within a tenth of that."""
    dice = random.Random(seed)
    at = 0.0
    while True:
        at += every * 0.1 + dice.expovariate(1 / (0.9 * every))
        yield Fault(at, dice.choice(list(kinds)), dice.random())


def choose_victim(fault: Fault, workers: Sequence[Seen], nodes: Sequence[str]) -> Seen | str | None:
    """The worker or node that a fault hits: of those in cells if there are any, in the order of their names; None for a
    fault without a victim, or if there is nobody."""
    if fault.kind in WITHOUT_VICTIM:
        return None
    seated = sorted((w for w in workers if w.cell is not None), key=lambda w: w.actor)
    if fault.kind.endswith("worker"):
        return seated[int(fault.pick * len(seated))] if seated else None
    hosts = sorted({w.node for w in seated} & set(nodes)) or sorted(nodes)
    return hosts[int(fault.pick * len(hosts))] if hosts else None
