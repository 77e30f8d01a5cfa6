"""The Ray cluster a build runs on: the one it was submitted to, or a private one on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.data

__all__ = ["ray_session"]


@contextmanager
def ray_session(cpus: int | None = None) -> Iterator[None]:
    """Connect to Ray for the duration.

    Within a job (`ray job submit`) or where `RAY_ADDRESS` is set, that cluster; else a cluster of this process's own,
    on loopback, which ends with it.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray.init(
            address="local",
            num_cpus=cpus or os.cpu_count(),
            _node_ip_address="127.0.0.1",
            include_dashboard=False,
            object_store_memory=1 << 29,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the build shows its own, by bytes of text
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it would say that Ray's bars are off
    try:
        yield
    finally:
        ray.shutdown()
