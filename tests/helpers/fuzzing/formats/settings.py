"""Settings: YAML files, `--set`, and the grids of sweeps."""

from __future__ import annotations

import json
import random
from pathlib import Path

from helpers.fuzzing.folders import Folder
from helpers.fuzzing.formats.base import FolderFormat, Format, require
from helpers.fuzzing.mutations import mutated_bytes, mutated_text, mutated_value
from questlm.config import RunConfig, load_config, to_yaml
from questlm.sweep import plan_runs, read_grid

__all__ = ["Grids", "Overrides", "Settings"]

_SETTINGS = """\
preset: 1m
model: {layers: 2, hidden: 64, heads: 4, kv_heads: 2, rope_scaling: {kind: linear, factor: 2.0}}
quant: {method: quest, weight_bits: 4, act_bits: 4, overrides: {lm_head: 8, mlp.down: {act_bits: 8}}}
data: {source: stdlib, val_fraction: 0.02, tokenizer: train, vocab_size: 4096}
train:
  seq_len: 128
  batch_size: 8
  lr: 6.0e-4
  compile: 'off'
  loggers: []
budget: {tokens: 1000000}
seed: 3
"""
_GRID = """\
sizes: [nano]
methods: [quest, lsq]
bits: [4, {weight: 4, act: 16}]
tokens_per_parameter: [4.5]
seeds: [0]
set: {data.source: stdlib, train.lr: 6.0e-4, quant.overrides: {lm_head: 8}}
"""
_YAML = (
    "2020-13-45", "2020-01-01", "!!float z", "!!python/object:os.system x", "!!binary x", "!!set {a, b}", "[" * 3000,
    "{a: " * 500, "9" * 5000, "0x" + "f" * 5000, "1:2:3", "&a [*a]", "*unknown", "<<: {a: 1}", "? [1]\n: 2", "'", "|",
    "~", ".inf", "-.nan", "1e400", "=", "\t", "%YAML 1.1", "---\na: 1", "0o17", "1_000", "'\\x1b[31m'", '"\\x1b[31m"',
    '"\\u202e"', '"\\uD800"', "off", "yes", "!", "@x", "`", "{1: 2}", "{[1]: 2}", "{null: 2}", "!!int ''", "!!bool x",
    "!!timestamp x", "!!null x", "!!omap [a]", "!!pairs [a]", "!!str", "0b2", "1__0", "-", "12345678901234567890",
)  # fmt: skip
_VALUES = (
    "1", "0", "-1", "4", "64", "4096", "ternary", "fp4", "auto", "true", "null", "0.5", "1e-3", "[]", "{lm_head: 8}",
)  # fmt: skip


def _bomb(depth: int) -> str:
    """A list that stands for 9 ** depth entries."""
    lists = ["&x0 [a,a,a,a,a,a,a,a,a]"] + [f"&x{i} [" + ",".join([f"*x{i - 1}"] * 9) + "]" for i in range(1, depth)]
    return "[" + ", ".join(lists) + "]"


def _mutated_yaml(draw: random.Random, text: str) -> tuple[bytes, str]:
    kind = draw.random()
    if kind < 0.3:  # a value, in the place of another
        places = [at for at, character in enumerate(text) if character in ":[,"]
        at = draw.choice(places) + 1
        value = _bomb(draw.choice((4, 22))) if draw.random() < 0.05 else draw.choice(_YAML)
        rest = text[at:]
        stop = min((rest.find(mark) for mark in ",}]\n" if mark in rest), default=len(rest))
        return f"{text[:at]} {value}{rest[stop:]}".encode(errors="surrogatepass"), f"{value[:30]!r} at {at}"
    if kind < 0.6:
        import yaml

        value, what = mutated_value(draw, yaml.safe_load(text))
        return yaml.dump(value, allow_unicode=draw.random() < 0.5).encode(errors="replace"), what
    if kind < 0.9:
        changed, changes = text, []
        for _ in range(draw.choice((1, 1, 3))):
            changed, one = mutated_text(draw, changed)
            changes.append(one)
        return changed.encode(errors="replace"), "; ".join(changes)
    return mutated_bytes(draw, text.encode())


def _check(config: RunConfig, scratch: Path) -> None:
    """What was read, written and read again, is the same."""
    again = scratch / "again.yaml"
    again.write_text(to_yaml(config), encoding="utf-8")
    require(load_config(file=again) == config, "settings change when they are written and read again")


class Settings(FolderFormat):
    """A settings file."""

    name = "settings"

    def build(self, samples: Path) -> None:
        (samples / "settings.yaml").write_text(_SETTINGS)

    def open(self, samples: Path, scratch: Path) -> None:
        super().open(samples, scratch)
        self._scratch = scratch

    def mutate(self, draw: random.Random) -> str:
        if draw.random() < 0.02:
            return self.folder.displace(draw, "settings.yaml")
        data, what = _mutated_yaml(draw, _SETTINGS)
        self.folder.write("settings.yaml", data)
        return what

    def read(self) -> None:
        _check(load_config(file=self.folder.path / "settings.yaml"), self._scratch)


class Overrides(Format):
    """`--set section.key=value`, one to three of them."""

    name = "set"

    def build(self, samples: Path) -> None:
        pass

    def open(self, samples: Path, scratch: Path) -> None:
        self._scratch = scratch
        sections = RunConfig().model_dump(mode="json")
        self._settings = {
            f"{section}.{key}": value
            for section, values in sections.items() if isinstance(values, dict)
            for key, value in values.items()
        } | {"seed": 0, "init_from": "x", "quant.overrides.lm_head": 8, "model.rope_scaling.factor": 2}  # fmt: skip

    def mutate(self, draw: random.Random) -> str:
        self._overrides = []
        for _ in range(draw.choice((1, 1, 3))):
            key = draw.choice(sorted(self._settings))
            near = mutated_value(draw, self._settings[key])[0]
            value = draw.choice((draw.choice(_YAML), *[draw.choice(_VALUES)] * 3, *[json.dumps(near)] * 3, _bomb(22)))
            text = f"{key}={value}"
            self._overrides.append(mutated_text(draw, text)[0] if draw.random() < 0.3 else text)
        return f"{self._overrides!r:.200}"

    def read(self) -> None:
        _check(load_config(overrides=self._overrides), self._scratch)


class Grids(FolderFormat):
    """The grid of a sweep, and the settings of all its runs."""

    name = "grid"

    def build(self, samples: Path) -> None:
        (samples / "grid.yaml").write_text(_GRID)

    def open(self, samples: Path, scratch: Path) -> None:
        self.folder = Folder(samples, scratch / "it")

    def mutate(self, draw: random.Random) -> str:
        if draw.random() < 0.02:
            return self.folder.displace(draw, "grid.yaml")
        data, what = _mutated_yaml(draw, _GRID)
        self.folder.write("grid.yaml", data)
        return what

    def read(self) -> None:
        grid = read_grid(self.folder.path / "grid.yaml")
        runs = plan_runs(grid)
        require(len({run.name for run in runs}) == len(runs), "two runs of a grid have one name")
