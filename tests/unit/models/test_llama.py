"""Shape, initial weights and causality of the Llama."""

from __future__ import annotations

import pytest
import torch

from questlm import Llama
from questlm.config import ModelConfig, preset
from questlm.errors import ConfigError

PUBLISHED = {  # non-embedding parameters
    "30m": 30_482_560,
    "50m": 49_556_736,
    "100m": 102_777_856,
    "200m": 203_188_480,
    "430m": 443_068_288,
    "800m": 822_151_168,
}


def small(**shape) -> Llama:
    base = {"layers": 3, "hidden": 64, "heads": 4, "mlp_hidden": 96, "vocab_size": 50}
    return Llama(ModelConfig(**base | shape)).initialize(0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name):
    config = ModelConfig(**preset(name)["model"], vocab_size=32_000)
    with torch.device("meta"):
        model = Llama(config)
    counted = sum(p.numel() for key, p in model.named_parameters() if not key.startswith(("embed", "lm_head")))
    assert counted == config.block_parameters == PUBLISHED[name]
    assert sum(p.numel() for p in model.parameters()) == config.parameters
    assert config.head_width == 128


@pytest.mark.parametrize(
    "shape", [{"tied_head": True}, {"kv_heads": 2}, {"head_dim": 32, "kv_heads": 1}, {"mlp_hidden": None}], ids=str
)
def test_counts_of_other_shapes_agree_with_the_model(shape):
    model = small(**shape)
    assert sum(p.numel() for p in model.parameters()) == model.config.parameters


def test_initial_weights_have_the_specified_spread():
    model = small(layers=2, hidden=256, mlp_hidden=512, vocab_size=500)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
            continue
        std = 0.02 / 2 if name.endswith(("o.weight", "down.weight")) else 0.02  # sqrt(2 * 2 layers) = 2
        assert parameter.std().item() == pytest.approx(std, rel=0.02), name
        assert abs(parameter.mean().item()) < 4 * std / parameter.numel() ** 0.5, name


def test_the_seed_decides_the_weights():
    model, same, other = small(), small(), small().initialize(1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert not torch.equal(model.embed.weight, other.embed.weight)


def test_a_tied_head_is_the_embedding():
    model = small(tied_head=True)
    assert model.lm_head.weight is model.embed.weight


def test_later_tokens_do_not_change_earlier_logits():
    model, ids = small(), torch.randint(0, 50, (2, 9))
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 50
    a, b = model(ids), model(changed)
    torch.testing.assert_close(a[:, :5], b[:, :5], rtol=0, atol=1e-6)
    assert (a[:, 5:] - b[:, 5:]).abs().max() > 1e-3


def test_one_token_is_enough():
    ids = torch.tensor([[7]])
    assert small()(ids).shape == (1, 1, 50)


def test_a_model_without_a_vocabulary_is_refused():
    with pytest.raises(ConfigError, match="vocab_size"):
        Llama(ModelConfig())


def test_weights_are_the_same_where_they_are_drawn_beside_their_place():
    """As for a model on a GPU. The name `cpu:0` is another than that of the weights' own device."""
    expected = small()
    model = Llama(expected.config).initialize(0, drawn_on="cpu:0")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
