"""Training throughput over the number of GPUs of one machine, each with the same work (weak scaling).

    torchrun --standalone --nproc-per-node 4 benchmarks/bench_scale_out.py --limit 240

One start measures all settings (`scale_settings.py` says how one is written), the first `xN` of the processes at a time
while the others wait. Settings are measured in rounds: each is built, takes some steps that do not count, and then
windows of steady steps between synchronisations of all its processes; a window takes as long as its slowest process.
The first round also profiles three steps, for what of the communication is hidden behind computing (`overlap.py`).

`alone` is one process without communication, at the same time on every GPU: the share of linear of a setting is its
speed over the sum of those of its GPUs alone, with the same work. A setting for which too little of `--limit` is left
is not begun, so the most important come first. The result is written after every setting.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
import torch.distributed as dist
from overlap import profile_overlap
from scale_settings import BuiltStep, Setting, build_step, make_groups

from questlm.errors import ConfigError, QuestError
from questlm.parallel import Processes, connect
from questlm.training.compiling import without_compiler_warnings
from questlm.training.device import peak_memory, pick_device

FAST = "gather=operand keep_gathered=true"
SETTINGS = [
    "800m w4 alone",
    "800m w4 replicas x4",
    f"800m w4 fsdp x4 {FAST}",
    "800m w4 replicas x2",
    f"800m w4 fsdp x2 {FAST}",
    "800m w16 alone",
    "800m w16 replicas x4",
    "800m w16 fsdp x4 keep_gathered=true",
    "800m w4 ddp x4",
]


def main() -> None:
    """Measure all settings in rounds, write, and print a table."""
    arguments = _arguments()
    began = time.monotonic()
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    processes = Processes.from_environment()
    device = pick_device(arguments.device, processes)
    torch.manual_seed(0)
    with without_compiler_warnings(), connect(processes, device, arguments.timeout) as connected:
        settings = [Setting.parse(text) for text in arguments.settings.split(";") if text.strip()]
        settings = [setting for setting in settings if setting.gpus <= connected.world_size]
        bench = Bench(arguments, settings, connected, device, began)
        for number in range(arguments.rounds):
            for setting in settings:
                bench.visit(setting, number)
        if connected.is_main:
            print(bench.table())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default=";".join(SETTINGS), help="what to measure, with ; between")
    parser.add_argument("--limit", type=float, default=240, help="seconds for all of it")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=4, help="steps of a visit before the first window")
    parser.add_argument("--windows", type=int, default=2, help="windows of a visit")
    parser.add_argument("--window-seconds", type=float, default=1.2, help="how long a window is to take, about")
    parser.add_argument("--first", type=float, default=45, help="seconds that the first of a kind may take")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--timeout", type=float, default=90, help="seconds that processes wait for one another")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="JSON file to write [default: in benchmarks/results]")
    return parser.parse_args()


class Bench:
    """Settings, and what was measured of them so far."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        settings: list[Setting],
        processes: Processes,
        device: torch.device,
        began: float,
    ) -> None:
        self.arguments, self.settings, self.processes, self.device = arguments, settings, processes, device
        self.deadline = began + arguments.limit
        self.groups = make_groups(settings, device)
        self.points: dict[Setting, dict[str, Any]] = {}
        self.took: dict[tuple[str, ...], float] = {}

    def visit(self, setting: Setting, number: int) -> None:
        """Build a setting, measure its windows, and write the result; or leave it out."""
        point = self.points.setdefault(setting, {"setting": str(setting)})
        needed = 1.2 * self.took.get(setting.work[:2], self.arguments.first)
        left = self.processes.on_main(lambda: self.deadline - time.monotonic())
        if needed > left or "failed" in point:
            point.setdefault("left_out", []).append({"round": number, "seconds_left": round(left, 1)})
            return
        began = time.monotonic()
        try:
            self._measure(setting, number, point)
        except QuestError as problem:  # the same on all processes
            point["failed"] = str(problem)
        seconds = self.processes.largest(time.monotonic() - began)[0]
        self.took[setting.work[:2]] = seconds
        point.setdefault("visit_seconds", []).append(round(seconds, 2))
        if self.processes.is_main:
            print(f"{seconds:6.1f} s  {setting}  {point.get('failed', '')}"[:300], flush=True)
            self._write()

    def _measure(self, setting: Setting, number: int, point: dict[str, Any]) -> None:
        common.free_memory()
        config = setting.config(self.arguments.seq_len, self.device)
        takes_part = setting.engine == "none" or self.processes.rank < setting.gpus
        built = self._together(takes_part, lambda: self._begin(setting, point))
        steps = self._window_steps(built)
        windows = [self._window(built, steps) for _ in range(self.arguments.windows)]
        speeds = [self._tokens(setting, config.train.seq_len, window) for window in windows]
        point.setdefault("rounds", []).append(speeds)
        point["steps_a_window"] = steps
        memory = self._everyone(float(peak_memory(self.device)) if built else 0.0)
        point["peak_memory_bytes"] = int(max(memory))
        point["exchanged_bytes"] = setting.exchanged(config)
        if built is not None:
            point["cuda_graph"] = built.recorded
            point["loss"] = float(built.take())
        if number == 0 and built is not None:
            profile = profile_overlap(built.take, 3, self.processes.is_main)
            point["profile"] = profile

    def _begin(self, setting: Setting, point: dict[str, Any]) -> BuiltStep:
        began = time.monotonic()
        config = setting.config(self.arguments.seq_len, self.device)
        built = build_step(setting, config, self.device, self.groups[setting], self.processes.rank)
        built.take()
        self._wait()
        point.setdefault("first_step_seconds", []).append(round(time.monotonic() - began, 2))
        for _ in range(self.arguments.warm_up):
            built.take()
        self._wait()
        return built

    def _together(self, takes_part: bool, begin: Callable[[], BuiltStep]) -> BuiltStep | None:
        """Do `begin` where this process takes part; an error of any process is one of all."""

        def reporting() -> BuiltStep | None:
            if not takes_part:
                return None
            try:
                return begin()
            except (RuntimeError, ValueError) as problem:
                raise QuestError(f"{type(problem).__name__}: {' '.join(str(problem).split())[:400]}") from problem

        return self.processes.together(reporting)

    def _window_steps(self, built: BuiltStep | None) -> int:
        """Steps of a window, the same on all processes."""
        seconds = 0.0
        if built is not None:
            began = time.monotonic()
            built.take()
            self._wait()
            seconds = time.monotonic() - began
        slowest = self.processes.largest(seconds)[0]
        return max(2, round(self.arguments.window_seconds / max(slowest, 1e-4)))

    def _window(self, built: BuiltStep | None, steps: int) -> list[float]:
        """Seconds a step of each process; 0 for one that takes no part."""
        self.processes.largest(0.0)  # all begin together
        began = time.perf_counter()
        for _ in range(steps if built is not None else 0):
            built.take()  # type: ignore[union-attr]
        self._wait()
        return self._everyone((time.perf_counter() - began) / steps if built is not None else 0.0)

    def _tokens(self, setting: Setting, sequence: int, window: list[float]) -> list[float]:
        """Tokens a second: of each process where they are alone, else of all together."""
        tokens = setting.sequences * sequence
        if setting.engine == "none":
            return [tokens / seconds for seconds in window]
        return [setting.gpus * tokens / max(window)]

    def _everyone(self, value: float) -> list[float]:
        """The value of each process."""
        if self.processes.world_size == 1:
            return [value]
        own = torch.tensor([value], dtype=torch.float64)
        parts = [torch.empty_like(own) for _ in range(self.processes.world_size)]
        dist.all_gather(parts, own, group=self.processes.waiting)
        return [float(part) for part in parts]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def results(self) -> list[dict[str, Any]]:
        """The points with medians and shares of linear."""
        alone = {
            setting.work: [statistics.median(speeds) for speeds in zip(*_windows(point), strict=True)]
            for setting, point in self.points.items()
            if setting.engine == "none" and "rounds" in point
        }
        return [_summary(setting, point, alone.get(setting.work)) for setting, point in self.points.items()]

    def _write(self) -> None:
        named = {name: value for name, value in vars(self.arguments).items() if name != "out"}
        header = common.header("scale_out", self.device, named | {"processes": self.processes.world_size})
        launcher = f"torchrun --standalone --nproc-per-node {self.processes.world_size} "
        header["command"] = launcher + header["command"].removeprefix("python ")
        name = f"scale_out-{common.device_slug(self.device)}-x{self.processes.world_size}.json"
        common.write(self.arguments.out or common.RESULTS / name, header | {"results": self.results()})

    def table(self) -> str:
        """Tokens a second, share of linear, memory, bytes sent and exposed communication of every setting."""
        lines = [
            f"{'':<52}{'tokens/s':>11}{'spread':>8}{'linear':>8}{'GiB':>7}{'GB sent':>9}{'ms':>8}{'exposed':>9}"
            f"{'idle':>7}"
        ]
        for result in self.results():
            if "tokens_per_second" not in result:
                lines.append(f"{result['setting']:<52}  {result.get('failed', 'no time left')}"[:160])
                continue
            speed, share = result["tokens_per_second"], result["share_of_linear"]
            times = (result.get("profile") or {}).get("milliseconds_per_step", {})
            lines.append(
                f"{result['setting']:<52}{speed['median']:>11,.0f}{speed['spread']:>8.1%}"
                f"{share if share is not None else float('nan'):>8.3f}{result['peak_memory_bytes'] / 2**30:>7.1f}"
                f"{(result['exchanged_bytes'] or {}).get('sent', 0) / 1e9:>9.2f}{times.get('step', 0):>8.1f}"
                f"{times.get('exposed', 0):>9.2f}{times.get('idle', 0):>7.1f}"
            )
        return "\n".join(lines)


def _windows(point: dict[str, Any]) -> list[list[float]]:
    return [window for each in point["rounds"] for window in each]


def _summary(setting: Setting, point: dict[str, Any], alone: list[float] | None) -> dict[str, Any]:
    if "rounds" not in point:
        return point
    windows = _windows(point)
    speeds = [statistics.mean(window) for window in windows]  # alone: of all GPUs
    share = None
    if alone is not None:
        linear = statistics.mean(alone) if setting.engine == "none" else sum(alone[: setting.gpus])
        share = round(statistics.median(speeds) / linear, 4)
    return point | {"tokens_per_second": common.spread(speeds), "share_of_linear": share}


if __name__ == "__main__":
    try:
        main()
    except ConfigError as problem:
        raise SystemExit(str(problem)) from None
