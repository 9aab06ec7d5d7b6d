"""Loss over model megabytes: which width to choose at a given size in memory (first figure of arXiv 2502.05003)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from questlm.humanize import bytes_text, count_text
from questlm.plotting import LIGHT, linear_ticks, log_axis
from questlm.report.drawing import Drawing, Picture
from questlm.report.gather import Entry
from questlm.report.pictures.shared import panels, plural, value_text
from questlm.report.statistics import block_bytes, budgets, pareto_front, ratio_text
from questlm.scaling.group_styles import GroupStyle, legend, marker_style

__all__ = ["frontier", "sizes_in_bytes"]

_MOST_PANELS = 4


def sizes_in_bytes(entries: Sequence[Entry]) -> tuple[dict[int, int], bool]:
    """Bytes of each model, by `id`, and whether embeddings are counted.

    They are only where the shapes of all are known, since sizes with them and without are not to be compared.
    """
    if all(entry.packed is not None for entry in entries):
        return {id(entry): entry.packed or 0 for entry in entries}, True
    return {id(entry): block_bytes(entry.run) for entry in entries}, False


def frontier(entries: Sequence[Entry], styles: Mapping[str, GroupStyle]) -> Picture | None:
    """The picture of the finished runs, or None of fewer than two."""
    finished = [entry for entry in entries if entry.finished]
    if len(finished) < 2:
        return None
    size, whole = sizes_in_bytes(finished)
    clusters = budgets(finished)
    if len(clusters) > _MOST_PANELS:
        clusters = {0.0: finished}
    fronts = {
        ratio: [cluster[i] for i in pareto_front([(size[id(entry)], entry.run.loss) for entry in cluster])]
        for ratio, cluster in clusters.items()
    }
    used = {group: style for group, style in styles.items() if any(entry.run.group == group for entry in finished)}

    def draw(narrow: bool) -> Drawing:
        from matplotlib.lines import Line2D

        columns = 3 if len(clusters) == 3 else 2
        figure, axes = panels(len(clusters), narrow, columns, 3.6 if len(clusters) < 4 else 3.2, sharey=not narrow)
        tips: dict[str, list[str]] = {}
        for number, (axis, (ratio, cluster)) in enumerate(zip(axes, clusters.items(), strict=True)):
            front = [(size[id(entry)] / 1e6, entry.run.loss) for entry in fronts[ratio]]
            axis.plot(*zip(*front, strict=True), color=LIGHT["front"], linewidth=6, alpha=0.4, solid_capstyle="round")
            for rank, (group, style) in enumerate(used.items()):
                inside = sorted((e for e in cluster if e.run.group == group), key=lambda e: size[id(e)])
                if inside:
                    tips |= _group(axis, f"size-{number}-{rank}", inside, size, style)
            if narrow or number % columns == 0:
                axis.set_ylabel("loss (nats/token)")
            axis.set_xlabel("MB" + (" packed" if whole else " of blocks"))
            if ratio:
                axis.set_title(f"{ratio_text(ratio)} tokens per parameter")
            axis.margins(0.06)
            log_axis(axis, 5, value_text)
            linear_ticks(axis)
        band = Line2D([], [], color=LIGHT["front"], linewidth=6, alpha=0.4, label="Pareto front")
        legend(figure, used, narrow, [band])
        return Drawing(figure, tips)

    on_front = {id(entry) for front in fronts.values() for entry in front}
    return Picture(
        "frontier",
        "Loss over model size",
        _caption(clusters, fronts, size, whole),
        draw,
        ("run", "group", "parameters", "tokens", "bytes", "embeddings_counted", "loss", "on_front"),
        [
            (e.name, e.run.group, e.run.parameters, e.run.tokens, size[id(e)], whole, e.run.loss, id(e) in on_front)
            for e in finished
        ],
    )


def _group(
    axis: Any, gid: str, entries: Sequence[Entry], size: Mapping[int, int], style: GroupStyle
) -> dict[str, list[str]]:
    """The points of a group, and a line through the best of each size."""
    best: dict[int, float] = {}
    for entry in entries:
        best[size[id(entry)]] = min(entry.run.loss, best.get(size[id(entry)], entry.run.loss))
    axis.plot([x / 1e6 for x in best], list(best.values()), color=style.color, linestyle=style.dash, linewidth=1.2)
    points = [(size[id(entry)] / 1e6, entry.run.loss) for entry in entries]
    axis.plot(*zip(*points, strict=True), gid=gid, **marker_style(style))
    return {gid: [f"{e.name}: {e.run.group}, {bytes_text(size[id(e)])}, loss {e.run.loss:.4f}" for e in entries]}


def _caption(
    clusters: Mapping[float, Sequence[Entry]],
    fronts: Mapping[float, Sequence[Entry]],
    size: Mapping[int, int],
    whole: bool,
) -> str:
    sentences = []
    for ratio, front in fronts.items():
        groups = Counter(entry.run.group for entry in front).most_common()
        where = f"{ratio_text(ratio)} tokens per parameter" if ratio else "All budgets of tokens together"
        on = f"{len(front)} of {plural(len(clusters[ratio]), 'run')} on the front"
        ends = (
            f"from {_point(front[0], size)} to {_point(front[-1], size)}" if len(front) > 1 else _point(front[0], size)
        )
        sentences.append(f"{where}: {on}, {ends}; {', '.join(f'{count} {group}' for group, count in groups)}.")
    if whole:
        sentences.append("Megabytes (10⁶ bytes) are those of the packed model, embedding and head included.")
    else:
        sentences.append(
            "Not every run says its shape, so megabytes (10⁶ bytes) are those of the weights in the blocks alone, at "
            "their bits; embedding, head and row steps are not counted."
        )
    return "\n".join(sentences)


def _point(entry: Entry, size: Mapping[int, int]) -> str:
    run = entry.run
    return f"{bytes_text(size[id(entry)])} at {run.loss:.3f} ({run.group}, N = {count_text(run.parameters)})"
