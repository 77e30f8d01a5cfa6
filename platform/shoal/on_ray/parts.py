"""Arguments of an actor that are to last as long as it does: in pieces that travel with its own task.

What is larger than 100 KiB Ray keeps in the memory of the driver's node, and an actor that it starts again finds it no
more once the driver is gone (ray-project/ray issue 53727).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any

from shoal_core.errors import UserError

__all__ = ["parted", "whole"]

PART = 64 << 10
"""Bytes of an argument."""
MOST = 4 << 20
"""Bytes in all; Ray takes 10 MiB of arguments that travel so."""


def parted(value: Any) -> list[bytes]:
    """A value of JSON in pieces, of which each is an argument of its own.

    Raises:
        UserError: it is too large to travel.
    """
    packed = zlib.compress(json.dumps(value, separators=(",", ":")).encode())
    if len(packed) > MOST:
        raise UserError(
            f"the job and its seats make {len(packed):,} bytes, and {MOST:,} at most are kept with a run's controller",
            "name large settings of the workload by a file that all nodes share",
        )
    return [packed[first : first + PART] for first in range(0, len(packed), PART)]


def whole(parts: Sequence[bytes]) -> Any:
    """The value that `parted` made these of."""
    return json.loads(zlib.decompress(b"".join(parts)))
