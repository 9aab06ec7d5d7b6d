"""The model card: README.md of a packed model, as hubs of models show it. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from questlm.artifact.format import ArtifactConfig
from questlm.errors import ConfigError, quoted
from questlm.records import package_version

__all__ = ["CARD_NAME", "check_license", "model_card"]

CARD_NAME = "README.md"

_UNKNOWN = "unknown"
_TEXT = """---
library_name: questlm
pipeline_tag: text-generation
license: "{license}"
tags:
- questlm
- quantized
---

# {title}

A language model that was trained in few bits and packed by questlm. Its quantised weights are those that trained.

| | |
|---|---|
{rows}

{licence}

## Run it

In this folder, with questlm installed:

```python
import questlm

model = questlm.load(".")
```

{generate}In transformers:

```python
import questlm.integrations.transformers
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(".")
```
"""
_GENERATE = """`print(model.generate("Once upon a time"))` prints text. """


def check_license(name: str) -> None:
    """Refuse what cannot be the name of a licence.

    Raises:
        ConfigError: it has other characters than letters, digits, dots and dashes, or more than 64.
    """
    if not (0 < len(name) <= 64 and name.isascii() and name.replace("-", "").replace(".", "").isalnum()):
        raise ConfigError(f"license {quoted(name)} is not the name of a licence; give one such as apache-2.0 or mit")


def model_card(config: ArtifactConfig, size: int, has_tokenizer: bool, license: str | None = None) -> str:
    """Return the content of README.md.

    Args:
        config: what the model is, and what was recorded of its training.
        size: bytes of the model's files.
        has_tokenizer: whether it can take and give text.
        license: name of the licence of the weights; None: not stated.
    """
    quant, parameters = config.quantization_config, config.model.parameters
    rows = (f"| {name} | {_cell(value)} |" for name, value in _facts(config, size))
    return _TEXT.format(
        license=license or _UNKNOWN,
        title=f"{quant.method}, weights {_bits(quant.weight_bits)}, {parameters:,} parameters",
        rows="\n".join(rows),
        licence="The licence of the weights is not stated." if license is None else f"Licence: {license}.",
        generate=_GENERATE if has_tokenizer else "",
    )


def _facts(config: ArtifactConfig, size: int) -> Iterator[tuple[str, str]]:
    quant, model, training = config.quantization_config, config.model, config.training
    yield "method", f"{quant.method}: weights {_bits(quant.weight_bits)}, inputs of layers {_bits(quant.act_bits)}"
    embedding = config.weight_format("embed")
    rows = embedding.weight if isinstance(embedding.weight, str) else f"{embedding.weight.levels} levels"
    yield "embedding", rows
    yield "shape", f"{model.layers} blocks, width {model.hidden}, {model.heads} heads, {model.vocab_size:,} tokens"
    yield "size", f"{size:,} bytes, {8 * size / model.parameters:.3f} bits a parameter"
    data = training.get("data")
    if isinstance(data, dict) and isinstance(data.get("source"), str):
        yield "trained on", _source(data["source"])
    if isinstance(training.get("tokens"), int):
        windows = f", in windows of {training['seq_len']}" if "seq_len" in training else ""
        yield "tokens", f"{training['tokens']:,}{windows}"
    final = training.get("final")
    if isinstance(final, dict):
        yield from _losses(final)
    yield "made with", ", ".join(f"{name} {package_version(name)}" for name in ("questlm", "torch"))


def _losses(final: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, name, unit in (
        ("loss", "validation loss in training", " nats a token"),
        ("perplexity", "perplexity", ""),
        ("bits_per_byte", "bits per byte", ""),
    ):
        if isinstance(final.get(key), int | float):
            yield name, f"{final[key]:.4f}{unit}"


def _source(source: str) -> str:
    """The name of a data set; of a file, without its folders, which are nobody else's business."""
    return source if source.startswith("hf:") else PurePath(source).name


def _bits(bits: object) -> str:
    return {"ternary": "ternary", 1: "1 bit", 16: "not rounded"}.get(bits, f"{bits} bits")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())
