"""Pack a trained model: write the codes that its forward pass uses as an artifact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from questlm.artifact.budget import Budget
from questlm.artifact.card import check_license
from questlm.artifact.format import (
    FORMAT,
    TOKENIZER_NAME,
    VERSION,
    ArtifactConfig,
    GridConfig,
    QuantizationConfig,
    StoredDtype,
    WeightFormat,
)
from questlm.artifact.matrices import matrix_tensors, narrow_operand, operand_tensors, weight_operand
from questlm.artifact.read import Artifact, require_known_ids
from questlm.artifact.shapes import biased_matrices, matrix_shapes, norm_widths
from questlm.artifact.write import PackReport, write_artifact, write_artifact_file
from questlm.config import QuantSpec
from questlm.errors import ArtifactError, ConfigError, quoted
from questlm.export.from_transformers import as_llama, tokenizer_content
from questlm.models import Llama
from questlm.ops import Operand
from questlm.ops.reference.storage import store_steps, to_int8_rows
from questlm.quant import (
    FakeQuantLinear,
    StoredEmbedding,
    StoredLinear,
    quantized_layers,
)
from questlm.quant.layers.mode import Mode
from questlm.quant.quantizers import Quantizer
from questlm.tokenizer_files import parse_tokenizer, usual_end_of_text

__all__ = ["pack"]


def pack(
    model: nn.Module,
    out: str | Path,
    *,
    tokenizer: object = None,
    end_of_text: str | None = None,
    chat_template: str | None = None,
    training: Mapping[str, Any] | None = None,
    embeddings: Literal["bf16", "int8"] | None = None,
    single_file: bool = False,
    budget: Budget | None = None,
    license: str | None = None,
) -> PackReport:
    """Write `model` as the new artifact `out`, load it back, and check that the codes are the model's own.

    Layers with 16-bit weights but quantised activations keep their float32 weights, which is what training used.
    Layers left out of quantisation keep the stored dtype they were trained with, or bf16 if that was float.

    Args:
        model: a Llama, ours or that of transformers, after `questlm.prepare`, with float32 parameters, on any device.
        out: must not exist.
        tokenizer: content of a tokenizer.json, or a fast tokenizer of transformers.
        end_of_text: name of its token that ends a document; None: the tokenizer's own, or one of a usual name.
        chat_template: content of a chat_template.jinja; None: that of a tokenizer of transformers.
        training: JSON to record: validation loss, data, sequence length.
        embeddings: stored dtype of embedding and head; None: the one they were trained with, or bf16 if that was float
            (the artifact then differs from the model by that rounding).
        single_file: write one file with entropy-coded codes instead of a folder.
        budget: the most bytes that it may take; where it takes more, nothing is kept.
        license: name of the licence of the weights (apache-2.0), for README.md of a folder; None: not stated.

    Raises:
        ConfigError: `out` exists, the model cannot be packed (other modules or dtypes, non-finite weights) or misses
            the budget, or the tokenizer or provenance is unusable.
        ArtifactError: what was written does not read back as the same codes.
    """
    out = Path(out)
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} exists already; choose a new name or remove it first")
    if license is not None:
        _check_license(license, single_file)
    llama = as_llama(model)
    _check_model(llama)
    text = eos = None
    if tokenizer is not None:
        content = tokenizer_content(tokenizer)
        text = _text(content.json)
        eos = _end_of_text(text, end_of_text or content.end_of_text, llama.config.vocab_size or 0)
        chat_template = content.chat_template if chat_template is None else chat_template
    config = _describe(llama, dict(training or {}), embeddings, eos)
    tensors, check = _tensors(llama, config), partial(_check_codes, llama)
    if single_file:
        return write_artifact_file(out, config, tensors, text, check, budget, chat_template)
    return write_artifact(out, config, tensors, text, check, budget, chat_template, license)


def _check_license(name: str, single_file: bool) -> None:
    check_license(name)
    if single_file:
        raise ConfigError(
            "a single file has no README.md in which a licence is said; leave license out, or pack a folder"
        )


def _check_model(model: Llama) -> None:
    layers = quantized_layers(model)
    matrices = matrix_shapes(model.config)
    expected = {f"{name}.weight" for name in (*matrices, *norm_widths(model.config))}
    expected |= {f"{name}.bias" for name in biased_matrices(model.config)}
    parameters = dict(model.named_parameters())  # lists a tied head once
    learned = {
        f"{name}.{own}" for name, layer in layers.items() for own, _ in layer.named_parameters() if own != "bias"
    }
    for name in (*expected - parameters.keys(), *parameters.keys() - expected - learned):
        raise ConfigError(
            f"the parameter {quoted(name)} does not belong to a Llama of this config, so it cannot be packed"
        )
    if model.config.tied_head and isinstance(model.lm_head, FakeQuantLinear):
        raise ConfigError("a tied head is stored as the embedding, so it cannot be quantised; leave lm_head out")
    for name, parameter in parameters.items():
        if parameter.dtype is not torch.float32:
            raise ConfigError(f"{name} is {parameter.dtype}; pack the float32 weights that training keeps")
        if not torch.isfinite(parameter).all():
            raise ConfigError(f"{name} holds a value that is not finite; the model has diverged and cannot be packed")
    for name, layer in layers.items():
        if layer.act_quantizer is not None and layer.act_quantizer.needs_data():
            raise ConfigError(f"{name} has seen no data yet, so its inputs have no step; run or train the model first")
        if layer.mode is Mode.FADING_IN or (layer.strength is not None and bool(layer.strength < 1)):
            raise ConfigError(
                f"quantisation of {name} is still being faded in; train to the end of the gradual schedule"
            )


def _describe(
    model: Llama, training: dict[str, Any], embeddings: StoredDtype | None, eos: int | None
) -> ArtifactConfig:
    formats = {name: _format(model.get_submodule(name), name, embeddings) for name in matrix_shapes(model.config)}
    specs = Counter(layer.spec for layer in quantized_layers(model).values())
    spec = specs.most_common(1)[0][0] if specs else QuantSpec(weight_bits=16, act_bits=16)
    return ArtifactConfig(
        format=FORMAT,
        version=VERSION,
        model=model.config,
        quantization_config=QuantizationConfig.of(spec, formats),
        eos_token_id=eos,
        training=training,
    )


def _format(module: nn.Module, name: str, embeddings: StoredDtype | None) -> WeightFormat:
    if isinstance(module, FakeQuantLinear):
        return WeightFormat.of(module.packed_format())
    chosen = embeddings if name in ("embed", "lm_head") else None
    trained: StoredDtype = "bf16"
    if isinstance(module, StoredEmbedding | StoredLinear):
        if (quantizer := module.quantizer) is not None and quantizer.grid is not None:
            if chosen is not None:
                raise ConfigError(f"{name} was trained in {module.stored_dtype}; leave embeddings = {chosen!r} out")
            return WeightFormat(block_size=1, weight=GridConfig.of(quantizer.grid), act=None, steps=quantizer.steps)
        trained = cast(StoredDtype, module.stored_dtype)
    return WeightFormat(block_size=1, weight=chosen or trained, act=None)


def _text(tokenizer: str | bytes) -> str:
    try:
        return tokenizer if isinstance(tokenizer, str) else tokenizer.decode()
    except UnicodeError as problem:
        raise ConfigError(f"the tokenizer cannot be packed: {problem}") from None


def _end_of_text(tokenizer_json: str, name: str | None, vocab_size: int) -> int | None:
    """Return the id of the token that ends a document; ConfigError for a tokenizer that does not fit the model."""
    try:
        tokenizer = parse_tokenizer(tokenizer_json, TOKENIZER_NAME, ArtifactError)
        require_known_ids(tokenizer, vocab_size)
    except ArtifactError as problem:
        raise ConfigError(f"the tokenizer cannot be packed: {problem}") from None
    if name is None:
        return usual_end_of_text(tokenizer)
    token: int | None = tokenizer.token_to_id(name)
    if token is None:
        raise ConfigError(f"end_of_text is {quoted(name)}, but the tokenizer has no such token")
    return token


def _tensors(model: Llama, config: ArtifactConfig) -> dict[str, Tensor]:
    tensors = {
        f"{name}.{kind}": tensor.detach().cpu().contiguous()
        for name, weight_format in config.weight_formats()
        for kind, tensor in _matrix_tensors(model.get_submodule(name), weight_format).items()
    }
    norms = {f"{name}.weight": model.get_parameter(f"{name}.weight") for name in norm_widths(config.model)}
    norms |= {f"{name}.bias": model.get_parameter(f"{name}.bias") for name in biased_matrices(config.model)}
    return tensors | {name: weight.detach().cpu() for name, weight in norms.items()}


def _matrix_tensors(module: nn.Module, weight_format: WeightFormat) -> dict[str, Tensor]:
    if isinstance(module, FakeQuantLinear):
        return _quantized_tensors(module)
    weight: Tensor = module.get_parameter("weight")
    if isinstance(module, StoredEmbedding | StoredLinear) and module.quantizer is not None:
        return _stored_codes(module.quantizer.operand(weight.detach()), module.quantizer)
    if weight_format.weight == "int8":
        rows, scale = to_int8_rows(weight)
        return {"codes": rows, "scale": scale}
    return {"weight": weight.to(torch.bfloat16) if weight_format.weight == "bf16" else weight}


def _quantized_tensors(layer: FakeQuantLinear) -> dict[str, Tensor]:
    tensors = {"weight": layer.weight}
    if layer.weight_quantizer is not None:
        tensors = _stored_codes(layer.quantized_weight(), layer.weight_quantizer)
    if (narrow := layer.quantized_narrow_branch()) is not None:
        tensors |= {f"narrow_{kind}": tensor for kind, tensor in operand_tensors(narrow).items()}
    act = layer.act_quantizer
    learned = {"act_step": act.step_per_scale(), "act_offset": act.offset()} if act is not None else {}
    tensors |= {kind: tensor for kind, tensor in learned.items() if tensor is not None}
    return tensors if layer.input_norm is None else tensors | {"input_norm": layer.input_norm.weight}


def _stored_codes(operand: Operand, quantizer: Quantizer) -> dict[str, Tensor]:
    tensors = operand_tensors(operand)
    if "step" in tensors:
        tensors["step"] = store_steps(tensors["step"], quantizer.steps)
    return tensors


def _check_codes(model: Llama, artifact: Artifact) -> None:
    """Compare the codes that were read back with the layers' own, bit for bit."""
    for name, layer in quantized_layers(model).items():
        weight_format, tensors = artifact.config.weight_format(name), matrix_tensors(artifact.tensors, name)
        pairs = []
        if layer.weight_quantizer is not None:
            own = layer.quantized_weight()
            pairs.append((own, weight_operand(tensors, weight_format, own.data.shape[1])))
        if (narrow := layer.quantized_narrow_branch()) is not None:
            pairs.append((narrow, narrow_operand(tensors, weight_format, narrow.data.shape[1])))
        for own, read in pairs:
            if not (_same(own.data, read.data) and _same(own.step, read.step) and _same(own.offset, read.offset)):
                raise ArtifactError(f"the codes of {name} did not read back as they were written; nothing was kept")


def _same(own: Tensor | None, read: Tensor | None) -> bool:
    return read is None if own is None else read is not None and torch.equal(own.cpu().expand_as(read), read)
