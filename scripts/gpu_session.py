"""Everything that is measured on a GPU, in one command that ends within its limit.

    python scripts/gpu_session.py --data corpus --out results --limit 570
    python scripts/gpu_session.py --smoke --out session

Steps run one after the other, each in a process with a timeout of its own. A step that no longer fits what is left of
`--limit` is left out, and the table at the end says so; so do steps that failed. `--data` is a folder with the parts of
the corpus; tokenising them goes on beside the tests and is done before anything is timed.

Written under `--out`, after every step: `results.json` (the results by file name), `logs.txt` (the output of all
steps) and `session.json` (the table). `--unpack results.json` puts the results where the documents look for them.

`--smoke` runs every step in a tiny form on the CPU: it tests this script and the benchmarks, and measures nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GROUPS = ("tests", "kernels", "inference", "train-step", "yardstick", "scale-out")


@dataclass(frozen=True)
class Step:
    """One process: `seconds` is what it is thought to take, `timeout` what it may take."""

    group: str
    name: str
    command: tuple[str, ...]
    seconds: float
    result: str | None = None  # name of the JSON file that it writes, or of the text that is what it prints

    @property
    def timeout(self) -> float:
        """Seconds after which the step is ended."""
        return max(30.0, 2 * self.seconds)


def main() -> None:
    """Run the steps that are asked for, in their order."""
    arguments = _arguments()
    if arguments.unpack:
        unpack(arguments.unpack)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    chosen = arguments.steps.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = _small_corpus(folder) if arguments.smoke else arguments.data
        steps = smoke_steps(data) if arguments.smoke else gpu_steps(data)
        session = Session(arguments.out, folder, arguments.limit, arguments.smoke)
        wanted = [step for step in steps if step.group in chosen or step.name in chosen]
        session.run(wanted, data if {step.group for step in wanted} & _NEED_DATA else None)
    print(session.table())
    sys.exit(0 if all(state in ("done", "no time left") for _, state, _ in session.rows) else 1)


_NEED_DATA = {"yardstick"}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", default=",".join(GROUPS), help="groups or names of steps, comma-separated; the order is fixed"
    )
    parser.add_argument("--limit", type=float, default=570, help="seconds for all of it")
    parser.add_argument("--data", type=Path, default=Path("corpus"), help="folder with the parts of the corpus")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--unpack", type=Path, help="a results.json to put into benchmarks/results; nothing is run")
    arguments = parser.parse_args()
    steps = smoke_steps(arguments.data) if arguments.smoke else gpu_steps(arguments.data)
    groups = {step.name: step.group for step in steps} | {group: group for group in GROUPS}
    chosen = arguments.steps.split(",")
    if unknown := set(chosen) - set(groups):
        parser.error(f"no step {', '.join(sorted(unknown))}; there are {', '.join(groups)}")
    if {groups[name] for name in chosen} & _NEED_DATA and not (arguments.smoke or arguments.unpack):
        lacking = [
            name for name in ("train_00.txt.xz", "val.txt.xz", "bpe8192.json") if not (arguments.data / name).is_file()
        ]
        if lacking:
            parser.error(f"--data {arguments.data} lacks {', '.join(lacking)}, which yardstick reads")
    return arguments


# -- steps -------------------------------------------------------------------------------------------------------------


def gpu_steps(data: Path) -> list[Step]:
    """The steps on a GPU. `seconds` are guesses for one H100 with 16 cores and nothing compiled yet."""
    corpus, gpu = f"--data {shlex.quote(str(data))}", _gpu()

    def train_step(name: str, seconds: float, words: str) -> Step:
        command = f"bench_train_step.py --vocab-size 32000 {words}"
        return _python("train-step", f"train-step {name}", seconds, f"train_step-{name}-{gpu}.json", command)

    def yardstick(name: str, seconds: float, words: str) -> Step:
        command = f"yardstick.py {corpus} {words}"
        return _python("yardstick", f"yardstick {name}", seconds, f"yardstick-{name}-{gpu}.json", command)

    float8 = "--set quant.backward=float8"
    paths = "--bits 4 --seeds 0,1,2 --backend auto,reference --compile on,off --tokens 3276800 --log-every 5"
    return [
        _tests(120),
        _python("kernels", "kernels", 75, f"kernels-{gpu}.json", "bench_kernels.py --warm 14"),
        _python("inference", "layers", 110, f"layer-{gpu}.json", "bench_layer.py --limit 100"),
        _python("inference", "prompt 800m", 60, f"prefill-800m-{gpu}.json", "bench_prefill.py --preset 800m"),
        _python(
            "inference",
            "decode",
            240,
            f"decode-{gpu}.json",
            "bench_decode.py --modes default --limit 230",
        ),
        train_step("30m", 110, "--preset 30m --micro-batch 64 --bits 4,1,2,3,8 --steps 20 --rounds 2 --warm 6"),
        train_step("100m", 45, "--preset 100m --micro-batch 64 --warm 2"),
        train_step("800m", 90, "--preset 800m --micro-batch 32 --steps 5 --warm 2"),
        train_step(
            "30m-muon", 80, "--preset 30m --micro-batch 64 --bits 16:muon,4,4:muon --steps 20 --rounds 2 --warm 4"
        ),
        train_step(  # the preset's batch of 512 x 512 tokens
            "800m-muon",
            150,
            "--preset 800m --micro-batch 32 --accumulate 16 --bits 4,4:muon --warm-up 2 --steps 1 --windows 3"
            " --rounds 1 --warm 3",
        ),
        _python("train-step", "optimizers", 40, f"optimizers-{gpu}.json", "bench_optimizers.py"),
        train_step("30m-accumulate8", 55, "--preset 30m --micro-batch 64 --accumulate 8 --steps 4"),
        train_step(
            "800m-float8-backward", 70, f"--preset 800m --micro-batch 32 --steps 5 --rounds 1 {float8} --warm 2"
        ),
        *(yardstick(f"w{bits}a{bits}", 60, f"--bits {bits}") for bits in (4, 16, 1, 2)),
        yardstick("float8-backward", 60, f"--bits 4 {float8}"),
        yardstick("paths", 130, paths),
        _scale_out(_gpus(), 240, f"scale_out-{gpu}-x{_gpus()}.json", "--limit 230"),
    ]


def smoke_steps(data: Path) -> list[Step]:
    """All steps in a tiny form, on the CPU."""
    corpus = f"--data {shlex.quote(str(data))} --preset nano --device cpu --seq-len 32"
    tiny = "--set model.layers=1 --set model.hidden=64 --set model.heads=2 --set model.mlp_hidden=128"
    step = "--layers 1 --micro-batch 1 --accumulate 2 --seq-len 32 --vocab-size 512 --device cpu"
    windows = "--rounds 1 --steps 1 --windows 2 --warm-up 1"
    short = "--bits 16,4 --tokens 512 --batch 2 --log-every 2"
    shortest = "--rounds 1 --window-seconds 0.1 --settings '125k w4 alone; 125k w4 replicas x2'"
    return [
        _tests(20, "--collect-only"),
        _python("kernels", "kernels", 30, "kernels-cpu.json", "bench_kernels.py --compiled off"),
        _python("inference", "layers", 30, "layer-cpu.json", "bench_layer.py"),
        _python("train-step", "train-step", 30, "train_step-cpu.json", f"bench_train_step.py {step} {windows}"),
        _python(
            "train-step", "optimizers", 30, "optimizers-cpu.json",
            "bench_optimizers.py --presets nano --device cpu --steps 1 --windows 1",
        ),
        _python("yardstick", "yardstick", 30, "yardstick-cpu.json", f"yardstick.py {corpus} {tiny} {short}"),
        _scale_out(2, 40, "scale_out-cpu-x2.json", f"--device cpu --seq-len 32 {shortest}"),
    ]  # fmt: skip


def _tests(seconds: float, *options: str) -> Step:
    """What `make test-gpu` runs; compiling is most of it, so several processes where pytest-xdist is there."""
    several = ("-n", "12") if importlib.util.find_spec("xdist") and not options else options
    return Step(
        "tests",
        "tests",
        (sys.executable, "-m", "pytest", "-q", "-p", "no:benchmark", "-m", "gpu", "tests/gpu", *several),
        seconds,
        f"test-gpu-{_gpu()}.txt",
    )


@cache
def _gpu_name() -> str:
    """Of the first GPU, as its driver calls it; empty without one."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return ""


def _gpu() -> str:
    """Short name of the GPU for file names, such as 'h100'."""
    return next(iter(re.findall(r"\b[a-z]\d{2,3}\b", _gpu_name().lower())), "gpu")


@cache
def _gpus() -> int:
    """How many GPUs this machine has; 1 where it has none."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return len(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())
    except (OSError, subprocess.SubprocessError):
        return 1


def _scale_out(processes: int, seconds: float, result: str, words: str) -> Step:
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    command = (*launcher, "benchmarks/bench_scale_out.py", *shlex.split(words))
    return Step("scale-out", "scale-out", command, seconds, result)


def _python(group: str, name: str, seconds: float, result: str, command: str) -> Step:
    script, *words = shlex.split(command)
    return Step(group, name, (sys.executable, f"benchmarks/{script}", *words), seconds, result)


# -- running them ------------------------------------------------------------------------------------------------------


class Session:
    """Runs steps until the time is used up, and writes what they gave."""

    def __init__(self, out: Path, scratch: Path, limit: float, smoke: bool) -> None:
        self.out, self.scratch, self.limit = out, scratch, limit
        self.started = time.monotonic()
        self.results: dict[str, Any] = {}
        self.rows: list[tuple[str, str, float]] = []
        paths = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
        self.environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
        self.environment.setdefault("QUESTLM_CACHE", str(scratch / "cache"))
        if smoke:
            self.environment["OMP_NUM_THREADS"] = "1"

    def run(self, steps: list[Step], data: Path | None) -> None:
        """Run `steps`; what needs `data` finds it tokenised."""
        with (self.out / "logs.txt").open("w", encoding="utf-8") as log:
            staging = self._start(_staging(data), log) if data is not None else None
            for step in steps:
                if step.group != "tests" and staging is not None:  # nothing is timed beside the tokeniser
                    began = time.monotonic()
                    self._note("tokenising", self._end_of(staging, 120), began)
                    staging = None
                self._one(step, log)
            if staging is not None:
                self._end_of(staging, 120)

    def _one(self, step: Step, log: IO[str]) -> None:
        left, began = self.limit - (time.monotonic() - self.started), time.monotonic()
        if step.seconds > left:
            self._note(step.name, "no time left", began)
            return
        process = self._start(step, log)
        printed_from = log.tell()
        state = self._end_of(process, min(step.timeout, left))
        file = self.scratch / (step.result or "")
        if _is_text(step):
            self.results[str(step.result)] = _headed(step, (self.out / "logs.txt").read_bytes()[printed_from:])
        elif step.result and file.is_file():  # also of a step that was cut short: some write after each part
            self.results[step.result] = json.loads(file.read_text(encoding="utf-8"))
        self._note(step.name, state, began)

    def _start(self, step: Step, log: IO[str]) -> subprocess.Popen[bytes]:
        out = ("--out", str(self.scratch / step.result)) if step.result and not _is_text(step) else ()
        print(f"{step.name} ...", flush=True)
        log.write(f"\n===== {step.name}\n")
        log.flush()
        return subprocess.Popen(
            [*step.command, *out],
            cwd=ROOT,
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that a timeout ends what the step has started, too
        )

    def _end_of(self, process: subprocess.Popen[bytes], seconds: float) -> str:
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"ended after {seconds:.0f} s"
        return "done" if code == 0 else f"failed ({code})"

    def _note(self, name: str, state: str, began: float) -> None:
        self.rows.append((name, state, round(time.monotonic() - began, 1)))
        print(f"    {state}, {self.rows[-1][2]:.0f} s", flush=True)
        rows = [{"step": step, "state": result, "seconds": seconds} for step, result, seconds in self.rows]
        _write(self.out / "session.json", {"limit_seconds": self.limit, "steps": rows})
        _write(self.out / "results.json", self.results)

    def table(self) -> str:
        """Steps, how they ended, seconds, and the ratios of the training steps."""
        lines = [f"{name:<28}{state:<22}{seconds:>7.1f} s" for name, state, seconds in self.rows]
        for file, result in self.results.items():
            if isinstance(result, str):
                continue
            lines += _ratios(file, result) if result.get("benchmark") == "train_step" else []
            lines += _losses(result) if result.get("benchmark") == "yardstick" else []
        return "\n".join(lines)


def _is_text(step: Step) -> bool:
    return step.result is not None and step.result.endswith(".txt")


def _headed(step: Step, printed: bytes) -> str:
    """What a step printed, under its command, date, device and PyTorch."""
    command = shlex.join(["python", *step.command[1:]])
    date = datetime.now(UTC).date().isoformat()
    where = f"{_gpu_name() or 'CPU'}, PyTorch {version('torch')}"
    return f"$ {command}\n# {date}, {where}\n\n{printed.decode(errors='replace')}"


def _ratios(file: str, result: dict[str, Any]) -> list[str]:
    return [
        f"{file.removesuffix('.json'):<32}{name:<9}{side['tokens_per_second']:>12,.0f} tokens/s"
        f"{side['speed_over_dense']:>7.3f}   memory {side['peak_memory_bytes'] / 2**30:>6.2f} GiB"
        f"{side['peak_memory_over_dense']:>7.3f}"
        for name, side in result["results"].items()
    ]


def _losses(result: dict[str, Any]) -> list[str]:
    return [
        "   ".join(f"{key} {value}" for key, value in line.items()) for line in result["summary"] + result["curves"]
    ]


def _staging(data: Path) -> Step:
    words = (sys.executable, "benchmarks/yardstick.py", "--data", str(data), "--stage-only")
    return Step("data", "tokenising", words, 40)


def _write(path: Path, content: Any) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


# -- before and after --------------------------------------------------------------------------------------------------


def _small_corpus(folder: Path) -> Path:
    """The documents of this repository as a corpus of the same form, with a tokenizer of its own."""
    import lzma

    sys.path.insert(0, str(ROOT / "src"))
    from questlm.data import train_tokenizer

    texts = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("*.md"))]
    data = folder / "corpus"
    data.mkdir()
    whole = "".join(f"{text[:4000]}\n<|endoftext|>\n" for text in texts)
    for name in ("train_00", "train_01", "val"):
        part = whole[:1000] if name == "val" else whole
        (data / f"{name}.txt.xz").write_bytes(lzma.compress(part.encode()))
    (data / "bpe8192.json").write_text(train_tokenizer(texts, 400).to_str(), encoding="utf-8")
    return data


def unpack(results: Path) -> None:
    """Write each result of a results.json into benchmarks/results."""
    for name, result in json.loads(results.read_text(encoding="utf-8")).items():
        target = RESULTS / Path(name).name
        text = result if isinstance(result, str) else json.dumps(result, indent=2) + "\n"
        target.write_text(text, encoding="utf-8")
        print(f"wrote {target.name}")


if __name__ == "__main__":
    main()
