"""Quantisation methods: grids, estimators, the table of methods, and layers that train through codes."""

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
