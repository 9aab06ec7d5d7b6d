"""A run says which plugins it was trained with, and goes on with these alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from questlm.config import Plugin, QuantSpec, RunConfig, load_config, to_yaml
from questlm.errors import CheckpointError, ConfigError
from questlm.plugins import load_plugin
from questlm.quant import METHODS
from questlm.training import resume, train
from questlm.training.plugins import record_plugins, require_plugins

SOURCE = """
from questlm.quant import METHODS, register_method
register_method("mine", METHODS["quest"])
"""


@pytest.fixture(autouse=True)
def _forget(forget_plugins: Callable[[], None]) -> None:
    """No test leaves a plugin behind."""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def using(method: str, **settings: object) -> RunConfig:
    return RunConfig(quant=QuantSpec(method=method), **settings)


def test_only_plugins_that_the_settings_use_are_recorded(plugin: Path) -> None:
    loaded = load_plugin(plugin)
    assert record_plugins(using("mine")).plugins == (loaded,)
    assert record_plugins(using("quest")).plugins == ()
    assert record_plugins(RunConfig(quant=QuantSpec(overrides={"lm_head": {"method": "mine"}}))).plugins == (loaded,)
    assert record_plugins(using("quest", plugins=(loaded,))).plugins == ()  # of a run whose method is not used again


def test_a_package_and_a_module_of_one_name_are_both_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = Plugin(name="mine", kind="package"), Plugin(name="mine", kind="module")
    for name, plugin in (("offered", package), ("registered", module)):
        monkeypatch.setitem(METHODS, name, METHODS["quest"])
        monkeypatch.setitem(METHODS.plugins, name, plugin)
    spec = QuantSpec(method="offered", overrides={"lm_head": {"method": "registered"}})
    assert record_plugins(RunConfig(quant=spec)).plugins == (package, module)


def test_recorded_plugins_are_written_and_read_again_without_being_loaded(plugin: Path, tmp_path: Path) -> None:
    config = record_plugins(using("quest", plugins=()))
    config = config.model_copy(update={"plugins": (Plugin(name="mine.py", kind="file", sha256="0" * 64),)})
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config(file=tmp_path / "config.yaml") == config
    assert "mine" not in METHODS


@pytest.mark.parametrize(
    ("recorded", "hint"),
    [
        (Plugin(name="mine.py", kind="file", sha256="0" * 64), r"of the plugin mine\.py; add --plugin mine\.py"),
        (Plugin(name="my_package.methods", kind="module"), r"my_package\.methods; add --plugin my_package\.methods"),
        (Plugin(name="a; rm -rf b.py", kind="file", sha256="0" * 64), "add --plugin 'a; rm -rf b.py'"),
        (Plugin(name="my-package", kind="package"), "of the package my-package; install my-package"),
    ],
)
def test_a_missing_plugin_is_named_with_the_way_to_load_it(recorded: Plugin, hint: str, tmp_path: Path) -> None:
    config = using("mine", plugins=(recorded,))
    with pytest.raises(CheckpointError, match=f"run was trained with the method 'mine' .*{hint}"):
        require_plugins(config, tmp_path / "run")
    with pytest.raises(ConfigError, match=f"the settings name the method 'mine' .*{hint}"):
        record_plugins(config)


def test_a_plugin_that_has_changed_is_refused_and_the_same_is_not(plugin: Path) -> None:
    config = using("mine", plugins=(Plugin(name="mine.py", kind="file", sha256="0" * 64),))
    load_plugin(plugin)
    with pytest.raises(CheckpointError, match=r"SHA-256 000000000000.*but the one given differs"):
        require_plugins(config, Path("run"))
    require_plugins(record_plugins(config), Path("run"))


def test_a_run_of_a_plugin_is_resumed_with_the_settings_that_it_was_begun_with(
    plugin: Path, tiny_settings: Callable[..., RunConfig], tmp_path: Path
) -> None:
    load_plugin(plugin)
    config = tiny_settings(quant={"method": "mine"}, budget={"tokens": 256})
    record = train(config, tmp_path / "run")
    assert config.plugins == ()  # the run fills them in when it begins
    assert resume(tmp_path / "run", config) == record


def test_settings_of_another_plugin_do_not_resume_a_run(
    plugin: Path, tiny_settings: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny_settings(budget={"tokens": 256})
    train(config, tmp_path / "run")
    other = config.model_copy(update={"plugins": (load_plugin(plugin),)})
    resume(tmp_path / "run", other)  # which its method does not use
    with pytest.raises(CheckpointError, match=r"quant\.method"):
        resume(tmp_path / "run", tiny_settings(quant={"method": "mine"}, budget={"tokens": 256}))
