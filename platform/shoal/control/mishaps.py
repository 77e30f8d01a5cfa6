"""The controller's own failures: told, and never taken for a worker's."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

from shoal.record.masking import mask_text

__all__ = ["Mishaps"]

logger = logging.getLogger(__name__)


class Mishaps:
    """What failed, and how often. `journal`: puts a traceback on record."""

    def __init__(self, journal: Callable[[str], None]) -> None:
        self._journal = journal
        self._times: Counter[tuple[str, str]] = Counter()

    def note(self, error: BaseException) -> str:
        """Count an exception by its kind and place. Returns its traceback when it is to be told: the first time, the
        second, the fourth, the eighth, so that what fails many times a second fills no disk; else ""."""
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        self._times[type(error).__name__, place] += 1
        times = self._times[type(error).__name__, place]
        return mask_text("".join(traceback.format_exception(error))) if times & (times - 1) == 0 else ""

    def tell(self, error: BaseException) -> None:
        """The controller's own code failed."""
        if trace := self.note(error):
            logger.warning("a failure of its own:\n%s", trace)
            self._journal(trace)

    def uncaught(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What failed in the event loop and nobody waited for."""
        error = context.get("exception")
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self.tell(error)
        elif error is None or self.note(error):  # connections come and go
            logger.warning("%s: %s", context.get("message"), error)
