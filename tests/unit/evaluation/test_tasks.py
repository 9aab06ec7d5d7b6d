"""Items of tasks from files of unknown origin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from questlm.errors import ConfigError, DataError
from questlm.evaluation.tasks import Item, find_task, items_hash, read_items

CHOICE = {
    "query": "A man sits on a roof. he",
    "choices": ["starts pulling up tiles.", "is a cat."],
    "gold": 0,
    "ind": 4,
}


def written(folder: Path, name: str, *lines: Any) -> Path:
    (folder / name).write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("task", "file", "line", "item"),
    [
        ("hellaswag", "hellaswag_val.jsonl", CHOICE, Item(CHOICE["query"], tuple(CHOICE["choices"]), 0)),
        (
            "arc_easy",
            "arc_easy.jsonl",
            {"query": "Question: What is wet?", "choices": ["fire", "sand", "rain"], "gold": 2},
            Item("Question: What is wet?\nAnswer:", ("fire", "sand", "rain"), 2),
        ),
        (
            "piqa",
            "piqa_val.jsonl",
            {"goal": "Open a jar.", "sol1": "Turn it.", "sol2": "Look at it.", "label": 0},
            Item("Question: Open a jar.\nAnswer:", ("Turn it.", "Look at it."), 0),
        ),
        (
            "piqa",
            "piqa.jsonl",
            {"query": "Question: Open a jar.", "choices": ["Turn it.", "Look at it."], "gold": 1},
            Item("Question: Open a jar.\nAnswer:", ("Turn it.", "Look at it."), 1),
        ),
        (
            "lambada_openai",
            "lambada_openai_test.jsonl",
            {"context": "I care about", "continuation": "signs"},
            Item("I care about", ("signs",)),
        ),
    ],
)
def test_items_have_the_texts_of_lm_evaluation_harness(
    task: str, file: str, line: dict[str, Any], item: Item, tmp_path: Path
) -> None:
    folder = written(tmp_path, file, line, line, line)
    assert read_items(find_task(task), folder) == [item] * 3
    assert read_items(find_task(task), folder, limit=2) == [item] * 2
    assert items_hash([item]) != items_hash([item, item])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"query": None}, "an item"),
        ({"gold": 2}, "gold = 2, but it is the number of a choice, 0 to 1"),
        ({"gold": True}, "gold = True"),
        ({"choices": ["one"]}, "a list of at least two"),
        ({"choices": ["one", ""]}, "its choices not empty"),
        ({"choices": ["one", 2]}, "its texts must be strings"),
        ({"query": ["one"]}, "query = ['one'], but it must be a string"),
    ],
)
def test_a_line_that_is_no_item_is_named(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    bad = {name: value for name, value in (CHOICE | change).items() if value is not None}
    folder = written(tmp_path, "hellaswag.jsonl", CHOICE, bad)
    with pytest.raises(DataError, match="line 2") as refused:
        read_items(find_task("hellaswag"), folder)
    assert reason in str(refused.value) or "lacks 'query'" in str(refused.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no items of piqa; it must hold one of: piqa\.jsonl, piqa_val\.jsonl"):
        read_items(find_task("piqa"), tmp_path)
    (tmp_path / "piqa.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no items"):
        read_items(find_task("piqa"), tmp_path)
    for line in ("[]", "3", '"x"'):
        (tmp_path / "piqa.jsonl").write_text(line)
        with pytest.raises(DataError, match="line 1 is no item of piqa: it must be a JSON object"):
            read_items(find_task("piqa"), tmp_path)
    for line in ("{", '{"goal": null, "sol1": "a", "sol2": "b", "label": 0}'):
        (tmp_path / "piqa.jsonl").write_text(line)
        with pytest.raises(DataError, match="line 1"):
            read_items(find_task("piqa"), tmp_path)
    with pytest.raises(ConfigError, match=r"there is no task 'hellaswags'.*Did you mean 'hellaswag'"):
        find_task("hellaswags")
