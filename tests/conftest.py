"""Shared by all tests: tiny texts, tiny settings, a cache of their own, Triton's interpreter without a GPU."""

from __future__ import annotations

import os
import random
import sys
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from questlm import plugins
from questlm.cli import main
from questlm.config import RunConfig, load_config

with suppress(ImportError):  # a machine that only runs tests/gpu has no Hypothesis
    from hypothesis import settings

    settings.register_profile("questlm", deadline=None)  # no test is a measurement of time
    settings.load_profile("questlm")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU; must be set before they are imported


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run `quest WORDS...` in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["quest", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    """Skip what needs Triton's interpreter where that cannot run the smallest kernel."""
    try:
        return (yield)
    except Exception as problem:
        if type(problem).__name__ == "InterpreterError":
            from helpers.interpreter import interpreter_fault

            if (reason := interpreter_fault()) is not None:
                pytest.skip(reason)
        raise


def _seed(name: str) -> None:
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """Random numbers go by the name of the test, so that it is the same alone and after any others."""
    _seed(request.node.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Those of a fixture that several tests share go by its own name, whichever of the tests asks for it first."""
    if fixturedef.scope != "function":
        _seed(f"{request.node.nodeid} {fixturedef.argname} {getattr(request, 'param_index', 0)}")
    return (yield)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The matrices of tests are small, and a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def forget_plugins() -> Iterator[Callable[[], None]]:
    """Forget all plugins, as a new process would have it; done again after the test."""

    def forget() -> None:
        for name in list(plugins._loaded):
            plugin = plugins._loaded.pop(name)
            for table in plugins._tables:
                table.forget(plugin)
            sys.modules.pop(f"questlm_plugin_{Path(name).stem}", None)
            sys.modules.pop(name, None)

    yield forget
    forget()


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUESTLM_CACHE", str(tmp_path_factory.mktemp("questlm-cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)  # no power fails here
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 60 documents in which words follow one another by a rule, so that a model can learn something."""
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("<|endoftext|>\n".join(_document(number) for number in range(60)), encoding="utf-8")
    return path


def _document(number: int) -> str:
    draw = random.Random(number)
    text = "the quick brown fox jumps over a lazy dog while seven wizards quietly bake naïve cakes"
    words = text.split()
    sentences = []
    for _ in range(12):
        start = draw.randrange(len(words))
        length = draw.randrange(5, 12)
        sentences.append(" ".join(words[(start + step) % len(words)] for step in range(length)) + ".")
    return "\n".join(sentences) + "\n"


@pytest.fixture(scope="session")
def tiny_settings(corpus: Path) -> Callable[..., RunConfig]:
    """Settings of a run of seconds (one block of width 32, twelve steps), with sections changed as named."""

    def settings(**sections: Any) -> RunConfig:
        flags: dict[str, Any] = {
            "model": {"layers": 1, "hidden": 32, "heads": 2, "mlp_hidden": 64},
            "data": {"source": str(corpus), "vocab_size": 300, "val_fraction": 0.1},
            "train": {"seq_len": 32, "batch_size": 4, "lr": 1e-2, "log_every": 3, "checkpoint_every": 4},
            "budget": {"tokens": 12 * 4 * 32},
        }
        for name, values in sections.items():
            flags[name] = values if name == "budget" else {**flags.get(name, {}), **values}
        return load_config(flags=flags)

    return settings


@pytest.fixture
def tiny(tiny_settings: Callable[..., RunConfig]) -> RunConfig:
    """The same, unchanged."""
    return tiny_settings()
