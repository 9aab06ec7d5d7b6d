"""Questions with a known answer, from JSONL files: which continuation of a text does a model find likeliest?

The text of each question is made as lm-evaluation-harness makes it, so that results compare with published ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from questlm.errors import ConfigError, DataError, nearest_name, quoted
from questlm.files import read_plain_file
from questlm.json_files import parse_json

__all__ = ["TASKS", "Item", "Task", "find_task", "items_hash", "read_items"]

_MAX_BYTES = 2**30
_ENDINGS = ("", "_val", "_validation", "_test")


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        context: the text before.
        choices: texts that may follow it after a space. A single one is right if greedy decoding gives it.
        answer: which of them is right.
    """

    context: str
    choices: tuple[str, ...]
    answer: int = 0


@dataclass(frozen=True)
class Task:
    """A set of questions.

    Attributes:
        name: as lm-evaluation-harness calls it.
        read: makes an item of one line's object; raises KeyError, TypeError or ValueError where it cannot.
    """

    name: str
    read: Callable[[dict[str, Any]], Item]


def find_task(name: str) -> Task:
    """The task of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TASKS:
        raise ConfigError(f"there is no task {quoted(name)}; tasks: {', '.join(TASKS)}.{nearest_name(name, TASKS)}")
    return TASKS[name]


def read_items(task: Task, folder: Path, limit: int | None = None) -> list[Item]:
    """The items of a task, from the file of its name in `folder`: NAME.jsonl, NAME_val.jsonl or NAME_test.jsonl.

    Each line is an object: {"query", "choices", "gold"}; of LAMBADA {"context", "continuation"}; of PIQA also {"goal",
    "sol1", "sol2", "label"}. Other keys are ignored.

    Args:
        limit: read only so many, from the first on.

    Raises:
        DataError: no such file, or a line that is no item.
    """
    names = [f"{task.name}{ending}.jsonl" for ending in _ENDINGS]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder} has no items of {task.name}; it must hold one of: {', '.join(names)}")
    items: list[Item] = []
    for number, line in enumerate(read_plain_file(path, _MAX_BYTES, DataError).splitlines(), 1):
        if len(items) == limit:
            break
        if line.strip():
            items.append(_item(task, line, f"{path}, line {number}"))
    if not items:
        raise DataError(f"{path} holds no items")
    return items


def items_hash(items: list[Item]) -> str:
    """Hex SHA-256 of the items, by which results on the same ones are known."""
    content = json.dumps([[item.context, item.choices, item.answer] for item in items])
    return hashlib.sha256(content.encode()).hexdigest()


def _item(task: Task, line: bytes, place: str) -> Item:
    content = parse_json(line, place, DataError)
    if not isinstance(content, dict):
        raise DataError(f"{place} is no item of {task.name}: it must be a JSON object, not {quoted(content)}")
    try:
        item = task.read(content)
    except KeyError as problem:
        raise DataError(f"{place} lacks {problem}, so it is no item of {task.name}") from None
    except (TypeError, ValueError) as problem:
        raise DataError(f"{place} is no item of {task.name}: {problem}") from None
    if not all(isinstance(text, str) for text in (item.context, *item.choices)) or "" in item.choices:
        raise DataError(f"{place} is no item of {task.name}: its texts must be strings, and its choices not empty")
    return item


def _choice(content: dict[str, Any], suffix: str = "") -> Item:
    choices, answer = content["choices"], content["gold"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise ValueError(f"choices = {quoted(choices)}, but they are a list of at least two")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise ValueError(f"gold = {quoted(answer)}, but it is the number of a choice, 0 to {len(choices) - 1}")
    return Item(_text(content, "query") + suffix, tuple(choices), answer)


def _physical(content: dict[str, Any]) -> Item:
    if "goal" in content:
        choices = [content["sol1"], content["sol2"]]
        content = {"query": f"Question: {_text(content, 'goal')}", "choices": choices, "gold": content["label"]}
    return _choice(content, suffix="\nAnswer:")


def _text(content: dict[str, Any], key: str) -> str:
    text = content[key]
    if not isinstance(text, str):
        raise TypeError(f"{key} = {quoted(text)}, but it must be a string")
    return text


def _last_word(content: dict[str, Any]) -> Item:
    return Item(content["context"], (content["continuation"],))


TASKS = {
    task.name: task
    for task in (
        Task("hellaswag", _choice),
        Task("lambada_openai", _last_word),
        Task("arc_easy", partial(_choice, suffix="\nAnswer:")),
        Task("piqa", _physical),
    )
}
"""Tasks by name."""
