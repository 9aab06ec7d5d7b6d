"""The method that docs/howto/add-a-method.md adds can be trained by the function behind `quest train`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from questlm.config import RunConfig
from questlm.quant import METHODS
from questlm.quant.methods import FactorSpec, Request
from questlm.quant.quantizers import DynamicQuantizer
from questlm.training import train

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "add-a-method.md"
NAME = "quest-leaky"


@pytest.fixture
def leaky() -> Iterator[type[DynamicQuantizer]]:
    """The example's class, while its method is in the table."""
    match = re.search(r"```python\n(.*?)\n# It is now a method", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None
    names: dict[str, object] = {}
    exec(match.group(1), names)
    quantizer = names["LeakyTrust"]
    assert isinstance(quantizer, type) and issubclass(quantizer, DynamicQuantizer)
    yield quantizer
    del METHODS[NAME]


@pytest.mark.parametrize("trusts", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_the_example_trains(
    masked: bool, trusts: bool, leaky: type[DynamicQuantizer], tiny_settings: Callable[..., RunConfig], tmp_path: Path
) -> None:
    if not masked:
        plain = METHODS["ste"].weight.make

        def make(request: Request) -> DynamicQuantizer:
            quantizer = plain(request)
            assert isinstance(quantizer, DynamicQuantizer)
            return leaky(quantizer.grid, request.block_size, None)

        spec = FactorSpec(METHODS[NAME].weight.bits, make)
        METHODS[NAME] = replace(METHODS[NAME], weight=spec, act=spec)
    METHODS[NAME] = replace(METHODS[NAME], trusts=trusts)
    config = tiny_settings(quant={"method": NAME, "weight_bits": 1, "act_bits": 4}, budget={"tokens": 3 * 4 * 32})
    record = train(config, tmp_path / "run")
    assert record.checks["quantized_layers"] == 7
    assert record.checks["layers_without_gradient"] == 0
    assert record.checks["largest_gradient_outside_mask"] is None  # such a gradient is what the method is for
