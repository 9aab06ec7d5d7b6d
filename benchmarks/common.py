"""What the benchmarks share: how a result is labelled, how windows are summed up, how a model is let go again."""

from __future__ import annotations

import datetime
import gc
import json
import multiprocessing
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def header(benchmark: str, device: torch.device, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Date, device, command, versions and settings: what every result begins with. Paths in it are last parts only."""
    from questlm.records import package_versions
    from questlm.training.device import device_name

    return {
        "benchmark": benchmark,
        "command": command(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": device_name(device),
        "versions": {**_versions(), **package_versions(), "processor": platform.processor() or platform.machine()},
        "settings": {name: value.name if isinstance(value, Path) else value for name, value in settings.items()},
    }


def command() -> str:
    """The command line, without the folders of absolute paths."""
    words = [_without_folders(word) for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def _without_folders(word: str) -> str:
    """A word of a command, PATH or NAME=PATH, with the last part alone of an absolute path."""
    name, mark, value = word.rpartition("=")
    return f"{name}{mark}{Path(value).name}" if Path(value).is_absolute() else word


def device_slug(device: torch.device) -> str:
    """Short name of a device for file names: 'h100', 'cpu', ..."""
    if device.type == "cpu":
        return "cpu"
    words = re.sub(r"[^a-z0-9 ]", " ", torch.cuda.get_device_name(device).lower()).split()
    return next((word for word in words if re.fullmatch(r"[a-z]*\d+[a-z]*", word)), "gpu")


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes, and their distance as a share of the median, of times in seconds."""
    median = statistics.median(values)
    return {
        "median": median,
        "min": min(values),
        "max": max(values),
        "spread": round((max(values) - min(values)) / median, 4) if median else 0.0,
        "count": len(values),
    }


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path.name}", flush=True)


def free_memory() -> None:
    """Forget compiled code and give the GPU's memory back, so that what comes next begins as the first did."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def fill_caches(function: Callable[..., None], jobs: Sequence[tuple[Any, ...]], processes: int) -> None:
    """Call `function` on each of `jobs`, in processes that share the cores: for the compilers' caches on disk."""
    started = time.perf_counter()
    variable, cores = "TORCHINDUCTOR_COMPILE_THREADS", os.cpu_count() or 1
    before = os.environ.get(variable)
    os.environ[variable] = str(max(1, cores // processes))
    try:
        with multiprocessing.get_context("spawn").Pool(min(processes, len(jobs))) as pool:
            pool.starmap(function, jobs, chunksize=1)
    finally:
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before
    print(f"filled the compilers' caches in {time.perf_counter() - started:.0f} s", flush=True)


def _versions() -> dict[str, str]:
    found = {"cuda": str(torch.version.cuda)}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        pass
    return found
