"""`python -m shoal.report RUN_DIR`: write the report in a process of its own, as the controller does at the end."""

from __future__ import annotations

import sys

from shoal.report import build
from shoal_core.errors import UserError

if __name__ == "__main__":
    if len(sys.argv) != 2:
        print("usage: python -m shoal.report RUN_DIR", file=sys.stderr)
        sys.exit(2)
    try:
        print(build(sys.argv[1]))
    except UserError as error:
        print(f"shoal.report: {error}", file=sys.stderr)
        sys.exit(2)
