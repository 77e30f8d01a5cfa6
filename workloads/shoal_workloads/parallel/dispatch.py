"""How tokens get to the workers that hold their experts, and back: rows under way, the interface, and the flat way.

A transfer is an all-to-all that is started and, later, landed. What is computed between the two runs while the rows
travel; and since autograd runs the nodes of the graph in the reverse order of their making, its backward runs while the
gradients travel. Sizes are exchanged first, and are the one thing that the host waits for (`on_host`).

Rows travel in their own type or in FP8 with a scale for every 128 channels. FP8 as the report has it (section 3.3.2):
what is dispatched to experts travels in FP8, forward and, for gradients on their way back to experts, backward; what is
combined travels as it is. Scales are powers of two, so that scaling once more for the product changes nothing, and
neither does sending rows on that already came in FP8.

Shapes: as in `model.exchange`; P workers that share the experts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from shoal_core.lane import on_cpu
from shoal_workloads.model.exchange import Trip
from shoal_workloads.model.permute import Routes, counts_of, gather_rows, routes_of, spread, unspread
from shoal_workloads.parallel.traffic import Kind, Pass, Traffic
from shoal_workloads.precision.fp8 import dequantize_tiles, quantize_tiles

__all__ = [
    "Exchange",
    "Flat",
    "Route",
    "Transfer",
    "by_expert",
    "exchange_counts",
    "in_order",
    "on_host",
    "refuse_garbage",
    "sent_again",
]

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
            octets = codes.view(torch.uint8)  # gloo knows no FP8
            self._sent: tuple[torch.Tensor, ...] = (octets, scale)
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


def sent_again(x: torch.Tensor, route: Route, fp8: bool, traffic: Traffic) -> torch.Tensor:
    """What arrived by a dispatch over `route`, once more, in backward: it travels where gradients do. Waits for it.

    Raises:
        RuntimeError: a peer is gone.
    """
    flight = _Flight(x, route.back().of_gradients(), fp8)
    traffic.count("dispatch", "backward", route.send, flight.bytes_a_row)
    return flight.land()


class Exchange(ABC):
    """See `model.exchange.Exchange`: the workers of `group`, `per_node` consecutive ranks on each node. `traffic`
    counts what this worker sends over all layers that use this object. `gradients`: see `Route`."""

    def __init__(self, group: dist.ProcessGroup, per_node: int, gradients: dist.ProcessGroup | None = None) -> None:
        self.group, self.per_node, self._gradients = group, per_node, gradients
        self.ranks, self.rank = group.size(), group.rank()
        self.traffic = Traffic(self.rank, per_node)

    def route(self, send: list[int], receive: list[int]) -> Route:
        """So many rows to and from each worker."""
        return Route(self.group, send, receive, self._gradients)

    @abstractmethod
    def dispatch(
        self, tokens: torch.Tensor, gates: torch.Tensor, places: torch.Tensor, held: int, *, fp8: bool = False
    ) -> Trip:
        """See `model.exchange.Exchange`."""


class Flat(Exchange):
    """A row for every expert of a token goes straight to the worker that holds it."""

    def dispatch(
        self, tokens: torch.Tensor, gates: torch.Tensor, places: torch.Tensor, held: int, *, fp8: bool = False
    ) -> Trip:
        """See `Exchange`."""
        return _FlatTrip(self, tokens, gates, places, held, fp8)


class _FlatTrip:
    def __init__(
        self, to: Flat, tokens: torch.Tensor, gates: torch.Tensor, places: torch.Tensor, held: int, fp8: bool
    ) -> None:
        # Dispatch: sizes first, then rows and their gates.
        load = counts_of(places.flatten(), held * to.ranks)
        self._leaving = routes_of(places.flatten(), load, places.shape[1])
        arriving = exchange_counts(load.view(to.ranks, held), to)
        send, receive, least = on_host(load.view(to.ranks, held).sum(dim=1), arriving.sum(dim=1), arriving.amin(dim=1))
        refuse_garbage(receive, least, most=places.numel())
        self._route, self._arriving = to.route(send, receive), arriving
        self._here, self._traffic, self._fp8 = by_expert(arriving, sum(receive)), to.traffic, fp8
        self._rows = Transfer(spread(tokens, self._leaving), self._route, fp8=(fp8, False), traffic=to.traffic)
        sorted_gates = gather_rows(gates.flatten(), self._leaving.order, self._leaving.inverse)
        self._gates = Transfer(sorted_gates, self._route, kind="metadata", traffic=to.traffic)

    @property
    def sources(self) -> list[Routes]:
        return [in_order(of, rows) for of, rows in zip(self._arriving, self._route.receive, strict=True)]

    def dispatched(self) -> tuple[torch.Tensor, torch.Tensor, Routes]:
        return self._rows.land(), self._gates.land(), self._here

    def dispatched_again(self, tokens: torch.Tensor) -> torch.Tensor:
        return sent_again(spread(tokens, self._leaving), self._route, self._fp8, self._traffic)

    def combine(self, y: torch.Tensor) -> None:
        self._back = Transfer(y, self._route.back(), fp8=(False, self._fp8), kind="combine", traffic=self._traffic)

    def combined(self) -> torch.Tensor:
        return unspread(self._back.land(), self._leaving)


def exchange_counts(counts: torch.Tensor, among: Exchange) -> torch.Tensor:
    """counts: (P, C) int64, row j for rank j -> (P, C), row j from rank j. Collective."""
    arriving = torch.empty_like(counts)
    dist.all_to_all_single(arriving, counts.contiguous(), group=among.group)
    among.traffic.count("metadata", "forward", [1] * among.ranks, counts.shape[1] * counts.element_size())
    return arriving


def on_host(*counts: torch.Tensor) -> list[list[int]]:
    """Numbers of rows, each (P,), for the host, which must know them to make room. It waits for the device, once for
    all of them: whatever else a dispatch computes stays there."""
    found: list[list[int]] = on_cpu(torch.stack(counts)).tolist()
    return found


def refuse_garbage(*counts: Sequence[int], most: int) -> None:
    """For counts that came from other workers, none of which can be over `most`. An exchange that is aborted may leave
    anything in them and say nothing, and what is computed by them would read and write beyond its memory.

    Raises:
        DistBackendError: they cannot be. The cell is broken.
    """
    if any(not 0 <= count <= most for row in counts for count in row):
        raise dist.DistBackendError("an exchange left garbage in counts of rows: a peer of the cell is gone")


def in_order(counts: torch.Tensor, rows: int) -> Routes:
    """Routes of `rows` rows that lie by expert, `counts` (H,) of each."""
    order = torch.arange(rows, device=counts.device)
    return Routes(order, order, counts, choices=1)


def by_expert(arriving: torch.Tensor, rows: int) -> Routes:
    """Routes of rows that arrive by source, then expert, and are wanted by expert, then source. arriving: (sources, H)
    rows for each expert here, `rows` in all."""
    sources, held = arriving.shape
    experts = torch.arange(held, device=arriving.device).repeat(sources)
    experts = experts.repeat_interleave(arriving.flatten(), output_size=rows)
    return routes_of(experts, arriving.sum(dim=0), choices=1)
