"""How much memory a worker's share of the training takes at most, as its process or its device has it."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

__all__ = ["Meter"]

SOON = 5
"""Steps after which a peak is worth telling: whatever is made once has been."""
GROWN = 1.01
"""Times what was told last, from which on more is told again."""
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What Linux takes in `clear_refs` for: forget the peak of the resident set."""


class Meter:
    """Of this process, in one world after the other; on the CPU less what it held before the first one's model.

    `measured`: what the peak is of: `resident`, the process's resident set, on the CPU; `device`, everything that is
    taken of a GPU's memory. One thread at a time."""

    def __init__(self, kind: str) -> None:
        self._cuda = kind == "cuda"
        self.measured = "device" if self._cuda else "resident"
        self._base: int | None = None
        self._told = self._reserved = self._steps = 0
        self._shapes = set[int]()

    @property
    def of_all(self) -> int:
        """Bytes that there are of this memory."""
        return torch.cuda.mem_get_info()[1] if self._cuda else psutil.virtual_memory().total

    def begin(self) -> None:
        """A world's share of the model is about to be built."""
        self._told = self._reserved = self._steps = 0
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            CLEAR.write_text(RESET_PEAK)
            self._base = self._base or resident("VmRSS")
        except OSError:  # not Linux, or not ours to write to: no peak is told
            self._base = None

    def stepped(self) -> None:
        """A step is committed; what the device's allocator counts has not been forgotten since the one before."""
        self._steps += 1
        if self._cuda:
            self._reserved = max(self._reserved, torch.cuda.max_memory_reserved())

    def news(self, *, last: bool) -> int | None:
        """Bytes of the peak, if that is worth telling now: `SOON`, or if it is the `last` chance."""
        if not (last or self._steps == SOON):
            return None
        peak = self._peak()
        if peak is None or peak <= GROWN * self._told:
            return None
        self._told = peak
        return peak

    def first_in(self, shape: int) -> bool:
        """Whether this was not asked for a shape of cells before."""
        new = shape not in self._shapes
        self._shapes.add(shape)
        return new

    def _peak(self) -> int | None:
        if self._cuda:
            free, of_all = torch.cuda.mem_get_info()
            return self._reserved + (of_all - free) - torch.cuda.memory_reserved()
        return None if self._base is None else resident("VmHWM") - self._base


def resident(name: str) -> int:
    """Bytes of the resident set: `VmRSS` now, `VmHWM` at most.

    Raises:
        OSError: the system does not tell.
    """
    for line in STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise OSError(f"{STATUS} has no {name}")
