"""Train the runs of a study that are missing, with warm worker processes on every GPU.

    python studies/runner.py studies/methods-30m/study.yaml --data corpus --limit 560 --records records.json
    python studies/runner.py studies/methods-30m/study.yaml --unpack records.json
    python studies/runner.py studies/methods-30m/study.yaml --list

With `--cores N` the runs are trained on the CPU instead, `--workers` of them at a time, each on N cores of its own from
core `--first-core` on, so that runs with a budget in seconds do not disturb each other.

A short run loses as much time to starting as to training. So each worker imports torch once and trains one run after
the other, and each GPU has two workers: one compiles or validates while the other trains. A run that has a record under
the study's `runs/` is not trained again. A run that could not end before `--limit` is not started.

`study.yaml` holds `preset`, `settings` (of all runs), `seeds`, and `runs`: name -> settings of its own, and a preset of
its own if it has one, laid over the common ones. All runs of the first seed come first, in the order of the file. If it
holds `parts`, the data folder holds those parts of the corpus, val.txt.xz and bpe8192.json; otherwise `settings` say
what the data are. If it holds `plugin`, that file beside it has methods and recipes of the study. `--records` is
written after every run: {run: record}.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from questlm.config import RunConfig, load_config
from questlm.config.load import merge
from questlm.config.yaml_text import read_yaml
from questlm.files import atomic_write
from questlm.json_files import write_json

LIKELY_SECONDS = 90.0  # of a run, until one has ended
SETTINGS = {"train": {"checkpoint_every": 10**6, "log_every": 50}}


def main() -> None:
    """Train, unpack or list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="?")
    parser.add_argument("--data", type=Path, default=Path("corpus"))
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds for all of it")
    parser.add_argument("--records", type=Path, default=Path("records.json"))
    parser.add_argument("--workers", type=int, default=2, help="processes for each GPU, or in all on the CPU")
    parser.add_argument("--cores", type=int, default=0, help="train on the CPU, each worker on so many cores")
    parser.add_argument("--first-core", type=int, default=0, help="number of the first core of the first worker")
    parser.add_argument("--only", default="", help="only runs whose name holds one of these texts, comma-separated")
    parser.add_argument("--seeds", help="only these of the study's seeds, comma-separated")
    parser.add_argument("--set", action="append", default=[], help="section.key=value for all runs, for trying out")
    parser.add_argument("--unpack", type=Path, help="put the records of a file under the study's runs/")
    parser.add_argument("--list", action="store_true", help="print the runs that are missing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        load_study_plugin(arguments.study)
        work()
    elif arguments.unpack:
        unpack(arguments.study, arguments.unpack)
    elif arguments.list:
        print(*missing(arguments.study, arguments.only, arguments.seeds), sep="\n")
    else:
        train_missing(arguments)


@cache
def study_content(study: Path) -> dict[str, Any]:
    """What a study's file says; read once, because a long one takes tenths of a second."""
    return read_yaml(study, "study")


def missing(study: Path, only: str = "", seeds: str | None = None) -> list[str]:
    """Names of the runs without a record, such as `quest-w4a4-s0`, in the order in which they are to be trained."""
    content = study_content(study)
    chosen = [int(seed) for seed in seeds.split(",")] if seeds else content["seeds"]
    names = [name for name in content["runs"] if any(part in name for part in only.split(","))]
    runs = [f"{name}-s{seed}" for seed in chosen for name in names]
    return [run for run in runs if not (study.parent / "runs" / run / "record.json").exists()]


def load_study_plugin(study: Path) -> None:
    """Load the methods and recipes that a study has of its own."""
    if (name := study_content(study).get("plugin")) is not None:
        from questlm.plugins import load_plugin

        load_plugin(study.parent / name)


def settings(study: Path, run: str, data: Path, overrides: list[str]) -> RunConfig:
    """Resolved settings of one run."""
    content = study_content(study)
    name, _, seed = run.rpartition("-s")
    flags = merge(merge(SETTINGS, {"seed": int(seed)}), content["settings"])
    if "parts" in content:
        sources = {"val": str(data / "val.txt.xz"), "tokenizer": str(data / "bpe8192.json")}
        flags = merge(flags, {"data": {"source": str(data / content["parts"]), **sources}})
    own = dict(content["runs"][name] or {})
    preset = own.pop("preset", content["preset"])
    return load_config(preset, flags=merge(flags, own), overrides=overrides)


def unpack(study: Path, file: Path) -> None:
    """Write each record where `quest report` and `quest fit` look for it, without the folder that held the data."""
    for run, record in json.loads(file.read_text(encoding="utf-8")).items():
        if record["config"]["data"]["val"]:
            corpus = Path(record["config"]["data"]["val"]).parent
            record = json.loads(json.dumps(record).replace(f"{corpus}/", "corpus/"))
        folder = study.parent / "runs" / run
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "record.json", record)


@dataclass
class Queue:
    """The runs that are left, and what came of the others. Shared by one thread for each worker."""

    waiting: list[str]
    configs: dict[str, RunConfig]
    records_file: Path
    deadline: float
    records: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> str | None:
        """The next run, or None where nothing is left that can end in time."""
        with self.lock:
            likely = 1.2 * statistics.median(self.seconds) if self.seconds else LIKELY_SECONDS
            return self.waiting.pop(0) if self.waiting and time.monotonic() + likely < self.deadline else None

    def finish(self, run: str, answer: dict[str, Any]) -> None:
        """Keep a record; put a run that failed for the first time at the end."""
        with self.lock:
            if "record" in answer:
                self.records[run] = answer["record"]
                self.seconds.append(answer["seconds"])
                atomic_write(self.records_file, json.dumps(self.records))
                loss = answer["record"]["final"]["loss"]
                print(f"{len(self.records)} {run}: {loss:.4f}, {answer['seconds']:.0f} s", flush=True)
            else:
                print(f"FAILED {run}: {answer['problem'][-1500:]}", flush=True)
                if run not in self.failures:
                    self.waiting.append(run)
                self.failures[run] = answer["problem"]


def train_missing(arguments: argparse.Namespace) -> None:
    """Tokenise, then train until the runs or the time are used up."""
    started = time.monotonic()
    runs = missing(arguments.study, arguments.only, arguments.seeds)
    configs = {run: settings(arguments.study, run, arguments.data, arguments.set) for run in runs}
    if not runs:
        return
    prepare_data(configs[runs[0]])
    print(f"{len(runs)} runs are missing; data ready after {time.monotonic() - started:.0f} s", flush=True)
    queue = Queue(list(runs), configs, arguments.records, started + arguments.limit)
    if arguments.cores:
        firsts = [arguments.first_core + index * arguments.cores for index in range(arguments.workers)]
        workers = [Worker(arguments.study, "", range(first, first + arguments.cores)) for first in firsts]
    else:
        workers = [Worker(arguments.study, gpu) for _ in range(arguments.workers) for gpu in gpus()]
    threads = [threading.Thread(target=worker.serve, args=(queue,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, queue.deadline - time.monotonic()) if queue.deadline < float("inf") else None)
    for worker in workers:
        worker.stop()
    left = [run for run in runs if run not in queue.records]
    print(f"{len(queue.records)} runs in {time.monotonic() - started:.0f} s; {len(left)} left", flush=True)


def prepare_data(config: RunConfig) -> None:
    """Tokenise into the cache, once."""
    from questlm.data import prepare

    prepare(config.data, config.model.vocab_size)


def gpus() -> list[str]:
    """Numbers of the GPUs that this process may use, or one empty name for the CPU."""
    import torch

    count = torch.cuda.device_count()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (chosen.split(",")[:count] if chosen else [str(number) for number in range(count)]) or [""]


class Worker:
    """A process that trains runs on one GPU, or on some cores. One that dies is started anew for the next run."""

    def __init__(self, study: Path, gpu: str, cores: range | None = None) -> None:
        self.study = study
        self.environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu, "PYTHONUNBUFFERED": "1"}
        if cores is not None:
            names = ",".join(map(str, cores))
            self.environment |= {"STUDY_CORES": names, "OMP_NUM_THREADS": str(len(cores))}
        self.process: subprocess.Popen[str] | None = None
        self.stopped = False

    def serve(self, queue: Queue) -> None:
        """Train runs of the queue until it gives no more."""
        while not self.stopped and (run := queue.take()) is not None:
            answer = self._train(queue.configs[run])
            if not self.stopped:
                queue.finish(run, answer)

    def stop(self) -> None:
        """End the process, also in the middle of a run."""
        self.stopped = True
        if self.process is not None:
            self.process.kill()

    def _train(self, config: RunConfig) -> dict[str, Any]:
        if self.process is None:
            command = [sys.executable, __file__, str(self.study), "--worker"]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(config.model_dump(mode="json")) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError as problem:
            line = ""
            print(f"a worker cannot be reached: {problem}", flush=True)
        answer: dict[str, Any] = json.loads(line) if line else {"problem": "the worker ended"}
        if not line or answer.get("device_lost"):
            status = self.process.wait()
            answer["problem"] = f"{answer.get('problem', '')} (status {status})"
            self.process = None
        return answer


def work() -> None:
    """Read settings from stdin, a line a run, and answer each with a line: its record, or what went wrong."""
    if cores := os.environ.get("STUDY_CORES"):
        os.sched_setaffinity(0, map(int, cores.split(",")))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    for line in sys.stdin:
        started = time.perf_counter()
        try:
            answer = {"record": train_once(RunConfig(**json.loads(line)))}
        except Exception:  # whatever it is belongs in the table of runs, and the next run goes on
            answer = {"problem": traceback.format_exc()}
        answer["seconds"] = time.perf_counter() - started
        answer["device_lost"] = device_lost()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if answer["device_lost"]:
            sys.exit(1)


def device_lost() -> bool:
    """Whether an error of a kernel has made the GPU unusable for this process: every later call would fail, too."""
    import torch

    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def train_once(config: RunConfig) -> dict[str, Any]:
    """Train in a temporary folder and return the record. Earlier runs leave only imported modules behind."""
    import gc

    import torch

    from questlm.training import train

    torch.compiler.reset()  # after eight kinds of layers in one process torch.compile would silently give up
    gc.collect()
    torch.cuda.empty_cache()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run")
        record: dict[str, Any] = json.loads((Path(folder) / "run" / "record.json").read_text(encoding="utf-8"))
    return record


if __name__ == "__main__":
    main()
