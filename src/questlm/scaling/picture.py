"""What the pictures of laws and plans share: their look, and how they are written. Needs the extra `plots`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from questlm.errors import ConfigError, MissingDependencyError
from questlm.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_picture", "label", "picture"]

_FORMS = (".png", ".svg", ".pdf")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 10, "axes.titlesize": 10.5, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#E4E4E4", "grid.linewidth": 0.7,
    "axes.axisbelow": True, "legend.frameon": False, "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip


def check_picture(path: Path) -> None:
    """Refuse early, before anything is computed.

    Raises:
        ConfigError: a name of no known form.
        MissingDependencyError: matplotlib is not installed.
    """
    if path.suffix.lower() not in _FORMS:
        raise ConfigError(f"--picture {path} is of no known form; end it in {', '.join(_FORMS)}")
    if find_spec("matplotlib") is None:
        raise MissingDependencyError("matplotlib", "plots", "--picture")


def label(group: str) -> str:
    """The name of a group as matplotlib shows it, to which a dollar sign begins a formula."""
    return group.replace("$", r"\$")


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure (inches) to draw on, written to `path` in the form of its name afterwards."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**mpl.rcParamsDefault, **_STYLE}):  # whatever the user's matplotlibrc says
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        content = io.BytesIO()
        figure.savefig(content, format=path.suffix[1:].lower(), dpi=150)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content.getvalue())
