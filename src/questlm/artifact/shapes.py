"""Names and shapes of a model's matrices and norms, by its settings alone."""

from __future__ import annotations

from questlm.config import ModelConfig

__all__ = ["biased_matrices", "block_norms", "block_shapes", "matrix_shapes", "norm_widths"]


def block_shapes(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return (out, in) of each linear layer of a block, by its name within the block."""
    hidden, width, mlp = model.hidden, model.head_width, model.mlp_width
    return {
        "attention.q": (model.heads * width, hidden),
        "attention.k": (model.key_value_heads * width, hidden),
        "attention.v": (model.key_value_heads * width, hidden),
        "attention.o": (hidden, model.heads * width),
        "mlp.gate": (mlp, hidden),
        "mlp.up": (mlp, hidden),
        "mlp.down": (hidden, mlp),
    }


def matrix_shapes(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return (out, in) of each matrix by module name: embedding, linear layers, and the head unless it is tied."""
    block, outer = block_shapes(model), (model.vocab_size or 0, model.hidden)
    shapes = {"embed": outer}
    shapes |= {f"layers.{index}.{name}": shape for index in range(model.layers) for name, shape in block.items()}
    return shapes if model.tied_head else shapes | {"lm_head": outer}


def block_norms(model: ModelConfig) -> dict[str, int]:
    """Return the size of each norm's weight of a block, by its name within the block."""
    block = {"attention_norm": model.hidden, "mlp_norm": model.hidden}
    if model.qk_norm:
        block |= {"attention.q_norm": model.head_width, "attention.k_norm": model.head_width}
    return block


def norm_widths(model: ModelConfig) -> dict[str, int]:
    """Return the size of each norm's weight by module name."""
    block = block_norms(model)
    widths = {f"layers.{index}.{name}": width for index in range(model.layers) for name, width in block.items()}
    return widths | {"norm": model.hidden}


def biased_matrices(model: ModelConfig) -> list[str]:
    """Return the names of the matrices that have a bias beside them."""
    if not model.qkv_bias:
        return []
    return [f"layers.{index}.attention.{part}" for index in range(model.layers) for part in "qkv"]
