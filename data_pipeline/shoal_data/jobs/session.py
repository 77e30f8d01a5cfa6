"""The Ray that a build runs on: the cluster it was submitted to, or a private one of this machine, started beside
other work and waited for when it is needed."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from types import TracebackType

from shoal_core.errors import UserError
from shoal_data.jobs.imports import import_early

__all__ = ["RaySession", "on_ray"]

_PATIENCE = 60.0  # seconds for a cluster to take this process in, and as many for a first, empty task


def on_ray() -> bool:
    """Whether this process is part of a Ray session, as its driver or a worker."""
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)  # Ray may be half imported by now
    return is_initialized is not None and bool(is_initialized())


class RaySession:
    """Ray for the duration of a `with`, if and when it is asked for.

    Within a job (`ray job submit`) or where `RAY_ADDRESS` is set, that cluster, which is joined from the beginning;
    else (or where it is "local") a cluster of this process's own, on loopback, which ends with it.

    Args:
        cpus: of a private cluster; all of this machine's if left out.
    """

    def __init__(self, cpus: int | None = None) -> None:
        self._cpus = cpus
        self._owner: threading.Thread | None = None
        self._ready, self._over = threading.Event(), threading.Event()
        self._failure: Exception | None = None

    def __enter__(self) -> RaySession:
        if os.environ.get("RAY_ADDRESS"):
            self.begin()
        return self

    def begin(self) -> None:
        """Start Ray in a thread and return at once; where Ray runs already, that is taken as it is."""
        if self._owner is None and not on_ray():
            import_early()
            # The thread stays: the processes of a private cluster end with the thread that started them.
            self._owner = threading.Thread(target=self._own, name="ray", daemon=True)
            self._owner.start()

    def wait(self) -> None:
        """Begin, if nobody has, and return when Ray can be used.

        Raises:
            UserError: it cannot be started or joined.
        """
        self.begin()
        if self._owner is None:
            return
        if not self._ready.wait(2 * _PATIENCE):
            self._failure = TimeoutError(f"no answer within {2 * _PATIENCE:.0f} s")
        if self._failure is not None:
            raise _refusal(self._failure) from self._failure

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        if self._owner is not None:
            self._owner.join(_PATIENCE if self._failure is None else 1.0)

    def _own(self) -> None:
        try:
            _start(self._cpus)
        except Exception as error:  # whatever Ray raises is told by `wait`, in the thread that needs it
            self._failure = error
        self._ready.set()
        self._over.wait()
        if on_ray():
            sys.modules["ray"].shutdown()


def _start(cpus: int | None) -> None:
    """Start or join Ray, and see that it does a task."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # Ray reads it when it is imported
    import ray
    import ray.data

    if address != "local":
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        # A worker calls back for each value of a generator, as Ray Data's do: a driver it cannot reach waits for ever.
        values = ray.remote(_some).options(num_cpus=0, num_returns="streaming").remote()
        if not ray.wait([values], timeout=_PATIENCE)[0]:
            raise TimeoutError(f"its workers do not reach this process within {_PATIENCE:.0f} s")
    else:
        ray.init(
            address="local",
            num_cpus=cpus or os.cpu_count(),
            _node_ip_address="127.0.0.1",
            include_dashboard=False,
            object_store_memory=1 << 29,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    ray.data.DataContext.get_current().enable_progress_bars = False  # the build shows its own, by bytes of text
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it would say that Ray's bars are off


def _some() -> Iterator[bool]:
    yield True


def _refusal(error: Exception) -> UserError:
    cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        return UserError(f"Ray could not be started on this machine: {cause}", "see /tmp/ray for its logs")
    return UserError(
        f"the Ray cluster at {address} (RAY_ADDRESS) cannot be used from here: {cause}",
        "run the command as a job, `ray job submit -- shoal data ...`, since workers must reach the process that "
        "gives them work; or unset RAY_ADDRESS to use this machine alone",
    )
