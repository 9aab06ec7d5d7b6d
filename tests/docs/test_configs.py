"""Every shipped config loads, and is the published run that it says it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from questlm.config import RunConfig, load_config

CONFIGS = Path(__file__).parents[2] / "configs"

# QuEST, arXiv 2502.05003: blocks, hidden, heads, learning rate, billions of tokens, non-embedding parameters.
SIZES = {
    "30m": (6, 640, 5, 1.2e-3, 3, 30_482_560),
    "50m": (7, 768, 6, 1.2e-3, 5, 49_556_736),
    "100m": (8, 1024, 8, 6e-4, 10, 102_777_856),
    "200m": (10, 1280, 10, 3e-4, 20, 203_188_480),
    "430m": (13, 1664, 13, 1.5e-4, 43, 443_068_288),
    "800m": (16, 2048, 16, 7.5e-5, 80, 822_151_168),
}
# C4 validation loss, nats a token, by size in the order above.
LOSSES = {
    16: (3.207, 3.068, 2.886, 2.729, 2.571, 2.461),
    4: (3.272, 3.135, 2.948, 2.782, 2.614, 2.495),
    3: (3.372, 3.226, 3.037, 2.861, 2.678),
    2: (3.574, 3.441, 3.236, 3.046),
    1: (3.945, 3.791, 3.601, 3.423, 3.224, 3.079),
}
RUNS = [(bits, size, loss) for bits, losses in LOSSES.items() for size, loss in zip(SIZES, losses, strict=False)]


def _path(bits: int, size: str) -> Path:
    return CONFIGS / (f"bf16-{size}.yaml" if bits == 16 else f"quest-{size}-w{bits}a{bits}.yaml")


def test_there_is_one_config_for_each_published_run_and_no_other() -> None:
    assert {path.name for path in CONFIGS.glob("*.yaml")} == {_path(bits, size).name for bits, size, _ in RUNS}


@pytest.mark.parametrize(("bits", "size", "loss"), RUNS)
def test_a_config_is_the_published_run(bits: int, size: str, loss: float) -> None:
    path = _path(bits, size)
    config = load_config(file=path)
    blocks, hidden, heads, lr, billions, parameters = SIZES[size]
    assert (config.model.layers, config.model.hidden, config.model.heads) == (blocks, hidden, heads)
    assert config.model.head_width == 128
    assert config.model.block_parameters == parameters
    assert config.model.vocab_size == 32_000
    assert not config.model.tied_head
    assert (config.quant.weight_bits, config.quant.act_bits) == (bits, bits)
    assert config.train.lr == lr
    assert (config.train.batch_size, config.train.seq_len) == (512, 512)
    assert config.token_budget() == billions * 10**9
    assert config.data.source == "hf:allenai/c4:en"
    assert config.data.tokenizer == "llama-2-tokenizer.json"
    assert f"loss {loss:.3f} nats/token" in path.read_text().splitlines()[0]


def test_the_rest_of_the_protocol_is_the_default() -> None:
    train, reference = load_config(file=_path(4, "30m")).train, RunConfig().train
    assert (train.beta1, train.beta2, train.weight_decay, train.grad_clip) == (0.9, 0.95, 0.1, 1.0)
    assert (train.warmup, train.warmup_start, train.final_lr) == (0.1, 0.01, 0.1)
    chosen = {"batch_size": reference.batch_size, "micro_batch_size": reference.micro_batch_size}
    assert train.model_copy(update=chosen) == reference


def test_the_table_in_the_readme_is_the_published_one() -> None:
    rows = [line.strip("| ").split(" | ") for line in (CONFIGS / "README.md").read_text().splitlines() if "|" in line]
    table = {row[0]: tuple(float(cell) for cell in row[1:] if cell.strip(" |")) for row in rows[2:]}
    assert table == {"bf16" if bits == 16 else f"w{bits}a{bits}": losses for bits, losses in LOSSES.items()}
