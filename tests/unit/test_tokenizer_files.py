from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from questlm.config import DataConfig
from questlm.data import prepare, train_tokenizer
from questlm.errors import ArtifactError, DataError
from questlm.tokenizer_files import (
    LARGEST_VOCABULARY,
    library_failures,
    parse_tokenizer,
    read_chat_template,
    read_tokenizer_text,
    usual_end_of_text,
)

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def base() -> str:
    return train_tokenizer(["the cat sat on the mat, and seven dogs saw it"], 300).to_str()


def changed(base: str, change: Change) -> str:
    value = json.loads(base)
    change(value)
    return json.dumps(value)


def with_id(index: int) -> Change:
    return lambda value: value["model"]["vocab"].update({"strange": index})


BAD: list[tuple[Change, str]] = [
    (with_id(5_000_000), r"gives the token 'strange' the id 5000000, but ids must be below 4,194,304"),
    (with_id(LARGEST_VOCABULARY), "the id 4194304"),
    (with_id(2**30), "the id 1073741824"),
    (with_id(2**31 - 1), "the id 2147483647"),
    (with_id(2**32 - 1), "the id 4294967295"),
    (with_id(2**32), "is not a tokenizer.json of the tokenizers library: .*4294967296"),
    (with_id(-1), "is not a tokenizer.json of the tokenizers library"),
    (with_id(5), "gives the tokens '.*' and 'strange' the same id 5; each token needs an id of its own"),
    # The library's Rust code panics, which reaches Python as a BaseException.
    (lambda value: value["model"].update(continuing_subword_prefix="##"), "library: 'slice index starts at"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_tokenizer_that_cannot_be_used_is_refused_at_once(
    base: str, change: Change, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tokenizer.json").write_text(changed(base, change))
    (tmp_path / "text.txt").write_text("the cat sat\n" * 100)
    config = DataConfig(
        source=str(tmp_path / "text.txt"), tokenizer=str(tmp_path / "tokenizer.json"), cache_dir=str(tmp_path / "cache")
    )
    with pytest.raises(DataError, match=message):
        prepare(config)
    assert capfd.readouterr().err == ""
    assert not (tmp_path / "cache").exists()


def test_refusing_a_huge_id_takes_no_time_that_depends_on_it(base: str) -> None:
    text = changed(base, with_id(2**31 - 1))
    parse_tokenizer(base, "it", DataError)
    start = time.process_time()
    with pytest.raises(DataError):
        parse_tokenizer(text, "it", DataError)
    assert time.process_time() - start < 0.1


def test_the_largest_id_that_a_model_can_have_is_accepted(base: str) -> None:
    tokenizer = parse_tokenizer(changed(base, with_id(LARGEST_VOCABULARY - 1)), "it", DataError)
    assert tokenizer.token_to_id("strange") == LARGEST_VOCABULARY - 1


def test_files_that_hold_no_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(b"{\xff")
    with pytest.raises(ArtifactError, match="byte 1 is not UTF-8"):
        read_tokenizer_text(path, ArtifactError)
    with pytest.raises(DataError, match="/dev/zero is not a plain file"):
        read_tokenizer_text(Path("/dev/zero"), DataError)
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match=r"is 1,099,511,627,776 bytes long, but a tokenizer\.json may have at most"):
        read_tokenizer_text(path, DataError)
    with pytest.raises(DataError, match=r"but a chat_template\.jinja may have at most 1,048,576"):
        read_chat_template(path, DataError)


def test_a_text_that_the_tokenizer_cannot_encode(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"cat": 0, "</s>": 1}, unk_token="<missing>"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("dog")
    config = DataConfig(
        source=str(tmp_path / "text.txt"), tokenizer=str(tmp_path / "tokenizer.json"), cache_dir=str(tmp_path / "cache")
    )
    with pytest.raises(DataError, match=r"the tokenizer cannot encode this text: .*; use a tokenizer that knows"):
        prepare(config)


def test_only_failures_of_the_library_are_turned_into_errors() -> None:
    for problem in (KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(problem), library_failures(DataError):
            raise problem


def test_the_end_of_text_is_found_by_its_usual_names(tokenizer_json: str) -> None:
    assert usual_end_of_text(Tokenizer.from_str(tokenizer_json)) == 0
    assert usual_end_of_text(Tokenizer.from_str(tokenizer_json.replace("<|endoftext|>", "</s>"))) == 0
    assert usual_end_of_text(Tokenizer.from_str(tokenizer_json.replace("<|endoftext|>", "stop"))) is None
