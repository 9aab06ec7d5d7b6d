"""`quest diagnose` from end to end: pictures, numbers, and what it refuses."""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer

from questlm import plotting
from questlm.config import QuantSpec, RunConfig
from questlm.diagnostics import pictures
from questlm.trained.diagnose import diagnosed_spec
from questlm.training import train

PICTURES = set(pictures.PICTURES)
Quest = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tiny_settings: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three checkpoints."""
    path = tmp_path_factory.mktemp("diagnose") / "run"
    train(tiny_settings(train={"keep_checkpoints": 3}), path)
    return path


@pytest.fixture
def quest(command: Quest) -> Quest:
    """Run `quest diagnose ...` in an empty folder: exit code, stdout, stderr."""
    return partial(command, "diagnose")


def _read(folder: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(folder, "diagnostics.json").read_text())
    return content


@pytest.mark.slow
def test_pictures_and_numbers(run: Path, quest: Quest) -> None:
    code, out, err = quest(run, "--out", "first", "--batches", 2)
    assert code == 0, err
    assert "gradient cosine, quest" in out
    assert "Wrote diagnostics.json and 6 pictures to first" in out
    assert {path.name for path in Path("first").iterdir()} == PICTURES | {"diagnostics.json"}
    for name in PICTURES:
        content = Path("first", name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert 5_000 < len(content) < 400_000

    result = _read("first")
    assert set(result) == {
        "format", "title", "date", "device", "versions", "run", "checkpoint", "bits", "seed", "tokens_per_batch",
        "note", "gradient_alignment", "masks", "normality", "error", "pictures",
    }  # fmt: skip
    assert set(result["pictures"]) == PICTURES
    assert result["checkpoint"] == {"step": 12, "tokens": 12 * 4 * 32}
    assert result["bits"] == {"weights": 4, "activations": 4}
    assert [point["step"] for point in result["masks"]["checkpoints"]] == [4, 8, 12]
    assert result["gradient_alignment"]["batches"] == 2
    assert "torch" in result["versions"]
    assert "git" not in result["versions"]
    assert str(run) not in json.dumps(result)

    assert quest(run, "--out", "second", "--batches", 2)[0] == 0
    assert {**_read("second"), "date": ""} == {**result, "date": ""}
    assert all(Path("first", name).read_bytes() == Path("second", name).read_bytes() for name in PICTURES)


@pytest.mark.slow
def test_one_checkpoint_has_no_persistence_and_says_so(run: Path, quest: Quest, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    for old in sorted((tmp_path / "run" / "checkpoints").iterdir())[:-1]:
        shutil.rmtree(old)
    code, out, _ = quest("run", "--batches", 1, "--bits", 1)
    assert code == 0
    assert "Not drawn: the persistence of masks needs two checkpoints and this run kept 1 checkpoint;" in out
    assert "train.keep_checkpoints" in out
    result = _read("run/diagnostics")
    assert "skipped" in result["masks"]["persistence"]
    assert result["bits"] == {"weights": 1, "activations": 1}
    assert result["title"].endswith("; diagnosed at w1a1")
    assert set(result["pictures"]) == PICTURES - {"mask-persistence.png"}


@pytest.mark.slow
def test_an_unquantised_run_needs_bits(
    tiny_settings: Callable[..., RunConfig], quest: Quest, corpus: Path, tmp_path: Path
) -> None:
    train(tiny_settings(quant={"weight_bits": 16, "act_bits": 16}), tmp_path / "bf16")
    code, _, err = quest("bf16")
    assert code == 2
    assert "the weights of this run are not quantised" in err
    assert not (tmp_path / "bf16" / "diagnostics").exists()
    assert quest("bf16", "--bits", "ternary", "--data", corpus, "--out", "new")[0] == 0
    assert _read("new")["masks"]["bits"] == "ternary"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--bits", "9"), "9"),
        (("--bits", "16"), "16 bits quantise nothing"),
        (("--bits", "four"), "four"),
        (("--batches", "0"), "batches"),
        (("--data", "absent.txt"), "absent.txt"),
        (("--out", "taken"), "taken exists already"),
        (("--out", "taken/file"), "exists already"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(words: tuple[str, str], message: str, run: Path, quest: Quest) -> None:
    Path("taken").mkdir()
    Path("taken/file").write_text("precious")
    code, out, err = quest(run, *words)
    assert code == 2
    assert message in err
    assert err.startswith("quest: error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(path.name for path in Path().iterdir()) == ["taken"]
    assert Path("taken/file").read_text() == "precious"


def test_a_folder_that_is_no_run(quest: Quest) -> None:
    code, _, err = quest("nowhere")
    assert code == 2
    assert "nowhere is not a run folder" in err


def test_a_missing_matplotlib_names_the_command(run: Path, quest: Quest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plotting, "find_spec", lambda name: None)
    code, _, err = quest(run, "--out", "new")
    assert code == 2
    assert "pip install 'questlm[plots]'" in err
    assert not Path("new").exists()


def test_a_failed_drawing_leaves_nothing(run: Path, quest: Quest, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "new")

    monkeypatch.setattr(pictures, "_save", fail)
    code, _, err = quest(run, "--out", "new", "--batches", 1)
    assert code == 2
    assert "No space left" in err
    assert list(Path().iterdir()) == []


def test_the_run_keeps_its_own_bits_and_the_uniform_grid() -> None:
    spec = diagnosed_spec(QuantSpec(method="ste", weight_bits=3, act_bits=16, block_size=64), None)
    assert (spec.method, spec.weight_bits, spec.act_bits, spec.block_size) == ("ste", 3, 16, 64)
    assert diagnosed_spec(spec, 5).act_bits == 5


def test_help_has_examples_that_parse_and_explains_every_option() -> None:
    app = importlib.import_module("questlm.cli.main").app
    command = typer.main.get_command(app).commands["diagnose"]  # type: ignore[attr-defined]
    examples = [line.strip() for line in command.help.splitlines() if line.strip().startswith("quest ")]
    assert len(examples) == 3
    for example in examples:
        command.make_context("diagnose", shlex.split(example)[2:])
    assert all(getattr(parameter, "help", None) for parameter in command.params)
