"""Which bytes of whom make up what is asked for, whatever mesh it is asked for from and whatever mesh it lies on.

Who has parts of a state is a `Holder`, wherever it has them: a file or an object of a checkpoint, another process's
memory, this one's own. Each part is a block in a file, or in what stands for one. Blocks with a SHA-256 are read whole,
since they are believed whole; of others any range is read, and summed on its way.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from shoal_core.ckpt.boxes import Box
from shoal_core.ckpt.cutting import cut, overlay, remainder, runs
from shoal_core.ckpt.dtypes import itemsize
from shoal_core.ckpt.errors import Unfit
from shoal_core.ckpt.index import Block, Index, Tensor

__all__ = [
    "AT_ONCE",
    "Copy",
    "Holder",
    "Part",
    "Read",
    "Want",
    "allot",
    "allot_all",
    "check_kind",
    "merged",
    "plan",
    "read_of",
    "remaining",
]

AT_ONCE = 1 << 24
"""Bytes that are read in one go, at most."""
FEWEST, SIDE_BY_SIDE = 1 << 20, 16
"""A reader that needs little reads it in so many goes all the same, none of fewer bytes than this: a far store gives
each connection only so much a second, and who hashes begins the sooner."""
PARTS = 256
"""Ranges with gaps between them that are read in one go."""
LEAST, SHARES = 1 << 16, 16
"""What several hold equally near is cut, so that each can give its share: into at least so many parts for each of the
holders, but none of fewer bytes than this."""
REMEDY = "resume with the workload it was saved by, or begin another run"


@dataclass(frozen=True)
class Want:
    """What is asked for of a tensor, which should be of this kind: `boxes`, each for a destination of its own."""

    dtype: str
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Copy:
    """Of a block `box` goes to the destination of number `target` of its tensor, which holds the box `into`."""

    target: int
    into: Box
    box: Box


@dataclass(frozen=True)
class Part:
    """A block, or a range of one that may be read by itself, and where it goes."""

    name: str
    block: Block
    copies: tuple[Copy, ...]


@dataclass(frozen=True)
class Read:
    """`bytes` in all of `parts`, which lie in `file` of `holder` from the byte `at` on: one after the other, without a
    gap if they are hashed."""

    file: str
    at: int
    bytes: int
    parts: tuple[Part, ...]
    holder: str = ""


@dataclass(frozen=True)
class Holder:
    """Who has the blocks of `table`, by the names of tensors (which they need not tile). `near`: what one has that is
    nearer is not read from one that is farther; of those equally near each gives about its share."""

    table: Mapping[str, Tensor]
    near: int = 0


def plan(index: Index, wanted: Mapping[str, Want], where: str, at_once: int = AT_ONCE) -> list[Read]:
    """What to read of a checkpoint so that every box that is wanted is filled; each block is read once. where: the
    checkpoint.

    Raises:
        Unfit: it holds no such tensor, or one of another shape or dtype.
    """
    return allot({"": Holder(index.tensors)}, wanted, where, at_once=at_once)


def allot(
    holders: Mapping[str, Holder],
    wanted: Mapping[str, Want],
    where: str,
    *,
    own: str | None = None,
    turn: int = 0,
    at_once: int = AT_ONCE,
) -> list[Read]:
    """What to read of whom so that every box that is wanted is filled: each range once, from the nearest that have it
    and about equally from those. own: which of the holders the reader is: what it has comes from itself. turn: which
    of them begins where all are equal; readers that know nothing of each other's plans take different ones. where: what
    all of them are, for messages.

    Raises:
        Unfit: one has a tensor of another shape or dtype, or nobody has some range.
    """
    reader = "" if own is None else own
    return allot_all(holders, {reader: wanted}, where, turn=turn, at_once=at_once, own=own is not None)[reader]


def allot_all(
    holders: Mapping[str, Holder],
    readers: Mapping[str, Mapping[str, Want]],
    where: str,
    *,
    own: bool = True,
    turn: int = 0,
    at_once: int = AT_ONCE,
) -> dict[str, list[Read]]:
    """The same for all readers at once, so that each holder gives its share of all that is read. A reader that is a
    holder too, by its name, has what it holds from itself (`own`), which is counted for nobody.

    Raises: as `allot`.
    """
    found = [
        (reader, cell)
        for reader, wanted in readers.items()
        for cell in chain.from_iterable(cells_of(name, want, holders, where) for name, want in wanted.items())
    ]
    size = sum(cell.bytes for _, cell in found)
    grain = min(at_once, max(LEAST, size // (SHARES * max(1, len(holders)))))
    places = {key: (number - turn) % len(holders) for number, key in enumerate(holders)}
    given: Counter[str] = Counter()
    chosen: dict[str, defaultdict[str, list[Cell]]] = {reader: defaultdict(list) for reader in readers}
    hashed: set[tuple[str, str, str, int]] = set()
    for reader, cell in sorted(found, key=lambda one: (len(one[1].owners), -one[1].bytes, one[1].name, one[1].box)):
        for part in cell.cut(grain if len(cell.owners) > 1 else at_once):
            if own and (mine := [owner for owner in part.owners if owner[0] == reader]):
                chosen[reader][reader].append(part.of(mine[0]))
                continue
            owner = min(part.owners, key=lambda one: (given[one[0]], places[one[0]]))
            key, block = owner
            chosen[reader][key].append(part.of(owner))
            if not block.sha256:
                given[key] += part.bytes
            elif (read := (reader, key, block.file, block.at)) not in hashed:
                hashed.add(read)
                given[key] += block.bytes
    go = min(at_once, max(FEWEST, size // (SIDE_BY_SIDE * max(1, len(readers)))))
    return {
        reader: in_turn([list(merged(parts_of(cells), go, key)) for key, cells in by_holder.items()])
        for reader, by_holder in chosen.items()
    }


@dataclass(frozen=True, slots=True)
class Cell:
    """A part of what one reader wants of a tensor, for all its destinations that hold it, and who has all of it."""

    name: str
    box: Box
    bytes: int
    into: tuple[tuple[int, Box], ...]
    owners: Sequence[tuple[str, Block]]

    def cut(self, limit: int) -> Iterator[Cell]:
        """Parts of at most so many bytes, unless it is to be had whole only."""
        if self.bytes <= limit or any(block.sha256 for _, block in self.owners):
            yield self
            return
        each = self.bytes // self.box.numel
        for box in cut(self.box, each, limit):
            yield Cell(self.name, box, box.numel * each, self.into, self.owners)

    def of(self, owner: tuple[str, Block]) -> Cell:
        """From one of its owners."""
        return Cell(self.name, self.box, self.bytes, self.into, [owner])


def cells_of(name: str, want: Want, holders: Mapping[str, Holder], where: str) -> Iterator[Cell]:
    """What is wanted of a tensor, by who of the nearest that have it has it.

    Raises: as `allot`.
    """
    tiers = tiers_of(name, want, holders, where)
    size = itemsize(want.dtype)
    for asked, numbers in overlay((box, number) for number, box in enumerate(want.boxes) if box.numel):
        into = tuple((number, want.boxes[number]) for number in numbers)
        left = [asked]
        for regions in tiers:
            within = [(common, whose) for box, whose in regions if (common := box.common(asked)) is not None]
            rest = []
            for box in left:
                parts = [(common, whose) for region, whose in within if (common := region.common(box)) is not None]
                for common, whose in parts:
                    yield Cell(name, common, common.numel * size, into, whose)
                if sum(common.numel for common, _ in parts) < box.numel:
                    rest += remaining(box, [common for common, _ in parts])
            left = rest
        if left:
            lacks = f"{name} from {list(left[0].offsets)}, {list(left[0].lengths)} elements of it"
            raise Unfit(f"{where}: nobody has {lacks}", "go on from an older checkpoint")


def tiers_of(
    name: str, want: Want, holders: Mapping[str, Holder], where: str
) -> list[list[tuple[Box, list[tuple[str, Block]]]]]:
    """Who has what of a tensor, as far as it is wanted, as boxes without a common element: the nearest first.

    Raises: as `allot`.
    """
    found: defaultdict[int, list[tuple[Box, tuple[str, Block]]]] = defaultdict(list)
    known = False
    for key, holder in holders.items():
        tensor = holder.table.get(name)
        if tensor is None:
            continue
        known = True
        check_kind(name, want, tensor, key or where)
        found[holder.near] += [
            (block.box, (key, block))
            for block in tensor.blocks
            if block.bytes and any(block.box.common(box) is not None for box in want.boxes)
        ]
    if not known:
        raise Unfit(f"{where}: does not hold this workload's state: there is no tensor {name}", REMEDY)
    return [regions_of(found[near]) for near in sorted(found)]


def check_kind(name: str, want: Want, tensor: Tensor, where: str) -> None:
    """Hold what is asked for of a tensor against what is there.

    Raises:
        Unfit: it has another shape or dtype.
    """
    if (tensor.shape, tensor.dtype) != (want.shape, want.dtype):
        there, asked = f"{list(tensor.shape)} {tensor.dtype}", f"{list(want.shape)} {want.dtype}"
        problem = f"{where}: does not hold this workload's state: {name} is {there} there, {asked} here"
        raise Unfit(problem, REMEDY)


def regions_of(found: Sequence[tuple[Box, tuple[str, Block]]]) -> list[tuple[Box, list[tuple[str, Block]]]]:
    """Who has what, as boxes without a common element. What a checkpoint has is apart already: its index was read."""
    keys = {key for _, (key, _) in found}
    if len(keys) == 1 and all(block.sha256 for _, (_, block) in found):
        return [(box, [owner]) for box, owner in found]
    return overlay(found)


def remaining(box: Box, parts: Iterable[Box]) -> list[Box]:
    """What of `box` is in none of `parts`."""
    left = [box]
    for part in parts:
        left = [rest for one in left for rest in remainder(one, part)]
    return left


def parts_of(cells: Iterable[Cell]) -> list[Part]:
    """What is read of one holder for cells that are its alone, in the order of its places: a hashed block whole, of
    others what is wanted of them."""
    whole: dict[tuple[str, Block], list[Copy]] = {}
    parts = []
    for cell in cells:
        ((_, block),) = cell.owners
        if block.sha256:
            copies = whole.setdefault((cell.name, block), [])
            copies += [Copy(number, into, cell.box) for number, into in cell.into]
            continue
        each = cell.bytes // cell.box.numel
        for box, before in runs(cell.box, block.box):
            part = Block(box, block.file, block.at + before * each, box.numel * each, "")
            parts.append(Part(cell.name, part, tuple(Copy(number, into, box) for number, into in cell.into)))
    parts += [Part(name, block, tuple(copies)) for (name, block), copies in whole.items()]
    return sorted(parts, key=lambda part: (part.block.file, part.block.at))


def merged(parts: Sequence[Part], at_once: int, holder: str = "") -> Iterator[Read]:
    """Reads of `parts`, which are in the order of their places."""
    together: list[Part] = []
    size = 0
    for part in parts:
        block = part.block
        if together:
            last = together[-1].block
            follows = block.file == last.file and (
                block.at == last.at + last.bytes if block.sha256 or last.sha256 else len(together) < PARTS
            )
            if not follows or size + block.bytes > at_once:
                yield read_of(together, holder)
                together, size = [], 0
        together.append(part)
        size += block.bytes
    if together:
        yield read_of(together, holder)


def read_of(parts: Sequence[Part], holder: str = "") -> Read:
    first = parts[0].block
    return Read(first.file, first.at, sum(part.block.bytes for part in parts), tuple(parts), holder)


def in_turn(by_holder: Sequence[Sequence[Read]]) -> list[Read]:
    """All reads, of one holder after another, so that all of them are asked at once."""
    return [read for reads in zip_longest(*by_holder) for read in reads if read is not None]
