"""What the platform asks of a workload: the whole of what it knows about models.

A workload is named by its dotted path (`package.module:Class`) and started inside a worker whose cell
already is a `torch.distributed` world. It never sees Ray, nodes, other cells or failures. The platform sums
what it is given over the cells, decides whether a step commits, and copies state between replicas.

Every quantity that a worker's share of a replica hands out is a **sum over the samples it was given**, never a mean:
sums over workers and cells do not depend on how many there are, and are divided once, in `commit`, by the global batch.

Write a workload as a subclass of `Workload` whose `build` returns a subclass of `ReplicaShard`: the type checker then
knows what is missing. Methods that are not abstract may be left out; they say what that means.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from pydantic import BaseModel

from shoal_core.errors import UserError

if TYPE_CHECKING:
    from shoal_core.ckpt.pieces import Piece
    from shoal_core.grid import Grid

__all__ = [
    "ORIGIN",
    "Crew",
    "Identity",
    "ReplicaShard",
    "Workload",
]

ORIGIN = "origin"
"""Key of the `workload` section under which a resumed run's job says where it goes on from (`shoal.resume.Origin`)."""


class Identity(TypedDict):
    """What a state is of. `state`: shape of the whole and dtype of each of its tensors, by the names of
    `ReplicaShard.state_dict`; `data`: what the meaning of a position in the global order hangs on, each a name, a
    digest or a number (None: there is none)."""

    state: Mapping[str, tuple[tuple[int, ...], str]]
    data: Mapping[str, str | int | None]


@dataclass(frozen=True)
class Crew:
    """Who trains: cells of `workers`, spread over `nodes` with at most `slots` of them each. `device`: what each
    computes on, as `devices.device_name` calls it; `memory`: bytes of it."""

    workers: int
    nodes: int
    slots: int
    device: str
    memory: int


class ReplicaShard(ABC):
    """One worker's share of a replica: of a copy of the model and of its optimizer."""

    @abstractmethod
    def begin(self, step: int) -> None:
        """Forget what was accumulated and start step `step` (0-based)."""

    @abstractmethod
    def accumulate(self, micro_batches: Sequence[Sequence[int]]) -> None:
        """Forward and backward over the cell's micro-batches. Each is given as positions in the global order: those of
        all workers of the cell, equally many for each, in the order of their ranks. A step may hand in all at once, or
        some after others. Collective over the cell: every worker is given the same.

        Raises:
            RuntimeError: a peer of the cell is gone.
        """

    def expect(self, steps: Iterable[Sequence[Sequence[int]]]) -> None:  # noqa: B027 (may be left out)
        """What will be handed to `accumulate`, step after step from the one that begins, unless the crew changes first:
        it can be read ahead. `steps` is worked out as it is walked, and may be walked until the next call. Left out:
        nothing is read ahead."""

    @abstractmethod
    def sums(self) -> Any:
        """A flat float32 tensor, the same length on matching workers of all cells: local gradient shards summed over
        the cell and the samples so far, then whatever else must be summed over cells (router loads). May be collective
        over the cell. The platform adds a copy of it over the cells; a repeated call gives the same values."""

    def sums_to_keep(self) -> Any:
        """`sums` in memory that is the caller's: other cells' are added to it, and `commit` is given it. What is done
        so far stays with this shard, so that the same can be asked again. Left out: a copy of `sums`."""
        return self.sums().clone()

    def round_to(self, grid: Grid) -> int | None:
        """For sums that do not hang on the shape of cells: from now on round what each worker makes of its own part of
        a micro-batch by `grid` before it is added to another's, and hand out `sums` as int64: gradients in units of the
        grid first, and then whatever else, which must be integers anyway. Returns how many gradients there are. Their
        norm is the caller's business then: `norm_sq` is not asked for. A micro-batch is accumulated alone, after a
        `begin`, and the exponent of the grid may change in between. Called once at most. Left out: None, and `sums` are
        as always; the caller rounds those of a whole micro-batch."""
        return None

    @abstractmethod
    def stats(self) -> list[float]:
        """Additive figures of this worker's samples so far (losses, tokens); summed over all workers."""

    @abstractmethod
    def norm_sq(self, total: Any) -> float:
        """This worker's part of the squared norm of the averaged gradient; parts of a cell's workers add up to it."""

    @abstractmethod
    def commit(self, total: Any, stats: Sequence[float], norm_sq: float) -> dict[str, float]:
        """Apply the optimizer step. `total`: `sums` over all cells, which may be written to; `stats`, `norm_sq`: over
        all workers of a cell or run. Not collective. Returns `loss, lm_loss, mtp_loss, grad_norm, lr, tokens` (nats a
        token; tokens of the step) and any further figures. `roll_back`: 1 asks the platform to go back to the last good
        state (see `Workload.rolls_back`); every worker must come to the same answer."""

    @abstractmethod
    def evaluate(self, part: int, parts: int) -> list[float]:
        """Additive figures of part `part` of `parts` of the held-out set. Collective over the cell, whose workers call
        it with different parts."""

    @abstractmethod
    def eval_metrics(self, stats: Sequence[float]) -> dict[str, float]:
        """`bpb` (bits per byte) and others from the summed figures of `evaluate`."""

    @abstractmethod
    def tensors(self) -> list[Any]:
        """Every local tensor a twin needs to become this shard, in a fixed order: parameters, moments, router biases,
        averages. A shard that heals receives them in place. Of a workload that runs on a GPU it is also called on
        another thread, before the next `commit`."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The same state for `torch.distributed.checkpoint`: DTensors where sharded, so that it loads on any mesh.
        The returned tensors are views: a checkpoint copies them before training goes on."""

    placings = 0
    """How often it was changed which parts of the state this shard holds, or where in its tensors they lie."""

    def placed(self) -> Iterable[tuple[Piece, Any]]:
        """Which parts of the state of `state_dict` this shard holds, each with the part of `tensors()` where it lies.
        Not collective: others of the cell may be gone. Left out: what `state_dict` says, which must not be collective
        then."""
        from shoal_core.ckpt.state import held

        return held(self.state_dict()).items()

    def arrangement(self) -> Mapping[str, Any]:
        """Those of `tensors()` that say where in this shard's the parts of the state lie, by the names that `placed`
        has for them too: a shard that is filled part by part is given these first, as far as they are to be had
        (`arranged`). Their values hang on no mesh. Left out: there are none."""
        return {}

    def arranged(self) -> None:  # noqa: B027 (may be left out)
        """Called after `arrangement` was written to: the rest of the state is written next, where `placed` says now."""

    @abstractmethod
    def loaded(self, step: int) -> None:
        """Called after `tensors()` or `state_dict()` were written to: the state is that of `step` committed steps."""

    def generation_began(self) -> None:  # noqa: B027 (may be left out)
        """The run's membership has changed: what is arranged by it may be arranged anew, from a step on that all
        workers agree on. Left out: nothing is."""

    def notes(self) -> list[dict[str, Any]]:
        """What the run's journal should know of the steps since the last call: events, each with its `kind`. One worker
        of a cell speaks for all of it. Left out: nothing."""
        return []


class Workload(ABC):
    """A kind of model with its data and recipe, made from a validated config.

    The class attribute `Config` is the pydantic model of the job file's `workload` section (less `path`)."""

    Config: type[BaseModel]
    if_lacking: ClassVar[str] = "give it what shoal_core.workload.Workload asks for, best as a subclass of it"
    """What to do about a class that lacks some of what must be written."""

    def __init__(self, config: Any) -> None:  # noqa: B027 (says what it is called with)
        """config: an instance of `Config`."""

    @abstractmethod
    def preflight(self, workers_per_cell: int) -> dict[str, Any]:
        """Check what can be checked before any worker starts (corpus, shapes, divisibility) and describe the run:
        plain figures such as `parameters`, `tokens_per_step`. Raises an error that names file, field and remedy."""

    @abstractmethod
    def samples(self, step: int) -> tuple[int, int]:
        """`[first, last)`: the positions in the global order that step `step` (0-based) consumes. Pure."""

    @property
    @abstractmethod
    def micro_batch(self) -> int:
        """Samples of one micro-batch that are one worker's."""

    @property
    def runs_on(self) -> str:
        """The kind of device that shards keep their tensors on, "cpu" or "cuda", by which the platform chooses what
        carries them. Left out: the CPU."""
        return "cpu"

    def tokens(self, samples: int) -> int | None:
        """Tokens in so many samples, if it counts in tokens."""
        return None

    def flops(self, step: int) -> float | None:
        """FLOPs that step `step` takes in all, forward and backward, by a closed form. Left out: not known, and no
        share of a device's peak is told."""
        return None

    @abstractmethod
    def build(self, seed: int) -> ReplicaShard:
        """Build this worker's share in the current default process group (the cell). Collective over the cell.
        The initial values depend on `seed` alone, not on the cell's shape."""

    def build_to_fill(self, seed: int) -> ReplicaShard:
        """The same, where every tensor of its state is written right after (by a peer, from a checkpoint or a copy), so
        that no initial values need be drawn. Left out: they are."""
        return self.build(seed)

    def go_on(self, steps: int, samples: int) -> None:
        """From now on step `steps` begins at position `samples`: an earlier session, whose batches were others,
        consumed those before. Called before anything else; of earlier steps nobody asks then. Left out: batches cannot
        change in the course of a run.

        Raises:
            UserError: they have, and this workload cannot count on from there.
        """
        raise UserError(
            f"{steps} steps consumed {samples} samples, by the job's batches it would be {self.samples(steps)[0]}",
            "resume with the batch it was trained with",
        )

    def identity(self) -> Identity | None:
        """What a checkpoint of this workload holds, and what it was trained on. Allocates nothing. Left out: it is not
        known, and a resumed run is not checked for it."""
        return None

    def remarks(self, start: int, steps: int) -> list[str]:
        """What somebody should know before training from `start` to `steps` committed steps with these settings: a
        sentence each. Left out: nothing."""
        return []

    def mesh(self, workers_per_cell: int) -> dict[str, int]:
        """Sizes of the axes of a cell that the planner should know: `pp` pipeline ranks, `ep` workers that share
        experts, the latter fastest in the order of ranks. What they leave is FSDP. `ep_node`: so many consecutive of
        those `ep` workers it takes for one node's (it is refused where no node has the slots). Left out: all workers of
        a cell talk to each other."""
        return {}

    def shaped(self, sizes: Mapping[str, int]) -> Workload:
        """This workload in cells of another shape: `pp`, `fsdp`, `ep`, `ep_node`, as in `Mesh`. What a step consumes,
        and the numbers that come of it, stay as they are. Left out: its cells keep their shape.

        Raises:
            UserError: there are no such cells of it.
        """
        raise UserError(
            f"cells of {type(self).__name__} have one shape", "run it without `elastic`, or write its method `shaped`"
        )

    def other_bits(self, own: Mapping[str, int], other: Mapping[str, int]) -> str | None:
        """Why a run in cells of the shape `other` (sizes as in `shaped`) does not end with the bits of one in cells of
        the shape `own`, this workload's, although its shards `round_to` a grid. None: it does. Left out: nothing is
        known."""
        return "the workload does not say that its sums are the same in cells of another shape"

    @property
    def rolls_back(self) -> bool:
        """Whether a shard may ask to be rolled back, so that the job must keep snapshots. Left out: it never does."""
        return False

    @property
    def reduces_once(self) -> bool:
        """Whether the workers of a cell reduce the gradients of all micro-batches that they are given at once together,
        which sums in fixed point cannot. Left out: no."""
        return False

    def predicted(self, step: int, cells: int, crew: Crew) -> dict[str, Any] | None:
        """What step `step` is expected to take in so many cells of `crew.workers`, from closed forms: the figures of
        docs/record.md under `predicted`; with one that is not as written there none is taken, and the run says so.
        Called once for each shape of cells, in a process of its own. Left out: nothing is predicted, and no worker
        tells how much memory it took."""
        return None

    def warm_up(self, workers: int) -> None:  # noqa: B027 (may be left out)
        """Pay for imports, kernels and thread pools in a spare, before it is needed. workers: of a cell. No
        collectives. Left out: a spare pays for them when it is given a seat."""
