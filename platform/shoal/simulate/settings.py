"""What is simulated: the cluster, the job and how long each part of a recovery takes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from shoal_core.errors import UserError

__all__ = ["REGROUP", "REGROUP_WORKERS", "Settings", "Times", "parse_cluster"]

REGROUP, REGROUP_WORKERS = 2.0, 16_384
"""Seconds of the controller's processor time for so many workers, as `benchmarks/control_scale.py` measured them."""


@dataclass(frozen=True)
class Times:
    """Seconds. Where this repository measured one (README, "Recovery, measured"; 4 workers on 2 cores) the default is
    that figure or a longer one; what depends on the size of cluster and model is an
    assumption, to be replaced by one's own."""

    step: float = 10.0
    """Of a step at full strength."""
    across: float = 0.5
    """The part of it that crosses cells: sum, vote, commit."""
    closed: float = 0.2
    """From a death to the controller's hearing of it (measured 0.17 for a worker, 0.60 for a node)."""
    silent: float = 31.0
    """The same for who only falls silent: three steps and a second."""
    regroup: float = REGROUP
    """From a decision to the first micro-batch of the new generation."""
    form: float = 15.0
    """To build a cell's world and model in processes that run already (measured 2.7 to 3.5 for a small model)."""
    copy: float = 20.0
    """To copy the state to a cell from a peer, worker to worker: 16 bytes a parameter at the network's speed."""
    restore: float = 120.0
    """To load a checkpoint instead."""
    start: float = 60.0
    """To start a worker, imports and warm-up included."""
    notice: float = 120.0
    """Between a notice and the node's end."""


@dataclass(frozen=True)
class Settings:
    """`nodes` of `slots` workers of which `spare_nodes` more stand by; cells of `workers`; `micro_batches` a cell and
    step at full strength; a checkpoint every `checkpoint` steps; `rate`: a factor on Llama 3's failure rates;
    `preemptions`: how often a day each node is taken away besides."""

    nodes: int
    slots: int
    workers: int
    days: float = 54.0
    spare_nodes: int = 16
    micro_batches: int = 16
    checkpoint: int = 500
    rate: float = 1.0
    seed: int = 0
    times: Times = field(default_factory=Times)
    elastic: bool = False
    """Whether cells may take another shape, of half to twice their workers."""
    preemptions: float = 0.0
    each: int = 1
    """GPUs that a worker stands for: see `by_node`."""
    at_most: int | None = None
    """Cells of the run, if its GPUs are not all of some cell's: who is in none stands by."""

    def __post_init__(self) -> None:
        if self.at_most is not None:
            if self.at_most * self.workers > self.nodes * self.slots:
                raise ValueError(f"{self.at_most} cells of {self.workers} on {self.nodes} nodes of {self.slots}")
        elif self.nodes * self.slots % self.workers:
            raise UserError(
                f"{self.nodes} nodes of {self.slots} slots cannot be cut into cells of {self.workers} workers",
                "choose --workers-per-cell that divides the number of slots",
            )

    @property
    def cells(self) -> int:
        return self.nodes * self.slots // self.workers if self.at_most is None else self.at_most

    def by_node(self) -> Settings:
        """The same run with the workers of a node as one, where cells are of whole nodes: as many messages fewer as a
        node has GPUs. Failures are as many and strike the same nodes; but who loses a worker has its whole node warm up
        again, for a minute, instead of that worker. Else it is returned as it is."""
        if self.workers % self.slots:
            return self
        return replace(self, slots=1, workers=self.workers // self.slots, each=self.each * self.slots)


def parse_cluster(text: str) -> tuple[int, int]:
    """`NODESxSLOTS`, such as `2048x8`.

    Raises:
        UserError: it is written otherwise.
    """
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None or not int(found[1]) or not int(found[2]):
        raise UserError(f"--cluster {text}: not of the form NODESxSLOTS", "write it like 2048x8")
    return int(found[1]), int(found[2])
