"""Dispatch and combine as DeepSeek's (report, section 3.2.2), for experts on several nodes.

One copy of a token goes to each node that holds any of its experts, to the worker with the same index in that node,
which sends a row to each of them inside the node. On the way back that worker sums the outputs, and one row a token a
node travels. Between nodes, where links are slow, a token costs its nodes and not its experts; node-limited routing
bounds these. Shapes: as in `dispatch`; L workers a node, P/L nodes, C copies leaving, C' arriving, S' choices of these.
"""

from __future__ import annotations

import torch

from shoal_workloads.model.exchange import Trip
from shoal_workloads.model.permute import Routes, counts_of, fan_in, fan_of, fan_out, gather_rows
from shoal_workloads.parallel.dispatch import (
    Exchange,
    Transfer,
    by_expert,
    exchange_counts,
    on_host,
    refuse_garbage,
    sent_again,
)

__all__ = ["Hierarchical"]

COPY, EXPERT = 0, 1  # columns of what is said of a choice


class Hierarchical(Exchange):
    """One copy a token a node across nodes; a row an expert inside them."""

    def dispatch(
        self, tokens: torch.Tensor, gates: torch.Tensor, places: torch.Tensor, held: int, *, fp8: bool = False
    ) -> Trip:
        """See `Exchange`."""
        return _HierarchicalTrip(self, tokens, gates, places, held, fp8)


class _HierarchicalTrip:
    sources: None = None

    def __init__(
        self, to: Hierarchical, tokens: torch.Tensor, gates: torch.Tensor, places: torch.Tensor, held: int, fp8: bool
    ) -> None:
        self._to, self._fp8 = to, fp8
        nodes, in_node = to.ranks // to.per_node, held * to.per_node
        node_of = places // in_node  # (N, K)

        # Dispatch, what leaves: a copy for each node of a token, by node, then token.
        present = torch.zeros(len(places), nodes, dtype=torch.bool, device=places.device).scatter_(1, node_of, True)
        copies = present.sum(dim=0)  # (nodes,)
        leaves = present.T.flatten()
        copy = leaves.cumsum(0) - 1  # of each node and token: which copy, where there is one
        copy_of = copy.view(nodes, -1).T.gather(1, node_of)  # (N, K)
        order, inverse = _sorted(copy_of.flatten())
        choices_a_node = counts_of(node_of.flatten(), nodes)

        # Dispatch, across nodes: to the worker of my index on each, how many copies and choices; then the copy and the
        # expert of each choice.
        counts = torch.zeros(to.ranks, 2, dtype=torch.int64, device=places.device)
        peers = slice(to.rank % to.per_node, None, to.per_node)
        counts[peers] = torch.stack((copies, choices_a_node), dim=1)
        arriving = exchange_counts(counts, to)
        send, send_choices, receive, receive_choices = on_host(*counts.T, *arriving.T)
        refuse_garbage(receive, receive_choices, most=places.numel())
        refuse_garbage([sum(receive_choices)], most=sum(receive) * in_node)
        self._leaving = fan_of(_tokens(leaves, copy, len(places), sum(send)), len(places))
        self._across = to.route(send, receive)
        choices_across = to.route(send_choices, receive_choices)
        within = copy_of - (copies.cumsum(0) - copies)[node_of]
        told = torch.stack((within, places % in_node), dim=2).flatten(0, 1)[order].to(torch.int32)
        told = Transfer(told, choices_across, kind="metadata", traffic=to.traffic).land().long()
        told[:, EXPERT].clamp_(0, in_node - 1)  # garbage too leads nowhere but to rows that are here

        # Dispatch, inside the node: a row for each choice, by expert.
        before = arriving[:, 0].cumsum(0) - arriving[:, 0]
        before = before.repeat_interleave(arriving[:, 1], output_size=sum(receive_choices))
        self._order, self._inverse = _sorted(told[:, EXPERT])
        told_copy = (told[:, COPY] + before)[self._order].clamp_(0, max(0, sum(receive) - 1))
        self._forwarded = fan_of(told_copy, sum(receive))
        load = torch.zeros(to.ranks, held, dtype=torch.int64, device=places.device)
        first = to.rank // to.per_node * to.per_node
        mates = slice(first, first + to.per_node)
        load[mates] = counts_of(told[:, EXPERT], in_node).view(to.per_node, held)
        here = exchange_counts(load, to)
        leaving, coming, least = on_host(load.sum(dim=1), here.sum(dim=1), here.amin(dim=1))
        refuse_garbage(coming, least, most=nodes * places.numel())
        self._inside = to.route(leaving, coming)
        self._here = by_expert(here, sum(coming))

        # The rows and their gates begin to cross.
        self._rows = Transfer(fan_out(tokens, self._leaving), self._across, fp8=(fp8, False), traffic=to.traffic)
        sorted_gates = gather_rows(gates.flatten(), order, inverse)
        self._gates = Transfer(sorted_gates, choices_across, kind="metadata", traffic=to.traffic)

    def dispatched(self) -> tuple[torch.Tensor, torch.Tensor, Routes]:
        traffic, inside = self._to.traffic, self._inside
        # Dispatch, from the node's entry on to the workers inside.
        copies = fan_out(self._rows.land(), self._forwarded)
        rows = Transfer(copies, inside, fp8=(self._fp8, False), traffic=traffic)
        sorted_gates = gather_rows(self._gates.land(), self._order, self._inverse)
        gates = Transfer(sorted_gates, inside, kind="metadata", traffic=traffic)
        return rows.land(), gates.land(), self._here

    def dispatched_again(self, tokens: torch.Tensor) -> torch.Tensor:
        fp8, traffic = self._fp8, self._to.traffic
        entered = sent_again(fan_out(tokens, self._leaving), self._across, fp8, traffic)
        return sent_again(fan_out(entered, self._forwarded), self._inside, fp8, traffic)

    def combine(self, y: torch.Tensor) -> None:
        traffic, fp8 = self._to.traffic, (False, self._fp8)
        # Combine, inside the node: summed by copy where they came in; then across nodes.
        back = Transfer(y, self._inside.back(), fp8=fp8, kind="combine", traffic=traffic).land()
        summed = fan_in(back, self._forwarded)
        self._back = Transfer(summed, self._across.back(), fp8=fp8, kind="combine", traffic=traffic)

    def combined(self) -> torch.Tensor:
        return fan_in(self._back.land(), self._leaving)


def _tokens(leaves: torch.Tensor, copy: torch.Tensor, tokens: int, copies: int) -> torch.Tensor:
    """The token of each copy: (C,). leaves, copy: (nodes * N,), by node, then token: whether there is a copy, and its
    number. What there is no copy of goes to a place beyond the last, which is cut off: a selection would wait."""
    source = torch.arange(tokens, device=leaves.device).repeat(len(leaves) // tokens)
    out = torch.empty(copies + 1, dtype=source.dtype, device=source.device)
    return out.scatter_(0, torch.where(leaves, copy, copies), source)[:copies]


def _sorted(key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The stable order of `key` (R,), and its inverse."""
    order = key.argsort(stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    return order, inverse
