"""The forward pass of a whole packed Llama as one native call, for decoding and for prompts.

`llama/llama.h` says how it runs. A model is described once, by `NativeLlama`, from what its layers say of themselves
(`PackedWeight.native_linear`); the description is addresses, so everything in it keeps the tensors it points to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor

from questlm.grid import Grid
from questlm.ops.cpu import native

__all__ = ["NativeLinear", "NativeLlama", "cache_of", "native_input", "native_linear"]

_POINTER, _SIZE, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float
_LINEARS = ("q", "k", "v", "o", "gate", "up", "down")

# of llama.h
NOT_ROUNDED, PLAIN_GRID, BY_RMS, BY_LARGEST, BY_ONE = range(5)
_SCALES = {"rms": BY_RMS, "absmax": BY_LARGEST, "one": BY_ONE}
_NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class Input(ctypes.Structure):
    """`input_t` of llama.h."""

    _fields_ = (
        ("edges", _POINTER),
        ("values", _POINTER),
        ("step_per_scale", _FLOAT),
        ("fraction", _FLOAT),
        ("whole", _FLOAT),
        ("offset", _FLOAT),
        ("scale", _INT),
        ("levels", _INT),
        ("has_offset", _INT),
    )


class Linear(ctypes.Structure):
    """`linear_t` of llama.h."""

    _fields_ = (
        ("weight", _POINTER),
        ("gain", _POINTER),
        ("narrow", _POINTER),
        ("input", Input),
        ("eps", _FLOAT),
        ("by_rows", _INT),
    )


class Layer(ctypes.Structure):
    """`layer_t` of llama.h."""

    _fields_ = (("attention_gain", _POINTER), ("mlp_gain", _POINTER), *((name, Linear) for name in _LINEARS))


class Model(ctypes.Structure):
    """`llama_t` of llama.h."""

    _fields_ = (
        ("layers", _POINTER),
        ("gain", _POINTER),
        ("embedding", _POINTER),
        ("embedding_scales", _POINTER),
        ("head", Linear),
        ("depth", _SIZE),
        ("hidden", _SIZE),
        ("heads", _SIZE),
        ("kv_heads", _SIZE),
        ("width", _SIZE),
        ("mlp", _SIZE),
        ("vocabulary", _SIZE),
        ("eps", _FLOAT),
        ("embedding_type", _INT),
    )


class Cache(ctypes.Structure):
    """`cache_t` of llama.h."""

    _fields_ = (
        ("entries", _POINTER),
        ("scales", _POINTER),
        ("cosines", _POINTER),
        ("sines", _POINTER),
        ("lengths", _POINTER),
        ("slots", _SIZE),
        ("capacity", _SIZE),
        ("type", _INT),
    )


@dataclass(frozen=True)
class NativeLinear:
    """A linear layer as the native forward pass takes it.

    Attributes:
        linear: the description, with addresses of what `kept` keeps alive.
        inputs, outputs: entries of a row of its input and of its output.
    """

    linear: Linear
    kept: tuple[Any, ...]
    inputs: int
    outputs: int

    def with_norm(self, gain: Tensor, eps: float) -> NativeLinear:
        """The same behind an RMSNorm of its own; gain is (inputs,) float32."""
        linear = _copied(self.linear)
        linear.gain, linear.eps = gain.data_ptr(), eps
        return NativeLinear(linear, (*self.kept, gain), self.inputs, self.outputs)

    def with_narrow(self, narrow: NativeLinear, by_rows: bool) -> NativeLinear:
        """The same with a second branch, its outputs side by side with these; else its inputs, and outputs added."""
        linear = _copied(self.linear)
        linear.narrow, linear.by_rows = ctypes.addressof(narrow.linear), by_rows
        inputs = self.inputs if by_rows else self.inputs + narrow.inputs
        outputs = self.outputs + narrow.outputs if by_rows else self.outputs
        return NativeLinear(linear, (*self.kept, narrow), inputs, outputs)


@dataclass
class _Described:
    """How inputs are encoded, and the tensors that the description points to."""

    input: Input
    kept: list[Tensor] = field(default_factory=list)

    def keep(self, name: str, numbers: Sequence[float]) -> None:
        tensor = torch.tensor(numbers, dtype=torch.float32)
        self.kept.append(tensor)
        setattr(self.input, name, tensor.data_ptr())


def native_linear(packed: native.Packed, kept: tuple[Any, ...], input: tuple[Input, list[Tensor]]) -> NativeLinear:
    """A layer of a weight in the native layout, and of what `native_input` says of its input."""
    linear = Linear(weight=ctypes.addressof(packed), input=input[0])
    return NativeLinear(linear, (packed, *kept, *input[1]), packed.k, packed.rows)


def native_input(
    grid: Grid | None, step: Tensor | None, offset: Tensor | None, in_integers: bool
) -> tuple[Input, list[Tensor]] | str:
    """How the input of a layer is rounded, and tensors to keep alive; or the reason why native code cannot round it so.

    Args:
        grid: of the input; None: it is not rounded.
        step, offset: (1, 1), where they are learned.
        in_integers: the product takes codes, and else their levels.
    """
    if grid is None:
        return Input(scale=NOT_ROUNDED), []
    if grid.group:
        return "its input is rounded to a sparse grid"
    if grid.scale not in _SCALES:
        return f"the step of its input follows the {grid.scale} of all tokens together"
    plain = grid.plain and offset is None
    per_scale = grid.step_per_scale if step is None else float(step)
    if per_scale is None:
        return "the step of its input is learned and was not stored"
    fraction = grid.zero_point % 1
    found = _Described(
        Input(
            scale=PLAIN_GRID if plain else _SCALES[grid.scale],
            levels=grid.levels,
            step_per_scale=per_scale,
            fraction=fraction,
            whole=grid.zero_point - fraction,
            has_offset=offset is not None,
            offset=0.0 if offset is None else float(offset),
        )
    )
    if grid.table is not None:
        found.keep("edges", [(a + b) / 2 for a, b in pairwise(grid.table)])
    if not in_integers:
        found.keep("values", grid.table or [code - grid.zero_point for code in range(grid.levels)])
    return found.input, found.kept


class NativeLlama:
    """A whole model for native code.

    Args:
        linears: by module name: layers.0.attention.q, ..., lm_head.
        gains: of the norms, (hidden,) float32, by module name: layers.0.attention_norm, ..., norm.
        embedding: weight (entries, hidden) float32 or bfloat16; or codes int8 (entries, hidden) and scale float32
            (entries, 1).
        shape: depth, hidden, heads, kv_heads, width (of a head), mlp, vocabulary and eps.

    Raises:
        ValueError: a tensor or a layer of another shape than the model's.
    """

    def __init__(
        self,
        linears: Mapping[str, NativeLinear],
        gains: Mapping[str, Tensor],
        embedding: Mapping[str, Tensor],
        shape: Mapping[str, float],
    ) -> None:
        model = Model(**shape)
        self._kept = [dict(linears), dict(gains), dict(embedding)]
        _check(model, linears, gains, embedding)
        self._layers = (Layer * model.depth)()
        for index, layer in enumerate(self._layers):
            layer.attention_gain = gains[f"layers.{index}.attention_norm"].data_ptr()
            layer.mlp_gain = gains[f"layers.{index}.mlp_norm"].data_ptr()
            for name in _LINEARS:
                setattr(layer, name, linears[f"layers.{index}.{_module(name)}"].linear)
        model.layers, model.gain = ctypes.addressof(self._layers), gains["norm"].data_ptr()
        entries = embedding["weight" if "weight" in embedding else "codes"]
        model.embedding, model.embedding_type = entries.data_ptr(), _NUMBERS[entries.dtype]
        if "scale" in embedding:
            model.embedding_scales = embedding["scale"].data_ptr()
        model.head = linears["lm_head"].linear
        self._model = model

    def __deepcopy__(self, memo: object) -> Self:
        """Itself: it never changes, and is full of addresses."""
        return self

    def step(self, ids: Tensor, counts: Tensor | None, cache: Cache) -> Tensor:
        """Logits (batch, vocabulary) float32 behind new tokens, whose keys and values are stored in the cache.

        Args:
            ids: (batch, tokens) int64; counts: how many of each row are tokens, (batch,) int64; None: all.
            cache: of this model's shape and for so many sequences.

        Raises:
            IndexError: an id outside the vocabulary.
            ValueError: ids or counts of another shape, dtype or device, or counts that do not fit the cache.
        """
        for name, tensor, shape in (("ids", ids, ids.shape[:2]), ("counts", counts, (len(ids),))):
            if tensor is not None and not (
                tensor.dtype is torch.int64 and tensor.device.type == "cpu" and tensor.shape == shape
            ):
                raise ValueError(
                    f"{name} must be int64 {tuple(shape)} on the CPU, not {tensor.dtype} {tuple(tensor.shape)} on "
                    f"{tensor.device}"
                )
        logits = torch.empty(len(ids), self._model.vocabulary)
        native.llama_step(self._model, cache, ids.contiguous(), counts, logits)
        return logits


def cache_of(
    entries: Tensor, scales: Tensor | None, lengths: Tensor, capacity: int, angles: tuple[Tensor, Tensor]
) -> Cache:
    """The description of a cache, by its attributes (`questlm.models.cache`); it keeps no memory alive.

    Args:
        angles: cos and sin, (capacity, width / 2) float32.
    """
    return Cache(
        entries=entries.data_ptr(),
        scales=None if scales is None else scales.data_ptr(),
        cosines=angles[0].data_ptr(),
        sines=angles[1].data_ptr(),
        lengths=lengths.data_ptr(),
        slots=entries.shape[2],
        capacity=capacity,
        type=_NUMBERS[entries.dtype],
    )


def _copied(linear: Linear) -> Linear:
    return Linear.from_buffer_copy(linear)


def _module(name: str) -> str:
    return f"attention.{name}" if name in ("q", "k", "v", "o") else f"mlp.{name}"


def _check(
    model: Model,
    linears: Mapping[str, NativeLinear],
    gains: Mapping[str, Tensor],
    embedding: Mapping[str, Tensor],
) -> None:
    """Native code reads memory as it is told to, so what it is told is checked first."""
    hidden, queries, keys = model.hidden, model.heads * model.width, model.kv_heads * model.width
    shapes = {
        "attention.q": (queries, hidden),
        "attention.k": (keys, hidden),
        "attention.v": (keys, hidden),
        "attention.o": (hidden, queries),
        "mlp.gate": (model.mlp, hidden),
        "mlp.up": (model.mlp, hidden),
        "mlp.down": (hidden, model.mlp),
    }
    expected = {f"layers.{index}.{name}": shape for index in range(model.depth) for name, shape in shapes.items()}
    for name, shape in (expected | {"lm_head": (model.vocabulary, hidden)}).items():
        if (found := (linears[name].outputs, linears[name].inputs)) != shape:
            raise ValueError(f"{name} is {found}, and the model's shape makes it {shape}")
    tensors: dict[str, tuple[Tensor, tuple[int, ...], tuple[torch.dtype, ...]]]
    tensors = {name: (gain, (hidden,), (torch.float32,)) for name, gain in gains.items()}
    stored: tuple[torch.dtype, ...] = (torch.int8,) if "codes" in embedding else (torch.float32, torch.bfloat16)
    kinds: dict[str, tuple[int, tuple[torch.dtype, ...]]]
    kinds = {"weight": (hidden, stored), "codes": (hidden, stored), "scale": (1, (torch.float32,))}
    for kind, tensor in embedding.items():
        width, dtypes = kinds[kind]
        tensors[f"embed.{kind}"] = (tensor, (model.vocabulary, width), dtypes)
    for name, (tensor, wanted, dtypes) in tensors.items():
        if tuple(tensor.shape) != wanted or tensor.dtype not in dtypes or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be {wanted} of {dtypes}, contiguous, not {tuple(tensor.shape)} {tensor.dtype}"
            )
