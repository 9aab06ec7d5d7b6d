"""A grid's file, and the runs that it stands for."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from questlm.cli.train import _flags
from questlm.config import load_config
from questlm.errors import ConfigError
from questlm.sweep import SweepGrid, command_lines, plan_runs, read_grid

GOOD = {"sizes": ["1m"], "bits": [4], "tokens_per_parameter": [10]}


def _write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "grid.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_every_combination_is_a_run_and_16_bits_have_no_method() -> None:
    grid = SweepGrid(
        sizes=["125k", "250k"],
        methods=["quest", "lsq"],
        bits=[16, 4, {"weight": 2, "act": 16}],
        tokens_per_parameter=[0.5, 10],
        seeds=[0, 1],
    )
    names = [planned.name for planned in plan_runs(grid)]
    assert len(names) == len(set(names)) == 2 * (1 + 2 * 2) * 2 * 2
    assert {name for name in names if name.startswith("125k") and name.endswith("-0.5x-s1")} == {
        "125k-bf16-0.5x-s1",
        "125k-quest-w4a4-0.5x-s1",
        "125k-lsq-w4a4-0.5x-s1",
        "125k-quest-w2a16-0.5x-s1",
        "125k-lsq-w2a16-0.5x-s1",
    }


def test_a_run_is_what_its_name_says() -> None:
    (planned,) = plan_runs(
        SweepGrid(**GOOD, set={"data.source": "my text.txt", "train": {"batch_size": 2}, "train.lr": 1e-4})
    )
    config = planned.config
    assert (config.model.layers, config.model.hidden) == (4, 128)
    assert (config.quant.method, config.quant.weight_bits, config.quant.act_bits) == ("quest", 4, 4)
    assert config.budget.tokens_per_param == 10
    assert (config.data.source, config.train.batch_size, config.train.lr) == ("my text.txt", 2, 1e-4)


@pytest.mark.parametrize("bits", [16, 4, "ternary", {"weight": 4, "act": 16}], ids=str)
def test_the_printed_command_makes_the_same_settings(bits: object, tmp_path: Path) -> None:
    fixed = {"data.source": "it's mine/*.txt", "train.lr": 6e-5, "quant.overrides": {"mlp.down": 8}, "data.val": None}
    (planned,) = plan_runs(SweepGrid(**GOOD | {"bits": [bits], "seeds": [7]}, set=fixed))
    (line,) = command_lines([planned], tmp_path / "out")
    words = shlex.split(line)
    assert words[:2] == ["quest", "train"]
    assert words[-2:] == ["--out", str(tmp_path / "out" / planned.name)]
    flags, overrides = {}, []
    for name, value in zip(words[2:-2:2], words[3:-2:2], strict=True):
        if name == "--set":
            overrides.append(value)
        else:
            flags[name] = value
    given = _flags(
        flags.get("--method"), flags.get("--bits"), flags.get("--weight-bits"), flags.get("--act-bits"), None, None,
        None, float(flags["--tokens-per-param"]), None, int(flags["--seed"]),
    )  # fmt: skip
    assert load_config(flags["--preset"], None, given, overrides) == planned.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": ["1m"]}, "unknown setting 'size'.*Did you mean 'sizes'"),
        ({"sizes": ["3m"]}, r"the run \(3m, quest, W4A4, .*no preset '3m'.*125k"),
        ({"sizes": []}, r"sizes = \[\] cannot be used: at least one is needed"),
        ({"sizes": "1m"}, "sizes = '1m' cannot be used: a list is expected"),
        ({"sizes": ["1m", "1m"]}, "'1m' is there twice"),
        ({"sizes": ["1m", "1M"], "bits": [16]}, "'1m' is there twice"),
        ({"bits": [9]}, "9"),
        ({"bits": [True]}, "True"),
        ({"bits": 4}, "bits"),
        ({"bits": [{"weight": 4, "act": 4, "acts": 4}]}, "acts.*Did you mean 'act'"),
        ({"methods": ["qest"]}, r"the run \(1m, qest, W4A4, 10 tokens/parameter, seed 0\).*Did you mean 'quest'"),
        ({"methods": ["adabin"]}, r"the run \(1m, adabin, W4A4.*adabin"),
        ({"tokens_per_parameter": [0]}, "tokens_per_parameter"),
        ({"tokens_per_parameter": [".nan"]}, "tokens_per_parameter"),
        ({"tokens_per_parameter": [True]}, "a number or a word is expected"),
        ({"tokens_per_parameter": [1e300]}, "less than or equal to 1000000000"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": [True]}, "seeds"),
        ({"set": {"train.batchsize": 4}}, r"the run \(1m.*'batchsize'.*Did you mean 'batch_size'"),
        ({"set": {"quant.weight_bits": 2}}, "`set` changes"),
        ({"set": {"budget.tokens": 2}}, "`set` changes"),
        ({"set": {"seed": 2}}, "`set` changes"),
        ({"set": {"init_from": "model"}}, "`set` changes"),
        ({"set": {"train": 3}}, "the run"),
    ],
    ids=str,
)
def test_a_bad_grid_is_one_sentence(change: dict[str, object], message: str, tmp_path: Path) -> None:
    file = _write(tmp_path, yaml.safe_dump(GOOD | change))
    with pytest.raises(ConfigError, match=message) as caught:
        plan_runs(read_grid(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "holds a list"),
        ("sizes: [", "not valid YAML"),
        ("", "sizes is missing"),
        ("sizes: [1m]", "bits is missing"),
        ("size: [1m]", "mean 'sizes'"),
    ],
)
def test_a_file_that_is_no_grid(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_grid(_write(tmp_path, text))


def test_near_ratios_have_names_of_their_own() -> None:
    names = [
        planned.name
        for planned in plan_runs(SweepGrid(**GOOD | {"tokens_per_parameter": [0.3, 0.30000000000000004, 20]}))
    ]
    assert len(set(names)) == len(names) and any("-20x-" in name for name in names)


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the grid"):
        read_grid(tmp_path / "none.yaml")


def test_words_and_numbers_mean_what_people_mean(tmp_path: Path) -> None:
    text = "sizes: [1m]\nbits: [4]\ntokens_per_parameter: [10]\nset: {train.compile: off, train.lr: 6e-4}\n"
    (planned,) = plan_runs(read_grid(_write(tmp_path, text)))
    assert (planned.config.train.compile, planned.config.train.lr) == ("off", 6e-4)
