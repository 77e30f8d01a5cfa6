"""The Triton kernels without a GPU: what Triton refuses before it compiles, and what its interpreter makes of them."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import shoal_workloads.precision

SOURCE = Path(shoal_workloads.precision.__file__).with_name("kernels.py")


def test_kernels_name_nothing_but_triton_and_constants() -> None:
    """Triton resolves every global that a kernel mentions, in its annotations as well, and takes its own names,
    built-in ones and constants declared as `tl.constexpr`; anything else fails on the first GPU."""
    tree = ast.parse(SOURCE.read_text())
    allowed = {"tl", "tensor", "range"}
    allowed |= {
        node.targets[0].id
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("tl.constexpr(")
    }
    kernels = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list]
    assert len(kernels) == 4
    for kernel in kernels:
        inner = [*kernel.args.args, *kernel.body]
        names = [node for part in inner for node in ast.walk(part) if isinstance(node, ast.Name)]
        local = {a.arg for a in kernel.args.args} | {n.id for n in names if isinstance(n.ctx, ast.Store)}
        assert {n.id for n in names} - local <= allowed, kernel.name


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (make test-long does)")
def test_kernels_compute_what_the_emulation_does() -> None:
    """Products of the same codes to rounding of their sums; scales to the bit. The interpreter halves what is rounded
    up to the next power of two, so a few codes differ that do not on a GPU."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.support.interpreted"],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert len(found) == 8
    for name, value in found.items():
        if name.startswith("scales"):
            assert value == 0, name
        else:
            assert value < (0.04 if name.startswith("codes") else 2e-6), name
