"""The roofline picture of the fast-training page, from the JSON results of bench_kernels.py.

    python benchmarks/plot_roofline.py benchmarks/results/kernels-h100.json docs/concepts/fast-training-roofline.svg

A kernel stands at the operations of its definition over the bytes of the tensors that it takes and gives (its
arithmetic intensity), and as high as those operations over its time. Both ends of an arrow do the same work on the
same tensors: plain PyTorch compiled (or eager, where that was not timed), and the fused kernel. Ceilings are
measured: the bandwidth of a copy, and the fastest product of the run in bf16 and in float8. Squares are products,
bf16 open and float8 filled.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from questlm.plotting import COLORS, LIGHT, drawing, save_figure


def plot_roofline(result: dict[str, Any], preset: str | None, path: Path) -> None:
    """Draw the kernels and products of one preset (None: the last) of a result of bench_kernels.py into `path`."""
    preset = preset or result["kernels"][-1]["preset"]
    with drawing(8.5, 5.2) as figure:
        axes = figure.subplots()
        _draw_ceilings(axes, result)
        for colour, record in zip(COLORS * 4, _kernels(result, preset), strict=False):
            _draw_kernel(axes, record, colour)
        for record in result["products"]:
            if record["rows"] == result["settings"]["presets"][preset][0]:
                _draw_product(axes, record)
        axes.set(xlabel="operations a byte of the tensors taken and given", ylabel="TFLOP/s")
        axes.set_title(f"{preset}, {result['device']}: compiled PyTorch (open) and fused kernels (filled)")
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:,g}")
        axes.legend(fontsize=7, loc="lower right")
    save_figure(figure, path)


def _kernels(result: dict[str, Any], preset: str) -> list[dict[str, Any]]:
    return [record for record in result["kernels"] if record["preset"] == preset]


def _draw_ceilings(axes: Any, result: dict[str, Any]) -> None:
    bandwidth = result["copy_bytes_per_second"] / 1e12
    for word, style in (("bf16", "-"), ("float8", "--")):
        rates = [
            found["tflops"]
            for product in result["products"]
            for name, found in product["measured"].items()
            if name.startswith(word)
        ]
        if rates:
            points = [10.0, max(rates) / bandwidth, 10_000.0]
            heights = [min(bandwidth * x, max(rates)) for x in points]
            label = f"copy at {bandwidth:.2f} TB/s, {word} product at {max(rates):.0f} TFLOP/s"
            axes.plot(points, heights, style, color=LIGHT["muted"], linewidth=1.2, label=label)


def _draw_kernel(axes: Any, record: dict[str, Any], colour: str) -> None:
    intensity = record["operations"] / record["bytes"]
    slow = record["compiled_seconds"] or record["plain_seconds"]
    before, after = (record["operations"] / seconds["median"] / 1e12 for seconds in (slow, record["seconds"]))
    axes.annotate("", (intensity, after), (intensity, before), arrowprops={"arrowstyle": "->", "color": colour})
    axes.plot(intensity, before, "o", color=colour, markerfacecolor="none", markersize=5)
    label = f"{record['kernel']}, {record['rows']} x {record['k']}: {after / before:.1f} x"
    axes.plot(intensity, after, "o", color=colour, markersize=5, label=label)


def _draw_product(axes: Any, record: dict[str, Any]) -> None:
    rates = {name: found["tflops"] for name, found in record["measured"].items()}
    bf16 = rates["bf16 forward"]
    axes.plot(
        record["operations"] / record["bytes"]["bf16 forward"], bf16, "s", color=LIGHT["muted"], markerfacecolor="none"
    )
    if float8 := rates.get("float8 forward, fast accumulation"):
        axes.plot(record["operations"] / record["bytes"]["float8 forward"], float8, "s", color=LIGHT["muted"])


def main() -> None:
    """Read a result, draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("picture", type=Path, help=".svg or .png")
    parser.add_argument("--preset", help="which of the measured ones [default: the last]")
    arguments = parser.parse_args()
    plot_roofline(json.loads(arguments.result.read_text(encoding="utf-8")), arguments.preset, arguments.picture)


if __name__ == "__main__":
    main()
