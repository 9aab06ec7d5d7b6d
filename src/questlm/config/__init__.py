"""Configuration: a frozen, validated schema; presets; YAML files and `--set` overrides. Imports no torch."""

from questlm.config.generation import GenerationOptions
from questlm.config.load import load_config, to_yaml
from questlm.config.model import ModelConfig, RopeScaling
from questlm.config.neutral import COMPUTING_ONLY, DATA_PATHS
from questlm.config.parallel import ParallelConfig
from questlm.config.presets import PRESETS, preset
from questlm.config.quant import LayerOverride, QuantSpec
from questlm.config.schema import Budget, DataConfig, Plugin, RunConfig, TrainConfig

__all__ = [
    "COMPUTING_ONLY",
    "DATA_PATHS",
    "PRESETS",
    "Budget",
    "DataConfig",
    "GenerationOptions",
    "LayerOverride",
    "ModelConfig",
    "ParallelConfig",
    "Plugin",
    "QuantSpec",
    "RopeScaling",
    "RunConfig",
    "TrainConfig",
    "load_config",
    "preset",
    "to_yaml",
]
