"""The notebook runs from its first cell to its last, here on little text; `make docs` runs it as it is."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOK = NOTEBOOKS / "from-text-to-a-packed-model.ipynb"


def cells(kind: str) -> list[str]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


@pytest.mark.slow
def test_the_notebook_runs_and_ends_with_a_packed_model(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names: dict[str, Any] = {"__name__": "__main__"}
    changes = {'"stdlib"': repr(str(corpus)), "40_000": "2 * 8 * 32", '"250k",': '"250k", overrides=SMALL,'}
    names["SMALL"] = ["data.vocab_size=300", "train.seq_len=32", "train.eval_tokens=256", "train.log_every=1"]
    for number, source in enumerate(cells("code")):
        for old, new in changes.items():
            source = source.replace(old, new)
        exec(compile(source, f"cell {number}", "exec"), names)
    assert names["measured"].gap == pytest.approx(0, abs=1e-5)
    assert "loss" in capsys.readouterr().out
    assert (names["FOLDER"] / "packed" / "MANIFEST.json").is_file()


def test_the_notebook_has_no_outputs_and_leads_to_pages() -> None:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") for cell in content["cells"]), "clear the outputs: the site shows fresh ones"
    text = "\n".join(cells("markdown"))
    pages = [part.partition(")")[0] for part in text.split("](")[1:]]
    assert pages and all((NOTEBOOKS / page).is_file() for page in pages)
