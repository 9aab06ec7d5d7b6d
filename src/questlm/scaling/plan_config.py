"""The settings by which `questlm.train` trains what a plan has chosen."""

from __future__ import annotations

from questlm.config import RunConfig, load_config
from questlm.scaling.limits import Limits
from questlm.scaling.plan import Choice
from questlm.scaling.shapes import training_settings

__all__ = ["run_config"]


def run_config(choice: Choice, limits: Limits) -> RunConfig:
    """Return the settings of a run that trains `choice`, made under `limits`. Only the training text is missing."""
    model, quant = choice.model, choice.quant
    settings = {
        "model": {
            "layers": model.layers, "hidden": model.hidden, "heads": model.heads, "mlp_hidden": model.mlp_hidden,
            "tied_head": model.tied_head,
        },
        "quant": {
            "method": quant.method, "weight_bits": quant.weight_bits, "act_bits": quant.act_bits,
            "format": quant.format, "embeddings": quant.embeddings,
            "steps": quant.steps,
        },
        "data": {"vocab_size": limits.vocab_size},
        "train": training_settings(model.block_parameters),
        "budget": {"tokens": round(choice.tokens)},
    }  # fmt: skip
    return load_config(flags=settings)
