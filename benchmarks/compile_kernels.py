"""Compile every Triton kernel of the workload for Hopper and Blackwell, without a GPU, and print what became of it.

    python benchmarks/compile_kernels.py

Needs the repository on PYTHONPATH (workloads, data_pipeline), torch and Triton. For each chip, kernel and type,
as JSON: shared memory in bytes, instructions of the tensor cores (`wgmma` on Hopper, `tcgen05` on Blackwell) and
asynchronous copies in the PTX, and the size of the binary.
"""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from shoal_workloads.precision import kernels

TARGETS = {"sm_90": GPUTarget("cuda", 90, 32), "sm_100": GPUTarget("cuda", 100, 32)}
TENSOR_CORES = {"sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma."}
FP8, FP32, INDEX, NUMBER = "*fp8e4nv", "*fp32", "*i32", "i32"
SPANS = {"ends": INDEX, "expert_of": INDEX, "first_of": INDEX, "n_experts": NUMBER}
PRODUCT = {"a": FP8, "scale_a": FP32, "b": FP8, "scale_b": FP32, "n": NUMBER, "k": NUMBER, **SPANS}
WEIGHT = {"y": FP8, "scale_y": FP32, "x": FP8, "scale_x": FP32, "first_span": INDEX}
WEIGHT |= {"n_out": NUMBER, "n_in": NUMBER, "length": NUMBER}
TILES = {"codes": FP8, "scales": FP32, "k": NUMBER}
WIDTHS = {"n", "k", "n_out", "n_in", "length"}  # multiples of 16 in the shapes that matter
PIPELINED = {"num_warps": 8, "num_stages": 3}


def main() -> None:
    found: dict[str, Any] = {"triton": triton.__version__}
    for chip, kind in product(TARGETS, ("bf16", "fp32")):
        wide = f"*{kind}"
        for name, kernel, types, constants, options in (
            ("product", kernels._product, {**PRODUCT, "out": wide}, {"block_rows": 128, "block_n": 128}, PIPELINED),
            (
                "weight",
                kernels._weight_product,
                {**WEIGHT, "out": wide},
                {"block_out": 128, "block_in": 128},
                PIPELINED,
            ),
            ("tiles", kernels._quantize_tiles, {**TILES, "x": wide}, {"power_of_2": True}, {"num_warps": 1}),
            ("rows", kernels._quantize_rows, {**TILES, **SPANS, "length": NUMBER, "x": wide}, {"block_k": 64}, {}),
        ):
            found[f"{chip} {name} {kind}"] = compiled(chip, kernel, types, constants, options)
    print(json.dumps(found, indent=2))


def compiled(
    chip: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], options: dict[str, int]
) -> dict[str, int]:
    """types: of every argument that is no constant."""
    names = kernel.arg_names
    even = [i for i, name in enumerate(names) if types.get(name, "").startswith("*") or name in WIDTHS]
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in even},
    )
    done = triton.compile(source, target=TARGETS[chip], options=options)
    ptx = done.asm["ptx"]
    return {
        "shared": done.metadata.shared,
        "tensor cores": ptx.count(TENSOR_CORES[chip]),
        "async copies": ptx.count("cp.async."),
        "binary": len(done.asm["cubin"]),
    }


if __name__ == "__main__":
    main()
