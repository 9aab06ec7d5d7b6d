"""Every example runs and prints what it promises."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMISES = {
    "hugging_face_accelerate.py": ["step 40: loss", "FakeQuantLinear"],
    "hugging_face_lora.py": ["(base_layer): FakeQuantLinear", "(default): Linear(in_features=64, out_features=32"],
    "hugging_face_sft.py": ["step 60: loss"],
    "hugging_face_trainer.py": ["step 60: loss"],
    "quantize_any_module.py": ["FakeQuantLinear", "step 100: loss", "Linear(in_features=32"],
    "quantize_hugging_face.py": ["step 20: loss", "torch.nn.modules.linear.Linear"],
    "stream_text.py": ["def main", "bytes on disk"],
}


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PROMISES)


@pytest.mark.parametrize("name", PROMISES)
def test_an_example_runs(
    name: str,
    packed_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *([str(packed_model), "def main"] if name == "stream_text.py" else [])])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    output = capsys.readouterr().out
    assert all(promise in output for promise in PROMISES[name]), output
    losses = [float(line.split("loss ")[1].split()[0]) for line in output.splitlines() if ": loss " in line]
    assert not losses or losses[-1] < 0.7 * losses[0]  # it trains: the loss must fall
