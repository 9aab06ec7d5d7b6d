"""A study's table speaks of the runs that its script makes, and every one of them is a run that can be made."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from questlm import prepare
from questlm.config import load_config
from questlm.config.yaml_text import read_yaml
from questlm.models import Llama
from questlm.sweep import plan_runs, read_grid

ROOT = Path(__file__).parents[2]


def _script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "studies" / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the names in their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return _script("methods-cpu/compare.py")


def test_the_methods_study_is_complete(study: ModuleType) -> None:
    result = json.loads((ROOT / "docs" / "results" / "methods-cpu.json").read_text(encoding="utf-8"))
    assert result["losses"].keys() == study.sides().keys()
    assert all(by_seed.keys() == {"0", "1", "2"} for by_seed in result["losses"].values())
    shown = (ROOT / "docs" / "results" / "methods-cpu.md").read_text(encoding="utf-8")
    for name, by_seed in result["losses"].items():
        assert f"| {name.split('/', 1)[1]} | {sum(by_seed.values()) / 3:.3f} |" in shown


def test_every_side_of_the_methods_study_prepares(study: ModuleType) -> None:
    for side in study.sides().values():
        prepare(nn.Sequential(nn.Linear(128, 32, bias=False)), study.settings(side, 0).quant)


def test_the_table_of_the_30m_study_shows_its_records() -> None:
    script, folder = _script("methods-30m/summarise.py"), ROOT / "studies" / "methods-30m"
    shown = (folder / "README.md").read_text(encoding="utf-8")
    losses = script.read_losses(folder / "runs")
    assert len(losses) == 61
    for by_seed in losses.values():
        values = [by_seed[seed] for seed in sorted(by_seed)]
        by_seed_text = ", ".join(f"{loss:.4f}" for loss in values)
        assert f"| {sum(values) / len(values):.4f} | {by_seed_text} |" in shown


def test_the_tables_of_the_fair_baseline_show_its_records() -> None:
    script, folder = _script("fair-baseline/summarise.py"), ROOT / "studies" / "fair-baseline"
    losses = script.read(sorted((folder / "runs").glob("*/record.json")))
    shown = (folder / "README.md").read_text(encoding="utf-8")
    assert f"<!-- gaps -->\n{script.gaps(losses)}\n<!-- end of gaps -->" in shown
    assert f"<!-- all runs -->\n{script.all_runs(losses)}\n<!-- end of all runs -->" in shown


def test_the_tables_of_the_demo_recipe_show_its_records_and_the_presets_take_the_best() -> None:
    script, folder = _script("demo-recipe/summarise.py"), ROOT / "studies" / "demo-recipe"
    shown = (folder / "README.md").read_text(encoding="utf-8")
    for preset in script.PRESETS:
        assert f"<!-- {preset} -->\n{script.table(preset)}\n<!-- end of {preset} -->" in shown
        best = script.table(preset).splitlines()[3].split("|")[1].strip()
        config = _script("runner.py").settings(folder / "study.yaml", f"{best}-s0", Path(), [])
        default = load_config(preset).train
        for name in ("optimizer", "batch_size", "schedule", "final_lr"):
            assert getattr(config.train, name) == getattr(default, name)
        assert config.train.lr in (default.lr, 2 * default.lr)  # the README says why nano keeps the lower of two rates


def test_the_tables_of_the_better_recipe_show_its_records_and_name_every_change() -> None:
    script, folder = _script("better-recipe/summarise.py"), ROOT / "studies" / "better-recipe"
    shown, losses = (folder / "README.md").read_text(encoding="utf-8"), script.read()
    assert losses["none"].keys() == set(script.WIDTHS)
    assert f"<!-- best -->\n{script.best(losses)}\n<!-- end of best -->" in shown
    assert f"<!-- changes -->\n{script.changes(losses)}\n<!-- end of changes -->" in shown
    for name in read_yaml(folder / "study.yaml", "study")["runs"]:
        width, _, change = name.partition("-")
        assert width in script.WIDTHS
        assert f"`{change.removeprefix('tuned-').removeprefix('e16-')}`" in shown


def test_the_tables_of_the_confirmation_show_its_records() -> None:
    script, folder = _script("confirm-recipe/summarise.py"), ROOT / "studies" / "confirm-recipe"
    shown, losses = (folder / "README.md").read_text(encoding="utf-8"), script.read_losses(folder / "runs")
    assert f"<!-- losses -->\n{script.losses(losses)}\n<!-- end of losses -->" in shown
    assert f"<!-- gone -->\n{script.gone(losses)}\n<!-- end of gone -->" in shown


def test_what_a_recipe_takes_away_is_paired_by_seed() -> None:
    script = _script("confirm-recipe/summarise.py")
    made = {
        "bf16-tuned": {0: 3.0, 1: 4.0},
        "bf16-rate": {0: 2.9, 1: 3.9},
        "w1a1-tuned": {0: 4.0, 1: 5.0},
        "w1a1-recipe": {0: 3.4, 1: 4.5, 2: 9.9},
    }
    assert script.gone(made).splitlines()[-1] == "| W1A1 | 2 | 1.0000 ± 0.0000 | 0.5500 ± 0.6353 | 45 ± 64 |"


def test_the_readme_shows_the_losses_of_the_30m_study() -> None:
    script, folder = _script("methods-30m/summarise.py"), ROOT / "studies" / "methods-30m"
    table = script.losses_by_bits(script.read_losses(folder / "runs"))
    assert len(table.splitlines()) == 8
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- losses by bits -->\n{table}\n<!-- end of losses by bits -->" in shown


@pytest.mark.parametrize(
    ("study", "runs"),
    [("methods-30m", 61), ("fair-baseline", 112), ("demo-recipe", 40), ("better-recipe", 128), ("confirm-recipe", 12)],
)
@pytest.mark.usefixtures("forget_plugins")
def test_every_run_of_a_study_can_be_made(study: str, runs: int) -> None:
    runner, file = _script("runner.py"), ROOT / "studies" / study / "study.yaml"
    runner.load_study_plugin(file)
    names = list(read_yaml(file, "study")["runs"])
    assert len(names) == runs
    small = ["model.layers=1", "model.vocab_size=512"]
    for name in names:
        config = runner.settings(file, f"{name}-s0", Path("corpus"), small)
        with torch.device("meta"):
            prepare(Llama(config.model), config.quant)


def test_the_cpu_study_has_three_sizes_and_budgets_for_every_width() -> None:
    runs = plan_runs(read_grid(ROOT / "studies" / "cpu-law" / "grid.yaml"))
    for label in ("bf16", "quest-w4a4", "quest-w1a1"):
        own = [planned.config for planned in runs if planned.config.quant.label == label]
        sizes = {config.model.block_parameters for config in own}
        budgets = {config.budget.tokens_per_param for config in own}
        assert len(sizes) == len(budgets) == 3
        assert len(own) == 9


def test_the_table_of_the_diagnostics_shows_their_numbers() -> None:
    folder = ROOT / "docs" / "concepts"
    numbers = json.loads((folder / "diagnostics" / "numbers.json").read_text(encoding="utf-8"))
    shown = (folder / "diagnostics.md").read_text(encoding="utf-8")
    for run, name in (
        ("nano-w4a4", "4 bits, 4 bits"),
        ("nano-w2a2", "2 bits, 2 bits"),
        ("nano-bf16", "unquantised, 4 bits"),
    ):
        methods = numbers[run]["gradient_alignment"]["methods"]
        for key, what in (("weights_by_block", "weights"), ("stream_by_block", "residual")):
            rows = [[block["mean"] for block in methods[each][key].values()] for each in ("ste", "quest-noht", "quest")]
            means = " | ".join(f"{sum(row) / len(row):.3f}" for row in rows)
            assert f"| {name}: {what} | {means} |" in shown


def test_the_table_of_the_fine_tuning_study_shows_its_record() -> None:
    script, folder = _script("fine-tuning/round_to_nearest.py"), ROOT / "studies" / "fine-tuning"
    result = json.loads(script.OUT.read_text(encoding="utf-8"))
    shown = (folder / "README.md").read_text(encoding="utf-8")
    assert result["rows"].keys() == script.ROWS.keys()
    assert f"<!-- rounded -->\n{script.table(result)}\n<!-- end of rounded -->" in shown
