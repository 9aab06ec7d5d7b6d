"""Settings that do not change what a run learns, but for rounding: two runs may differ in them."""

from __future__ import annotations

__all__ = ["COMPUTING_ONLY", "DATA_PATHS"]

COMPUTING_ONLY = (
    "train.micro_batch_size",  # but that learned steps begin from the first micro-batch
    "train.device",
    "train.compile",
    "train.cuda_graphs",
    "train.parallel",
    "train.recompute",
    "train.timeout",
    "train.log_every",
    "train.eval_every",
    "train.eval_tokens",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.loggers",
    "parallel.gradients",
    "parallel.bucket_mb",
    "parallel.gather",
    "parallel.keep_gathered",
    "parallel.prefetch",
    "data.cache_dir",
)
"""Settings that decide when to look and how to compute, not what is learned."""

DATA_PATHS = ("data.source", "data.val", "data.tokenizer")
"""Settings that say where data lie. Data are the same where their hash is."""
