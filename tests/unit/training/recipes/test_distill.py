"""Distillation: the term itself, and runs that learn from a teacher."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from questlm.config import RunConfig
from questlm.config.schema import Budget
from questlm.data import load_tokenizer
from questlm.errors import CheckpointError, ConfigError
from questlm.records import RunRecord
from questlm.training import load_run, resume, train
from questlm.training.build import build_model
from questlm.training.checkpoint import latest_checkpoint
from questlm.training.optim import make_optimizer
from questlm.training.recipes import Beginning, Distill, FrozenModel
from questlm.training.recipes.distill import divergence
from questlm.training.step import TrainStep

Settings = Callable[..., RunConfig]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tiny_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "run"
    train(tiny_settings(quant={"weight_bits": 16, "act_bits": 16}, budget={"tokens": 40 * 4 * 32}), path)
    return path


def test_the_divergence_is_the_sum_over_the_vocabulary() -> None:
    teacher, student = torch.randn(2, 2, 3, 7, dtype=torch.float64)
    p, q = teacher.softmax(-1), student.softmax(-1)
    expected = (p * (p.log() - q.log())).sum(-1).mean()
    torch.testing.assert_close(divergence(teacher, student), expected.float(), rtol=1e-5, atol=1e-6)
    assert float(divergence(teacher, teacher)) == pytest.approx(0, abs=1e-6)


def _recipe(weight: float, vocab_size: int = 64) -> Distill:
    """One whose teacher prefers tokens by their number."""
    table = torch.arange(vocab_size, dtype=torch.float32) / 8
    frozen = FrozenModel(lambda ids: table.expand(*ids.shape, vocab_size), vocab_size, None, "0" * 64)
    recipe = Distill("teacher", weight)
    recipe.begin(Beginning(torch.nn.Identity(), CPU, 64, None, lambda path: frozen))
    return recipe


@pytest.mark.parametrize("micro", [None, 2])
def test_the_term_is_part_of_the_gradient_and_not_of_the_loss_that_is_shown(
    micro: int | None, tiny_settings: Settings
) -> None:
    config = tiny_settings(model={"vocab_size": 64}, train={"micro_batch_size": micro, "batch_size": 8})
    batch, recipe = torch.randint(64, (2, 8, 32)), _recipe(3.0)
    model = build_model(config)
    loss, _ = model(batch[0], targets=batch[1])
    (loss + recipe.loss(batch[0], batch[1], model(batch[0]))).backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    step = TrainStep(model, model, make_optimizer(model, config.train), config.train, CPU, recipes=[recipe])
    shown, norm = step(batch[0], batch[1], 1e-3)
    torch.testing.assert_close(shown, loss.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm, expected, rtol=1e-3, atol=0)


@pytest.mark.slow
def test_a_student_comes_nearer_to_its_teacher(
    teacher: Path, corpus: Path, tiny_settings: Settings, tmp_path: Path
) -> None:
    changes, budget = {"log_every": 1}, {"tokens": 60 * 4 * 32}
    alone = train(tiny_settings(train=changes, budget=budget), tmp_path / "alone")
    changes |= {"distill": str(teacher), "distill_weight": 20.0}
    taught = train(tiny_settings(train=changes, budget=budget), tmp_path / "taught")
    assert taught.curve[0]["loss"] == pytest.approx(alone.curve[0]["loss"], rel=1e-5)  # without the divergence
    text = load_tokenizer(teacher / "tokenizer.json").encode(corpus.read_text(encoding="utf-8"))
    ids = torch.tensor(text.ids[: 8 * 32]).view(8, 32)
    models = [load_run(path).model for path in (teacher, tmp_path / "taught", tmp_path / "alone")]
    with torch.no_grad():
        wanted, *found = (model(ids) for model in models)
    distances = [float(divergence(wanted, logits)) for logits in found]
    assert distances[0] < 0.8 * distances[1], distances


def _back_to_step_4(run: Path) -> None:
    for step in (8, 12):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    (run / "record.json").unlink()


def test_a_taught_run_resumes_to_the_same_bits_and_with_no_other_teacher(
    teacher: Path, tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher, "teacher")
    config = tiny_settings(train={"distill": "teacher", "keep_checkpoints": 9})
    whole = train(config, Path("whole"))
    assert list(whole.recipe_inputs) == ["train.distill"]
    train(config, Path("parts"))
    _back_to_step_4(Path("parts"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # from where the teacher is found all the same
    assert resume(tmp_path / "parts").recipe_inputs == whole.recipe_inputs
    with pytest.raises(CheckpointError, match=rf"--set .train\.distill=.{tmp_path}/teacher"):  # to train on, from here
        resume(tmp_path / "parts", config.model_copy(update={"budget": Budget(tokens=4096)}))
    ours, theirs = (_weights(tmp_path / name) for name in ("parts", "whole"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())

    _back_to_step_4(tmp_path / "parts")
    shutil.rmtree(tmp_path / "teacher")
    train(tiny_settings(budget={"tokens": 256}), tmp_path / "teacher")
    with pytest.raises(CheckpointError, match=r"was trained with other content of train\.distill \(SHA-256 .*\.\.\."):
        resume(tmp_path / "parts")
    assert not (tmp_path / "parts" / "record.json").exists()


def _weights(run: Path) -> dict[str, torch.Tensor]:
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None
    return load_file(newest / "model.safetensors")


def test_a_teacher_of_another_vocabulary_is_refused_before_anything_is_written(
    teacher: Path, tiny_settings: Settings, tmp_path: Path
) -> None:
    larger = tiny_settings(data={"vocab_size": 310}, train={"distill": str(teacher)})
    with pytest.raises(
        ConfigError, match=r"has a vocabulary of 300 tokens, but this run one of 310; train on its tokens"
    ):
        train(larger, tmp_path / "run")
    other_text = tmp_path / "text.txt"
    other_text.write_text("".join(f"{number} sheep jump; " for number in range(4000)))
    config = tiny_settings(data={"source": str(other_text)}, train={"distill": str(teacher)})
    with pytest.raises(ConfigError, match="has another tokenizer than this run"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    advised = config.data.model_copy(update={"tokenizer": str(teacher / "tokenizer.json")})
    train(config.model_copy(update={"data": advised}), tmp_path / "run")
    record = RunRecord.load(tmp_path / "run")
    assert record.recipe_inputs
    assert record.checks["loss"] == pytest.approx(record.checks["loss_eager"], rel=1e-5)  # without the divergence


def test_a_teacher_that_is_gone_is_named_with_its_setting(tiny_settings: Settings, tmp_path: Path) -> None:
    gone = tiny_settings(train={"distill": str(tmp_path / "gone")})
    with pytest.raises(ConfigError, match=r"teacher train\.distill = '.*gone' cannot be used: .* is not a folder"):
        train(gone, tmp_path / "run")


def test_a_run_without_a_teacher_is_not_resumed_with_one(
    teacher: Path, tiny_settings: Settings, tmp_path: Path
) -> None:
    train(tiny_settings(), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"made with train\.distill = None, but the settings now say"):
        resume(tmp_path / "run", tiny_settings(train={"distill": str(teacher)}))
