from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer

import questlm
from questlm.config import ModelConfig, QuantSpec
from questlm.errors import ArtifactError, ConfigError
from questlm.export.pack import pack
from questlm.inference import PackedModel
from questlm.inference.text import decode_stream
from questlm.models import Llama

CONFIG = ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=48, vocab_size=257)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_json):
    model = questlm.prepare(Llama(CONFIG).initialize(0), QuantSpec(embeddings="bf16"))
    path = tmp_path_factory.mktemp("artifact") / "a"
    pack(model, path, tokenizer=tokenizer_json, training={"val_loss": 5.5})
    return path


@pytest.fixture(scope="module")
def model(folder) -> PackedModel:
    return questlm.load(folder)


def test_a_packed_model_runs_without_the_training_code(folder) -> None:
    script = (
        "import sys, questlm\n"
        "text = questlm.load(sys.argv[1]).generate('ab', max_new_tokens=3)\n"
        "assert isinstance(text, str)\n"
        "print([m for m in sys.modules if m.startswith(('questlm.quant', 'questlm.training', 'questlm.data'))])\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_it_says_what_it_is(model: PackedModel, folder) -> None:
    assert model.config == CONFIG
    assert model.training == {"val_loss": 5.5}
    assert model.bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert model.decode(model.encode("def naïve(): 日本")) == "def naïve(): 日本"


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_the_pieces_join_to_the_whole(model: PackedModel, temperature: float) -> None:
    options = {"max_new_tokens": 40, "temperature": temperature, "seed": 3, "top_k": None}
    whole = model.generate("x =", **options)
    assert "".join(model.stream("x =", **options)) == whole
    assert model.decode(list(model.stream_ids("x =", **options))) == whole


def test_greedy_takes_the_likeliest_token_each_time(model: PackedModel) -> None:
    ids = list(model.stream_ids([7, 8], 10, temperature=0, stop_at_end=False))
    known = [7, 8]
    for token in ids:
        assert token == int(model.logits(torch.tensor([known]))[0, -1].argmax())
        known.append(token)
    assert ids == list(model.stream_ids([7, 8], 10, temperature=3.0, top_k=1, stop_at_end=False))


def test_a_seed_repeats_and_another_differs(model: PackedModel) -> None:
    runs = [list(model.stream_ids("a", 30, temperature=2.0, seed=seed)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_sampling_does_not_touch_the_global_generator(model: PackedModel) -> None:
    before = torch.random.get_rng_state()
    model.generate("a", 5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_empty_prompt_starts_a_document(model: PackedModel) -> None:
    options = {"max_new_tokens": 10, "temperature": 0}
    assert model.generate("", **options) == model.generate([0], **options)


def test_generation_stops_at_the_end_of_text(model: PackedModel, monkeypatch) -> None:
    tokens = itertools.cycle([65, 66, 0])
    monkeypatch.setattr("questlm.inference.engine.sample", lambda *_: next(tokens))
    assert list(model.stream_ids("a", 5)) == [65, 66]
    tokens = itertools.cycle([65, 66, 0])
    assert list(model.stream_ids("a", 5, stop_at_end=False)) == [65, 66, 0, 65, 66]


def test_a_prompt_of_any_length_is_read_by_pieces(model: PackedModel, monkeypatch) -> None:
    prompt = [1 + i % 250 for i in range(23)]
    whole = list(model.stream_ids(prompt, 5, temperature=0))
    monkeypatch.setattr("questlm.inference.engine._PREFILL_TOKENS", 5)
    assert list(model.stream_ids(prompt, 5, temperature=0)) == whole


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_k": 0},
        {"top_p": 0.0}, {"top_p": 1.5}, {"max_new_tokens": 0}, {"seed": -1}, {"seed": 2**63},
        {"prompt": [257]}, {"prompt": [-1]}, {"prompt": "a\ud800"},
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("method", ["generate", "stream", "stream_ids"])
def test_arguments_out_of_range_are_refused_at_once(model: PackedModel, options, method: str) -> None:
    with pytest.raises(ConfigError):
        getattr(model, method)(**{"prompt": "a"} | options)


def test_device_and_dtype_are_checked(folder) -> None:
    with pytest.raises(ConfigError, match="dtype"):
        questlm.load(folder, dtype=torch.float16)
    with pytest.raises(ConfigError, match="device = 'tpu9'"):
        questlm.load(folder, device="tpu9")


def test_without_a_tokenizer_only_ids_work(tmp_path) -> None:
    pack(questlm.prepare(Llama(CONFIG).initialize(0), QuantSpec()), tmp_path / "a")
    model = questlm.load(tmp_path / "a")
    assert len(list(model.stream_ids([1], 4))) == 4
    for call in (lambda: model.generate("a"), lambda: model.generate([1]), lambda: model.encode("a")):
        with pytest.raises(ConfigError, match="without a tokenizer"):
            call()
    with pytest.raises(ConfigError, match="prompt is empty"):
        model.stream_ids([])


def test_logits_that_overflow_are_an_error_not_noise(tmp_path) -> None:
    model = questlm.prepare(Llama(CONFIG).initialize(0), QuantSpec())
    with torch.no_grad():
        model.norm.weight.fill_(3e38)
        model.lm_head.weight.fill_(3e38)
    pack(model, tmp_path / "a")
    with pytest.raises(ArtifactError, match="not finite"):
        list(questlm.load(tmp_path / "a").stream_ids([1], 4))


TEXTS = ["naïve 日本語 🙂🙃 end", "🙂", "a\ufffdb", "日", "e\u0301 🏳️‍🌈"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("split", [0, 1, 2])
def test_a_character_of_several_tokens_comes_whole(tokenizer_json: str, text: str, split: int) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    prompt = tokenizer.encode("é: ").ids
    ids = tokenizer.encode(text).ids
    pieces = list(decode_stream(tokenizer, prompt + ids[:split], ids[split:]))
    assert text.endswith("".join(pieces))
    if split == 0:
        assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in pieces)
    if text.isascii():
        assert len(pieces) == len(text)


def test_an_unfinished_character_is_shown_in_the_end(tokenizer_json: str) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    ids = tokenizer.encode("a🙂").ids[:-1]
    assert list(decode_stream(tokenizer, [], ids)) == ["a", "\ufffd"]
