"""docs/concepts/artifact.md suffices: a reader that was written from it alone gives the engine's numbers.

The reader computes in float64 and the engine in float32, so an input that lies between two levels can get the other
code, which changes it by a whole step. The reader therefore takes the engine's codes, after it has checked that each is
its own or the neighbour across a boundary that lies within the rounding error. What is left of the difference is
rounding, which is bounded as follows. A sum of K products is off by at most K u times the sum of their magnitudes
(u = 2^-24; Higham, Accuracy and Stability, section 3.1). A token passes four products in a row in each block and one in
the head. The few roundings of norms, steps and softmax are far fewer than K. In units of the largest entry:

    tolerance = (4 layers + 1) max(K) u
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import questlm
from helpers import artifact_reader
from helpers.artifact_reader import Reader, level_of
from helpers.packed_models import IDS, SHAPE, specs, trained
from questlm import ops
from questlm.artifact.format import FORMAT, VERSION, expected_tensors
from questlm.config import GenerationOptions, ModelConfig, QuantSpec, RopeScaling
from questlm.export.pack import pack
from questlm.inference import PackedModel
from questlm.manifest import write_manifest
from questlm.ops import unpacking

PROMPT = IDS[0].tolist()
NEW_TOKENS = 4
GREEDY = GenerationOptions(max_new_tokens=NEW_TOKENS, temperature=0)
MIXED = QuantSpec(
    embeddings="int8",
    overrides={
        "lm_head": {"weight_bits": 3, "act_bits": 16},
        "layers.0.mlp.up": 16,
        "attention.o": {"weight_bits": 16},
    },
)
LLAMA3 = RopeScaling(kind="llama3", factor=4, low_freq_factor=1, high_freq_factor=4, original_max_position=16)
SHAPES = {
    "tied head, int8, llama3 positions": (
        SHAPE.model_copy(update={"tied_head": True, "rope_scaling": LLAMA3}),
        QuantSpec(embeddings="int8"),
    ),
    "mixed formats, linear positions": (
        SHAPE.model_copy(update={"rope_scaling": RopeScaling(kind="linear", factor=2), "rope_theta": 500.0}),
        MIXED,
    ),
    "biases": (SHAPE.model_copy(update={"qkv_bias": True}), QuantSpec(embeddings="bf16")),
    "norms of queries and keys": (SHAPE.model_copy(update={"qk_norm": True}), QuantSpec(embeddings="bf16")),
    "blocks of 128, wide heads, derived mlp": (
        ModelConfig(layers=1, hidden=128, heads=4, kv_heads=2, head_dim=64, vocab_size=61, norm_eps=1e-3),
        QuantSpec(weight_bits=2, act_bits=3, embeddings="bf16"),
    ),
}
ONE_BLOCK = SHAPE.model_copy(update={"layers": 1})
CASES = [pytest.param(SHAPE if spec.overrides else ONE_BLOCK, spec, id=spec.label) for spec in specs()]
CASES += [pytest.param(shape, spec, id=name) for name, (shape, spec) in SHAPES.items()]


class Following(Reader):
    """A reader that goes on with the engine's codes, which must be its own up to rounding.

    Attributes:
        codes: the engine's, for each call of `nearest_codes` in turn.
        tolerance: error of a position in units of the largest position of its row.
        moved: how many codes were the neighbours of the reader's own; total: how many there were.
    """

    def follow(self, codes: list[np.ndarray], tolerance: float) -> None:
        self.codes, self.tolerance, self.moved, self.total = iter(codes), tolerance, 0, 0

    def nearest_codes(self, u: np.ndarray, grid: dict[str, Any]) -> np.ndarray:
        own, theirs = super().nearest_codes(u, grid), next(self.codes).astype(int)
        theirs = np.concatenate(
            [own[: len(own) - len(theirs)], theirs]
        )  # generating, the head sees the last tokens only
        assert np.abs(own - theirs).max() <= 1
        boundary = (level_of(own, grid) + level_of(theirs, grid)) / 2
        error = np.where(own == theirs, 0, np.abs(u - boundary))
        assert (error <= self.tolerance * np.abs(u).max(axis=1, keepdims=True)).all()
        self.moved, self.total = self.moved + int((own != theirs).sum()), self.total + own.size
        return theirs


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[np.ndarray]]:
    """The codes of every quantised input that engines compute, in order."""
    codes: list[np.ndarray] = []
    compute = unpacking.input_operand

    def record(*args: Any) -> Any:
        operand = compute(*args)
        if operand.grid is not None:
            codes.append(operand.data.numpy().copy())
        return operand

    monkeypatch.setattr(unpacking, "input_operand", record)
    yield codes


def rounding(engine: PackedModel) -> float:
    """The tolerance of the essay above."""
    longest = max(engine.config.hidden, engine.config.mlp_width, engine.config.heads * engine.config.head_width)
    return (4 * engine.config.layers + 1) * longest * 2.0**-24


def passes_joined(codes: list[np.ndarray], passes: int) -> list[np.ndarray]:
    """Codes of `passes` forward passes over parts of a sequence -> those of one pass over all of it."""
    calls = len(codes) // passes
    return [np.concatenate(codes[call::calls]) for call in range(calls)]


@pytest.mark.parametrize(("shape", "spec"), CASES)
def test_the_reader_gives_the_logits_and_the_greedy_tokens_of_the_engine(
    tmp_path: Path, recorded: list[np.ndarray], shape: ModelConfig, spec: QuantSpec
) -> None:
    pack(trained(spec, shape), tmp_path / "a")
    with ops.using_backend("reference"):  # in steps, between which codes can be recorded
        engine, reader = questlm.load(tmp_path / "a"), Following(tmp_path / "a")
    tolerance = rounding(engine)
    assert reader.tensors.keys() == expected_tensors(engine.artifact).keys()

    expected = engine.logits(torch.tensor([PROMPT]))[0].double().numpy()
    reader.follow(recorded, tolerance)
    error = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(reader.logits(PROMPT), expected, rtol=0, atol=error)
    assert reader.moved <= 1 + reader.total / 200  # ties are rare: the reader's codes are its own
    fastest = questlm.load(tmp_path / "a").logits(torch.tensor([PROMPT]))[0]
    np.testing.assert_allclose(fastest.double().numpy(), expected, rtol=0, atol=error)

    recorded.clear()
    tokens = list(engine.stream_ids(PROMPT, GREEDY))
    reader.follow(passes_joined(recorded, NEW_TOKENS), tolerance)
    logits = reader.logits(PROMPT + tokens[:-1])[len(PROMPT) - 1 :]
    chosen = np.take_along_axis(logits, np.array(tokens)[:, None], axis=1)[:, 0]
    assert (logits.max(axis=1) - chosen <= 2 * error).all()  # the likeliest, or as likely up to rounding


@pytest.mark.parametrize("spec", [QuantSpec(embeddings="bf16"), MIXED], ids=["quest-w4a4", "mixed"])
def test_the_reader_by_itself_generates_what_the_engine_does(tmp_path: Path, spec: QuantSpec) -> None:
    pack(trained(spec), tmp_path / "a")
    expected = list(questlm.load(tmp_path / "a").stream_ids(PROMPT, GREEDY))
    assert Reader(tmp_path / "a").generate(PROMPT, NEW_TOKENS) == expected


def test_keys_that_are_absent_have_the_defaults_of_the_document(tmp_path: Path) -> None:
    shape = ModelConfig(layers=1, hidden=32, heads=2, vocab_size=61)
    pack(trained(QuantSpec(embeddings="bf16"), shape), tmp_path / "a")
    before = questlm.load(tmp_path / "a").logits(IDS)
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    config["model"] = {key: config["model"][key] for key in ("layers", "hidden", "vocab_size")}
    for form in config["quantization_config"]["formats"]:
        for key in ("weight_offset", "act_offset", "input_norm", "narrow"):
            form.pop(key)
        for grid in (form["act"], form["weight"]):
            for key in ("scale", "zero", "table", "group") if isinstance(grid, dict) else ():
                grid.pop(key)
    path.write_text(json.dumps(config))
    write_manifest(tmp_path / "a", FORMAT, VERSION)
    assert torch.equal(questlm.load(tmp_path / "a").logits(IDS), before)
    logits = Reader(tmp_path / "a").logits(PROMPT)
    np.testing.assert_allclose(logits, before[0].numpy(), rtol=0, atol=1e-4 * before.abs().max().item())


@pytest.mark.parametrize("name", ["MANIFEST.json", "config.json", "model.safetensors"])
def test_the_reader_refuses_a_flipped_bit(tmp_path: Path, name: str) -> None:
    pack(trained(QuantSpec(embeddings="bf16")), tmp_path / "a")
    content = bytearray((tmp_path / "a" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a" / name).write_bytes(content)
    with pytest.raises((AssertionError, ValueError)):
        Reader(tmp_path / "a")


def test_the_reader_needs_nothing_of_questlm() -> None:
    tree = ast.parse(Path(artifact_reader.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"__future__", "hashlib", "json", "math", "numpy", "pathlib", "typing"}
