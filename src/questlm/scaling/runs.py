"""Trained models as the scaling law sees them, read from run folders and from JSON rows. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from questlm.config import QuantSpec
from questlm.errors import ConfigError, DataError, nearest_name, quoted
from questlm.json_files import read_json
from questlm.records import RECORD_NAME, RunRecord

__all__ = ["BASELINE", "Run", "bits_of", "published_runs", "read_runs", "run_of_record"]

BASELINE = "bf16"
"""The group whose efficiency is 1 by definition: weights and activations of 16 bits."""

_PUBLISHED = Path(__file__).with_name("published_runs.json")
_KEYS = {"N", "D", "w_bits", "a_bits", "format", "method", "loss", "seed"}
_OPTIONAL = {"seed"}
_BITS = (*range(1, 9), 16, "ternary")
_MOST_BYTES = 16 * 1024 * 1024  # 100,000 rows
_LARGEST = 10**18  # more than any model or corpus; keeps every product of two counts a finite float


@dataclass(frozen=True)
class Run:
    """A trained model, as the scaling law sees it.

    Attributes:
        parameters: N, embedding and head not counted.
        tokens: D, trained on.
        weight_bits, act_bits: 1 to 8, 16 (not quantised) or "ternary".
        format: of the weights, such as "int4", "fp4" or "bf16".
        method: "quest", "lsq", ...; "bf16" for models that are not quantised.
        loss: on the validation split, nats a token.
        seed: tells repeats of one run apart.
        source: the file or folder that it was read from.
        validation: hash of the validation tokens, where it is known: losses on different ones do not compare.
    """

    parameters: int
    tokens: int
    weight_bits: int | str
    act_bits: int | str
    format: str
    method: str
    loss: float
    seed: int | None = None
    source: str = ""
    validation: str = ""

    @property
    def group(self) -> str:
        """Return the group whose efficiency the run shares: "bf16", or method/wXaY/format such as "quest/w4a4/int4"."""
        if self.weight_bits == self.act_bits == 16 and self.format == BASELINE:
            return BASELINE
        weight, act = ("t" if bits == "ternary" else bits for bits in (self.weight_bits, self.act_bits))
        return f"{self.method}/w{weight}a{act}/{self.format}"

    @property
    def label(self) -> str:
        """Return the name of the run for messages."""
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"{self.group} with N = {self.parameters:,} and D = {self.tokens:,}{seed}"


def bits_of(bits: int | str) -> float:
    """Return the information in one weight of this width, log2 of its levels, in bits."""
    return math.log2(3) if bits == "ternary" else float(bits)


def published_runs() -> list[Run]:
    """Return the 58 runs that QuEST's authors published (C4, Llama-2 tokenizer), which come with questlm."""
    return [replace(run, source="the published runs") for run in _rows(_PUBLISHED)]


def read_runs(paths: Sequence[Path], left_out: list[str] | None = None) -> list[Run]:
    """Read run folders, folders of run folders (at any depth), and JSON files of rows.

    A row is {"N", "D", "w_bits", "a_bits", "format", "method", "loss"} and, optionally, "seed".

    Args:
        paths: folders and files.
        left_out: a sentence is added for each run folder that is not read, because its training is unfinished or
            began from the weights of another run, whose tokens are not in D.

    Raises:
        DataError: nothing to read, a row or value that cannot be used, or no run that is finished.
        CheckpointError: a damaged record.
    """
    left_out = [] if left_out is None else left_out
    runs: list[Run] = []
    for path in paths:
        if path.is_dir():
            runs += _folder(path, left_out)
        else:
            runs += _rows(path)
    if not runs:
        raise DataError(
            f"there is no run to fit ({'; '.join(left_out) or 'no path was given'}); name finished runs or rows"
        )
    return runs


def run_of_record(record: RunRecord, source: str) -> Run:
    """Make a `Run` from the record of a finished run.

    Raises:
        DataError: the run is not finished, or its record lacks what the law needs.
    """
    try:
        spec = QuantSpec(**record.config["quant"])
        values = {"N": record.parameters["non_embedding"], "D": record.tokens, "loss": (record.final or {})["loss"]}
        seed, validation = record.config["seed"], str(record.data.get("val_hash", ""))
    except (AttributeError, KeyError, TypeError, ConfigError) as problem:
        raise DataError(f"the record of {source} lacks what the law needs ({problem}); train the run again") from None
    run = _run(
        {
            **values,
            "w_bits": spec.weight_bits,
            "a_bits": spec.act_bits,
            "format": _format(spec),
            "method": spec.method if spec.enabled else BASELINE,
            "seed": seed,
        },
        source,
        source,
    )
    return replace(run, validation=validation)


def _format(spec: QuantSpec) -> str:
    """Name of the weights' format (where only activations are quantised, of theirs), as in the published rows."""
    if not spec.enabled:
        return BASELINE
    name = _grid_name(spec.format, spec.act_bits if spec.weight_bits == 16 else spec.weight_bits)
    if spec.act_format is not None and spec.act_format != spec.format:
        name += f"-a{spec.act_format}"
    return f"{name}-mixed" if spec.overrides else name


def _grid_name(grid: str, bits: int | str) -> str:
    if grid == "int-2:4":
        return f"int{bits}-2:4"
    if grid in ("fp4", "bf16-2:4", "ternary") or bits == "ternary":
        return "ternary" if bits == "ternary" else grid
    return f"{grid}{bits}"


def _folder(path: Path, left_out: list[str]) -> Iterator[Run]:
    records = [path / RECORD_NAME] if (path / RECORD_NAME).exists() else sorted(path.rglob(RECORD_NAME))
    if not records:
        raise DataError(f"{path} is neither a run folder nor a folder of them: no {RECORD_NAME} in it")
    for record_file in records:
        record = RunRecord.load(record_file.parent)
        if record.final is None:
            left_out.append(f"{record_file.parent} is left out: its training is not finished")
        elif record.initial_weights is not None:
            left_out.append(f"{record_file.parent} is left out: it went on from the weights of another run")
        else:
            yield run_of_record(record, str(record_file.parent))


def _rows(path: Path) -> Iterator[Run]:
    rows = read_json(path, DataError, _MOST_BYTES)
    if not isinstance(rows, list) or not rows:
        raise DataError(
            f"{path} is not a list of runs; it should be like "
            f'[{{"N": 30482560, "D": 2999975936, "w_bits": 4, "a_bits": 4, "format": "int4", "method": "quest", '
            f'"loss": 3.27}}, ...]'
        )
    for number, row in enumerate(rows, 1):
        yield _run(row, f"row {number} of {path}", str(path))


def _run(row: Any, where: str, source: str) -> Run:
    """Check the values of one row."""
    if not isinstance(row, dict):
        raise DataError(f"{where} is not an object with the keys {', '.join(sorted(_KEYS))}")
    for key in row:
        if key not in _KEYS:
            raise DataError(
                f"{where} has an unknown key {quoted(key)}; the keys are {', '.join(sorted(_KEYS))}."
                f"{nearest_name(key, _KEYS)}"
            )
    for key in sorted(_KEYS - _OPTIONAL):
        if key not in row:
            raise DataError(f"{where} lacks {quoted(key)}")
    return Run(
        parameters=_count(row, "N", "non-embedding parameters", where),
        tokens=_count(row, "D", "tokens trained on", where),
        weight_bits=_bits(row, "w_bits", where),
        act_bits=_bits(row, "a_bits", where),
        format=_word(row, "format", where),
        method=_word(row, "method", where),
        loss=_loss(row, where),
        seed=_seed(row, where),
        source=source,
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(row: Mapping[str, Any], key: str, what: str, where: str) -> int:
    value = row[key]
    if not _number(value) or not 1 <= value <= _LARGEST or value != int(value):
        raise DataError(
            f"{where} has {key} = {quoted(value)}; it is the number of {what}, a whole number from 1 to 1e18"
        )
    return int(value)


def _loss(row: Mapping[str, Any], where: str) -> float:
    value = row["loss"]
    if not _number(value) or not 1e-6 <= value <= 1e6:  # not NaN either
        raise DataError(
            f"{where} has loss = {quoted(value)}; it is the validation loss in nats a token, a number above 0"
        )
    return float(value)


def _bits(row: Mapping[str, Any], key: str, where: str) -> int | str:
    value = row[key]
    if isinstance(value, bool) or value not in _BITS:
        raise DataError(f"{where} has {key} = {quoted(value)}; allowed are 1 to 8, 16 (not quantised) and 'ternary'")
    return value if isinstance(value, str) else int(value)


def _word(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not 1 <= len(value) <= 80 or not value.isprintable() or "/" in value:
        raise DataError(
            f"{where} has {key} = {quoted(value)}; it is a short word without '/', such as 'quest' or 'int4'"
        )
    return value


def _seed(row: Mapping[str, Any], where: str) -> int | None:
    value = row.get("seed")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise DataError(f"{where} has seed = {quoted(value)}; it is a whole number, or left out")
    return value
