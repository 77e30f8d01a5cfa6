"""Checkpoints in a folder and on S3 alike: any mesh onto any other, reading its part alone; damage; killed savers."""

from __future__ import annotations

import io
import random
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ReadTimeoutError

from shoal_core.ckpt import alone, among, pieces
from shoal_core.ckpt.boxes import Box, whole
from shoal_core.ckpt.errors import Damaged
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.plan import Want, plan
from shoal_core.ckpt.read import fetch
from shoal_core.ckpt.retention import Keep
from shoal_core.ckpt.together import Uncommitted
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.store import Store, join, open_store
from shoal_core.store.s3 import S3Store
from shoal_core.store.s3_calls import Calls
from tests.support import ranks
from tests.support.places import place
from tests.support.s3_server import account
from tests.support.saving_process import HALVES, killed_while_saving, save, state

__all__ = ["place"]

BLOCK = 256
SHAPES = {"layers.0.w": (24, 16), "layers.1.w": (24, 16), "layers.0.experts": (8, 4, 6), "layers.1.experts": (8, 4, 6)}
Mesh = dict[str, list[Box | None]]


def fsdp(ranks: int) -> Mesh:
    """Each tensor by rows."""
    return {name: rows(shape, ranks, range(ranks)) for name, shape in SHAPES.items()}


def stages(pp: int, each: int) -> Mesh:
    """Each stage has a layer, or all of them; its ranks have rows."""
    found: Mesh = {}
    for name, shape in SHAPES.items():
        stage = int(name.split(".")[1]) % pp
        found[name] = rows(shape, pp * each, range(stage * each, (stage + 1) * each))
    return found


def experts(ep: int) -> Mesh:
    """Experts are dealt out, and the rest is had by all."""
    return {
        name: rows(shape, ep, range(ep)) if "experts" in name else [whole(shape)] * ep for name, shape in SHAPES.items()
    }


def rows(shape: tuple[int, ...], count: int, holders: range) -> list[Box | None]:
    each = -(-shape[0] // len(holders))
    boxes: list[Box | None] = [None] * count
    for number, rank in enumerate(holders):
        first, end = (min(at * each, shape[0]) for at in (number, number + 1))
        boxes[rank] = Box((first, *[0] * (len(shape) - 1)), (end - first, *shape[1:]))
    return boxes


MESHES: dict[str, tuple[Mesh, int, Mesh, int]] = {
    "4 -> 2": (fsdp(4), 4, fsdp(2), 2),
    "4 -> 3": (fsdp(4), 4, fsdp(3), 3),
    "pp 2 -> 1": (stages(2, 2), 4, stages(1, 2), 2),
    "ep 2 -> 4": (experts(2), 2, experts(4), 4),
}


class Counted:
    """A folder of which is counted what is read."""

    def __init__(self, folder: Folder) -> None:
        self._folder, self.where = folder, folder.where
        self.bytes = 0

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        self.bytes += len(buffer)
        self._folder.read_into(name, offset, buffer)


@pytest.mark.parametrize("meshes", MESHES)
def test_each_rank_of_another_mesh_reads_its_part(place: str, monkeypatch: pytest.MonkeyPatch, meshes: str) -> None:
    monkeypatch.setattr(pieces, "SMALLEST", BLOCK)
    saved, saving, wanted, loading = MESHES[meshes]
    values = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    folder = Folder.at(join(place, name_of(3)))
    total = sum(tensor.nbytes for tensor in values.values())
    assert ranks.save(folder, values, saved, saving, 3) == [total + headers(folder)] * saving
    index = Checkpoint.open(folder).index
    for rank in range(loading):
        boxes = {name: box for name, held in wanted.items() if (box := held[rank]) is not None}
        targets = {name: [torch.empty(box.lengths)] for name, box in boxes.items()}
        source = Counted(folder)
        wants = {name: Want("float32", SHAPES[name], (box,)) for name, box in boxes.items()}
        size = fetch(source, plan(index, wants, ""), targets)
        for name, box in boxes.items():
            assert torch.equal(targets[name][0], values[name][box.inside(whole(SHAPES[name]))])
        mine = sum(box.numel * 4 for box in boxes.values())
        assert source.bytes == size
        assert mine <= size <= mine + 2 * BLOCK * len(boxes), "at most a block more at each end of each tensor"


def headers(folder: Folder) -> int:
    return sum(file.header for file in Checkpoint.open(folder).index.files.values())


def test_what_lies_beside_each_other(place: str) -> None:
    """What is whole, what stays, what is put aside, what is removed."""
    root = open_store(place)
    for steps in (10, 20, 30):
        save(place, steps)
    save(place, 20)
    root.put(f"{name_of(20)}/g9-cd-00000.safetensors", b"of another attempt")
    root.put(f"{name_of(40)}/g9-cd-00000.safetensors", b"half")
    assert [one.steps for one in among.whole(root)] == [10, 20, 30]
    among.prune(root, Keep(2))
    assert [one.steps for one in among.whole(root)] == [20, 30]
    assert [folder.name for folder in among.sweep(root)] == [name_of(40)]
    assert {entry.name.count("g9") for entry in root.list()} == {0}
    kept = len(list(root.list(name_of(30))))
    assert "ASIDE-" in among.set_aside(Folder(root, name_of(30)))
    assert [one.steps for one in among.whole(root)] == [20]
    save(place, 30)
    among.sweep(root)
    assert len(list(root.list(name_of(30)))) == 2 * kept
    assert among.delete(Folder(root, name_of(20))) > 0
    assert list(root.list(name_of(20))) == []
    Checkpoint.open(Folder(root, name_of(30))).verify()


# ---- damage

Bytes = dict[str, bytes]


def flip(content: bytes, other: bytes, dice: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(dice.choice([1, 1, 1, 7])):
        place = dice.randrange(8 * len(found))
        found[place // 8] ^= 1 << place % 8
    return bytes(found)


def truncate(content: bytes, other: bytes, dice: random.Random) -> bytes:
    return content[: dice.randrange(len(content))]


def lengthen(content: bytes, other: bytes, dice: random.Random) -> bytes:
    return content + dice.randbytes(dice.randrange(1, 100))


def remove(content: bytes, other: bytes, dice: random.Random) -> None:
    return None


def swap(content: bytes, other: bytes, dice: random.Random) -> bytes:
    return other


def shift(content: bytes, other: bytes, dice: random.Random) -> bytes:
    """A run of bytes from elsewhere in the object, or from another."""
    found, source = bytearray(content), dice.choice([content, other])
    count = dice.randrange(1, 65)
    start, end = (dice.randrange(max(1, len(held) - count)) for held in (found, source))
    found[start : start + count] = source[end : end + count]
    return bytes(found)


WAYS: list[Callable[[bytes, bytes, random.Random], bytes | None]] = [flip, truncate, lengthen, remove, swap, shift]


def read_all(root: Store, steps: int) -> Bytes:
    return {entry.name: root.get(entry.name) for entry in root.list(f"{name_of(steps)}/")}


def loaded(root: Store, steps: int) -> dict[str, torch.Tensor]:
    return alone.read(Checkpoint.open(Folder(root, name_of(steps))))


def attempted(root: Store, steps: int) -> tuple[Damaged | None, dict[str, torch.Tensor]]:
    try:
        return None, loaded(root, steps)
    except Damaged as error:
        return error, {}


def same(found: dict[str, torch.Tensor], wanted: dict[str, Any]) -> bool:
    return all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def damage(place: str, times: int) -> None:
    """Damage of any kind to any object is seen, or means nothing; the newest whole one before it is whole still."""
    dice, seen, root = random.Random(17), Counter[str](), open_store(place)
    for steps in (10, 20):
        save(place, steps)
    pristine, others = read_all(root, 20), read_all(root, 10)
    for _ in range(times):
        victim = dice.choice(sorted(pristine))
        other = dice.choice([content for name, content in sorted({**others, **pristine}.items()) if name != victim])
        hurt = dice.choice(WAYS)(pristine[victim], other, dice)
        if hurt is None:
            root.delete([victim])
        else:
            root.put(victim, hurt)
        error, found = attempted(root, 20)
        if error is None:
            assert same(found, state(20))
        else:
            assert hurt != pristine[victim]
            assert name_of(20) in error.problem
            assert error.remedy
        seen["loaded" if error is None else "refused"] += 1
        root.put(victim, pristine[victim])
    assert seen["refused"] > 0.7 * times
    assert all(same(loaded(root, steps), state(steps)) for steps in (10, 20))


def kill(place: str, times: int, longest: float) -> None:
    """Whoever saves is killed: what was said to be whole is, and nothing else counts."""
    dice, first = random.Random(23), 1
    for _ in range(times):
        said = killed_while_saving(place, first, dice.uniform(0.0, longest))
        found = [one.steps for one in among.whole(open_store(place))]
        assert found[-1] in (said, said + 1), "the last word of a killed process may be lost"
        assert found == list(range(1, found[-1] + 1))
        for steps in found[first - 1 :]:
            assert same(loaded(open_store(place), steps), state(steps))
        among.sweep(open_store(place))
        first = found[-1] + 1


@pytest.mark.parametrize("times", [60, pytest.param(300, marks=pytest.mark.long)])
def test_nothing_but_what_was_saved_is_ever_loaded(place: str, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    monkeypatch.setattr(pieces, "SMALLEST", BLOCK)
    damage(place, times)


@pytest.mark.parametrize("times", [3, pytest.param(40, marks=pytest.mark.long)])
def test_a_saver_that_is_killed_loses_no_whole_checkpoint(place: str, times: int) -> None:
    kill(place, times, 0.1)


# ---- a store that fails


class Moody:
    """A store on S3 that answers with `fault` whenever one of the files of rank 1 is written. Nobody sleeps: pauses
    between attempts are all that passes on its clock."""

    def __init__(self, prefix: str) -> None:
        self.fault: AWSResponse | Exception | None = None
        slept: list[float] = []
        calls = Calls("s3://runs", deadline=5.0, sleep=slept.append, clock=lambda: sum(slept))
        calls.client().meta.events.register_first("before-send.s3", self._spoil)
        self.store = S3Store(f"s3://runs/{prefix}", "runs", prefix, calls)

    def _spoil(self, request: Any, **_: Any) -> AWSResponse | None:
        if request.method == "GET" or "-00001.safetensors" not in request.url:
            return None
        if isinstance(self.fault, Exception):
            raise self.fault
        return self.fault


class Raw(io.BytesIO):
    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.getvalue()


def refusal(status: int, code: str) -> AWSResponse:
    body = f"<Error><Code>{code}</Code><Message>the store's words</Message></Error>".encode()
    return AWSResponse("http://s3", status, {"Content-Length": str(len(body))}, Raw(body))


FAULTS: dict[str, tuple[Callable[[], AWSResponse | Exception], str]] = {
    "busy": (lambda: refusal(503, "SlowDown"), "check the network and the object store"),
    "silent": (lambda: ReadTimeoutError(endpoint_url="http://s3"), "check the network and the object store"),
    "wrong credentials": (lambda: refusal(403, "InvalidAccessKeyId"), "AWS_ACCESS_KEY_ID"),
    "a wrong clock": (lambda: refusal(403, "RequestTimeTooSkewed"), "set this machine's clock"),
    "read-only": (lambda: refusal(403, "AccessDenied"), "s3:PutObject"),
    "vanished": (lambda: refusal(404, "NoSuchBucket"), "check the address"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_save_that_a_store_does_not_take_is_told_to_all_and_half_believed_by_none(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    account(monkeypatch, s3_endpoint, tmp_path)
    boto3.client("s3").create_bucket(Bucket="runs")
    make, remedy = FAULTS[fault]
    moody = Moody(secrets.token_hex(4))
    folder = Folder(moody.store, name_of(20))
    moody.store.put("seen", b"the store answers")
    moody.fault = make()
    answers = ranks.save(folder, state(20), HALVES, 2, 20)
    assert [type(answer) for answer in answers] == [Uncommitted, Uncommitted]
    assert all("rank 1: StoreError" in answer.problem and remedy in answer.remedy for answer in answers), answers
    assert (among.whole(moody.store), folder.sizes()) == ([], {})
    moody.fault = None
    assert min(ranks.save(folder, state(20), HALVES, 2, 20)) > 0
    assert same(loaded(moody.store, 20), state(20))
