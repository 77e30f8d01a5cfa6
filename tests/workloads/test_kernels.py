"""The Triton kernels, which no test can run here: what Triton refuses before it compiles."""

from __future__ import annotations

import ast
from pathlib import Path

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
