"""The planner keeps to its limits, finds the best of what they admit, and says where it does not know."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from questlm.config import QuantSpec, load_config
from questlm.errors import ConfigError
from questlm.scaling import Estimate, LawFit
from questlm.scaling.artifact_size import artifact_bytes
from questlm.scaling.hardware import find_gpu
from questlm.scaling.limits import Limits
from questlm.scaling.plan import best_shapes, make_plan, matching, plannable, spec_of_group
from questlm.scaling.plan_picture import draw_plan
from questlm.scaling.shapes import shapes, training_flops, training_settings
from questlm.scaling.size import PackedSizes

EFF = {"quest/w1a1/int1": 0.02, "quest/w2a2/int2": 0.16, "quest/w4a4/int4": 0.7, "quest/w8a8/int8": 1.0}


def law(spread: float = 0.0, **values: float) -> LawFit:
    """A law with known parameters whose draws scatter by `spread`."""
    truth = {"alpha": 0.3, "A": 300.0, "beta": 0.3, "B": 900.0, "E": 1.7} | values
    noise = np.random.default_rng(0).normal(size=(len(truth) + len(EFF), 50))
    draws = {
        name: value * np.exp(spread * each) for (name, value), each in zip({**truth, **EFF}.items(), noise, strict=True)
    }
    return LawFit(
        **truth,
        eff={group: Estimate(value, value / 2, value * 2) for group, value in EFF.items()},
        intervals={name: Estimate(value, value, value) for name, value in truth.items()},
        draws=draws,
        groups=dict.fromkeys(("bf16", *EFF), 4),
        range={"parameters": (1e7, 1e9), "tokens": (1e8, 1e11), "tokens_per_parameter": (10.0, 200.0)},
        residuals=[],
        rms_log_residual=0.002,
        n_runs=20,
        warnings=[],
    )


LAW = law()
_SIZES: dict[str, PackedSizes] = {}  # by settings: thousands of shapes are asked for again and again


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@example(memory=7.26953125, tokens=7.0, embeddings="bf16")  # a shape that is too large by 1,255 bytes
@given(memory=st.floats(6.5, 10), tokens=st.floats(7, 12), embeddings=st.sampled_from(["bf16", "int8"]))
def test_no_choice_breaks_the_limits_and_no_larger_shape_would_keep_them(
    memory: float, tokens: float, embeddings: str
) -> None:
    limits = Limits(memory=10**memory, tokens=10**tokens, vocab_size=1024, embeddings=embeddings, extrapolate=True)
    for choice in best_shapes(LAW, limits, plannable(LAW)):
        assert choice.bytes == artifact_bytes(choice.model, choice.quant) <= limits.memory
        larger = [model for model in shapes(1024) if model.block_parameters > choice.model.block_parameters]
        sizes = _SIZES.setdefault(choice.quant.model_dump_json(), PackedSizes(choice.quant))
        beside = (choice.bytes - sizes.of(choice.model)) / choice.model.layers  # config, tokenizer, header, manifest
        nearly = (model for model in larger if sizes.of(model) + 1.2 * beside * model.layers <= limits.memory)
        assert all(artifact_bytes(model, choice.quant) > limits.memory for model in nearly)


def test_the_best_is_the_best_of_all_candidates() -> None:
    limits = Limits(flops=1e19, vocab_size=1024, extrapolate=True)
    best = make_plan(LAW, limits).best
    for group in ("bf16", *EFF):
        for model in shapes(1024):
            tokens = 1e19 / training_flops(model)
            assert LAW.predict(model.block_parameters, tokens, group) >= best.loss
    assert best.tokens * training_flops(best.model) == pytest.approx(1e19)


def test_fewer_tokens_a_parameter_favour_fewer_bits_at_one_memory() -> None:
    def bits(ratio: float) -> int | str:
        return make_plan(LAW, Limits(memory=1e8, tokens_per_parameter=ratio, vocab_size=1024)).best.quant.weight_bits

    few, many = bits(1), bits(1000)
    assert isinstance(few, int) and isinstance(many, int) and few < many


def test_shapes_that_lack_tokens_compete_only_where_all_do() -> None:
    # This law promises the most to the largest model, whatever it is trained on.
    steep = law(alpha=0.6, A=60_000.0, beta=0.05, B=1.0)
    free = Limits(flops=1e19, vocab_size=1024)
    assert make_plan(steep, replace(free, extrapolate=True)).best.outside
    kept = make_plan(steep, free)
    assert all(choice.tokens / choice.model.block_parameters >= 10 * 0.99 for choice in kept.choices)
    forced = make_plan(steep, Limits(memory=1e8, tokens_per_parameter=2, vocab_size=1024))
    assert "2 tokens per parameter is below 10" in forced.notes[0] and "widened" in forced.notes[0]


def test_intervals_hold_spread_and_scatter_and_widen_outside() -> None:
    limits = Limits(memory=1e8, tokens=5e9, vocab_size=1024)
    exact, spread = make_plan(LAW, limits).best, make_plan(law(0.01), limits).best
    assert exact.high / exact.loss == pytest.approx(math.exp(1.96 * 0.002)) and not exact.outside
    assert spread.high - spread.low > 2 * (exact.high - exact.low)
    far = make_plan(LAW, replace(limits, tokens=1e13)).best  # two decades beyond the tokens, and tokens a parameter
    assert math.log(far.high / far.loss) > 3 * 1.96 * 0.002
    assert {"1e+13 tokens is above 1e+11"} <= set(far.outside)


def test_shares_of_the_draws_are_of_the_choices() -> None:
    choices = make_plan(law(0.3), Limits(memory=1e8, tokens=5e9, vocab_size=1024)).choices
    assert sum(choice.wins for choice in choices) == pytest.approx(1)
    assert sum(choice.wins > 0 for choice in choices) > 1
    notes = make_plan(law(0.3), Limits(memory=1e8, tokens=5e9, vocab_size=1024)).notes
    assert any("does not tell the best apart" in note for note in notes)


def test_latency_counts_what_is_read_for_a_token() -> None:
    limits = Limits(latency=1e-3, bandwidth=1e11, tokens=1e10, vocab_size=32_000, tokenizer=0)
    for choice in make_plan(LAW, limits).choices:
        table = 32_000 * choice.model.hidden * 2
        assert choice.bytes - table <= 1e8 + 1e5 < choice.bytes + 0.2e8  # names and config are not read for a token


def test_gpu_hours_are_tokens_at_measured_speed() -> None:
    gpu = find_gpu("h100")
    flops, speed = gpu.speeds["w4a4"][0]
    assert gpu.tokens_per_second(np.array([flops]), "w4a4")[0] == pytest.approx(speed)
    assert gpu.unmeasured(flops, "w4a4") is None
    assert "not measured" in str(gpu.unmeasured(flops, "w4a16"))
    assert "no model of this size" in str(gpu.unmeasured(flops * 1000, "w4a4"))
    assert gpu.unmeasured(5.3e9, "w4a4") is None and "no model of this size" in str(gpu.unmeasured(5.3e9, "w1a1"))
    beyond = gpu.tokens_per_second(np.array([flops * 1e6, flops * 2e6]), "bf16")
    assert beyond[0] == pytest.approx(2 * beyond[1])  # the same operations a second
    best = make_plan(LAW, Limits(gpu_hours=2, gpu=gpu)).best
    precision = "bf16" if best.group == "bf16" else best.group.split("/")[1]
    rate = gpu.tokens_per_second(np.array([float(training_flops(best.model))]), precision)[0]
    assert best.tokens == pytest.approx(7200 * rate)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(memory=1e8), "none given"),
        (Limits(memory=1e8, tokens=1e9, flops=1e18), "--tokens and --flops given"),
        (Limits(tokens=1e9), "the largest model is the best"),
        (Limits(latency=1e-3, tokens=1e9), "--bandwidth"),
        (Limits(gpu_hours=1.0), "--gpu h100"),
        (Limits(memory=1e8, tokens=1e9, bandwidth=1e9), "--bandwidth is for"),
        (Limits(memory=1e8, tokens=1e9, gpu=find_gpu("h100")), "--gpu is for"),
        (Limits(memory=1e3, tokens=1e9), "no model keeps to these limits"),
    ],
)
def test_limits_that_make_no_question_are_refused(limits: Limits, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_plan(LAW, limits)


def test_groups_are_settings() -> None:
    assert spec_of_group("bf16", "int8") == QuantSpec(weight_bits=16, act_bits=16, embeddings="bf16")
    assert spec_of_group("quest/w4a16/int4", "int8") == QuantSpec(weight_bits=4, act_bits=16, embeddings="int8")
    assert spec_of_group("lsq/wta8/ternary", "bf16").weight_bits == "ternary"
    assert spec_of_group("quest/w4a4/int4-2:4", "bf16").format == "int-2:4"
    assert spec_of_group("quest/w3a3/lloydmax3", "bf16").format == "lloydmax"
    for group in ("quest", "quest/w4/int4", "quest/w4a4/int4-mixed"):
        with pytest.raises(ConfigError):
            spec_of_group(group, "bf16")


def test_precisions_are_named_by_their_parts() -> None:
    groups = plannable(LAW)
    assert matching(groups, ["w4a4", "bf16"]) == ["bf16", "quest/w4a4/int4"]
    assert len(matching(groups, ["quest"])) == len(EFF)
    with pytest.raises(ConfigError, match="Did you mean 'w4a4'"):
        matching(groups, ["w4a5"])


def test_training_settings_are_the_presets() -> None:
    published = {"seq_len": 512, "batch_size": 512}
    assert training_settings(30_482_560) == {"lr": pytest.approx(1.2e-3), **published}
    assert training_settings(822_151_168) == {"lr": pytest.approx(7.5e-5), **published}
    assert training_settings(10**12) == {"lr": pytest.approx(2e-5), **published}
    rates = [training_settings(10**power)["lr"] for power in (5, 6, 7, 8, 9)]
    assert rates == sorted(rates, reverse=True)
    assert training_settings(10**6)["batch_size"] == 8  # with the rates of small presets go their batches


def test_the_ends_of_the_list_are_said() -> None:
    smallest = artifact_bytes(shapes(300)[0], QuantSpec(weight_bits=1, act_bits=1, embeddings="int8"), tokenizer=0)
    for memory in (smallest + 500, 1e18):
        limits = Limits(memory=memory, tokens_per_parameter=100, vocab_size=300, embeddings="int8", tokenizer=0)
        assert any("end of the list" in note for note in make_plan(LAW, limits).notes)


def test_the_picture_names_the_groups(tmp_path: Path) -> None:
    limits = Limits(memory=1e8, tokens=5e9, vocab_size=1024)
    draw_plan(LAW, limits, make_plan(LAW, limits), tmp_path / "plan.svg")
    assert "quest/w4a4/int4" in (tmp_path / "plan.svg").read_text()


@pytest.mark.parametrize("name", ["125k", "250k"])
def test_the_narrowest_presets_are_among_the_shapes(name: str) -> None:
    model = load_config(name).model
    assert (model.layers, 64, 1, model.mlp_width) in {(m.layers, m.hidden, m.heads, m.mlp_width) for m in shapes(2048)}


def test_a_model_of_width_64_is_planned_where_no_wider_one_fits() -> None:
    limits = Limits(vocab_size=2048, embeddings="int8", memory=4.5e5, tokens=1e8, extrapolate=True)
    assert make_plan(LAW, limits).best.model.hidden == 64
