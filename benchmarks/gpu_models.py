"""What the benchmarks on a GPU compare: packed Llamas with random codes, and the same Llama in bfloat16.

The bfloat16 model is as fast as we can make it: one matrix for query, key and value, one for gate and up, everything in
bfloat16, a static cache, blocks compiled by torch.compile, and the whole step recorded as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questlm import ops
from questlm.artifact.format import WeightFormat, matrix_tensor_specs
from questlm.artifact.shapes import matrix_shapes, norm_widths
from questlm.config import ModelConfig, QuantSpec
from questlm.inference.linear import PackedEmbedding, packed_layer
from questlm.models import Llama
from questlm.models.llama import rotary_angles
from questlm.quant.layer_formats import layer_formats

__all__ = ["DenseDecoder", "DensePrompt", "packed_llama", "replay_seconds"]


def packed_llama(config: ModelConfig, spec: QuantSpec, device: torch.device) -> Llama:
    """A Llama with random codes, computing in bfloat16; embedding and head are 8-bit rows."""
    shapes = matrix_shapes(config)
    linear = {name: shape for name, shape in shapes.items() if name not in ("embed", "lm_head")}
    formats = {name: WeightFormat.of(layer) for name, layer in layer_formats(spec, linear).items()}
    rows = WeightFormat(block_size=1, weight="int8", act=None)
    prepack = partial(ops.prepack, device=device, dtype=torch.bfloat16, stay_packed=True)
    with torch.device("meta"):
        model = Llama(config)
    for name, width in norm_widths(config).items():
        model.get_submodule(name).weight = nn.Parameter(torch.ones(width, device=device), requires_grad=False)
    for name, shape in shapes.items():
        each = formats.get(name, rows)
        tensors = {kind: _random(kind, each, s.shape, device) for kind, s in matrix_tensor_specs(shape, each).items()}
        if name == "embed":
            model.embed = PackedEmbedding(tensors, each, config.hidden)  # type: ignore[assignment]
        else:
            model.set_submodule(name, packed_layer(tensors, shape[1], each, prepack))
    return model.to(device).eval()


def _random(kind: str, each: WeightFormat, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if kind == "scale":
        return torch.full(shape, 0.02 / 64, device=device)
    if kind == "step":
        assert not isinstance(each.weight, str) and each.weight.grid is not None
        return torch.full(shape, 0.07 / each.weight.grid.levels, device=device)
    if isinstance(each.weight, str):
        return torch.randint(-127, 128, shape, dtype=torch.int8, device=device)
    return torch.randint(243 if each.weight.grid.levels == 3 else 256, shape, dtype=torch.uint8, device=device)


class DenseDecoder:
    """A Llama in bfloat16 that decodes one token of each of `batch` sequences at a time.

    Args:
        window: tokens that the cache has room for, all of which attention reads.
        mode: of torch.compile, such as "default" or "max-autotune-no-cudagraphs"; None: blocks are not compiled.
    """

    def __init__(self, config: ModelConfig, batch: int, window: int, device: torch.device, mode: str | None) -> None:
        hidden, width, vocab = config.hidden, config.head_width, config.vocab_size or 0
        self.config, self.batch, self.window = config, batch, window
        rows = (config.heads + 2 * config.key_value_heads) * width

        def matrix(out: int, k: int) -> Tensor:
            return torch.randn(out, k, device=device, dtype=torch.bfloat16) * 0.02

        self.blocks = [
            (matrix(rows, hidden), matrix(hidden, config.heads * width), matrix(2 * config.mlp_width, hidden),
             matrix(hidden, config.mlp_width), *torch.ones(2, hidden, device=device, dtype=torch.bfloat16))
            for _ in range(config.layers)
        ]  # fmt: skip
        self.embed, self.head = matrix(vocab, hidden), matrix(vocab, hidden)
        self.gain = torch.ones(hidden, device=device, dtype=torch.bfloat16)
        shape = (config.layers, batch, config.key_value_heads, window, width)
        self.keys, self.values = (torch.zeros(shape, device=device, dtype=torch.bfloat16) for _ in range(2))
        cos, sin = rotary_angles(torch.arange(window, device=device), config)
        self.cos, self.sin = cos.bfloat16(), sin.bfloat16()
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        compile_it = partial(torch.compile, fullgraph=True, dynamic=False, mode=mode)
        wrap: Callable[..., Any] = (lambda function: function) if mode is None else compile_it
        self._block, self._end = wrap(self._run_block), wrap(self._run_end)

    def step(self, ids: Tensor) -> Tensor:
        """The likeliest next token of each sequence, (batch,), from `ids` (batch,)."""
        x = F.embedding(ids, self.embed)
        cos, sin = self.cos[self.lengths][:, None], self.sin[self.lengths][:, None]
        mask = (torch.arange(self.window, device=ids.device) <= self.lengths[:, None])[:, None, None]
        for layer, weights in enumerate(self.blocks):
            x = self._block(x, *weights, self.keys[layer], self.values[layer], self.lengths, cos, sin, mask)
        ids = self._end(x, self.gain, self.head)
        self.lengths += 1
        return ids

    def _run_block(
        self, x: Tensor, qkv: Tensor, o: Tensor, gate_up: Tensor, down: Tensor, first: Tensor, second: Tensor,
        keys: Tensor, values: Tensor, lengths: Tensor, cos: Tensor, sin: Tensor, mask: Tensor,
    ) -> Tensor:  # fmt: skip
        config = self.config
        heads, kv_heads, width, eps = config.heads, config.key_value_heads, config.head_width, config.norm_eps
        y = F.linear(F.rms_norm(x, (config.hidden,), first, eps), qkv).view(len(x), -1, width)
        q, k, v = y.split((heads, kv_heads, kv_heads), dim=1)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        rows = torch.arange(len(x), device=x.device)
        keys[rows, :, lengths], values[rows, :, lengths] = k, v
        attended = F.scaled_dot_product_attention(q[:, :, None], keys, values, mask, enable_gqa=heads != kv_heads)
        x = x + F.linear(attended.reshape(len(x), -1), o)
        gate, up = F.linear(F.rms_norm(x, (config.hidden,), second, eps), gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, down)

    def _run_end(self, x: Tensor, gain: Tensor, head: Tensor) -> Tensor:
        return F.linear(F.rms_norm(x, gain.shape, gain, self.config.norm_eps), head).argmax(-1)


class DensePrompt:
    """A Llama in bfloat16 that reads prompts of `tokens` tokens and gives the logits behind each.

    Args:
        mode: of torch.compile, by which blocks are compiled.
    """

    def __init__(self, config: ModelConfig, tokens: int, device: torch.device, mode: str) -> None:
        self.weights = DenseDecoder(config, 1, 1, device, None)
        cos, sin = rotary_angles(torch.arange(tokens, device=device), config)
        self.cos, self.sin = cos.bfloat16()[:, None], sin.bfloat16()[:, None]
        self._block = torch.compile(self._run_block, fullgraph=True, dynamic=False, mode=mode)

    def __call__(self, ids: Tensor) -> Tensor:
        """Logits (batch, vocab_size) of ids (batch, tokens)."""
        x = F.embedding(ids, self.weights.embed)
        for weights in self.weights.blocks:
            x = self._block(x, *weights)
        config = self.weights.config
        return F.linear(F.rms_norm(x[:, -1], (config.hidden,), self.weights.gain, config.norm_eps), self.weights.head)

    def _run_block(
        self, x: Tensor, qkv: Tensor, o: Tensor, gate_up: Tensor, down: Tensor, first: Tensor, second: Tensor
    ) -> Tensor:
        config = self.weights.config
        heads, kv_heads, width, eps = config.heads, config.key_value_heads, config.head_width, config.norm_eps
        y = F.linear(F.rms_norm(x, (config.hidden,), first, eps), qkv).unflatten(-1, (-1, width))
        q, k, v = y.split((heads, kv_heads, kv_heads), dim=2)
        q, k = _rotate(q, self.cos, self.sin), _rotate(k, self.cos, self.sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)
        x = x + F.linear(y.transpose(1, 2).flatten(2), o)
        gate, up = F.linear(F.rms_norm(x, (config.hidden,), second, eps), gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, down)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def replay_seconds(step: Callable[[], object], restart: Callable[[], object], steps: int, rounds: int) -> list[float]:
    """Seconds of a step that is recorded as a CUDA graph, once a round of `steps` replays from the same state."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    times = []
    for _ in range(rounds + 1):
        restart()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(steps):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / steps)
    return times[1:]
