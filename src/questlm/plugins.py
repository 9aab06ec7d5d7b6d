"""Methods and recipes of a user's own: tables that plugins add to, and the loading of plugins.

A plugin is a Python file or module that calls `questlm.quant.register_method` or
`questlm.training.recipes.register_recipe`. Loading it runs its code, so only the user's own word does that: `--plugin`
on the command line, or `load_plugin` here. Run folders and YAML files may come from anybody. They record which plugins
a run was trained with, and never cause one to be loaded.

An installed package may offer values as entry points instead. Of these only the one whose name is asked for is loaded,
and only when it is asked for.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, TypeVar

from questlm.config import Plugin
from questlm.errors import ConfigError, QuestError, nearest_name, quoted
from questlm.files import user_path

__all__ = ["Table", "load_plugin", "loaded_plugin"]

Value = TypeVar("Value")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")

_tables: list[Table[Any]] = []
_loaded: dict[str, Plugin] = {}
_loading: list[Plugin] = []  # the innermost last: a plugin may import another


class Table(dict[str, Value]):
    """Values by name: built-in ones, those that plugins register, and those that installed packages offer.

    Args:
        what: what a value is called in messages, such as 'method'.
        group: name of the entry point group in which installed packages offer such values.
        fits: whether an object is such a value.
        must_be: what such a value is, for messages.
        builtin: the values that questlm has itself.

    Attributes:
        plugins: where each value comes from that is not built in. A value that was registered outside a plugin is not
            in it.
    """

    def __init__(
        self, what: str, group: str, fits: Callable[[object], bool], must_be: str, builtin: Mapping[str, Value]
    ) -> None:
        super().__init__(builtin)
        self.what, self.group, self.fits, self.must_be = what, group, fits, must_be
        self.plugins: dict[str, Plugin] = {}
        _tables.append(self)

    def register(self, name: str, value: Value) -> None:
        """Add a value under a name.

        Raises:
            ConfigError: the name is taken or is not a short word, or the value is of another kind.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{quoted(name)} cannot be the name of a {self.what}; take up to 64 letters, digits, '.', '+', '_' "
                f"and '-', of which the first is a letter or a digit"
            )
        if name in self:
            raise ConfigError(f"there is a {self.what} {quoted(name)} already; choose another name")
        if not self.fits(value):
            raise ConfigError(f"the {self.what} {quoted(name)} is a {type(value).__name__}, not {self.must_be}")
        self[name] = value
        if _loading:
            self.plugins[name] = _loading[-1]

    def find(self, name: str) -> Value:
        """The value of a name, loaded from an installed package where nothing else has it.

        Raises:
            ConfigError: no such name; the message gives the nearest and all of them.
        """
        offered = {} if name in self else self.offered()
        if name in offered:
            self._load(offered[name])
        if name not in self:
            names = [*self, *offered]
            listed = f" There are: {', '.join(names)}." if names else ""
            raise ConfigError(
                f"no {self.what} {quoted(name)}.{nearest_name(name, names)}{listed} "
                f"One of your own is added with --plugin FILE."
            )
        return self[name]

    def knows(self, name: str) -> bool:
        """Whether `find` would look for a value of this name, in this table or in an installed package."""
        return name in self or name in self.offered()

    def offered(self) -> dict[str, EntryPoint]:
        """What installed packages offer, by name; nothing of it is loaded."""
        return {point.name: point for point in entry_points(group=self.group) if point.name not in self}

    def forget(self, plugin: Plugin) -> None:
        """Remove what a plugin has registered."""
        for name in [name for name, source in self.plugins.items() if source == plugin]:
            del self[name], self.plugins[name]

    def _load(self, point: EntryPoint) -> None:
        package = point.dist.name if point.dist is not None else point.module
        with _registering(Plugin(name=package, kind="package"), f"the package {package}"):
            self.register(point.name, point.load())


def load_plugin(name: str | Path) -> Plugin:
    """Import a plugin, which runs its code. One that is loaded already is not loaded again.

    Args:
        name: path of a Python file (it ends in .py or has a folder in it), or name of an importable module.

    Raises:
        ConfigError: it cannot be found, its code fails, or another plugin of its name is loaded.
    """
    text = str(name)
    is_file = isinstance(name, Path) or text.endswith(".py") or "/" in text or "\\" in text
    return _load_file(user_path(text)) if is_file else _load_module(text)


def loaded_plugin(name: str) -> Plugin | None:
    """Return the plugin that is loaded under `name`, or None.

    Args:
        name: as runs record it: the name of a file without its folder, or of a module.
    """
    return _loaded.get(name)


def _load_file(path: Path) -> Plugin:
    try:
        source = path.read_bytes()
    except OSError as problem:
        raise ConfigError(f"the plugin {path} cannot be read: {problem.strerror}; give a Python file") from None
    plugin = Plugin(name=path.name, kind="file", sha256=hashlib.sha256(source).hexdigest())
    if _loaded.get(plugin.name, plugin) != plugin:
        raise ConfigError(
            f"another plugin of the name {plugin.name}, or an earlier state of {path}, is loaded already; "
            f"rename one of them, or start Python anew"
        )
    if plugin.name not in _loaded:
        with _registering(plugin, f"the plugin {path}", path):
            _run_file(path, source)
    return plugin


def _run_file(path: Path, source: bytes) -> None:
    """Run the bytes whose hash is recorded as a module, which is in `sys.modules` as dataclasses need it to be."""
    spec = spec_from_file_location(f"questlm_plugin_{path.stem}", path)
    if spec is None:
        raise ConfigError("it is not a Python file; its name must end in .py")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        # Without this file's own `from __future__`, which would turn the plugin's annotations into texts.
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[spec.name]
        raise


def _load_module(name: str) -> Plugin:
    plugin = Plugin(name=name, kind="module")
    if name not in _loaded:
        with _registering(plugin, f"the plugin {name}"):
            importlib.import_module(name)
    return plugin


@contextmanager
def _registering(plugin: Plugin, what: str, file: Path | None = None) -> Iterator[None]:
    """Note whatever is registered as of `plugin`; if its code fails, remove that and say where."""
    _loading.append(plugin)
    try:
        yield
    except Exception as problem:  # the code of a plugin may raise anything
        for table in _tables:
            table.forget(plugin)
        raise ConfigError(f"{what} cannot be used: {_explained(problem, file)}") from problem
    finally:
        _loading.pop()
    _loaded[plugin.name] = plugin


def _explained(problem: Exception, file: Path | None) -> str:
    if isinstance(problem, QuestError):
        return str(problem)
    lines = [entry.lineno for entry in traceback.extract_tb(problem.__traceback__) if entry.filename == str(file)]
    place = f"line {lines[-1]}: " if lines else ""
    return f"{place}{type(problem).__name__}: {problem}"
