"""Whatever a command writes, other users may read it if the umask lets them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from questlm.config import RunConfig, to_yaml


@pytest.fixture
def umask() -> Iterator[None]:
    """Not the usual one, so that permissions written into the code are found out."""
    old = os.umask(0o027)
    yield
    os.umask(old)


def test_all_that_the_commands_write_has_the_permissions_of_the_umask(
    umask: None, tiny: RunConfig, tmp_path: Path, command: Callable[..., tuple[int, str, str]], monkeypatch: Any
) -> None:
    monkeypatch.setenv("QUESTLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.yaml").write_text(to_yaml(tiny))
    fixed = {"model": {"layers": 1, "hidden": 32, "heads": 2, "mlp_hidden": 64, "vocab_size": 300}}
    fixed |= {"data": tiny.data.model_dump(), "train": {"seq_len": 32, "batch_size": 4, "device": "cpu"}}
    grid = {"sizes": ["125k"], "bits": [4], "tokens_per_parameter": [0.1], "set": fixed}
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    for words in (
        "train --config tiny.yaml --out runs/a",
        "pack runs/a --out packed",
        "sweep grid.yaml --out runs",
        "sweep grid.yaml --out others --slurm sweep.sh",
        "report runs --out report.html",
    ):
        code, _, errors = command(*words.split())
        assert code == 0, errors
    written = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    kinds = {path.suffix for path in written}
    assert {".safetensors", ".bin", ".json", ".yaml", ".html", ".svg", ".png", ".csv", ".log", ".sh"} <= kinds
    odd = {str(path): oct(mode) for path, mode in written.items() if mode != (0o750 if path.is_dir() else 0o640)}
    assert odd == {}
    assert not [path for path in written if path.name.startswith(".tmp-")]
