"""What a contender of the data benchmark costs: clock, CPU and memory of its process and of all that it started."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["SPENT", "Clock", "Memory", "Start"]


class Clock:
    """Seconds by the clock, and of CPU in this process and all that it started, which other work moves less."""

    def __init__(self) -> None:
        self._began, self._cpu = time.perf_counter(), SPENT.seconds()

    def rate(self, size: int, start: Start | None = None) -> dict[str, Any]:
        """What `size` bytes of text took since. `start`: what of it was Ray's and is shown apart; the rest is
        `steady`."""
        seconds, cpu = time.perf_counter() - self._began, SPENT.seconds() - self._cpu
        whole = seconds + (start.ray if start else 0.0)
        figures = {
            "mb_per_second": round(size / 1e6 / whole, 3),
            "mb_per_cpu_second": round(size / 1e6 / cpu, 3),
            "seconds": round(whole, 2),
            "cpu_seconds": round(cpu, 2),
            "mb": size / 1e6,
        }
        if start:
            figures |= {
                "ray_start": round(start.ray, 2),
                "workers_start": round(start.workers, 2),
                "steady_mb_per_second": round(size / 1e6 / (seconds - start.workers), 3),
                "steady_mb_per_cpu_second": round(size / 1e6 / (cpu - start.cpu), 3),
            }
        return figures


class Start(NamedTuple):
    """Seconds that a private Ray takes to start, and that a job of one document takes on it: its workers are started,
    Ray Data imported, what they need loaded. `cpu`: CPU seconds of that job."""

    ray: float
    workers: float
    cpu: float


class Memory(threading.Thread):
    """Watches the memory of this process and everything it started: the sum of their proportional shares (PSS).

    A look at all of Ray's processes costs a tenth of a second, so it takes at most a twentieth of a core."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mb = 0.0

    def run(self) -> None:
        while True:
            begin = time.thread_time()
            shares = (_pss(pid) for pid in os.listdir("/proc") if pid.isdigit() and _session(pid) == os.getsid(0))
            self.peak_mb = max(self.peak_mb, sum(shares) / 1e3)
            time.sleep(max(0.5, 20 * (time.thread_time() - begin)))


def _session(pid: str) -> int:
    try:
        return os.getsid(int(pid))
    except OSError:
        return -1


class Spent(threading.Thread):
    """CPU seconds of the processes of this session, also of those that have ended, whoever was their parent: looked at
    four times a second, so what one does in its last quarter of a second is missing."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ticks: dict[tuple[str, str], int] = {}  # by process number and start time

    def run(self) -> None:
        while True:
            self.seconds()
            time.sleep(0.25)

    def seconds(self) -> float:
        for pid in os.listdir("/proc"):
            if pid.isdigit() and _session(pid) == os.getsid(0):
                try:
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                self._ticks[pid, fields[19]] = int(fields[11]) + int(fields[12])  # utime, stime
        return sum(list(self._ticks.values())) / os.sysconf("SC_CLK_TCK")


def _pss(pid: str) -> int:
    """Kilobytes of a process, with pages that several share divided among them; 0 if it is gone."""
    try:
        content = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in content.splitlines() if line.startswith("Pss:")), 0)


SPENT = Spent()
