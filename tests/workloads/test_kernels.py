"""The Triton kernels without a GPU: what Triton refuses before it compiles, and what its interpreter makes of them."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import shoal_workloads.precision

SOURCE = Path(shoal_workloads.precision.__file__).with_name("kernels.py")


def test_kernels_name_nothing_but_triton_and_constants() -> None:
    """Triton resolves every global that a kernel mentions, in its annotations as well, and takes its own names,
    built-in ones and constants declared as `tl.constexpr`; anything else fails on the first GPU."""
    tree = ast.parse(SOURCE.read_text())
    allowed = {"tl", "tensor", "range"}
    allowed |= {
        node.targets[0].id  # type: ignore[attr-defined]
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


def printed(*program: str, **variables: str) -> dict[str, Any]:
    """What a program prints as JSON: in a process of its own, since Triton is told how to be when it is imported."""
    ran = subprocess.run(
        [sys.executable, *program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (make test-long does)"
)


@pytest.mark.long
@needs_triton
def test_kernels_compile_for_the_tensor_cores_of_hopper_and_blackwell(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    found = printed(str(root / "benchmarks" / "compile_kernels.py"), TRITON_CACHE_DIR=str(tmp_path))
    kernels = {name: made for name, made in found.items() if name != "triton"}
    assert len(kernels) == 16
    for name, made in kernels.items():
        assert made["binary"] > 0
        assert (made["tensor cores"] > 0) == ("product" in name or "weight" in name), name


@pytest.mark.long
@needs_triton
def test_kernels_compute_what_the_emulation_does() -> None:
    """Products of the same codes to rounding of their sums; scales to the bit. The interpreter halves what is rounded
    up to the next power of two, so a few codes differ that do not on a GPU."""
    found = printed("-m", "tests.support.interpreted", TRITON_INTERPRET="1")
    assert len(found) == 8
    for name, value in found.items():
        if name.startswith("scales"):
            assert value == 0, name
        else:
            assert value < (0.04 if name.startswith("codes") else 2e-6), name
