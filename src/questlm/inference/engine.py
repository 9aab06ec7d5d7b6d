"""Load a packed model and generate text with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, overload

import torch
from torch import Tensor

from questlm import ops
from questlm.artifact.format import ArtifactConfig
from questlm.artifact.read import Artifact, open_artifact
from questlm.config import GenerationOptions, ModelConfig
from questlm.errors import ConfigError, quoted
from questlm.humanize import bytes_text
from questlm.inference.batch import RunningBatch
from questlm.inference.build import build_model, resident_bytes
from questlm.inference.cuda_graph import RecordedLogits
from questlm.inference.generate import NextLogits, generate_tokens
from questlm.inference.native import native_forward
from questlm.inference.stream import TextStream
from questlm.inference.text import TextDecoder
from questlm.memory import release_freed_memory
from questlm.models import KVCache, Llama
from questlm.tokenizer_files import encode_text

if TYPE_CHECKING:
    from questlm.inference.decoding import DecodingStep
    from questlm.inference.prompt import PromptStep

__all__ = ["PackedModel", "load"]

_DTYPES = (torch.float32, torch.bfloat16)
_CACHE_DTYPES = (torch.float32, torch.bfloat16, torch.int8)
_FIRST_ROOM = 256  # tokens to come that the cache has room for at first; most texts end long before their limit

Weights = Literal["auto", "packed"]
"""How a loaded model keeps its weights: whatever multiplies fastest, or no larger than they are packed."""


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
    weights: Weights = "auto",
) -> PackedModel:
    """Load the artifact `path`.

    Args:
        path: a folder or a single file that `questlm.pack` wrote.
        device: where to run.
        dtype: float32, or bfloat16 to compute as training under bf16 autocast does.
        cache_dtype: in what keys and values of past tokens are kept. float32 or bfloat16: attention is computed in it,
            too, where a step is not one native call (`PackedModel.not_native`), which computes it in float32. int8:
            rounded to 8 bits with a float32 scale for each token and head; attention is computed in `dtype`.
            None: `dtype`.
        weights: "auto" multiplies as fast as this machine can: from packed weights where native kernels on a CPU or
            those for a GPU take them, elsewhere from weights unpacked to the size of `dtype`. "packed" never holds them
            larger than they are stored, but for 4 bytes a row, even where that is several times as slow.

    Raises:
        ArtifactError: it is missing, damaged, hostile, or of another format.
        ConfigError: `device`, `dtype`, `cache_dtype` or `weights` cannot be used, or unpacked weights need more memory
            than is free.
    """
    if weights not in get_args(Weights):
        raise ConfigError(f"weights = {quoted(weights)}; there are: {', '.join(get_args(Weights))}")
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype = {dtype}; a packed model computes in torch.float32 or torch.bfloat16")
    if cache_dtype not in (None, *_CACHE_DTYPES):
        allowed = ", ".join(map(str, _CACHE_DTYPES))
        raise ConfigError(f"cache_dtype = {cache_dtype}; keys and values are kept in one of: {allowed}")
    try:
        place = torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, ValueError) as problem:
        raise ConfigError(
            f"device = {quoted(str(device))} cannot be used here: {str(problem).splitlines()[0]}"
        ) from None
    with open_artifact(path) as artifact:
        return PackedModel(artifact, place, dtype, cache_dtype, stay_packed=weights == "packed")


class PackedModel:
    """A packed model, ready to run; `load` makes one.

    Attributes:
        config: shape of the model.
        artifact: the content of its config.json: the format of every matrix.
        tokenizer: of the `tokenizers` library, or None.
        end_of_text: id of the token that ends a document, or None.
        chat_template: a template of jinja2 for the messages of a chat (`Artifact.chat_template`), or None.
        training: what was recorded about its training.
        bytes: size of the artifact's files.
        weight_bytes: what the weights take in memory.
        device, dtype: where and in what it computes.
        cache_dtype: in what it keeps keys and values.
        not_native: why text is generated layer by layer; None: each step is one native call.
    """

    def __init__(
        self,
        artifact: Artifact,
        device: torch.device,
        dtype: torch.dtype,
        cache_dtype: torch.dtype | None = None,
        stay_packed: bool = False,
    ) -> None:
        self.config: ModelConfig = artifact.config.model
        self.artifact: ArtifactConfig = artifact.config
        self.tokenizer = artifact.tokenizer
        self.end_of_text = artifact.end_of_text
        self.chat_template = artifact.chat_template
        self.training: dict[str, Any] = artifact.config.training
        self.bytes = artifact.bytes
        self.device, self.dtype, self.cache_dtype = device, dtype, cache_dtype or dtype
        self._model = build_model(artifact, device, dtype, stay_packed)
        native = native_forward(self._model, device, dtype)
        self._native = None if isinstance(native, str) else native
        self.not_native = native if isinstance(native, str) else None
        self._decoding = _decoding_step(self._model, device, dtype)
        self._prompt = None if self._decoding is None else _prompt_step(self._model, self._decoding)
        self.weight_bytes = resident_bytes(self._model)
        release_freed_memory()  # of the tensors that were read and laid out, up to half as much again as the weights

    def __repr__(self) -> str:
        shape = self.config
        size = f"{shape.layers} layers of width {shape.hidden}, vocabulary {shape.vocab_size:,}"
        formats = dict(self.artifact.weight_formats())
        levels = sorted({each.weight.grid.levels for each in formats.values() if not isinstance(each.weight, str)})
        codes = f"codes of {' and '.join(map(str, levels))} levels" if levels else "no codes"
        memory = f"{bytes_text(self.weight_bytes)} in memory, {bytes_text(self.bytes)} of files"
        return f"PackedModel({size}, {codes}, {memory}, {self.device}, {self.dtype})"

    @torch.inference_mode()
    def logits(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (batch, tokens, vocab_size) in `dtype`, on `device`, of ids (batch, tokens), which continue `cache`.

        Attention is to keys and values as generation keeps them: rounded to `cache_dtype` where that is not `dtype`.
        """
        if cache is None and self.cache_dtype is not self.dtype:
            cache = self.new_cache(*ids.shape)
        return self._forward(ids.to(self.device), cache)

    __call__ = logits

    @torch.inference_mode()
    def next_logits(self, ids: Tensor, cache: KVCache, counts: Tensor | None = None) -> Tensor:
        """Logits (batch, vocab_size) of the token behind each row of `ids`, as `Llama.next_logits`."""
        return self._next_logits(ids, cache, counts)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `capacity` tokens of each of `batch` sequences, in `cache_dtype` on `device`."""
        return KVCache(self.config, batch, capacity, self.cache_dtype, self.device)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. ConfigError if the model has no tokenizer, or `text` is not valid Unicode."""
        return encode_text(self._need_tokenizer(), text)

    def decode(self, ids: list[int]) -> str:
        """Text of token ids. ConfigError if the model has no tokenizer."""
        text: str = self._need_tokenizer().decode(ids)
        return text

    @overload
    def generate(self, prompts: str | list[int], options: GenerationOptions | None = None) -> str: ...

    @overload
    def generate(self, prompts: list[str] | list[list[int]], options: GenerationOptions | None = None) -> list[str]: ...

    def generate(
        self, prompts: str | list[int] | list[str] | list[list[int]], options: GenerationOptions | None = None
    ) -> str | list[str]:
        """The text that follows each prompt, without the prompt itself.

        Several prompts, of any lengths, are computed together: each step reads the weights once for all of them.

        Args:
            prompts: a text or its token ids, or a list of such. An empty prompt, "" or [], starts a new document.
            options: None for those of `GenerationOptions()`.

        Raises:
            ConfigError: a prompt that the model cannot read, or no tokenizer (`generate_ids` needs none).
            ArtifactError: the model gave logits that are not finite.
        """
        starts, several = self._starts(prompts)
        options = options or GenerationOptions()
        decoders = [TextDecoder(self._need_tokenizer(), start, options.stop) for start in starts]
        texts = ["" for _ in starts]
        running = set(range(len(starts)))
        for row, token in self._tokens(starts, options, running):
            texts[row] += decoders[row].add(token)
            if decoders[row].stopped:
                running.discard(row)
        texts = [text + decoder.finish() for text, decoder in zip(texts, decoders, strict=True)]
        return texts if several else texts[0]

    @overload
    def generate_ids(self, prompts: str | list[int], options: GenerationOptions | None = None) -> list[int]: ...

    @overload
    def generate_ids(
        self, prompts: list[str] | list[list[int]], options: GenerationOptions | None = None
    ) -> list[list[int]]: ...

    def generate_ids(
        self, prompts: str | list[int] | list[str] | list[list[int]], options: GenerationOptions | None = None
    ) -> list[int] | list[list[int]]:
        """As `generate`, token ids; the one that ends a document is not among them.

        Raises:
            ConfigError: `options` with stop strings, which are found in text.
        """
        options = _without_stop(options)
        starts, several = self._starts(prompts)
        found: list[list[int]] = [[] for _ in starts]
        for row, token in self._tokens(starts, options, set(range(len(starts)))):
            found[row].append(token)
        return found if several else found[0]

    def stream(self, prompt: str | list[int], options: GenerationOptions | None = None) -> TextStream:
        """As `generate` for one prompt, in pieces of whole characters as they are decoded."""
        options = options or GenerationOptions()
        start = self.prompt_ids(prompt)
        decoder = TextDecoder(self._need_tokenizer(), start, options.stop)
        return TextStream((token for _, token in self._tokens([start], options, {0})), decoder)

    def stream_ids(self, prompt: str | list[int], options: GenerationOptions | None = None) -> Iterator[int]:
        """As `generate_ids` for one prompt, each id as it is chosen."""
        options, start = _without_stop(options), self.prompt_ids(prompt)
        return (token for _, token in self._tokens([start], options, {0}))

    def running_batch(self, sequences: int, context: int) -> RunningBatch:
        """An empty batch that sequences join and leave between steps, as a server needs it.

        Args:
            sequences: most at once.
            context: most tokens of one, prompt and text.

        Raises:
            ConfigError: the device has no memory for keys and values.
        """

        def forward() -> NextLogits:
            return self._next_logits if self._decoding is None else RecordedLogits(self._next_logits)

        def cache(batch: int, capacity: int) -> KVCache:
            return KVCache(self.config, batch, capacity, self.cache_dtype, self.device)

        return RunningBatch(forward, cache, sequences, context)

    def _tokens(
        self, starts: list[list[int]], options: GenerationOptions, running: set[int]
    ) -> Iterator[tuple[int, int]]:
        """Generated (row, token id) of the rows that are `running`, until none is; the caller may take rows out."""
        capacity = max(map(len, starts)) + min(options.max_new_tokens, _FIRST_ROOM)
        cache = self.new_cache(len(starts), capacity)
        end = self.end_of_text if options.stop_at_end else None
        forward = self._next_logits if self._decoding is None else RecordedLogits(self._next_logits)
        for drawn in generate_tokens(forward, cache, starts, options, running):
            for row, token in drawn:
                if token == end:
                    running.discard(row)
                elif row in running:
                    yield row, token
            if not running:
                return

    def _next_logits(self, ids: Tensor, cache: KVCache, counts: Tensor | None) -> Tensor:
        if self._native is not None:
            return self._native.next_logits(ids, cache, counts)
        if self._prompt is not None and self._prompt.takes(ids):
            with self._autocast():
                return self._prompt.next_logits(ids, cache, counts)
        if self._decoding is not None and counts is None and self._decoding.takes(ids, cache):
            return self._decoding.logits(ids[:, 0], cache)
        with self._autocast():
            return self._model.next_logits(ids, cache, counts)

    def _forward(self, ids: Tensor, cache: KVCache | None) -> Tensor:
        with self._autocast():
            if self._prompt is not None and self._prompt.takes(ids):
                return self._prompt.logits(ids, cache)
            logits: Tensor = self._model(ids, cache)
            return logits

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _starts(self, prompts: str | list[int] | list[str] | list[list[int]]) -> tuple[list[list[int]], bool]:
        """Ids to continue from of each prompt, and whether a list of prompts was given."""
        several = isinstance(prompts, list) and any(isinstance(each, str | list) for each in prompts)
        batch = cast(list[str | list[int]], prompts if several else [prompts])
        return [self.prompt_ids(prompt) for prompt in batch], several

    def prompt_ids(self, prompt: str | list[int]) -> list[int]:
        """Token ids from which a prompt is continued, at least one.

        Raises:
            ConfigError: a prompt that the model cannot read.
        """
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
            raise ConfigError(
                "this model was packed without a tokenizer; use logits, generate_ids or stream_ids with token ids"
            )
        return self.tokenizer


def _decoding_step(model: Llama, device: torch.device, dtype: torch.dtype) -> DecodingStep | None:
    """The step in few kernels, where there is one for such a model and device."""
    if device.type != "cuda" or ops.unavailable("triton"):
        return None
    from questlm.inference.decoding import DecodingStep  # imports Triton

    if DecodingStep.can_run(model, dtype):
        return None
    return DecodingStep(model, torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (9, 0))


def _prompt_step(model: Llama, decoding: DecodingStep) -> PromptStep:
    from questlm.inference.prompt import PromptStep  # imports Triton

    return PromptStep(model, decoding.blocks)


def _without_stop(options: GenerationOptions | None) -> GenerationOptions:
    if options is not None and options.stop:
        raise ConfigError(
            f"stop = {quoted(options.stop)} is found in text, not in token ids; leave it out, or use generate or stream"
        )
    return options or GenerationOptions()
