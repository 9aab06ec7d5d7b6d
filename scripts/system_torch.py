"""Make a virtual environment that uses the packages of the Python that runs this script, for `make SYSTEM_TORCH=1`.

    python scripts/system_torch.py VENV

Refuses a Python without a torch that questlm works with. In VENV, a `.pth` file names the folders of this Python's
packages; that does what `venv --system-site-packages` does, and works where this Python is itself in a virtual
environment. `torch.txt` is a constraint that makes pip keep this torch.
"""

from __future__ import annotations

import re
import sys
import venv
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OLDEST = (2, 10)


def main(environment: Path) -> None:
    """Make the environment, or exit with a sentence that says why this Python's torch does not serve."""
    try:
        installed = version("torch")
    except PackageNotFoundError:
        sys.exit(_refusal("has no torch"))
    if tuple(map(int, re.findall(r"\d+", installed)[:2])) < OLDEST:
        sys.exit(_refusal(f"has torch {installed}, which is too old"))
    folders = [folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")]
    venv.create(environment, clear=True, symlinks=True, with_pip=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "system.pth").write_text("".join(f"{folder}\n" for folder in folders), encoding="utf-8")
    (environment / "torch.txt").write_text(f"torch=={installed}\n", encoding="utf-8")
    print(f"Using torch {installed} of {sys.executable}.")


def _refusal(fault: str) -> str:
    oldest = ".".join(map(str, OLDEST))
    return (
        f"SYSTEM_TORCH=1 needs torch {oldest} or newer, and {sys.executable} {fault}: name a Python that has it with "
        f"PYTHON=..., or leave out SYSTEM_TORCH=1 to install torch."
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
