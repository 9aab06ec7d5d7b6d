"""Build a RunConfig from layers: preset, then YAML file, then flags, then `--set a.b=c`. Later layers win."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from questlm.config.presets import preset as preset_settings
from questlm.config.schema import RunConfig
from questlm.config.yaml_text import parse_yaml, read_yaml, write_yaml
from questlm.errors import ConfigError, cleaned, nearest_name, quoted

__all__ = ["load_config", "merge", "to_yaml"]


_DEEPEST_KEY = 8


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
    return RunConfig(**settings)


def to_yaml(config: RunConfig) -> str:
    """The resolved settings, as a file that `load_config` reads back to the same value."""
    return write_yaml(config.model_dump(mode="json"))


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


def _read_config(file: Path) -> dict[str, Any]:
    content = read_yaml(file, "config file")
    allowed = [*RunConfig.model_fields, "preset"]
    for key in content:
        if key not in allowed:
            near = nearest_name(key, allowed)
            raise ConfigError(f"unknown section {quoted(key)} in {file}.{near} There are: {', '.join(allowed)}.")
    return content


def _parse_override(text: str) -> dict[str, Any]:
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys) or len(keys) > _DEEPEST_KEY:
        raise ConfigError(
            f"--set {quoted(text)} cannot be read; write it as --set section.key=value, e.g. --set train.lr=6e-4"
        )
    try:
        parsed: Any = parse_yaml(value, f"the value in --set {quoted(text)}")
    except ConfigError as problem:
        raise ConfigError(
            f"{problem}; put text that is no YAML into quotes: --set '{cleaned(path, 80)}=\"...\"'"
        ) from None
    for key in reversed(keys):
        parsed = {key: parsed}
    return dict(parsed)
