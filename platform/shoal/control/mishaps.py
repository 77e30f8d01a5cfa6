"""The controller's own failures: told, counted, and never taken for a worker's."""

from __future__ import annotations

import logging
import traceback
from collections import Counter

__all__ = ["ROW", "Mishaps", "say"]

ROW = 20
"""Words of workers that the controller may fail over without a step put on record between them."""


def say(text: str) -> None:
    """Tell whoever reads the controller's log."""
    logging.getLogger(__name__).warning(text)


class Mishaps:
    """What failed, and how often."""

    def __init__(self) -> None:
        self._times: Counter[tuple[str, str]] = Counter()
        self.row = 0
        """Words of workers that were failed over since the last step on record."""

    def note(self, error: BaseException) -> str:
        """Count an exception by its kind and place. Returns its traceback when it is to be told: the first time, the
        second, the fourth, the eighth, so that what fails many times a second fills no disk; else ""."""
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        self._times[type(error).__name__, place] += 1
        times = self._times[type(error).__name__, place]
        return "".join(traceback.format_exception(error)) if times & (times - 1) == 0 else ""
