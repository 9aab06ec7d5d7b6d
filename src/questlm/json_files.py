"""JSON from files that nobody vouches for, and JSON as we write it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from questlm.errors import QuestError, quoted
from questlm.files import atomic_write, read_plain_file

__all__ = [
    "canonical_json",
    "parse_json",
    "read_json",
    "read_safetensors_header",
    "validated",
    "write_json",
]

_MAX_JSON_BYTES = 64 * 1024 * 1024
_MAX_HEADER_BYTES = 16 * 1024 * 1024  # of some 100,000 tensors
_DEEPEST_JSON = 64

T = TypeVar("T")


def canonical_json(value: Any) -> str:
    """One spelling for one value: sorted keys, two-space indent, finite numbers only, newline at the end."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as canonical JSON."""
    atomic_write(path, canonical_json(value))


def read_json(path: Path, error: type[QuestError], limit: int = _MAX_JSON_BYTES) -> Any:
    """Parse a JSON file; any fault (absent, above `limit` bytes, not UTF-8, not JSON, nested deeply) raises `error`."""
    return parse_json(read_plain_file(path, limit, error), str(path), error)


def parse_json(content: bytes, name: str, error: type[QuestError]) -> Any:
    """Parse JSON that holds no key twice; any fault raises `error`, which names the content by `name`."""
    try:
        value = json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as problem:
        raise error(f"{name} is not valid JSON ({type(problem).__name__}: {problem}); it is damaged") from None
    if _is_nested_beyond(_DEEPEST_JSON, value):
        raise error(f"{name} holds values nested more than {_DEEPEST_JSON} deep; it is damaged")
    return value


def read_safetensors_header(path: Path, error: type[QuestError]) -> tuple[Any, int]:
    """The header of a safetensors file, as JSON, and where the data begin, before the library opens the file.

    The library would read a header of 100 MB, and takes the last of two tensors of one name. What the header says is
    for it to check; of a file that is cut, which it refuses, the header is empty.

    Raises:
        QuestError: `error`, of a header that is larger than 16 MiB, is no JSON, or names a tensor twice.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > path.stat().st_size:
            return {}, 8
        if length > _MAX_HEADER_BYTES:
            raise error(f"{path} has a header of {length} bytes, but at most {_MAX_HEADER_BYTES} are allowed")
        return parse_json(file.read(length), f"the header of {path}", error), 8 + length


def _is_nested_beyond(depth: int, value: Any) -> bool:
    # Not recursive: some versions of Python parse what is nested thousands deep, and recursive readers then fail.
    level = [value]
    for _ in range(depth):
        level = [
            item
            for outer in level
            if isinstance(outer, list | dict)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {quoted(Counter(names).most_common(1)[0][0])} is there twice")
    return found


def validated(adapter: TypeAdapter[T], content: Any, path: Path, error: type[QuestError]) -> T:
    """The JSON value `content` of the file `path` as `adapter` checks and converts it; a misfit raises `error`."""
    try:
        return adapter.validate_python(content)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "its content"
    place = quoted(place)[1:-1]
    if first["type"] == "missing":
        raise error(f"{path} lacks {place}; it is damaged")
    reason = first["msg"].removeprefix("Value error, ")
    raise error(f"{path} has {place} = {quoted(first['input'])} ({reason[0].lower()}{reason[1:]}); it is damaged")
