"""Every command of the pipeline reads from S3 and writes to it, whatever is in the names; one job at a time."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal_core.errors import StoreError, UserError
from shoal_data.chat.samples import PackedSamples
from shoal_data.jobs import lease
from shoal_data.jobs.lock import held
from shoal_data.place import Remote, place_at
from shoal_data.writing import encode_part, tokenize
from shoal_data.writing.options import Recipe, TokenizeOptions
from tests.support.conversations import conversations, write_jsonl, write_tokenizer
from tests.support.s3_server import account

ODD = "a b/100% of #1 + ä 日本"


@pytest.fixture(scope="module")
def s3(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        account(patch, s3_endpoint, tmp_path_factory.mktemp("aws"))
        client = boto3.client("s3")
        client.create_bucket(Bucket="data")
        yield client


def shoal(*arguments: object) -> bytes:
    result = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout_bytes


def test_every_command_takes_any_key(s3: Any, raw: Path, tmp_path: Path) -> None:
    there = f"s3://data/{ODD}"
    for path in raw.glob("*.parquet"):
        s3.upload_file(str(path), "data", f"{ODD}/raw #%+ é/{path.name}")
    inputs, tokenizer = f"{there}/raw #%+ é/*.parquet", f"{there}/tok ü"
    shoal("data", "tokenizer-train", "--input", inputs, "--vocab-size", 600, "--out", tokenizer)
    for out in (f"{there}/corpus +", tmp_path / "corpus"):
        options = ("--shuffle", "--deduplicate", "--part-bytes", 60_000)
        shoal(
            "data", "tokenize", "--input", inputs, "--tokenizer", f"{tokenizer}/tokenizer.json", "--out", out, *options
        )
    assert b"all as written" in shoal("data", "verify", f"{there}/corpus +")
    assert shoal("data", "cat", f"{there}/corpus +") == shoal("data", "cat", tmp_path / "corpus")
    picture = f"{there}/picture ß.png"
    shoal("data", "inspect", f"{there}/corpus +", "--documents", 1, "--picture", picture)
    assert place_at(picture).read_bytes()[:4] == b"\x89PNG"
    written = {path.relative_to(tmp_path / "corpus").as_posix() for path in (tmp_path / "corpus").rglob("*.*")}
    for name in written - {"job/job.json"}:
        assert (place_at(f"{there}/corpus +") / name).read_bytes() == (tmp_path / "corpus" / name).read_bytes(), name


class Killed(BaseException):
    """Stands for a SIGKILL."""


def test_a_killed_job_goes_on_on_s3(
    s3: Any, raw: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = TokenizeOptions(part_bytes=60_000, recipe=Recipe(seed=1, shuffle=True))
    tokenize.tokenize([f"{raw}/*.parquet"], tokenizer, "s3://data/calm", options)
    write, written = encode_part.write_json, []

    def cut(path: Any, value: Any) -> None:
        if len(written) == 1:
            raise Killed
        written.append(path)
        write(path, value)

    monkeypatch.setattr(encode_part, "write_json", cut)
    with pytest.raises(Killed):
        tokenize.tokenize([f"{raw}/*.parquet"], tokenizer, "s3://data/cut", options)
    lock = place_at("s3://data/cut") / "job" / "lock"
    lock.write_bytes(lease.sign_of_life(3))  # as a process that is gone leaves it
    monkeypatch.setattr(encode_part, "write_json", write)
    monkeypatch.setattr(lease, "WATCH", 0.3)
    monkeypatch.setattr(lease, "BEAT", 0.4)
    tokenize.tokenize([f"{raw}/*.parquet"], tokenizer, "s3://data/cut", options)
    assert "was at work here" in capsys.readouterr().err
    calm, again = place_at("s3://data/calm"), place_at("s3://data/cut")
    for pattern in ("*.*", "shards/*"):
        made = [{path.name: path.read_bytes() for path in place.glob(pattern)} for place in (calm, again)]
        assert made[0] == made[1] != {}
    with pytest.raises(UserError, match="it belongs to another job: --seed was 1, is 0; --shuffle was given"):
        tokenize.tokenize([f"{raw}/*.parquet"], tokenizer, "s3://data/cut", TokenizeOptions(part_bytes=60_000))


def test_of_two_jobs_one_is_told_of_the_other(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "WATCH", 5.0)
    monkeypatch.setattr(lease, "BEAT", 0.1)
    place = place_at("s3://data/one")
    assert isinstance(place, Remote)
    with held(place), pytest.raises(UserError, match="another job is at work there"), held(place):
        pass
    assert not (place / "job" / "lock").exists()


def test_a_job_that_was_taken_for_dead_says_so(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    place = place_at("s3://data/two")
    assert isinstance(place, Remote)
    lock, other = place / "job" / "lock", b'{"host": "elsewhere", "pid": "7", "since": "now"}'
    before = set(threading.enumerate())

    def lose() -> None:
        while not lock.store.swap(lock.path, other, lock.store.stat(lock.path).version):
            pass  # the holder wrote at this moment
        while any(thread.name == "lease" for thread in set(threading.enumerate()) - before):
            time.sleep(0.01)  # until it finds out

    with pytest.raises(StoreError, match="another job took it over"), held(place):
        lose()
    assert lock.read_bytes() == other


def test_conversations_are_packed_there(s3: Any, tmp_path: Path) -> None:
    """From S3 to S3, the same samples as in a folder; again, nothing is done."""
    source = write_jsonl(tmp_path / "in.jsonl", [*conversations(20), {"messages": []}])
    s3.upload_file(str(source), "data", f"{ODD}/in.jsonl")
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    outs = (f"s3://data/{ODD}/sft", str(tmp_path / "sft"))
    figures = []
    for out, name in zip(outs, (f"s3://data/{ODD}/in.jsonl", source), strict=True):
        options = ("--input", name, "--tokenizer", tokenizer, "--seq-len", 128, "--out", out)
        figures.append(json.loads(shoal("data", "chat", *options, "--json")))
        said = shoal("data", "chat", *options, "--show", 1).decode()
        assert "left out: 1 row in 1 file" in said
        assert re.search(r"--- sample 0\n.*<\|im_start\|>assistant\n\[\[[a-z ]+<\|im_end\|>\n\]\]", said, re.DOTALL)
    there, here = map(PackedSamples, outs)
    assert there.fingerprint == here.fingerprint
    assert [there[at].labels.tolist() for at in range(len(there))] == [
        here[at].labels.tolist() for at in range(len(here))
    ]
    assert figures == [{**figures[0], "out": out} for out in outs]
    assert (figures[0]["conversations"], figures[0]["samples"]) == (20, len(here))
