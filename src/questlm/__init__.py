"""questlm: language models whose weights and activations are born in 1 to 8 bits.

    questlm.train(config, folder)                                  train a model by the settings of a run
    questlm.prepare(model, QuantSpec(weight_bits=4, act_bits=4))   quantise any model's linear layers, in place
    questlm.restore(model)                                         plain layers again
    questlm.evaluate(folder)                                       loss, perplexity and bits per byte
    questlm.pack(model, folder)                                    write the codes of a run or a model as bits
    questlm.load(folder).generate("def ")                          run a packed model

Importing this package imports nothing else; each name brings what it needs when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from questlm.config import GenerationOptions, QuantSpec, RunConfig, load_config
    from questlm.inference import PackedModel, load
    from questlm.models import Llama
    from questlm.quant import dequantize, fake_quantize, make_quantizer, prepare, quantize, restore
    from questlm.trained.evaluate import evaluate
    from questlm.trained.pack import pack
    from questlm.training import resume, train

__version__ = "0.1.0"
__all__ = [
    "GenerationOptions",
    "Llama",
    "PackedModel",
    "QuantSpec",
    "RunConfig",
    "dequantize",
    "evaluate",
    "fake_quantize",
    "load",
    "load_config",
    "make_quantizer",
    "pack",
    "prepare",
    "quantize",
    "restore",
    "resume",
    "train",
]

_LAZY = {
    "GenerationOptions": "questlm.config",
    "Llama": "questlm.models",
    "PackedModel": "questlm.inference",
    "QuantSpec": "questlm.config",
    "RunConfig": "questlm.config",
    "dequantize": "questlm.quant",
    "evaluate": "questlm.trained.evaluate",
    "fake_quantize": "questlm.quant",
    "load": "questlm.inference",
    "load_config": "questlm.config",
    "make_quantizer": "questlm.quant",
    "pack": "questlm.trained.pack",
    "prepare": "questlm.quant",
    "quantize": "questlm.quant",
    "restore": "questlm.quant",
    "resume": "questlm.training",
    "train": "questlm.training",
}
_PACKAGES = {
    "artifact", "bench", "data", "diagnostics", "evaluation", "export", "inference", "models", "ops", "plugins",
    "quant", "trained", "training",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    import importlib

    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"questlm.{name}")
    raise AttributeError(f"module 'questlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
