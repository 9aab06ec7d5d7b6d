"""Which plugins a run needs: written into its settings when it begins, and asked for whenever it is used again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from questlm.config import Plugin, RunConfig
from questlm.errors import CheckpointError, ConfigError, quoted
from questlm.plugins import Table, loaded_plugin
from questlm.quant import METHODS
from questlm.training.recipes import RECIPES, named_recipes

__all__ = ["record_plugins", "require_plugins"]


def record_plugins(config: RunConfig) -> RunConfig:
    """`config` of a new run with the plugins whose methods and recipes it names.

    Raises:
        ConfigError: an unknown method or recipe, or settings that a recipe does not take.
    """
    unknown = _unknown(config)
    if unknown and config.plugins:  # settings that were taken from another run
        raise ConfigError(f"the settings name {_of(unknown, config.plugins)}")
    used: list[Plugin] = []
    for table, name in _names(config):
        table.find(name)
        used += [table.plugins[name]] if name in table.plugins else []
    named_recipes(config.train)
    plugins = tuple(dict.fromkeys(used))
    return config if config.plugins == plugins else config.model_copy(update={"plugins": plugins})


def require_plugins(config: RunConfig, run: Path) -> None:
    """Refuse to go on with a run whose plugins are not loaded, or are not what they were when it began.

    Raises:
        CheckpointError: naming the plugin, and how to load it.
    """
    unknown = _unknown(config)
    missing = [plugin for plugin in config.plugins if not _is_there(plugin, bool(unknown))]
    if missing:
        raise CheckpointError(f"{run} was trained with {_of(unknown, missing)}")
    for plugin in config.plugins:
        now = loaded_plugin(plugin.name)
        if now is not None and now.sha256 != plugin.sha256:
            raise CheckpointError(
                f"{run} was trained with the plugin {_shell(plugin)} as it was then (SHA-256 {_short(plugin)}), but "
                f"the one given differs (SHA-256 {_short(now)}); give it as it was, or begin a new run"
            )


def _names(config: RunConfig) -> Iterator[tuple[Table[Any], str]]:
    """Every method and recipe that the settings name, with the table that it is in."""
    yield METHODS, config.quant.method
    for override in config.quant.overrides.values():
        if override.method is not None:
            yield METHODS, override.method
    for name in config.train.recipes:
        yield RECIPES, name


def _unknown(config: RunConfig) -> list[str]:
    return [f"the {table.what} {quoted(name)}" for table, name in _names(config) if not table.knows(name)]


def _is_there(plugin: Plugin, something_unknown: bool) -> bool:
    """Whether a plugin is loaded. What an installed package offers is loaded when it is used: then it is known."""
    return not something_unknown if plugin.kind == "package" else loaded_plugin(plugin.name) is not None


def _of(unknown: list[str], plugins: tuple[Plugin, ...] | list[Plugin]) -> str:
    """'the method 'x' of the plugin y.py; add --plugin y.py'."""
    named = [f"the {'package' if plugin.kind == 'package' else 'plugin'} {_shell(plugin)}" for plugin in plugins]
    what = f"{' and '.join(dict.fromkeys(unknown))} of {' and '.join(named)}" if unknown else " and ".join(named)
    flags = "".join(f" --plugin {_shell(plugin)}" for plugin in plugins if plugin.kind != "package")
    packages = [_shell(plugin) for plugin in plugins if plugin.kind == "package"]
    install = f"install {' and '.join(packages)}" if packages else ""
    in_python = " (in Python: questlm.plugins.load_plugin)" if flags else ""
    return f"{what}; " + " and ".join(filter(None, (f"add{flags}{in_python}" if flags else "", install)))


def _shell(plugin: Plugin) -> str:
    """The name as a shell takes it for one word: a run folder may come from anybody."""
    return shlex.quote(plugin.name)


def _short(plugin: Plugin) -> str:
    return f"{plugin.sha256[:12]}..." if plugin.sha256 else "none"
