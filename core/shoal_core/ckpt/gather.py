"""Fills a state from whoever has parts of it, and has from another what one does not give as it should be."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shoal_core.ckpt.boxes import Box
from shoal_core.ckpt.errors import Damaged, Unfit
from shoal_core.ckpt.plan import Holder, Part, Read, Want, allot
from shoal_core.ckpt.read import Scattered, Source, in_parallel, take
from shoal_core.errors import StoreError, UserError

if TYPE_CHECKING:
    import torch

__all__ = ["gather"]

logger = logging.getLogger(__name__)


def gather(
    holders: Mapping[str, Holder],
    sources: Mapping[str, Source | Scattered],
    wanted: Mapping[str, Want],
    targets: Mapping[str, Sequence[torch.Tensor]],
    where: str,
    *,
    first: Sequence[Read] | None = None,
    own: str | None = None,
    turn: int = 0,
) -> Counter[str]:
    """Fill `targets`, the destinations of what is wanted, from whoever has it; what one does not give as it should be
    is had from another. sources: of each holder. first: what to read of whom, if that is planned already (else as
    `allot` has it, which tells of `own`, `turn` and `where`). Returns the bytes that are of each holder.

    Raises:
        Unfit: as `allot`. Damaged, StoreError: of the last that should have had something; targets hold anything then.
    """
    given: Counter[str] = Counter()
    standing = dict(holders)
    reads = allot(standing, wanted, where, own=own, turn=turn) if first is None else first
    while True:
        failed = tried(sources, reads, targets, given, last=len(standing) == 1)
        if not failed:
            return given
        for key, some in by_holder(failed).items():
            lacks = sum(one.part.block.bytes for one in some)
            logger.warning("%s: %d bytes come from others than %s: %s", where, lacks, key, some[0].error.problem)
        standing = without(standing, failed)
        wanted, targets = still(failed, wanted, targets)
        try:
            reads = allot(standing, wanted, where, own=own, turn=turn)
        except Unfit:
            raise failed[-1].error from None


@dataclass(frozen=True)
class Failed:
    """What a holder did not give, and why."""

    holder: str
    part: Part
    error: UserError


def tried(
    sources: Mapping[str, Source | Scattered],
    reads: Sequence[Read],
    targets: Mapping[str, Sequence[torch.Tensor]],
    given: Counter[str],
    *,
    last: bool,
) -> list[Failed]:
    """Read what can be read, and count it. Returns what could not be. last: there is nobody else to have it from.

    Raises:
        Damaged, StoreError: there is nobody else.
    """
    gone: dict[str, StoreError] = {}

    def one(read: Read) -> list[Failed]:
        key, errors = read.holder, dict[Part, UserError]()
        try:
            if key in gone:
                raise gone[key]
            errors |= take(sources[key], read, targets, all_or_nothing=last)
        except (Damaged, StoreError) as error:
            if last:
                raise
            if isinstance(error, StoreError):
                gone[key] = error
            errors |= dict.fromkeys(read.parts, error)
        return [Failed(key, part, error) for part, error in errors.items()]

    failed = []
    for read, lacks in zip(reads, in_parallel(one, reads), strict=True):
        given[read.holder] += read.bytes - sum(one.part.block.bytes for one in lacks)
        failed += lacks
    return failed


def by_holder(failed: Iterable[Failed]) -> dict[str, list[Failed]]:
    found: dict[str, list[Failed]] = defaultdict(list)
    for one in failed:
        found[one.holder].append(one)
    return found


def without(holders: Mapping[str, Holder], failed: Iterable[Failed]) -> dict[str, Holder]:
    """The holders that may be asked still: who does not answer is not, nor is anybody for what it gave damaged."""
    standing, spoiled = dict(holders), defaultdict[str, dict[str, list[Part]]](lambda: defaultdict(list))
    for one in failed:
        if isinstance(one.error, StoreError):
            standing.pop(one.holder, None)
        else:
            spoiled[one.holder][one.part.name].append(one.part)
    for key in spoiled.keys() & standing.keys():
        table = dict(standing[key].table)
        for name, parts in spoiled[key].items():
            lost = [part.block.box for part in parts]
            kept = [block for block in table[name].blocks if not any(block.box.common(box) for box in lost)]
            table[name] = replace(table[name], blocks=tuple(kept))
        standing[key] = replace(standing[key], table=table)
    return standing


def still(
    failed: Iterable[Failed], wanted: Mapping[str, Want], targets: Mapping[str, Sequence[torch.Tensor]]
) -> tuple[dict[str, Want], dict[str, list[torch.Tensor]]]:
    """What is still to be read: a destination each for what of a destination is missing."""
    lacking: defaultdict[str, list[tuple[Box, torch.Tensor]]] = defaultdict(list)
    for one in failed:
        for copy in one.part.copies:
            part = targets[one.part.name][copy.target][copy.box.inside(copy.into)]
            lacking[one.part.name].append((copy.box, part))
    left = {name: replace(wanted[name], boxes=tuple(box for box, _ in found)) for name, found in lacking.items()}
    return left, {name: [part for _, part in found] for name, found in lacking.items()}
