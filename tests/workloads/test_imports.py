"""A GPU machine may have torch, NumPy and pydantic and nothing else: the workload imports and trains there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

CODE = """
import sys

BLOCKED = {"ray", "pyarrow", "transformers", "safetensors", "tokenizers", "awkward", "gigatoken", "mlflow", "typer"}


class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(name + " is not installed here")


sys.meta_path.insert(0, Block())
from tests.support import synthetic

metrics, _, figures = synthetic.train(synthetic.tiny(), 1)
assert metrics[0]["loss"] > 0 and figures[1] > 0
import shoal_workloads.checkpoint, shoal_workloads.evaluate, shoal_workloads.generate, shoal_data.reading.reader
assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}
print("trained")
"""


def test_trains_with_torch_numpy_and_pydantic_alone() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "trained", done.stderr
