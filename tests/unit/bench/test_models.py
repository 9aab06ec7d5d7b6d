from __future__ import annotations

import json
from pathlib import Path

import pytest

from questlm.bench import decode_speed, models, prefill_speed
from questlm.errors import ArtifactError, ConfigError
from questlm.memory import Memory


def test_decoding_is_timed_at_every_batch(packed: Path) -> None:
    report = decode_speed([packed], [1, 2], seconds=0.01, weights="packed")
    assert [(each.what, each.shape, each.bits, each.batch) for each in report.comparisons] == [
        ("model by layers", "2 x 32", "W4A4", 1),
        ("model by layers", "2 x 32", "W4A4", 2),
    ]
    assert json.loads(json.dumps(report.as_json()))["kind"] == "decode"


def test_prompts_are_timed_at_every_length(packed: Path) -> None:
    report = prefill_speed([packed, packed], [5], seconds=0.01)
    assert [(each.artifact, each.batch) for each in report.comparisons] == [("tiny", 5), ("tiny", 5)]
    assert {each.what for each in report.comparisons} == {"model in one call"}


def test_without_memory_for_the_float_model_it_says_so(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "host_memory", lambda: Memory(free=10, total=20))
    with pytest.raises(ConfigError, match="the model in float32 to compare with needs"):
        decode_speed([packed])


def test_a_folder_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        prefill_speed([tmp_path])
