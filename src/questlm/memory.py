"""Measure free memory, before something large is allocated, and give freed memory back.

Free memory is exact on Linux; elsewhere the total is taken as free.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from questlm.errors import ConfigError
from questlm.humanize import bytes_text

__all__ = ["Memory", "host_memory", "peak_resident_memory", "release_freed_memory", "require_memory"]

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Bytes of one kind of memory.

    Attributes:
        free: available now without swapping, including caches that the system would drop.
        total: all of it.
        kind: for messages, such as "memory" or "GPU memory".
    """

    free: int
    total: int
    kind: str = "memory"


def host_memory(proc: Path = _PROC, cgroup: Path = _CGROUP) -> Memory | None:
    """Return the memory of this machine, or of the container (cgroup) of this process; None where it is unknown."""
    machine = _of_the_machine(proc)
    if machine is None:
        return None
    limits = [limit for folder in _groups(proc, cgroup) if (limit := _of_the_group(folder)) is not None]
    return Memory(
        min([machine.free, *(limit.free for limit in limits)]), min([machine.total, *(limit.total for limit in limits)])
    )


def peak_resident_memory(proc: Path = _PROC) -> int:
    """Return the largest resident size of this process so far, in bytes.

    Linux keeps `ru_maxrss` over fork and exec, so there a child of a large process would report its parent's peak.
    """
    try:
        for line in (proc / "self" / "status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def release_freed_memory() -> None:
    """Give freed memory back to the system, which the C library of most Linux systems (glibc) else keeps for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def require_memory(needed: float, memory: Memory | None, what: str, hint: str) -> None:
    """Raise ConfigError where more memory is needed than is free.

    Args:
        needed: bytes.
        memory: what the machine has; None: unknown, and nothing is refused.
        what: what needs the memory; begins the message.
        hint: what the user can do; ends the message.

    Raises:
        ConfigError: `needed` is more than `memory.free`.
    """
    if memory is not None and needed > memory.free:
        raise ConfigError(
            f"{what} needs about {bytes_text(needed)} of {memory.kind}, but {bytes_text(memory.free)} of "
            f"{bytes_text(memory.total)} are free; {hint}"
        )


def _of_the_machine(proc: Path) -> Memory | None:
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return Memory(1024 * kilobytes["MemAvailable"], 1024 * kilobytes["MemTotal"])
    except (OSError, ValueError, KeyError, IndexError):
        return _of_sysconf()


def _of_sysconf() -> Memory | None:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not POSIX, or without these names
        return None
    return Memory(total, total) if total > 0 else None


def _groups(proc: Path, cgroup: Path) -> list[Path]:
    """Return the folders of the control groups of this process and of all their parents."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        if not controllers or "memory" in controllers.split(","):
            root = cgroup / "memory" if controllers else cgroup
            inner = root / path.lstrip("/")
            folders += [inner, *(parent for parent in inner.parents if parent == root or root in parent.parents)]
    return folders


def _of_the_group(folder: Path) -> Memory | None:
    """Return the memory of a group with a limit, in version 1 or 2 of the interface; cached pages count as free."""
    for limit_name, used_name, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        try:
            limit = int((folder / limit_name).read_text())  # the word "max" is no limit
            used = int((folder / used_name).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = sum(int(statistics.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))
            return Memory(min(limit, max(0, limit - used + cached)), limit)
        except (OSError, ValueError):
            continue
    return None
