"""Commands that end early: Ctrl-C at any moment, and a reader of their output that has left."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import typer

from questlm.cli.ending import first_sentence, interruptible, is_out_of_memory


def _start(*words: str) -> subprocess.Popen[bytes]:
    # A shell starts background jobs with SIGINT ignored, and children inherit that: ask for Python's own again.
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.slow
@pytest.mark.parametrize("words", ["methods", "doctor", "fit --help", "--version"])
def test_a_closed_pipe_ends_a_command_quietly_with_the_code_of_sigpipe(words: str) -> None:
    with _start("-m", "questlm", *words.split()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.slow
@pytest.mark.parametrize("module", ["questlm.cli.main", "typer", "questlm.cli.doctor", "torch", "rich.table"])
def test_ctrl_c_while_modules_are_imported_prints_nothing(module: str) -> None:
    program = (
        "import runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "runpy.run_module('questlm', run_name='__main__', alter_sys=True)"
    )
    with _start("-c", program, "doctor") as process:
        _, errors = process.communicate()
    assert process.returncode in (-signal.SIGINT, 130)
    assert errors in (b"", b"quest: interrupted\n")


def test_ctrl_c_is_not_lost_where_an_import_would_swallow_it() -> None:
    program = (
        "import signal, sys, types\n"
        "from questlm.cli.ending import interruptible\n"
        "class Finder:\n"
        "    def find_spec(self, *_):\n"
        "        try: signal.raise_signal(signal.SIGINT)\n"
        "        except BaseException: pass\n"
        "sys.meta_path.insert(0, Finder())\n"
        "with interruptible():\n"
        "    try: import a_module_that_is_not_there\n"
        "    except ImportError: pass\n"
        "print('went on')"
    )
    with _start("-c", program) as process:
        out, errors = process.communicate()
    assert (process.returncode, out, errors) == (-signal.SIGINT, b"", b"")


def test_the_second_ctrl_c_ends_the_process() -> None:
    program = (
        "import signal\n"
        "from questlm.cli.ending import interruptible\n"
        "with interruptible():\n"
        "    try: signal.raise_signal(signal.SIGINT)\n"
        "    except KeyboardInterrupt: print('once', flush=True)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('twice')"
    )
    with _start("-c", program) as process:
        out, errors = process.communicate()
    assert (process.returncode, out, errors) == (-signal.SIGINT, b"once\n", b"")


def test_the_handler_that_was_there_before_comes_back() -> None:
    given = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, given)


def test_importing_questlm_imports_nothing_else() -> None:
    program = "import sys; import questlm; print([m for m in ('torch', 'pydantic', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"[]\n"


def test_missing_memory_is_known_by_what_python_and_torch_say() -> None:
    cpu = RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4398046511104 bytes. Error code 12 (Cannot allocate memory)"
    )
    gpu = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 4.00 TiB. GPU 0 has ...")
    assert first_sentence(cpu) == "can't allocate memory: you tried to allocate 4398046511104 bytes"
    assert first_sentence(gpu) == "CUDA out of memory"
    assert first_sentence(MemoryError()) == "the allocation failed"
    assert all(is_out_of_memory(problem) for problem in (cpu, gpu, MemoryError()))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_an_allocation_that_fails_nevertheless_is_one_sentence(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("questlm.cli.main")
    taken = typer.Typer()
    taken.command("take")(lambda: bytearray(10**18))
    taken.command("other")(lambda: None)
    monkeypatch.setattr(module, "app", taken)
    code, out, err = command("take")
    assert (code, out) == (2, "")
    assert err == ("quest: error: there is not enough memory: the allocation failed; take a smaller model or batch\n")
