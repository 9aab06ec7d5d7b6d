"""Counts operations and bytes of a training step from the shape of the model: nothing here is measured.

    python benchmarks/count_work.py --preset 800m --micro-batch 32

Counted are products (2 operations for each multiplication and addition; causal attention as the half that it is), and
the bytes that pass between memory and GPU around the products of the blocks: what makes a linear layer's input from
what is there, and its gradient, if each kernel reads and writes each of its tensors once. What the products and
attention read and write themselves is not in it; it is the same for both, but for float8 factors, which are half of
bf16 ones.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any

from questlm.config import ModelConfig, preset


@dataclass(frozen=True)
class Shape:
    """A model and the tokens of one micro-batch."""

    model: ModelConfig
    tokens: int
    seq_len: int

    @property
    def inputs(self) -> dict[str, int]:
        """Width of each tensor that linear layers of a block take, by what it comes from."""
        attention = self.model.heads * self.model.head_width
        return {"norms": 2 * self.model.hidden, "attention": attention, "swiglu": self.model.mlp_width}


def operations(shape: Shape) -> dict[str, float]:
    """Operations of a forward and a backward pass, by kind."""
    model, tokens = shape.model, shape.tokens
    linear = model.block_parameters - model.hidden - 2 * model.hidden * model.layers  # without the norms' gains
    head = model.hidden * (model.vocab_size or 0)
    attention = 2 * shape.seq_len * model.heads * model.head_width * model.layers / 2
    return {
        "linear layers, forward": 2.0 * linear * tokens,
        "linear layers, backward": 4.0 * linear * tokens,
        "head, forward and backward": 6.0 * head * tokens,
        "attention, forward and backward": 2.0 * attention * tokens * 3.5,  # flash attention: 2 products, then 5
        "rotations, forward and backward": 2.0 * 128 * sum(shape.inputs.values()) * model.layers * tokens * 2,
    }


MOVED: dict[str, dict[str, tuple[float, float]]] = {
    "bf16": {"norms": (12, 16), "attention": (0, 0), "swiglu": (6, 10), "weights": (6, 6)},
    "quantised": {
        "norms": (13.125, 17.125),
        "attention": (3.125, 7.125),
        "swiglu": (5.125, 13.125),
        "weights": (5.125, 11.125),
    },
}
"""Bytes an entry moved in the forward and the backward pass, by what makes the entry.

bf16, compiled. Norms: x (4) and what is added to it (2) read, their sum (4) and h (2) written; backward dh (2), the
sum (4) and its gradient (4) read, that of x in float32 and bf16 written (6). SwiGLU: gate and up read, h written;
backward dh, gate and up read, two gradients written. Weights: float32 read, bf16 written; backward bf16 read, float32
written.

Quantised, fused. Codes (1) and mask bits (1/8) take the place of h; the norm writes x / rms (2) as well, and reads it
instead of the sum (4). The attention's output is read (2) and encoded. Backward, each kernel reads bits, and codes (1)
are written as bf16 (2) for the products that give the gradients: 3 an entry.
"""

SAVED: dict[str, dict[str, float]] = {
    "bf16": {"norms": 4 + 2, "attention": 2, "swiglu": 2 + 2 + 2, "weights": 2},
    "quantised": {"norms": 2 + 1.125, "attention": 2 + 1.125, "swiglu": 2 + 2 + 1.125, "weights": 1.125},
}
"""Bytes an entry kept for the backward pass: inputs of norms and of the activation, the attention's output, and the
linear layers' inputs; not what attention keeps besides, nor the logits."""


def entries(shape: Shape) -> dict[str, float]:
    """Entries of all blocks, by what makes them."""
    layers, model = shape.model.layers, shape.model
    made: dict[str, float] = {name: width * layers * shape.tokens for name, width in shape.inputs.items()}
    return made | {"weights": model.block_parameters - model.hidden * (1 + 2 * layers)}


def moved_bytes(shape: Shape) -> dict[str, dict[str, float]]:
    """Bytes moved forward and backward by all blocks in one pass of a micro-batch."""
    size = entries(shape)
    return {
        way: {
            "forward": sum(size[name] * forward for name, (forward, _) in table.items()),
            "backward": sum(size[name] * backward for name, (_, backward) in table.items()),
        }
        for way, table in MOVED.items()
    }


def saved_bytes(shape: Shape) -> dict[str, float]:
    """Bytes that all blocks keep for the backward pass."""
    size = entries(shape)
    return {way: sum(size[name] * kept for name, kept in table.items()) for way, table in SAVED.items()}


def count(shape: Shape) -> dict[str, Any]:
    """Operations, bytes moved, bytes saved."""
    return {"operations": operations(shape), "moved_bytes": moved_bytes(shape), "saved_bytes": saved_bytes(shape)}


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="800m")
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    arguments = parser.parse_args()
    model = ModelConfig(**{"vocab_size": arguments.vocab_size} | preset(arguments.preset)["model"])
    shape = Shape(model, arguments.micro_batch * arguments.seq_len, arguments.seq_len)
    print(json.dumps(count(shape), indent=2))


if __name__ == "__main__":
    main()
