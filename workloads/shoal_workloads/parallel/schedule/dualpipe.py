"""DualPipe (DeepSeek-V3 report, section 3.2.1, figure 5) and DualPipeV, its half folded to a V.

A rank works for two streams of micro-batches: stream 0 comes from the nearer end of the pipeline, stream 1 comes back
from the farther end. In DualPipe they are the two directions, in DualPipeV the way down and the way up of one
direction. Both follow the same eight phases, with H = ranks (V) or ranks / 2 and h the distance to the nearer end:
idle time (H - 1) * (F&B + B - 3W), against (2H - 1) * (F + B) of 1F1B over 2H ranks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from shoal_workloads.parallel.schedule.actions import Action, Kind, Pair, Step

__all__ = ["dualpipe", "dualpipev"]


@dataclass
class _Stream:
    """Micro-batches through the one stage of a rank that they meet."""

    stage: int
    first: int  # micro-batch
    forwards: int = 0
    backwards: int = 0

    def forward(self) -> Action:
        self.forwards += 1
        return Action("F", self.stage, self.first + self.forwards - 1)

    def backward(self, kind: Kind = "B") -> Action:
        self.backwards += 1
        return Action(kind, self.stage, self.first + self.backwards - 1)


def dualpipe(rank: int, ranks: int, micro_batches: int) -> list[Step]:
    """The order on `rank` of an even number of `ranks`, for an even number of at least 2 * ranks micro-batches."""
    forth = _Stream(rank, 0)
    back = _Stream(ranks - 1 - rank, micro_batches // 2)
    half = ranks // 2
    streams = (forth, back) if rank < half else (back, forth)
    return _eight_phases(streams, half, min(rank, ranks - 1 - rank), micro_batches // 2)


def dualpipev(rank: int, ranks: int, micro_batches: int) -> list[Step]:
    """The order on `rank`, which holds the stages `rank` and 2 * ranks - 1 - rank; at least 2 * ranks micro-batches."""
    return _eight_phases((_Stream(rank, 0), _Stream(2 * ranks - 1 - rank, 0)), ranks, rank, micro_batches)


def _eight_phases(streams: Sequence[_Stream], half: int, near: int, count: int) -> list[Step]:
    """The order for two streams of `count` micro-batches, `near` ranks from the end of a half pipeline of `half`."""
    zero, one = streams
    far = half - 1 - near
    order: list[Step] = []
    waiting: deque[Action] = deque()  # weights' gradients

    def backward_input(stream: _Stream) -> None:
        action = stream.backward("I")
        order.append(action)
        waiting.append(Action("W", action.stage, action.micro_batch))

    # 1: forwards of stream 0 alone.
    order += [zero.forward() for _ in range(2 * far)]
    # 2: forwards of both.
    for _ in range(near + 1):
        order += [zero.forward(), one.forward()]
    # 3: the first backwards, their weights' gradients at once, and forwards of stream 1.
    for _ in range(far):
        backward_input(one)
        order += [waiting.popleft(), one.forward()]
    # 4: the steady state: a forward of the one stream behind a backward of the other.
    for i in range(count - 2 * half + near + 1):
        if i == 0 and far == 0:  # apart: the neighbour waits for this forward
            order += [zero.forward(), one.backward()]
        else:
            order.append(Pair(zero.forward(), one.backward()))
        order.append(Pair(one.forward(), zero.backward()))
    # 5: stream 0 has no forwards left.
    for _ in range(far):
        order += [one.backward(), Pair(one.forward(), zero.backward())]
    # 6: backwards of both, the second half without weights' gradients, which fill the gaps below.
    for place in range(2 * (near + 1)):
        stream = zero if place % 2 else one
        if place <= near:
            order.append(stream.backward())
        else:
            backward_input(stream)
    # 7: weights' gradients between the last backwards of stream 0.
    for _ in range(far):
        order.append(waiting.popleft())
        backward_input(zero)
    # 8: the weights' gradients that are left.
    order += waiting
    return order
