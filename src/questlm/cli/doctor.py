"""`quest doctor`: what this machine has, what each operation would run on, and what is missing."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

from questlm.cli.options import print_table

__all__ = ["doctor"]

_EXTRAS = {"datasets": "hf", "matplotlib": "plots", "tensorboard": "tensorboard", "wandb": "wandb"}


def doctor() -> None:
    """Say what this machine has, what each operation can run on, and the command to get what is missing.

    Of the implementations of an operation, the first that runs is used.

    Example:

        quest doctor
    """
    import torch

    from questlm.ops import BACKENDS, unavailable
    from questlm.ops.survey import survey
    from questlm.records import package_versions

    print_table("this machine", [*package_versions().items(), *_hardware(), *_build_tools()])
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        found = survey(torch.device(device))
        rows = [(f"{operation}: {name}", reason or "runs") for operation, name, reason in found]
        print_table(f"operations on {device}, fastest first", rows)
    reasons = ((name, unavailable(name)) for name in BACKENDS if name != "auto")
    print_table("backends", [(name, f"no: {reason}" if reason else _yes(name)) for name, reason in reasons])
    extras = []
    for package, extra in _EXTRAS.items():
        missing = find_spec(package) is None
        extras.append((package, f"missing; get it with: pip install 'questlm[{extra}]'" if missing else "yes"))
    print_table("extras", extras)


def _yes(backend: str) -> str:
    if backend != "cpu":
        return "yes"
    from questlm.ops.cpu import native

    here = ", ".join(native.instruction_sets())
    return f"yes, packed weights with {native.instruction_set()} (QUESTLM_CPU chooses among: {here})"


def _hardware() -> list[tuple[str, str]]:
    import torch

    rows = [("processors", f"{os.cpu_count()} ({torch.get_num_threads()} threads used)")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"compute capability {properties.major}.{properties.minor}"
        rows.append((f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {capability}"))
    if not torch.cuda.is_available():
        rows.append(("cuda", "none; training runs on the CPU in float32"))
    return rows


def _build_tools() -> list[tuple[str, str]]:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    needed = "none; native CPU kernels and torch.compile need one, for example: apt-get install gcc g++"
    return [("C compiler", compiler or needed)]
