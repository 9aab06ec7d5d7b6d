"""Pack a run within a budget of bytes by rounding its matrices anew, each to a grid of its own, for the least loss.

First each matrix alone is rounded to fewer bits and the loss measured: how much it rises for the squared distance that
the weights moved is the matrix's sensitivity. With it the loss of any other grid is estimated, since a small rise of a
loss goes with the square of what was changed, and the bytes of each follow from the entropy of its codes. Bits and
steps are then chosen for several sizes (`questlm.trained.allocation`). Estimates choose, but decide nothing: each
choice is packed, read back and measured, and the one of least measured loss within the budget is kept.

Nothing is trained, so a model trained at the bits of the result is better than it; and because the choice is made on
validation text, its loss there is a little too low.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from questlm import ops
from questlm.artifact.budget import Budget
from questlm.artifact.write import PackReport
from questlm.data import TokenStream, prepare
from questlm.errors import ConfigError
from questlm.evaluation import evaluate
from questlm.export.pack import pack
from questlm.inference import load
from questlm.models import Llama
from questlm.ops import Operand
from questlm.progress import progress
from questlm.quant import FakeQuantLinear
from questlm.quant.rerounding import (
    Layer,
    Rounding,
    own_quantizer,
    rerounded,
    rounded_anew,
    roundings,
    stored_matrices,
    trained_values,
)
from questlm.trained.allocation import Option, allocate, total_bytes
from questlm.trained.pack import packed_content
from questlm.training import RunFolder

__all__ = ["FitPoint", "FitReport", "fit_to_budget"]

Choice = Rounding | None
"""What a matrix is rounded to; None: as it was trained."""

_PROBING = 0.5  # share of the time that measuring sensitivities may take
_SHARES = (1.0, 0.92, 0.84, 0.76, 0.68)  # of the budget, or of the model where that is smaller, for the frontier
_LEAST_TOKENS = 2048
_CORRECTIONS = 4  # times that a choice above the budget is made smaller


@dataclass(frozen=True)
class FitPoint:
    """One choice of grids, packed, read back and measured.

    Attributes:
        bytes: of the whole file.
        loss: of the file that was read back, nats a token.
        choices: what matrices are rounded to, by their names; those left out are as trained.
        report: of packing.
    """

    bytes: int
    loss: float
    choices: Mapping[str, Rounding]
    report: PackReport


@dataclass(frozen=True)
class FitReport:
    """The result of `fit_to_budget`.

    Attributes:
        packed: sizes of the file that was kept.
        points: all that was measured, from the largest; the first is the model as it was trained.
        kept: the point that was kept.
        tokens: of the validation split, from its beginning, on which the points were measured.
        probed, matrices: how many matrices' sensitivities were measured, of how many.
    """

    packed: PackReport
    points: list[FitPoint]
    kept: FitPoint
    tokens: int
    probed: int
    matrices: int


class _Matrix(NamedTuple):
    """A matrix that can be rounded anew, and the bytes of its codes and the distance from the trained weights.

    Attributes:
        layers: that compute with it.
        options: bytes and squared distance of each grid, and of the trained one, which is None.
    """

    layers: list[Layer]
    options: dict[Choice, tuple[float, float]]

    @property
    def probe(self) -> Rounding:
        """The grid whose loss is measured: one bit less, which moves the weights far enough to be seen."""
        given = [choice for choice in self.options if choice is not None and choice.clip == 1.0]
        bits = max(choice.bits for choice in given)
        return Rounding(max(2, bits - 1), 1.0)


@dataclass
class _Measured:
    """A model and its text, and how fast and how exactly it is measured."""

    model: Llama
    content: dict[str, Any]
    val: TokenStream
    seq_len: int
    device: torch.device
    tokens: int = _LEAST_TOKENS
    points: list[FitPoint] = field(default_factory=list)

    def loss(self, choices: Mapping[str, Rounding], matrices: Mapping[str, _Matrix]) -> float:
        """Loss of the model in memory, its matrices rounded so."""
        with rounded_anew(_pairs(choices, matrices)):
            return self._on(self.model)

    def measure(self, choices: Mapping[str, Rounding], matrices: Mapping[str, _Matrix]) -> FitPoint:
        """Pack the model, its matrices rounded so, read the file back and measure it."""
        with tempfile.TemporaryDirectory() as folder, rounded_anew(_pairs(choices, matrices)):
            file = Path(folder) / "model.quest"
            report = pack(**self.content, out=file, single_file=True)
            point = FitPoint(report.bytes, self._on(load(file, device=self.device).logits), choices, report)
        self.points.append(point)
        return point

    def set_tokens(self, count: float) -> None:
        """Measure on so many tokens from now on, in whole windows; or on all, or on few, if there is little time."""
        whole = max(_LEAST_TOKENS, int(count)) // self.seq_len * self.seq_len
        self.tokens = min(max(whole, self.seq_len), len(self.val) - 1)

    def _on(self, logits: Any) -> float:
        with torch.no_grad():
            result = evaluate(
                logits, self.val, self.seq_len, max_tokens=self.tokens, device=self.device, show_progress=False
            )
        return result.loss


def fit_to_budget(
    run: str | Path, out: str | Path, budget: Budget | int, *, seconds: float = 600.0, with_tokenizer: bool = True
) -> FitReport:
    """Pack the newest checkpoint of a run as the single file `out`, rounded anew to meet a budget with the least loss.

    Args:
        run: folder of the run, whose validation text is there.
        out: must not exist.
        budget: the most bytes that the file, and what counts beside it, may take.
        seconds: about how long it may take; the trained model and one choice are measured in any case.
        with_tokenizer: whether the run's tokenizer goes into the file.

    Raises:
        ConfigError: `out` exists, no choice of grids is small enough, or the run's weights cannot be rounded anew.
        DataError: the validation text cannot be read.
    """
    end, target = time.monotonic() + seconds, Path(out)
    limit = (budget if isinstance(budget, Budget) else Budget(budget)).left_for_model
    if target.exists() or target.is_symlink():
        raise ConfigError(f"{target} exists already; choose a new name or remove it first")
    subject = _subject(Path(run), with_tokenizer)
    matrices = _matrices(subject.model)
    subject.loss({}, matrices)  # warms up
    begun, _ = time.monotonic(), subject.loss({}, matrices)
    rate = subject.tokens / (time.monotonic() - begun)
    subject.set_tokens(rate * _PROBING * (end - begun) / (len(matrices) + 1))
    sensitivities, probed = _sensitivities(subject, matrices, begun + _PROBING * (end - begun))
    subject.set_tokens(rate * max(0.0, end - time.monotonic()) / (2 * len(_SHARES) + 2))
    options = {name: _options(matrix, sensitivities[name]) for name, matrix in matrices.items()}
    _frontier(subject, matrices, options, limit, end)
    fitting = [point for point in subject.points if point.bytes <= limit]
    kept = min(fitting, key=lambda point: point.loss)
    with rounded_anew(_pairs(kept.choices, matrices)):
        packed = pack(**subject.content, out=target, single_file=True, budget=Budget(limit))
    points = sorted(subject.points, key=lambda point: -point.bytes)
    return FitReport(packed, points, kept, subject.tokens, probed, len(matrices))


def _subject(run: Path, with_tokenizer: bool) -> _Measured:
    folder, content = RunFolder(run), packed_content(run, with_tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = content["model"].to(device).eval()
    val = prepare(folder.data_settings(), model.config.vocab_size).val
    return _Measured(model, content, val, folder.read_config().train.seq_len, device)


def _matrices(model: Llama) -> dict[str, _Matrix]:
    """All matrices that can be rounded anew, by name, with the bytes and the distance of each grid."""
    found: dict[str, _Matrix] = {}
    given = {name: layers for name, layers in stored_matrices(model).items() if roundings(layers[0])}
    if not given:
        raise ConfigError(
            "no matrix of this run can be rounded anew: that takes weights of 2 bits or more on a grid whose steps go "
            "with the rms of rows, as of the method quest"
        )
    with progress("rounding to other grids", len(given)) as update:
        for done, (name, layers) in enumerate(given.items(), 1):
            found[name] = _matrix(layers)
            update(done)
    return found


def _matrix(layers: list[Layer]) -> _Matrix:
    trained = trained_values(layers[0])
    options: dict[Choice, tuple[float, float]] = {None: (_trained_bytes(layers[0]), 0.0)}
    for rounding in roundings(layers[0]):
        operand = rerounded(layers[0], rounding)
        distance = float((ops.operand_values(operand).float() - trained.float()).square().sum())
        options[rounding] = (_entropy_bytes(operand), distance)
    return _Matrix(layers, options)


def _trained_bytes(layer: Layer) -> float:
    """Bytes of the entropy of the codes that a layer has as it was trained, or of its values where they are none."""
    if (quantizer := own_quantizer(layer)) is not None:
        return _entropy_bytes(quantizer.operand(layer.weight.detach()))
    assert not isinstance(layer, FakeQuantLinear)  # its dense weights cannot be rounded anew
    width = 1 if layer.stored_dtype == "int8" else 2
    return 0.9 * width * layer.weight.numel()  # of bytes, of which the upper ones shrink by coding


def _entropy_bytes(operand: Operand) -> float:
    assert operand.grid is not None
    counts = np.bincount(operand.data.cpu().numpy().ravel(), minlength=operand.grid.levels)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum() * counts.sum() / 8)


def _sensitivities(subject: _Measured, matrices: Mapping[str, _Matrix], until: float) -> tuple[dict[str, float], int]:
    """Rise of the loss for a squared distance of each matrix's weights, and how many of them were measured.

    Where the time is over, a matrix takes the median of those of its kind in other blocks, or of all.
    """
    base, found = subject.loss({}, matrices), dict[str, float]()
    with progress("measuring how sensitive matrices are", len(matrices)) as update:
        for done, name in enumerate(_spread(list(matrices)), 1):
            if found and time.monotonic() > until:
                break
            probe = matrices[name].probe
            rise = subject.loss({name: probe}, matrices) - base
            found[name] = rise / max(matrices[name].options[probe][1], 1e-30)
            update(done)
    lowest = 0.1 * max(statistics.median(found.values()), 1e-30)  # below it, a rise is not told from noise
    known = {name: max(value, lowest) for name, value in found.items()}
    for name in matrices.keys() - known.keys():
        alike = [value for other, value in found.items() if _kind(other) == _kind(name)]
        known[name] = max(statistics.median(alike or found.values()), lowest)
    return known, len(found)


def _kind(name: str) -> str:
    """The name of a matrix without the number of its block."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


def _spread(names: list[str]) -> list[str]:
    """Names in an order in which each beginning holds some of all blocks and kinds."""
    stride = next(step for step in (11, 13, 17, 19, 1) if len(names) % step)
    return [names[index * stride % len(names)] for index in range(len(names))] if stride > 1 else names


def _options(matrix: _Matrix, sensitivity: float) -> list[Option[Choice]]:
    return [Option(choice, size, sensitivity * distance) for choice, (size, distance) in matrix.options.items()]


def _frontier(
    subject: _Measured,
    matrices: Mapping[str, _Matrix],
    options: Mapping[str, list[Option[Choice]]],
    limit: int,
    end: float,
) -> None:
    """Measure the trained model, the choice that just fits the budget, and smaller ones while there is time."""
    with progress("packing, reading back and measuring choices", len(_SHARES) + 1) as update:
        whole = subject.measure({}, matrices)
        rest = whole.bytes - sum(matrix.options[None][0] for matrix in matrices.values())
        update(1)
        for done, share in enumerate(_SHARES, 2):
            if len(subject.points) > 1 and time.monotonic() > end:
                return
            wanted = share * min(limit, whole.bytes)
            if share == 1.0 and whole.bytes <= limit:
                continue
            for _ in range(_CORRECTIONS):
                chosen = allocate(options, wanted - rest)
                if chosen is None:
                    if share == 1.0:
                        smallest = round(rest + sum(min(o.bytes for o in each) for each in options.values()))
                        raise ConfigError(_too_small(limit, f"about {smallest:,} bytes at the least"))
                    return
                picked = {name: option.choice for name, option in chosen.items() if option.choice is not None}
                point = subject.measure(picked, matrices)
                rest += point.bytes - (rest + total_bytes(chosen))
                if share < 1.0 or point.bytes <= limit:
                    break
            else:
                tried = min(point.bytes for point in subject.points)
                raise ConfigError(_too_small(limit, f"{tried:,} bytes in the smallest file that was tried"))
            update(done)


def _too_small(limit: int, found: str) -> str:
    return (
        f"rounding this run's weights anew gives {found}, but {limit:,} are left for the "
        "model; train a smaller model or fewer bits (quest plan --memory ... --coded), or leave the tokenizer out "
        "(--no-tokenizer)"
    )


def _pairs(choices: Mapping[str, Rounding], matrices: Mapping[str, _Matrix]) -> list[tuple[Layer, Rounding]]:
    return [(layer, rounding) for name, rounding in choices.items() for layer in matrices[name].layers]
