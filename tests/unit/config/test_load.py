"""Layers of settings: preset, file, flags, --set; and the file that repeats a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from questlm.config import PRESETS, Budget, ModelConfig, QuantSpec, RunConfig, TrainConfig, load_config, to_yaml
from questlm.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_nothing_given_is_the_default():
    assert load_config() == RunConfig()


def test_later_layers_win(write):
    file = write("preset: 30m\nmodel: {layers: 7, heads: 10}\ntrain: {seq_len: 64, batch_size: 8}\n")
    config = load_config(
        file=file, flags={"train": {"batch_size": 16, "lr": 1e-2}}, overrides=["train.lr=5e-3", "train.lr=6e-4"]
    )
    assert config.model.hidden == 640  # preset
    assert (config.model.layers, config.model.heads, config.train.seq_len) == (7, 10, 64)  # file over preset
    assert config.train.batch_size == 16  # flag over file
    assert config.train.lr == 6e-4  # the last --set over all


def test_a_preset_argument_wins_over_the_one_in_the_file(write):
    config = load_config(preset="50m", file=write("preset: 30m\nseed: 3\n"))
    assert (config.model.hidden, config.seed) == (768, 3)


def test_a_new_budget_replaces_the_old_one_whole(write):
    file = write("budget: {tokens_per_param: 20}\n")
    assert load_config(file=file).budget == Budget(tokens_per_param=20)
    assert load_config(file=file, flags={"budget": {"seconds": 60}}).budget == Budget(seconds=60)
    assert load_config(file=file, overrides=["budget.tokens=3e9"]).budget == Budget(tokens=3_000_000_000)
    with pytest.raises(ConfigError, match=r"exactly one.*tokens and seconds"):
        load_config(file=write("budget: {tokens: 1, seconds: 2}\n"))


@pytest.mark.parametrize("text", ["", "# only a comment\n", "{}", "quant: {weight_bits: 2}\n"])
def test_a_run_trains_embeddings_in_the_form_that_ships_unless_told_otherwise(write, text):
    assert load_config(file=write(text)).quant.embeddings == "bf16"
    assert load_config(file=write(text), overrides=["quant.embeddings=int8"]).quant.embeddings == "int8"
    assert QuantSpec().embeddings == RunConfig().quant.embeddings == "bf16"


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.lr=6e-4", "train", "lr", 6e-4),
        ("train.lr=.001", "train", "lr", 1e-3),
        ("train.lr = 1E-3", "train", "lr", 1e-3),
        ("train.batch_size=32", "train", "batch_size", 32),
        ("train.loggers=[tensorboard, wandb]", "train", "loggers", ("tensorboard", "wandb")),
        ("train.loggers=[]", "train", "loggers", ()),
        ("train.eval_every=null", "train", "eval_every", None),
        ("train.device=cuda:1", "train", "device", "cuda:1"),
        ("model.tied_head=true", "model", "tied_head", True),
        ("quant.weight_bits=ternary", "quant", "weight_bits", "ternary"),
        ("quant.weight_bits=3", "quant", "weight_bits", 3),
        ("data.source=a=b.txt", "data", "source", "a=b.txt"),
        ("data.source=hf:allenai/c4:en", "data", "source", "hf:allenai/c4:en"),
    ],
)
def test_set_reads_the_value_as_yaml_and_numbers_as_people_write_them(override, section, key, value):
    got = getattr(getattr(load_config(overrides=[override]), section), key)
    assert got == value
    assert type(got) is type(value)


def test_set_reaches_the_top_level_and_whole_sections():
    assert load_config(overrides=["seed=12"]).seed == 12
    config = load_config(overrides=["model={layers: 2, hidden: 64}", "model.layers=3"])
    assert (config.model.layers, config.model.hidden) == (3, 64)


@pytest.mark.parametrize("override", ["train.lr", "=3", "", ".lr=1", "train.=1", "train..lr=1", "train.lr=[1"])
def test_set_that_cannot_be_read_is_shown(override):
    with pytest.raises(ConfigError, match="--set") as caught:
        load_config(overrides=[override])
    assert repr(override) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lrr=1", "Did you mean 'lr'"),
        ("trian.lr=1", "Did you mean 'train'"),
        ("train.lr.x=1", "lr"),
        ("train.lr=fast", "'fast'"),
        ("train=5", "train = 5"),
        ("seed=1.5", "seed = 1.5"),
    ],
)
def test_set_of_what_is_not_there_is_explained(override, words):
    with pytest.raises(ConfigError, match=words):
        load_config(overrides=[override])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: [", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
        ("- model", "list"),
        ("just words", "str"),
        ("model: {layer: 2}", "Did you mean 'layers'"),
        ("modle: {}", "Did you mean 'model'"),
        ("model:\n", "model = None"),
        ("preset: 30mm", "Did you mean '30m'"),
    ],
)
def test_bad_files_are_one_sentence(write, text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(file=write(text))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml does not exist"):
        load_config(file=tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="directory"):
        load_config(file=tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"data: {source: caf\xe9}")
    with pytest.raises(ConfigError, match=r"latin\.yaml"):
        load_config(file=tmp_path / "latin.yaml")


CONFIGS = st.builds(
    RunConfig,
    model=st.builds(
        ModelConfig,
        layers=st.integers(1, 99),
        hidden=st.sampled_from([64, 640]),
        kv_heads=st.sampled_from([None, 1, 2]),
        norm_eps=st.floats(1e-12, 0.5),
        tied_head=st.booleans(),
    ),
    quant=st.builds(
        QuantSpec,
        method=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
        weight_bits=st.sampled_from([1, 8, 16, "ternary"]),
        embeddings=st.sampled_from(["float", "bf16", "int8"]),
    ),
    train=st.builds(
        TrainConfig,
        lr=st.floats(1e-30, 1e30),
        compile=st.sampled_from(["auto", "on", "off"]),
        device=st.sampled_from(["cpu", "null", "1e3", "yes", "cuda:1", "é"]),
        loggers=st.sampled_from([(), ("wandb",), ("tensorboard", "wandb")]),
        eval_every=st.none() | st.integers(1, 10**9),
    ),
    budget=st.builds(Budget, tokens=st.integers(1, 10**15))
    | st.builds(Budget, seconds=st.floats(1e-9, 1e9))
    | st.builds(Budget, tokens_per_param=st.floats(1e-9, 1e9)),
    seed=st.integers(0, 2**63 - 1),
)


@settings(deadline=None, max_examples=60)
@given(config=CONFIGS)
def test_the_written_file_is_the_same_run(config, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(file=path) == config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_and_survives_a_trip_through_a_file(name, write):
    config = load_config(preset=name)
    assert load_config(file=write(to_yaml(config))) == config


@pytest.mark.parametrize("word", ["on", "off"])
def test_on_and_off_are_words(word: str, tmp_path: Path) -> None:
    assert load_config(overrides=[f"train.compile={word}"]).train.compile == word
    (tmp_path / "c.yaml").write_text(f"train:\n  compile: {word}\n")
    assert load_config(file=tmp_path / "c.yaml").train.compile == word


def test_exponents_without_a_dot_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("budget: {tokens: 3e9}\ntrain: {lr: 6e-4}\n")
    config = load_config(file=tmp_path / "c.yaml")
    assert (config.budget.tokens, config.train.lr) == (3_000_000_000, 6e-4)


@pytest.mark.parametrize(("text", "value"), [("'2024'", "2024"), ("inf", "inf"), ("a:b", "a:b")])
def test_text_stays_text(text: str, value: str) -> None:
    assert load_config(overrides=[f"data.source={text}"]).data.source == value


@pytest.mark.parametrize("content", ["1: 2\n", "model: {1: 2}\n", "on: 3\n", "[1]\n", "prest: 30m\n"])
def test_keys_that_are_no_settings_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_config(file=tmp_path / "c.yaml")
    if "prest" in content:
        assert "Did you mean 'preset'" in str(caught.value)


def test_truth_values_are_no_numbers() -> None:
    with pytest.raises(ConfigError, match="layers = True"):
        ModelConfig(layers=True)
    with pytest.raises(ConfigError, match="weight_bits = True"):
        QuantSpec(weight_bits=True)
