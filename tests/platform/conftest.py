"""Makes the helpers beside the tests importable, here and in the processes that tests start."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "workloads" / "support"))
sys.path.insert(0, str(Path(__file__).parent / "support"))
