"""Put the tables into README.md, here and in the root folder, and draw losses.png, from the records under runs/.

    python studies/methods-30m/summarise.py

Runs of one seed begin with the same weights and see the same batches, so methods are compared seed by seed. Two seeds
give no useful interval of their own. So the variance of a difference is pooled over all groups, without methods that
are more than `FAR` nats from the best of their group, because their runs vary more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance

from scipy.special import stdtrit

from questlm.plotting import LIGHT, drawing, save_figure

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from tables import read_losses, replace_part  # noqa: E402

FAR = 0.25
GROUPS = {
    "16 bit": ("bf16",),
    "W4A4": ("-w4a4",),
    "W3A3": ("-w3a3",),
    "W2A2": ("-w2a2",),
    "W1A1": ("-w1a1",),
    "ternary or 1-bit weights, 8-bit activations": ("-wta8", "-w1a8"),
    "W4A16": ("-w4a16",),
    "W3A16": ("-w3a16",),
    "W2A16": ("-w2a16",),
    "W1A16": ("-w1a16",),
}


@dataclass(frozen=True)
class Row:
    """A method in a group: its losses by seed, and its differences from QuEST of the same width and seed."""

    name: str
    losses: dict[int, float]
    differences: tuple[float, ...]


def main() -> None:
    """Write table and picture, and print the pooled spread."""
    losses = read_losses(HERE / "runs")
    groups = {title: rows(losses, endings) for title, endings in GROUPS.items()}
    pooled = pooled_variance(groups.values())
    text = "\n".join(table(title, found, losses["bf16"], pooled) for title, found in groups.items() if found)
    replace_part(HERE / "README.md", "table", text)
    replace_part(HERE.parents[1] / "README.md", "losses by bits", losses_by_bits(losses))
    print(f"standard deviation of a difference: {pooled[0] ** 0.5:.4f} nats, from {pooled[1]} pairs of seeds")
    draw(groups, fmean(losses["bf16"].values()))


def rows(losses: dict[str, dict[int, float]], endings: tuple[str, ...]) -> list[Row]:
    """Methods whose names end so, best first."""
    found = []
    for name in losses:
        ending = next((ending for ending in endings if name.endswith(ending)), None)
        if ending is None:
            continue
        quest = losses.get(f"quest{ending}", {})
        differences = tuple(losses[name][seed] - quest[seed] for seed in sorted(losses[name].keys() & quest.keys()))
        found.append(Row(name, losses[name], differences))
    return sorted(found, key=lambda row: fmean(row.losses.values()))


def pooled_variance(groups: Iterable[list[Row]]) -> tuple[float, int]:
    """Variance over seeds of a difference from QuEST, pooled over all methods near the best, and its freedom."""
    near = [
        row.differences
        for group in groups
        for row in group
        if fmean(row.losses.values()) < fmean(group[0].losses.values()) + FAR
        and len(row.differences) > 1
        and any(row.differences)  # not QuEST itself, whose difference is zero
    ]
    freedom = sum(len(differences) - 1 for differences in near)
    return sum(variance(differences) * (len(differences) - 1) for differences in near) / freedom, freedom


def table(title: str, group: list[Row], dense: dict[int, float], pooled: tuple[float, int]) -> str:
    """Markdown of one group."""
    per_run, freedom = pooled
    lines = [
        f"\n| {title} | mean loss | by seed | over BF16 | minus QuEST, 95 % interval | |",
        "|---|---|---|---|---|---|",
    ]
    for row in group:
        by_seed = ", ".join(f"{loss:.4f}" for _, loss in sorted(row.losses.items()))
        mean = fmean(row.losses.values())
        over = fmean(loss - dense[seed] for seed, loss in row.losses.items())
        against, verdict = "", ""
        if any(row.differences):
            difference = fmean(row.differences)
            width = float(stdtrit(freedom, 0.975)) * (per_run / len(row.differences)) ** 0.5
            against = f"{difference:+.4f} ± {width:.4f}"
            verdict = "alike" if abs(difference) <= width else "better" if difference < 0 else "worse"
        name = row.name.rsplit("-w", 1)[0] if title.startswith("W") else row.name
        lines.append(f"| {name} | {mean:.4f} | {by_seed} | {over:+.4f} | {against} | {verdict} |")
    return "\n".join(lines)


def losses_by_bits(losses: dict[str, dict[int, float]]) -> str:
    """Markdown of QuEST's losses at each width, beside the method of the lowest mean loss at that width."""
    lines = [
        "\n| weights and activations | QuEST, mean | by seed | over BF16 | lowest of the methods tried |",
        "|---|---|---|---|---|",
    ]
    dense = losses["bf16"]
    for title in ("16 bit", "W4A4", "W3A3", "W2A2", "W1A1"):
        found = {row.name: row.losses for row in rows(losses, GROUPS[title])}
        name = "bf16" if title == "16 bit" else f"quest-{title.lower()}"
        by_seed = ", ".join(f"{loss:.4f}" for _, loss in sorted(found[name].items()))
        over = fmean(loss - dense[seed] for seed, loss in found[name].items())
        best = next(iter(found))  # rows are sorted, the lowest mean first
        lowest = "" if name == "bf16" else f"{best.rsplit('-w', 1)[0]} {fmean(found[best].values()):.4f}"
        shown = "BF16, not quantised" if name == "bf16" else title
        lines.append(
            f"| {shown} | {fmean(found[name].values()):.4f} | {by_seed} | {'' if name == 'bf16' else f'{over:+.4f}'} "
            f"| {lowest} |"
        )
    return "\n".join(lines)


def draw(groups: dict[str, list[Row]], dense: float) -> None:
    """Excess over BF16 of every method and seed, a panel a width."""
    shown = [title for title in ("W4A4", "W3A3", "W2A2", "W1A1") if groups[title]]
    with drawing(13, 3.6) as figure:
        axes = figure.subplots(1, len(shown))
        for axis, title in zip(axes, shown, strict=True):
            group = groups[title][::-1]
            for place, row in enumerate(group):
                name = row.name.rsplit("-w", 1)[0]
                excess = [loss - dense for loss in row.losses.values()]
                axis.plot(excess, [place] * len(excess), "o", color=LIGHT["bits-1" if name == "quest" else "ink"], ms=5)
            axis.set_yticks(range(len(group)), [row.name.rsplit("-w", 1)[0] for row in group])
            axis.set_title(title)
            axis.set_xlabel("nats a token over BF16")
            axis.grid(visible=False, axis="y")
    save_figure(figure, HERE / "losses.png")


if __name__ == "__main__":
    main()
