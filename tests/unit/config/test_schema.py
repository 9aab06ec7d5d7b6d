"""What the settings allow, and the one sentence for what they do not."""

from __future__ import annotations

import pytest

from questlm.config import (
    PRESETS,
    Budget,
    DataConfig,
    ModelConfig,
    QuantSpec,
    RopeScaling,
    RunConfig,
    TrainConfig,
    preset,
)
from questlm.errors import ConfigError

SECTIONS = [ModelConfig, QuantSpec, DataConfig, TrainConfig, RunConfig]


def sentence(caught: pytest.ExceptionInfo) -> str:
    message = str(caught.value)
    assert "\n" not in message
    assert "pydantic" not in message.lower()
    assert "validation error" not in message.lower()
    return message


@pytest.mark.parametrize(
    ("section", "key", "nearest"),
    [
        (ModelConfig, "layer", "layers"),
        (ModelConfig, "kv_head", "kv_heads"),
        (QuantSpec, "weights_bits", "weight_bits"),
        (QuantSpec, "embedding", "embeddings"),
        (DataConfig, "tokeniser", "tokenizer"),
        (TrainConfig, "learning_rate", None),
        (TrainConfig, "batchsize", "batch_size"),
        (Budget, "token", "tokens"),
        (RunConfig, "trian", "train"),
        (RunConfig, "zzzz", None),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_name_and_all_names(section, key, nearest):
    with pytest.raises(ConfigError) as caught:
        section(**{key: 1})
    message = sentence(caught)
    assert repr(key) in message
    assert (f"Did you mean {nearest!r}?" in message) == (nearest is not None)
    assert all(name in message for name in section.model_fields)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (ModelConfig, "layers", 0),
        (ModelConfig, "layers", 2.5),
        (ModelConfig, "layers", "many"),
        (ModelConfig, "hidden", 8),
        (ModelConfig, "norm_eps", 0),
        (ModelConfig, "rope_theta", -1.0),
        (ModelConfig, "rope_theta", float("inf")),
        (ModelConfig, "tied_head", "perhaps"),
        (ModelConfig, "rope_scaling", "linear"),
        (RopeScaling, "kind", "yarn"),
        (RopeScaling, "factor", 0.5),
        (RopeScaling, "factor", float("inf")),
        (RopeScaling, "original_max_position", 0),
        (RopeScaling, "low_freq_factor", 1e-300),
        (RunConfig, "init_from", ""),
        (RunConfig, "init_from", 3),
        (QuantSpec, "weight_bits", 0),
        (QuantSpec, "weight_bits", 9),
        (QuantSpec, "act_bits", "tenary"),
        (QuantSpec, "act_bits", None),
        (QuantSpec, "block_size", 0),
        (QuantSpec, "embeddings", "int9"),
        (DataConfig, "val_fraction", 0),
        (DataConfig, "vocab_size", 256),
        (TrainConfig, "lr", 0),
        (TrainConfig, "lr", float("nan")),
        (TrainConfig, "beta1", 1),
        (TrainConfig, "compile", "yes"),
        (TrainConfig, "loggers", ["tensorbord"]),
        (TrainConfig, "seq_len", [512]),
        (Budget, "tokens", 0),
        (Budget, "seconds", -1),
        (RunConfig, "seed", -1),
        (RunConfig, "seed", 2**63),
        (RunConfig, "model", None),
        (RunConfig, "model", 3),
    ],
)
def test_bad_values_are_refused_with_their_name_and_the_value(section, key, value):
    with pytest.raises(ConfigError) as caught:
        section(**{key: value})
    message = sentence(caught)
    assert key in message
    assert repr(value if key != "loggers" else value[0]) in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hidden": 100, "heads": 3}, "hidden 100 is not a multiple of heads 3"),
        ({"hidden": 66, "heads": 2}, "33 is odd"),
        ({"head_dim": 5}, "5 is odd"),
        ({"heads": 2, "kv_heads": 4}, "heads 2 is not a multiple of kv_heads 4"),
    ],
)
def test_shapes_that_do_not_fit_are_explained(settings, words):
    with pytest.raises(ConfigError, match=words):
        ModelConfig(**settings)


LLAMA3 = {"kind": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position": 8192}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "linear", "factor": 2, "low_freq_factor": 1}, "low_freq_factor belongs to kind 'llama3'"),
        (LLAMA3 | {"original_max_position": None}, "original_max_position belongs to kind 'llama3', which needs it"),
        (LLAMA3 | {"high_freq_factor": 1}, r"high_freq_factor 1\.0 is not larger than low_freq_factor 1\.0"),
    ],
)
def test_scaled_positions_that_do_not_fit_are_explained(settings, words):
    with pytest.raises(ConfigError, match=words):
        RopeScaling(**settings)
    with pytest.raises(ConfigError, match=words):
        ModelConfig(rope_scaling=settings)


@pytest.mark.parametrize("settings", [LLAMA3, {"kind": "linear", "factor": 1.5}])
def test_scaled_positions_survive_json(settings):
    config = ModelConfig(rope_scaling=settings)
    assert ModelConfig(**config.model_dump(mode="json")) == config


@pytest.mark.parametrize("block_size", [3, 48, 127, 1000])
def test_a_block_size_is_a_power_of_two(block_size):
    with pytest.raises(ConfigError, match=f"block_size {block_size} is not a power of two"):
        QuantSpec(block_size=block_size)


def test_a_micro_batch_divides_the_batch():
    with pytest.raises(ConfigError, match="batch_size 512 is not a multiple of micro_batch_size 100"):
        TrainConfig(batch_size=512, micro_batch_size=100)
    assert TrainConfig(batch_size=12, micro_batch_size=4).micro_batch_size == 4


def test_errors_in_a_section_say_where():
    with pytest.raises(ConfigError) as caught:
        RunConfig(model={"layers": 0})
    assert "model" in sentence(caught)
    assert "layers = 0" in str(caught.value)
    with pytest.raises(ConfigError, match=r"train.*'lrr'.*Did you mean 'lr'"):
        RunConfig(train={"lrr": 1})


@pytest.mark.parametrize("given", [{}, {"tokens": 1, "seconds": 2}, {"tokens": 1, "tokens_per_param": 2, "seconds": 3}])
def test_a_budget_is_exactly_one_thing(given):
    with pytest.raises(ConfigError, match="exactly one of tokens, tokens_per_param and seconds") as caught:
        Budget(**given)
    assert all(name in str(caught.value) for name in given)
    with pytest.raises(ConfigError, match=r"budget.*exactly one"):
        RunConfig(budget=given)


def test_steps_follow_from_the_budget():
    train = TrainConfig(batch_size=4, seq_len=100)
    assert RunConfig(train=train, budget={"tokens": 4_399}).total_steps() == 10
    assert RunConfig(train=train, budget={"tokens": 1}).total_steps() == 1
    assert RunConfig(train=train, budget={"seconds": 60}).total_steps() is None
    per_param = RunConfig(budget={"tokens_per_param": 2.5})
    assert per_param.token_budget() == round(2.5 * per_param.model.block_parameters)


@pytest.mark.parametrize("section", [*SECTIONS, Budget])
def test_settings_are_frozen(section):
    config = section(**({"tokens": 5} if section is Budget else {}))
    name = next(iter(section.model_fields))
    with pytest.raises(Exception, match="frozen"):
        setattr(config, name, getattr(config, name))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8, 16, "ternary"])
def test_every_width_is_accepted(bits):
    spec = QuantSpec(weight_bits=bits, act_bits=bits)
    assert spec.enabled == (bits != 16)
    assert QuantSpec(weight_bits=bits, act_bits=16).enabled == (bits != 16)


@pytest.mark.parametrize(
    ("weight", "act", "label"),
    [(4, 4, "quest-w4a4"), ("ternary", 8, "quest-wta8"), (4, 16, "quest-w4a16"), (16, 16, "bf16")],
)
def test_labels(weight, act, label):
    assert QuantSpec(weight_bits=weight, act_bits=act).label == label


@pytest.mark.parametrize(("hidden", "width"), [(640, 1792), (768, 2048), (1024, 2816), (1280, 3584), (96, 256)])
def test_mlp_width_is_eight_thirds_rounded_up_to_256(hidden, width):
    assert ModelConfig(hidden=hidden, heads=2).mlp_width == width


PUBLISHED = {  # blocks, hidden, heads, learning rate
    "30m": (6, 640, 5, 1.2e-3),
    "50m": (7, 768, 6, 1.2e-3),
    "100m": (8, 1024, 8, 6e-4),
    "200m": (10, 1280, 10, 3e-4),
    "430m": (13, 1664, 13, 1.5e-4),
    "800m": (16, 2048, 16, 7.5e-5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_runs(name):
    config = RunConfig(**preset(name))
    assert (config.model.layers, config.model.hidden, config.model.heads, config.train.lr) == PUBLISHED[name]
    assert (config.train.batch_size, config.train.seq_len, config.train.warmup) == (512, 512, 0.1)
    assert (config.train.beta1, config.train.beta2, config.train.weight_decay) == (0.9, 0.95, 0.1)
    assert (config.train.grad_clip, config.train.warmup_start, config.train.final_lr) == (1.0, 0.01, 0.1)
    assert (config.model.norm_eps, config.model.rope_theta, config.model.tied_head) == (1e-5, 1e4, False)
    assert config.budget.tokens_per_param == 100


SMALL = {  # non-embedding parameters, learning rate
    "125k": (131_392, 3e-3),
    "250k": (262_720, 3e-3),
    "500k": (524_928, 3e-3),
    "1m": (1_049_728, 3e-3),
    "2m": (2_099_328, 3e-3),
    "4m": (4_262_656, 3e-3),
    "8m": (7_672_576, 3e-3),
    "15m": (14_162_304, 2e-3),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_presets_are_one_family(name):
    config = RunConfig(**preset(name))
    model, train = config.model, config.train
    assert (model.block_parameters, train.lr) == SMALL[name]
    named = float(name[:-1]) * {"k": 1e3, "m": 1e6}[name[-1]]
    assert abs(model.block_parameters / named - 1) < 0.07
    assert model.head_width == 64
    assert model.hidden == 64 or model.hidden % 128 == 0
    assert (config.data.vocab_size, train.seq_len, train.batch_size) == (2048, 256, 8)
    assert (train.optimizer, train.schedule, train.final_lr) == ("muon", "linear", 0.0)


def test_the_rule_of_small_learning_rates_meets_the_published_one():
    widest, first_published = RunConfig(**preset("15m")), RunConfig(**preset("30m"))
    product = widest.train.lr * widest.model.hidden
    assert product == pytest.approx(first_published.train.lr * first_published.model.hidden)


def test_preset_names():
    assert set(PRESETS) == {"nano", "golf-16mb", "3b", *SMALL, *PUBLISHED}
    assert preset("30M") == preset("30m")
    with pytest.raises(ConfigError, match=r"'30mm'.*Did you mean '30m'.*800m"):
        preset("30mm")


def test_changing_what_preset_returns_changes_no_preset():
    preset("30m")["model"]["layers"] = 1
    assert preset("30m")["model"]["layers"] == 6


@pytest.mark.parametrize(
    ("section", "update", "words"),
    [
        (ModelConfig(), {"vocab_size": 5_000_000}, "vocab_size = 5000000 cannot be used"),
        (ModelConfig(), {"heads": 3}, "hidden 256 is not a multiple of heads 3"),
        (ModelConfig(), {"layer": 3}, "unknown setting 'layer'.*Did you mean 'layers'"),
        (TrainConfig(), {"lr": float("nan")}, "lr = nan cannot be used"),
        (QuantSpec(), {"weight_bits": 9}, "weight_bits = 9 cannot be used"),
        (RunConfig(), {"model": {"layers": 0}}, "layers = 0 cannot be used"),
        (RunConfig(), {"budget": Budget(tokens=1).model_dump() | {"seconds": 1}}, "exactly one"),
    ],
)
def test_a_changed_copy_is_validated(section, update, words):
    with pytest.raises(ConfigError, match=words):
        section.model_copy(update=update)


def test_a_copy_knows_what_was_set():
    quant = QuantSpec(method="lsq", overrides={"lm_head": 8})
    copy = quant.model_copy(update={"act_bits": 2})
    assert copy == QuantSpec(method="lsq", overrides={"lm_head": 8}, act_bits=2)
    assert copy.model_fields_set == {"method", "overrides", "act_bits"}
    assert quant.model_copy() == quant
    assert quant.model_copy(update={}).model_fields_set == quant.model_fields_set
    run = RunConfig(quant=quant).model_copy(update={"seed": 3})
    assert run.model_fields_set == {"quant", "seed"}
    assert run.quant.model_fields_set == {"method", "overrides"}


@pytest.mark.parametrize("text", ["a\0b", "half \ud800 a pair"])
def test_text_that_no_file_can_hold_is_refused(text):
    with pytest.raises(ConfigError, match=r"source = 'a\\x00b'|source = 'half \\ud800 a pair'"):
        DataConfig(source=text)


def test_a_message_is_short_whatever_the_value():
    for values in (
        {"layers": ["a" * 1000] * 1000},
        {"x" * 100_000: 1},
        {"layers": "\x1b[31m" * 1000},
        {"layers": 10**5000},
    ):
        with pytest.raises(ConfigError) as caught:
            ModelConfig(**values)
        assert len(str(caught.value)) < 400
        assert str(caught.value).isprintable()


def test_the_repr_of_a_spec_says_what_differs_from_the_defaults_and_makes_it_again() -> None:
    assert repr(QuantSpec()) == "QuantSpec(method='quest', weight_bits=4, act_bits=4)"
    spec = QuantSpec(method="lsq", weight_bits=2, act_bits=16, overrides={"lm_head": 8})
    assert str(spec) == repr(spec)
    assert "overrides={'lm_head': LayerOverride(" in repr(spec) and "block_size" not in repr(spec)
    ternary = QuantSpec(format="ternary", steps="fp16")
    assert eval(repr(ternary), {"QuantSpec": QuantSpec}) == ternary
