"""An artifact as one small file: the content of config.json and tokenizer.json, and every tensor as coded sections.

    8 bytes     "QuestLM" and the number of this layout, 1
    a document  the content of config.json
    a document  the content of tokenizer.json, or an empty one
    sections    of every tensor that the config asks for, in the order of `expected_tensors`
    32 bytes    SHA-256 of everything before

A document is one byte (0: as it is, 1: as a raw LZMA2 stream), its length in the file and its own length, 4 bytes each,
and its bytes. A tensor of codes is one section of its codes, not packed. Any other is a section for each byte of its
numbers: of all the lowest bytes first, because exponents are alike and the other bits are not.
`questlm.artifact.coding` says what a section is.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import stat
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import torch
from torch import Tensor

from questlm import ops
from questlm.artifact.coding import MOST_EXPANSION, Rows, code_section, read_section
from questlm.artifact.format import TensorSpec
from questlm.errors import ArtifactError
from questlm.memory import host_memory, require_memory

__all__ = ["DTYPES", "SingleFile", "open_single_file", "tensor_matrices", "write_single_file"]

_MAGIC: Final = b"QuestLM\x01"
_DOCUMENT = struct.Struct("<BII")
_HASH_BYTES = 32
_BLOCK = 1 << 20
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 22}]
DTYPES = {
    "U8": torch.uint8,
    "I8": torch.int8,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
}
_MEMORY_OVER_TENSORS = 2.0  # they, and what is decoded at a time; layers take them or ask for more themselves


def write_single_file(
    file: IO[bytes],
    config: Mapping[str, Any],
    tokenizer: str | None,
    specs: Mapping[str, TensorSpec],
    tensors: Mapping[str, Tensor],
) -> dict[str, int]:
    """Write a single file, one tensor at a time.

    Args:
        config: content of config.json.
        tokenizer: content of tokenizer.json; None: none.
        specs: `expected_tensors` of the config.
        tensors: by name, contiguous and on the CPU.

    Returns:
        Bytes by part, which add up to the size of the file.
    """
    parts: Counter[str] = Counter()
    digest = hashlib.sha256()

    def write(part: str, content: bytes) -> None:
        file.write(content)
        digest.update(content)
        parts[part] += len(content)

    write("header", _MAGIC)
    write("config", _document(json.dumps(config, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()))
    write("tokenizer" if tokenizer is not None else "header", _document((tokenizer or "").encode()))
    for name, spec in specs.items():
        for matrix in tensor_matrices(spec, tensors[name]):
            write(spec.part, code_section(matrix))
    file.write(digest.digest())
    parts["checksum"] = _HASH_BYTES
    return dict(parts)


class SingleFile:
    """A single file whose checksum holds; `open_single_file` makes one.

    Attributes:
        config: bytes of its config.json.
        tokenizer: text of its tokenizer.json, or None.
        bytes: size of the file.
    """

    def __init__(self, file: IO[bytes], size: int, limits: tuple[int, int]) -> None:
        self._file, self.bytes = file, size
        self._left = size - len(_MAGIC) - _HASH_BYTES
        file.seek(len(_MAGIC))
        self.config = self._read_document("its config", limits[0])
        self.tokenizer = self._read_document("its tokenizer", limits[1]) or None

    def tensors(self, specs: Mapping[str, TensorSpec]) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Read every tensor, and how many bytes of the file each part takes.

        Raises:
            ArtifactError: the file does not hold exactly these tensors.
            ConfigError: they need more memory than is free.
        """
        needed = sum(spec.bytes for spec in specs.values())
        if needed > MOST_EXPANSION * (self._left + 1):
            raise ArtifactError(
                f"by its config the model has tensors of {needed} bytes, but only {self._left} bytes are left for them"
            )
        hint = "use a machine that has more memory"
        require_memory(_MEMORY_OVER_TENSORS * needed, host_memory(), "the packed model in this file", hint)
        found, parts = {}, Counter[str]()
        for name, spec in specs.items():
            before = self._left
            found[name] = self._read_tensor(spec)
            parts[spec.part] += before - self._left
        if self._left:
            raise ArtifactError(f"{self._left} bytes are left over behind the last tensor; the file is damaged")
        return found, dict(parts)

    def _read_tensor(self, spec: TensorSpec) -> Tensor:
        tensor = torch.empty(spec.shape, dtype=DTYPES[spec.dtype])
        rows, columns = _matrix_shape(spec)
        if spec.codes is not None:
            levels, length = spec.codes
            content, taken = read_section(self._file, self._left, (rows, length), levels, spec.bytes)
            if isinstance(content, bytes):
                tensor.view(torch.uint8).flatten().copy_(_flat(content))
            else:
                for run, symbols in content:
                    tensor[run] = ops.pack(torch.from_numpy(symbols), levels)
            self._left -= taken
            return tensor
        width = tensor.element_size()
        planes = tensor.view(torch.uint8).view(rows, columns, width) if width > 1 else tensor.view(torch.uint8)
        for index in range(width):
            plane = planes[..., index] if width > 1 else planes.view(rows, columns)
            content, taken = read_section(self._file, self._left, (rows, columns), 256, rows * columns)
            if isinstance(content, bytes):
                plane.copy_(_flat(content).view(rows, columns))
            else:
                for run, symbols in content:
                    plane[run] = torch.from_numpy(symbols)
            self._left -= taken
        return tensor

    def _read_document(self, what: str, limit: int) -> str:
        self._left -= _DOCUMENT.size
        if self._left < 0:
            raise ArtifactError(f"the file ends before {what}")
        kind, length, whole = _DOCUMENT.unpack(self._file.read(_DOCUMENT.size))
        if kind > 1 or length > self._left or whole > limit or whole > MOST_EXPANSION * length:
            raise ArtifactError(f"{what} is {length} bytes long for {whole}, which cannot be; the file is damaged")
        content = self._file.read(length)
        self._left -= length
        try:
            if kind:
                content = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS).decompress(content, whole + 1)
            text = content.decode()
        except (lzma.LZMAError, EOFError, ValueError) as problem:
            raise ArtifactError(f"{what} cannot be read ({type(problem).__name__}); the file is damaged") from None
        if len(content) != whole:
            raise ArtifactError(f"{what} has not the {whole} bytes that it should; the file is damaged")
        return text


@contextmanager
def open_single_file(path: Path, limits: tuple[int, int]) -> Iterator[SingleFile]:
    """Open the single file of a packed model, after checking what it begins with and its checksum.

    Args:
        path: a file.
        limits: the most bytes that config and tokenizer may have.

    Raises:
        ArtifactError: `path` is no single file of a packed model, or is damaged.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{path} is neither a folder nor a plain file")
        if file.read(len(_MAGIC))[:-1] != _MAGIC[:-1] or status.st_size < len(_MAGIC) + _HASH_BYTES:
            raise ArtifactError(
                f"{path} is not a folder, and not the single file of a packed model; quest pack writes both"
            )
        file.seek(0)
        if (number := file.read(len(_MAGIC))[-1]) != _MAGIC[-1]:
            raise ArtifactError(f"{path} has the layout {number}, but this version of questlm reads {_MAGIC[-1]}")
        digest, left = hashlib.sha256(_MAGIC), status.st_size - len(_MAGIC) - _HASH_BYTES
        while left and (block := file.read(min(left, _BLOCK))):
            digest.update(block)
            left -= len(block)
        if file.read(_HASH_BYTES + 1) != digest.digest():
            raise ArtifactError(f"{path} does not match its SHA-256; it is cut or damaged")
        yield SingleFile(file, status.st_size, limits)


def tensor_matrices(spec: TensorSpec, tensor: Tensor) -> list[Rows]:
    """The matrices of small integers that a tensor is stored as: its codes, or each byte of its numbers."""
    rows, columns = _matrix_shape(spec)
    if spec.codes is not None:
        levels, length = spec.codes
        return [
            Rows(
                (rows, length),
                levels,
                lambda: tensor.numpy().tobytes(),
                lambda run: ops.unpack(tensor[run], levels, length).numpy(),
            )
        ]
    numbers = tensor.reshape(rows, columns)
    width = numbers.element_size()
    planes = numbers.view(torch.uint8).numpy().reshape(rows, columns, width)

    def plane(index: int) -> Rows:
        return Rows(
            (rows, columns), 256, lambda: planes[..., index].tobytes(), lambda run: planes[run, :, index].copy()
        )

    return [plane(index) for index in range(width)]


def _matrix_shape(spec: TensorSpec) -> tuple[int, int]:
    """(rows, columns) of a tensor; numbers, not codes, that stand alone in their rows are taken as one row."""
    *outer, columns = spec.shape
    rows = int(np.prod(outer, dtype=np.int64)) if outer else 1
    return (1, rows) if columns == 1 and spec.codes is None else (rows, columns)


def _flat(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _document(content: bytes) -> bytes:
    packed = lzma.compress(content, lzma.FORMAT_RAW, filters=_FILTERS)
    if len(packed) >= len(content) or len(content) > MOST_EXPANSION * len(packed):
        return _DOCUMENT.pack(0, len(content), len(content)) + content
    return _DOCUMENT.pack(1, len(packed), len(content)) + packed
