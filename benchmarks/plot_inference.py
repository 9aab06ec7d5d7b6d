"""Pictures of docs/results/gpu-inference.md, from results of bench_layer.py, bench_decode.py and bench_prefill.py.

    python benchmarks/plot_inference.py layers benchmarks/results/layer-h100.json docs/results/gpu-layers.svg
    python benchmarks/plot_inference.py models decode.json prefill.json docs/results/gpu-models.svg
    python benchmarks/plot_inference.py roofline benchmarks/results/layer-h100.json docs/results/gpu-roofline.svg

layers: speed of each layer over bfloat16, one token and many (QuEST, arXiv 2502.05003, figure 6). models: speed of
whole models over bfloat16 (figure 7). roofline: operations a second of each layer over its operations a byte, where
bytes are those of the weight, of the input in 16 bits and of the output; the slope is the measured speed of a copy.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from questlm.plotting import COLORS, LIGHT, drawing, save_figure

WIDTHS = ("W4A4", "W2A2", "W1A1")
BITS = {"W4A4": 4, "W2A2": 2, "W1A1": 1}


def plot_layers(result: dict[str, Any], path: Path) -> None:
    """Draw bars of speed by shape, one row of them for few and one for many tokens."""
    tokens = sorted({row["tokens"] for row in result["rows"]})
    with drawing(8.5, 6.4) as figure:
        for axes, count in zip(figure.subplots(2, 1), (tokens[0], tokens[-1]), strict=True):
            rows = [row for row in result["rows"] if row["tokens"] == count]
            groups = [
                (f"{row['out']:,}\n x {row['k']:,}", {name: row[name]["speed"] for name in WIDTHS}) for row in rows
            ]
            draw_bars(axes, groups)
            axes.set_title(f"{count:,} token{'s' if count > 1 else ''} a layer, {result['device']}")
    save_figure(figure, path)


def plot_models(results: list[dict[str, Any]], path: Path) -> None:
    """Draw bars of speed by model."""
    groups: dict[str, dict[str, float]] = {}
    for result in results:
        for case in result.get("cases", []):
            name = case["side"].split()[0]
            if name in WIDTHS:
                found = groups.setdefault(f"{case['preset']}\n{case['batch']} x 1 token", {})
                found[name] = max(case["speed_over_bf16"], found.get(name, 0.0))
        given, sides = result["settings"], result.get("sides", {})
        if sides:
            speeds = {name: sides[name]["speed_over_bf16"] for name in WIDTHS if name in sides}
            groups[f"{given['preset']}\n{given['batch']} x {given['tokens']}"] = speeds
    with drawing(8.5, 3.6) as figure:
        axes = figure.subplots()
        draw_bars(axes, list(groups.items()))
        axes.set_title(f"Whole models, {results[0]['device']}")
    save_figure(figure, path)


def draw_bars(axes: Any, groups: list[tuple[str, dict[str, float]]]) -> None:
    """Draw a group of bars for each name, with a line at bfloat16."""
    for place, (name, colour) in enumerate(zip(WIDTHS, COLORS, strict=False)):
        at = [index + 0.27 * (place - 1) for index, (_, speeds) in enumerate(groups) if name in speeds]
        heights = [speeds[name] for _, speeds in groups if name in speeds]
        for x, height in zip(at, heights, strict=True):
            axes.annotate(f"{height:.2f}", (x, height), ha="center", va="bottom", fontsize=6)
        axes.bar(at, heights, 0.25, color=colour, label=name)
    axes.axhline(1.0, color=LIGHT["muted"], linewidth=1)
    axes.set_xticks(range(len(groups)), [name for name, _ in groups], fontsize=7)
    axes.set_ylabel("speed over bfloat16")
    axes.legend(fontsize=7)


def plot_roofline(result: dict[str, Any], path: Path) -> None:
    """Draw every layer and number of tokens at its operations a byte and a second."""
    with drawing(8.5, 5.2) as figure:
        axes, bandwidth = figure.subplots(), result["copy"]
        sides = [("bfloat16", LIGHT["muted"], None), *zip(WIDTHS, COLORS, WIDTHS, strict=False)]
        for label, colour, name in sides:
            points = [point(row, name) for row in result["rows"]]
            axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=4, label=label)
        reach = [1.0, 1000.0]
        axes.plot(reach, [bandwidth * x / 1e12 for x in reach], color=LIGHT["muted"], linewidth=1.2,
                  label=f"copy at {bandwidth / 1e12:.2f} TB/s")  # fmt: skip
        axes.set(xlabel="operations a byte", ylabel="Top/s", xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:,g}")
        axes.set_title(f"Linear layers, {result['device']}")
        axes.legend(fontsize=7, loc="lower right")
    save_figure(figure, path)


def point(row: dict[str, Any], name: str | None) -> tuple[float, float]:
    """Operations a byte, and 10^12 operations a second, of a layer in one width (None: bfloat16)."""
    out, k, tokens = row["out"], row["k"], row["tokens"]
    us = row["cublas"] if name is None else row[name]["us"]
    moved = out * k * (16 if name is None else BITS[name]) / 8 + 2 * tokens * (k + out)
    work = 2 * out * k * tokens
    return work / moved, work / us / 1e6


def main() -> None:
    """Draw one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("layers", "models", "roofline"))
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    results = [json.loads(path.read_text(encoding="utf-8")) for path in given.results]
    if given.kind == "models":
        plot_models(results, given.out)
    else:
        (plot_layers if given.kind == "layers" else plot_roofline)(results[0], given.out)


if __name__ == "__main__":
    main()
