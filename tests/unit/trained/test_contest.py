"""A contest's score is the loss over the bytes of whole windows, and what would void it is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import questlm
from questlm.artifact.budget import Budget, OverBudgetError
from questlm.config import RunConfig
from questlm.data import prepare
from questlm.errors import ArtifactError, DataError
from questlm.trained import contest
from questlm.trained.contest import check_probabilities, score
from questlm.training import RunFolder, train


@pytest.fixture(scope="module")
def run(tiny_settings: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    train(tiny_settings(), path)
    questlm.pack(path, path / "model.quest", single_file=True)
    return path


def test_it_is_the_loss_of_whole_windows_over_their_bytes(run: Path, tmp_path: Path) -> None:
    code = tmp_path / "train.py"
    code.write_bytes(b"x" * 50)
    budget = Budget.of_files(10**7, [code])
    found = score(run / "model.quest", budget, device="cpu")
    data = prepare(RunFolder(run).data_settings(), None)
    tokens = data.val.read(0, len(data.val)).astype(np.int64)
    assert found.tokens == (len(tokens) - 1) // 32 * 32
    model, total = questlm.load(run / "model.quest"), 0.0
    for start in range(0, found.tokens, 32):
        ids = torch.from_numpy(tokens[start : start + 33])
        scores = model.logits(ids[None, :-1])[0].double().log_softmax(-1)
        total -= float(scores[torch.arange(32), ids[1:]].sum())
    assert data.tokenizer is not None
    text = data.tokenizer.decode(tokens[1 : found.tokens + 1].tolist(), skip_special_tokens=True)
    assert found.val_loss == pytest.approx(total / found.tokens, rel=1e-5)
    assert found.text_bytes == len(text.encode())
    assert found.val_bpb == pytest.approx(total / math.log(2) / found.text_bytes, rel=1e-5)
    assert found.bytes_total == (run / "model.quest").stat().st_size + 50


def test_what_would_void_a_score_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (run / "model.quest").stat().st_size
    with pytest.raises(OverBudgetError, match="1 more than the budget"):
        score(run / "model.quest", Budget(size - 1))
    with pytest.raises(DataError, match="less than a window of 65536"):
        score(run / "model.quest", Budget(10**7), seq_len=65536)
    with pytest.raises(ArtifactError, match="is not a packed model"):
        score(run, Budget(10**7))
    right = contest._table
    wrong = lambda *given: right(*given)._replace(own=right(*given).own + 1)  # noqa: E731
    monkeypatch.setattr(contest, "_table", wrong)
    with pytest.raises(DataError, match="bits per byte would be wrong"):
        score(run / "model.quest", Budget(10**7))


def test_a_model_that_sees_what_comes_is_refused() -> None:
    tokens, cpu = np.arange(17, dtype=np.int64), torch.device("cpu")
    one_hot = lambda ids: torch.nn.functional.one_hot(ids, 20).float()  # noqa: E731
    check_probabilities(one_hot, tokens, cpu)
    with pytest.raises(ArtifactError, match="sees them"):
        check_probabilities(lambda ids: one_hot(ids.roll(-1, 1)), tokens, cpu)
    with pytest.raises(ArtifactError, match="sees them"):
        check_probabilities(lambda ids: one_hot(ids.roll(-1, 1)), np.zeros_like(tokens), cpu)
    with pytest.raises(ArtifactError, match="sum to nan"):
        check_probabilities(lambda ids: one_hot(ids) / 0, tokens, cpu)


def test_the_command_writes_a_submission_of_several_seeds(
    run: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    model = str(run / "model.quest")
    other = shutil.copy(model, "other.quest")
    code, out, err = command("contest", model, other, "--out", "submission.json", "--name", "tiny", "--device", "cpu")
    assert code == 0, err
    assert "bytes of text" in out
    written = json.loads(Path("submission.json").read_text(encoding="utf-8"))
    assert (written["name"], len(written["seeds"]), written["val_bpb_std"]) == ("tiny", 2, 0.0)
    assert written["bytes_total"] == (run / "model.quest").stat().st_size
    code, out, err = command("contest", model, "--out", "nowhere/submission.json", "--device", "cpu")
    assert (code, out) == (2, "")  # before anything is measured
    assert "the folder nowhere does not exist" in err
    code, out, err = command("contest", other, other, "--device", "cpu")
    assert (code, out) == (2, "")
    assert "a model is named twice" in err
