"""The methods and recipes that the pages add are trained, packed and run, by commands and from Python."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import questlm
from questlm.config import RunConfig, to_yaml
from questlm.plugins import load_plugin
from questlm.quant import METHODS
from questlm.quant.methods import FactorSpec, Request
from questlm.quant.quantizers import DynamicQuantizer
from questlm.records import RunRecord
from questlm.training import RunFolder, load_run, train

Command = Callable[..., tuple[int, str, str]]
Settings = Callable[..., RunConfig]

HOWTO = Path(__file__).parents[2] / "docs" / "howto"
NAME = "quest-leaky"
_SPY = """
def note(self, moment):
    decays.extend(group["weight_decay"] for group in moment.optimizer.groups if group["name"] == "matrices")

decays = []
HigherDecay.after_step = note
"""


def file_of(page: str, name: str) -> str:
    """The code of a page that goes into a file of this name."""
    text = (HOWTO / page).read_text(encoding="utf-8")
    (code,) = re.findall(rf"```python {re.escape(name)}\n(.*?)```", text, re.DOTALL)
    return str(code)


@pytest.fixture
def plugin(tmp_path: Path, forget_plugins: Callable[[], None]) -> Path:
    """The page's my_method.py, not loaded."""
    path = tmp_path / "my_method.py"
    path.write_text(file_of("add-a-method.md", "my_method.py"), encoding="utf-8")
    return path


def test_the_commands_train_evaluate_pack_and_run_the_method_of_the_page(
    plugin: Path, command: Command, tiny_settings: Settings, tmp_path: Path, forget_plugins: Callable[[], None]
) -> None:
    (tmp_path / "tiny.yaml").write_text(to_yaml(tiny_settings(budget={"tokens": 3 * 4 * 32})), encoding="utf-8")
    words = ("--plugin", "my_method.py")
    code, out, _ = command("methods", NAME, *words)
    assert code == 0
    assert "a tenth of the gradient" in " ".join(out.split())
    forget_plugins()
    train_words = ("train", "--config", "tiny.yaml", "--method", NAME, "--bits", 2, "--out", "run")
    code, _, err = command(*train_words)
    assert code == 2
    assert f"no method '{NAME}'" in err
    assert "--plugin FILE" in err
    assert command(*train_words, *words)[0] == 0

    forget_plugins()
    hint = f"run was trained with the method '{NAME}' of the plugin my_method.py; add --plugin my_method.py"
    for refused in (
        ("train", "--resume", "run"),
        ("eval", "run"),
        ("pack", "run", "--out", "model"),
        ("diagnose", "run"),
    ):
        code, _, err = command(*refused)
        assert code == 2
        assert hint in err
        assert NAME not in METHODS
    assert command("eval", "run", *words)[0] == 0
    assert command("train", "--resume", "run", *words)[0] == 0
    assert command("pack", "run", "--out", "model", *words)[0] == 0
    forget_plugins()
    code, out, _ = command("generate", "model", "--prompt", "the ", "--max-tokens", 3)
    assert code == 0
    assert out.startswith("the ")

    source = plugin.read_text(encoding="utf-8")
    plugin.write_text(source.replace("0.1 * (rotated", "0.2 * (rotated"), encoding="utf-8")
    code, _, err = command("pack", "run", "--out", "again", *words)
    assert code == 2
    assert "the plugin my_method.py as it was then" in err


@pytest.mark.parametrize("trusts", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_the_method_trains_packs_and_runs_with_and_without_a_mask(
    masked: bool, trusts: bool, plugin: Path, tiny_settings: Settings, tmp_path: Path
) -> None:
    load_plugin(plugin)
    method = METHODS[NAME]
    quantizer = type(method.weight.make(Request(2)))
    assert issubclass(quantizer, DynamicQuantizer)
    if not masked:
        plain = METHODS["ste"].weight.make

        def make(request: Request) -> DynamicQuantizer:
            made = plain(request)
            assert isinstance(made, DynamicQuantizer)
            return quantizer(made.grid, request.block_size, None)

        spec = FactorSpec(method.weight.bits, make)
        method = replace(method, weight=spec, act=spec)
    METHODS[NAME] = replace(method, trusts=trusts)
    config = tiny_settings(quant={"method": NAME, "weight_bits": 1, "act_bits": 4}, budget={"tokens": 3 * 4 * 32})
    record = train(config, tmp_path / "run")
    assert record.checks["quantized_layers"] == 7
    assert record.checks["layers_without_gradient"] == 0
    assert record.checks["largest_gradient_outside_mask"] is None  # such a gradient is what the method is for
    (recorded,) = RunFolder(tmp_path / "run").read_config().plugins
    assert recorded.name == "my_method.py"

    model = load_run(tmp_path / "run").model
    questlm.pack(model, tmp_path / "packed")
    ids = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(0))
    assert torch.equal(questlm.load(tmp_path / "packed").logits(ids), model(ids))


def test_the_recipe_of_the_page_is_called_in_training(
    command: Command,
    tiny_settings: Settings,
    tmp_path: Path,
    forget_plugins: Callable[[], None],
) -> None:
    (tmp_path / "my_recipe.py").write_text(
        file_of("optimizers-and-recipes.md", "my_recipe.py") + _SPY, encoding="utf-8"
    )
    (tmp_path / "tiny.yaml").write_text(to_yaml(tiny_settings()), encoding="utf-8")
    words = ("train", "--config", "tiny.yaml", "--plugin", "my_recipe.py", "--out", "run")
    code, _, err = command(*words, "--set", "train.recipes.higher-decay.facto=2")
    assert code == 2
    assert "train.recipes.higher-decay" in err
    assert "facto" in err
    code, _, err = command(*words, "--set", "train.recipes.higher-decay.factor=2")
    assert code == 0, err
    decays = sys.modules["questlm_plugin_my_recipe"].decays
    assert len(decays) == 12
    assert set(decays[:10]) == {0.1}
    assert decays[-1] == 0.2
    forget_plugins()
    code, _, err = command("eval", "run")
    assert code == 2
    assert "the recipe 'higher-decay' of the plugin my_recipe.py; add --plugin my_recipe.py" in err


def test_the_recipe_of_the_page_that_adds_to_the_loss_trains(
    command: Command, tiny_settings: Settings, tmp_path: Path, forget_plugins: Callable[[], None]
) -> None:
    """A weight of the term so large that the gradient shows it."""
    (tmp_path / "my_loss.py").write_text(file_of("optimizers-and-recipes.md", "my_loss.py"), encoding="utf-8")
    (tmp_path / "tiny.yaml").write_text(to_yaml(tiny_settings(train={"log_every": 1})), encoding="utf-8")
    words = ("train", "--config", "tiny.yaml", "--tokens", 256)
    assert command(*words, "--out", "plain")[0] == 0
    code, _, err = command(
        *words, "--plugin", "my_loss.py", "--set", "train.recipes={z-loss: {weight: 1.0}}", "--out", "run"
    )
    assert code == 0, err
    plain, added = (RunRecord.load(tmp_path / name).curve for name in ("plain", "run"))
    assert added[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-5)
    assert added[0]["grad_norm"] > 1.2 * plain[0]["grad_norm"]


def test_the_commands_of_the_page_train_a_student(command: Command, tiny_settings: Settings, tmp_path: Path) -> None:
    page = (HOWTO / "optimizers-and-recipes.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("$ quest train") and "runs/teacher" in line]
    assert len(lines) == 2
    (tmp_path / "tiny.yaml").write_text(to_yaml(tiny_settings()), encoding="utf-8")
    for line in lines:
        words = line.removeprefix("$ quest ").replace("--preset nano", "--config tiny.yaml")
        code, _, err = command(*words.replace("--seconds 600", "--tokens 256").split())
        assert code == 0, err
    assert list(RunRecord.load(tmp_path / "runs" / "student").recipe_inputs) == ["train.distill"]
