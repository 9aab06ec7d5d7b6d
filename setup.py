"""Builds the native CPU kernels; everything else about the package is in pyproject.toml.

Optional: without a C compiler the package installs all the same and computes with its PyTorch reference.
"""

import os
from pathlib import Path

from setuptools import Extension, setup

kernels = Extension(
    "questlm.ops.cpu._kernels",
    sources=sorted(map(str, Path("src/questlm/ops/cpu").rglob("*.c"))),
    depends=sorted(map(str, Path("src/questlm/ops/cpu").rglob("*.h"))),
    # Each instruction set has a file, which turns it on for itself, and is chosen at run time, so no -march. No
    # -ffast-math: NaN must stay NaN, and without contraction to fused multiply-adds every machine computes the same
    # bits.
    extra_compile_args=[
        "-std=gnu11", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off",
        "-fvisibility=hidden", "-pthread",
    ],
    extra_link_args=["-pthread"],
    libraries=["m"],
    optional=True,
)  # fmt: skip

setup(ext_modules=[] if os.name == "nt" else [kernels])
