"""How much of the communication between GPUs is hidden behind computing, from a profile of a few training steps."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_Intervals = list[tuple[float, float]]


def profile_overlap(step: Callable[[], object], steps: int, recording: bool) -> dict[str, Any] | None:
    """Take `steps` steps; where `recording`, return `overlap` of what this process's GPU did meanwhile."""
    if not (recording and torch.cuda.is_available()):
        for _ in range(steps):
            step()
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(file))
        return overlap(json.loads(file.read_text(encoding="utf-8"))["traceEvents"], steps)


def overlap(events: Iterable[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Milliseconds a step: all of it, computing, communication, the part of that beside no computing, and nothing.

    Args:
        events: of a Chrome trace; times in microseconds. Kernels whose name has 'nccl' communicate, also while they
            wait for the other processes.
    """
    named: defaultdict[str, _Intervals] = defaultdict(list)
    for event in events:
        if event.get("cat") in _ON_GPU:
            named[event["name"]].append((event["ts"], event["ts"] + event["dur"]))
    sending = {name: times for name, times in named.items() if "nccl" in name.lower()}
    computing = _union(time for name, times in named.items() if name not in sending for time in times)
    communicating = _union(time for times in sending.values() for time in times)
    busy = _union([*computing, *communicating])
    span = busy[-1][1] - busy[0][0] if busy else 0.0
    exposed = {name: _length(_union([*computing, *times])) - _length(computing) for name, times in sending.items()}
    parts = {
        "step": span,
        "computing": _length(computing),
        "communicating": _length(communicating),
        "exposed": _length(busy) - _length(computing),
        "idle": span - _length(busy),
    }
    shown = {name: round(time / 1e3 / steps, 4) for name, time in parts.items()}
    kernels = {
        name[:80]: {
            "launches": len(times) / steps,
            "milliseconds": round(_length(times) / 1e3 / steps, 4),
            "exposed": round(exposed[name] / 1e3 / steps, 4),
        }
        for name, times in sorted(sending.items(), key=lambda item: -_length(item[1]))
    }
    return {"milliseconds_per_step": shown, "communication": kernels}


def _union(intervals: Iterable[tuple[float, float]]) -> _Intervals:
    """Disjoint intervals that cover the same times, in order."""
    found: _Intervals = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def _length(intervals: _Intervals) -> float:
    return sum(end - begin for begin, end in intervals)
