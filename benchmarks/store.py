"""Bytes a second to and from S3: `shoal_core.store` beside one stream of boto3's, and beside bare parallel requests.

    python benchmarks/store.py [--megabytes 128] [--repeats 5] [--servers moto,late,slow] [--endpoint URL] [--json FILE]

One object goes from memory to the store and back, by every way in turn, so that a noisy machine disturbs them alike;
figures are medians. The servers are moto's, each in a process of its own: as it is (`moto`: it shares the processors
with the client, and is what bounds all ways); with 20 ms before each answer (`late`); and with 10 MB/s a connection
besides (`slow`), as the real S3 has for each connection something like it: there the number of connections decides.
`--endpoint` measures a server that runs already, by the credentials in the environment (npm's s3rver:
`npx s3rver -d FOLDER`, with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of S3RVER).

`bare` is what s5cmd does, in boto3: parts and ranges of 16 MiB, eight at once, and nothing else: nothing is asked
twice, nobody asks whether it was the same object to its end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shoal_core.store import open_store
from tests.support.s3_server import s3_server

SERVERS = {"moto": (0.0, math.inf), "late": (0.02, math.inf), "slow": (0.02, 10e6)}
BUCKET = "benchmark"
PART = 16 << 20
AT_ONCE = 8
WRITE = 4 << 20
"""Bytes that a checkpoint's tensors hand to a writer at once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--endpoint", default=None)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    for name, value in (("ACCESS_KEY_ID", "S3RVER"), ("SECRET_ACCESS_KEY", "S3RVER"), ("DEFAULT_REGION", "us-east-1")):
        os.environ.setdefault(f"AWS_{name}", value)
    found: dict[str, Any] = {"megabytes": args.megabytes, "repeats": args.repeats}
    for name in [args.endpoint] if args.endpoint else args.servers.split(","):
        with server(name) as url:
            found[name] = measure(url, args.megabytes << 20, args.repeats)
        print(name, json.dumps(found[name], indent=2), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


@contextlib.contextmanager
def server(name: str) -> Iterator[str]:
    """The URL of one of `SERVERS`, or of the one that `name` is."""
    if name not in SERVERS:
        yield name
        return
    delay, rate = SERVERS[name]
    with s3_server(delay, rate) as url:
        yield url


def measure(url: str, size: int, repeats: int) -> dict[str, Any]:
    """Megabytes a second of every way, this process's processor time a gigabyte (s), and what is asked of ours."""
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", endpoint_url=url, config=Config(max_pool_connections=32))
    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
        client.create_bucket(Bucket=BUCKET)
    host = url.partition("://")
    store = open_store(f"s3://{BUCKET}/p?endpoint_override={host[2]}&scheme={host[0]}")
    content, room = memoryview(secrets.token_bytes(size)), memoryview(bytearray(size))

    def ours_out() -> None:
        with store.writer("ours") as writer:
            for start in range(0, size, WRITE):
                writer.write(content[start : start + WRITE])

    ways: dict[str, Callable[[], Any]] = {
        "one out": lambda: client.put_object(Bucket=BUCKET, Key="one", Body=content.obj),
        "one in": lambda: client.get_object(Bucket=BUCKET, Key="one")["Body"].read(),
        "bare out": lambda: bare_out(client, content),
        "bare in": lambda: bare_in(client, room),
        "ours out": ours_out,
        "ours in": lambda: store.read_into("ours", 0, room),
    }
    wall: dict[str, list[float]] = {way: [] for way in ways}
    processor: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats + 1):  # the first makes the connections
        for way, work in ways.items():
            room[:] = bytes(size)
            begun, used = time.perf_counter(), time.process_time()
            work()
            wall[way].append(time.perf_counter() - begun)
            processor[way].append(time.process_time() - used)
            assert way not in ("bare in", "ours in") or room == content
    times = {way: statistics.median(seconds[1:]) for way, seconds in wall.items()}
    return {
        "megabytes_a_second": {way: round(size / 1e6 / seconds, 1) for way, seconds in times.items()},
        "processor_seconds_a_gigabyte": {
            way: round(statistics.median(seconds[1:]) * 1e9 / size, 2) for way, seconds in processor.items()
        },
        "ours_of_one": {way: round(times[f"one {way}"] / times[f"ours {way}"], 2) for way in ("out", "in")},
        "ours_of_bare": {way: round(times[f"bare {way}"] / times[f"ours {way}"], 2) for way in ("out", "in")},
    }


def bare_out(client: Any, content: memoryview, key: str = "bare") -> None:
    place = {"Bucket": BUCKET, "Key": key}
    upload = client.create_multipart_upload(**place)["UploadId"]

    def send(number: int) -> dict[str, Any]:
        body = bytes(content[(number - 1) * PART : number * PART])
        etag = client.upload_part(**place, UploadId=upload, PartNumber=number, Body=body)["ETag"]
        return {"PartNumber": number, "ETag": etag}

    with ThreadPoolExecutor(AT_ONCE) as pool:
        parts = list(pool.map(send, range(1, math.ceil(len(content) / PART) + 1)))
    client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})


def bare_in(client: Any, room: memoryview, key: str = "bare") -> None:
    def take(start: int) -> None:
        end = min(start + PART, len(room))
        body = client.get_object(Bucket=BUCKET, Key=key, Range=f"bytes={start}-{end - 1}")["Body"]
        room[start:end] = body.read()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(take, range(0, len(room), PART)))


if __name__ == "__main__":
    main()
