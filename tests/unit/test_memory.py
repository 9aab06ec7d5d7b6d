"""How much memory there is, by the files of a machine and of a container."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from questlm.errors import ConfigError
from questlm.memory import Memory, host_memory, peak_resident_memory, release_freed_memory, require_memory

MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\n"


@pytest.fixture
def system(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(MEMINFO)
    return tmp_path


def _read(system: Path) -> Memory | None:
    return host_memory(system / "proc", system / "cgroup")


def _group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_a_machine_without_groups_has_what_the_kernel_calls_available(system: Path) -> None:
    assert _read(system) == Memory(8_000_000 * 1024, 16_000_000 * 1024)


@pytest.mark.parametrize("path", ["/", "/system.slice/job.scope", "/not/mounted/here"])
def test_the_limit_of_a_container_counts_wherever_it_stands(system: Path, path: str) -> None:
    (system / "proc" / "self" / "cgroup").write_text(f"0::{path}\n")
    stat = "anon 5\nactive_file 60\ninactive_file 40\n"  # a file read twice is active, and given up as well
    _group(system / "cgroup", memory__max="1000", memory__current="700", memory__stat=stat)
    _group(system / "cgroup" / "system.slice" / "job.scope", memory__max="max", memory__current="1", memory__stat=stat)
    assert _read(system) == Memory(400, 1000)


def test_the_limit_of_the_innermost_group_counts(system: Path) -> None:
    (system / "proc" / "self" / "cgroup").write_text("0::/outer/inner\n")
    _group(system / "cgroup" / "outer", memory__max="5000", memory__current="10", memory__stat="")
    _group(system / "cgroup" / "outer" / "inner", memory__max="900", memory__current="1000", memory__stat="")
    assert _read(system) == Memory(0, 900)


def test_the_first_version_of_control_groups_is_read(system: Path) -> None:
    (system / "proc" / "self" / "cgroup").write_text("3:cpu,cpuacct:/job\n2:memory:/job\n")
    _group(
        system / "cgroup" / "memory" / "job",
        memory__limit_in_bytes="1000",
        memory__usage_in_bytes="800",
        memory__stat="active_file 7\ntotal_active_file 20\ntotal_inactive_file 30\n",
    )
    assert _read(system) == Memory(250, 1000)


def test_without_those_files_the_total_is_all_that_is_known(tmp_path: Path) -> None:
    memory = _read(tmp_path)
    assert memory is None or memory.free == memory.total > 0


def test_this_machine_has_memory() -> None:
    memory = host_memory()
    assert memory is None or 0 < memory.free <= memory.total


def test_what_does_not_fit_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError) as refused:
        require_memory(3e9, Memory(2 * 10**9, 16 * 10**9), "the model", "take a smaller one")
    assert str(refused.value) == (
        "the model needs about 3 GB of memory, but 2 GB of 16 GB are free; take a smaller one"
    )
    require_memory(3e9, Memory(3 * 10**9, 16 * 10**9), "the model", "")
    require_memory(3e30, None, "the model", "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is no /proc")
def test_the_peak_of_a_child_is_not_that_of_its_parent() -> None:
    large = bytearray(b"x" * 400_000_000)  # written to, so that it is resident
    code = "from questlm.memory import peak_resident_memory; print(peak_resident_memory())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert peak_resident_memory() > len(large)
    assert child < len(large) / 2


def test_where_the_kernel_does_not_say_the_peak_it_is_that_of_the_process_and_its_parents(tmp_path: Path) -> None:
    assert peak_resident_memory(tmp_path) >= peak_resident_memory() > 0


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_freed_memory_is_given_back() -> None:
    """Small blocks, of which the last is kept, leave a heap that the C library does not shrink by itself."""
    blocks = [ctypes.create_string_buffer(b"x" * 60_000) for _ in range(2_000)]
    last = blocks[-1]
    del blocks
    before = _resident()
    release_freed_memory()
    assert _resident() <= before - 50e6
    assert last.value


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
