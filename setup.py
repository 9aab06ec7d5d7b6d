"""Builds the native CPU kernels; everything else about the package is in pyproject.toml.

Optional: without a C compiler the package installs all the same and computes with its PyTorch reference.
"""

import os

from setuptools import Extension, setup

kernels = Extension(
    "questlm.ops.cpu._kernels",
    sources=["src/questlm/ops/cpu/kernels.c"],
    depends=["src/questlm/ops/cpu/rows.h"],
    # Vector code for each x86 generation is chosen at run time, so no -march. No -ffast-math: NaN must stay NaN, and
    # without contraction to fused multiply-adds every machine computes the same bits.
    extra_compile_args=[
        "-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-pthread",
    ],
    extra_link_args=["-pthread"],
    libraries=["m"],
    optional=True,
)  # fmt: skip

setup(ext_modules=[] if os.name == "nt" else [kernels])
