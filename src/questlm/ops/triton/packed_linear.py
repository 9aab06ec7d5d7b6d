"""Packed weights on a GPU: laid out once, and multiplied without ever being unpacked in memory."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from questlm import ops
from questlm.grid import Grid
from questlm.ops.triton.decode import decode_bits, decode_bytes
from questlm.ops.triton.decode_attention import decode_attention
from questlm.ops.triton.encode_rows import encode_rows
from questlm.ops.triton.expand import expand
from questlm.ops.triton.few_rows import dot_bytes, dot_values
from questlm.ops.triton.launch import start_kernel
from questlm.ops.triton.tiles import FUSED, matrix, tiles_of
from questlm.ops.triton.words import Words, input_half, lay_out, layout_bits, plane_bytes, twice_zero

__all__ = [
    "Before", "Encoding", "Inputs", "LaidOut", "Rows8", "Tensors", "Vector", "attend", "encode", "inputs_of", "join",
    "launch_of", "lay_out_matrix", "levels", "multiply", "multiply_values", "normed", "part",
]  # fmt: skip

_TILE_ENTRIES = 2**24
_STAGED_BYTES = 72 * 1024  # of tiles that a pipeline keeps in shared memory, of which any GPU from Ampere on has 99 KiB
_MANY_ROWS, _LONG_ROW = 4096, 4096  # from which on a matrix keeps all of a GPU busy, or four warps on a row


class LaidOut(NamedTuple):
    """A matrix for the kernels.

    Attributes:
        words: its codes.
        step, term: float32 (rows,): step of each row, and the second term of the sum in `words`.
        bits: of a code as it is laid out; 0 for bits in order.
        twice_zero: Z of `words`.
        k: entries of a row.
    """

    words: Words
    step: Tensor
    term: Tensor
    bits: int
    twice_zero: int
    k: int


class Inputs(NamedTuple):
    """Rows as codes: bytes int8 (rows, width) or bits int32 (rows, planes, words); steps and sums of codes (rows,)."""

    codes: Tensor
    step: Tensor
    sums: Tensor


class Vector(NamedTuple):
    """Launch of a kernel of `questlm.ops.triton.decode`."""

    columns: int
    words: int
    num_warps: int


class Tensors(NamedTuple):
    """Launch of a kernel of `questlm.ops.triton.few_rows`."""

    columns: int
    depth: int
    num_warps: int
    num_stages: int
    weight_first: bool


def lay_out_matrix(
    tensors: Mapping[str, Tensor], weight: Grid, act: Grid | None, k: int, device: torch.device, bits: int | None = None
) -> LaidOut:
    """Lay stored rows out on `device`, a tile of rows at a time, for inputs on the grid `act` or for plain ones.

    Args:
        bits: of a code; None: `layout_bits`.
    """
    bits = layout_bits(weight, act, k) if bits is None else bits
    codes, tile = tensors["codes"], max(1, _TILE_ENTRIES // k)
    parts = [
        lay_out(codes[start : start + tile].to(device), weight.levels, k, bits) for start in range(0, len(codes), tile)
    ]
    high = [part.high for part in parts if part.high is not None]
    sums = torch.cat([part.sums for part in parts])
    words = Words(torch.cat([part.low for part in parts]), torch.cat(high) if high else None, sums)
    twice, half = twice_zero(weight.levels, bits), 0 if act is None else input_half(act)
    term = (2 * half * sums - twice * half * k).double() / 4
    if bits == 0 and act is not None:  # unsigned codes are counted, half their number above the signed ones
        term -= sums.double() * (act.levels // 2)
    step = tensors["step"].to(device, torch.float32).flatten().contiguous()
    return LaidOut(words, step, term.float(), bits, twice, k)


class Before(NamedTuple):
    """What comes before the quantisation of rows.

    Attributes:
        kind: 'nothing', 'norm', 'swiglu' or 'attention'.
        other: what a norm's rows are added to, what SwiGLU multiplies, or the largest scores of attention's parts.
        gain: of the norm, or the sums of attention's parts.
        heads, width, splits: of attention.
    """

    kind: str = "nothing"
    other: Tensor | None = None
    gain: Tensor | None = None
    eps: float = 0.0
    heads: int = 1
    width: int = 1
    splits: int = 1


NOTHING = Before()


class Encoding(NamedTuple):
    """How rows of K entries become codes for weights laid out in `bits`."""

    k: int
    grid: Grid
    block_size: int
    bits: int

    @property
    def planes(self) -> int:
        """Bits of a code, where codes are kept as bits; else 0."""
        return (self.grid.levels - 1).bit_length() if self.bits == 0 else 0

    @property
    def width(self) -> int:
        """Bytes of a row of codes, or words of a plane of bits."""
        if self.bits == 0:
            return plane_bytes(self.k, 1) // 4
        if self.bits == 3:
            return max(4 * plane_bytes(self.k, 2), 8 * plane_bytes(self.k, 1))
        return (8 // self.bits) * plane_bytes(self.k, self.bits)


def encode(
    rows: Tensor, how: Encoding, dtype: torch.dtype, before: Before = NOTHING, residual: Tensor | None = None,
    overlaps: bool = False,
) -> Inputs:  # fmt: skip
    """Rows as codes; `rows` is (rows, K), with any distance between rows, or the parts of attention.

    Args:
        dtype: what is rounded to before the rotation.
        residual: where the sum of rows and `before.other` is written; None: there is no sum.
    """
    count, planes, width = len(rows), how.planes, how.width
    if planes:  # words beyond the last are read
        make = rows.new_empty if width * 32 == how.k else rows.new_zeros
        codes = make((count, planes, width), dtype=torch.int32)
    else:
        codes = rows.new_empty((count, width), dtype=torch.int8)
    step, sums = rows.new_empty(count, dtype=torch.float32), rows.new_empty(count, dtype=torch.int32)
    _encode(rows, how.k, how.block_size, dtype, before, residual, codes, step, sums, how.grid.levels,
            how.grid.step_per_scale or 0.0, width, planes, overlaps)  # fmt: skip
    return Inputs(codes, step, sums)


def normed(
    rows: Tensor, dtype: torch.dtype, before: Before, residual: Tensor | None = None, overlaps: bool = False
) -> Tensor:
    """Rows (rows, K) behind the norm `before`, of `dtype`."""
    k = rows.shape[1]
    y, unused = rows.new_empty((len(rows), k), dtype=dtype), rows.new_empty(0, dtype=torch.int32)
    _encode(rows, k, 1, dtype, before, residual, y, unused, unused, 0, 0.0, k, 0, overlaps)
    return y


def _encode(
    rows: Tensor, k: int, block_size: int, dtype: torch.dtype, before: Before, residual: Tensor | None,
    codes: Tensor, step: Tensor, sums: Tensor, levels: int, step_per_scale: float, width: int, planes: int,
    overlaps: bool,
) -> None:  # fmt: skip
    tiles = tiles_of(k, block_size, k)
    start_kernel(
        encode_rows, (len(rows),), rows, rows if before.other is None else before.other,
        rows if before.gain is None else before.gain, matrix(tiles.T, block_size, rows.device),
        rows if residual is None else residual, codes, step, sums, rows.stride(0), before.eps, step_per_scale,
        block_size**-0.5, tiles.NB, tiles.P, tiles.T, levels, width, block_size > 1, dtype is torch.bfloat16,
        before.kind, residual is not None, planes, before.heads, before.width, before.splits, overlaps,
        num_warps=4 if k <= 2048 else 8, num_stages=1, **_overlap(overlaps), **FUSED,
    )  # fmt: skip


def attend(
    qkv: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, cos: Tensor, sin: Tensor,
    heads: int, kv_heads: int, splits: int, overlaps: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Parts (batch, splits, heads, width) of the attention of one new token of each sequence, largest scores, sums.

    Args:
        qkv: (batch, (heads + 2 kv_heads) width), not yet rotated.
        keys, values: (batch * capacity, kv_heads, width), which the new ones are written to.
        lengths: tokens before the new one, (batch,) int64.
        cos, sin: (positions, width / 2) float32.
    """
    batch, width = len(qkv), keys.shape[2]
    parts = qkv.new_empty((batch, splits, heads, width), dtype=torch.float32)
    largest, sums = (qkv.new_empty((batch, splits, heads), dtype=torch.float32) for _ in range(2))
    group, block = heads // kv_heads, max(16, min(64, 2**14 // (width * keys.element_size())))
    start_kernel(
        decode_attention, (batch, kv_heads, splits), qkv, keys, values, lengths, cos, sin, parts, largest, sums,
        len(keys) // batch, width**-0.5, heads, kv_heads, group, max(16, 1 << (group - 1).bit_length()), width,
        block, splits, overlaps, num_warps=4, num_stages=2, **_overlap(overlaps), **FUSED,
    )  # fmt: skip
    return parts, largest, sums


class Rows8(NamedTuple):
    """A matrix of signed bytes (rows, K), and what each row is multiplied by, (rows,)."""

    bytes: Tensor
    step: Tensor


def multiply_values(
    w: LaidOut | Rows8, x: Tensor, dtype: torch.dtype, launch: Tensors | None = None, overlaps: bool = False
) -> Tensor:
    """y (tokens, out) of `dtype` from inputs that are not rounded, x (tokens, K) bfloat16 or float32."""
    tokens, out = len(x), len(w.step)
    data, bits, zero = (w.bytes, 8, 0.0) if isinstance(w, Rows8) else (w.words.low, w.bits, w.twice_zero / 2)
    data = data.view(torch.uint8)
    y = x.new_empty((tokens, out), dtype=dtype)
    block = max(16, 1 << (tokens - 1).bit_length()) if tokens <= 64 else 64
    launch = launch or _launch_of_values(8 // bits * block * x.element_size())
    start_kernel(
        dot_values, (-(-out // launch.columns), -(-tokens // block)), data, x, w.step, w.step, y, tokens, out,
        x.shape[1], x.stride(0), bits, data.shape[1], zero, block, launch.columns, launch.depth, False, overlaps,
        num_warps=launch.num_warps, num_stages=launch.num_stages, **_overlap(overlaps), **FUSED,
    )  # fmt: skip
    return y


def _launch_of_values(input_bytes: int) -> Tensors:
    """The deepest tile and pipeline for which shared memory has room, of `input_bytes` an entry of the tile's depth."""
    for depth, stages in itertools.product((128, 64, 32), (4, 3)):
        if (stages - 1) * depth * (input_bytes + 32) <= _STAGED_BYTES:
            return Tensors(32, depth, 4, stages, False)
    return Tensors(32, 32, 4, 2, False)


def _overlap(overlaps: bool) -> dict[str, bool]:
    return {"launch_pdl": True} if overlaps else {}


def inputs_of(codes: Tensor, step: Tensor, how: Encoding) -> Inputs:
    """Codes that come as uint8 (rows, K), with steps (rows, 1) or (1, 1), in the order of the kernels."""
    signed = (codes.to(torch.int16) - how.grid.levels // 2).to(torch.int8)
    sums, steps = signed.sum(-1, dtype=torch.int32), step.float().expand(len(codes), 1).flatten().contiguous()
    if how.planes:
        bits = torch.stack([ops.pack((codes >> plane) & 1, 2) for plane in range(how.planes)], dim=1)
        padded = torch.nn.functional.pad(bits, (0, 4 * how.width - bits.shape[-1])).contiguous()
        return Inputs(padded.view(torch.int32), steps, sums)
    return Inputs(torch.nn.functional.pad(signed, (0, how.width - how.k)).contiguous(), steps, sums)


def launch_of(w: LaidOut, tokens: int) -> Vector | Tensors:
    """How to multiply `tokens` rows of codes with such a matrix; see docs/results/gpu-inference.md.

    Programs are to be few where kernels overlap, as starting one takes longer then, and many where rows are few.
    """
    wide = len(w.step) >= _MANY_ROWS
    if w.bits == 0:
        columns = (8 if wide else 4) if tokens == 1 else (4 if wide and tokens <= 4 else 2)
        return Vector(columns, 128, 1)
    if tokens == 1 and wide and w.k >= _LONG_ROW and w.bits >= 4:
        return Vector(4, 512, 4)
    if tokens <= 4 or w.words.high is not None:
        return Vector(4 if wide or tokens > 1 else 2, 128, 1)
    if tokens <= 8 and wide:
        return Tensors(64, 128, 4, 4, True)
    if tokens <= 8 or len(w.step) >= 2 * _MANY_ROWS:
        return Tensors(32, 128, 4, 4, False)
    return Tensors(16, 128, 1, 5, False)


def multiply(
    w: LaidOut, x: Inputs, dtype: torch.dtype, launch: Vector | Tensors | None = None, overlaps: bool = False
) -> Tensor:
    """y (tokens, out) of `dtype`.

    Products on the tensor cores never overlap with the kernel before: a step of eight sequences took longer so.
    """
    tokens, out = len(x.codes), len(w.step)
    launch = launch or launch_of(w, tokens)
    y = x.step.new_empty((tokens, out), dtype=dtype)
    shared = w.step, w.term, x.step, x.sums, w.step, y, tokens, out
    if isinstance(launch, Tensors):
        assert w.bits and w.words.high is None
        block = max(16, 1 << (tokens - 1).bit_length()) if tokens <= 64 else 64
        start_kernel(
            dot_bytes, (-(-out // launch.columns), -(-tokens // block)),
            w.words.low.view(torch.uint8), x.codes, *shared,
            w.bits, 4 * w.words.low.shape[1], x.codes.shape[1], w.twice_zero,
            block, launch.columns, launch.depth, launch.weight_first, False,
            num_warps=launch.num_warps, num_stages=launch.num_stages, **FUSED,
        )  # fmt: skip
        return y
    grid, padded = (-(-out // launch.columns),), 1 << (tokens - 1).bit_length()
    sizes = padded, launch.columns, launch.words, False, overlaps
    if w.bits == 0:
        planes, width = x.codes.shape[1:]
        start_kernel(decode_bits, grid, w.words.low, x.codes, *shared, planes, width, *sizes,
                     num_warps=launch.num_warps, **_overlap(overlaps), **FUSED)  # fmt: skip
        return y
    low, high = w.words.low, w.words.high
    bits = 2 if w.bits == 3 else w.bits
    start_kernel(
        decode_bytes, grid, low, low if high is None else high, x.codes.view(torch.int32), *shared,
        x.codes.shape[1] // 4, bits, low.shape[1], 0 if high is None else high.shape[1], w.twice_zero, *sizes,
        num_warps=launch.num_warps, **_overlap(overlaps), **FUSED,
    )  # fmt: skip
    return y


def join(matrices: list[LaidOut]) -> LaidOut:
    """Matrices of one format as one, their rows in this order."""
    if len(matrices) == 1:
        return matrices[0]
    highs = [each.words.high for each in matrices if each.words.high is not None]
    words = Words(
        torch.cat([each.words.low for each in matrices]),
        torch.cat(highs) if highs else None,
        torch.cat([each.words.sums for each in matrices]),
    )
    step, term = (torch.cat([getattr(each, name) for each in matrices]) for name in ("step", "term"))
    return matrices[0]._replace(words=words, step=step, term=term)


def part(matrix: LaidOut, start: int, count: int) -> LaidOut:
    """Some rows of a matrix, as views."""
    rows = slice(start, start + count)
    low, high, sums = matrix.words
    words = Words(low[rows], None if high is None else high[rows], sums[rows])
    return matrix._replace(words=words, step=matrix.step[rows], term=matrix.term[rows])


def levels(w: LaidOut, dtype: torch.dtype, below: float = 0.0) -> Tensor:
    """Levels of a matrix less `below`, (rows, K) of `dtype`, in which they must be exact."""
    low, high = w.words.low, w.words.high
    out = torch.empty((len(low), w.k), dtype=dtype, device=low.device)
    start_kernel(
        expand, (len(low), 1), low.view(torch.uint8), low if high is None else high.view(torch.uint8), out,
        w.k, w.twice_zero / 2 + below, {0: 1, 3: 2}.get(w.bits, w.bits), 4 * low.shape[1],
        0 if high is None else 4 * high.shape[1], w.bits == 0, 2048, num_warps=8, **FUSED,
    )  # fmt: skip
    return out
