"""What the GPU does during one training step: time and launches of its kernels, by what they are for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

_KINDS = (
    ("copies", r"^mem(cpy|set)"),
    ("attention", r"flash|fmha|sdpa|attention"),
    ("matmul fp8", r"e4m3|float8|fp8|f8f8|nvjet(_sm\d+)?_q"),
    ("matmul bf16", r"nvjet|gemm|gemv|cutlass|xmma|splitk"),
    ("optimizer", r"adam|multi_tensor|lpnorm|_nesterov|_decayed_step|_symmetric_product"),
)
"""Words in the names of kernels; the first kind that fits has it."""

_OURS = "questlm::triton_"
_OURS_BY_NAME = re.compile(r"^_(kernel|forward|backward|(quantize|masked_hadamard|norm|swiglu)\w*)$")
_TOP = 12


def profile_step(step: Callable[[], object]) -> dict[str, Any]:
    """Kernels of one `step` on the current GPU: milliseconds and launches in all, milliseconds by kind, the longest.

    Kernels of ours are told apart by the operator that starts them; where none is seen (a replayed graph), by name.
    """
    kernels = _kernels(step)
    ours = _operators(step)
    kinds: defaultdict[str, float] = defaultdict(float)
    for name, (milliseconds, _) in kernels.items():
        if _OURS_BY_NAME.match(name):
            kinds["ours: " + name] += 0.0 if ours else milliseconds
        else:
            kinds[kind_of(name)] += milliseconds
    kinds |= {"ours: " + name: milliseconds for name, milliseconds in ours.items()}
    longest = sorted(kernels.items(), key=lambda item: -item[1][0])[:_TOP]
    return {
        "milliseconds": round(sum(milliseconds for milliseconds, _ in kernels.values()), 4),
        "launches": sum(count for _, count in kernels.values()),
        "milliseconds_by_kind": {
            name: round(value, 4) for name, value in sorted(kinds.items(), key=lambda item: -item[1]) if value
        },
        "longest": [{"name": name[:100], "milliseconds": round(ms, 4), "launches": n} for name, (ms, n) in longest],
    }


def kind_of(name: str) -> str:
    """What a kernel of this name is for; 'others' are mostly those that torch.compile has written."""
    return next((kind for kind, words in _KINDS if re.search(words, name.lower())), "others")


def _kernels(step: Callable[[], object]) -> dict[str, tuple[float, int]]:
    """Milliseconds and launches by name."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    events = profile.key_averages()
    return {event.key: (event.self_device_time_total / 1e3, event.count) for event in events if _on_gpu(event)}


def _operators(step: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of the kernels that each operator of ours starts itself."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    return {
        event.key.removeprefix(_OURS): event.self_device_time_total / 1e3
        for event in profile.key_averages()
        if event.key.startswith(_OURS) and event.self_device_time_total
    }


def _on_gpu(event: Any) -> bool:
    return event.self_device_time_total > 0
