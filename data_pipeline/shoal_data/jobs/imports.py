"""What is imported late, imported early: before threads start.

Two threads that import the same library at once see half of it, or wait for each other for ever (pandas asks pyarrow
for pandas while it is being imported). So whatever the work of threads would import first is imported here, by the
main thread; `tests/data/test_imports.py` watches that nothing is left to them.
"""

from __future__ import annotations

import pyarrow as pa

__all__ = ["import_early"]


def import_early() -> None:
    """Import what pyarrow imports at the first call of some functions."""
    import pyarrow.acero  # `Table.group_by`
    import pyarrow.dataset  # noqa: F401  (acero brings it along)

    pa.array([""])  # pyarrow looks for pandas when it first makes an array
