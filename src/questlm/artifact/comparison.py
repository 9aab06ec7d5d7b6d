"""What the codes of a packed model take by several ways of storing them."""

from __future__ import annotations

import lzma

import numpy as np
import pyarrow as pa

from questlm.artifact.coding import code_section, entropy_bytes
from questlm.artifact.format import expected_tensors
from questlm.artifact.read import Artifact
from questlm.artifact.single_file import tensor_matrices
from questlm.progress import progress

__all__ = ["coded_sizes"]


def coded_sizes(artifact: Artifact, prefix: str = "") -> dict[str, float]:
    """Return the bytes of all packed codes of a model by each way, each matrix by itself.

    `coded` is a section of the single file, with its tables; `entropy` the Shannon entropy of each matrix's codes as
    independent draws, without any table; the compressors are at their highest level, and take each matrix packed or as
    one byte a code, whichever comes out smaller. It takes seconds for each million of codes.

    Args:
        prefix: only matrices whose names begin with it, such as "layers.0.".
    """
    expected = expected_tensors(artifact.config).items()
    specs = {name: spec for name, spec in expected if spec.codes is not None and name.startswith(prefix)}
    compressors = {
        "zstd-22": pa.Codec("zstd", compression_level=22).compress,
        "brotli-11": pa.Codec("brotli", compression_level=11).compress,
        "xz": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    }
    sizes = dict.fromkeys(("packed", "coded", "entropy", *compressors), 0.0)
    with progress("comparing coders", len(specs)) as update:
        for done, (name, spec) in enumerate(specs.items(), 1):
            (matrix,) = tensor_matrices(spec, artifact.tensors[name])
            packed = matrix.stored()
            plain = np.concatenate([symbols for _, symbols in matrix.runs()]).tobytes()
            sizes["packed"] += len(packed)
            sizes["coded"] += len(code_section(matrix))
            sizes["entropy"] += entropy_bytes(matrix)
            for way, compress in compressors.items():
                sizes[way] += min(len(compress(packed)), len(compress(plain)))
            update(done)
    return sizes
