"""Compile the Triton kernels as an NVIDIA GPU would run them; one JSON object a kernel.

Run by a test in a process of its own: where TRITON_INTERPRET is set, nothing compiles. No GPU is
needed.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from r2d_core.kernels import triton_kernels
from r2d_core.kernels.triton import (
    BLOCK_COUNTED,
    BLOCK_H,
    BLOCK_SCALED,
    BLOCK_SUMMED,
    LANE,
    REGISTERS,
    block_of,
)

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def compile_kernel(kernel, target, dtype, pointers, constants, **options):
    """Machine code for logits of this dtype in rows of a multiple of 16."""
    signature, divisible = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = "*" + pointers[name]
            divisible[(place,)] = [["tt.divisibility", 16]]
        else:
            # A Python float without an annotation of the kernel's is passed as float32.
            scalar = kernel.params[place].annotation_type
            signature[name] = scalar or ("fp32" if name == "softcap" else "i32")
            if name in ("stride", "n"):
                divisible[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=divisible)
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        sass, usage = (
            subprocess.run(
                [CUOBJDUMP, what, file.name], capture_output=True, text=True, check=True
            ).stdout
            for what in ("--dump-sass", "--dump-resource-usage")
        )
    print(
        json.dumps(
            {
                "kernel": kernel.fn.__name__,
                "target": target,
                "dtype": dtype,
                "constants": constants,
                "softcap": signature.get("softcap"),
                "spilled_bytes": int(usage.split("STACK:")[1].split()[0]),
                # The cache's policy stands between (STG.E.EF.128).
                "wide_loads": len(re.findall(r"LDG\.E\.(?:\w+\.)*128", sass)),
                "wide_stores": len(re.findall(r"STG\.E\.(?:\w+\.)*128", sass)),
                "narrow_stores": len(re.findall(r"STG\.E\.(?:\w+\.)*U16", sass)),
            }
        )
    )


# What training runs; then what it does not, but tests on a GPU do.
for dtype, target, vocabulary, softcap in (
    ("bf16", 80, 128264, False),
    ("bf16", 80, 128264, True),
    ("bf16", 90, 128264, False),
    ("bf16", 90, 128264, True),
    ("bf16", 90, 32000, False),
    ("fp32", 90, 1000, True),
    ("fp64", 90, 1000, True),
):
    exact = "fp64" if dtype == "fp64" else "fp32"
    block, warps = block_of(vocabulary, DTYPES[dtype], softcap)
    options = {"num_warps": warps, "maxnreg": REGISTERS}
    for backward in (True, False):
        compile_kernel(
            triton_kernels.row_kernel,
            target,
            dtype,
            {"logits": dtype, "targets": "i64", "top": "i1"}
            | dict.fromkeys(("scale", "contrast_gradient", "nll"), exact),
            {"SOFTCAP": softcap, "BACKWARD": backward, "BLOCK": block, "LANE": LANE},
            **options,
        )
    compile_kernel(
        triton_kernels.contrast_kernel,
        target,
        dtype,
        {"hidden": dtype, "three": dtype, "targets": "i64", "right": "i1"}
        | dict.fromkeys(("n_items", "class_counts", "scale", "term", "gradient"), exact),
        {"SOFTCAP": softcap, "ALL": softcap, "BLOCK": min(BLOCK_H, block)},
        num_warps=4,
    )
    for ones in ({}, {"n": 1, "unsafe": 1}):  # Triton makes a constant of an integer that is 1
        compile_kernel(
            triton_kernels.count_kernel,
            target,
            dtype,
            {"targets": "i64", "counts": "i64"},
            {"BLOCK": BLOCK_COUNTED, "target_stride": 1} | ones,
            num_warps=16,
        )
        compile_kernel(
            triton_kernels.sum_kernel,
            target,
            dtype,
            {"top": "i1", "right": "i1", "targets": "i64", "correct": "i64", "greedy": "i64"}
            | dict.fromkeys(("nll", "scale", "term", "n_items", "class_counts"), exact)
            | dict.fromkeys(("loss", "cross_entropy", "pivot_by_class"), exact),
            {"PIVOTS": softcap, "BLOCK": BLOCK_SUMMED} | ones,
            num_warps=8,
        )
    compile_kernel(
        triton_kernels.readout_kernel,
        target,
        dtype,
        {"logits": dtype, "log_probs": exact, "entropy": exact},
        {"SOFTCAP": softcap, "BLOCK": block, "LANE": LANE},
        **options,
    )
    for source, in_place in ((exact, False), (dtype, True)):  # a sum of products; a gradient
        compile_kernel(
            triton_kernels.scale_kernel,
            target,
            dtype,
            {"source": source, "upstream": exact, "out": dtype},
            {"IN_PLACE": in_place, "BLOCK": BLOCK_SCALED},
            num_warps=8,
        )
