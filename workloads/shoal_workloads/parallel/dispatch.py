"""How tokens get to the workers that hold their experts, and back: one interface, and the flat way.

    trip = exchange.dispatch(tokens, gates, slots, held, fp8=...)   # rows are on their way
    ...                                                            # compute something else
    rows, row_gates, routes = trip.arrive()
    trip.depart(experts(rows, row_gates, routes))                  # outputs are on their way back
    ...
    y = trip.home()

No token is dropped: sizes are exchanged first. Shapes: N tokens of this worker, D width, K experts a token, P workers
that share the experts, H experts held by each ("slots": slot p is on rank p // H), R rows for the experts here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist

from shoal_workloads.model.permute import Routes, gather_rows, routes_of, spread, unspread
from shoal_workloads.parallel.all_to_all import Route, Transfer
from shoal_workloads.parallel.traffic import Traffic

__all__ = ["Exchange", "Flat", "Trip", "by_expert", "exchange_counts"]


class Trip(ABC):
    """Tokens to experts and back, once. The methods are called in this order, by all workers of the group."""

    @abstractmethod
    def arrive(self) -> tuple[torch.Tensor, torch.Tensor, Routes]:
        """Wait for the rows of the experts here: (R, D), their gates (R,), and their routes, one choice a row."""

    @abstractmethod
    def depart(self, y: torch.Tensor) -> None:
        """Send the experts' outputs back. y: (R, D), in the order of the rows."""

    @abstractmethod
    def home(self) -> torch.Tensor:
        """Wait for the outputs, summed by token: (N, D)."""


class Exchange(ABC):
    """The workers that share the experts of a model, `per_node` consecutive ranks on each node. `traffic` counts what
    this worker sends over all layers that use this object. `gradients`: see `Route`."""

    def __init__(self, group: dist.ProcessGroup, per_node: int, gradients: dist.ProcessGroup | None = None) -> None:
        self.group, self.per_node, self._gradients = group, per_node, gradients
        self.ranks, self.rank = group.size(), group.rank()
        self.traffic = Traffic(self.rank, per_node)

    def route(self, send: list[int], receive: list[int]) -> Route:
        """So many rows to and from each worker."""
        return Route(self.group, send, receive, self._gradients)

    @abstractmethod
    def dispatch(
        self, tokens: torch.Tensor, gates: torch.Tensor, slots: torch.Tensor, held: int, *, fp8: bool = False
    ) -> Trip:
        """Begin a trip. tokens: (N, D); gates, slots: (N, K); held: H. `fp8`: whether rows on their way to experts
        travel in FP8, forward and backward. Collective over the group, which may bring different N.

        Raises:
            RuntimeError: a peer is gone.
        """


class Flat(Exchange):
    """A row for every expert of a token goes straight to the worker that holds it."""

    def dispatch(
        self, tokens: torch.Tensor, gates: torch.Tensor, slots: torch.Tensor, held: int, *, fp8: bool = False
    ) -> Trip:
        """See `Exchange`."""
        return _FlatTrip(self, tokens, gates, slots, held, fp8)


class _FlatTrip(Trip):
    def __init__(
        self, to: Flat, tokens: torch.Tensor, gates: torch.Tensor, slots: torch.Tensor, held: int, fp8: bool
    ) -> None:
        load = torch.bincount(slots.flatten(), minlength=held * to.ranks)
        self._leaving = routes_of(slots.flatten(), load, slots.shape[1])
        arriving = exchange_counts(load.view(to.ranks, held), to)
        self._route = to.route(load.view(to.ranks, held).sum(dim=1).tolist(), arriving.sum(dim=1).tolist())
        self._here, self._traffic, self._fp8 = by_expert(arriving), to.traffic, fp8
        self._rows = Transfer(spread(tokens, self._leaving), self._route, fp8=(fp8, False), traffic=to.traffic)
        sorted_gates = gather_rows(gates.flatten(), self._leaving.order, self._leaving.inverse)
        self._gates = Transfer(sorted_gates, self._route, kind="metadata", traffic=to.traffic)

    def arrive(self) -> tuple[torch.Tensor, torch.Tensor, Routes]:
        return self._rows.land(), self._gates.land(), self._here

    def depart(self, y: torch.Tensor) -> None:
        self._back = Transfer(y, self._route.back(), fp8=(False, self._fp8), kind="combine", traffic=self._traffic)

    def home(self) -> torch.Tensor:
        return unspread(self._back.land(), self._leaving)


def exchange_counts(counts: torch.Tensor, among: Exchange) -> torch.Tensor:
    """counts: (P, C) int64, row j for rank j -> (P, C), row j from rank j. Collective."""
    arriving = torch.empty_like(counts)
    dist.all_to_all_single(arriving, counts.contiguous(), group=among.group)
    among.traffic.count("metadata", "forward", [1] * among.ranks, counts.shape[1] * counts.element_size())
    return arriving


def by_expert(arriving: torch.Tensor) -> Routes:
    """Routes of rows that arrive by source, then expert, and are wanted by expert, then source. arriving: (sources, H)
    rows for each expert here."""
    sources, held = arriving.shape
    experts = torch.arange(held, device=arriving.device).repeat(sources).repeat_interleave(arriving.flatten())
    return routes_of(experts, arriving.sum(dim=0), choices=1)
