"""A record on a store: whatever is written, cut or replaced, and wherever its publisher is killed, a reader sees a
state that was there, and at the end everything; of two that write it, one does."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from shoal.record import grip, layout, manifest
from shoal.record import read as records
from shoal.record.fetch import Copy
from shoal.record.grip import take
from shoal.record.lease import Held, Holder, LeaseLost
from shoal.record.manifest import Manifest, Part
from shoal.record.publish import Publisher
from shoal.record.rundir import RunDir
from shoal.record.tails import Tail
from shoal_core.errors import StoreError, UserError
from shoal_core.store import open_store
from shoal_core.store.local import LocalStore

FIGURES = {"loss": 2.0, "tokens": 64, "cells": 1, "generation": 0, "seconds": 0.1}
FILES = (layout.STEPS, layout.SAMPLES, layout.EVENTS, layout.STATUS, layout.RUN, layout.CONFIG)


class Killed(Exception):
    """The publisher's process is no more."""


class Failing(LocalStore):
    """A store that fails once after `left` writes or deletions: before or after it has done the one that fails."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), folder)
        self.left, self.after, self.error = -1, False, Exception()

    def fail(self, left: int, after: bool, error: Exception) -> None:
        self.left, self.after, self.error = left, after, error

    def _due(self, after: bool) -> None:
        if self.left == 0 and self.after == after:
            self.left = -1
            raise self.error
        if after:
            self.left -= 1

    def put(self, name: str, content: bytes | memoryview) -> None:
        self._due(False)
        super().put(name, content)
        self._due(True)

    def swap(self, name: str, content: bytes | memoryview, version: str | None) -> str | None:
        self._due(False)
        found = super().swap(name, content, version)
        self._due(True)
        return found

    def delete(self, names: Iterable[str]) -> None:
        self._due(False)
        super().delete(names)
        self._due(True)


class Writer:
    """Writes a record at random, and keeps every state of it."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.run = RunDir.create(folder, "a", {"lr": 1}, resume=False)
        self.path, self._chance, self.states = self.run.path, chance, [{}]
        self.run.append_event("run_started", run_id="a")
        self.note()

    def note(self) -> None:
        self.states.append(state(self.path))

    def write(self) -> None:
        what = self._chance.random()
        if what < 0.6:
            for _ in range(self._chance.randrange(1, 6)):
                step = self.run.last_step + 1
                self.run.append_samples({"step": step, "cell": 0, "worker": "w", "ids": [step]})
                self.run.append_step({"step": step, "samples": [step, step + 1], **FIGURES})
        elif what < 0.7:
            self.run.truncate_steps(self._chance.randrange(self.run.last_step + 2))
        elif what < 0.8:
            self.run.append_event("decision", rung="x", cells=[], reason="y" * self._chance.randrange(300))
        elif what < 0.9:
            self.run.write_status({"run_id": "a", "status": "running", "step": self.run.last_step})
        elif (self.path / layout.RUN).exists():
            (self.path / layout.RUN).unlink()
        else:
            self.run.write_run({"status": "done", "n": self._chance.random()})
        self.note()


def state(folder: Path) -> dict[str, bytes]:
    """What the files hold; an empty one is none."""
    found = {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}
    return {name: content for name, content in found.items() if content}


@pytest.mark.parametrize("seed", range(12))
def test_a_reader_sees_a_state_that_was_there_wherever_the_publisher_is_killed(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest.parts_kept, "__defaults__", (2000,))
    monkeypatch.setattr(manifest.pieces, "__defaults__", (2000,))
    chance = random.Random(seed)
    writer, store = Writer(tmp_path, chance), Failing(tmp_path / "store")
    publisher = Publisher(writer.path, take(store, "me"), keep=0.0)
    reader = Copy(store, tmp_path / "copy")
    seen = 0
    for _ in range(60):
        for _ in range(chance.randrange(3)):
            writer.write()
        errors: list[Exception] = [Killed(), StoreError("x: hangs", "wait"), StoreError("x: hangs", "wait")]
        if chance.random() < 0.4:
            store.fail(chance.randrange(6), chance.random() < 0.5, chance.choice(errors))
        try:
            publisher.round()
        except StoreError:
            pass  # it tries again
        except Killed:
            publisher.close()
            store.left = -1
            publisher = Publisher(writer.path, take(store, "me"), keep=0.0)
        if reader.bring():
            found = state(tmp_path / "copy")
            seen = writer.states.index(found, seen)  # one that was there, and none before what was seen already
    store.left = -1
    publisher.round()
    assert reader.bring()
    assert state(tmp_path / "copy") == writer.states[-1]
    publisher.round()  # which deletes what the last had dropped
    named = grip.read(store)[0].names() | {manifest.NAME}
    assert {entry.name for entry in store.list()} - named == set()


def test_parts_stay_few_and_little_is_written_twice() -> None:
    sizes: list[int] = []
    written = most = 0
    for _ in range(5000):
        stay = manifest.parts_kept(sizes, 100, largest=51_200)
        fresh = 100 + sum(sizes[stay:])
        sizes = [*sizes[:stay], fresh]
        written += fresh
        most = max(most, len(sizes))
    assert sum(sizes) == 500_000
    assert most <= 500_000 // 51_200 + 11
    assert written <= 11 * 500_000


def test_a_follower_of_the_copy_sees_each_line_once_through_merges_and_cuts(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a", {}, resume=False)
    store = open_store(tmp_path / "store")
    publisher, reader = Publisher(run.path, take(store, "me")), Copy(store, tmp_path / "copy")
    tail, seen = Tail(tmp_path / "copy" / layout.STEPS), []
    for step in range(20):
        run.append_step({"step": step, "samples": [step, step + 1], **FIGURES})
        publisher.round()
        reader.bring()
        seen += [line["step"] for line in tail.read()]
    assert seen == list(range(20))
    run.truncate_steps(15)
    run.append_step({"step": 15, "samples": [15, 16], **FIGURES})
    publisher.round()
    reader.bring()
    assert [line["step"] for line in tail.read()] == [15]


def test_only_what_is_new_is_brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir.create(tmp_path, "a", {}, resume=False)
    store = open_store(tmp_path / "store")
    publisher = Publisher(run.path, take(store, "me"))
    for number in range(50):
        run.append_event("decision", rung="x", cells=[], reason=str(number))
    publisher.round()
    Copy(store, tmp_path / "copy").bring()
    run.append_event("decision", rung="x", cells=[], reason="new")
    publisher.round()
    asked: list[str] = []
    get = store.get
    monkeypatch.setattr(store, "get", lambda name, span=None: asked.append(name) or get(name, span))
    Copy(store, tmp_path / "copy").bring()  # another process
    assert len(asked) == 2  # the manifest and one part
    assert records.events(tmp_path / "copy") == records.events(run.path)


def test_of_two_controllers_at_once_one_publishes_and_the_older_never_again(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    folders = [RunDir.create(tmp_path / name, "a", {"who": name}, resume=False).path for name in ("old", "new")]
    older = Publisher(folders[0], take(store, "session"))
    older.round()
    newer = Publisher(folders[1], take(store, "session"))  # another controller of the same session
    for _ in range(2):
        with pytest.raises(LeaseLost, match="taken by another controller"):
            older.round()
    newer.round()
    Copy(store, tmp_path / "copy").bring()
    assert records.config(tmp_path / "copy") == {"who": "new"}


def test_of_many_who_take_at_once_one_has_it(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    together, held, refused = threading.Barrier(8), [], []

    def one() -> None:
        together.wait()
        try:
            held.append(take(store, "session"))
        except Held as error:
            refused.append(error)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) + len(refused) == 8
    last = max(held, key=lambda one: one.manifest.generation)
    for holder in held:
        if holder is last:
            assert holder.swap(manifest.with_files(holder.manifest, {}, 0.0, 0.0)[0])
        else:
            with pytest.raises(LeaseLost):
                holder.swap(manifest.with_files(holder.manifest, {}, 0.0, 0.0)[0])


def test_another_session_waits_and_takes_it_only_when_nobody_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grip, "LOOK", 0.01)
    store, over = open_store(tmp_path / "store"), threading.Event()
    publisher = Publisher(RunDir.create(tmp_path, "a", {}, resume=False).path, take(store, "one"))

    def publish() -> None:
        while not over.wait(0.01):
            publisher.round()

    thread = threading.Thread(target=publish)
    thread.start()
    with pytest.raises(Held, match=r"is running now on .*, process"):
        take(store, "two", watch=60.0)
    over.set()
    thread.join()
    assert take(store, "two", watch=0.2).manifest.generation == 2


def test_who_releases_need_not_be_watched(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    first = take(store, "one")
    first.release()
    assert grip.read(store)[0].holder is None
    assert take(store, "two", watch=1e9).manifest.generation == 2
    first.release()  # it is another's now
    assert grip.read(store)[0].holder is not None


def test_a_lost_answer_is_no_lost_record(tmp_path: Path) -> None:
    store = Failing(tmp_path / "store")
    publisher = Publisher(RunDir.create(tmp_path, "a", {}, resume=False).path, take(store, "one"))
    publisher.round()
    store.fail(0, True, StoreError("x: timed out", "wait"))
    with pytest.raises(StoreError):
        publisher.round()
    publisher.round()
    publisher.round()
    assert grip.read(store)[0].writes == 4


@pytest.mark.parametrize("damage", ["flip", "gone", "manifest"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    store = open_store(tmp_path / "store")
    Publisher(RunDir.create(tmp_path, "a", {}, resume=False).path, take(store, "one")).round()
    part = grip.read(store)[0].files[layout.CONFIG][0]
    if damage == "gone":
        store.delete([part.name])
    elif damage == "flip":
        store.put(part.name, b"x" * part.bytes)
    else:
        store.put(manifest.NAME, b"{}x")
    with pytest.raises(UserError, match=manifest.NAME if damage != "flip" else part.name):
        Copy(store, tmp_path / "copy").bring()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a//b", ""])
def test_a_manifest_names_nothing_outside_of_the_record(name: str) -> None:
    part = Part("record/1/x", 1, "0" * 64)
    for found in (Manifest(files={name: (part,)}), Manifest(files={"x": (Part(name, 1, "0" * 64),)})):
        with pytest.raises(ValueError, match="outside"):
            manifest.parse(manifest.dump(found))
    assert manifest.parse(manifest.dump(Manifest(1, 2, Holder("o", 1, "h", 2), "t", {"x": (part,)})))


def test_an_unfinished_line_is_not_published(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a", {}, resume=False)
    store = open_store(tmp_path / "store")
    run.append_event("decision", rung="x")
    with open(run.path / layout.EVENTS, "ab") as file:
        file.write(b'{"kind": "de')
    Publisher(run.path, take(store, "one")).round()
    Copy(store, tmp_path / "copy").bring()
    assert [event["kind"] for event in records.events(tmp_path / "copy")] == ["decision"]
    assert (tmp_path / "copy" / layout.EVENTS).read_bytes().endswith(b"\n")
