"""What fits, plans and reports read: saved laws, rows, and the records of runs."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

from helpers.fuzzing.formats.base import FolderFormat, require
from helpers.fuzzing.mutations import mutated_bytes, mutated_json
from questlm.config import load_config
from questlm.records import RunRecord
from questlm.report.gather import gather
from questlm.report.page import Law, page
from questlm.scaling import LawFit, fit_law
from questlm.scaling.group_styles import group_styles
from questlm.scaling.limits import Limits
from questlm.scaling.plan import make_plan
from questlm.scaling.runs import published_runs, read_runs

__all__ = ["Laws", "Records", "Rows"]

_LIMITS = (
    Limits(memory=16e6, tokens=1e9),
    Limits(memory=1e8, tokens_per_parameter=50.0),
    Limits(memory=1e9, flops=1e18),
)


class Laws(FolderFormat):
    """A law that `quest fit --json` saved, read for `quest plan --from-fit`."""

    name = "law"

    def build(self, samples: Path) -> None:
        runs = [run for run in published_runs() if run.group in ("bf16", "quest/w4a4/int4", "quest/w1a1/int1")]
        fit_law(runs, draws=8).save(samples / "law.json")

    def mutate(self, draw: random.Random) -> str:
        self._limits = draw.choice(_LIMITS)
        if draw.random() < 0.02:
            return self.folder.displace(draw, "law.json")
        data, what = mutated_json(draw, self.folder.files["law.json"].decode())
        self.folder.write("law.json", data)
        return what

    def read(self) -> None:
        law = LawFit.load(self.folder.path / "law.json")
        made = make_plan(law, self._limits)
        for choice in made.choices:
            values = (choice.loss, choice.low, choice.high, choice.tokens)
            require(all(map(math.isfinite, values)), f"a plan with the values {values}")
            require(choice.low <= choice.loss <= choice.high, f"a loss outside its interval: {values}")


class Rows(FolderFormat):
    """JSON rows of runs, and the law fitted to them where they are few."""

    name = "rows"
    seconds = 60.0  # of a fit
    _fitted = False

    def build(self, samples: Path) -> None:
        keys = {"N": "parameters", "D": "tokens", "w_bits": "weight_bits", "a_bits": "act_bits", "seed": "seed"}
        keys |= {name: name for name in ("format", "method", "loss")}
        runs = [run for run in published_runs() if run.group in ("bf16", "quest/w4a4/int4")]
        rows = [{key: getattr(run, name) for key, name in keys.items()} for run in runs]
        (samples / "rows.json").write_text(json.dumps(rows))

    def mutate(self, draw: random.Random) -> str:
        self._fitted = draw.random() < 0.01
        if draw.random() < 0.02:
            return self.folder.displace(draw, "rows.json")
        data, what = mutated_json(draw, self.folder.files["rows.json"].decode())
        self.folder.write("rows.json", data)
        return what

    def read(self) -> None:
        runs = read_runs([self.folder.path / "rows.json"])
        if self._fitted:
            law = fit_law(runs, draws=2)
            losses = [law.predict(run.parameters, run.tokens, run.group) for run in runs]
            require(all(map(math.isfinite, losses)), "a law that predicts no number")


class Records(FolderFormat):
    """The record of a run beside an undamaged one, read for fits and for the page of a report."""

    name = "record"

    def build(self, samples: Path) -> None:
        for number in range(2):
            run = samples / "runs" / f"run-{number}"
            run.mkdir(parents=True)
            _record(number).save(run)

    def mutate(self, draw: random.Random) -> str:
        name = "runs/run-1/record.json"
        if draw.random() < 0.02:
            return self.folder.displace(draw, name)
        old = self.folder.files[name]
        data, what = mutated_bytes(draw, old) if draw.random() < 0.1 else mutated_json(draw, old.decode())
        self.folder.write(name, data)
        return what

    def read(self) -> None:
        gathered = gather([self.folder.path / "runs"])
        shown = group_styles(Counter(entry.run.group for entry in gathered.entries))
        text = page(gathered, Law(None, "none is fitted"), {}, shown, gathered.notes, "files")
        require(b"run-0" in text.encode(), "an undamaged run is missing from the report")
        require("\x1b" not in text and "\u202e" not in text, "a page with characters that do not print")
        read_runs([self.folder.path / "runs"])


def _record(seed: int) -> RunRecord:
    config = load_config(preset="1m", overrides=[f"seed={seed}", "model.vocab_size=4096", "budget={tokens: 1000000}"])
    curve: list[Any] = [
        {"step": step, "tokens": step * 1000, "loss": 9.0 - step / 100, "lr": 1e-3, "grad_norm": 1.0}
        for step in range(10, 100, 10)
    ]
    data = {"description": "text", "hash": "0" * 64, "val_hash": "1" * 64, "train_tokens": 10**6, "val_tokens": 10**4}
    return RunRecord(
        config=config.model_dump(mode="json"),
        versions={"python": "3.11"},
        device="cpu",
        data=data | {"val_bytes": 40_000},
        parameters={"all": config.model.parameters, "non_embedding": config.model.block_parameters},
        curve=curve,
        validations=[{"step": 50, "tokens": 50_000, "loss": 8.5}],
        final={"loss": 4.0 - seed / 10, "perplexity": 54.6, "bits_per_byte": 2.0, "tokens": 10_000},
        steps=100,
        tokens=100_000,
        seconds=12.5,
        tokens_per_second=8000.0,
        peak_memory_bytes=10**8,
        checks={"loss_gap": 1e-7},
    )
