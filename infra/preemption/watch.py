"""Turns a cloud's notice that this machine will be taken away into a drain of its Ray node.

    python infra/preemption/watch.py --cloud aws|gcp|signal [--address HOST:PORT]

Run it on every node beside Ray (a systemd unit, a sidecar). `aws` and `gcp` ask the machine's own metadata server every
two seconds; `signal` waits for SIGTERM, which Kubernetes sends to a pod (`terminationGracePeriodSeconds` before the
end; give that number as --notice). Shoal moves the node's workers to spares before the deadline.
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable

AWS, GCP = "http://169.254.169.254", "http://metadata.google.internal"
EVERY_S = 2.0
GCP_NOTICE_S = 30.0


def ask(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """The body; None for "no such thing" (404) or no answer."""
    request = urllib.request.Request(url, headers=headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # metadata never goes through a proxy
    try:
        with opener.open(request, timeout=2.0) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return None


def aws_notice(base: str = AWS) -> float | None:
    """Seconds until an EC2 spot instance is stopped or terminated; None without a notice."""
    token = ask(f"{base}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    if token is None:
        return None
    found = ask(f"{base}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    if found is None:
        return None
    at = datetime.datetime.fromisoformat(json.loads(found)["time"].replace("Z", "+00:00"))
    return max(0.0, at.timestamp() - time.time())


def gcp_notice(base: str = GCP) -> float | None:
    """Seconds until a preemptible or spot VM is stopped; None without a notice."""
    found = ask(f"{base}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return GCP_NOTICE_S if found == "TRUE" else None


def wait_for(notice: Callable[[], float | None], every: float = EVERY_S) -> float:
    """Ask until there is a notice; returns its seconds."""
    while (seconds := notice()) is None:
        time.sleep(every)
    return seconds


def wait_for_signal(seconds: float) -> float:
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: told.set())
    told.wait()
    return seconds


def drain_this_node(address: str, seconds: float, why: str) -> None:
    """Tell Ray. Imports it only now: the watcher itself weighs next to nothing."""
    import ray

    from shoal.cluster.drain import drain_node

    ray.init(address=address, log_to_driver=False, logging_level="error")
    drain_node(ray.get_runtime_context().gcs_address, ray.get_runtime_context().get_node_id(), seconds, why)


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
    print(f"this node will be taken away in {seconds:.0f} s: draining it", flush=True)
    drain_this_node(asked.address, seconds, f"preemption notice ({asked.cloud})")
    # the node goes on serving until its end; nothing is left to do


if __name__ == "__main__":
    main(sys.argv[1:])
