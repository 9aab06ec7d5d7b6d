"""A model of the transformers library as our Llama, to be packed. Does not import transformers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from questlm.artifact.shapes import matrix_shapes, norm_widths
from questlm.config.hugging_face import model_config_from_hugging_face
from questlm.errors import ConfigError, cleaned, quoted
from questlm.models import Llama, module_to_hugging_face
from questlm.tokenizer_files import self_contained_template

__all__ = ["TokenizerContent", "as_llama", "tokenizer_content"]


class TokenizerContent(NamedTuple):
    """What is packed of a tokenizer.

    Attributes:
        json: content of its tokenizer.json.
        end_of_text: the token that ends a document where it is known.
        chat_template: the template of a chat, with its special tokens set, or None.
    """

    json: str | bytes
    end_of_text: str | None = None
    chat_template: str | None = None


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


def tokenizer_content(tokenizer: object) -> TokenizerContent:
    """What is packed of `tokenizer`: the content of a tokenizer.json, or a fast tokenizer of transformers.

    Raises:
        ConfigError: something else.
    """
    if isinstance(tokenizer, str | bytes):
        return TokenizerContent(tokenizer)
    to_text = getattr(getattr(tokenizer, "backend_tokenizer", None), "to_str", None)
    if to_text is None:
        raise ConfigError(
            f"a {type(tokenizer).__name__} cannot be packed; give a fast tokenizer of transformers, or the content of "
            "a tokenizer.json"
        )
    template = getattr(tokenizer, "chat_template", None)
    template = template.get("default") if isinstance(template, dict) else template
    if template is not None:
        template = self_contained_template(template, getattr(tokenizer, "special_tokens_map", {}))
    return TokenizerContent(to_text(), getattr(tokenizer, "eos_token", None), template)
