"""A checkpoint to and from S3, beside one stream of boto3's a rank, and bare parallel requests of the same bytes.

    python benchmarks/checkpoint_s3.py [--preset laptop-10m] [--repeats 3] [--servers moto,late,slow] [--json FILE]

Two ranks of a cell with the state of `benchmarks/checkpoint.py`; each way on both at once, ways in turn; figures are
medians of the slower rank, megabytes of the whole state a second. `ours` is all of it: hashed and committed, verified
and in its place; `one` and `bare` send each rank's bytes as one object and are done (see `benchmarks/store.py`, whose
servers these are).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from benchmarks.checkpoint import RANKS, build
from benchmarks.store import BUCKET, SERVERS, bare_in, bare_out, server
from shoal.checkpoint import Saver, load
from shoal.testing import world
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.retention import Keep
from shoal_core.lane import HostLane


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="laptop-10m")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    for name, value in (("ACCESS_KEY_ID", "bench"), ("SECRET_ACCESS_KEY", "bench"), ("DEFAULT_REGION", "us-east-1")):
        os.environ.setdefault(f"AWS_{name}", value)
    found: dict[str, Any] = {"load": os.getloadavg()[0]}
    for name in args.servers.split(","):
        with server(name) as url, world(RANKS) as cell:
            answers = cell.run(measure, args.preset, args.repeats, url)
        ways = answers[0][0]
        slower = {way: list(map(max, zip(*(one[0][way] for one in answers), strict=True))) for way in ways}
        found[name] = rates(slower, sum(one[1] for one in answers))
        print(name, json.dumps(found[name], indent=2), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def rates(slower: dict[str, list[float]], size: int) -> dict[str, Any]:
    times = {way: statistics.median(seconds) for way, seconds in slower.items()}
    return {
        "state_bytes": size,
        "megabytes_a_second": {way: round(size / 1e6 / seconds, 1) for way, seconds in times.items()},
        "ours_of_one": {way: round(times[f"one {way}"] / times[f"ours {way}"], 2) for way in ("out", "in")},
        "ours_of_bare": {way: round(times[f"bare {way}"] / times[f"ours {way}"], 2) for way in ("out", "in")},
    }


def measure(preset: str, repeats: int, url: str) -> tuple[dict[str, list[float]], int]:
    """On each rank: seconds of every way, and the rank's bytes."""
    import boto3
    from botocore.config import Config

    warnings.simplefilter("ignore")
    client = boto3.client("s3", endpoint_url=url, config=Config(max_pool_connections=32))
    rank, group = dist.get_rank(), dist.new_group(backend="gloo")
    if rank == 0:
        client.create_bucket(Bucket=BUCKET)
    dist.barrier()
    scheme, _, host = url.partition("://")
    options = f"?endpoint_override={host}&scheme={scheme}"
    state = build(preset)
    mine = b"".join(tensor.to_local().numpy().tobytes() for tensor in state.values())
    room, key = memoryview(bytearray(len(mine))), f"bare{rank}"
    failures: list[str] = []
    tell: Any = (lambda *_: None, lambda _, reason, __: failures.append(reason))
    lane = HostLane()
    saver = Saver(f"s3://{BUCKET}/ours{options}", group, lane, Keep(1), {}, *tell)

    def save(steps: int) -> None:
        saver.save(steps, 0, state)
        saver.join()
        lane.precede()

    times: dict[str, list[float]] = {}
    for steps in range(repeats + 1):
        folder = Folder.at(f"s3://{BUCKET}/ours/{name_of(steps)}{options}")
        ways: dict[str, Callable[[], object]] = {
            "one out": lambda: client.put_object(Bucket=BUCKET, Key=f"one{rank}", Body=mine),
            "one in": lambda: client.get_object(Bucket=BUCKET, Key=f"one{rank}")["Body"].read(),
            "bare out": lambda: bare_out(client, memoryview(mine), key),
            "bare in": lambda: bare_in(client, room, key),
            "ours out": lambda steps=steps: save(steps),
            "ours in": lambda folder=folder: load(folder, state, group),
        }
        for way, work in ways.items():
            dist.barrier()
            start = time.perf_counter()
            work()
            times.setdefault(way, []).append(time.perf_counter() - start)
    assert not failures, failures
    return {way: seconds[1:] for way, seconds in times.items()}, len(mine)


if __name__ == "__main__":
    main()
