"""What a step exchanges, from the settings: `tests/integration/test_distributed.py` compares it with a real step."""

from __future__ import annotations

from questlm.config import ModelConfig, ParallelConfig, QuantSpec
from questlm.scaling.exchange import Exchanged, exchanged_bytes

MODEL = ModelConfig(layers=2, hidden=64, heads=2, mlp_hidden=128, vocab_size=256)
QUANT = QuantSpec(weight_bits=4, act_bits=4)


def test_replicas_exchange_all_gradients_once() -> None:
    whole = exchanged_bytes(MODEL, QUANT, "ddp", 4, ParallelConfig())
    assert whole == Exchanged(all_reduce=4.0 * MODEL.parameters)
    assert whole.sent(4) == 6.0 * MODEL.parameters
    half = exchanged_bytes(MODEL, QUANT, "replicas", 4, ParallelConfig(gradients="bf16"), micro_batches=3)
    assert half.all_reduce == whole.all_reduce / 2


def test_codes_kept_for_the_step_are_gathered_once() -> None:
    rows, entries = 2 * (5 * 64 + 2 * 128), 2 * (4 * 64 * 64 + 3 * 64 * 128)
    norms, outer = 4 * 2 * 2 * 64, 2 * 2 * 256 * 64 + 4 * 64
    packed = exchanged_bytes(MODEL, QUANT, "fsdp", 2, ParallelConfig(), micro_batches=3)
    assert 2 * packed.all_gather == 6 * (entries // 2 + 4 * rows + norms) + 3 * outer
    kept = ParallelConfig(gather="operand", keep_gathered=True)
    operand = exchanged_bytes(MODEL, QUANT, "fsdp", 2, kept, micro_batches=3)
    assert 2 * operand.all_gather == entries + 4 * rows + norms + outer
    assert operand.reduce_scatter == 4.0 * MODEL.parameters


def test_matrices_that_are_not_quantised_travel_in_bf16_where_they_are_multiplied_so() -> None:
    dense = QuantSpec(weight_bits=16, act_bits=16, embeddings="float")
    gpu = exchanged_bytes(MODEL, dense, "fsdp", 2, ParallelConfig())
    cpu = exchanged_bytes(MODEL, dense, "fsdp", 2, ParallelConfig(), half=False)
    entries = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert 2 * (cpu.all_gather - gpu.all_gather) == 2 * 2 * entries + 2 * 256 * 64
