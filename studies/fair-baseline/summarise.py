"""Put the tables into README.md and draw surface.png, from the records under runs/.

python studies/fair-baseline/summarise.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from questlm.plotting import LIGHT, drawing, save_figure

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from tables import markdown, replace_part  # noqa: E402

WIDTHS = ("bf16", "w4a4", "w2a2", "w1a1")
OPTIMIZERS = ("adamw", "muon")
PUBLISHED = ("adamw", 64, 1.2e-3, "cosine")


class Setting(NamedTuple):
    """What was searched: optimizer, windows a step, peak rate, decay."""

    optimizer: str
    batch: int
    rate: float
    decay: str

    def __str__(self) -> str:
        return f"{self.optimizer}, {self.batch} windows, rate {self.rate:g}, {self.decay}"


Losses = dict[str, dict[Setting, float]]
"""Width -> setting -> mean loss over seeds, in nats a token."""


def main() -> None:
    """Write the tables and the picture."""
    losses = read(sorted((HERE / "runs").glob("*/record.json")))
    replace_part(HERE / "README.md", "gaps", gaps(losses))
    replace_part(HERE / "README.md", "all runs", all_runs(losses))
    draw(losses)


def read(files: Iterable[Path]) -> Losses:
    """Losses by width and setting, read from each record and not from the name of its run."""
    found: dict[str, dict[Setting, list[float]]] = {width: {} for width in WIDTHS}
    for file in files:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        train, bits = record["config"]["train"], record["config"]["quant"]["weight_bits"]
        width = "bf16" if bits == 16 else f"w{bits}a{bits}"
        setting = Setting(train["optimizer"], train["batch_size"], train["lr"], train["schedule"])
        found[width].setdefault(setting, []).append(record["final"]["loss"])
    return {width: {setting: fmean(values) for setting, values in each.items()} for width, each in found.items()}


def gaps(losses: Losses) -> str:
    """Each width's distance to BF16: both under the published setting, and each under its own best, by optimizer."""
    rows = []
    for width in WIDTHS:
        cells = [_cell(losses, width, lambda each: each == PUBLISHED)]
        cells += [_cell(losses, width, lambda each, name=name: each.optimizer == name) for name in OPTIMIZERS]
        rows.append([width.upper(), *cells])
    return "\n" + markdown(("", "published setting", "best with AdamW", "best with Muon"), rows)


def _cell(losses: Losses, width: str, wanted: Callable[[Setting], bool]) -> str:
    """The lowest loss among the settings that are wanted, its distance to BF16's lowest, and where it was reached."""
    found = {setting: loss for setting, loss in losses[width].items() if wanted(setting)}
    dense = [loss for setting, loss in losses["bf16"].items() if wanted(setting)]
    if not found:
        return "not run"
    best = min(found, key=lambda setting: found[setting])
    over = f", {found[best] - min(dense):+.3f}" if width != "bf16" and dense else ""
    own = "" if best == PUBLISHED else f" ({best.batch} windows, {best.rate:g}, {best.decay})"
    return f"{found[best]:.4f}{over}{own}"


def all_runs(losses: Losses) -> str:
    """Every setting that has a run, in the order of optimizer, batch and rate, and its loss at each width."""
    settings = sorted({setting for each in losses.values() for setting in each})
    rows = [[str(setting), *(_loss(losses[width].get(setting)) for width in WIDTHS)] for setting in settings]
    return "\n" + markdown(("setting", *(width.upper() for width in WIDTHS)), rows)


def _loss(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4f}"


def draw(losses: Losses) -> None:
    """Loss over the rate, a panel for each width, a line for each optimizer, batch and decay."""
    colors = {16: LIGHT["bits-1"], 32: LIGHT["bits-4"], 64: LIGHT["ink"]}
    with drawing(14, 4) as figure:
        axes = figure.subplots(1, len(WIDTHS))
        for axis, width in zip(axes, WIDTHS, strict=True):
            for optimizer, batch, decay in sorted({(each[0], each[1], each[3]) for each in losses[width]}):
                points = sorted(
                    (each.rate, loss)
                    for each, loss in losses[width].items()
                    if (each.optimizer, each.batch, each.decay) == (optimizer, batch, decay)
                )
                axis.plot(
                    *zip(*points, strict=True),
                    "o" if optimizer == "muon" else "s",
                    linestyle="-" if decay == "cosine" else "--",
                    color=colors[batch],
                    markerfacecolor=colors[batch] if optimizer == "muon" else "white",
                    label=f"{optimizer}, {batch}, {decay}",
                )
            axis.set_xscale("log")
            axis.set_xticks([0.6e-3, 1.2e-3, 2.4e-3, 4.8e-3], ["0.6", "1.2", "2.4", "4.8"])
            axis.minorticks_off()
            axis.set_xlim(0.5e-3, 5.8e-3)
            axis.set_title(width.upper())
            axis.set_xlabel("peak rate, thousandths")
        axes[0].set_ylabel("validation loss, nats a token")
        axes[-1].legend(fontsize=7)
    save_figure(figure, HERE / "surface.png")


if __name__ == "__main__":
    main()
