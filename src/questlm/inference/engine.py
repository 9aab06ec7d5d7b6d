"""Load a packed model and generate text with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from questlm.artifact.format import ArtifactConfig, matrix_shapes, norm_names
from questlm.artifact.matrices import matrix_tensors
from questlm.artifact.read import Artifact, load_artifact
from questlm.config import ModelConfig
from questlm.errors import ArtifactError, ConfigError, quoted
from questlm.inference.linear import packed_layer
from questlm.inference.sampling import Sampling, sample
from questlm.inference.text import decode_stream
from questlm.models import KVCache, Llama
from questlm.vocabulary import library_failures

__all__ = ["PackedModel", "load"]

_DTYPES = (torch.float32, torch.bfloat16)
_PREFILL_TOKENS = 512  # a long prompt goes in by pieces, because each gives a row of logits per token


def load(path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> PackedModel:
    """Load the artifact in the folder `path`.

    Args:
        path: a folder that `questlm.export.pack` wrote.
        device: where to run.
        dtype: float32, or bfloat16 to compute as training under bf16 autocast does.

    Raises:
        ArtifactError: the folder is missing, damaged, hostile, or of another format.
        ConfigError: `device` or `dtype` cannot be used.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype = {dtype}; a packed model computes in torch.float32 or torch.bfloat16")
    try:
        place = torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, ValueError) as problem:
        raise ConfigError(
            f"device = {quoted(str(device))} cannot be used here: {str(problem).splitlines()[0]}"
        ) from None
    return PackedModel(load_artifact(path), place, dtype)


class PackedModel:
    """A packed model, ready to run; `load` makes one.

    Attributes:
        config: shape of the model.
        artifact: the content of its config.json: the format of every matrix.
        tokenizer: of the `tokenizers` library, or None.
        end_of_text: id of the token that ends a document, or None.
        training: what was recorded about its training.
        bytes: size of the artifact's files.
        device, dtype: where and in what it computes.
    """

    def __init__(self, artifact: Artifact, device: torch.device, dtype: torch.dtype) -> None:
        self.config: ModelConfig = artifact.config.model
        self.artifact: ArtifactConfig = artifact.config
        self.tokenizer = artifact.tokenizer
        self.end_of_text = artifact.end_of_text
        self.training: dict[str, Any] = artifact.config.training
        self.bytes = artifact.bytes
        self.device, self.dtype = device, dtype
        self._model = _build(artifact, dtype).to(device).eval()

    @torch.inference_mode()
    def logits(self, ids: Tensor) -> Tensor:
        """Logits (batch, tokens, vocab_size) in `dtype`, on `device`, of token ids (batch, tokens)."""
        return self._forward(ids.to(self.device), None)

    __call__ = logits

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. ConfigError if the model has no tokenizer, or `text` is not valid Unicode."""
        tokenizer = self._need_tokenizer()
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"the text {quoted(text)} is not valid Unicode, so it cannot be encoded") from None
        with library_failures(lambda reason: ConfigError(f"the tokenizer cannot encode {quoted(text)}: {reason}")):
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of token ids. ConfigError if the model has no tokenizer."""
        text: str = self._need_tokenizer().decode(ids)
        return text

    def generate(
        self,
        prompt: str | list[int],
        max_new_tokens: int = 128,
        temperature: float = 0.8,
        top_k: int | None = 50,
        top_p: float | None = None,
        seed: int | None = None,
        stop_at_end: bool = True,
    ) -> str:
        """The text that follows `prompt`, without the prompt itself.

        Args:
            prompt: text or token ids; an empty one starts a new document.
            max_new_tokens: most tokens to add.
            temperature: 0 for the likeliest token each time.
            top_k: choose among the likeliest k tokens; None: all.
            top_p: choose among the fewest tokens that hold this much probability; None: all.
            seed: the same seed gives the same text; None: a different one each time.
            stop_at_end: stop where the model ends the document.

        Raises:
            ConfigError: an argument out of range, or no tokenizer (`stream_ids` needs none).
        """
        options = (max_new_tokens, temperature, top_k, top_p, seed, stop_at_end)
        return "".join(self.stream(prompt, *options))

    def stream(
        self,
        prompt: str | list[int],
        max_new_tokens: int = 128,
        temperature: float = 0.8,
        top_k: int | None = 50,
        top_p: float | None = None,
        seed: int | None = None,
        stop_at_end: bool = True,
    ) -> Iterator[str]:
        """As `generate`, in pieces of whole characters as they are decoded."""
        tokenizer, start = self._need_tokenizer(), self._start(prompt)
        options = (max_new_tokens, temperature, top_k, top_p, seed, stop_at_end)
        return decode_stream(tokenizer, start, self.stream_ids(start, *options))

    def stream_ids(
        self,
        prompt: str | list[int],
        max_new_tokens: int = 128,
        temperature: float = 0.8,
        top_k: int | None = 50,
        top_p: float | None = None,
        seed: int | None = None,
        stop_at_end: bool = True,
    ) -> Iterator[int]:
        """As `generate`, token ids; the one that ends the document is not among them."""
        how = Sampling(temperature, top_k, top_p)
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens = {quoted(max_new_tokens)}; it must be at least 1")
        if seed is not None and not 0 <= seed < 2**63:
            raise ConfigError(f"seed = {quoted(seed)}; it must be from 0 to 2**63 - 1, or None")
        end = self.end_of_text if stop_at_end else None
        return self._decode(self._start(prompt), max_new_tokens, how, seed, end)

    def _decode(
        self, start: list[int], max_new_tokens: int, how: Sampling, seed: int | None, end: int | None
    ) -> Iterator[int]:
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        cache = KVCache(self.config, 1, len(start) + max_new_tokens, self.dtype, self.device)
        ids = start
        for _ in range(max_new_tokens):
            token = sample(self._next_logits(ids, cache), how, generator)
            if token == end:
                return
            yield token
            ids = [token]

    @torch.inference_mode()
    def _next_logits(self, ids: list[int], cache: KVCache) -> Tensor:
        """Append `ids` to what `cache` holds; logits (vocab_size,) of the token after them."""
        for piece in torch.tensor([ids], device=self.device).split(_PREFILL_TOKENS, dim=1):
            with self._autocast():
                logits = self._model.next_logits(piece, cache)[0]
        if not torch.isfinite(logits).all():
            raise ArtifactError("the model gave logits that are not finite; its weights are out of any sensible range")
        return logits

    def _forward(self, ids: Tensor, cache: KVCache | None) -> Tensor:
        with self._autocast():
            logits: Tensor = self._model(ids, cache)
            return logits

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _start(self, prompt: str | list[int]) -> list[int]:
        """Ids to continue from, at least one."""
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        vocabulary = self.config.vocab_size or 0
        for token in ids:
            if not 0 <= token < vocabulary:
                raise ConfigError(f"the prompt holds the token id {quoted(token)}; ids go from 0 to {vocabulary - 1}")
        if ids:
            return ids
        if self.end_of_text is None:
            raise ConfigError("the prompt is empty and the tokenizer has no end-of-text token to start from; give text")
        return [self.end_of_text]

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ConfigError("this model was packed without a tokenizer; use logits or stream_ids with token ids")
        return self.tokenizer


def _build(artifact: Artifact, dtype: torch.dtype) -> Llama:
    """A Llama on the CPU with the artifact's weights.

    Embedding and norms are float32, as in training. Linear layers that are not quantised are in the dtype computed in,
    which is what autocast would convert them to each time.
    """
    config = artifact.config.model
    with torch.device("meta"):
        model = Llama(config)
    for name in norm_names(config):
        _set_weight(model.get_submodule(name), artifact.tensors[f"{name}.weight"])
    shapes = matrix_shapes(config)
    for name, form in artifact.config.weight_formats():
        module = model.get_submodule(name)
        if form.quantized:
            model.set_submodule(name, packed_layer(matrix_tensors(artifact.tensors, name), shapes[name][1], form))
        else:
            weight = artifact.stored_weight(name)
            _set_weight(module, weight if isinstance(module, nn.Embedding) else weight.to(dtype))
    if config.tied_head:
        _set_weight(model.lm_head, model.embed.weight.to(dtype))
    return model


def _set_weight(module: nn.Module, weight: Tensor) -> None:
    module.weight = nn.Parameter(weight, requires_grad=False)
