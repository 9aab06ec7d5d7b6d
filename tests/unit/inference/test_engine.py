from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch

import questlm
from questlm.config import GenerationOptions, ModelConfig, QuantSpec
from questlm.errors import ArtifactError, ConfigError
from questlm.export.pack import pack
from questlm.inference import PackedModel, engine
from questlm.inference.sampling import Sampler
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


@pytest.mark.slow
def test_a_packed_model_runs_without_the_training_code_and_torchs_compiler(folder) -> None:
    script = (
        "import sys, questlm\n"
        "text = questlm.load(sys.argv[1]).generate('ab', questlm.GenerationOptions(max_new_tokens=3))\n"
        "assert isinstance(text, str)\n"
        "others = ('questlm.quant', 'questlm.training', 'questlm.data', 'torch._dynamo', 'sympy')\n"
        "print([m for m in sys.modules if m.startswith(others)])\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.slow
def test_a_text_that_is_left_unfinished_ends_quietly_with_the_program(folder) -> None:
    script = (
        "import sys, questlm\n"
        "pieces = questlm.load(sys.argv[1]).stream_ids([7], questlm.GenerationOptions(stop_at_end=False))\n"
        "next(pieces)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert run.stderr == ""


def test_it_says_what_it_is(model: PackedModel, folder) -> None:
    assert model.config == CONFIG
    assert model.training == {"val_loss": 5.5}
    assert model.bytes == sum(file.stat().st_size for file in folder.iterdir() if file.name != "README.md")
    assert model.decode(model.encode("def naïve(): 日本")) == "def naïve(): 日本"


def options(count: int, **more) -> GenerationOptions:
    return GenerationOptions(max_new_tokens=count, **more)


def greedy(count: int, **more) -> GenerationOptions:
    return options(count, temperature=0, **more)


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_the_pieces_join_to_the_whole(model: PackedModel, temperature: float) -> None:
    how = options(40, temperature=temperature, seed=3, top_k=None)
    whole = model.generate("x =", how)
    assert "".join(model.stream("x =", how)) == whole
    assert model.decode(list(model.stream_ids("x =", how))) == whole


def test_greedy_takes_the_likeliest_token_each_time(model: PackedModel) -> None:
    ids = list(model.stream_ids([7, 8], greedy(10, stop_at_end=False)))
    known = [7, 8]
    for token in ids:
        assert token == int(model.logits(torch.tensor([known]))[0, -1].argmax())
        known.append(token)
    assert ids == list(model.stream_ids([7, 8], options(10, temperature=3.0, top_k=1, stop_at_end=False)))


def test_a_seed_repeats_and_another_differs(model: PackedModel) -> None:
    runs = [list(model.stream_ids("a", options(30, temperature=2.0, seed=seed))) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert model.generate("a", options(30, temperature=2.0)) != model.generate("a", options(30, temperature=2.0))


def test_sampling_does_not_touch_the_global_generator(model: PackedModel) -> None:
    before = torch.random.get_rng_state()
    model.generate("a", options(5))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_empty_prompt_starts_a_document(model: PackedModel) -> None:
    assert model.generate("", greedy(10)) == model.generate([], greedy(10)) == model.generate([0], greedy(10))


def draw_in_turn(model: PackedModel, monkeypatch, *texts: str) -> None:
    """Let the model choose the letters of `texts`, one text for each sequence of a batch; NUL is the end of text."""
    ids = {letter: model.encode(letter)[0] for text in texts for letter in text} | {"\0": 0}
    steps = itertools.cycle(zip(*texts, strict=True))
    monkeypatch.setattr(
        Sampler, "draw", lambda self, _: torch.tensor([ids[letter] for letter in next(steps)])[self._rows]
    )


def test_generation_stops_at_the_end_of_text(model: PackedModel, monkeypatch) -> None:
    a, b, c, d = model.encode("ABCD")
    draw_in_turn(model, monkeypatch, "AB\0")
    assert list(model.stream_ids("a", options(5))) == [a, b]
    draw_in_turn(model, monkeypatch, "AB\0")
    assert list(model.stream_ids("a", options(5, stop_at_end=False))) == [a, b, 0, a, b]
    draw_in_turn(model, monkeypatch, "AB\0A", "A\0BB", "ABCD")
    assert model.generate_ids(["a", "b", "c"], options(4)) == [[a, b], [a], [a, b, c, d]]


def test_no_step_is_computed_that_nobody_wants(model: PackedModel, monkeypatch) -> None:
    steps = []
    next_logits = model._next_logits
    monkeypatch.setattr(model, "_next_logits", lambda *inputs: steps.append(inputs) or next_logits(*inputs))
    draw_in_turn(model, monkeypatch, "AB\0A", "A\0BB")
    model.generate_ids(["a", "b"], options(1000))
    assert [len(ids) for ids, *_ in steps] == [2, 2, 1]  # the prompts, A A, and B alone


def test_a_high_limit_takes_no_memory_for_text_that_ends_early(model: PackedModel, monkeypatch) -> None:
    a, b = model.encode("AB")
    draw_in_turn(model, monkeypatch, "AB\0", "B\0A")
    assert model.generate_ids(["a", "b"], options(2**31)) == [[a, b], [b]]  # their keys and values would take 1 TiB


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_text_goes_on_where_the_cache_has_to_grow(model: PackedModel, monkeypatch, temperature: float) -> None:
    how, prompts = options(20, temperature=temperature, seed=1, stop_at_end=False), [[7, 8, 9], [5]]
    expected = model.generate_ids(prompts, how)
    monkeypatch.setattr(engine, "_FIRST_ROOM", 1)
    assert model.generate_ids(prompts, how) == expected


@pytest.mark.parametrize("prompt", [[257], [-1], "a\ud800"], ids=repr)
@pytest.mark.parametrize("method", ["generate", "stream", "stream_ids", "generate_ids"])
def test_prompts_out_of_range_are_refused_at_once(model: PackedModel, prompt, method: str) -> None:
    with pytest.raises(ConfigError):
        getattr(model, method)(prompt)


def test_stop_strings_end_the_text_of_each_sequence(model: PackedModel, monkeypatch) -> None:
    draw_in_turn(model, monkeypatch, "one, two", "a, b, c.", "nothing!", "end, \0\0\0")
    texts = model.generate(["x"] * 4, options(8, stop=(", ", "c.")))
    assert texts == ["one", "a", "nothing!", "end"]
    draw_in_turn(model, monkeypatch, "one, two")
    assert list(model.stream("x", options(8, stop=(", ",)))) == ["o", "n", "e"]
    draw_in_turn(model, monkeypatch, "one, two")
    assert (
        "".join(model.stream("x", options(4, stop=(", ",)))) == "one,"
    )  # a beginning of a stop string is text in the end


@pytest.mark.parametrize("method", ["generate_ids", "stream_ids"])
def test_stop_strings_are_refused_for_token_ids(model: PackedModel, method: str) -> None:
    with pytest.raises(ConfigError, match="is found in text, not in token ids"):
        getattr(model, method)([7], options(5, stop=("x",)))


def test_a_list_of_prompts_gives_a_list(model: PackedModel) -> None:
    texts = model.generate(["x =", "", "def"], greedy(6))
    assert texts == [model.generate(prompt, greedy(6)) for prompt in ("x =", "", "def")]
    assert model.generate(["x ="], greedy(6)) == texts[:1]
    assert model.generate([[7, 8], [9]], greedy(6)) == [
        model.generate([7, 8], greedy(6)),
        model.generate([9], greedy(6)),
    ]


def test_ids_are_generated_for_one_prompt_or_several(model: PackedModel) -> None:
    one, other = (list(model.stream_ids(prompt, greedy(6))) for prompt in ("x =", "def"))
    assert model.generate_ids("x =", greedy(6)) == model.generate_ids(model.encode("x ="), greedy(6)) == one
    assert model.generate_ids(["x =", "def"], greedy(6)) == [one, other]


def test_device_and_dtype_are_checked(folder) -> None:
    with pytest.raises(ConfigError, match="dtype"):
        questlm.load(folder, dtype=torch.float16)
    with pytest.raises(ConfigError, match=r"cache_dtype = torch\.float16; .* torch\.int8$"):
        questlm.load(folder, cache_dtype=torch.float16)
    with pytest.raises(ConfigError, match="device = 'tpu9'"):
        questlm.load(folder, device="tpu9")


def test_without_a_tokenizer_only_ids_work(tmp_path) -> None:
    pack(questlm.prepare(Llama(CONFIG).initialize(0), QuantSpec()), tmp_path / "a")
    model = questlm.load(tmp_path / "a")
    assert len(list(model.stream_ids([1], options(4)))) == 4
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
        list(questlm.load(tmp_path / "a").stream_ids([1], options(4)))


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_and_values_may_be_kept_in_fewer_bits(folder, dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    model = questlm.load(folder, dtype=dtype, cache_dtype=cache_dtype)
    ids = list(model.stream_ids("x =", greedy(8, stop_at_end=False)))
    sequence = torch.tensor([model.encode("x =") + ids[:-1]])
    exact, rounded = (each.logits(sequence)[0, -len(ids) :] for each in (questlm.load(folder), model))
    assert not torch.equal(exact, rounded.float())
    chosen = exact.gather(1, torch.tensor(ids)[:, None])[:, 0]
    assert (exact.max(-1).values - chosen <= 0.1 * exact.abs().max()).all()  # the likeliest, up to the rounding
