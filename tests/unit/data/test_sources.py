from __future__ import annotations

import builtins
import gzip
import os
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from questlm.config import DataConfig
from questlm.data.shards import ShardWriter
from questlm.data.sources import Files, Hub, Shards, locate, resolve, source_exists
from questlm.errors import DataError, MissingDependencyError


def resolved(source: Path | str, cache: Path, **settings: Any) -> tuple[Any, Any]:
    return resolve(DataConfig(source=str(source), **settings), cache)


def names(source: Files | Shards) -> list[str]:
    return [path.relative_to(source.root).as_posix() for path in source.paths]


def shard(path: Path) -> None:
    with ShardWriter(path, 100) as writer:
        writer.append(np.arange(10))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    (root / "sub").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for name in ("b.txt", "a.md", "sub/c.py", "sub/d.TXT", ".hidden/e.txt", ".f.txt", "image.png", "LICENSE"):
        (root / name).write_text(f"content of {name}\n")
    (root / "z.txt.gz").write_bytes(gzip.compress(b"packed\n"))
    return root


def test_a_folder_is_read_recursively_in_sorted_order(folder: Path, tmp_path: Path) -> None:
    source, val = resolved(folder, tmp_path)
    assert val is None
    assert names(source) == ["a.md", "b.txt", "sub/c.py", "sub/d.TXT", "z.txt.gz"]
    assert [piece.text for piece in source.pieces()][-1] == "packed\n"


def test_a_glob_and_a_single_file(folder: Path, tmp_path: Path) -> None:
    assert names(resolved(f"{folder}/**/*.*", tmp_path)[0]) == ["a.md", "b.txt", "sub/c.py", "sub/d.TXT", "z.txt.gz"]
    assert names(resolved(f"{folder}/*.txt", tmp_path)[0]) == ["b.txt"]
    assert names(resolved(folder / "b.txt", tmp_path)[0]) == ["b.txt"]


def test_relative_and_home_paths(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert names(resolved("*.txt", tmp_path)[0]) == ["b.txt"]
    assert names(resolved(".", tmp_path)[0])[0] == "a.md"
    monkeypatch.setenv("HOME", str(folder))
    assert names(resolved("~/b.txt", tmp_path)[0]) == ["b.txt"]


@pytest.mark.parametrize("source", ["*.txt", "sub/../b.txt", "[ab].txt", "[x].txt"])
def test_a_source_is_found_from_elsewhere_in_a_folder_named_like_a_pattern(source: str, tmp_path: Path) -> None:
    folder = tmp_path / "project [1]*"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.txt", "[x].txt"):
        (folder / name).write_text("content\n")
    (tmp_path / "project 1").mkdir()
    (tmp_path / "project 1" / "other.txt").write_text("content\n")
    assert source_exists(source, folder)
    located = locate(DataConfig(source=source, val=source), folder)
    assert located.source == located.val
    expected = {"*.txt": ["[x].txt", "b.txt"], "[x].txt": ["[x].txt"]}.get(source, ["b.txt"])
    found = resolved(located.source, tmp_path)[0]
    assert [path.name for path in found.paths] == expected
    assert not source_exists("*.md", folder)


def test_reading_reports_the_bytes_read(folder: Path, tmp_path: Path) -> None:
    source, _ = resolved(folder, tmp_path)
    heard: list[int] = []
    for _ in source.pieces(heard.append):
        pass
    assert heard == sorted(heard)
    assert heard[-1] == source.size() == sum(path.stat().st_size for path in source.paths)


def test_bad_sources(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.txt").write_text("a")
    shard(tmp_path / "mixed" / "b.bin")
    for source, message in {
        folder / "none.txt": "does not exist; a source is 'stdlib', a file, folder or glob, or 'hf:NAME'",
        folder / "*.csv": r"holds no files; it must lead to \.txt",
        tmp_path / "empty": "holds no files",
        folder / "image.png": r"such as 'image\.png'; allowed: \.txt, \.md",
        folder / "L*": "such as 'LICENSE'; allowed",
        tmp_path / "mixed": r"token shards \(\.bin\) beside text",
        "hf:": "names no data set",
    }.items():
        with pytest.raises(DataError, match=message):
            resolved(source, tmp_path)


def test_content_hash_follows_names_and_bytes_but_not_the_place(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = resolved(folder, cache)[0].content_hash(cache)
    moved = folder.rename(tmp_path / "elsewhere")
    assert resolved(moved, cache)[0].content_hash(cache) == first
    (moved / "b.txt").rename(moved / "b2.txt")
    renamed = resolved(moved, cache)[0].content_hash(cache)
    (moved / "a.md").write_text("Content of a.md\n")
    changed = resolved(moved, cache)[0].content_hash(cache)
    assert len({first, renamed, changed}) == 3


def test_digests_of_large_files_are_remembered_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from questlm.data import cache

    def digest(number: int) -> str:
        return f"{number:064x}"

    monkeypatch.setattr(cache, "_SMALL_BYTES", 3)
    calls: list[Path] = []
    monkeypatch.setattr(cache, "sha256_file", lambda path: calls.append(path) or digest(len(calls)))
    path = tmp_path / "a.txt"
    path.write_text("abcd")
    assert [cache.file_digest(path, tmp_path) for _ in range(2)] == [digest(1)] * 2
    os.utime(path, (1, 1))
    assert cache.file_digest(path, tmp_path) == digest(2)
    for fact in (tmp_path / "facts").iterdir():
        fact.write_text("damaged")
    assert cache.file_digest(path, tmp_path) == digest(3)


def test_the_standard_library(tmp_path: Path) -> None:
    source, val = resolved("stdlib", tmp_path)
    found = names(source)
    assert val is None
    assert found == sorted(found)
    assert {"os.py", "json/decoder.py", "typing.py"} <= set(found)
    assert not [name for name in found if {"test", "tests", "idle_test", "site-packages"} & set(name.split("/"))]
    assert source.size() > 10**6
    first = next(iter(source.pieces()))
    assert first.text == source.paths[0].read_bytes().decode()


def test_a_small_standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("x = 1\n" * 200_000)
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert names(resolved("stdlib", tmp_path)[0]) == ["a.py"]
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(DataError, match="only 6 bytes of library sources"):
        resolved("stdlib", tmp_path)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "none"))
    with pytest.raises(DataError, match="only 0 bytes"):
        resolved("stdlib", tmp_path)


def test_what_validates_never_trains(folder: Path, tmp_path: Path) -> None:
    train, val = resolved(folder, tmp_path, val=str(folder / "b.txt"))
    assert names(val) == ["b.txt"]
    assert "b.txt" not in names(train)
    with pytest.raises(DataError, match="nothing is left to train on"):
        resolved(folder / "b.txt", tmp_path, val=str(folder))


def test_shards_named_train_and_val(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    root.mkdir()
    for name in ("f_train_000002.bin", "f_train_000001.bin", "f_val_000000.bin", "other.bin"):
        shard(root / name)
    for source in (root, root / "*.bin"):
        train, val = resolved(source, tmp_path)
        assert names(train) == ["f_train_000001.bin", "f_train_000002.bin"]
        assert names(val) == ["f_val_000000.bin"]
    train, val = resolved(root, tmp_path, val=str(root / "other.bin"))
    assert (len(names(train)), names(val)) == (2, ["other.bin"])
    train, val = resolved(root / "f_train_*", tmp_path, val=str(root))
    assert (len(names(train)), names(val)) == (2, ["f_val_000000.bin"])
    train, val = resolved(root / "f_val_*", tmp_path)
    assert (names(train), val) == (["f_val_000000.bin"], None)


def test_text_and_shards_do_not_mix(folder: Path, tmp_path: Path) -> None:
    shard(tmp_path / "a.bin")
    with pytest.raises(DataError, match="must both be text or both be token shards"):
        resolved(folder, tmp_path, val=str(tmp_path / "a.bin"))


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = tmp_path / "set"
    root.mkdir()
    for split in ("train", "validation"):
        (root / f"{split}.jsonl").write_text("".join(f'{{"text": "{split} {i}", "n": {i}}}\n' for i in range(3)))
    return root


def test_a_local_hub_data_set(hub_folder: Path, tmp_path: Path) -> None:
    train, val = resolved(f"hf:{hub_folder}", tmp_path)
    assert [piece.text for piece in train.pieces()] == ["train 0", "train 1", "train 2"]
    assert [piece.text for piece in val.pieces()] == ["validation 0", "validation 1", "validation 2"]
    assert train.content_hash(tmp_path) != val.content_hash(tmp_path)
    before = train.content_hash(tmp_path)
    (hub_folder / "train.jsonl").write_text('{"text": "other"}\n')
    assert train.content_hash(tmp_path) != before


def test_a_hub_data_set_validates_another_source(hub_folder: Path, folder: Path, tmp_path: Path) -> None:
    _, val = resolved(folder, tmp_path, val=f"hf:{hub_folder}")
    assert val.split == "validation"
    (hub_folder / "validation.jsonl").unlink()
    with pytest.raises(DataError, match="the same split of the data set"):
        resolved(f"hf:{hub_folder}", tmp_path, val=f"hf:{hub_folder}")


def test_a_hub_row_without_text(hub_folder: Path, tmp_path: Path) -> None:
    for field in ("body", "n"):
        train, _ = resolved(f"hf:{hub_folder}", tmp_path, text_field=field)
        with pytest.raises(DataError, match=rf"row 0 .* no text in '{field}', only the columns \['n', 'text'\]"):
            list(train.pieces())


def test_a_hub_data_set_without_training_split(hub_folder: Path, tmp_path: Path) -> None:
    (hub_folder / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"no split 'train', only \['validation'\]"):
        resolved(f"hf:{hub_folder}", tmp_path)


def test_whatever_the_hub_raises_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*values: object, **options: object) -> None:
        raise ConnectionError("no route to host\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        DataError, match=r"'some/set' cannot be read \(ConnectionError: no route to host\); check"
    ) as caught:
        resolved("hf:some/set:small", tmp_path)
    assert "story" not in str(caught.value)


def test_splits_of_a_remote_data_set_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda name, configuration, streaming: {"train": [], "test": []})
    train, val = resolved("hf:some/set:small", tmp_path)
    assert (train, val) == (Hub("some/set", "small", "train", "text"), None)
    monkeypatch.delattr(datasets, "load_dataset")
    assert resolved("hf:some/set:small", tmp_path) == (train, None)


def test_without_the_datasets_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "datasets":
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingDependencyError, match=r"pip install 'questlm\[hf\]'"):
        resolved("hf:some/set", tmp_path)
