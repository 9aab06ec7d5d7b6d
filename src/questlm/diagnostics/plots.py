"""The pictures of `questlm.diagnostics`, drawn from its JSON alone. Needs matplotlib, the extra `plots`.

Colours are Okabe and Ito's, which people with any common colour blindness tell apart; kinds of layers and estimators
also differ by marker. Nothing here uses pyplot, so no window system, global state or chosen backend is involved.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from questlm.diagnostics.layers import block_of, group_by, kind_of
from questlm.diagnostics.normality import gaussian_row_maximum
from questlm.errors import MissingDependencyError
from questlm.progress import progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PICTURES", "draw", "require_matplotlib"]

_BLUE, _VERMILLION, _GREEN, _ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
_PURPLE, _SKY, _BLACK, _GREY = "#CC79A7", "#56B4E9", "#000000", "#767676"
_ESTIMATORS = {
    "quest": ("trust + HT", _BLUE, "o"),
    "quest-noht": ("trust, no HT", _ORANGE, "s"),
    "ste": ("straight-through, no HT", _VERMILLION, "^"),
}
_KINDS = {
    "q": (_BLUE, "o"),
    "k": (_SKY, "s"),
    "v": (_GREEN, "^"),
    "o": (_PURPLE, "D"),
    "gate": (_ORANGE, "v"),
    "up": (_VERMILLION, "P"),
    "down": (_BLACK, "X"),
}
_STAGES = {"before": ("before HT", _VERMILLION), "after": ("after HT", _BLUE)}
_DPI = 150
_DASHES = (0, (3, 2))
_STYLE: dict[str, Any] = {
    "figure.dpi": _DPI,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.5,
    "lines.markersize": 5.5,
}
_Series = Mapping[str, Mapping[str, float | None]]


def require_matplotlib() -> None:
    """Refuse early, before anything is computed.

    Raises:
        MissingDependencyError: matplotlib is not installed; the message names the pip command.
    """
    if find_spec("matplotlib") is None:
        raise MissingDependencyError("matplotlib", "plots", "drawing diagnostics")


def draw(result: Mapping[str, Any], folder: Path, show_progress: bool = True) -> list[str]:
    """Draw every picture that `result` (see `diagnose`; with a "title") has the numbers for, as PNG files in `folder`.

    Returns:
        The names of the files.
    """
    require_matplotlib()
    import matplotlib

    names = []
    style: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_STYLE}  # whatever the user's matplotlibrc says
    with matplotlib.rc_context(style), progress("drawing", len(PICTURES), show_progress) as update:
        for number, (name, picture) in enumerate(PICTURES.items(), 1):
            figure = picture(result)
            if figure is not None:
                _save(figure, folder / name)
                names.append(name)
            update(number, name)
    return names


def _save(figure: Figure, path: Path) -> None:
    """As PNG of 256 colours: a third of the size, as good for lines and text, and the same file for equal numbers."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=_DPI, format="png")
    with Image.open(buffer) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(path, optimize=True, dpi=(_DPI, _DPI))


# -- gradient alignment ------------------------------------------------------------------------------------------------


def _alignment(result: Mapping[str, Any]) -> Figure:
    alignment = result["gradient_alignment"]
    figure, axes = _figure(1, 3, (10.5, 3.9), "Cosine of quantised and full-precision gradients", result, sharey=True)
    titles = {
        "weights_by_block": ("gradient of the weights, by block", "block"),
        "stream_by_block": ("gradient of the residual stream", "input of block"),
        "weights_by_kind": ("gradient of the weights, by layer", "layer"),
    }
    for axis, (key, (title, label)) in zip(axes[0], titles.items(), strict=True):
        for number, (method, values) in enumerate(alignment["methods"].items()):
            _points(axis, values[key], method, 0.12 * (number - 1), joined=key != "weights_by_kind")
        axis.set_title(title)
        axis.set_xlabel(label)
    axes[0][0].set_ylabel(f"cosine (mean ± s.d. of {alignment['batches']} batches)")
    low = axes[0][0].get_ylim()[0]
    axes[0][0].set_ylim(min(0.0, low), 1.02)
    _legend_below(figure, axes[0][0])
    return figure


def _points(axis: Axes, series: _Series, method: str, shift: float, joined: bool) -> None:
    """One estimator's means with error bars; on integers moved by `shift`, so that bars do not cover each other."""
    label, color, marker = _ESTIMATORS.get(method, (method, _GREY, "o"))
    keys = sorted(series, key=_kind_rank)
    places = [place + shift for place in (map(int, keys) if joined else range(len(keys)))]
    axis.errorbar(
        places, _numbers(series[key]["mean"] for key in keys),
        yerr=[value if math.isfinite(value) else 0.0 for value in _numbers(series[key]["std"] for key in keys)],
        label=label, color=color, marker=marker, linestyle="-" if joined else "none", elinewidth=1.0, capsize=2,
    )  # fmt: skip
    if joined:
        _whole_ticks(axis)
    else:
        axis.set_xticks(range(len(keys)), keys)


# -- masks -------------------------------------------------------------------------------------------------------------


def _mask_share(result: Mapping[str, Any]) -> Figure:
    masks = result["masks"]
    points = masks["checkpoints"]
    figure, axes = _figure(1, 1, (6.8, 3.9), "Weights whose gradient the trust estimator stops", result)
    axis = axes[0][0]
    steps = [point["step"] for point in points]
    for kind in sorted(points[0]["by_kind"], key=_kind_rank):
        color, marker = _kind_style(kind)
        shares = _numbers(point["by_kind"][kind] for point in points)
        axis.plot(steps, _percent(shares), color=color, marker=marker, label=kind, linewidth=1.1, markersize=4.5)
    axis.plot(steps, _percent(_numbers(p["masked"] for p in points)), color=_GREY, linewidth=3, label="all", zorder=1)
    axis.axhline(100 * masks["gaussian"], color=_BLACK, linestyle=":", label=f"Gaussian, {masks['gaussian']:.2%}")
    axis.set_xlabel("training step")
    axis.set_ylabel("masked weights (%)")
    axis.set_ylim(bottom=0)
    _whole_ticks(axis)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _persistence(result: Mapping[str, Any]) -> Figure | None:
    masks = result["masks"]
    pairs = masks["persistence"].get("pairs")
    if not pairs:
        return None
    maps = pairs if len(pairs) == 1 else [pairs[0], pairs[-1]]
    size = (0.8 + 3.7 * (1 + len(maps)), 4.3)
    figure, axes = _figure(1, 1 + len(maps), size, "Do masked weights stay masked?", result)
    _conditionals(axes[0][0], pairs, masks["gaussian"])
    highest = max(max(map(max, pair["joint"])) for pair in maps)
    for axis, pair in zip(axes[0][1:], maps, strict=True):
        image = _heat_map(axis, pair, masks, highest)
    bar = figure.colorbar(image, ax=axes[0][1:], pad=0.02, aspect=28)
    bar.set_label("weights (outermost bin: and beyond)")
    _legend_below(figure, axes[0][0])
    return figure


def _conditionals(axis: Axes, pairs: Sequence[Mapping[str, Any]], gaussian: float) -> None:
    """P(masked) after having been masked, or not, at the checkpoint before."""
    steps = [pair["to"] for pair in pairs]
    for key, label, color, marker in (
        ("masked_if_masked", "masked a checkpoint ago", _VERMILLION, "o"),
        ("masked_if_passing", "not masked a checkpoint ago", _BLUE, "s"),
    ):
        kinds = [[_number(values[key]) for values in pair["by_kind"].values()] for pair in pairs]
        axis.fill_between(steps, [min(k) for k in kinds], [max(k) for k in kinds], color=color, alpha=0.18, linewidth=0)
        axis.plot(steps, _numbers(pair[key] for pair in pairs), color=color, marker=marker, label=label)
    axis.axhline(gaussian, color=_BLACK, linestyle=":", label="drawn afresh (Gaussian)")
    axis.set_yscale("log")
    axis.set_ylim(top=1.3)
    axis.set_title("masked now (band: range over kinds)")
    axis.set_xlabel("training step")
    axis.set_ylabel("probability")
    axis.set_box_aspect(1)
    _whole_ticks(axis)


def _heat_map(axis: Axes, pair: Mapping[str, Any], masks: Mapping[str, Any], highest: float) -> Any:
    """Joint histogram of a weight's size at two checkpoints."""
    import numpy as np
    from matplotlib.colors import LogNorm

    edge = masks["persistence"]["joint_max"]
    counts = np.array(pair["joint"], dtype=float).T  # x is then, y is now
    image = axis.imshow(
        np.where(counts > 0, counts, np.nan), origin="lower", extent=(0, edge, 0, edge), cmap="viridis",
        norm=LogNorm(1, max(2.0, highest)), interpolation="nearest",
    )  # fmt: skip
    if masks["bound"] is not None:
        for line in (axis.axvline, axis.axhline):
            line(masks["bound"], color=_VERMILLION, linewidth=1.2, linestyle="--")
        axis.text(
            masks["bound"] - 0.06, 0.06, "trust bound", color=_VERMILLION, rotation=90, ha="right", va="bottom",
            fontsize=8.5, bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.0},
        )  # fmt: skip
    axis.grid(False)
    what = "rotated weights" if _rotated(masks) else "weights"
    axis.set_title(f"{what}, step {pair['from']} to {pair['to']}")
    axis.set_xlabel(f"|weight| / rms at step {pair['from']}")
    axis.set_ylabel(f"|weight| / rms at step {pair['to']}")
    return image


# -- normality ---------------------------------------------------------------------------------------------------------


def _normality(result: Mapping[str, Any]) -> Figure:
    measures = {
        "excess_kurtosis": ("kurtosis", "excess kurtosis"),
        "max_over_rms": ("largest entry of a row", "max|x| / rms, median row"),
        "beyond": ("tails", "share beyond 4 rms / Gaussian's"),
    }
    figure, axes = _figure(2, 3, (11.6, 6.4), "How Gaussian rows are before and after the Hadamard transform", result)
    for row, role in zip(axes, ("weights", "activations"), strict=True):
        layers = result["normality"][role]
        for axis, (key, (title, label)) in zip(row, measures.items(), strict=True):
            for stage in _STAGES:
                values = {name: layer[stage][key] for name, layer in layers.items()}
                _by_depth(axis, values, filled=stage == "after")
            axis.set_title(f"{role}: {title}")
            axis.set_ylabel(label)
        _gaussian_lines(row, layers)
        _legend_of_kinds(row[-1], layers, {"before HT": False, "after HT": True})
    for axis in axes[-1]:
        axis.set_xlabel("block")
    return figure


def _gaussian_lines(row: Sequence[Axes], layers: Mapping[str, Any]) -> None:
    """What Gaussian rows would measure; scales that are linear near it and logarithmic far from it."""
    row[0].axhline(0, color=_BLACK, linestyle=":")
    for length in sorted({layer["row_length"] for layer in layers.values()}):
        row[1].axhline(gaussian_row_maximum(length), color=_BLACK, linestyle=":")
    row[2].axhline(1, color=_BLACK, linestyle=":")
    for axis in (row[0], row[2]):
        if axis.get_ylim()[1] > 3:
            axis.set_yscale("symlog", linthresh=1)
            axis.autoscale(axis="y")
        axis.yaxis.set_major_formatter("{x:g}")
    row[2].set_ylim(bottom=0)


def _worst(result: Mapping[str, Any]) -> Figure:
    figure, axes = _figure(
        2, 2, (9.0, 6.8), "The layers least Gaussian, before or after the Hadamard transform", result
    )
    for row, role in zip(axes, ("weights", "activations"), strict=True):
        picture = result["normality"]["worst"][role]
        measured = result["normality"][role][picture["layer"]]
        _histogram(row[0], picture, _weight_bound(result) if role == "weights" else None)
        _quantile_plot(row[1], picture)
        name = f"{'weights' if role == 'weights' else 'inputs'} of {picture['layer']}"
        before, after = (measured[stage]["excess_kurtosis"] for stage in _STAGES)
        row[0].set_title(f"{name}: histogram")
        row[1].set_title(f"quantiles (excess kurtosis {before:+.2f} → {after:+.2f})")
    _legend_below(figure, axes[0][0])
    return figure


def _rotated(masks: Mapping[str, Any]) -> bool:
    """Whether masks were taken on rotated weights. The first files did not say so: they were of quest or quest-noht."""
    return bool(masks.get("rotated", masks["method"] == "quest"))


def _weight_bound(result: Mapping[str, Any]) -> float | None:
    """Trust bound on rotated weights, where the mask shown is taken on these."""
    masks = result["masks"]
    bound: float | None = masks["bound"] if _rotated(masks) else None
    return bound


def _histogram(axis: Axes, picture: Mapping[str, Any], bound: float | None) -> None:
    low, high = picture["edges"]
    for stage, (label, color) in _STAGES.items():
        density = picture["density"][stage]
        width = (high - low) / len(density)
        edges = [low + i * width for i in range(len(density) + 1)]
        values = [value or math.nan for value in density]
        axis.stairs(values, edges, baseline=None, color=color, label=label, linewidth=1.4)
    grid = [low + (high - low) * i / 400 for i in range(401)]
    axis.plot(
        grid, [math.exp(-z * z / 2) / math.sqrt(2 * math.pi) for z in grid],
        color=_BLACK, linestyle=":", label="Gaussian",
    )  # fmt: skip
    if bound is not None:
        axis.axvline(-bound, color=_GREY, linestyle="--", linewidth=1.1, label="trust bound on weights after HT")
        axis.axvline(bound, color=_GREY, linestyle="--", linewidth=1.1)
    axis.set_yscale("log")
    axis.set_ylim(bottom=1e-6)
    axis.set_xlabel("x / rms")
    axis.set_ylabel("density")


def _quantile_plot(axis: Axes, picture: Mapping[str, Any]) -> None:
    gaussian = picture["gaussian_quantiles"]
    axis.plot([-4, 4], [-4, 4], color=_BLACK, linestyle=":")
    for stage, (_, color) in _STAGES.items():
        axis.plot(gaussian, picture["quantiles"][stage], color=color, marker="o", markersize=2.2, linewidth=1.0)
    axis.set_xlabel("quantile of a Gaussian")
    axis.set_ylabel("quantile of x / rms")


# -- error -------------------------------------------------------------------------------------------------------------


def _error(result: Mapping[str, Any]) -> Figure:
    from matplotlib.ticker import LogLocator

    errors = {role: value for role, value in result["error"].items() if value is not None}
    errors = {role: errors[role] for role in ("weights", "activations") if role in errors}
    size = (1.2 + 5.0 * len(errors), 4.2)
    figure, axes = _figure(1, len(errors), size, "Relative squared error of rounding", result, sharey=True)
    for axis, (role, error) in zip(axes[0], errors.items(), strict=True):
        for method, filled in (("quest-noht", False), ("quest", True)):
            _by_depth(axis, {name: values[method] for name, values in error["layers"].items()}, filled)
        axis.axhline(error["gaussian"], color=_BLACK, linestyle=":", label="Gaussian")
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.set_title(f"{role}, {_bits(error['bits'])}")
        axis.set_xlabel("block")
        _legend_of_kinds(axis, error["layers"], {"without HT": False, "with HT": True})
    axes[0][0].set_ylabel(r"$\Vert x_q - x\Vert^2\,/\,\Vert x\Vert^2$")
    return figure


# -- shared ------------------------------------------------------------------------------------------------------------


def _figure(
    rows: int, columns: int, size: tuple[float, float], title: str, result: Mapping[str, Any], sharey: bool = False
) -> tuple[Figure, Any]:
    """A figure and its axes (rows, columns), titled with what is shown and of which run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(f"{title}\n", fontsize=12, fontweight="bold")  # the second line is the next one's place
    figure.text(0.5, 0.98 - 0.2 / size[1], str(result.get("title", "")), ha="center", va="top", color="#444444")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=sharey)


def _by_depth(axis: Axes, values: Mapping[str, float | None], filled: bool) -> None:
    """One line a kind of layer over the blocks; kinds that share their numbers (and so their input) share a line."""
    for kinds, names in _lines(values):
        color, marker = _kind_style(kinds[0])
        axis.plot(
            [block_of(name) for name in names], _numbers(values[name] for name in names), color=color, marker=marker,
            linestyle="-" if filled else _DASHES, markerfacecolor=color if filled else "white",
            linewidth=1.3 if filled else 1.0,
        )  # fmt: skip
    _whole_ticks(axis)


def _lines(values: Mapping[str, Any]) -> list[tuple[list[str], list[str]]]:
    """(kinds, layer names in order of depth) of each line of `_by_depth`."""
    lines: dict[str, tuple[list[str], list[str]]] = {}
    groups = group_by(values, kind_of)
    for kind in sorted(groups, key=_kind_rank):
        names = sorted(groups[kind], key=block_of)
        numbers = str([values[name] for name in names])
        lines.setdefault(numbers, ([], names))[0].append(kind)
    return list(lines.values())


def _legend_of_kinds(axis: Axes, layers: Mapping[str, Any], stages: Mapping[str, bool]) -> None:
    """What colours and markers mean (kinds), and what filling means (stages), to the right of `axis`."""
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    for kinds, _ in _lines(layers):
        color, marker = _kind_style(kinds[0])
        handles.append(Line2D([], [], color=color, marker=marker, linestyle="none", label=", ".join(kinds)))
    for label, filled in stages.items():
        look: dict[str, Any] = {
            "linestyle": "-" if filled else _DASHES,
            "markerfacecolor": _GREY if filled else "white",
        }
        handles.append(Line2D([], [], color=_GREY, marker="o", label=label, **look))
    handles.append(Line2D([], [], color=_BLACK, linestyle=":", label="Gaussian"))
    axis.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _legend_below(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def _kind_rank(key: str) -> tuple[int, int, str]:
    """Order of the forward pass for kinds of layers, of numbers for blocks."""
    if key.isdecimal():
        return (0, int(key), "")
    known = list(_KINDS)
    return (1, known.index(key) if key in known else len(known), key)


def _kind_style(kind: str) -> tuple[str, str]:
    return _KINDS.get(kind, (_GREY, "*"))


def _whole_ticks(axis: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def _bits(bits: int | str) -> str:
    return f"{bits} bit" + "s" * (bits != 1) if isinstance(bits, int) else bits


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [_number(value) for value in values]


def _percent(shares: Iterable[float]) -> list[float]:
    return [100 * share for share in shares]


PICTURES: dict[str, Callable[[Mapping[str, Any]], Figure | None]] = {
    "gradient-alignment.png": _alignment,
    "mask-share.png": _mask_share,
    "mask-persistence.png": _persistence,
    "normality.png": _normality,
    "normality-worst.png": _worst,
    "quantisation-error.png": _error,
}
"""File names and what draws them; None where there is nothing to draw."""
