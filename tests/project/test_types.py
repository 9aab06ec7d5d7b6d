"""A type checker sees the types of the public names in a program outside this tree."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import questlm

PROGRAM = """\
import questlm
config = questlm.load_config("nano", overrides=["budget.seconds=1"])
model = questlm.prepare(questlm.Llama(config.model), questlm.QuantSpec(weight_bits=2))
reveal_type(questlm.evaluate("runs/nano").gap)
reveal_type(questlm.load("packed").generate("def "))
reveal_type(questlm.train(config, "runs/nano").final)
reveal_type(model)
questlm.pack(model, 3)
"""
ANSWERS = [
    'program.py:4: note: Revealed type is "float | None"',
    'program.py:5: note: Revealed type is "str"',
    'program.py:6: note: Revealed type is "dict[str, float | None] | None"',
    'program.py:7: note: Revealed type is "questlm.models.llama.Llama"',
    'program.py:8: error: Argument 2 to "pack" has incompatible type "int"; expected "str | Path"  [arg-type]',
    "Found 1 error in 1 file (checked 1 source file)",
]


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """The Python of an environment that has this questlm as an installed package, and what is installed here."""
    venv.create(tmp_path / "environment", symlinks=True)
    scheme = {"base": str(tmp_path / "environment"), "platbase": str(tmp_path / "environment")}
    packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    (packages / "questlm").symlink_to(Path(questlm.__path__[0]), target_is_directory=True)
    (packages / "installed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return Path(sysconfig.get_path("scripts", "venv", scheme)) / "python"


@pytest.mark.slow
def test_a_program_of_a_user_is_checked_against_our_types(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", str(environment)]
    done = subprocess.run([*command, "program.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == ANSWERS, done.stderr
