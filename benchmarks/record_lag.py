"""How far the record of a run on an object store is behind, as a reader on another machine finds it.

    python benchmarks/record_lag.py [--seconds 60] [--delay 0.02] [--json FILE]

The store is moto's server in a process of its own, each of whose answers takes `--delay` seconds more than it must; the
run has two cells of two workers, real processes, some 20 steps a second. Ten times a second the manifest is asked for,
as `shoal status` does: what it names was the record at a time that it says by the controller's clock, which is this
machine's too. The lag is the time since then, when the answer is there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import boto3
import pytest

from shoal.record import grip, layout
from shoal.record.jsonl import read_json
from shoal_core.store import open_store
from tests.support.lab import lab
from tests.support.s3_server import account, s3_server

STORAGE = "s3://bucket/runs"
LOOK = 0.1
"""Seconds between two looks."""


def measure(folder: Path, seconds: float) -> dict[str, float]:
    """Lags in seconds, of so many looks at a run that trains, in `folder`."""
    settings = {"cells": 2, "steps": 100_000, "storage": STORAGE, "audit": {"samples": True}}
    with lab(folder, {"n0": 2, "n1": 2}, checkpoint={"every": 100, "keep": 2}, **settings) as one:
        one.full(20)
        store, lags = open_store(f"{STORAGE}/lab"), list[float]()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            written = grip.read(store)[0].written
            lags.append(time.time() - written)
            time.sleep(LOOK)
        steps = len(one.steps())
        told = read_json(one.path / layout.STATUS) or {}

    figures = {"looks": len(lags), "steps": steps, "median": median(lags), "max": max(lags)}
    return figures | {"over_5s": sum(lag > 5.0 for lag in lags) / len(lags), "told_most": told["behind_most"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--delay", type=float, default=0.02)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    with (
        pytest.MonkeyPatch.context() as patch,
        s3_server(arguments.delay) as url,
        tempfile.TemporaryDirectory() as name,
    ):
        account(patch, url, Path(name))
        boto3.client("s3").create_bucket(Bucket="bucket")
        figures = measure(Path(name) / "lab", arguments.seconds)
    print(json.dumps(figures, indent=1), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
