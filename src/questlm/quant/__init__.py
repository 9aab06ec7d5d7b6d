"""Quantisation methods: grids, estimators, the table of methods, and layers that train through codes."""

from questlm.config import QuantSpec
from questlm.quant.functional import dequantize, fake_quantize, quantize
from questlm.quant.grids import gaussian_grid, gaussian_mse, gaussian_scale
from questlm.quant.linear import FakeQuantLinear
from questlm.quant.methods import METHODS, Method, find_method
from questlm.quant.stored import StoredEmbedding, StoredLinear
from questlm.quant.swap import dense, prepare, quantized_layers, restore

__all__ = [
    "METHODS",
    "FakeQuantLinear",
    "Method",
    "QuantSpec",
    "StoredEmbedding",
    "StoredLinear",
    "dense",
    "dequantize",
    "fake_quantize",
    "find_method",
    "gaussian_grid",
    "gaussian_mse",
    "gaussian_scale",
    "prepare",
    "quantize",
    "quantized_layers",
    "restore",
]
