"""Run a packed model, without any of the training code."""

from questlm.inference.engine import PackedModel, load
from questlm.inference.stream import TextStream

__all__ = ["PackedModel", "TextStream", "load"]
