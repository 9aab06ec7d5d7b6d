"""Time whole packed models beside the same Llama in float32: reading prompts, and generating."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from questlm.bench.layers import bits_text
from questlm.bench.timing import Case, Kind, SpeedReport, check_counts, run_cases
from questlm.config import GenerationOptions, ModelConfig
from questlm.inference import PackedModel, load
from questlm.inference.engine import Weights
from questlm.inference.generate import generate_tokens
from questlm.memory import host_memory, require_memory
from questlm.models import KVCache, Llama
from questlm.progress import progress

__all__ = ["decode_speed", "float_model", "prefill_speed"]

_DECODED = 16  # tokens of each sequence in a round


def prefill_speed(
    artifacts: Sequence[Path],
    lengths: Sequence[int] = (32, 128, 512),
    seconds: float = 30.0,
    threads: int | None = None,
    weights: Weights = "auto",
) -> SpeedReport:
    """Time packed models reading a prompt up to the token behind it, beside the same Llama in float32, on the CPU.

    Args:
        artifacts: folders of packed models.
        lengths: tokens of a prompt.
        seconds: about how long all of it may take.
        threads: that torch and the kernels use; None: as many as now.
        weights: as in `questlm.load`.

    Raises:
        ArtifactError: a folder is no packed model.
        ConfigError: no lengths, or one below 1; `seconds` or `threads` not above 0; too little memory for float32.
    """
    check_counts(lengths, "lengths")
    return _measure("prefill", artifacts, [(1, length, 1) for length in lengths], seconds, threads, weights)


def decode_speed(
    artifacts: Sequence[Path],
    batches: Sequence[int] = (1, 4, 16),
    seconds: float = 30.0,
    threads: int | None = None,
    weights: Weights = "auto",
) -> SpeedReport:
    """Time packed models generating 16 tokens greedily, beside the same Llama in float32, on the CPU.

    Each sequence begins with one token, so that every step computes one token a sequence.

    Args:
        artifacts: folders of packed models.
        batches: sequences that are generated together.
        seconds: about how long all of it may take.
        threads: that torch and the kernels use; None: as many as now.
        weights: as in `questlm.load`.

    Raises:
        ArtifactError: a folder is no packed model.
        ConfigError: no batches, or one below 1; `seconds` or `threads` not above 0; too little memory for float32.
    """
    check_counts(batches, "batches")
    return _measure("decode", artifacts, [(batch, 1, _DECODED) for batch in batches], seconds, threads, weights)


def _measure(
    kind: Kind,
    artifacts: Sequence[Path],
    sizes: Sequence[tuple[int, int, int]],
    seconds: float,
    threads: int | None,
    weights: Weights,
) -> SpeedReport:
    """Each size: sequences, tokens of a prompt, tokens to generate."""
    dense: dict[ModelConfig, Llama] = {}
    cases = []
    with progress("loading", len(artifacts)) as update:
        for done, folder in enumerate(artifacts):
            update(done, folder.name)
            model = load(folder, weights=weights)
            if model.config not in dense:
                update(done, "the model in float32")
                dense[model.config] = float_model(model.config)
            cases += list(_cases(kind, folder.resolve().name, model, dense[model.config], sizes))
    return run_cases(kind, cases, seconds, threads)


def float_model(config: ModelConfig) -> Llama:
    """A Llama with random float32 weights, to compare speeds with.

    Raises:
        ConfigError: this machine has too little memory free.
    """
    hint = "quest bench layer needs less"
    require_memory(4 * config.parameters, host_memory(), "the model in float32 to compare with", hint)
    with torch.device("meta"):
        model = Llama(config)
    return model.to_empty(device="cpu").initialize(0).eval()


def _cases(
    kind: Kind, name: str, model: PackedModel, dense: Llama, sizes: Sequence[tuple[int, int, int]]
) -> Iterator[Case]:
    config, entries = model.config, model.config.vocab_size or 1
    widths = dict.fromkeys(bits_text(each) for matrix, each in model.artifact.weight_formats() if "." in matrix)
    for sequences, length, count in sizes:
        prompts = [[(7 * place + row) % entries for place in range(length)] for row in range(sequences)]
        options = GenerationOptions(max_new_tokens=count, temperature=0, stop_at_end=False)
        tokens = sequences * (length if kind == "prefill" else count)
        yield Case(
            artifact=name,
            what="model in one call" if model.not_native is None else "model by layers",
            shape=f"{config.layers} x {config.hidden}",
            bits=" ".join(widths),
            batch=length if kind == "prefill" else sequences,
            work=(tokens, tokens),
            packed=partial(model.generate_ids, prompts, options),
            dense=_float_generation(dense, prompts, options),
        )


def _float_generation(model: Llama, prompts: list[list[int]], options: GenerationOptions) -> Callable[[], object]:
    """The same loop as that of a packed model."""

    def generate() -> object:
        capacity = len(prompts[0]) + options.max_new_tokens
        cache = KVCache(model.config, len(prompts), capacity, torch.float32, "cpu")
        return list(generate_tokens(model.next_logits, cache, prompts, options, range(len(prompts))))

    return generate
