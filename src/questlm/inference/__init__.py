"""Run a packed model, without any of the training code."""

from questlm.inference.engine import PackedModel, load

__all__ = ["PackedModel", "load"]
