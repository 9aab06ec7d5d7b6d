"""Quantisation methods: grids, estimators, the table of methods, and layers that train through codes.

Each name brings what it needs when it is first used, so that a plan reads the table of methods without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from questlm.config import LayerOverride, QuantSpec
    from questlm.quant.functional import dequantize, fake_quantize, quantize
    from questlm.quant.gradual import set_quantization_strength
    from questlm.quant.grids import gaussian_grid, gaussian_mse, gaussian_scale, grid_mse
    from questlm.quant.layers.branches import BranchedLinear
    from questlm.quant.layers.linear import FakeQuantLinear
    from questlm.quant.layers.stored import StoredEmbedding, StoredLinear
    from questlm.quant.methods import METHODS, Method, find_method, make_quantizer, register_method
    from questlm.quant.quantizers import Quantizer
    from questlm.quant.quantizers.learned import StatefulQuantizer
    from questlm.quant.skipped import skipped_layers
    from questlm.quant.swap import dense, learned_parameters, prepare, quantized_layers, restore
    from questlm.quant.weight_cache import cached_weights

__all__ = [
    "METHODS",
    "BranchedLinear",
    "FakeQuantLinear",
    "LayerOverride",
    "Method",
    "QuantSpec",
    "Quantizer",
    "StatefulQuantizer",
    "StoredEmbedding",
    "StoredLinear",
    "cached_weights",
    "dense",
    "dequantize",
    "fake_quantize",
    "find_method",
    "gaussian_grid",
    "gaussian_mse",
    "gaussian_scale",
    "grid_mse",
    "learned_parameters",
    "make_quantizer",
    "prepare",
    "quantize",
    "quantized_layers",
    "register_method",
    "restore",
    "set_quantization_strength",
    "skipped_layers",
]

_HOMES = {
    "BranchedLinear": "questlm.quant.layers.branches",
    "FakeQuantLinear": "questlm.quant.layers.linear",
    "LayerOverride": "questlm.config",
    "METHODS": "questlm.quant.methods",
    "Method": "questlm.quant.methods",
    "QuantSpec": "questlm.config",
    "Quantizer": "questlm.quant.quantizers",
    "StatefulQuantizer": "questlm.quant.quantizers.learned",
    "StoredEmbedding": "questlm.quant.layers.stored",
    "StoredLinear": "questlm.quant.layers.stored",
    "cached_weights": "questlm.quant.weight_cache",
    "dense": "questlm.quant.swap",
    "dequantize": "questlm.quant.functional",
    "fake_quantize": "questlm.quant.functional",
    "find_method": "questlm.quant.methods",
    "gaussian_grid": "questlm.quant.grids",
    "gaussian_mse": "questlm.quant.grids",
    "gaussian_scale": "questlm.quant.grids",
    "grid_mse": "questlm.quant.grids",
    "learned_parameters": "questlm.quant.swap",
    "make_quantizer": "questlm.quant.methods",
    "prepare": "questlm.quant.swap",
    "quantize": "questlm.quant.functional",
    "quantized_layers": "questlm.quant.swap",
    "register_method": "questlm.quant.methods",
    "restore": "questlm.quant.swap",
    "set_quantization_strength": "questlm.quant.gradual",
    "skipped_layers": "questlm.quant.skipped",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'questlm.quant' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
