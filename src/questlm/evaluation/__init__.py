"""Measures of a model: loss, perplexity, bits per byte; accuracy in multiple-choice and last-word tasks."""

from questlm.evaluation.loss import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
