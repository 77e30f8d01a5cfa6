"""Reading a corpus knows neither Ray nor torch, nor what builds one."""

from __future__ import annotations

import subprocess
import sys


def test_the_reader_imports_little() -> None:
    code = "import sys, shoal_data.reading.reader, shoal_data.reading.verify; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout.decode().split()
    )
    assert "numpy" in loaded
    assert loaded.isdisjoint({"ray", "torch", "tokenizers", "gigatoken", "numba", "boto3"})
    rooms = {name.split(".")[1] for name in loaded if name.startswith("shoal_data.")}
    assert rooms.isdisjoint({"bpe", "jobs", "sources", "tokenizer", "writing"})
