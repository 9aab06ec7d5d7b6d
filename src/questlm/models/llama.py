"""Llama: RMSNorm before each half of a block, rotary positions, grouped-query attention, SwiGLU, no biases.

Two families differ by one thing, which the config asks for: Qwen2 has biases of queries, keys and values; Qwen3 has
norms of each head of queries and keys.

Knows nothing of quantisation: `questlm.prepare` swaps its `nn.Linear`s. Weights are (out_features, in_features).
"""

from __future__ import annotations

import math
import re
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questlm.config import ModelConfig
from questlm.errors import ConfigError
from questlm.models.cache import CacheStep, KVCache
from questlm.ops import ResidualNorm, SwiGLU

__all__ = ["Llama", "rotary_angles", "rotary_frequencies"]

_INIT_STD = 0.02
_PLAIN = re.compile(
    r"(embed|lm_head|norm|layers\.\d+\.(attention\.([qkvo]|[qk]_norm)|mlp\.(gate|up|down)|(attention|mlp)_norm))\.weight"
    r"|layers\.\d+\.attention\.[qkv]\.bias"
)


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = config.heads, config.key_value_heads, config.head_width
        self.q = nn.Linear(config.hidden, self.heads * self.width, bias=config.qkv_bias)
        self.k = nn.Linear(config.hidden, self.kv_heads * self.width, bias=config.qkv_bias)
        self.v = nn.Linear(config.hidden, self.kv_heads * self.width, bias=config.qkv_bias)
        self.q_norm = nn.RMSNorm(self.width, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(self.width, eps=config.norm_eps) if config.qk_norm else None
        self.o = nn.Linear(self.heads * self.width, config.hidden, bias=False)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], layer: int, past: CacheStep | None) -> Tensor:
        """Return the output (batch, tokens, hidden) for an input of that shape."""
        q = self.q(x)
        y = self.attend(q, self.k(x), self.v(x), angles, layer, past)
        projected: Tensor = self.o(y if past is None else y.to(q.dtype))  # attention is in the dtype of the cache
        return projected

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, angles: tuple[Tensor, Tensor], layer: int, past: CacheStep | None
    ) -> Tensor:
        """Return what the heads read, (batch, tokens, heads * width), from the projections of the same tokens."""
        batch, tokens, _ = q.shape
        q = q.view(batch, tokens, self.heads, self.width).transpose(1, 2)
        k = k.view(batch, tokens, self.kv_heads, self.width).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).to(q.dtype), self.k_norm(k).to(k.dtype)
        q, k = _rotate(q, angles), _rotate(k, angles)
        v = v.view(batch, tokens, self.kv_heads, self.width).transpose(1, 2)
        mask = None
        if past is not None:
            k, v = past.extend(layer, k, v)
            q, mask = q.to(k.dtype), past.mask
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None and tokens > 1, enable_gqa=self.heads != self.kv_heads
        )
        return y.transpose(1, 2).reshape(batch, tokens, self.heads * self.width)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    feeds: ClassVar = {"activation": ("down",)}
    takes: ClassVar = {"activation": ("gate", "up")}
    """What takes whose output, and nothing else does: by this `questlm.quant.layers.fused` knows what to do at once."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden, config.mlp_width, bias=False)
        self.up = nn.Linear(config.hidden, config.mlp_width, bias=False)
        self.activation = SwiGLU()
        self.down = nn.Linear(config.mlp_width, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (batch, tokens, hidden) for an input of that shape."""
        y: Tensor = self.down(self.activation(self.gate(x), self.up(x)))
        return y


class Block(nn.Module):
    """One transformer block: attention and MLP, each behind a norm and added to the residual."""

    feeds: ClassVar = {
        "attention_norm": ("attention.q", "attention.k", "attention.v"),
        "mlp_norm": ("mlp.gate", "mlp.up"),
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = ResidualNorm(config.hidden, eps=config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = ResidualNorm(config.hidden, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], layer: int, past: CacheStep | None) -> Tensor:
        """Return the output (batch, tokens, hidden) for an input of that shape."""
        x, normed = self.attention_norm(x)
        x, normed = self.mlp_norm(x, self.attention(normed, angles, layer, past))
        y: Tensor = x + self.mlp(normed)
        return y


class Llama(nn.Module):
    """A Llama of the shape `config`, with weights drawn by `initialize` (the constructor leaves torch's defaults)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ConfigError("a model needs model.vocab_size; it is None")
        self.config = config
        self.embed = _embedding(config.vocab_size, config.hidden)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.lm_head = nn.Linear(config.hidden, config.vocab_size, bias=False)
        if config.tied_head:
            self.lm_head.weight = self.embed.weight

    def initialize(self, seed: int, drawn_on: str | torch.device | None = None) -> Llama:
        """Draw all weights: N(0, 0.02); into the residual N(0, 0.02 / sqrt(2 layers)); norms 1; biases 0.

        Args:
            drawn_on: the device whose random numbers are taken, one weight after the other; None: that of the weights.
                Those of a CPU and a GPU differ.
        """
        if self.embed.weight.is_meta:
            raise ConfigError("a model on the meta device has no memory for weights; call to_empty(device=...) first")
        for name, _ in self.named_parameters():
            if not _PLAIN.fullmatch(name):
                raise ConfigError(
                    f"{name} is not a weight of a plain Llama; draw the weights first, then prepare the model"
                )
        source = torch.device(drawn_on or self.embed.weight.device)
        generator = torch.Generator(device=source).manual_seed(seed)
        residual_std = _INIT_STD / (2 * self.config.layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.constant_(parameter, 0.0 if name.endswith(".bias") else 1.0)
            else:
                into_residual = name.endswith(("attention.o.weight", "mlp.down.weight"))
                std = residual_std if into_residual else _INIT_STD
                drawn = parameter.detach() if parameter.device == source else torch.empty_like(parameter, device=source)
                parameter.detach().copy_(nn.init.normal_(drawn, std=std, generator=generator))
        return self

    def forward(
        self, ids: Tensor, cache: KVCache | None = None, targets: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (batch, tokens, vocab_size) of token ids (batch, tokens), which continue what `cache` holds.

        With `targets` (batch, tokens), the tokens after each, what `head_loss` gives instead: the blocks and it can be
        compiled each by itself, which takes seconds where the whole model takes minutes.
        """
        x = self._run_blocks(ids, cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        if targets is not None:
            return self.head_loss(x, targets)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits

    def next_logits(self, ids: Tensor, cache: KVCache, counts: Tensor | None = None) -> Tensor:
        """Logits (batch, vocab_size) of the token that follows `ids`, which continue what `cache` holds.

        Costs one row of logits a sequence, where `forward` costs one a token.

        Args:
            ids: (batch, tokens).
            counts: how many of each row's ids are tokens, (batch,) int64 on the device; padding follows them, and the
                cache forgets it. Logits of a row without tokens mean nothing. None: all are tokens.
        """
        x = self._run_blocks(ids, cache)
        cache.advance(ids.shape[1], counts)
        rows = torch.arange(len(x), device=x.device)
        last = x[:, -1] if counts is None else x[rows, (counts - 1).clamp_min(0)]
        logits: Tensor = self.lm_head(self.norm(last))
        return logits

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty float32 cache for `capacity` tokens of each of `batch` sequences, where the model is."""
        return KVCache(self.config, batch, capacity, torch.float32, self.embed.weight.device)

    def _run_blocks(self, ids: Tensor, cache: KVCache | None) -> Tensor:
        """The residual (batch, tokens, hidden) behind the last block."""
        if cache is None:
            past = None
            angles = rotary_angles(torch.arange(ids.shape[1], device=ids.device), self.config)
        else:
            past = cache.step(*ids.shape)
            angles = rotary_angles(past.positions[:, None], self.config)
        x: Tensor = self.embed(ids)
        for index, block in enumerate(self.layers):
            x = block(x, angles, index, past)
        return x

    def head_loss(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of `targets` in nats, and the last tokens' logits (batch, vocab_size) float32.

        x is the residual (batch, tokens, hidden) behind the last block.
        """
        logits = self.lm_head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()), logits[:, -1].detach().float()


def _embedding(entries: int, width: int) -> nn.Embedding:
    weight = torch.empty(entries, width)
    if weight.is_meta:  # drawing normal numbers there imports torch's compiler, which takes a second
        return nn.Embedding.from_pretrained(weight, freeze=False)
    return nn.Embedding(entries, width)


def rotary_angles(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin, (..., tokens, width) float32, of positions (..., tokens)."""
    half = positions[..., None].float() * rotary_frequencies(config, positions.device)
    angles = torch.cat((half, half), dim=-1)
    return angles.cos(), angles.sin()


def rotary_frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """Return by how many radians each pair of entries turns a position: (width / 2) float32, fastest first."""
    exponents = torch.arange(0, config.head_width, 2, dtype=torch.float32, device=device) / config.head_width
    frequencies: Tensor = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    slow = frequencies / scaling.factor
    low, high, original = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position
    if low is None or high is None or original is None:  # linear
        return slow
    waves = frequencies * (original / (2 * math.pi))  # in the length first trained on
    kept = ((waves - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * slow


def _rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate entry i with entry i + width/2, as Hugging Face does: (batch, heads, tokens, width)."""
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
