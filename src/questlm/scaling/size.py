"""Bytes of a packed model, known before it is trained. No torch.

The methods say what each layer holds (`questlm.quant.layer_formats`), and the packed format says what that takes
(`questlm.artifact.format`): the same two that `quest pack` writes by.
"""

from __future__ import annotations

from functools import cache

from questlm.artifact.format import GridConfig, WeightFormat, matrix_tensor_specs
from questlm.artifact.shapes import block_norms, block_shapes, matrix_shapes
from questlm.config import ModelConfig, QuantSpec
from questlm.errors import ConfigError
from questlm.grid import Grid, LayerFormat
from questlm.quant.grids import stored_grid
from questlm.quant.layer_formats import layer_formats
from questlm.scaling.coded import coded_bytes

__all__ = ["PackedSizes", "format_of_layer", "format_of_left_out", "packed_bytes"]

_ENTRY = 4  # bytes of a norm's gain or a bias, float32
_Shape = tuple[int, int]


def packed_bytes(model: ModelConfig, quant: QuantSpec) -> int:
    """Return the bytes of the tensors that `quest pack` writes: codes and steps of the blocks, embedding, head, norms.

    The files are a few kilobytes larger, for names, config and manifest, and hold the tokenizer too.

    Raises:
        ConfigError: `model.vocab_size` is not set, or no model of this shape can be prepared with these settings.
    """
    return PackedSizes(quant).of(model)


class PackedSizes:
    """Computes the packed sizes of many models under the same settings, and layers of one shape only once.

    Args:
        quant: the settings.
        coded: as in a single file, where codes are entropy-coded; an estimate, from Gaussian weights.
    """

    def __init__(self, quant: QuantSpec, coded: bool = False) -> None:
        self._quant, self._coded = quant, coded
        self._left_out = format_of_left_out(quant)
        self._known: dict[tuple[str, _Shape], int] = {}

    def of(self, model: ModelConfig) -> int:
        """Return the packed bytes of a model, as `packed_bytes` does."""
        if model.vocab_size is None:
            raise ConfigError("the packed size of a model needs model.vocab_size, which is not set yet")
        if self._quant.overrides:
            matrices = self._count(matrix_shapes(model))
        else:  # all blocks are alike, and one is worked out
            block = sum(self._one(f"layers.0.{name}", shape) for name, shape in block_shapes(model).items())
            outer = (model.vocab_size, model.hidden)
            head = 0 if model.tied_head else self._one("lm_head", outer)
            matrices = model.layers * block + self._one("embed", outer) + head
        biases = model.qkv_bias * model.layers * model.head_width * (model.heads + 2 * model.key_value_heads)
        norms = model.layers * sum(block_norms(model).values()) + model.hidden
        return matrices + _ENTRY * (norms + biases)

    def _one(self, name: str, shape: _Shape) -> int:
        if (name, shape) not in self._known:
            self._known[name, shape] = self._count({name: shape})
        return self._known[name, shape]

    def _count(self, shapes: dict[str, _Shape]) -> int:
        linears = {name: shape for name, shape in shapes.items() if name != "embed"}
        formats = {name: format_of_layer(layer) for name, layer in layer_formats(self._quant, linears).items()}
        total = 0
        for name, shape in shapes.items():
            weight_format = formats.get(name, self._left_out)
            for kind, spec in matrix_tensor_specs(shape, weight_format).items():
                grid = _grid_of(kind, weight_format)
                total += coded_bytes(spec, kind, grid) if self._coded else spec.bytes
        return total


@cache
def format_of_layer(layer: LayerFormat) -> WeightFormat:
    """Return the packed format of a quantised layer. A plan asks for the same few of them thousands of times."""
    return WeightFormat.of(layer)


def _grid_of(kind: str, weight_format: WeightFormat) -> Grid | None:
    if kind == "narrow_codes" and weight_format.narrow is not None:
        return weight_format.narrow.weight.grid
    return weight_format.grids[0] if kind == "codes" else None


def format_of_left_out(quant: QuantSpec) -> WeightFormat:
    """How embedding and head are packed where no method quantises them."""
    if (grid := stored_grid(quant.embeddings)) is not None:
        return WeightFormat(block_size=1, weight=GridConfig.of(grid), act=None, steps=quant.steps)
    return WeightFormat(block_size=1, weight="int8" if quant.embeddings == "int8" else "bf16", act=None)
