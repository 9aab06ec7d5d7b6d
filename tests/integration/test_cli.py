"""The whole path through the command line: train, pack, evaluate, generate, and what it says on the way."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from questlm.cli import main
from questlm.config import RunConfig, to_yaml
from questlm.files import sha256_file
from questlm.ops import BACKENDS, IMPLEMENTATIONS
from questlm.records import RunRecord
from questlm.training.checkpoint import latest_checkpoint

Quest = Callable[..., str]
COMMANDS = (
    "demo",
    "train",
    "methods",
    "eval",
    "pack",
    "generate",
    "diagnose",
    "doctor",
    "sweep",
    "fit",
    "plan",
    "report",
)


@pytest.fixture
def quest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Quest:
    """Run `quest ...`, check that it succeeds, and return what it printed."""

    def run(command: str, *more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["quest", *shlex.split(command), *more])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert stop.value.code == 0, (out, err)
        return out

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: RunConfig) -> Path:
    """The current folder: an empty one but for tiny.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(to_yaml(tiny))
    return tmp_path


@pytest.mark.parametrize(
    ("bits", "label"),
    [
        ("--bits 1", "quest-w1a1"),
        ("--bits 4", "quest-w4a4"),
        ("--bits ternary", "quest-wtat"),
        ("--weight-bits 4 --act-bits 16", "quest-w4a16"),
        ("--weight-bits 16 --act-bits 8", "quest-w16a8"),
        ("--bits 2 --set quant.embeddings=int8", "quest-w2a2"),
    ],
)
def test_train_pack_eval_generate(bits: str, label: str, here: Path, quest: Quest) -> None:
    trained = quest(f"train --config tiny.yaml {bits}")
    run = f"runs/tiny-{label}"
    assert f"run {run}" in trained
    assert f"Next: quest pack {run} --out {run}/packed" in trained

    packed = quest(f"pack {run} --out model")
    assert "the same model in BF16" in packed
    assert "Next: quest eval model" in packed

    final = RunRecord.load(here / run).final
    assert final is not None
    for path in ("model", run):
        result = json.loads(quest(f"eval {path} --json"))
        assert abs(result["gap"]) <= 1e-5
        assert result["loss"] == pytest.approx(final["loss"], abs=1e-5)
        assert result["bits_per_byte"] == pytest.approx(final["bits_per_byte"], abs=1e-5)
        assert result["tokens"] == final["tokens"]

    text = quest("generate model --prompt 'the quick' --seed 1 --max-tokens 20")
    assert text.startswith("the quick")
    assert len(text) > len("the quick") + 1
    assert text == quest("generate model --prompt 'the quick' --seed 1 --max-tokens 20")


def test_an_unquantised_model_is_packed_in_bf16(here: Path, quest: Quest) -> None:
    assert "run runs/tiny-bf16" in quest("train --config tiny.yaml --bits 16")
    quest("pack runs/tiny-bf16 --out model")
    assert abs(json.loads(quest("eval model --json"))["gap"]) <= 1e-3


def test_fewer_bits_make_a_smaller_artifact(here: Path, quest: Quest) -> None:
    sizes = []
    for bits in ("1", "ternary", "4", "8"):
        quest(f"train --config tiny.yaml --bits {bits} --out run-{bits}")
        quest(f"pack run-{bits} --out model-{bits}")
        sizes.append(json.loads((here / f"model-{bits}" / "MANIFEST.json").read_text())["details"]["bytes_by_part"])
    assert [parts["codes"] for parts in sizes] == sorted(parts["codes"] for parts in sizes)
    assert sizes[3]["codes"] == 2 * sizes[2]["codes"] == 8 * sizes[0]["codes"]


def test_embeddings_can_be_packed_smaller_than_they_were_trained(here: Path, quest: Quest) -> None:
    quest("train --config tiny.yaml --out run")
    quest("pack run --out model")
    quest("pack run --out small --embeddings int8")
    parts = {
        name: json.loads((here / name / "MANIFEST.json").read_text())["details"]["bytes_by_part"]
        for name in ("model", "small")
    }
    assert parts["small"]["embedding"] < 0.6 * parts["model"]["embedding"]
    assert abs(json.loads(quest("eval small --json"))["gap"]) < 0.02


def test_eval_prints_a_table_with_the_loss_in_training(here: Path, quest: Quest) -> None:
    quest("train --config tiny.yaml --out run")
    quest("pack run --out model")
    table = quest("eval model")
    assert all(word in table for word in ("validation loss", "perplexity", "bits per byte", "loss in training", "gap"))


@pytest.mark.parametrize("path", ["model", "run"])
def test_eval_on_other_text_reads_all_of_it(path: str, here: Path, quest: Quest) -> None:
    quest("train --config tiny.yaml --out run")
    quest("pack run --out model")
    (here / "other.txt").write_text("seven wizards quietly bake naïve cakes.\n" * 50)
    result = json.loads(quest(f"eval {path} --data other.txt --json"))
    assert result["gap"] is None
    assert 100 < result["tokens"] < 50 * 42
    assert 0 < result["bits_per_byte"] < 8
    assert result["bits_per_byte"] == pytest.approx(
        result["loss"] * result["tokens"] / 0.6931471805599453 / (50 * 41), rel=1e-9
    )


# -- runs --------------------------------------------------------------------------------------------------------------


def test_run_folders_are_numbered(here: Path, quest: Quest) -> None:
    for _ in range(3):
        quest("train --config tiny.yaml")
    assert sorted(path.name for path in (here / "runs").iterdir()) == [
        "tiny-quest-w4a4",
        "tiny-quest-w4a4-2",
        "tiny-quest-w4a4-3",
    ]


def test_the_config_of_a_run_repeats_it_bit_for_bit(here: Path, quest: Quest) -> None:
    quest("train --config tiny.yaml --bits 2 --seed 7 --set train.lr=6e-3 --out first")
    quest("train --config first/config.yaml --out second")
    first, second = (RunRecord.load(here / name) for name in ("first", "second"))
    assert first.config == second.config
    assert first.config["seed"] == 7
    assert first.config["train"]["lr"] == 6e-3
    assert first.curve == second.curve
    assert first.final == second.final
    assert _weights(here / "first") == _weights(here / "second")
    assert (here / "first" / "config.yaml").read_bytes() == (here / "second" / "config.yaml").read_bytes()


def test_another_seed_gives_another_model(here: Path, quest: Quest) -> None:
    quest("train --config tiny.yaml --out first")
    quest("train --config tiny.yaml --seed 1 --out second")
    assert _weights(here / "first") != _weights(here / "second")


def _weights(run: Path) -> str:
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None
    return sha256_file(newest / "model.safetensors")


def test_resume_goes_on_and_reports(here: Path, quest: Quest) -> None:
    before = quest("train --config tiny.yaml --out run").splitlines()
    again = quest("train --resume run").splitlines()
    assert [line for line in again if "loss" in line] == [line for line in before if "loss" in line]


def test_flags_win_over_the_file_and_set_wins_over_flags(here: Path, quest: Quest) -> None:
    quest("train --config tiny.yaml --bits 3 --tokens 256 --seed 5 --set quant.act_bits=8 --out run")
    config = yaml.safe_load((here / "run" / "config.yaml").read_text())
    assert (config["quant"]["weight_bits"], config["quant"]["act_bits"], config["seed"]) == (3, 8, 5)
    assert config["budget"]["tokens"] == 256
    assert RunRecord.load(here / "run").steps == 2


def test_training_writes_results_to_stdout_only(
    here: Path, quest: Quest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["quest", "train", "--config", "tiny.yaml", "--out", "run"])
    with pytest.raises(SystemExit):
        main()
    out, err = capsys.readouterr()
    assert "validation loss" in out
    assert re.fullmatch(
        r"quest: note: budget: 1,536 tokens; one step is 128 tokens, 12 in all: about [^\n]* tokens/s\n", err
    )


def test_without_a_budget_a_long_run_is_refused_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = yaml.safe_load((here / "tiny.yaml").read_text())
    del settings["budget"], settings["train"]["batch_size"]
    (here / "endless.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(importlib.import_module("questlm.cli.train"), "_LONGEST_UNASKED", 1e-6)
    monkeypatch.setattr(sys, "argv", ["quest", "train", "--config", "endless.yaml", "--out", "endless"])
    with pytest.raises(SystemExit) as stop:
        main()
    message = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2
    assert re.search(r"no budget was given, and the usual one .* would take about .* --seconds 600, --tokens", message)
    assert not (here / "endless").exists()


@pytest.mark.parametrize(("budget", "least"), [("--tokens 200", 192), ("--seconds 0.5", 1)])
def test_a_step_fits_a_small_budget_and_the_settings_record_it(budget: str, least: int, here: Path) -> None:
    settings = yaml.safe_load((here / "tiny.yaml").read_text())
    del settings["budget"], settings["train"]["batch_size"]
    (here / "small.yaml").write_text(yaml.safe_dump(settings))
    run = here / f"small-{least}"
    command = ["quest", "train", "--config", "small.yaml", "--out", str(run), *budget.split()]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", command)
        main()
    assert stop.value.code == 0
    record = RunRecord.load(run)
    assert 1 <= record.config["train"]["batch_size"] <= 32
    assert least <= record.tokens
    assert record.steps > 1


# -- generating --------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(here: Path, quest: Quest) -> Path:
    quest("train --config tiny.yaml --out run")
    quest("pack run --out model")
    return here / "model"


def test_greedy_text_needs_no_seed(model: Path, quest: Quest) -> None:
    command = "generate model --prompt wizards --temperature 0 --max-tokens 30"
    assert quest(command) == quest(command)


def test_other_seeds_give_other_text(model: Path, quest: Quest) -> None:
    assert len({quest(f"generate model --prompt wizards --temperature 2 --seed {seed}") for seed in range(3)}) == 3


def test_an_empty_prompt_starts_a_document(model: Path, quest: Quest) -> None:
    assert quest("generate model --seed 0 --max-tokens 20").strip()


ENDLESS = "generate model --prompt the --temperature 0 --max-tokens 20000"  # the likeliest words go in circles


def _start(command: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "questlm", *shlex.split(command)]
    # A shell starts background jobs with SIGINT ignored, and children inherit that: ask for the default again.
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_text_streams_and_ctrl_c_stops_it(model: Path) -> None:
    with _start(ENDLESS) as process:
        assert process.stdout is not None
        first = process.stdout.read(40)  # comes long before the 20,000th token
        assert first.startswith(b"the")
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_text_for_a_reader_that_has_left_ends_like_sigpipe(model: Path) -> None:
    with _start(ENDLESS) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(40)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 141


# -- what the program says of itself -----------------------------------------------------------------------------------


def _command(name: str) -> Any:
    return typer.main.get_command(importlib.import_module("questlm.cli.main").app).commands[name]  # type: ignore


def test_help_lists_the_commands(quest: Quest) -> None:
    text = quest("--help")
    assert all(re.search(rf"│ {name} ", text) for name in COMMANDS)


def test_python_m_questlm_is_the_same() -> None:
    done = subprocess.run([sys.executable, "-m", "questlm", "--help"], capture_output=True, text=True, check=True)
    assert all(f" {name} " in done.stdout for name in COMMANDS)
    assert done.stderr == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_option(name: str, quest: Quest) -> None:
    text = quest(f"{name} --help")
    for parameter in _command(name).params:
        assert all(option in text for option in parameter.opts if option.startswith("-")), parameter.opts
        assert getattr(parameter, "help", None), f"{parameter.name} has no help"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_that_parse(name: str) -> None:
    examples = [line.strip() for line in _command(name).help.splitlines() if line.strip().startswith("quest ")]
    assert examples
    for example in examples:
        words = shlex.split(example)
        assert words[:2] == ["quest", name]
        _command(name).make_context(name, words[2:])


@pytest.mark.parametrize(
    "name",
    [pytest.param(n) if n == "eval" else n for n in COMMANDS],
)
def test_examples_quote_their_stars(name: str) -> None:
    for line in _command(name).help.splitlines():
        assert "*" not in re.sub(r"'[^']*'", "", line)


def test_doctor_prints_the_table_of_implementations(quest: Quest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = quest("doctor")
    for operation, implementations in IMPLEMENTATIONS.items():
        for each in implementations:
            assert re.search(rf"{operation}(, \d bits)?: {each.name} +│ \S", text), (operation, each.name)
    assert "float8 products need an NVIDIA GPU from Hopper on; this is a CPU" in text
    assert all(name in text for name in BACKENDS if name != "auto")
    assert all(name in text for name in ("python", "torch", "questlm", "processors", "cuda", "C compiler"))


def test_doctor_says_how_to_get_what_is_missing(quest: Quest, monkeypatch: pytest.MonkeyPatch) -> None:
    doctor = importlib.import_module("questlm.cli.doctor")
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setenv("COLUMNS", "200")
    text = quest("doctor")
    assert all(f"pip install 'questlm[{extra}]'" in text for extra in ("hf", "tensorboard", "wandb"))
    assert "apt-get install gcc" in text


@pytest.mark.slow
def test_the_demo_works_from_nothing_to_text(tmp_path: Path, quest: Quest, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-i]*.py"))  # a tenth: more is only tokenised
    (tmp_path / "library").mkdir()
    for file in sources:
        shutil.copy(file, tmp_path / "library")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "library"))
    monkeypatch.chdir(tmp_path)
    text = quest("demo --seconds 2 --out first")
    assert (tmp_path / "first" / "packed" / "MANIFEST.json").exists()
    for promised in ("validation loss", "bits per byte", "packed", "the same model in BF16", "round-trip gap"):
        assert promised in text
    gap = re.search(r"round-trip gap\s*│ (\S+) nats/token", text)
    assert gap is not None
    assert abs(float(gap[1])) <= 1e-5
    sample, commands = text.rsplit("Next:", 1)
    assert len(sample.rsplit("def __init__(self, ", 1)[1].strip()) > 50
    named = re.findall(r"quest (\w+) (.*)", commands)
    assert [name for name, _ in named] == ["generate", "train", "train"]
    for name, words in named:
        if "--help" not in words:
            _command(name).make_context(name, shlex.split(words))


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        ("--method bitnet", ("ternary", 8)),
        ("--method bitnet --set quant.overrides={lm_head:\\ 16}", ("ternary", 8)),
        ("--method seq --act-bits 1", (2, 1)),
        ("--format ternary", ("ternary", "ternary")),
        ("--method adabin --set quant.act_bits=16", (1, 16)),
        ("", (4, 4)),
    ],
)
def test_a_method_brings_its_usual_bits(options: str, widths: tuple[object, object], monkeypatch, tmp_path) -> None:
    from questlm.cli import train as command

    seen = []
    monkeypatch.setattr(command, "run_training", lambda config, out, longest: seen.append(config))
    monkeypatch.setattr(sys, "argv", ["quest", "train", *shlex.split(options), "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit):
        main()
    assert (seen[0].quant.weight_bits, seen[0].quant.act_bits) == widths


def test_methods_are_listed_and_described(quest: Quest) -> None:
    from questlm.quant import METHODS

    everything = quest("methods")
    for name, method in METHODS.items():
        assert f"{name} " in everything
        assert method.source.split()[1] in everything
        assert method.doc.strip().splitlines()[0] in quest(f"methods {name}")
