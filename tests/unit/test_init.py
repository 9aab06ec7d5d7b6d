"""The public names: each exists, says what it does, and has types that a type checker sees."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import questlm


def test_these_names_are_public() -> None:
    assert {
        "Llama", "PackedModel", "QuantSpec", "RunConfig", "dequantize", "evaluate", "fake_quantize", "load",
        "load_config", "make_quantizer", "pack", "prepare", "quantize", "restore", "resume", "train",
    } <= set(questlm.__all__)  # fmt: skip
    assert sorted(questlm.__all__) == questlm.__all__
    assert set(questlm.__all__) <= set(dir(questlm))
    assert all(vars(questlm)["_LAZY"].get(name) for name in questlm.__all__)


@pytest.mark.parametrize("name", questlm.__all__)
def test_a_public_name_is_documented_and_typed(name: str) -> None:
    value = getattr(questlm, name)
    assert (value.__doc__ or "").strip()
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(each.annotation is not inspect.Parameter.empty for each in signature.parameters.values())
        assert (value.__doc__ or "").strip().splitlines()[0].endswith(".")


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(questlm.__path__[0]) / "py.typed").is_file()


def test_folders_may_be_given_as_text(tiny: questlm.RunConfig, tmp_path: Path) -> None:
    run, packed = str(tmp_path / "run"), str(tmp_path / "packed")
    record = questlm.train(tiny, run)
    assert questlm.resume(run) == record
    assert record.final is not None
    assert questlm.evaluate(run).trained_loss == record.final["loss"]
    questlm.pack(run, packed)
    assert questlm.load(packed).training["final"] == record.final
