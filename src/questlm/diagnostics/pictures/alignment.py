"""How well quantised gradients point where those of full precision do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from questlm.diagnostics.pictures.shared import (
    BLUE,
    GREY,
    OCHRE,
    RED,
    Series,
    kind_rank,
    legend_below,
    numbers,
    titled_figure,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["alignment"]

_ESTIMATORS = {
    "quest": ("trust + HT", BLUE, "o"),
    "quest-noht": ("trust, no HT", OCHRE, "s"),
    "ste": ("straight-through, no HT", RED, "^"),
}


def alignment(result: Mapping[str, Any]) -> Figure:
    """Draw the cosines of quantised and full-precision gradients, by block and by kind of layer."""
    measured = result["gradient_alignment"]
    figure, axes = titled_figure(
        1, 3, (10.5, 3.9), "Cosine of quantised and full-precision gradients", result, sharey=True
    )
    titles = {
        "weights_by_block": ("gradient of the weights, by block", "block"),
        "stream_by_block": ("gradient of the residual stream", "input of block"),
        "weights_by_kind": ("gradient of the weights, by layer", "layer"),
    }
    for axis, (key, (title, label)) in zip(axes[0], titles.items(), strict=True):
        for number, (method, values) in enumerate(measured["methods"].items()):
            _points(axis, values[key], method, 0.12 * (number - 1), joined=key != "weights_by_kind")
        axis.set_title(title)
        axis.set_xlabel(label)
    axes[0][0].set_ylabel(f"cosine (mean ± s.d. of {measured['batches']} batches)")
    low = axes[0][0].get_ylim()[0]
    axes[0][0].set_ylim(min(0.0, low), 1.02)
    legend_below(figure, axes[0][0])
    return figure


def _points(axis: Axes, series: Series, method: str, shift: float, joined: bool) -> None:
    """One estimator's means with error bars; on integers moved by `shift`, so that bars do not cover each other."""
    label, color, marker = _ESTIMATORS.get(method, (method, GREY, "o"))
    keys = sorted(series, key=kind_rank)
    places = [place + shift for place in (map(int, keys) if joined else range(len(keys)))]
    axis.errorbar(
        places, numbers(series[key]["mean"] for key in keys),
        yerr=[value if math.isfinite(value) else 0.0 for value in numbers(series[key]["std"] for key in keys)],
        label=label, color=color, marker=marker, linestyle="-" if joined else "none", elinewidth=1.0, capsize=2,
    )  # fmt: skip
    if joined:
        whole_ticks(axis)
    else:
        axis.set_xticks(range(len(keys)), keys)
