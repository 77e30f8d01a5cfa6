"""How busy the machine is that a worker is on, in MLflow's words for it."""

from __future__ import annotations

import time

import psutil

__all__ = ["Machine"]

PERIOD = 10.0
"""Seconds between two looks."""
MEGABYTE = 1e6


class Machine:
    """Looks at it no more often than every `period` seconds. One thread at a time."""

    def __init__(self, period: float = PERIOD) -> None:
        self._period, self._due = period, 0.0
        psutil.cpu_percent()  # what the next call says is since this one
        self._network = psutil.net_io_counters()

    def figures(self) -> dict[str, float] | None:
        """Figures of now, those of the network since this began, in MB or percent; None: it is not time yet, or the
        system does not tell."""
        now = time.monotonic()
        if now < self._due:
            return None
        self._due = now + self._period
        try:
            memory, disk, network = psutil.virtual_memory(), psutil.disk_usage("/"), psutil.net_io_counters()
            found = {
                "cpu_utilization_percentage": psutil.cpu_percent(),
                "system_memory_usage_megabytes": (memory.total - memory.available) / MEGABYTE,
                "system_memory_usage_percentage": memory.percent,
                "disk_usage_megabytes": disk.used / MEGABYTE,
                "disk_usage_percentage": disk.percent,
                "disk_available_megabytes": disk.free / MEGABYTE,
            }
        except (OSError, RuntimeError):
            return None
        if network is not None and self._network is not None:
            found["network_receive_megabytes"] = (network.bytes_recv - self._network.bytes_recv) / MEGABYTE
            found["network_transmit_megabytes"] = (network.bytes_sent - self._network.bytes_sent) / MEGABYTE
        return {name: round(float(value), 1) for name, value in found.items()}
