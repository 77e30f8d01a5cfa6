"""Whatever parts of a state whoever has: what is asked for is read once, from the nearest, and evenly."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_core.ckpt.boxes import Box, whole
from shoal_core.ckpt.cutting import cut, offset, overlay, remainder, runs
from shoal_core.ckpt.errors import Damaged, Unfit
from shoal_core.ckpt.gather import gather
from shoal_core.ckpt.index import Block, Index, Tensor
from shoal_core.ckpt.plan import Holder, Read, Want, allot, allot_all, plan
from shoal_core.errors import StoreError

SHAPES = {"s": (), "v": (7,), "m": (12, 5), "e": (3, 4, 6), "none": (0, 3)}
SIZE = 4


def elements(box: Box) -> set[tuple[int, ...]]:
    """What a box holds, one by one."""
    ranges = (range(first, first + length) for first, length in zip(box.offsets, box.lengths, strict=True))
    return set(product(*ranges))


def some_box(shape: tuple[int, ...], dice: random.Random) -> Box:
    ends = [sorted(dice.choices(range(size + 1), k=2)) for size in shape]
    return Box(tuple(first for first, _ in ends), tuple(end - first for first, end in ends))


class Memory:
    """A holder whose every byte says whose element it is; it can be made to fail."""

    def __init__(self, values: Mapping[str, torch.Tensor]) -> None:
        self.values = values
        self.blocks: dict[str, list[Block]] = {name: [] for name in values}
        self.content = bytearray()
        self.reads: list[list[int]] = []
        self.fails: Exception | None = None
        self.flips = 0

    def hold(self, name: str, box: Box, sha256: str = "") -> None:
        part = self.values[name][box.inside(whole(self.values[name].shape))].contiguous()
        self.blocks[name].append(Block(box, "memory", len(self.content), part.nbytes, sha256))
        self.content += part.view(-1).numpy().tobytes()

    def table(self, near: int = 0) -> Holder:
        tensors = {n: Tensor("int32", tuple(self.values[n].shape), tuple(b)) for n, b in self.blocks.items() if b}
        return Holder(tensors, near)

    def where(self, name: str) -> str:
        return name

    def read_each(self, name: str, ranges: Sequence[tuple[int, memoryview]]) -> None:
        if self.fails is not None:
            raise self.fails
        self.reads.append([at for at, _ in ranges])
        for at, buffer in ranges:
            buffer[:] = self.content[at : at + buffer.nbytes]
        if self.flips:
            self.flips -= 1
            ranges[0][1][0] ^= 1
            raise Damaged("a byte is another", "")


def state() -> dict[str, torch.Tensor]:
    first, found = 0, {}
    for name, shape in SHAPES.items():
        size = whole(shape).numel
        found[name] = torch.arange(first, first + size, dtype=torch.int32).view(shape)
        first += size
    return found


def read_elements(reads: Sequence[Read]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Holder, tensor and place of every element that is read for somebody."""
    for read in reads:
        for part in read.parts:
            for at in set().union(*(elements(copy.box) for copy in part.copies)):
                yield read.holder, part.name, at


@settings(max_examples=50)
@given(st.integers(1, 5), st.booleans(), st.randoms(use_true_random=False))
def test_every_element_is_read_once_from_the_nearest(count: int, hashed: bool, dice: random.Random) -> None:
    values = state()
    memories = {f"h{n}": Memory(values) for n in range(count)}
    near = {key: dice.randrange(3) for key in memories}
    for memory, (name, shape) in product(memories.values(), SHAPES.items()):
        for _ in range(dice.randrange(3)):
            memory.hold(name, some_box(shape, dice))
    everything = Memory(values)
    for name, shape in SHAPES.items():
        for box in cut(whole(shape), SIZE, 24):
            everything.hold(name, box, "0" * 64 if hashed else "")
    memories["all"], near["all"] = everything, 3
    wanted = {
        name: Want("int32", shape, tuple(some_box(shape, dice) for _ in range(dice.randrange(4))))
        for name, shape in SHAPES.items()
    }
    holders = {key: memory.table(near[key]) for key, memory in memories.items()}
    own = dice.choice([None, "h0"])
    reads = allot(holders, wanted, "here", own=own, turn=dice.randrange(9), at_once=dice.choice([16, 1 << 20]))
    found = Counter((name, at) for _, name, at in read_elements(reads))
    asked = {(name, at) for name, want in wanted.items() for box in want.boxes for at in elements(box)}
    assert found == Counter(dict.fromkeys(asked, 1))
    for key, name, at in read_elements(reads):
        having = {
            one
            for one, memory in memories.items()
            if any(at in elements(block.box) for block in memory.blocks[name] if block.bytes)
        }
        nearest = {one for one in having if near[one] == min(near[other] for other in having)}
        assert key in nearest
        assert own not in nearest or key == own
    targets = {n: [torch.zeros(box.lengths, dtype=torch.int32) for box in want.boxes] for n, want in wanted.items()}
    if not hashed:
        given = gather(holders, memories, wanted, targets, "here", own=own)
        assert given.total() == SIZE * len(asked)
        for name, want in wanted.items():
            for box, target in zip(want.boxes, targets[name], strict=True):
                assert torch.equal(target, values[name][box.inside(whole(values[name].shape))])


def mesh(shape: tuple[int, ...], grid: Sequence[int]) -> list[Box]:
    """The parts of a tensor of workers in a grid over its dimensions."""
    found = []
    for place in product(*map(range, grid)):
        ends = [(s * i // g, s * (i + 1) // g) for s, g, i in zip(shape, grid, place, strict=True)]
        found.append(Box(tuple(first for first, _ in ends), tuple(end - first for first, end in ends)))
    return found


def held(boxes: Mapping[str, Box], shapes: Mapping[str, tuple[int, ...]]) -> Holder:
    blocks, at = {}, 0
    for name, box in boxes.items():
        blocks[name] = Tensor("float32", shapes[name], (Block(box, "f", at, 4 * box.numel, ""),))
        at += 4 * box.numel
    return Holder(blocks)


@pytest.mark.parametrize(("before", "after", "lost"), [(4, 3, 1), (4, 2, 4), (8, 4, 0), (2, 4, 0), (3, 2, 1)])
def test_all_give_about_their_share(before: int, after: int, lost: int) -> None:
    """Of two cells of `before` workers one loses `lost`; all form cells of `after`. What a worker has itself is not
    read; of the rest the busiest gives as little as can be: no set of holders can give less than what it alone has."""
    shapes = {f"w{n}": (96 * 70, 640 + n) for n in range(5)}
    meshes = {n: {name: mesh(shape, (n, 1)) for name, shape in shapes.items()} for n in (before, after)}
    holders = {
        f"{cell}.{rank}": held({name: meshes[before][name][rank] for name in shapes}, shapes)
        for cell in (0, 1)
        for rank in range(before)
        if cell == 0 or rank >= lost
    }
    names = [*holders][: len(holders) // after * after]
    readers = {
        key: {n: Want("float32", shape, (meshes[after][n][at % after],)) for n, shape in shapes.items()}
        for at, key in enumerate(names)
    }
    given: Counter[str] = Counter()
    alone: Counter[frozenset[str]] = Counter()
    for key, reads in allot_all(holders, readers, "here").items():
        boxes = {name: want.boxes[0] for name, want in readers[key].items()}
        assert sum(read.bytes for read in reads) == sum(4 * box.numel for box in boxes.values())
        for read in reads:
            if read.holder != key:
                given[read.holder] += read.bytes
                alone[frozenset(one for one in holders if one[2:] == read.holder[2:])] += read.bytes
    sets = [frozenset().union(*some) for n in range(1, len(alone) + 1) for some in combinations(alone, n)]
    least = max(sum(size for having, size in alone.items() if having <= some) / len(some) for some in sets)
    assert max(given.values()) <= 1.05 * max(least, given.total() / len(holders))
    if not lost:
        assert max(given.values()) <= 1.25 * given.total() / len(holders)


def test_what_lies_side_by_side_is_asked_for_at_once() -> None:
    """Columns of a part are many ranges of one read, and small tensors one after the other a single one."""
    shapes = {"m": (8, 6), "a": (3,), "b": (4,)}
    table = held({name: whole(shape) for name, shape in shapes.items()}, shapes)
    (read,) = allot({"h": table}, {"m": Want("float32", (8, 6), (Box((0, 2), (8, 3)),))}, "")
    assert [(part.block.at, part.block.bytes) for part in read.parts] == [(24 * row + 8, 12) for row in range(8)]
    every = {name: Want("float32", shape, (whole(shape),)) for name, shape in shapes.items()}
    (read,) = allot({"h": table}, every, "")
    assert (read.at, read.bytes) == (0, 4 * (48 + 7))
    assert len(allot({"h": table}, every, "", at_once=16)) > 10


def test_what_nobody_has_is_named() -> None:
    table = held({"m": Box((0, 0), (5, 6))}, {"m": (8, 6)})
    for want, said in [
        (Want("float32", (8, 6), (whole((8, 6)),)), r"nobody has m from \[5, 0\]"),
        (Want("int32", (8, 6), (whole((8, 6)),)), r"h: .* m is \[8, 6\] float32 there, \[8, 6\] int32 here"),
    ]:
        with pytest.raises(Unfit, match=said):
            allot({"h": table}, {"m": want}, "here")
    with pytest.raises(Unfit, match=r"here: .* no tensor n"):
        allot({"h": table}, {"n": Want("float32", (1,), (whole((1,)),))}, "here")


def test_what_one_does_not_give_is_had_from_another() -> None:
    values = state()
    memories = {key: Memory(values) for key in "abc"}
    for memory, name in product(memories.values(), SHAPES):
        memory.hold(name, whole(SHAPES[name]))
    wanted = {name: Want("int32", shape, (whole(shape),)) for name, shape in SHAPES.items()}
    holders = {key: memory.table() for key, memory in memories.items()}

    def load() -> Counter[str]:
        targets = {name: [torch.full_like(value, -1)] for name, value in values.items()}
        found = gather(holders, memories, wanted, targets, "here")
        assert all(torch.equal(target, values[name]) for name, (target,) in targets.items())
        return found

    size = sum(value.nbytes for value in values.values())
    assert all(load().values())
    memories["a"].fails = StoreError("is gone")
    assert load()["a"] == 0
    memories["b"].flips = 1
    found = load()
    assert found.total() == size
    memories["b"].fails = memories["c"].fails = StoreError("is gone too")
    with pytest.raises(StoreError, match="gone"):
        load()


def test_a_large_state_is_planned_by_a_look_at_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 holders of 40 tensors: what a rank asks for is compared with each block once, and with its own few again."""
    looks, common = Counter[str](), Box.common

    def counted(mine: Box, other: Box) -> Box | None:
        looks["all"] += 1
        return common(mine, other)

    monkeypatch.setattr(Box, "common", counted)
    shape, ranks = (7168, 18432), 256
    names = [f"w{n}" for n in range(40)]
    parts = mesh(shape, (ranks, 1))
    holders = {
        f"{cell}.{rank}": held(dict.fromkeys(names, parts[rank]), dict.fromkeys(names, shape))
        for cell in (0, 1)
        for rank in range(ranks)
    }
    want = Want("float32", shape, (mesh(shape, (192, 1))[5],))
    reads = allot(holders, dict.fromkeys(names, want), "here", turn=5)
    assert sum(read.bytes for read in reads) == len(names) * want.boxes[0].numel * 4
    asked = Counter(read.holder for read in reads)
    assert asked.keys() == {"0.6", "0.7", "1.6", "1.7"}
    assert looks["all"] < 1.05 * len(holders) * len(names)
    assert max(read.bytes for read in reads) <= 1 << 24


@given(st.randoms(use_true_random=False))
def test_boxes_are_cut_without_loss(dice: random.Random) -> None:
    shape = dice.choice([(), (7,), (4, 5), (3, 4, 3)])
    boxes = [some_box(shape, dice) for _ in range(4)]
    cells = overlay(enumerate_boxes(boxes))
    found = Counter(at for box, _ in cells for at in elements(box))
    assert found == Counter(dict.fromkeys(set().union(*map(elements, boxes)), 1))
    assert all(elements(box) <= elements(boxes[n]) for box, whose in cells for n in whose)
    one, other = boxes[:2]
    left = Counter(at for box in remainder(one, other) for at in elements(box))
    assert left == Counter(dict.fromkeys(elements(one) - elements(other), 1))
    parts = list(cut(one, 4, dice.choice([4, 12, 100])))
    assert Counter(at for box in parts for at in elements(box)) == Counter(dict.fromkeys(elements(one), 1))
    outer = whole(shape)
    order = {at: number for number, at in enumerate(sorted(elements(outer)))}
    if elements(one):
        walked = list(runs(one, outer))
        for box, before in walked:
            places = [order[at] for at in sorted(elements(box))]
            assert places == list(range(before, before + len(places)))
            assert offset(box, outer) == before
        assert Counter(at for box, _ in walked for at in elements(box)) == Counter(dict.fromkeys(elements(one), 1))


def enumerate_boxes(boxes: Sequence[Box]) -> Iterator[tuple[Box, int]]:
    return ((box, number) for number, box in enumerate(boxes) if box.numel)


def test_blocks_of_a_checkpoint_side_by_side_hold_no_reader_up() -> None:
    """Its index is known to tile: nobody compares each block with each, which would not end here."""
    count = 20_000
    blocks = tuple(Block(Box((0, at), (1, 1)), "g0-ab-00000.safetensors", 4 * at, 4, "0" * 64) for at in range(count))
    index = Index({}, {"w": Tensor("float32", (1, count), blocks)})
    (read,) = plan(index, {"w": Want("float32", (1, count), (Box((0, 0), (1, count)),))}, "")
    assert (read.bytes, len(read.parts)) == (4 * count, count)
