"""`make SYSTEM_TORCH=1`: the environment sees the packages of the Python that has torch, and pip keeps that torch."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tests.system_torch", ROOT / "scripts" / "system_torch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_environment_sees_the_packages_of_this_python(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "lib" / "python3.12" / "site-packages"
    monkeypatch.setattr(script.venv, "create", lambda folder, **_: packages.mkdir(parents=True))
    monkeypatch.setattr(script, "version", lambda name: "2.11.0a0+git12")
    monkeypatch.setattr(sys, "path", ["", "/usr/lib/python3.12", "/usr/lib/dist-packages", "/home/a b/site-packages"])
    script.main(tmp_path)
    assert (packages / "system.pth").read_text() == "/usr/lib/dist-packages\n/home/a b/site-packages\n"
    assert (tmp_path / "torch.txt").read_text() == "torch==2.11.0a0+git12\n"


@pytest.mark.parametrize(
    ("version", "fault"), [("2.9.1+cu128", "has torch 2.9.1+cu128, which is too old"), (None, "has no torch")]
)
def test_a_torch_that_does_not_serve_is_refused(
    version: str | None, fault: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(name: str) -> str:
        if version is None:
            raise PackageNotFoundError(name)
        return version

    monkeypatch.setattr(script, "version", installed)
    with pytest.raises(SystemExit, match=r"SYSTEM_TORCH=1 needs torch 2\.10 or newer") as stop:
        script.main(tmp_path)
    assert fault in str(stop.value)
    assert list(tmp_path.iterdir()) == []


def test_the_oldest_torch_is_the_one_that_the_package_asks_for(script: ModuleType) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert f"torch>={'.'.join(map(str, script.OLDEST))}" in settings["project"]["dependencies"]
