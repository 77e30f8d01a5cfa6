"""Which worker holds which expert: packed by measured load, as DeepSeek's EPLB does without redundant experts.

E experts, P workers, H = E/P places a worker; place p is on worker p // H. A placement is a permutation (E,) int64: the
place of every expert. Its numbers are the router's and the checkpoint's; places matter to the exchange alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from shoal_workloads.parallel.dispatch import Exchange

__all__ = ["identity", "imbalance", "moved", "place_experts"]


def identity(n_experts: int) -> torch.Tensor:
    """Every expert in the place of its number."""
    return torch.arange(n_experts)


def place_experts(loads: Sequence[float], ranks: int, per_node: int, groups: int = 1) -> torch.Tensor:
    """Pack experts so that the busiest worker has little to do: the heaviest first, each to the least loaded worker
    with room; on a worker by number. loads: (E,); per_node: workers of a node; groups: E/groups consecutive experts are
    a group of node-limited routing.

    Where the groups divide among the nodes they are packed to nodes first, whole, so that a token stays within as few
    nodes as its router allows. Deterministic. Never worse than every expert in its own place: that is kept if it is as
    good.
    """
    experts, nodes = len(loads), ranks // per_node
    node_of = [0] * experts
    whole = nodes > 1 and groups % nodes == 0
    if whole:
        size = experts // groups
        by_group = _pack([sum(loads[g * size : (g + 1) * size]) for g in range(groups)], nodes)
        node_of = [by_group[e // size] for e in range(experts)]
    rank_of = [0] * experts
    for node in range(nodes if whole else 1):
        here = [e for e in range(experts) if node_of[e] == node]
        for e, rank in zip(here, _pack([loads[e] for e in here], per_node if whole else ranks), strict=True):
            rank_of[e] = node * per_node + rank
    places = torch.empty(experts, dtype=torch.int64)
    places[torch.tensor(sorted(range(experts), key=lambda e: (rank_of[e], e)))] = torch.arange(experts)
    kept = identity(experts)
    return places if imbalance(loads, places, ranks) < imbalance(loads, kept, ranks) else kept


def _pack(weights: Sequence[float], packs: int) -> list[int]:
    """The pack of each weight, equally many in each."""
    room, total, pack_of = [len(weights) // packs] * packs, [0.0] * packs, [0] * len(weights)
    for i in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
        pack = min((p for p in range(packs) if room[p]), key=lambda p: (total[p], p))
        pack_of[i] = pack
        room[pack] -= 1
        total[pack] += weights[i]
    return pack_of


def imbalance(loads: Sequence[float], placement: torch.Tensor, ranks: int) -> float:
    """How far the busiest worker lies over the mean: max / mean - 1. loads: (E,) by expert; placement: (E,)."""
    by_place = torch.empty(len(loads), dtype=torch.float64)
    by_place[placement] = torch.tensor(loads, dtype=torch.float64)
    by_rank = by_place.view(ranks, -1).sum(dim=1)
    return float(by_rank.max() / by_rank.mean().clamp_min(1e-9) - 1)


@torch.no_grad()
def moved(tensor: torch.Tensor, old: torch.Tensor, new: torch.Tensor, among: Exchange) -> torch.Tensor:
    """A copy of what belongs to the experts of a layer (weights, moments, averages, gradients), bit for bit, as the
    placement `new` has it. tensor: (H, ...), the places held here by `old`, which stays as it is. Collective over the
    group, with the same placements everywhere.

    Raises:
        RuntimeError: a peer is gone.
    """
    held = len(old) // among.ranks
    first = among.rank * held
    came_from = torch.empty_like(old)
    came_from[new] = old  # by new place: the place its expert had
    goes_to = torch.empty_like(new)
    goes_to[old] = new
    # Both sides sort what passes between two workers by its new place.
    leaving, arriving = goes_to[first : first + held], came_from[first : first + held]
    order, source = leaving.argsort(), arriving // held
    send = torch.bincount(leaving // held, minlength=among.ranks).tolist()
    receive = torch.bincount(source, minlength=among.ranks).tolist()
    sent = tensor.index_select(0, order.to(tensor.device))
    arrived = torch.empty_like(sent)
    dist.all_to_all_single(arrived, sent, receive, send, group=among.group)
    out = torch.empty_like(arrived)
    return out.index_copy_(0, source.argsort(stable=True).to(tensor.device), arrived)
