"""`quest fit` from end to end: tables, file, picture, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from questlm import plotting
from questlm.scaling import LawFit, law_picture, variants

Quest = Callable[..., tuple[int, str, str]]


@pytest.fixture
def quest(command: Quest, monkeypatch: pytest.MonkeyPatch) -> Quest:
    """Run `quest fit ...` in an empty folder: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "100")
    return partial(command, "fit")


def _rows(sizes: tuple[int, ...] = (10**7, 3 * 10**7, 10**8)) -> list[dict[str, Any]]:
    rows = []
    for size in sizes:
        for ratio in (10, 50, 250):
            for bits, eff in ((16, 1.0), (2, 0.2), (4, 0.7)):
                wobble = 1 + 0.001 * (-1) ** len(rows)
                loss = (400 / (size * eff) ** 0.34 + 410 / (size * ratio) ** 0.28 + 1.7) * wobble
                name, method = ("bf16", "bf16") if bits == 16 else (f"int{bits}", "quest")
                rows.append({
                    "N": size, "D": size * ratio, "w_bits": bits, "a_bits": bits, "format": name, "method": method,
                    "loss": loss,
                })  # fmt: skip
    return rows


@pytest.mark.slow
def test_rows_become_tables_a_file_and_a_picture(quest: Quest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "_DEALS", 1)
    monkeypatch.setattr(variants, "_FOLDS", 3)
    monkeypatch.setattr(variants, "_STARTS", 4)
    monkeypatch.setattr(variants, "_STARTS_A_FOLD", 1)
    (tmp_path / "rows.json").write_text(json.dumps(_rows()))
    code, out, err = quest("rows.json", "--json", "law.json", "--picture", "law.png", "--compare")
    assert code == 0, err
    for words in ("fitted to 27 runs", "quest/w4a4/int4", "by definition", "additive, N and D", "Wrote law.json"):
        assert words in out
    law = LawFit.load(tmp_path / "law.json")
    assert law.eff["quest/w4a4/int4"].value == pytest.approx(0.7, rel=0.1)
    assert law.draws["alpha"].shape == (200,)
    assert (tmp_path / "law.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_picture_can_be_svg_of_any_law(synthetic_law: LawFit, tmp_path: Path) -> None:
    law_picture.draw_fit(synthetic_law, tmp_path / "law.svg")
    picture = (tmp_path / "law.svg").read_text()
    assert "effective parameters" in picture
    assert "quest/w2a2/int2" in picture


@pytest.fixture(scope="module")
def synthetic_law(tmp_path_factory: pytest.TempPathFactory) -> LawFit:
    from questlm.scaling import fit_law, read_runs

    path = tmp_path_factory.mktemp("law") / "rows.json"
    path.write_text(json.dumps(_rows()))
    return fit_law(read_runs([path]), draws=3)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("none.json",), "none.json does not exist"),
        ((), "Missing argument"),
        (("rows.json", "--json", "no/law.json"), "the folder no does not exist; make it first"),
        (("rows.json", "--picture", "law.bmp"), "has no known file type; end its name in .png, .svg, .pdf"),
        (("short.json",), "none of the 2 runs is a BF16 one"),
        (("nan.json",), "row 1 of nan.json has loss = nan"),
        (("negative.json",), "row 27 of negative.json has D = -5"),
        (("twice.json",), "is there twice, with loss"),
        (("rows.json", "rows.json"), "is there twice, with loss"),
        (("rows.json", "--json", "rows.json"), "rows.json is what the law is fitted to"),
        (("key.json",), "the key 'N' is there twice"),
        ((".",), "neither a run folder nor a folder of them"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    words: tuple[str, ...], expected: str, quest: Quest, tmp_path: Path
) -> None:
    rows = _rows()
    files = {
        "rows": rows,
        "short": rows[1:3],
        "nan": [rows[0] | {"loss": float("nan")}, *rows[1:]],
        "negative": [*rows[:-1], rows[-1] | {"D": -5}],
        "twice": [*rows, rows[5]],
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "key.json").write_text('[{"N": 1000000, "N": 5}]')
    code, out, err = quest(*words)
    assert code == 2
    assert out == ""
    assert expected in err
    assert err.count("\n") == 1


def test_matplotlib_is_asked_for_before_anything_is_computed(
    quest: Quest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(_rows()))
    monkeypatch.setattr(plotting, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    code, _, err = quest("rows.json", "--picture", "law.png")
    assert code == 2
    assert "questlm[plots]" in err
    assert "fitting" not in err
