"""Finished models that compute beside the one that trains: each kind of folder gives the same predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from questlm.artifact.read import load_artifact
from questlm.config import RunConfig
from questlm.errors import ArtifactError, CheckpointError, ConfigError
from questlm.export.hugging_face import to_hugging_face
from questlm.export.pack import pack
from questlm.training import frozen, load_run, train
from questlm.training.build import LoadedRun
from questlm.training.frozen import load_frozen

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tiny_settings: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model with weights of 4 bits as a run, a packed model and a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("frozen")
    train(tiny_settings(quant={"weight_bits": 4, "act_bits": 16}), folder / "run")
    pack(load_run(folder / "run").model, folder / "packed", tokenizer=(folder / "run" / "tokenizer.json").read_bytes())
    to_hugging_face(load_artifact(folder / "packed"), folder / "hugging-face")
    return folder


@pytest.mark.parametrize("kind", ["run", "packed", "hugging-face"])
def test_every_kind_of_folder_gives_the_model(kind: str, folders: Path) -> None:
    model = load_frozen(folders / kind, CPU)
    ids = torch.randint(300, (2, 16))
    logits = model.logits(ids)
    torch.testing.assert_close(logits, load_run(folders / "run").model(ids).detach(), rtol=1e-4, atol=1e-5)
    assert model.vocab_size == 300
    assert model.tokenizer is not None and model.tokenizer.get_vocab_size() == 300
    weight = torch.ones((), requires_grad=True)
    (weight * logits).sum().backward()  # what was computed in inference mode could not be kept for this
    assert model.sha256 == load_frozen(folders / kind, CPU).sha256


def test_a_quantised_run_predicts_as_it_was_trained(tiny_settings: Callable[..., RunConfig], tmp_path: Path) -> None:
    train(tiny_settings(quant={"weight_bits": 2, "act_bits": 4}), tmp_path / "run")
    ids = torch.randint(300, (2, 16))
    assert torch.equal(load_frozen(tmp_path / "run", CPU).logits(ids), load_run(tmp_path / "run").model(ids).detach())


def test_the_hash_is_of_the_weights_that_were_read_where_the_run_still_trains(
    tiny_settings: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_settings(), tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000012"
    newest.rename(tmp_path / "away")

    def load_when_a_new_checkpoint_has_come(path: Path) -> LoadedRun:
        (tmp_path / "away").rename(newest)
        return load_run(path)

    with monkeypatch.context() as patch:
        patch.setattr(frozen, "load_run", load_when_a_new_checkpoint_has_come)
        found = load_frozen(tmp_path / "run", CPU)
    assert found.sha256 == load_frozen(tmp_path / "run", CPU).sha256


@pytest.mark.parametrize(
    ("folder", "damage", "error"),
    [
        ("absent", None, ConfigError),
        ("empty", None, ConfigError),
        ("run", "checkpoints/step-00000012/model.safetensors", CheckpointError),
        ("packed", "model.safetensors", ArtifactError),
        ("hugging-face", "model.safetensors", CheckpointError),
    ],
)
def test_what_is_no_model_is_refused(
    folder: str, damage: str | None, error: type[Exception], folders: Path, tmp_path: Path
) -> None:
    import shutil

    (tmp_path / "empty").mkdir()
    if damage is not None:
        shutil.copytree(folders / folder, tmp_path / folder)
        (tmp_path / folder / damage).write_bytes(b"damaged")
    with pytest.raises(error):
        load_frozen(tmp_path / folder, CPU)
