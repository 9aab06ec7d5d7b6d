"""Check the source distribution and the wheel of this Python in a folder, and use the wheel from another folder.

    python scripts/check_wheel.py dist                  # in a fresh environment, with the versions in requirements.lock
    python scripts/check_wheel.py dist --packages-here  # downloads nothing: uses the packages of this Python

The wheel must hold the files of `src/questlm`, byte for byte, and the compiled kernels, and nothing else. Where it was
built from the source distribution, as `python -m build` does, that also shows the source distribution to be complete.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"

_CORPUS = "the quick brown fox jumps over a lazy dog while seven wizards quietly bake cakes\n"
_TINY = "model.layers=1 model.hidden=32 model.heads=2 model.mlp_hidden=64 train.seq_len=32 train.batch_size=4"
# What needs files of the package beside the modules: the kernels, the published runs, the table of GPUs, Triton's code.
_FILES_ARE_FOUND = """
import importlib.util, pathlib, sys
import questlm
from questlm.ops.cpu.native import unavailable
from questlm.scaling import published_runs
from questlm.scaling.hardware import find_gpu

where = pathlib.Path(questlm.__file__).resolve()
assert where.is_relative_to(pathlib.Path(sys.prefix).resolve()), f"questlm was imported from {where}"
assert unavailable() is None, unavailable()
assert len(published_runs()) == 58
assert find_gpu("H100").name
assert importlib.util.find_spec("questlm.ops.triton.quantize") is not None
"""


def main() -> None:
    """Check the distributions in a folder; end with a sentence where one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds one source distribution and a wheel for this Python")
    parser.add_argument("--packages-here", action="store_true", help="download nothing")
    options = parser.parse_args()
    wheel = _only(options.folder, f"questlm-*-cp{sys.version_info[0]}{sys.version_info[1]}-*.whl")
    check_source_distribution(_only(options.folder, "questlm-*.tar.gz"))
    check_wheel(wheel)
    with tempfile.TemporaryDirectory() as folder:
        commands = install(wheel, Path(folder) / "environment", options.packages_here)
        use(commands, Path(folder) / "elsewhere")
    print(f"{wheel.name} is complete, and works from another folder.")


def check_source_distribution(path: Path) -> None:
    """Exit unless the archive holds everything that a build needs."""
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    needed = {"pyproject.toml", "setup.py", "README.md", "LICENSE", *(f"src/{name}" for name in source_files())}
    _require(path, missing=needed - names)


def check_wheel(path: Path) -> None:
    """Exit unless the wheel is `src/questlm`, byte for byte, and the kernels."""
    expected = source_files()
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
        changed = {name for name in expected.keys() & names if archive.read(name) != expected[name]}
    kernels = {name for name in names if name.startswith("questlm/ops/cpu/_kernels.")}
    _require(path, missing=expected.keys() - names, spare=names - expected.keys() - kernels, changed=changed)
    if len(kernels) != 1:
        sys.exit(f"{path.name} has {len(kernels)} compiled kernels, not one: is a C compiler on the PATH?")


def source_files() -> dict[str, bytes]:
    """Name and content of each file of the package that is no product of a build."""
    files = (path for path in (SOURCE / "questlm").rglob("*") if path.is_file())
    kept = (path for path in files if path.suffix not in (".pyc", ".so"))
    return {path.relative_to(SOURCE).as_posix(): path.read_bytes() for path in kept}


def install(wheel: Path, environment: Path, packages_here: bool) -> Path:
    """Install into a new environment; return the folder of its commands."""
    if packages_here:
        subprocess.run([sys.executable, ROOT / "scripts" / "system_torch.py", environment], check=True)
        how = ["--no-deps", "--force-reinstall"]
    else:
        venv.create(environment, with_pip=True, symlinks=True)
        how = ["--constraint", str(ROOT / "requirements.lock")]
    commands = environment / "bin"
    subprocess.run([commands / "python", "-m", "pip", "install", "--quiet", *how, wheel.resolve()], check=True)
    return commands


def use(commands: Path, folder: Path) -> None:
    """Train, pack, run and measure a tiny model with the installed package, in a folder that has nothing of it."""
    folder.mkdir()
    (folder / "text.txt").write_text("<|endoftext|>\n".join([_CORPUS * 8] * 40), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = kept | {"QUESTLM_CACHE": str(folder / "cache")}

    def run(*words: str | Path) -> str:
        print("$", *(word if len(str(word)) < 100 else "..." for word in words), flush=True)
        job = subprocess.run(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if job.returncode:
            sys.exit(f"ended with exit code {job.returncode}: {job.stdout}")
        return job.stdout

    quest = commands / "quest"
    settings = [
        word for pair in f"data.vocab_size=300 train.checkpoint_every=4 {_TINY}".split() for word in ("--set", pair)
    ]
    run(commands / "python", "-c", _FILES_ARE_FOUND)
    for words in (["--version"], ["methods"], ["doctor"], ["plan", "--memory", "16MB", "--tokens", "100M"]):
        assert run(quest, *words).strip()
    run(quest, "train", "--preset", "nano", "--data", "text.txt", "--tokens", "1024", "--out", "run", *settings)
    run(quest, "pack", "run", "--out", "model")
    assert run(quest, "generate", "model", "--prompt", "the quick", "--max-tokens", "4").strip()
    assert "bits" in run(quest, "eval", "model", "--data", "text.txt")


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(
            f"{folder} must hold one file {pattern}, and holds {len(found)}. `make wheel` builds into an empty folder."
        )
    return found[0]


def _require(path: Path, **faults: set[str]) -> None:
    found = {fault: sorted(names) for fault, names in faults.items() if names}
    if found:
        sys.exit(
            f"{path.name} is not the package in {SOURCE}: "
            + "; ".join(f"{k}: {', '.join(v)}" for k, v in found.items())
        )


if __name__ == "__main__":
    main()
