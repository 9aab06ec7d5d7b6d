"""Measures of a model: loss, perplexity, bits per byte."""

from questlm.evaluation.loss import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
