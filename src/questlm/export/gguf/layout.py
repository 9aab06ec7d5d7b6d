"""Names and settings of a Llama in a GGUF file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from questlm.config import ModelConfig
from questlm.config.hugging_face import hugging_face_family

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["BLOCK_NAMES", "OUTER_NAMES", "add_shape", "architecture"]

BLOCK_NAMES = {
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
"""What is called blk.N.NAME, by our name within a block."""

OUTER_NAMES = {"embed": "token_embd", "norm": "output_norm", "lm_head": "output"}

architecture = hugging_face_family
"""The architecture of llama.cpp that computes a model of this shape: it has the names of transformers."""


def add_shape(writer: GGUFWriter, model: ModelConfig, context: int) -> None:
    """Add what a file says of the shape of a model.

    Args:
        context: tokens of the longest text that it was trained on.
    """
    writer.add_vocab_size(model.vocab_size or 0)
    writer.add_context_length(context)
    writer.add_embedding_length(model.hidden)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.mlp_width)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.key_value_heads)
    writer.add_key_length(model.head_width)
    writer.add_value_length(model.head_width)
    writer.add_layer_norm_rms_eps(model.norm_eps)
    writer.add_rope_dimension_count(model.head_width)
    writer.add_rope_freq_base(model.rope_theta)
