"""The estimate of memory against measurements: of real steps on this machine's CPU, and of the records made on GPUs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from questlm.config import load_config
from questlm.scaling.memory import loading_memory, packing_memory, training_memory

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
SHAPES = [(4, 256, 512, 1, 16), (2, 64, 300, 32, 128)]  # layers, hidden, vocabulary, batch
PROGRAM = """
import json, resource, sys
import torch
from questlm.config import RunConfig
from questlm.memory import peak_resident_memory
from questlm.training.optim import make_optimizer
from questlm.training.build import build_model
from questlm.training.step import TrainStep

def step(layers, hidden, vocabulary, sequences, tokens):
    shape = {"layers": layers, "hidden": hidden, "heads": 2, "vocab_size": vocabulary}
    config = RunConfig(model=shape, train={"batch_size": sequences, "seq_len": tokens})
    model = build_model(config)
    optimizer = make_optimizer(model, config.train)
    work = TrainStep(model, model, optimizer, config.train, torch.device("cpu"))
    ids = torch.randint(0, vocabulary, (sequences, tokens))
    for _ in range(2):
        work(ids, ids, 1e-3)

step(1, 32, 300, 1, 16)  # libraries load what they load
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
step(*json.loads(sys.argv[1]))
print(peak_resident_memory() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("shape", SHAPES)
def test_the_estimate_is_near_the_peak_memory_of_real_steps(shape: tuple[int, ...]) -> None:
    layers, hidden, vocabulary, sequences, tokens = shape
    config = load_config(
        None,
        flags={
            "model": {"layers": layers, "hidden": hidden, "heads": 2, "vocab_size": vocabulary},
            "train": {"batch_size": sequences, "seq_len": tokens},
        },
    )
    memory = training_memory(config.model, config.quant, config.train, gpu=False, compiled=False)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(shape)], capture_output=True, text=True, check=True
    )
    assert memory.total(sequences) == pytest.approx(int(done.stdout), rel=0.5)


EVALUATION = """
import resource
import torch
from questlm.config import ModelConfig
from questlm.evaluation import evaluate
from questlm.memory import peak_resident_memory
from questlm.models import Llama

class Tokens:
    def __init__(self, vocabulary):
        self.ids = torch.arange(4097).numpy() % vocabulary

    def __len__(self):
        return len(self.ids)

    def read(self, start, stop):
        return self.ids[start:stop]

def measure(vocabulary):
    model = Llama(ModelConfig(layers=1, hidden=32, heads=1, vocab_size=vocabulary)).initialize(0)
    evaluate(model, Tokens(vocabulary), 512, show_progress=False)

measure(300)
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
measure(16000)
print(peak_resident_memory() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_estimate_is_near_the_peak_memory_of_an_evaluation() -> None:
    model = load_config(None, flags={"model": {"layers": 1, "hidden": 32, "heads": 1, "vocab_size": 16_000}}).model
    done = subprocess.run([sys.executable, "-c", EVALUATION], capture_output=True, text=True, check=True)
    assert loading_memory(model) == pytest.approx(int(done.stdout), rel=0.25)


@pytest.mark.parametrize("name", ["30m", "100m", "800m"])
@pytest.mark.parametrize("bits", [4, 16])
def test_the_estimate_is_near_what_was_recorded_on_a_gpu(name: str, bits: int) -> None:
    record = json.loads((RESULTS / f"train_step-{name}-h100.json").read_text())
    config = load_config(name, flags={"model": {"vocab_size": 32_000}, "quant": {"weight_bits": bits}})
    memory = training_memory(config.model, config.quant, config.train, gpu=True, compiled=True)
    measured = record["results"]["bf16" if bits == 16 else "w4a4"]["peak_memory_bytes"]
    estimate = memory.total(record["tokens_per_step"] // config.train.seq_len)
    assert estimate == pytest.approx(measured, rel=0.15)


def test_what_decides_memory_is_seen() -> None:
    config = load_config("30m", flags={"model": {"vocab_size": 1024}})

    def total(**train: str) -> float:
        changed = config.train.model_copy(update=train)
        return training_memory(config.model, config.quant, changed, gpu=True, compiled=True, processes=4).total(4)

    assert total(recompute="block") < total(recompute="mlp") < total()
    assert total(parallel="fsdp") < total(parallel="ddp")
    parameters = config.model.parameters
    assert loading_memory(config.model) > 4 * parameters
    assert packing_memory(config.model) == 8 * parameters


def test_the_most_sequences_are_those_that_fit() -> None:
    config = load_config("nano", flags={"model": {"vocab_size": 1024}})
    memory = training_memory(config.model, config.quant, config.train, gpu=False, compiled=False)
    assert memory.most_sequences(memory.total(7) + 1) == 7
    assert memory.most_sequences(memory.total(7) - 1) == 6
    assert memory.most_sequences(memory.model - 1) == 0
