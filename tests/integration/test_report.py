"""`quest report` on a run that was trained, beside published ones; and the page in a browser, where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from questlm.cli import main
from questlm.config import RunConfig
from questlm.records import RunRecord
from questlm.report import write_report
from questlm.scaling import fit_law, published_runs, read_runs
from questlm.training import train

CHROMIUM = shutil.which("chromium")
PROBE = """
<script>
  const page = document.documentElement, shown = e => e.getClientRects().length > 0;
  const svgs = [...document.querySelectorAll("svg")];
  const colors = () => getComputedStyle(document.body).backgroundColor;
  const before = colors();
  document.getElementById("theme").click();
  const after = colors();
  const result = {
    width: page.clientWidth, scroll: page.scrollWidth, before: before, after: after,
    shown: svgs.filter(shown).length, pictures: svgs.length, evil: typeof window.evil,
    texts: Math.min(...svgs.filter(shown).flatMap(s => [...s.querySelectorAll("text")].map(t => t.getBBox().width
      ? t.getBoundingClientRect().height : 99))),
  };
  parent.postMessage(JSON.stringify(result), "*");
</script></body>
"""
FRAME = """<!DOCTYPE html><body><script>
  window.onmessage = message => document.body.setAttribute("data-probe", message.data);
</script><iframe style="border:0;width:{width}px;height:900px" src="{page}"></iframe></body>"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published runs in BF16 and in 4 bits, as a file of rows."""
    path = tmp_path_factory.mktemp("rows") / "published<script>evil=1</script>.json".replace("/", "⁄")
    chosen = [run for run in published_runs() if (run.weight_bits, run.act_bits) in {(16, 16), (4, 4)}]
    path.write_text(
        json.dumps(
            [
                {
                    "N": run.parameters, "D": run.tokens, "w_bits": run.weight_bits, "a_bits": run.act_bits,
                    "format": run.format, "method": run.method, "loss": run.loss,
                }
                for run in chosen
            ]
        )
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def page(rows: Path) -> Path:
    """A report on them, with a law."""
    return write_report([rows], rows.with_name("page.html"), show_progress=False).page


def _quest(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["quest", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, out + err


def test_a_trained_run_beside_published_ones(
    rows: Path, tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny, tmp_path / "runs" / "tiny")
    law, page = tmp_path / "law.json", tmp_path / "page.html"
    fit_law(read_runs([rows]), draws=2).save(law)
    arguments = ["report", str(tmp_path / "runs"), str(rows), "--fit", str(law), "--out", str(page)]
    code, said = _quest(arguments, monkeypatch, capsys)
    assert code == 0, said
    assert f"Wrote {page}: 21 runs, with a fitted law" in said
    assert f"Wrote 4 pictures as SVG, PNG and CSV to {tmp_path / 'page_files'}" in said
    assert "21 runs: the law misses by" in page.read_text()
    curve = (tmp_path / "page_files" / "curves.csv").read_text().splitlines()
    assert len(curve) == 1 + len(RunRecord.load(tmp_path / "runs" / "tiny").curve) + 1  # and the final validation


def test_a_report_on_nothing_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = _quest(["report", str(tmp_path)], monkeypatch, capsys)
    assert code == 2
    assert said == f"quest: error: {tmp_path} is neither a run folder nor a folder of them: no record.json in it\n"


@pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium (Debian: apt-get install chromium)")
@pytest.mark.parametrize(("width", "dark"), [(320, False), (1200, True)])
def test_a_browser_shows_the_page(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    """No sideways scrolling on a small phone, legible text, the theme asked for and the button, no foreign script."""
    text = page.read_text()
    assert text.count("</body>") == 1
    probed = tmp_path / "probed.html"  # the policy would, rightly, forbid the probe
    probed.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace("</body>", PROBE))
    result = _probe(probed, width, dark)
    assert result["width"] == result["scroll"] == width
    assert result["pictures"] == 2 * result["shown"] == 6  # a wide and a narrow form of each, one of them shown
    assert result["evil"] == "undefined"
    light, night = "rgb(245, 246, 248)", "rgb(17, 20, 23)"
    assert (result["before"], result["after"]) == ((night, light) if dark else (light, night))
    assert result["texts"] >= 9  # pixels of the lowest line of text in a picture


@pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium (Debian: apt-get install chromium)")
def test_a_browser_prints_the_page(page: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.pdf"
    _chromium(tmp_path, f"--print-to-pdf={out}", page.as_uri())
    assert out.read_bytes().startswith(b"%PDF")


@pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium (Debian: apt-get install chromium)")
def test_the_policy_lets_the_page_s_own_script_through(page: Path, tmp_path: Path) -> None:
    shown = _chromium(tmp_path, "--dump-dom", page.as_uri())
    assert re.search(r'<button id="theme" type="button">(Dark|Light) theme</button>', shown)


def _probe(page: Path, width: int, dark: bool) -> dict[str, object]:
    """What the page says of itself in a frame of that width; a headless window has a least one."""
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(width=width, page=page.as_uri()))
    theme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    shown = _chromium(page.parent, "--dump-dom", "--virtual-time-budget=3000", theme, frame.as_uri())
    match = re.search(r'data-probe="([^"]+)"', shown)
    assert match is not None
    found = json.loads(unescape(match[1]))
    assert isinstance(found, dict)
    return found


def _chromium(folder: Path, *arguments: str) -> str:
    flags = [
        "--headless",
        "--no-sandbox",
        "--hide-scrollbars",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command = [str(CHROMIUM), *flags, "--window-size=1300,1000", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
