"""A differentiable all-to-all of rows, in the rows' own type or in FP8 with a scale for every 128 channels.

FP8 as the report has it (section 3.3.2): what is dispatched to experts travels in FP8, forward and, for gradients on
their way back to experts, backward; what is combined travels as it is. Scales are powers of two, so that scaling once
more for the product changes nothing, and neither does sending rows on that already came in FP8.

A transfer is started and, later, landed. What is computed between the two runs while the rows travel; and since
autograd runs the nodes of the graph in the reverse order of their making, its backward runs while the gradients travel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from shoal_workloads.parallel.traffic import Kind, Pass, Traffic
from shoal_workloads.precision.fp8 import dequantize_tiles, quantize_tiles

__all__ = ["Route", "Transfer", "all_to_all"]

OPPOSITE: dict[Kind, Kind] = {"dispatch": "combine", "combine": "dispatch", "metadata": "metadata"}


@dataclass(frozen=True)
class Route:
    """How many consecutive rows go to, and come from, each rank of a group, in rank order. `gradients`: another group
    of the same workers that gradients travel over, so that backward can run beside a forward."""

    group: dist.ProcessGroup
    send: list[int]
    receive: list[int]
    gradients: dist.ProcessGroup | None = None

    def back(self) -> Route:
        """The way back."""
        return Route(self.group, self.receive, self.send, self.gradients)

    def of_gradients(self) -> Route:
        """The way of the gradients of what travels here."""
        return Route(self.gradients or self.group, self.receive, self.send)


class _Flight:
    """Rows under way, in one direction."""

    def __init__(self, x: torch.Tensor, route: Route, fp8: bool) -> None:
        self._dtype = x.dtype
        if fp8:
            codes, scale = quantize_tiles(x.contiguous(), power_of_2=True)
            self._sent: tuple[torch.Tensor, ...] = (
                codes.view(torch.uint8),
                scale,
            )  # gloo knows no FP8: its bytes travel
        else:
            self._sent = (x.contiguous(),)
        self.bytes_a_row = sum(math.prod(part.shape[1:]) * part.element_size() for part in self._sent)
        self._arriving = tuple(part.new_empty((sum(route.receive), *part.shape[1:])) for part in self._sent)
        self._works = [
            dist.all_to_all_single(out, part, route.receive, route.send, group=route.group, async_op=True)
            for out, part in zip(self._arriving, self._sent, strict=True)
        ]

    def land(self) -> torch.Tensor:
        """Wait for the rows, and make them what they were."""
        for work in self._works:
            work.wait()
        if len(self._arriving) == 1:
            return self._arriving[0]
        codes, scale = self._arriving
        return dequantize_tiles(codes.view(torch.float8_e4m3fn), scale).to(self._dtype)


@dataclass
class _Journey:
    """What both ends of a transfer share: where it goes, and what is under way."""

    route: Route
    fp8: tuple[bool, bool]
    kind: Kind
    traffic: Traffic | None
    flights: list[_Flight] = field(default_factory=list)

    def depart(self, x: torch.Tensor, direction: Pass) -> None:
        forward = direction == "forward"
        route = self.route if forward else self.route.of_gradients()
        flight = _Flight(x, route, self.fp8[0 if forward else 1])
        if self.traffic is not None:
            kind = self.kind if forward else OPPOSITE[self.kind]
            self.traffic.count(kind, direction, route.send, flight.bytes_a_row)
        self.flights.append(flight)

    def land(self) -> torch.Tensor:
        return self.flights.pop().land()


class _Depart(torch.autograd.Function):
    """Sends rows; in backward, waits for their gradients. Its output only ties it to `_Land`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, journey: _Journey) -> torch.Tensor:
        ctx.journey = journey
        journey.depart(x, "forward")
        return x.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.journey.land(), None


class _Land(torch.autograd.Function):
    """Waits for rows; in backward, sends their gradients."""

    @staticmethod
    def forward(ctx: Any, tie: torch.Tensor, journey: _Journey) -> torch.Tensor:
        ctx.journey = journey
        return journey.land()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.journey.depart(grads[0], "backward")
        return grads[0].new_empty(0), None


class Transfer:
    """Rows under way: `send[j]` consecutive rows of x to rank j, `receive[j]` from it. Gradients travel the same way
    back.

    x: (sum(send), ...). fp8: whether rows of x (R, D) and their gradients travel in FP8. kind: what is sent, for
    `traffic`; gradients of what is dispatched count as combined, and the other way round.

    Raises:
        RuntimeError: a peer is gone.
    """

    def __init__(
        self,
        x: torch.Tensor,
        route: Route,
        *,
        fp8: tuple[bool, bool] = (False, False),
        kind: Kind = "dispatch",
        traffic: Traffic | None = None,
    ) -> None:
        self._journey = _Journey(route, fp8, kind, traffic)
        self._tie: torch.Tensor = _Depart.apply(x, self._journey)

    def land(self) -> torch.Tensor:
        """Wait for what arrives: (sum(receive), ...). Once.

        Raises:
            RuntimeError: a peer is gone.
        """
        return _Land.apply(self._tie, self._journey)


def all_to_all(
    x: torch.Tensor,
    receive: Sequence[int],
    send: Sequence[int],
    group: dist.ProcessGroup,
    *,
    fp8: tuple[bool, bool] = (False, False),
) -> torch.Tensor:
    """A transfer that is waited for at once. x: (sum(send), ...) -> (sum(receive), ...).

    Raises:
        RuntimeError: a peer is gone.
    """
    return Transfer(x, Route(group, list(send), list(receive)), fp8=fp8).land()
