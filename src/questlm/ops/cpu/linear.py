"""Packed weights for the native kernels: which layout a matrix takes, and what its codes mean to them.

`packed/layout.h` has the layouts and the mathematics. Where both grids have half-integer levels, however spaced, sums
are integers; where the weight's are and the input is not rounded, too, of the input's digits. All other products are of
floats that are made from codes in registers. Nothing is kept unpacked, except
that grids of more than 16 levels take 8 bits, and 2:4 sparse rows are laid out in full, with a code for 0.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from ctypes import c_int8, c_uint8
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from questlm import ops
from questlm.grid import Grid, packed_width
from questlm.ops.cpu import native
from questlm.ops.cpu.llama import NativeLinear, native_input, native_linear
from questlm.ops.machine import unavailable
from questlm.ops.packed import PackedFormat, PackedWeight
from questlm.ops.reference.matmul import factor
from questlm.ops.unpacking import input_operand, stored_rows

__all__ = ["NativeWeight"]

# kind_t of packed/layout.h
BITS1, BITS2, BITS3, BITS4, BITS8, TERNARY, WORDS, BF16, FLOAT32 = range(9)

_MOST_IN_WORDS = 16  # levels of an input whose bits are counted a plane at a time
_TILE_ENTRIES = 2**20


class _Codes(NamedTuple):
    """How codes are laid out, and what they mean: twice the level of code c is scale * unpacked[c] + shift.

    Attributes:
        kind: of the layout.
        stored: what is laid out for each code.
        unpacked: what that is to the product; a table is needed where it differs.
    """

    kind: int
    stored: list[int]
    unpacked: list[int]
    scale: int
    shift: int


class NativeWeight(PackedWeight):
    """A weight in the layout of the native kernels."""

    @classmethod
    def can_run(
        cls,
        tensors: Mapping[str, Tensor],
        format: PackedFormat,
        device: torch.device,
        dtype: torch.dtype,
        stay_packed: bool,
    ) -> str | None:
        """It runs everything on the CPU, but would keep some matrices in more bytes than they are stored in."""
        if device.type != "cpu":
            return "the weight is not for the CPU"
        if sys.byteorder != "little":
            return "its layouts are made for processors that store the lowest byte first"
        if stay_packed and "kept" in tensors:
            return "it lays 2:4 sparse rows out in full, and weights are to stay packed"
        if stay_packed and format.weight is None:
            return "it would keep a copy of a head that is the embedding, too, and weights are to stay packed"
        return unavailable("cpu")

    def __init__(
        self, tensors: Mapping[str, Tensor], format: PackedFormat, device: torch.device, dtype: torch.dtype
    ) -> None:
        _check(tensors, format)
        self.format, self.dtype = format, dtype
        self.out_features = len(tensors["weight" if "weight" in tensors else "codes"])
        self._packed = native.Packed(rows=self.out_features, k=format.in_features, block=format.block_size)
        self._packed.rounds_sums = dtype is torch.bfloat16
        self._kept: dict[str, Tensor] = {}
        self._input = {kind: tensors[kind] for kind in ("act_step", "act_offset") if kind in tensors}
        self._bias = tensors.get("bias") if dtype is torch.bfloat16 else None
        if "bias" in tensors and self._bias is None:
            self._keep("bias", tensors["bias"].float())
        if format.weight is None:
            self._lay_out_numbers(tensors)
        elif not self._lay_out_for_integers(tensors):
            self._lay_out_for_numbers(tensors)
        if format.weight is not None:
            self._keep("step", tensors["step"])
            if "offset" in tensors:
                self._keep("offset", tensors["offset"])
        act = format.act
        encodes = "offset" not in tensors if act is None else act.plain and bool(self._packed.in_integers)
        self._in_one_call = dtype is torch.float32 and encodes
        if "act_offset" in tensors:
            self._keep("totals", _row_sums(tensors, format, dtype))

    @property
    def tensors(self) -> list[Tensor]:
        """Layout, sums, steps, and what is kept beside them."""
        bias = [] if self._bias is None else [self._bias]
        return [*self._kept.values(), *self._input.values(), *bias]

    def native_linear(self) -> NativeLinear | str:
        """This weight as a layer of the native forward pass, or the reason why it is none."""
        if self.dtype is not torch.float32:
            return f"it computes in {self.dtype}, and the native forward pass in {torch.float32}"
        in_integers, (step, offset) = bool(self._packed.in_integers), map(self._input.get, ("act_step", "act_offset"))
        input = native_input(self.format.act, step, offset, in_integers)
        return input if isinstance(input, str) else native_linear(self._packed, tuple(self._kept.values()), input)

    def linear(self, rows: Tensor) -> Tensor:
        """Multiply x (tokens, in_features) by the weight: (tokens, out_features) of `dtype`."""
        if rows.device.type != "cpu":
            raise ValueError(f"this weight was laid out for the CPU, and the input is on {rows.device}")
        if self._in_one_call and (self.format.act is not None or rows.dtype is torch.float32):
            return native.packed_linear(self._packed, rows.to(torch.float32).contiguous())
        x = input_operand(rows, self._input, self.format, self.dtype)
        data = x.data if self._packed.in_integers else factor(x.data, x.grid, self.dtype).float()
        step = None if x.step is None else x.step.float().expand(len(rows), 1).contiguous()
        totals = None if "offset" not in self._kept or self._packed.in_integers else data.sum(-1, keepdim=True)
        y = native.packed_product(self._packed, data.contiguous(), step, x.offset, totals).to(self.dtype)
        return y if self._bias is None else y + self._bias.to(self.dtype)

    def _keep(self, name: str, tensor: Tensor) -> None:
        self._kept[name] = tensor = tensor.contiguous()
        setattr(self._packed, name, tensor.data_ptr())

    def _lay_out_for_integers(self, tensors: Mapping[str, Tensor]) -> bool:
        """Lay the matrix out for sums of integers; False, and nothing done, where sums are not integers."""
        weight, act = self.format.weight, self.format.act
        w, x = (None if grid is None else _doubled_levels(grid) for grid in (weight, act))
        if act is None or w is None or x is None:
            return False
        if max(map(abs, w)) * max(map(abs, x)) * self.format.in_features >= 2**31:
            return False
        even = act.table is None
        if not even and max(map(abs, x)) > 127:
            return False
        codes = _integer_codes(w, even and act.levels <= _MOST_IN_WORDS)
        packed = self._packed
        packed.in_integers = 1
        base = 0 if codes.kind == WORDS else act.levels // 2
        packed.input_scale, packed.input_shift = (2, x[0] + 2 * base) if even else (1, 0)
        values = [code - base for code in range(act.levels)] if even else x
        packed.input_table = (c_int8 * 256)(*_filled(values, even))
        packed.input_levels = act.levels
        packed.step_per_rms = act.step_per_scale or 0.0
        self._lay_out_codes(_dense_codes(tensors, self.format), codes)
        return True

    def _takes_digits(self, doubled: Sequence[int]) -> bool:
        """Whether sums of 32 bits hold products with inputs in digits from -128 to 127; sets that they are taken."""
        self._packed.by_digits = int(max(map(abs, doubled)) * 128 * self.format.in_features < 2**31)
        return bool(self._packed.by_digits)

    def _lay_out_codes(self, source: tuple[Tensor, int], codes: _Codes) -> None:
        """Lay codes out for sums of integers."""
        packed = self._packed
        packed.kind, packed.scale, packed.shift = codes.kind, codes.scale, codes.shift
        packed.is_wide = max(codes.unpacked) > 127
        if codes.unpacked != codes.stored:
            packed.has_table = 1
            table = dict(zip(codes.stored, codes.unpacked, strict=True))
            packed.table = (c_uint8 * 16)(*(table.get(code, 0) for code in range(16)))
        self._lay_out(source, codes.kind, codes.stored, codes.unpacked)

    def _lay_out_for_numbers(self, tensors: Mapping[str, Tensor]) -> None:
        """Lay the matrix out for inputs that are numbers; sums are of integers, where levels are half-integers."""
        grid, packed = self.format.weight, self._packed
        assert grid is not None
        levels, doubled = _levels(grid), _doubled_levels(grid)
        if doubled is not None and self._takes_digits(doubled):
            codes = _integer_codes(doubled, False)
            self._lay_out_codes(_dense_codes(tensors, self.format), codes)
            return
        values = torch.tensor(levels, dtype=torch.float32).to(self.dtype).float()
        kind, count = _kind_of(len(levels)), 16
        if kind == BITS8:
            even = grid.table is None and not grid.group
            packed.by_table, count = int(not even), 256
            values = values if not even else torch.tensor([float(grid.zero_point)])
        if kind == BITS2:
            values = torch.nn.functional.pad(values, (0, 4 - len(values))).repeat(4)
        self._keep("values", torch.nn.functional.pad(values, (0, count - len(values))))
        same = list(range(len(levels)))
        packed.kind = kind
        self._lay_out(_dense_codes(tensors, self.format), kind, same, same)

    def _lay_out_numbers(self, tensors: Mapping[str, Tensor]) -> None:
        """A matrix that is stored as numbers: int8 codes with a scale, or floats."""
        packed = self._packed
        if "scale" in tensors and self.dtype is torch.float32 and self._takes_digits((-256, 254)):
            shifted = [(code + 128) % 256 for code in range(256)]
            self._lay_out_codes((tensors["codes"].view(torch.uint8), 8), _Codes(BITS8, shifted, shifted, 2, -256))
            self._keep("step", tensors["scale"])
            return
        numbers = stored_rows(tensors, self.format).data
        exact = self.dtype is torch.bfloat16 or "kept" in tensors or numbers.dtype is torch.bfloat16
        numbers = (numbers.to(torch.bfloat16) if exact else numbers).contiguous()
        packed.kind = BF16 if exact else FLOAT32
        data, _ = native.prepack(numbers, self.format.in_features, 8, packed.kind, None, bytes(256))
        self._keep("data", data)

    def _lay_out(self, source: tuple[Tensor, int], kind: int, stored: list[int], unpacked: list[int]) -> None:
        rows, bits = source
        same = stored == list(range(len(stored)))
        data, sums = native.prepack(
            rows.contiguous(), self.format.in_features, bits, kind, None if same else _table(stored), _table(unpacked)
        )
        self._keep("data", data)
        self._keep("sums", sums)


def _check(tensors: Mapping[str, Tensor], format: PackedFormat) -> None:
    """The kernels read memory as they are told to, so what they are told is checked first."""
    grid, k, block = format.weight, format.in_features, format.block_size
    rows = len(tensors["weight" if "weight" in tensors else "codes"])
    if block < 1 or block & (block - 1) or k % block:
        raise ValueError(f"block size {block} is not a power of two that divides the dimension {k}")
    half = 2 if "kept" in tensors else 1
    expected = dict.fromkeys(("step", "offset", "scale"), (torch.float32, (rows, 1)))
    expected |= dict.fromkeys(("act_step", "act_offset"), (torch.float32, (1, 1)))
    if grid is not None:
        expected["codes"] = torch.uint8, (rows, packed_width(k // half, grid.levels))
    elif "scale" in tensors:
        expected["codes"] = torch.int8, (rows, k)
    for kind, (dtype, shape) in expected.items():
        tensor = tensors.get(kind)
        if tensor is not None and (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
            raise ValueError(f"{kind} must be {dtype} {shape}, not {tensor.dtype} {tuple(tensor.shape)}")


def _levels(grid: Grid) -> list[float]:
    """The level of each code, that of dropped entries of a sparse grid last."""
    levels = list(grid.table) if grid.table else [code - grid.zero_point for code in range(grid.levels)]
    return [*levels, 0.0] if grid.group else levels


def _doubled_levels(grid: Grid) -> list[int] | None:
    """Twice the level of each code, where these are whole numbers that differ by less than 256 of their unit."""
    doubled = [2 * level for level in _levels(grid)]
    if not all(level == int(level) for level in doubled):
        return None
    whole = [int(level) for level in doubled]
    evenly = grid.table is None and not grid.group
    return whole if evenly or max(whole) - min(whole) < 256 else None


def _integer_codes(doubled: Sequence[int], counts_bits: bool) -> _Codes:
    """How codes of these levels, doubled, are laid out for sums of integers.

    Args:
        counts_bits: the input has few levels, evenly spaced, so that 1-bit weights can be words.
    """
    levels = sorted(set(doubled))
    gaps = {b - a for a, b in pairwise(levels)}
    ranks = [levels.index(level) for level in doubled]
    if len(gaps) == 1 and len(levels) <= 256:
        kind = WORDS if counts_bits and len(levels) == 2 else _kind_of(len(levels))
        return _Codes(kind, ranks, ranks, gaps.pop(), levels[0])
    above = [level - levels[0] for level in doubled]
    kind = _kind_of(max(4, len(levels)))  # fewer have no layout with a table
    if max(above) > 127:  # products with bytes from a table are taken to fit 15 bits
        kind = BITS8
    return _Codes(kind, above if kind == BITS8 else ranks, above, 1, levels[0])


def _kind_of(levels: int) -> int:
    """The smallest layout for codes of so many levels."""
    if levels == 3:
        return TERNARY
    return (BITS1, BITS1, BITS2, BITS3, BITS4, BITS8, BITS8, BITS8, BITS8)[(levels - 1).bit_length()]


def _dense_codes(tensors: Mapping[str, Tensor], format: PackedFormat) -> tuple[Tensor, int]:
    """Rows of packed codes, and bits of a code (0: ternary); rows of a sparse matrix in full, in 8 bits."""
    grid, k = format.weight, format.in_features
    assert grid is not None
    if not grid.group:
        return tensors["codes"], 0 if grid.levels == 3 else (grid.levels - 1).bit_length()
    rows = torch.empty((len(tensors["codes"]), k), dtype=torch.uint8)
    tile = max(1, _TILE_ENTRIES // k)
    for start in range(0, len(rows), tile):
        codes, kept = (tensors[kind][start : start + tile] for kind in ("codes", "kept"))
        half = ops.unpack(codes, grid.levels, k // 2)
        rows[start : start + tile] = ops.unpack_sparse(half, kept, grid.group, grid.levels)
    return rows, 8


def _row_sums(tensors: Mapping[str, Tensor], format: PackedFormat, dtype: torch.dtype) -> Tensor:
    """Sum of the levels of each row, (rows) float32."""
    tile, count = (
        max(1, _TILE_ENTRIES // format.in_features),
        len(tensors["weight" if "weight" in tensors else "codes"]),
    )
    by_rows = {kind: tensor for kind, tensor in tensors.items() if len(tensor) == count and kind != "bias"}
    found = []
    for start in range(0, count, tile):
        rows = stored_rows({kind: tensor[start : start + tile] for kind, tensor in by_rows.items()}, format)
        found.append(factor(rows.data, rows.grid, dtype).sum(-1, dtype=torch.float32))
    return torch.cat(found)


def _table(values: Sequence[int]) -> bytes:
    """Values as 256 bytes; codes beyond them, which an artifact may not hold, become 0."""
    return bytes(values).ljust(256, b"\0")


def _filled(values: Sequence[int], even: bool) -> list[int]:
    """Values of 256 codes as signed bytes, evenly spaced ones to the end, which is faster to encode."""
    if not even:
        return [*values, *[0] * (256 - len(values))]
    return [(values[0] + code + 128) % 256 - 128 for code in range(256)]
