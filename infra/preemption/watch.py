"""Turns a cloud's notice that this machine will be taken away into a drain of its Ray node.

    python infra/preemption/watch.py --cloud aws|gcp|signal [--address HOST:PORT]

Run it on every node beside Ray (a systemd unit, a sidecar). `aws` and `gcp` ask the machine's own metadata server every
two seconds; `signal` waits for SIGTERM, which Kubernetes sends to a pod (`terminationGracePeriodSeconds` before the
end; give that number as --notice). Shoal moves the node's workers to spares before the deadline.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import http.client
import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

AWS = GCP = "http://169.254.169.254"
EVERY_S = 2.0
ANSWER_S = 5.0
"""Of a whole answer, however slowly it comes."""
LONGEST = 65_536
"""Bytes of an answer; more is none that a metadata server gives."""
AWS_NOTICE_S, GCP_NOTICE_S = 120.0, 30.0
FARTHEST_S = 3600.0
"""Seconds from a notice to its end; a time that is farther away is none that a cloud gives."""


def say(text: str) -> None:
    print(text.encode("ascii", "backslashreplace").decode(), flush=True)


def ask(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """The body; None for whatever is not a sound answer in time: none at all, another status, too long, no text.
    Redirections are not followed and proxies not asked: the metadata server is on this machine's own link."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=ANSWER_S)
    cutter: threading.Timer | None = None
    try:
        connection.connect()
        cutter = threading.Timer(ANSWER_S, cut, (connection.sock,))
        cutter.daemon = True
        cutter.start()
        connection.request(method, place.path, headers=headers)
        answer = connection.getresponse()
        body = answer.read(LONGEST + 1)
        return body.decode() if answer.status == 200 and len(body) <= LONGEST else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        if cutter is not None:
            cutter.cancel()
        connection.close()


def cut(connection: socket.socket) -> None:
    """End whatever waits for this connection."""
    with contextlib.suppress(OSError):  # it has just ended by itself
        connection.shutdown(socket.SHUT_RDWR)


def aws_notice(base: str = AWS) -> float | None:
    """Seconds until an EC2 spot instance is stopped or terminated; None without a notice. One whose time cannot be
    read is taken for the two minutes that EC2 gives."""
    token = ask(f"{base}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    if token is None:
        return None
    found = ask(f"{base}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    try:
        notice = json.loads(found) if found is not None else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(notice, dict) or notice.get("action") not in ("terminate", "stop", "hibernate"):
        return None
    try:
        at = datetime.datetime.fromisoformat(notice["time"].replace("Z", "+00:00"))
        seconds = (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp() - time.time()
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError):
        return AWS_NOTICE_S
    return max(0.0, seconds) if seconds <= FARTHEST_S else AWS_NOTICE_S


def gcp_notice(base: str = GCP) -> float | None:
    """Seconds until a preemptible or spot VM is stopped; None without a notice."""
    found = ask(f"{base}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return GCP_NOTICE_S if found is not None and found.strip() == "TRUE" else None


def wait_for(notice: Callable[[], float | None], every: float = EVERY_S) -> float:
    """Ask until there is a notice, whatever happens meanwhile; returns its seconds."""
    while True:
        try:
            if (seconds := notice()) is not None:
                return seconds
        except Exception as error:  # a watcher that died watches nothing
            say(f"asking for a notice failed: {type(error).__name__}: {error}")
        time.sleep(every)


def wait_for_signal(seconds: float) -> float:
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: told.set())
    told.wait()
    return seconds


def drain_this_node(address: str, seconds: float, why: str) -> None:
    """Tell Ray. Imports it only now: the watcher itself weighs next to nothing."""
    import ray

    from shoal.on_ray.drain import drain_node

    ray.init(address=address, log_to_driver=False, logging_level="error", ignore_reinit_error=True)
    drain_node(ray.get_runtime_context().gcs_address, ray.get_runtime_context().get_node_id(), seconds, why)


def drain_in_time(drain: Callable[[float], None], seconds: float, every: float = EVERY_S) -> bool:
    """Try until Ray has been told or the machine's time is up; whether it was told."""
    end = time.monotonic() + seconds
    while True:
        try:
            drain(max(0.0, end - time.monotonic()))
            return True
        except Exception as error:  # Ray may be starting, or its head away
            say(f"this node could not be drained: {type(error).__name__}: {error}")
        if time.monotonic() > end:
            return False
        time.sleep(every)


def main(argv: list[str]) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cloud", choices=("aws", "gcp", "signal"), required=True)
    options.add_argument("--address", default="auto", help="of the Ray cluster, as seen from this node")
    options.add_argument("--notice", type=float, default=30.0, help="seconds between SIGTERM and the end")
    asked = options.parse_args(argv)
    waits: dict[str, Callable[[], float]] = {
        "aws": lambda: wait_for(aws_notice),
        "gcp": lambda: wait_for(gcp_notice),
        "signal": lambda: wait_for_signal(asked.notice),
    }
    seconds = waits[asked.cloud]()
    say(f"this node will be taken away in {seconds:.0f} s: draining it")
    why = f"preemption notice ({asked.cloud})"
    if not drain_in_time(lambda left: drain_this_node(asked.address, left, why), seconds):
        sys.exit(1)
    # the node goes on serving until its end; nothing is left to do


if __name__ == "__main__":
    main(sys.argv[1:])
