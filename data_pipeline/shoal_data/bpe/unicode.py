"""The character classes that pre-tokenizer patterns name, as one table over all code points.

They are asked of the `tokenizers` library's own regular-expression engine, so that both know the same version of
Unicode: a letter here is a letter there.
"""

from __future__ import annotations

import os
import tempfile
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, normalizers

from shoal_data.files import write_whole

__all__ = ["KANA_HAN", "LETTER", "MARK", "NUMBER", "PUNCTUATION", "SPACE", "SYMBOL", "character_classes"]

LETTER, MARK, NUMBER, PUNCTUATION, SYMBOL, SPACE, KANA_HAN = (1 << bit for bit in range(7))

_CLASSES = {
    LETTER: r"\p{L}",
    MARK: r"\p{M}",
    NUMBER: r"\p{N}",
    PUNCTUATION: r"\p{P}",
    SYMBOL: r"\p{S}",
    SPACE: r"\s",
    KANA_HAN: "一-龥぀-ゟ゠-ヿ",
}
_CODE_POINTS = 0x110000


@lru_cache(maxsize=1)
def character_classes() -> npt.NDArray[np.uint8]:
    """Bits of the classes each code point is in: (0x110000,) uint8. Worked out once a machine and kept in a file."""
    cache = Path(tempfile.gettempdir()) / f"shoal-{os.getuid()}" / f"character-classes-{version('tokenizers')}.u8"
    if cache.is_file() and cache.stat().st_uid == os.getuid() and cache.stat().st_size == _CODE_POINTS:
        return np.fromfile(cache, np.uint8)
    everything = "".join(chr(point) for point in range(_CODE_POINTS) if not 0xD800 <= point < 0xE000)
    table = np.zeros(_CODE_POINTS, np.uint8)
    for bit, members in _CLASSES.items():
        found = normalizers.Replace(Regex(f"[^{members}]+"), "").normalize_str(everything)
        table[np.frombuffer(found.encode("utf-32-le"), np.uint32)] |= bit
    cache.parent.mkdir(mode=0o700, exist_ok=True)
    write_whole(cache, table.tobytes())
    return table
