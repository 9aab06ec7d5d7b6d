"""What a plain Llama of another program computes of a packed model's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from questlm.artifact.read import Artifact
from questlm.errors import ConfigError
from questlm.models import Llama

__all__ = ["plain_logits", "require_plain", "unrounded_inputs"]


def require_plain(artifact: Artifact, program: str) -> None:
    """Refuse a model that no plain Llama, Qwen2 or Qwen3 is.

    Args:
        program: which knows these models.

    Raises:
        ConfigError: the model has norms before its linear layers.
    """
    formats = artifact.config.weight_formats()
    if (normed := next((name for name, each in formats if each.input_norm is not None), None)) is not None:
        raise ConfigError(
            f"{normed} has a norm before it, which a Llama of {program} does not; it cannot be exported there"
        )


def unrounded_inputs(artifact: Artifact, program: str) -> str | None:
    """What changes because `program` does not quantise the inputs of layers, as one clause; None: nothing."""
    rounding = sum(each.act is not None for _, each in artifact.config.weight_formats())
    if not rounding:
        return None
    return f"{program} does not round the inputs of {rounding} layers, as this model was trained to have them"


def plain_logits(artifact: Artifact, weights: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """The logits of a Llama in float32 with these weights, by our names."""
    model = Llama(artifact.config.model)
    model.load_state_dict(weights)
    model.requires_grad_(False)
    return model
