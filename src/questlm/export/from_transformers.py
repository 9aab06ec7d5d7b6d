"""A model of the transformers library as our Llama, to be packed. Does not import transformers."""

from __future__ import annotations

import torch
from torch import nn

from questlm.artifact.shapes import matrix_shapes, norm_widths
from questlm.config.hugging_face import model_config_from_hugging_face
from questlm.errors import ConfigError, cleaned, quoted
from questlm.models import Llama, module_to_hugging_face

__all__ = ["as_llama", "tokenizer_text"]


def as_llama(model: nn.Module) -> Llama:
    """`model`, a questlm Llama or a causal language model of transformers that computes the same, as the former.

    Its modules are those of `model`: quantised layers stay what they are.

    Raises:
        ConfigError: another module, or a model that computes something that a packed model cannot.
    """
    if isinstance(model, Llama):
        return model
    kind, describe = type(model).__name__, getattr(getattr(model, "config", None), "to_dict", None)
    if describe is None:
        raise ConfigError(f"only a questlm Llama or a Llama of transformers can be packed, not a {kind}")
    try:
        shape = model_config_from_hugging_face(describe())
    except ConfigError as problem:
        raise ConfigError(f"a {kind} cannot be packed: {cleaned(problem, 300)}") from None
    with torch.device("meta"):
        llama = Llama(shape)
    for name in dict.fromkeys((*matrix_shapes(shape), "lm_head", *norm_widths(shape))):
        theirs = module_to_hugging_face(name)
        try:
            llama.set_submodule(name, model.get_submodule(theirs))
        except AttributeError:
            raise ConfigError(
                f"this {kind} has no module {quoted(theirs)}, so it cannot be packed; if it holds adapters, merge them "
                "first (model.merge_and_unload()), and give the whole model with its head"
            ) from None
    return llama


def tokenizer_text(tokenizer: object) -> tuple[str | bytes, str | None]:
    """Content of tokenizer.json, and the token that ends a document where it is known.

    Args:
        tokenizer: that content, or a fast tokenizer of transformers.

    Raises:
        ConfigError: something else.
    """
    if isinstance(tokenizer, str | bytes):
        return tokenizer, None
    to_text = getattr(getattr(tokenizer, "backend_tokenizer", None), "to_str", None)
    if to_text is None:
        raise ConfigError(
            f"a {type(tokenizer).__name__} cannot be packed; give a fast tokenizer of transformers, or the content of "
            "a tokenizer.json"
        )
    return to_text(), getattr(tokenizer, "eos_token", None)
