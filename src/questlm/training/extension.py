"""Refusing to resume a run with another budget, and naming the command that trains it further instead."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path, PurePath

from questlm.config import Budget, RunConfig
from questlm.errors import CheckpointError, QuestError
from questlm.files import user_path
from questlm.terminal import command_text
from questlm.training.initial import find_initial
from questlm.training.origin import initial_located, located
from questlm.training.run_folder import RunFolder

__all__ = ["require_same_budget"]

_FLAGS = {"tokens": "--tokens", "tokens_per_param": "--tokens-per-param", "seconds": "--seconds"}
_WORDS = {"tokens": "tokens", "tokens_per_param": "tokens per block parameter", "seconds": "seconds"}


def require_same_budget(folder: RunFolder, saved: RunConfig, wanted: Budget) -> None:
    """Refuse to resume a run of the settings `saved` with another budget, and name the command that trains it on.

    The learning rate follows a schedule over the whole budget. A run whose rate has decayed by the old budget is at no
    point of the schedule of the new one, so it cannot end where a run of the new budget would.

    Raises:
        CheckpointError: the budgets differ.
    """
    if wanted == saved.budget:
        return
    further = _difference(saved, wanted)
    began = f"the learning rate of {folder.path} follows a schedule over {_named(saved.budget)}, so it"
    if further is None:
        raise CheckpointError(
            f"{began} cannot be resumed for {_named(wanted)}; resume it without a budget: "
            f"{command_text('train', '--resume', folder.path)}"
        )
    if _can_be_begun_from(folder, saved):
        beginning: tuple[str | PurePath, ...] = ("--init-from", folder.path)
        what, budget = "begin a run of its own, with a warm-up and a schedule of its own, from its weights", further
    else:
        beginning = _initial(folder, saved)
        what, budget = "begin a new run, because no run can begin from the weights of this one", wanted
    data = [*_data(folder, saved), *_unlimited(saved, budget)]
    words = (*beginning, "--config", folder.config_file, *data, *_flag(budget), "--out", _free(folder))
    raise CheckpointError(f"{began} cannot be resumed for {_named(wanted)}; {what}: {command_text('train', *words)}")


def _difference(saved: RunConfig, wanted: Budget) -> Budget | None:
    """What `wanted` adds to the budget of a run; None if it adds nothing."""
    if wanted.seconds is not None and saved.budget.seconds is not None:
        more = wanted.seconds - saved.budget.seconds
        return Budget(seconds=more) if more > 0 else None
    total = RunConfig(**saved.model_dump() | {"budget": wanted.model_dump()}).token_budget()
    trained = saved.token_budget()
    if total is None or trained is None:  # of different units, so nobody can say what it adds
        return wanted
    return Budget(tokens=total - trained) if total > trained else None


def _can_be_begun_from(folder: RunFolder, saved: RunConfig) -> bool:
    try:
        return find_initial(RunConfig(**saved.model_dump() | {"init_from": str(folder.path)})) is not None
    except QuestError:
        return False


def _initial(folder: RunFolder, saved: RunConfig) -> tuple[str | PurePath, ...]:
    """The option that names the model that the run itself began from."""
    initial = initial_located(saved, folder.started_in(saved)).init_from
    return () if initial is None or initial == saved.init_from else ("--init-from", Path(initial))


def _data(folder: RunFolder, saved: RunConfig) -> list[str]:
    """Options by which its settings find data and teacher from the working folder of now, where they would not."""
    here = located(saved.data, folder.started_in(saved)).model_dump()
    moved = {f"data.{name}": here[name] for name, value in saved.data.model_dump().items() if here[name] != value}
    if saved.train.distill is not None and folder.started_in(saved) != Path.cwd():
        moved["train.distill"] = str(folder.started_in(saved) / user_path(saved.train.distill))
    return [word for name in moved for word in ("--set", f"{name}={json.dumps(moved[name], ensure_ascii=False)}")]


def _unlimited(saved: RunConfig, budget: Budget) -> list[str]:
    """The option that fetches as much of a data set as the new budget needs, where the old one decided how much."""
    decided = saved.data.source.startswith("hf:") and saved.data.max_tokens == saved.token_budget()
    return ["--set", "data.max_tokens=null"] if decided and budget.seconds is None else []


def _flag(budget: Budget) -> tuple[str, str]:
    name, value = _given(budget)
    return _FLAGS[name], f"{value:.10g}" if isinstance(value, float) else str(value)


def _named(budget: Budget) -> str:
    name, value = _given(budget)
    return f"{value:,} {_WORDS[name]}"


def _given(budget: Budget) -> tuple[str, int | float]:
    return next((name, value) for name in _FLAGS if (value := getattr(budget, name)) is not None)


def _free(folder: RunFolder) -> Path:
    """A folder beside the run's that does not exist."""
    path = folder.path if folder.path.name not in ("", "..") else folder.path.resolve()
    names = (f"{path.name}-{number}" for number in count(2))
    return next(path.with_name(name) for name in names if not path.with_name(name).exists())
