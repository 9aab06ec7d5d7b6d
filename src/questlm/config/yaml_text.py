"""The one reader, and the one writer, of YAML: settings files, grids and the values of `--set`.

YAML can name Python types, point from anywhere to anywhere, and stand for gigabytes in a kilobyte. Settings need none
of this, so the reader takes a plain file of at most 256 KiB and gives back null, truth values, numbers, text, lists and
mappings from text, nested at most 20 deep and 20,000 in number with every alias written out. PyYAML only parses: its
constructors, which raise all kinds of errors for dates, tags and large numbers, are not used.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from questlm.errors import ConfigError, cleaned, quoted
from questlm.files import read_plain_file

__all__ = ["parse_yaml", "read_yaml", "write_yaml"]

_MOST_BYTES = 256 * 1024
_MOST_VALUES = 20_000
_DEEPEST = 20
_LONGEST_NUMBER = 100

_CORE = "tag:yaml.org,2002:"
_SCALARS = {
    # YAML as people mean it: `off` and dates are words, 6e-4 is a number (YAML 1.1 has it the other way round).
    "null": (r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "bool": (r"(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    "float": (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$",
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    """Parses text into nodes, without tags and without deep nesting (PyYAML's composer is recursive)."""

    depth = nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise _refusal(event, f"the tag {quoted(event.tag.replace(_CORE, '!!'))} is not read here; leave it out")
        self.depth += 1
        self.nodes += 1
        _check_amount(event, self.depth, self.nodes)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back: quotes what that would take for something else."""


_Loader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"{_CORE}{_name}", re.compile(_pattern), _first)
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def read_yaml(file: Path, what: str) -> dict[str, Any]:
    """The keys and values of a YAML file; `what` it is, for messages.

    Raises:
        ConfigError: no plain file, too large, no YAML, or something else than keys and values.
    """
    where = f"the {what} {file}"
    try:
        text = read_plain_file(file, _MOST_BYTES, ConfigError).decode()
    except UnicodeDecodeError as problem:
        raise ConfigError(f"{where} is not valid YAML: {problem}") from None
    except ConfigError as problem:
        raise ConfigError(f"cannot read the {what}: {problem}") from None
    content = parse_yaml(text, where)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"{where} holds a {type(content).__name__}, but sections are expected")
    return content


def parse_yaml(text: str, where: str) -> Any:
    """The value that a YAML text stands for; `where` the text is, for messages.

    Raises:
        ConfigError: too long, no YAML, nested too deeply, too many values, or a value of another kind.
    """
    if len(text) > _MOST_BYTES:
        raise ConfigError(f"{where} is longer than {_MOST_BYTES} characters, the most that is read of settings")
    try:
        node = _Loader(text).get_single_node()
        return None if node is None else _Values().of(node)
    except (yaml.YAMLError, ValueError, OverflowError) as problem:  # PyYAML lets errors of chr() and int() through
        raise ConfigError(f"{where} is not valid YAML: {cleaned(problem, 300)}") from None


def write_yaml(value: Any) -> str:
    """`value`, made of the types that `parse_yaml` gives, as text that it reads back to the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


class _Values:
    """Makes values from nodes, and counts them again: aliases may stand for millions, or contain themselves."""

    count = 0

    def of(self, node: yaml.Node, depth: int = 1) -> Any:
        self.count += 1
        _check_amount(node, depth, self.count)
        if isinstance(node, yaml.SequenceNode):
            return [self.of(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, depth)
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}  # from `<<: *other`; what is written out here goes before
        for key_node, value_node in node.value:
            key = self.of(key_node, depth + 1)
            if not isinstance(key, str):
                raise _refusal(key_node, f"the key {quoted(key)} is not a word; put it in quotes")
            if key in found:
                raise _refusal(key_node, f"the key {quoted(key)} is there twice")
            value = self.of(value_node, depth + 1)
            if key != "<<":
                found[key] = value
                continue
            for other in value if isinstance(value, list) else [value]:
                if not isinstance(other, dict):
                    raise _refusal(value_node, f"<< takes keys and values, not {quoted(other)}")
                merged = other | merged
        return merged | found


def _check_amount(at: yaml.Node | yaml.Event, depth: int, count: int) -> None:
    if depth > _DEEPEST:
        raise _refusal(at, f"values are nested more than {_DEEPEST} deep")
    if count > _MOST_VALUES:
        raise _refusal(at, f"there are more than {_MOST_VALUES} values, aliases written out")


def _scalar(node: yaml.Node) -> Any:
    kind, text = node.tag.removeprefix(_CORE), node.value
    if kind in ("int", "float") and len(text) > _LONGEST_NUMBER:
        raise _refusal(node, f"a number of {len(text)} characters is too long")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text.replace("_", ""), 0)
    if kind == "float":
        number = float(text.replace("_", ""))
        if math.isinf(number):
            raise _refusal(node, f"the number {quoted(text)} is too large")
        return number
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise _refusal(node, f"the text {quoted(text)} holds half a character (a lone surrogate)")
    return text


def _refusal(at: yaml.Node | yaml.Event, problem: str) -> yaml.YAMLError:
    mark: Any = at.start_mark
    return yaml.YAMLError(f"{problem} (line {mark.line + 1}, column {mark.column + 1})")
