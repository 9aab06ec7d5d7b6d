"""Bytes of a packed model, known before it is trained. No torch.

The same count as `questlm.artifact.format.expected_tensors` makes of an artifact: a test holds the two together. On top
come a few kilobytes of names and manifest, and the tokenizer.
"""

from __future__ import annotations

from questlm.config import ModelConfig, QuantSpec
from questlm.errors import ConfigError
from questlm.grid import TERNARY_PER_BYTE

__all__ = ["LEARNED", "packed_bytes"]

_NUMBER = 4  # bytes of a row's step, of a learned number, of a norm's entry
_STORED = {"float": 2, "bf16": 2, "int8": 1}  # bytes an entry of what is not quantised; "float" is packed as bf16

LEARNED = {"lsq": 1, "lsq-row": 1, "seq": 1, "pact": 1, "lsq+": 2}  # numbers a layer for its activations
_NORMED = {"bitnet", "extra-rmsnorm"}  # a norm before each layer
_UNKNOWN = {"adabin", "pquant"}


def packed_bytes(model: ModelConfig, quant: QuantSpec) -> int:
    """Bytes of the tensors that `quest pack` writes: codes and steps of the blocks, embedding, head, norms.

    Raises:
        ConfigError: `model.vocab_size` is not set; settings for single layers, or a method that cuts layers in parts.
    """
    if quant.overrides or quant.method in _UNKNOWN:
        raise ConfigError(
            f"the packed size of {quant.label} is not known before it is packed; it is for models without overrides, "
            f"of methods other than {' and '.join(sorted(_UNKNOWN))}"
        )
    if model.vocab_size is None:
        raise ConfigError("the packed size of a model needs model.vocab_size, which is not set yet")
    hidden, attention, keys = model.hidden, model.heads * model.head_width, model.key_value_heads * model.head_width
    matrices = [(attention, hidden), (keys, hidden), (keys, hidden), (hidden, attention)]
    matrices += [(model.mlp_width, hidden), (model.mlp_width, hidden), (hidden, model.mlp_width)]
    block = sum(_matrix(rows, columns, quant) for rows, columns in matrices) + 2 * _NUMBER * hidden
    tables = 1 if model.tied_head else 2
    return model.layers * block + _NUMBER * hidden + tables * _table(model.vocab_size, hidden, quant)


def _matrix(rows: int, columns: int, quant: QuantSpec) -> int:
    if not quant.enabled:
        return _table(rows, columns, quant)
    if quant.format == "bf16-2:4":
        return rows * (columns + -(-columns // 8))
    if quant.weight_bits == 16:
        return 4 * rows * columns  # beside quantised activations they are float32
    more = _NUMBER * (LEARNED.get(quant.method, 0) + (columns if quant.method in _NORMED else 0))
    if quant.format == "int-2:4":
        return rows * (_codes(columns // 2, quant) + -(-columns // 16) + _NUMBER) + more  # pairs: a bit says which
    return rows * (_codes(columns, quant) + _NUMBER) + more


def _table(rows: int, columns: int, quant: QuantSpec) -> int:
    return rows * (columns * _STORED[quant.embeddings] + (_NUMBER if quant.embeddings == "int8" else 0))


def _codes(count: int, quant: QuantSpec) -> int:
    if quant.weight_bits == "ternary":
        return -(-count // TERNARY_PER_BYTE)
    return -(-count * int(quant.weight_bits) // 8)
