"""`make wheel-check` finds what a wheel or a source distribution lacks, and what does not belong there."""

from __future__ import annotations

import importlib.util
import io
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
FILES = {"questlm/__init__.py": b"a = 1\n", "questlm/py.typed": b"", "questlm/ops/cpu/rows.h": b"int a;\n"}
KERNEL = {"questlm/ops/cpu/_kernels.cpython-311-x86_64-linux-gnu.so": b"\x7fELF"}
BESIDE = {"pyproject.toml": b"", "setup.py": b"", "README.md": b"", "LICENSE": b""}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, for a package of three files and what a build has left beside them."""
    spec = importlib.util.spec_from_file_location("tests.check_wheel", ROOT / "scripts" / "check_wheel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, content in (FILES | KERNEL | {"questlm/__pycache__/a.pyc": b""}).items():
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    monkeypatch.setattr(module, "SOURCE", tmp_path / "src")
    return module


def wheel(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "questlm-1-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (files | {"questlm-1.dist-info/METADATA": b""}).items():
            archive.writestr(name, content)
    return path


def source_distribution(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "questlm-1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"questlm-1/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_the_package_and_its_kernels_are_a_wheel(script: ModuleType, tmp_path: Path) -> None:
    script.check_wheel(wheel(tmp_path, FILES | KERNEL))
    script.check_source_distribution(source_distribution(tmp_path, BESIDE | {f"src/{k}": v for k, v in FILES.items()}))


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({name: FILES[name] for name in list(FILES)[:2]} | KERNEL, "missing: questlm/ops/cpu/rows.h"),
        (FILES | KERNEL | {"tests/test_a.py": b""}, "spare: tests/test_a.py"),
        (FILES | KERNEL | {"questlm/__init__.py": b"a = 2\n"}, "changed: questlm/__init__.py"),
        (FILES, "0 compiled kernels"),
    ],
)
def test_any_other_wheel_is_refused(script: ModuleType, tmp_path: Path, files: dict[str, bytes], fault: str) -> None:
    with pytest.raises(SystemExit, match=fault):
        script.check_wheel(wheel(tmp_path, files))


def test_a_source_distribution_without_a_header_is_refused(script: ModuleType, tmp_path: Path) -> None:
    files = {f"src/{name}": content for name, content in FILES.items() if not name.endswith(".h")}
    with pytest.raises(SystemExit, match=r"missing: src/questlm/ops/cpu/rows\.h"):
        script.check_source_distribution(source_distribution(tmp_path, BESIDE | files))


def test_a_folder_with_two_wheels_is_refused(script: ModuleType, tmp_path: Path) -> None:
    wheel(tmp_path, {}).with_name("questlm-2-cp311-none-any.whl").touch()
    with pytest.raises(SystemExit, match="holds 2"):
        script._only(tmp_path, "questlm-*.whl")
