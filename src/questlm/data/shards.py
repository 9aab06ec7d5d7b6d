"""Token shards: the public format of modded-nanogpt and Parameter Golf, and its 32-bit sibling from llm.c.

A shard is 256 little-endian int32 (magic number, version, number of tokens, zeros) and then the tokens, little-endian:

    magic     version  tokens
    20240520  1        uint16, for vocabularies of up to 65,536
    20240801  7        uint32, for larger ones
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from questlm.data.stream import TokenStream
from questlm.errors import DataError
from questlm.files import atomic_file

__all__ = ["ShardWriter", "check_vocabulary", "largest_id", "open_shards", "read_shard", "write_shards"]

_HEADER_BYTES = 1024
_FORMATS: dict[int, tuple[int, np.dtype[Any]]] = {20240520: (1, np.dtype("<u2")), 20240801: (7, np.dtype("<u4"))}
_MAX_TOKENS = 2**31 - 1  # the count is an int32
_SHARD_TOKENS = 2**30


class ShardWriter:
    """Appends tokens to one shard. The file appears when the `with` block ends without an error, and not otherwise.

    `vocab_size` decides the width of a token. Ids outside it raise DataError: they would wrap round silently.
    """

    def __init__(self, path: Path, vocab_size: int) -> None:
        self._path = path
        self._vocab_size = vocab_size
        self._magic = 20240520 if vocab_size <= 65_536 else 20240801
        self._version, self._dtype = _FORMATS[self._magic]
        self._count = 0
        self._file: IO[bytes]

    def __enter__(self) -> ShardWriter:
        self._open = ExitStack()
        self._file = self._open.enter_context(atomic_file(self._path))
        self._file.write(bytes(_HEADER_BYTES))
        return self

    def append(self, tokens: NDArray[Any]) -> None:
        """Append one-dimensional integer `tokens`."""
        if len(tokens) and not (tokens.min() >= 0 and tokens.max() < self._vocab_size):
            raise DataError(
                f"token ids {tokens.min()} to {tokens.max()} do not fit a vocabulary of {self._vocab_size}; "
                "the tokenizer gave ids that it does not list"
            )
        self._count += len(tokens)
        if self._count > _MAX_TOKENS:
            raise DataError(f"{self._path} would hold more than {_MAX_TOKENS} tokens; write several shards")
        self._file.write(np.ascontiguousarray(tokens, dtype=self._dtype).data)

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._open:  # which removes the file if anything is raised
            if problem is not None:
                raise problem
            header = np.zeros(_HEADER_BYTES // 4, dtype="<i4")
            header[:3] = self._magic, self._version, self._count
            self._file.seek(0)
            self._file.write(header.tobytes())


def write_shards(folder: Path, stem: str, arrays: Iterable[NDArray[Any]], vocab_size: int) -> int:
    """Write `arrays` one after another to `stem_000000.bin`, `stem_000001.bin`, ...

    in `folder`; return the tokens written.

    A shard takes arrays until it would pass 2**30 tokens. No file is made when there is no array.
    """
    remaining = iter(arrays)
    ahead = next(remaining, None)
    total = number = 0
    while ahead is not None:
        with ShardWriter(folder / f"{stem}_{number:06d}.bin", vocab_size) as writer:
            count = 0
            while ahead is not None and (count == 0 or count + len(ahead) <= _SHARD_TOKENS):
                writer.append(ahead)
                count += len(ahead)
                ahead = next(remaining, None)
        total += count
        number += 1
    return total


def read_shard(path: Path) -> NDArray[Any]:
    """Memory-map the tokens of a shard (uint16 or uint32, little-endian); DataError where it is incomplete."""
    try:
        size = path.stat().st_size
        header = np.fromfile(path, dtype="<i4", count=_HEADER_BYTES // 4)
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}") from None
    if size < _HEADER_BYTES:
        raise DataError(f"{path} is {size} bytes long, but a token shard begins with a header of {_HEADER_BYTES}")
    magic, version, count = (int(value) for value in header[:3])
    if magic not in _FORMATS:
        raise DataError(f"{path} begins with {magic}, but a token shard begins with 20240520 or 20240801")
    wanted, dtype = _FORMATS[magic]
    if version != wanted:
        raise DataError(f"{path} is a token shard of version {version}, but only version {wanted} is known")
    if count < 0:
        raise DataError(f"{path} claims {count} tokens; its header is damaged")
    if size != _HEADER_BYTES + count * dtype.itemsize:
        raise DataError(
            f"{path} is {size} bytes long, but its header promises {count} tokens, "
            f"which is {_HEADER_BYTES + count * dtype.itemsize} bytes; it is incomplete or damaged"
        )
    if count == 0:  # an empty range cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=_HEADER_BYTES, shape=(count,))


def open_shards(paths: Sequence[Path]) -> TokenStream:
    """Return the tokens of several shards as one stream, in the order given."""
    return TokenStream([read_shard(path) for path in paths])


def largest_id(path: Path) -> tuple[int, int]:
    """Return the largest token id of a shard and its first position; (-1, 0) for an empty shard."""
    largest, position, start = -1, 0, 0
    for chunk in open_shards([path]).chunks():
        if chunk.max() > largest:
            largest, position = int(chunk.max()), start + int(chunk.argmax())
        start += len(chunk)
    return largest, position


def check_vocabulary(
    paths: Sequence[Path], vocab_size: int, scan: Callable[[Path], tuple[int, int]] = largest_id
) -> None:
    """Raise DataError where a shard has an id outside a vocabulary of `vocab_size`.

    Args:
        scan: returns the largest id of a shard and its position; one that remembers results makes this fast.
    """
    for path in paths:
        largest, position = scan(path)
        if largest >= vocab_size:
            raise DataError(
                f"{path} holds the token id {largest} at position {position}, but the vocabulary has only "
                f"{vocab_size} entries (0 to {vocab_size - 1}); it was made with another tokenizer"
            )
