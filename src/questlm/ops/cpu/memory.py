"""Memory for laid-out weights, in huge pages where the system has them.

A product that reads each weight once is bound by memory. Pages of 4 KiB stop the processor's own prefetching at every
4 KiB and cost a walk through page tables each. Most matrices are no multiple of a huge page, so they share chunks.
"""

from __future__ import annotations

import contextlib
import mmap
import threading

import torch
from torch import Tensor

__all__ = ["aligned_memory"]

_HUGE_PAGE, _CHUNK = 2**21, 2**26
_LINE = 64
_lock = threading.Lock()
_left = torch.empty(0, dtype=torch.uint8)  # of the newest chunk


def aligned_memory(size: int) -> Tensor:
    """Uninitialised memory for `size` bytes, uint8, aligned to 64 bytes.

    A chunk is given back to the system when no tensor uses it any longer; what is never written takes no memory.
    """
    global _left
    room = -(-size // _LINE) * _LINE
    with _lock:
        if room > len(_left):
            _left = _chunk(max(room, _CHUNK))
        memory, _left = _left[:size], _left[room:]
    return memory


def _chunk(size: int) -> Tensor:
    """New memory of at least `size` bytes that begins with a huge page."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # not Linux
        return torch.empty(size, dtype=torch.uint8)
    size = -(-size // _HUGE_PAGE) * _HUGE_PAGE
    mapped = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        mapped.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(mapped, dtype=torch.uint8)
    start = -memory.data_ptr() % _HUGE_PAGE
    return memory[start : start + size]
