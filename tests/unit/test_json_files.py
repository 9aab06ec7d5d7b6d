"""JSON that is damaged or hostile is met by one clear error."""

from __future__ import annotations

import pytest

from questlm.errors import ArtifactError, CheckpointError
from questlm.json_files import canonical_json, read_json, write_json


def test_canonical_json_is_one_spelling():
    assert canonical_json({"b": 1, "a": ["é"]}) == canonical_json({"a": ["é"], "b": 1})
    assert canonical_json({"b": 1, "a": ["é"]}) == '{\n  "a": [\n    "é"\n  ],\n  "b": 1\n}\n'


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_holds_finite_numbers_only_and_a_refused_value_leaves_the_old_file(tmp_path, number):
    path = tmp_path / "a.json"
    write_json(path, {"loss": 1.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": number})
    assert read_json(path, CheckpointError) == {"loss": 1.5}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{'a': 1}", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 5_000, b"1" * 5_000], ids=range(7)
)
def test_bad_json_raises_the_callers_error_and_names_the_file(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.json"):
        read_json(path, CheckpointError)


def test_json_that_is_absent_or_a_folder_raises_the_callers_error(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_json(tmp_path / "none.json", CheckpointError)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path, CheckpointError)


@pytest.mark.parametrize(("depth", "fine"), [(64, True), (65, False), (900, False), (100_000, False)])
def test_json_is_nested_64_deep_at_most(tmp_path, depth, fine):
    (tmp_path / "a.json").write_text("[" * depth + "]" * depth)
    if fine:
        read_json(tmp_path / "a.json", ArtifactError)
    else:
        with pytest.raises(ArtifactError, match=r"nested more than 64 deep|RecursionError"):
            read_json(tmp_path / "a.json", ArtifactError)
