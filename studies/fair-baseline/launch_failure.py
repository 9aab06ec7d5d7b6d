"""Which condition makes Muon's products end in "unspecified launch failure": recording, or a second process on the GPU?

    python studies/fair-baseline/launch_failure.py --seconds 15 --out launch_failure.json

Each condition starts 1 or 2 processes on one GPU. A process makes Muon steps of the 30m preset's matrices with random
gradients and nothing else, launched one by one or replayed from a CUDA graph, until its time is up or the GPU fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from questlm.config import load_config
from questlm.models import Llama
from questlm.training.optim.muon import Muon

CONDITIONS = (
    ("default", 2, "eager"),
    ("default", 2, "recorded"),
    ("default", 1, "recorded"),
    ("cublaslt", 2, "recorded"),
)
"""Library of the products, processes on the GPU, how a step is launched."""


def main() -> None:
    """Run all conditions, or be one process of one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each condition")
    parser.add_argument("--out", type=Path, default=Path("launch_failure.json"))
    parser.add_argument("--worker", choices=("eager", "recorded"), help=argparse.SUPPRESS)
    parser.add_argument("--blas", default="default", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker == "recorded", arguments.blas, arguments.seconds)
        return
    found = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "seconds": arguments.seconds}
    results = []
    for blas, count, how in CONDITIONS:
        command = [sys.executable, __file__, "--worker", how, "--blas", blas, "--seconds", str(arguments.seconds)]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        answers = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
        results.append({"blas": blas, "processes": count, "steps are": how, "answers": answers})
        print(json.dumps(results[-1]), flush=True)
        arguments.out.write_text(json.dumps(found | {"conditions": results}, indent=1), encoding="utf-8")


def work(recorded: bool, blas: str, seconds: float) -> None:
    """Make Muon steps and print how many there were, and the error that ended them."""
    torch.backends.cuda.preferred_blas_library(blas)
    with torch.device("meta"):
        model = Llama(load_config("30m", overrides=["model.vocab_size=8192"]).model)
    shapes = [parameter.shape for parameter in model.layers.parameters() if parameter.ndim == 2]
    matrices = [torch.nn.Parameter(0.02 * torch.randn(shape, device="cuda")) for shape in shapes]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    optimizer = Muon([{"params": matrices, "weight_decay": 0.1}], lr=1e-3)
    optimizer.step()
    step = _recorded(optimizer) if recorded else optimizer.step
    started, count, problem = time.monotonic(), 0, None
    try:
        while time.monotonic() - started < seconds:
            for _ in range(20):
                step()
            torch.cuda.synchronize()
            count += 20
    except RuntimeError as error:
        problem = str(error).splitlines()[0]
    print(json.dumps({"steps": count, "problem": problem}), flush=True)


def _recorded(optimizer: Muon) -> Callable[[], None]:
    """A step as one launch of a CUDA graph."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return lambda: graph.replay()


if __name__ == "__main__":
    main()
