"""Build a RunConfig from layers: preset, then YAML file, then flags, then `--set a.b=c`. Later layers win."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from questlm.config.presets import preset as preset_settings
from questlm.config.schema import RunConfig
from questlm.errors import ConfigError, nearest_name

__all__ = ["load_config", "merge", "read_yaml", "to_yaml"]


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `off` is a word, 6e-4 is a number (YAML 1.1 has it the other way round)."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back: quotes what that would take for something else."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("bool", "float")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"
    ),
    list("-+.0123456789"),
)
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def load_config(
    preset: str | None = None,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Resolve the settings of a run.

    Args:
        preset: name of a model size; wins over a `preset:` key in the file.
        file: YAML with the sections of RunConfig and, optionally, `preset: NAME`.
        flags: nested settings from the command line.
        overrides: strings `section.key=value`, the value read as YAML.

    Raises:
        ConfigError: a file that is absent or not YAML, an unknown key (the nearest name is given) or a bad value.
    """
    from_file = _read_config(file) if file else {}
    named = from_file.pop("preset", None)
    name = preset or named
    settings: dict[str, Any] = RunConfig().model_dump(exclude_unset=True)
    settings = merge(settings, preset_settings(str(name)) if name is not None else {})
    settings = merge(settings, from_file)
    settings = merge(settings, flags or {})
    for override in overrides:
        settings = merge(settings, _parse_override(override))
    return RunConfig(**_keep_the_default_embedding_form(settings))


def to_yaml(config: RunConfig) -> str:
    """The resolved settings, as a file that `load_config` reads back to the same value."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


def merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `update` laid over it, section by section. A new budget replaces the old one whole."""
    result = dict(base)
    for key, value in update.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and key != "budget":
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def _keep_the_default_embedding_form(settings: dict[str, Any]) -> dict[str, Any]:
    # A run ships its embeddings, so it trains them in the form that ships (RunConfig's default), also when the user
    # wrote a `quant` section that does not speak of them. QuantSpec alone leaves embeddings untouched.
    if isinstance(settings.get("quant"), Mapping):
        settings["quant"] = {"embeddings": "bf16"} | dict(settings["quant"])
    return settings


def read_yaml(file: Path, what: str) -> dict[str, Any]:
    """The keys and values of a YAML file; `what` it is, for messages.

    Raises:
        ConfigError: unreadable, no YAML, or something else than keys and values.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except OSError as problem:
        raise ConfigError(f"cannot read the {what} {file}: {problem.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ConfigError(f"the {what} {file} is not valid YAML: {' '.join(str(problem).split())}") from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"the {what} {file} holds a {type(content).__name__}, but sections are expected")
    return content


def _read_config(file: Path) -> dict[str, Any]:
    content = read_yaml(file, "config file")
    allowed = [*RunConfig.model_fields, "preset"]
    for key in content:
        if key not in allowed:
            near = nearest_name(str(key), allowed)
            raise ConfigError(f"unknown section {key!r} in {file}.{near} There are: {', '.join(allowed)}.")
    return content


def _parse_override(text: str) -> dict[str, Any]:
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(
            f"--set {text!r} cannot be read; write it as --set section.key=value, e.g. --set train.lr=6e-4"
        )
    try:
        parsed: Any = yaml.load(value, _Loader)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text!r}: the value {value!r} is not valid YAML") from None
    for key in reversed(keys):
        parsed = {key: parsed}
    return dict(parsed)
