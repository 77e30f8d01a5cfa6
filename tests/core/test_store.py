"""What every store promises, in a folder and on S3 alike."""

from __future__ import annotations

import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs

from shoal_core.errors import UserError
from shoal_core.store import Entry, Store, bring, create_alone, join, open_store
from shoal_core.store.address import parsed
from shoal_core.store.arrow import ArrowStore, Place
from shoal_core.store.s3_writer import PART_BYTES
from tests.support.s3_server import account

HARD = "with space/100% of #1 + 東é/?&=.bin"


class _Objects(fs.FSSpecHandler):
    """fsspec's files for pyarrow; `copy` would take names for patterns."""

    def copy_file(self, src: str, dest: str) -> None:
        self.fs.cp_file(src, dest)


NAMED = os.environ.get("SHOAL_TEST_STORE", "")
"""Address of an empty store to try as well: `gs://bucket/prefix`, with the credentials that it needs in place."""


@pytest.fixture(params=["folder", "s3", "arrow folder", "arrow objects", *([NAMED] if NAMED else [])])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty one."""
    if request.param == NAMED:
        return open_store(join(NAMED, secrets.token_hex(4), "100% of #1 + é"))
    if request.param == "folder":
        return open_store(tmp_path / "a folder")
    if request.param == "arrow folder":  # as Hadoop's
        return ArrowStore("x", Place(f"{tmp_path}/100% of #1 + é", fs.LocalFileSystem, "hdfs://h", True, "mend it"))
    if request.param == "arrow objects":  # as Google's and Azure's
        base, bucket = f"/{secrets.token_hex(4)}", "runs"  # the memory is one for all
        memory = fs.SubTreeFileSystem(base, fs.PyFileSystem(_Objects(MemoryFileSystem())))
        memory.create_dir(bucket)
        return ArrowStore("memory", Place(f"{bucket}/100% of #1 + é", lambda: memory, "gs://", False, "mend it"))
    account(monkeypatch, request.getfixturevalue("s3_endpoint"), tmp_path)
    boto3.client("s3").create_bucket(Bucket="runs")
    return open_store(f"s3://runs/{secrets.token_hex(4)}/100% of #1 + é")


def test_what_is_put_is_there_whole_and_in_ranges(store: Store) -> None:
    for name, content in ((HARD, b"0123456789"), ("empty", b"")):
        store.put(name, b"old")
        store.put(name, memoryview(content))
        assert store.get(name) == content
        assert store.stat(name).bytes == len(content)
        assert store.where(name).endswith(f"/{name}")
    assert store.get(HARD, range(3, 7)) == b"3456"
    room = bytearray(4)
    store.read_into(HARD, 6, memoryview(room))
    assert room == b"6789"
    assert store.get("empty", range(0)) == b""
    for span in (range(8, 11), range(10, 11), range(90, 99)):
        with pytest.raises(EOFError, match="100% of"):
            store.get(HARD, span)


def test_what_is_not_there_is_said_so(store: Store) -> None:
    store.put("a/b", b"1")
    for name in ("nothing", "a", "a/b/c", "a/nothing"):
        for look in (store.get, store.stat, lambda one: store.get(one, range(0, 1))):
            with pytest.raises(FileNotFoundError, match=name):
                look(name)
    with pytest.raises(FileNotFoundError):
        store.read_into("nothing", 0, memoryview(bytearray()))
    store.delete(["nothing"])
    for name in ("", "/a", "a/", "a//b", "../a", "a/./b", "a\0"):
        with pytest.raises(ValueError, match="no name"):
            store.put(name, b"")


def test_listings(store: Store) -> None:
    assert list(store.list()) == []
    assert list(store.folders()) == list(store.folders("no")) == []
    names = ["a", "ab/c", HARD, "step-1/x", "step-1/y/z", "step-10/x"]
    for number, name in enumerate(names):
        store.put(name, bytes(number))
    with store.writer("being-written") as writer:
        writer.write(b"x")
        found = sorted(store.list())
        writer.abort()
    assert [(entry.name, entry.bytes) for entry in found] == sorted((name, at) for at, name in enumerate(names))
    assert all(isinstance(entry, Entry) for entry in found)
    if store.address != "memory":  # which tells no times
        assert all(entry.modified > 1.7e9 for entry in found)
    assert sorted(entry.name for entry in store.list("step-1")) == ["step-1/x", "step-1/y/z", "step-10/x"]
    assert [entry.name for entry in store.list("step-1/x")] == ["step-1/x"]
    assert list(store.folders()) == ["ab", "step-1", "step-10", "with space"]
    assert list(store.folders("step-1")) == ["y"]
    store.delete(names[3:])
    assert list(store.folders()) == ["ab", "with space"]
    assert sorted(entry.name for entry in store.list()) == sorted(names[:3])


def test_what_another_program_called_otherwise_is_not_listed(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of S3 are any text: one like a path to elsewhere would be written there by who copies a store."""
    account(monkeypatch, s3_endpoint, tmp_path)
    client, prefix = boto3.client("s3"), secrets.token_hex(4)
    client.create_bucket(Bucket="runs")
    for name in ("../../out.safetensors", "a//b.safetensors", "a/./c.safetensors", "/d.safetensors", "e/"):
        client.put_object(Bucket="runs", Key=f"{prefix}/{name}", Body=b"x")
    store = open_store(f"s3://runs/{prefix}")
    store.put("a/whole.safetensors", b"yes")
    assert [entry.name for entry in store.list()] == ["a/whole.safetensors"]
    assert (list(store.folders()), list(store.folders("a"))) == (["a", "e"], [])
    bring(store, tmp_path / "copy", lambda name: True)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["whole.safetensors"]


CONDITIONAL = pytest.mark.parametrize("store", ["folder", "s3"], indirect=True)


@CONDITIONAL
def test_one_of_several_creates(store: Store) -> None:
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda one: store.create("marker", b"%d" % one), range(4)))
    if store.address.startswith("s3://"):  # moto looks, then puts: it lets several through where they come at once
        won = [store.create("marker 2", b"%d" % one) for one in range(4)]
        assert store.get("marker 2") == b"0"
    else:
        assert store.get("marker") == b"%d" % won.index(True)
    assert won.count(True) == 1
    assert not store.create("marker", b"again")


def test_who_is_alone_creates_anywhere(store: Store) -> None:
    assert create_alone(store, "a/marker", b"0")
    assert not create_alone(store, "a/marker", b"1")
    assert store.get("a/marker") == b"0"


@pytest.mark.parametrize("store", ["arrow folder", "arrow objects"], indirect=True)
def test_stores_without_conditional_writes_say_so(store: Store) -> None:
    assert not store.conditional
    for work in (lambda: store.create("lease", b""), lambda: store.swap("lease", b"", None)):
        with pytest.raises(UserError, match=r"1 \+ é/lease: .*no conditional writes") as error:
            work()
        assert "s3://" in error.value.remedy
    assert list(store.list()) == []


@CONDITIONAL
def test_whoever_knows_the_version_swaps(store: Store) -> None:
    first = store.swap("lease", b"a", None)
    assert first is not None
    assert first == store.stat("lease").version
    assert store.swap("lease", b"b", None) is None
    second = store.swap("lease", b"b", first)
    assert second not in (None, first)
    assert second == store.stat("lease").version
    assert store.swap("lease", b"c", first) is None
    assert store.get("lease") == b"b"
    assert store.swap("nothing", b"c", first) is None
    store.delete(["lease"])
    assert store.swap("lease", b"c", second) is None
    assert list(store.list()) == []


def test_a_stream_is_whole_or_not_there(store: Store) -> None:
    block = secrets.token_bytes(PART_BYTES // 3 + 7)
    with store.writer("big") as writer:
        for _ in range(7):
            buffer = bytearray(block)
            writer.write(memoryview(buffer))
            buffer[:] = bytes(len(buffer))  # may be used again
        with pytest.raises(FileNotFoundError):
            store.get("big")
    whole = block * 7
    assert store.stat("big").bytes == len(whole)
    assert store.get("big") == whole
    assert store.get("big", range(5, len(whole) - 5)) == whole[5:-5]
    with pytest.raises(EOFError):
        store.get("big", range(len(whole) + 1))
    broken = store.writer("big")

    def interrupted() -> None:
        with broken:
            broken.write(block * 4)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    broken.abort()
    assert store.get("big") == whole
    assert [entry.name for entry in store.list()] == ["big"]


def test_what_writers_that_were_killed_left_can_be_removed(store: Store) -> None:
    store.put("a/b/whole", b"1")
    killed = [store.writer("a/b/half"), store.writer("a/b/c/half"), store.writer("elsewhere/half")]
    for writer in killed:
        writer.write(bytes(PART_BYTES + 1))
    assert [entry.name for entry in store.list()] == ["a/b/whole"]
    assert store.drop_unfinished("a/b") == 2
    assert store.drop_unfinished("a/b") == store.drop_unfinished("nothing") == 0
    assert store.drop_unfinished("") == 1
    assert [entry.name for entry in store.list()] == ["a/b/whole"]


def test_swaps_of_many_processes_and_threads_are_counted_once_each_in_a_folder(tmp_path: Path) -> None:
    """Each adds one to a number, over and over: none is lost."""
    import multiprocessing

    open_store(tmp_path).put("count", b"0")
    work = [multiprocessing.get_context("fork").Process(target=_count, args=(tmp_path,)) for _ in range(3)]
    for one in work:
        one.start()
    for one in work:
        one.join()
    assert [one.exitcode for one in work] == [0, 0, 0]
    assert open_store(tmp_path).get("count") == b"60"


def _count(folder: Path) -> None:
    store = open_store(folder)

    def add(_: int) -> None:
        while True:
            version = store.stat("count").version
            if store.swap("count", b"%d" % (int(store.get("count")) + 1), version):
                return

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(add, range(20)))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "empty"),
        ("s3://", "names no bucket"),
        ("s3:///a", "names no bucket"),
        ("ftp://host/a", "not known"),
        ("file://host/a", "from the root"),
        ("s3://b/a?regoin=x", "unknown option 'regoin'"),
        ("s3://b/a?nonsense", "unknown option 'nonsense'"),
        ("gs://", "names no bucket"),
        ("gs://token@b/a", "credentials do not belong"),
        ("gs://b/a?region=x", "unknown option 'region'"),
        ("abfss://b/a", "no account"),
        ("abfss://c:hush@account/a", "credentials do not belong"),
        ("hdfs://user@host/a", "credentials do not belong"),
        ("hdfs://host:x/a", "'x' is no port"),
        ("s3://b/a?scheme=ftp", "scheme=ftp"),
        ("s3://AKIA:hush@b/a", "credentials do not belong"),
        ("s3://b/a?secret_key=hush", "credentials do not belong"),
        ("s3://b/a?endpoint_override=http://u:hush@host", "credentials do not belong"),
    ],
)
def test_addresses_that_make_no_sense_are_refused_without_their_secrets(address: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        open_store(address)
    assert error.value.remedy
    assert "hush" not in str(error.value)


def test_options_of_an_address() -> None:
    assert parsed("s3://b/a?endpoint_override=host:9000&scheme=http&region=x").endpoint == "http://host:9000"
    assert parsed("s3://b/a?endpoint_override=host").endpoint == "https://host"
    assert parsed("s3://b/a?endpoint_override=http%3A%2F%2Fhost:1").endpoint == "http://host:1"
    assert parsed("s3://b/a%20b#c+d").path == "a%20b#c+d"


@pytest.mark.parametrize(
    ("address", "names", "joined"),
    [
        ("runs", ("a", "b/c"), "runs/a/b/c"),
        ("./runs/", ("a",), "./runs/a"),
        ("/", ("a",), "/a"),
        ("~/what? is # this", ("100% é?",), "~/what? is # this/100% é?"),
        (Path("/runs"), ("a",), "/runs/a"),
        ("file:///runs?", ("a",), "file:///runs?/a"),
        ("s3://b", ("a",), "s3://b/a"),
        ("s3://b/", ("a b#+%20é", "c"), "s3://b/a b#+%20é/c"),
        ("s3://b/p/?scheme=http&region=x", ("a", "b"), "s3://b/p/a/b?scheme=http&region=x"),
        ("s3://b?region=x", ("a",), "s3://b/a?region=x"),
        ("s3://b/p/?region=x", (), "s3://b/p/?region=x"),
    ],
)
def test_addresses_are_joined_before_their_options(address: str | Path, names: tuple[str, ...], joined: str) -> None:
    assert join(address, *names) == joined


@pytest.mark.parametrize(
    ("address", "name"), [("runs", "/a"), ("runs", ".."), ("runs", ""), ("s3://b", "a/"), ("s3://b/p", "a?region=x")]
)
def test_what_is_no_name_is_not_joined(address: str, name: str) -> None:
    with pytest.raises(ValueError, match=r"no name|question mark"):
        join(address, name)


def test_stores_of_pyarrow_are_named_as_they_are_written() -> None:
    addresses = [
        "gs://b/a b/100%?endpoint_override=host:1&scheme=http",
        "gs://anonymous@b/a b/100%",
        "abfss://c@account.dfs.core.windows.net/a b/100%",
        "hdfs://host:9000/a b/100%?user=me",
    ]
    stores = [open_store(address) for address in addresses]
    assert [store.address for store in stores] == addresses
    assert [store.where("n") for store in stores] == [
        "gs://b/a b/100%/n",
        "gs://b/a b/100%/n",
        "abfss://c/a b/100%/n",
        "hdfs://host:9000/a b/100%/n",
    ]


def test_the_endpoint_of_an_address_counts(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account(monkeypatch, "http://127.0.0.1:9", tmp_path)
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket="other")
    host = s3_endpoint.removeprefix("http://")
    store = open_store(f"s3://other/p?endpoint_override={host}&scheme=http&region=us-east-1")
    store.put("a", b"1")
    assert store.get("a") == b"1"
    assert store.where("a") == "s3://other/p/a"
