"""Who a process is, what the only one of a run needs no others for, and what is about others."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from questlm.errors import ConfigError, DataError, QuestError, TrainingError
from questlm.parallel import LostPeerError, Processes, pick_engine, reporting_lost_peers
from questlm.parallel.processes import _same_error
from questlm.training.device import pick_device


@pytest.fixture(autouse=True)
def _no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_a_single_process_is_the_main_one_and_decides() -> None:
    processes = Processes.from_environment()
    assert (processes.rank, processes.world_size, processes.is_main) == (0, 1, True)
    assert processes.on_main(lambda: 3) == processes.together(lambda: 3) == processes.main_first(lambda: 3) == 3
    assert processes.largest(2.0, 5) == [2.0, 5]
    values = torch.ones(2)
    assert processes.sum(values) is values
    assert processes.mean(values) is values
    assert pick_engine("fsdp", processes) == "none"


def test_torchrun_says_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    processes = Processes.from_environment()
    assert (processes.rank, processes.world_size, processes.local_rank, processes.is_main) == (3, 4, 1, False)
    assert pick_engine("auto", processes) == "ddp"
    assert pick_engine("fsdp", processes) == "fsdp"


@pytest.mark.parametrize("given", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "x", "LOCAL_RANK": "0"}])
def test_half_of_what_torchrun_says_is_refused(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="start it with torchrun"):
        Processes.from_environment()


def test_an_error_of_another_process_is_the_same_here() -> None:
    assert isinstance(_same_error("DataError", "no such file"), DataError)
    assert isinstance(_same_error("MissingDependencyError", "pip install x"), QuestError)
    assert isinstance(_same_error("OSError", "disk full"), QuestError)
    assert isinstance(_same_error("nearest_name", "x"), QuestError)


def test_what_a_collective_raises_becomes_a_sentence() -> None:
    two = Processes(0, 2)
    for problem in (RuntimeError("[gloo/pair.cc:1] Connection closed by peer"), dist.DistBackendError("NCCL timeout")):
        sentence = r"another of the 2 processes ended .*; go on with X"
        with pytest.raises(LostPeerError, match=sentence), reporting_lost_peers(two, "go on with X"):
            raise problem
        with pytest.raises(RuntimeError), reporting_lost_peers(Processes(), "x"):
            raise problem
    with pytest.raises(RuntimeError, match="mat1"), reporting_lost_peers(two, "x"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert issubclass(LostPeerError, TrainingError)


def test_one_gpu_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="one GPU for 2 processes"):
        pick_device("cuda:0", Processes(0, 2))
    with pytest.raises(ConfigError, match="process 2 of this machine has no GPU"):
        pick_device("cuda", Processes(1, 2, 1))
    assert pick_device("cuda", Processes(0, 2, 0)) == torch.device("cuda:0")
