"""compressed-tensors and transformers compute of the export what the engine computes of the packed model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import unpack_from_int32
from safetensors.torch import load_file

import questlm
from helpers.packed_models import IDS, SHAPE, trained
from questlm.artifact.dense import dense_state_dict
from questlm.artifact.read import load_artifact
from questlm.config import QuantSpec
from questlm.errors import ConfigError
from questlm.export.compressed_tensors import to_compressed_tensors

WEIGHTS = {"act_bits": 16, "embeddings": "int8"}
MIXED = {"mlp.down": 16, "attention.o": {"weight_bits": 2, "act_bits": 16}, "mlp.up": {"method": "lsq", "act_bits": 16}}


def exported(folder: Path, spec: QuantSpec, **shape: object) -> Path:
    questlm.pack(trained(spec, SHAPE.model_copy(update=shape)), folder / "packed")
    to_compressed_tensors(load_artifact(folder / "packed"), folder / "out")
    return folder / "out"


def loaded_by_the_readme(folder: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """The model that the code in the export's README.md makes."""
    monkeypatch.chdir(folder)
    (code,) = re.findall("```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    made: dict[str, torch.nn.Module] = {}
    exec(code, made)
    return made["model"]


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (QuantSpec(weight_bits=3, **WEIGHTS), {}),
        (QuantSpec(weight_bits=4, overrides=MIXED, **WEIGHTS), {"tied_head": True, "qkv_bias": True}),
        (QuantSpec(method="lsq", weight_bits=4, act_bits=16, embeddings="bf16"), {"qk_norm": True}),
    ],
    ids=["rotated", "mixed", "plain"],
)
def test_transformers_computes_what_the_engine_does(
    spec: QuantSpec, shape: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = exported(tmp_path, spec, **shape)
    theirs = loaded_by_the_readme(out, monkeypatch)
    expected = questlm.load(tmp_path / "packed")(IDS)
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, expected, rtol=1e-4, atol=1e-5)
    named = ("transform_config" in json.loads((out / "config.json").read_text())["quantization_config"]) is (
        spec.method == "quest"
    )
    assert named


WITHOUT_US = """
import re, sys
from pathlib import Path
exec(re.search("```python\\n(.*?)```", Path("README.md").read_text(), re.DOTALL)[1])
import torch
with torch.no_grad():
    torch.save(model(torch.tensor(eval(sys.argv[1]))).logits, "logits.pt")
assert not [name for name in sys.modules if name.partition(".")[0] == "questlm"]
"""


def test_a_process_that_does_not_know_us_computes_the_same(tmp_path: Path) -> None:
    out = exported(tmp_path, QuantSpec(weight_bits=2, **WEIGHTS))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", WITHOUT_US, str(IDS.tolist())]
    subprocess.run(command, cwd=out, env=environment, check=True, capture_output=True, timeout=120)
    logits = torch.load(out / "logits.pt", weights_only=True)
    torch.testing.assert_close(logits, questlm.load(tmp_path / "packed")(IDS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("bits", "packed"), [(1, 2), (2, 3), (3, 4), (4, 5), (7, 8), ("ternary", 2)])
def test_half_integer_levels_take_one_bit_more(bits: int | str, packed: int, tmp_path: Path) -> None:
    out = exported(tmp_path, QuantSpec(method="quest-noht", weight_bits=bits, **WEIGHTS))
    tensors, name = load_file(out / "model.safetensors"), "model.layers.0.mlp.up_proj"
    integers = unpack_from_int32(tensors[f"{name}.weight_packed"], packed, tensors[f"{name}.weight_shape"])
    dense = dense_state_dict(load_artifact(tmp_path / "packed"))["layers.0.mlp.up.weight"]
    assert torch.equal(integers * tensors[f"{name}.weight_scale"], dense)


def test_what_has_no_integers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no layer whose weights are whole numbers of 1 to 8 bits"):
        exported(tmp_path, QuantSpec(weight_bits=8, **WEIGHTS))
    assert not (tmp_path / "out").exists()
