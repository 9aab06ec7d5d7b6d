"""Write the tables of docs/results/cpu-inference.md from what `bench_cpu_peers.py` measured.

    python benchmarks/cpu_peers_page.py

Everything between the two marks of the page is replaced; numbers come from the JSON alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import common

from questlm.files import atomic_write
from questlm.humanize import bytes_text

RESULT = common.RESULTS / "cpu_peers.json"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "cpu-inference.md"
BEGIN, END = "<!-- begin: benchmarks/cpu_peers_page.py -->", "<!-- end -->"
NOT_MEASURED = (
    "Not measured yet: `benchmarks/results/cpu_peers.json` is missing, because no machine was idle for long enough."
)
COMPARED: tuple[tuple[str, str, str, float | None], ...] = (
    ("decode", "W4A4", "Q4_0", 1.7),
    ("decode", "W4A4 avx2", "Q4_0", 1.0),
    ("decode", "W4A16", "Q4_0", 1.3),
    ("decode", "W2A2", "TQ2_0", 1.7),
    ("decode", "ternary", "TQ2_0", 1.7),
    ("decode", "W1A1", "TQ2_0", 2.5),
    ("prefill", "W4A4", "Q4_0", 2.5),
    ("prefill", "W1A1", "Q4_0", 5.0),
    ("decode", "W4A4", "float32", None),
    ("decode", "W4A4", "bfloat16", None),
    ("decode", "W4A16", "torchao int4", None),
)
"""What is read, of which side of ours, against which opponent, and the ratio that is aimed at."""


def page_text(page: str, result: dict[str, Any] | None) -> str:
    """The page with the tables of a result, or with a sentence that there is none."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    content = NOT_MEASURED if result is None else tables(result)
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def tables(result: dict[str, Any]) -> str:
    """How it was measured in a line, then three tables for each model: speeds, ratios, roofline."""
    settings, versions = result["settings"], result["versions"]
    peers = "".join(f", {name} {versions[name]}" for name in ("llama-cpp-python", "torchao") if name in versions)
    parts = [
        f"{result['device']}, {result['date']}, instructions {versions['instruction set']}, torch {versions['torch']}"
        f"{peers}; {settings['rounds']} rounds, median "
        f"(smallest to largest); load average before the first turn {result['load_before']}. Command: "
        f"`{result['command']}`; record: [cpu_peers.json](../../benchmarks/results/cpu_peers.json)."
    ]
    for name, measured in result["results"].items():
        parts += [f"### {name}", *_training(measured), _speeds(measured, settings)]
        parts += [table for table in (_ratios(measured), _roofline(measured, settings)) if table]
    return "\n\n".join(parts)


def _training(measured: dict[str, Any]) -> list[str]:
    """A sentence on a model of real weights; of random ones none."""
    trained = measured.get("trained")
    if trained is None:
        return []
    tokens = f", trained on {trained['tokens']:,} tokens" if trained["tokens"] else ""
    loss = "" if trained["loss"] is None else f", validation loss {trained['loss']:.4f}"
    return [f"Of real weights{tokens}{loss}. The others' are random."]


def _speeds(measured: dict[str, Any], settings: dict[str, Any]) -> str:
    bandwidth = measured["read_bytes_per_second"]
    lines = [
        f"Read bandwidth of memory in the same run: {bytes_text(bandwidth['median'])}/s "
        f"({bytes_text(bandwidth['min'])} to {bytes_text(bandwidth['max'])}). Other processes had "
        f"{measured['share_of_processors_for_others']:.1%} of the processors' time.",
        "",
        f"| | decode, tokens/s | bandwidth allows | share of it | prefill of {settings['prefill']}, tokens/s | "
        "load, s | first token, s | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, side in measured["sides"].items():
        cells = [
            _range(side["decode_tokens_per_second"], ".1f"),
            f"{bandwidth['median'] / side['weight_bytes_per_token']:.0f}",
            f"{side['share_of_bandwidth']:.0%}",
            _range(side["prefill_tokens_per_second"], ".0f"),
            f"{side['load_seconds']['median']:.2f}",
            f"{side['first_token_seconds']['median']:.3f}",
            bytes_text(side["resident_bytes"]["median"]),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratios(measured: dict[str, Any]) -> str:
    sides = measured["sides"]
    lines = ["| | ours | opponent, the faster way | ratio | aim |", "|---|---|---|---|---|"]
    for quantity, ours, opponent, aim in COMPARED:
        against = [name for name in sides if name in (opponent, f"{opponent} flash")]
        if ours not in sides or not against:
            continue
        key = f"{quantity}_tokens_per_second"
        best = max(against, key=lambda name: sides[name][key]["median"])
        own, other = (sides[name][key]["median"] for name in (ours, best))
        lines.append(f"| {quantity}, {ours} | {own:.1f} | {best} {other:.1f} | {own / other:.2f} | {aim or ''} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _roofline(measured: dict[str, Any], settings: dict[str, Any]) -> str:
    """What memory and arithmetic allow at each width, and how much of it is reached."""
    bandwidth, peak = (measured[name]["median"] for name in ("read_bytes_per_second", "int8_operations_per_second"))
    operations, length = measured["operations_per_token"], settings["prefill"]
    floats = measured["float32_operations_per_second"]["median"]
    lines = [
        f"Roofline: a token takes {operations / 1e6:,.0f} million operations (a product and its sum are two). "
        f"PyTorch reaches {peak / 1e9:,.0f} billion a second on 8-bit matrices and {floats / 1e9:,.0f} in float32. "
        f"While a byte is read, {peak / bandwidth:.0f} operations in 8 bits can be done: with fewer a byte, memory is "
        "the bound, with more, arithmetic. Bits counted a word at a time (W1A1) may pass the 8-bit peak.",
        "",
        f"| | bytes a token | decode: operations a byte | memory allows, tokens/s | reached | "
        f"prefill of {length}: operations a byte | 8-bit peak allows, tokens/s | reached |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, side in measured["sides"].items():
        size, fast = side["weight_bytes_per_token"], side["prefill_tokens_per_second"]["median"]
        cells = [
            bytes_text(size),
            f"{operations / size:.1f}",
            f"{bandwidth / size:,.0f}",
            f"{side['share_of_bandwidth']:.0%}",
            f"{length * operations / size:,.0f}",
            f"{peak / operations:,.0f}",
            f"{fast * operations / peak:.0%}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _range(value: dict[str, Any], form: str) -> str:
    return f"{value['median']:{form}} ({value['min']:{form}} to {value['max']:{form}})"


def main() -> None:
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else None
    atomic_write(PAGE, page_text(PAGE.read_text(encoding="utf-8"), result).encode())


if __name__ == "__main__":
    main()
