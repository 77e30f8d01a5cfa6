"""What training came to, and whether failures left a trace in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shoal.config import Injection
from shoal.record import read
from shoal.record.audit import committed_ids_audit
from shoal.record.place import checkpoints_of
from shoal.testing.lab import Lab, lab
from shoal_core.ckpt import among
from shoal_core.ckpt.alone import read as read_whole
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.loading import make_workload
from shoal_core.store import open_store

__all__ = ["Outcome", "alone", "assert_exactly_once", "assert_no_trace", "outcome"]


@dataclass(frozen=True)
class Outcome:
    """`losses`: of every step; `state`: the last checkpoint's tensors by name, whole."""

    losses: list[float]
    state: dict[str, torch.Tensor]

    def differences(self, other: Outcome) -> list[str]:
        """What is not equal to the bit: steps whose losses differ, and names of tensors."""
        steps = max(len(self.losses), len(other.losses))
        mine, theirs = self.losses, other.losses
        found = [f"loss of step {step}" for step in range(steps) if mine[step : step + 1] != theirs[step : step + 1]]
        names = sorted(self.state.keys() | other.state.keys())
        return found + [name for name in names if not _equal(self.state.get(name), other.state.get(name))]


def outcome(path: Path) -> Outcome:
    """Of the run in the directory `path`.

    Raises:
        AssertionError: it has no whole checkpoint.
    """
    last = among.last_whole(open_store(checkpoints_of(path)))
    assert last is not None, f"{path}: no checkpoint is whole"
    state = read_whole(Checkpoint.open(last.folder))
    return Outcome([line["loss"] for line in read.steps(path)], state)


def alone(workload: Mapping[str, Any], steps: int, seed: int = 0) -> Outcome:
    """The same training in this one process, without cells, votes or a controller: what a run comes to, but for the
    rounding of sums in another order. `workload`: the job's section."""
    made = make_workload(workload)
    shard, losses = made.build(seed), []
    for step in range(steps):
        shard.begin(step)
        first, last = made.samples(step)
        shard.accumulate([range(i, min(i + made.micro_batch, last)) for i in range(first, last, made.micro_batch)])
        total = shard.sums().clone()
        losses.append(shard.commit(total, shard.stats(), shard.norm_sq(total))["loss"])
    return Outcome(losses, {name: tensor.clone() for name, tensor in shard.state_dict().items()})


def assert_exactly_once(path: Path, steps: int) -> None:
    """Every step is on record once, and every sample of it entered one committed step.

    Raises:
        AssertionError: it is not so, with the figures. With `audit.samples` it is the workers' word that is counted.
    """
    assert [line["step"] for line in read.steps(path)] == list(range(steps))
    audit = committed_ids_audit(path)
    assert (audit.repeated, audit.skipped, audit.outside, audit.seen) == (0, 0, 0, audit.expected), audit


def assert_no_trace(
    folder: Path,
    nodes: Mapping[str, int],
    disturb: Callable[[Lab], None] = lambda one: None,
    inject: Sequence[Injection] = (),
    **settings: Any,
) -> Lab:
    """Run a job in exact mode twice, in folders inside `folder`: undisturbed, and with what `disturb` does to it while
    it runs and with the faults `inject`. Both must end with the same bits, with no step lost and every sample once.
    Returns the disturbed run, to ask what befell it.

    Raises:
        AssertionError: a run does not end so, or what differs between them.
    """
    ends = []
    for name in ("calm", "hurt"):
        (folder / name).mkdir()
        faults = list(inject) if name == "hurt" else []
        exact = {"reduce": "exact", "audit": {"samples": True}, "inject": faults, **settings}
        with lab(folder / name, nodes, **exact) as one:
            if name == "hurt":
                disturb(one)
            run = one.finished()
            assert (run["status"], run["steps_lost"]) == ("done", 0), one.story()
        assert_exactly_once(one.path, one.job["steps"])
        ends.append(outcome(one.path))
    assert ends[0].differences(ends[1]) == []
    return one


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and one.dtype == other.dtype and torch.equal(one, other)
