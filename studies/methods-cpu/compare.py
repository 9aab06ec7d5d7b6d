"""Every method at 4, 2 and 1 bit on the standard library's sources: same model, tokens, batches and seeds, on CPUs.

python studies/methods-cpu/compare.py --workers 2 --out docs/results/methods-cpu

Writes OUT.json (every loss), OUT.md's table between its marks, and OUT.png. Runs that are in OUT.json already are not
made again, so an interrupted study goes on where it was; --seeds and --only make a part of it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from pathlib import Path
from typing import Any

from questlm.config import RunConfig
from questlm.files import atomic_write
from questlm.json_files import canonical_json
from questlm.plotting import LIGHT, drawing, save_figure

TOKENS = 300_000
MODEL = {"layers": 3, "hidden": 128, "heads": 1}
TRAIN = {"lr": 3e-3, "seq_len": 128, "batch_size": 8, "device": "cpu", "checkpoint_every": 1_000_000}
TRAIN_KEYS = ("cage", "quantizer_lr")
SAME_WIDTH = ("quest", "quest-noht", "quest-clip", "ste", "clip-ste", "quarot", "lsq", "lsq-row", "lsq+", "pact")


def sides() -> dict[str, dict[str, Any]]:
    """Everything compared, as 'group/name' -> the settings in which it differs."""
    found: dict[str, dict[str, Any]] = {"reference/float32": {"weight_bits": 16, "act_bits": 16, "embeddings": "float"}}
    for bits in (4, 2, 1):
        both = {"weight_bits": bits, "act_bits": bits}
        names = SAME_WIDTH + (("seq",) if bits < 4 else ()) + (("adabin",) if bits == 1 else ())
        found |= {f"W{bits}A{bits}/{name}": {"method": name, **both} for name in names}
        found[f"W{bits}A{bits}/quest + cage"] = {**both, "cage": 10.0}
    found["W4A4/lsq, steps at lr / 100"] = {"method": "lsq", "quantizer_lr": 3e-5}
    found["W4A4/quest fp4"] = {"format": "fp4"}
    found["W4A4/quest int-2:4"] = {"format": "int-2:4"}
    for bits in (4, 2):
        found[f"W{bits}A{bits}/quest lloydmax"] = {"format": "lloydmax", "weight_bits": bits, "act_bits": bits}
    ternary = {"weight_bits": "ternary", "act_bits": 8}
    for name in ("bitnet", "extra-rmsnorm", "quest", "lsq-row"):
        found[f"own widths/{name} WtA8"] = {"method": name, **ternary}
    found["own widths/quest W1A8"] = {"weight_bits": 1, "act_bits": 8}
    found["own widths/bitnet W16A8"] = {"method": "bitnet", "weight_bits": 16, "act_bits": 8}
    found["own widths/pquant W1A8"] = {"method": "pquant", "weight_bits": 1, "act_bits": 8}
    found["own widths/quest bf16-2:4 A16"] = {"format": "bf16-2:4", "act_bits": 16}
    return found


def settings(side: dict[str, Any], seed: int) -> RunConfig:
    """The run of one side with one seed."""
    quant = {"embeddings": "bf16"} | {key: value for key, value in side.items() if key not in TRAIN_KEYS}
    return RunConfig(
        model=MODEL,
        quant=quant,
        data={"source": "stdlib", "vocab_size": 2048},
        train=TRAIN | {key: value for key, value in side.items() if key in TRAIN_KEYS},
        budget={"tokens": TOKENS},
        seed=seed,
    )


def run(side: dict[str, Any], seed: int) -> tuple[float, float, str]:
    """Final validation loss in nats per token, seconds of training, and device."""
    import torch

    from questlm.training import train

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        record = train(settings(side, seed), Path(folder) / "run")
    assert record.final is not None
    return record.final["loss"], record.seconds, record.device


def main() -> None:
    """Make the runs that are missing, then the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, of one thread each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", help="make only runs whose name holds this text")
    parser.add_argument("--out", type=Path, default=Path("docs/results/methods-cpu"))
    arguments = parser.parse_args()
    path = arguments.out.with_suffix(".json")
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else _empty()
    if missing_runs := _missing(result, arguments.seeds, arguments.only or ""):
        _require_same_text(result)
    for number, (name, seed, (loss, seconds, device)) in enumerate(_runs(missing_runs, arguments.workers), 1):
        result["losses"].setdefault(name, {})[str(seed)] = loss
        result["seconds"].setdefault(name, {})[str(seed)] = round(seconds, 1)
        result["devices"] = sorted({*result["devices"], device})
        atomic_write(path, canonical_json(result) + "\n")
        print(f"{number}/{len(missing_runs)}  {name}, seed {seed}: {loss:.4f}", flush=True)
    _write_table(arguments.out.with_suffix(".md"), result)
    _draw(arguments.out.with_suffix(".png"), result)


def difference(losses: dict[str, dict[str, float]], name: str, other: str) -> tuple[float, float]:
    """Mean of `name` minus `other`, seed by seed, and half the width of its 95 % interval (Student's t).

    Runs of one seed share their initial weights and their batches, so differences vary less than losses do.
    """
    shared = sorted(losses[name].keys() & losses[other].keys())
    differences = [losses[name][seed] - losses[other][seed] for seed in shared]
    if len(differences) < 2:
        return statistics.fmean(differences), float("inf")
    quantile = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(differences), 2.5)
    return statistics.fmean(differences), quantile * statistics.stdev(differences) / len(differences) ** 0.5


def _missing(result: dict[str, Any], seeds: list[int], only: str) -> list[tuple[str, int]]:
    losses = result["losses"]
    return [
        (name, seed) for seed in seeds for name in sides() if only in name and str(seed) not in losses.get(name, {})
    ]


def _require_same_text(result: dict[str, Any]) -> None:
    """The standard library is another text in another version of Python: runs on it do not belong in one table."""
    here = _empty()["data"]
    if here != result["data"]:
        raise SystemExit(f"the runs so far were made on {result['data']}, but here there is {here}")


def _empty() -> dict[str, Any]:
    from questlm.data import prepare
    from questlm.records import package_versions

    config = settings({}, 0)
    data = prepare(config.data)  # once, before many processes want it
    return {
        "study": "methods-cpu",
        "command": "python studies/methods-cpu/compare.py",
        "date": date.today().isoformat(),
        "versions": package_versions(),
        "data": {"description": data.description, "hash": data.data_hash, "val_tokens": len(data.val)},
        "config": config.model_dump(mode="json", exclude={"quant"}),
        "devices": [],
        "losses": {},
        "seconds": {},
    }


def _runs(missing: list[tuple[str, int]], workers: int) -> Iterator[tuple[str, int, tuple[float, float, str]]]:
    table = sides()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run, table[name], seed): (name, seed) for name, seed in missing}
        for future in as_completed(futures):
            yield *futures[future], future.result()


def _groups(losses: dict[str, dict[str, float]]) -> dict[str, list[tuple[str, float, float, int]]]:
    """Group -> (name, mean, standard deviation, seeds), best first."""
    groups: dict[str, list[tuple[str, float, float, int]]] = {}
    for key, by_seed in losses.items():
        group, name = key.split("/", 1)
        values = list(by_seed.values())
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        groups.setdefault(group, []).append((name, statistics.fmean(values), spread, len(values)))
    order = ["reference", "W4A4", "W2A2", "W1A1", "own widths"]
    return {group: sorted(groups[group], key=lambda row: row[1]) for group in order if group in groups}


def _write_table(path: Path, result: dict[str, Any]) -> None:
    losses, lines = result["losses"], []
    for group, rows in _groups(losses).items():
        base = f"{group}/quest" if f"{group}/quest" in losses else "reference/float32"
        against = base.split("/", 1)[1]
        lines += [f"| {group} | mean loss, nats/token | standard deviation | minus {against}, 95 % interval | |"]
        lines += ["|---|---|---|---|---|"]
        for name, mean, spread, _ in rows:
            by, half = difference(losses, f"{group}/{name}", base)
            verdict = (
                "" if f"{group}/{name}" == base else "noise" if abs(by) <= half else "better" if by < 0 else "worse"
            )
            lines.append(f"| {name} | {mean:.3f} | {spread:.3f} | {by:+.3f} +- {half:.3f} | {verdict} |")
        lines.append("")
    begin, end = "<!-- table -->", "<!-- end of table -->"
    text = path.read_text(encoding="utf-8") if path.exists() else f"{begin}\n{end}\n"
    head, tail = text.split(begin)[0], text.split(end)[1]
    atomic_write(path, f"{head}{begin}\n" + "\n".join(lines) + f"{end}{tail}")


def _draw(path: Path, result: dict[str, Any]) -> None:
    groups = _groups(result["losses"])
    reference = groups.pop("reference", [("", float("nan"), 0.0, 0)])[0][1]
    heights = [len(rows) for rows in groups.values()]
    with drawing(7, 0.24 * sum(heights) + 2.2) as figure:
        axes = figure.subplots(len(groups), 1, sharex=True, height_ratios=heights)
        for axis, (group, rows) in zip(axes, groups.items(), strict=True):
            for height, (name, mean, _, _) in enumerate(rows):
                seeds = list(result["losses"][f"{group}/{name}"].values())
                axis.plot(seeds, [height] * len(seeds), "o", color=LIGHT["bits-4"], alpha=0.5, markersize=4)
                axis.plot([mean], [height], "|", color=LIGHT["ink"], markersize=10)
            axis.axvline(reference, color=LIGHT["bits-1"], linewidth=1)
            axis.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=8)
            axis.set_ylim(len(rows) - 0.5, -0.5)
            axis.set_title(group)
            axis.grid(visible=False, axis="y")
        axes[-1].set_xlabel("validation loss, nats per token (dots: seeds; bar: mean; line: float32)")
    save_figure(figure, path)


if __name__ == "__main__":
    main()
