"""Packed models against llama.cpp and PyTorch on a CPU: whole models of random weights, every cost counted.

    pip install -e '.[bench]'
    python benchmarks/bench_cpu_peers.py --out benchmarks/results/cpu_peers.json
    python benchmarks/cpu_peers_page.py

Every measurement is one turn: a fresh process (`peer_turn.py`) that loads one model, generates, reads a long prompt and
ends, so no two models share memory or cores. In each round every side has one turn, ours and its opponents next to each
other, and a turn that only measures the machine: the bandwidth of reading memory, and peaks of arithmetic. Sides, in
turn:

    W4A4, ...   our packed engine: QuEST at these widths, head and embedding 8-bit rows, keys and values in float32;
                "avx2": with no instructions beyond these
    Q4_0, ...   llama.cpp on a GGUF file of the same shapes, memory-mapped, keys and values in float16, with flash
                attention and without: each table cell takes the faster
    float32, bfloat16   the same model in PyTorch, keys and values in the same dtype
    torchao int4        the same in bfloat16, weights of all linear layers in 4 bits by torchao, in groups of 128

`--artifact NAME=FOLDER` measures a packed model of real weights too, at its own widths, beside the other engines on its
shape; theirs stay random, which changes no speed.

Run it on an idle machine: another process's work ends up in the numbers. What share of the processors' time others
took, and the load before the first turn, are recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import common
import torch
from random_models import read_bytes, write_random_artifact, write_random_gguf

from questlm.artifact.read import open_artifact
from questlm.config import ModelConfig, QuantSpec, load_config
from questlm.humanize import bytes_text
from questlm.ops.cpu import native
from questlm.ops.machine import unavailable
from questlm.progress import progress

_TURN = Path(__file__).with_name("peer_turn.py")
_NEEDED = {"llama.cpp": {"llama_cpp": "llama-cpp-python", "gguf": "gguf"}, "torchao": {"torchao": "torchao"}}
"""Modules that an engine needs, and the packages they are in."""
_BUSY = 0.5  # load average above which other work is felt


@dataclass(frozen=True)
class Side:
    """What is measured: an engine and its settings.

    Attributes:
        engine: a name in `peer_turn.ENGINES`.
        spec: of a packed model with random codes, which is written for the run.
        folder: of a packed model that is there. None both: the side is another's.
        file_type: of a GGUF file, "" for none.
        settings: for the engine alone.
        environment: variables of the process.
    """

    engine: str
    spec: QuantSpec | None = None
    folder: Path | None = None
    file_type: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


def _llama(file_type: str) -> dict[str, Side]:
    return {
        file_type: Side("llama.cpp", file_type=file_type, settings=(("flash_attention", False),)),
        f"{file_type} flash": Side("llama.cpp", file_type=file_type, settings=(("flash_attention", True),)),
    }


SIDES: dict[str, Side] = {
    "W4A4": Side("questlm", QuantSpec(weight_bits=4, act_bits=4)),
    **_llama("Q4_0"),
    "W4A4 avx2": Side("questlm", QuantSpec(weight_bits=4, act_bits=4), environment=(("QUESTLM_CPU", "avx2"),)),
    "W4A16": Side("questlm", QuantSpec(weight_bits=4, act_bits=16)),
    "W2A2": Side("questlm", QuantSpec(weight_bits=2, act_bits=2)),
    **_llama("TQ2_0"),
    "ternary": Side("questlm", QuantSpec(format="ternary")),
    "W1A1": Side("questlm", QuantSpec(weight_bits=1, act_bits=1)),
    **_llama("F16"),
    "float32": Side("torch", settings=(("dtype", "float32"),)),
    "bfloat16": Side("torch", settings=(("dtype", "bfloat16"),)),
    "torchao int4": Side("torchao", settings=(("dtype", "bfloat16"), ("weight_bytes", 0.5 + 4 / 128))),
}
"""By name, in the order of a round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default="30m,100m,800m")
    parser.add_argument("--artifact", action="append", default=[], metavar="NAME=FOLDER", help="a packed model")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--prompt", type=int, default=32, help="tokens before the first token and before decoding")
    parser.add_argument("--tokens", type=int, default=128, help="tokens to decode")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the long prompt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", choices=("auto", "packed"), default="auto", help="as in questlm.load")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    names = arguments.sides.split(",")
    if unknown := [name for name in names if name not in SIDES]:
        parser.error(f"--sides {unknown[0]!r} is not one of {', '.join(SIDES)}")
    sides = {name: SIDES[name] for name in names if _can_run(name, SIDES[name])}
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    if load > _BUSY:
        print(f"the machine is busy (load {load:.2f}): do not keep the numbers of this run", flush=True)
    artifacts = dict(_named(each, parser) for each in arguments.artifact)
    settings = vars(arguments) | {"artifact": list(artifacts)}
    result = common.header("cpu_peers", torch.device("cpu"), settings)
    result["versions"] |= {"instruction set": unavailable("cpu") or native.instruction_set(), **_peer_versions(sides)}
    result["load_before"] = round(load, 2)
    result["results"] = {}
    for preset in filter(None, arguments.presets.split(",")):
        config = load_config(preset, flags={"model": {"vocab_size": arguments.vocab_size}}).model
        result["results"][preset] = _measure_model(preset, config, sides, arguments)
        _save(preset, result, arguments.out)
    for name, folder in artifacts.items():
        with open_artifact(folder) as artifact:
            config = artifact.config
        label = f"W{config.quantization_config.weight_bits}A{config.quantization_config.act_bits}"
        own = {"ternary" if "ternary" in label else label: Side("questlm", folder=folder)}
        peers = {each: side for each, side in sides.items() if side.spec is None}
        result["results"][name] = {
            "trained": {
                "tokens": config.training.get("tokens"),
                "loss": (config.training.get("final") or {}).get("loss"),
            },
            **_measure_model(name, config.model, own | peers, arguments),
        }
        _save(name, result, arguments.out)


def _named(text: str, parser: argparse.ArgumentParser) -> tuple[str, Path]:
    name, mark, folder = text.partition("=")
    if not (name and mark and Path(folder).is_dir()):
        parser.error(f"--artifact {text!r} is not NAME=FOLDER with the folder of a packed model")
    return name, Path(folder)


def _save(name: str, result: dict[str, Any], out: Path | None) -> None:
    """Write and print what was found so far, so that a later failure loses nothing."""
    if out:
        common.write(out, result)
    _print(name, result["results"][name])


def _can_run(name: str, side: Side) -> bool:
    missing = [package for module, package in _NEEDED.get(side.engine, {}).items() if find_spec(module) is None]
    if missing:
        print(f"{name}: left out; not installed: {', '.join(missing)} (pip install -e '.[bench]')")
    return not missing


def _peer_versions(sides: dict[str, Side]) -> dict[str, str]:
    engines = {side.engine for side in sides.values()}
    packages = [package for engine in engines for package in _NEEDED.get(engine, {}).values()]
    found = {package: metadata.version(package) for package in sorted(packages)}
    if "llama.cpp" in engines:
        import llama_cpp

        found["llama.cpp"] = llama_cpp.llama_print_system_info().decode()
    return found


def _measure_model(
    name: str, model: ModelConfig, sides: dict[str, Side], arguments: argparse.Namespace
) -> dict[str, Any]:
    """By side, each quantity with its spread over the rounds; and what the machine did in every round."""
    turns: dict[str, list[dict[str, float]]] = {each: [] for each in ("machine", *sides)}
    began, others = time.perf_counter(), _seconds_of_others()
    with tempfile.TemporaryDirectory() as folder, progress(name, arguments.rounds * len(turns)) as update:
        update(0, "writing the models")
        paths, read = _write_models(Path(folder), model, sides)
        base = {
            "threads": arguments.threads,
            "prompt": arguments.prompt,
            "tokens": arguments.tokens,
            "prefill": arguments.prefill,
            "context": max(arguments.prompt + arguments.tokens, arguments.prefill) + 64,
            "model": model.model_dump(),
            "weights": arguments.weights,
        }
        for done, each in enumerate(each for _ in range(arguments.rounds) for each in turns):
            update(done, each)
            side = sides.get(each, Side("machine"))
            turns[each].append(_turn(base | dict(side.settings) | {"engine": side.engine}, paths.get(each), side))
    others = (_seconds_of_others() - others) / (time.perf_counter() - began) / (os.cpu_count() or 1)
    machine = turns.pop("machine")
    found = {key: common.spread([turn[key] for turn in machine]) for key in machine[0]}
    bandwidth = found.pop("bytes_per_second")
    products = model.parameters - (0 if model.tied_head else (model.vocab_size or 0) * model.hidden)
    return {
        "model": model.model_dump(),
        "operations_per_token": 2 * products,
        "share_of_processors_for_others": round(others, 4),
        "read_bytes_per_second": bandwidth,
        **found,
        "sides": {each: _summary(runs, read[each], bandwidth["median"]) for each, runs in turns.items()},
    }


def _write_models(folder: Path, model: ModelConfig, sides: dict[str, Side]) -> tuple[dict[str, Path], dict[str, int]]:
    """Files of each side, and the bytes of weights that a token of it reads."""
    paths, read = {}, {}
    for name, side in sides.items():
        if side.spec is not None:
            paths[name] = folder / name
            read[name] = write_random_artifact(paths[name], model, side.spec)
        elif side.folder is not None:
            paths[name] = side.folder
            with open_artifact(side.folder) as artifact:
                read[name] = read_bytes(artifact.config)
        elif side.file_type:
            paths[name] = folder / f"{side.file_type}.gguf"
            same = [other for other in read if paths.get(other) == paths[name]]
            read[name] = read[same[0]] if same else write_random_gguf(paths[name], model, side.file_type)
        else:
            settings = dict(side.settings)
            each = settings.get("weight_bytes", getattr(torch, settings["dtype"]).itemsize)
            read[name] = round(each * (model.parameters - (model.vocab_size or 0) * model.hidden))
    return paths, read


def _turn(settings: dict[str, Any], path: Path | None, side: Side) -> dict[str, float]:
    """What a fresh process measures."""
    settings = settings if path is None else settings | {"path": str(path)}
    environment = os.environ | {"OMP_NUM_THREADS": str(settings["threads"])} | dict(side.environment)
    command = [sys.executable, str(_TURN), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"a turn of {settings['engine']} failed: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _seconds_of_others() -> float:
    """Processor seconds that other processes have had since the machine started (Linux), and a shared host took."""
    user, nice, system, _, _, interrupts, soft, stolen = (
        int(word) for word in Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=9)[1:9]
    )
    busy = (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy - sum(each.ru_utime + each.ru_stime for each in used)


def _summary(turns: list[dict[str, float]], read_bytes: int, bandwidth: float) -> dict[str, Any]:
    """Each quantity with its spread, and the share of the bandwidth that decoding reaches."""
    summary: dict[str, Any] = {key: common.spread([turn[key] for turn in turns]) for key in turns[0]}
    decode = summary["decode_tokens_per_second"]["median"]
    return {
        "weight_bytes_per_token": read_bytes,
        "share_of_bandwidth": round(read_bytes * decode / bandwidth, 4),
        **summary,
    }


def _print(preset: str, result: dict[str, Any]) -> None:
    print(f"{preset}: memory reads at {bytes_text(result['read_bytes_per_second']['median'])}/s")
    for name, side in result["sides"].items():
        medians = {key: value["median"] for key, value in side.items() if isinstance(value, dict)}
        print(
            f"  {name:<13} decode {medians['decode_tokens_per_second']:>8.1f} tokens/s "
            f"({side['share_of_bandwidth']:>4.0%} of the bandwidth)   "
            f"prefill {medians['prefill_tokens_per_second']:>8.1f}   load {medians['load_seconds']:.2f} s   "
            f"first token {medians['first_token_seconds']:.3f} s   {bytes_text(medians['resident_bytes'])}",
            flush=True,
        )


if __name__ == "__main__":
    main()
