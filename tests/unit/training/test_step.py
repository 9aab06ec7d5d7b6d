"""One optimizer step: micro-batches, cached weights, and when steps are recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch

from questlm.config import RunConfig
from questlm.errors import ConfigError
from questlm.training.build import build_model
from questlm.training.optim import make_optimizer
from questlm.training.recipes import active_recipes
from questlm.training.step import TrainStep, should_record

Settings = Callable[..., RunConfig]
CPU = torch.device("cpu")


def _step(config: RunConfig) -> tuple[torch.nn.Module, TrainStep]:
    model = build_model(config)
    return model, TrainStep(model, model, make_optimizer(model, config.train), config.train, CPU)


def _settings(tiny_settings: Settings, micro: int | None, **train: object) -> RunConfig:
    return tiny_settings(model={"vocab_size": 64}, train={"micro_batch_size": micro, "batch_size": 8, **train})


def test_micro_batches_learn_what_the_whole_batch_learns(tiny_settings: Settings) -> None:
    batch = torch.randint(64, (2, 8, 32))
    whole, split = (_step(_settings(tiny_settings, micro)) for micro in (None, 2))
    results = [step(batch[0], batch[1], 1e-3) for _, step in (whole, split)]
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    for (name, a), b in zip(whole[0].named_parameters(), split[0].parameters(), strict=True):
        # AdamW's first step is the gradient's sign, so a gradient that is nearly zero may go either way.
        assert float((a - b).abs().gt(1e-5).float().mean()) < 1e-2, name


def test_loss_and_norm_are_those_of_the_step(tiny_settings: Settings) -> None:
    model, step = _step(_settings(tiny_settings, None))
    batch = torch.randint(64, (2, 8, 32))
    expected = step.forward(batch[0], batch[1]).loss
    expected.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    loss, found = step(batch[0], batch[1], 1e-3)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(found, norm, rtol=1e-4, atol=0)
    assert all(p.grad is None for p in model.parameters())


def test_a_rate_of_zero_changes_nothing(tiny_settings: Settings) -> None:
    model, step = _step(_settings(tiny_settings, 4))
    before = [p.detach().clone() for p in model.parameters()]
    step(*torch.randint(64, (2, 8, 32)), 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_recording_is_refused_where_it_cannot_be(tiny_settings: Settings) -> None:
    config = _settings(tiny_settings, None, cuda_graphs="on")
    model = build_model(config)
    optimizer = make_optimizer(model, config.train)
    with pytest.raises(ConfigError, match=r"train\.cuda_graphs is 'on', but the device is cpu; use 'auto' or 'off'"):
        should_record(config.train, model, optimizer, [], "none", CPU)
    with pytest.raises(ConfigError, match=r"several processes train by train\.parallel=ddp"):
        should_record(config.train, model, optimizer, [], "ddp", torch.device("cuda"))
    assert should_record(config.train, model, optimizer, [], "replicas", torch.device("cuda"))
    auto = _settings(tiny_settings, None)
    assert not should_record(auto.train, model, optimizer, [], "none", CPU)
    assert should_record(auto.train, model, optimizer, [], "none", torch.device("cuda"))
    assert not should_record(
        _settings(tiny_settings, None, cuda_graphs="off").train, model, optimizer, [], "none", torch.device("cuda")
    )


def test_steps_that_are_not_alike_are_not_recorded(tiny_settings: Settings) -> None:
    config = tiny_settings(model={"vocab_size": 64}, quant={"gradual": 0.5}, train={"cuda_graphs": "on"})
    model = build_model(config)
    with pytest.raises(ConfigError, match="faded in"):
        should_record(
            config.train,
            model,
            make_optimizer(model, config.train),
            active_recipes(config.train, model),
            "none",
            torch.device("cuda"),
        )


def test_an_optimizer_says_whether_its_step_can_be_recorded(
    tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _settings(tiny_settings, None, cuda_graphs="on", optimizer="muon")
    model = build_model(config)
    optimizer = make_optimizer(model, config.train)
    assert should_record(config.train, model, optimizer, [], "none", torch.device("cuda"))
    monkeypatch.setattr(optimizer.parts[-1], "recordable", False)
    with pytest.raises(ConfigError, match="a step of the optimizer 'muon' cannot be recorded"):
        should_record(config.train, model, optimizer, [], "none", torch.device("cuda"))


def test_a_step_with_a_teacher_is_not_recorded(tiny_settings: Settings) -> None:
    config = _settings(tiny_settings, None, cuda_graphs="on", distill="teacher")
    model = build_model(config)
    recipes, optimizer = active_recipes(config.train, model), make_optimizer(model, config.train)
    with pytest.raises(ConfigError, match="a teacher computes beside the model"):
        should_record(config.train, model, optimizer, recipes, "none", torch.device("cuda"))


class _Recording:
    """Stands for a CUDA graph: it was recorded from a step, and its replays are counted."""

    made: ClassVar[list[_Recording]] = []

    def __init__(self, step: Any, inputs: torch.Tensor, targets: torch.Tensor, device: torch.device) -> None:
        self.step, self.replays = step, 0
        self.made.append(self)

    def __call__(self, inputs: torch.Tensor, targets: torch.Tensor) -> Any:
        self.replays += 1
        return self.step(inputs, targets)


def test_a_step_that_changes_is_recorded_again(tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("questlm.training.step._Recorded", _Recording)
    monkeypatch.setattr(_Recording, "made", [])
    config = _settings(tiny_settings, None)
    model = build_model(config)
    optimizer = make_optimizer(model, config.train)
    step = TrainStep(model, model, optimizer, config.train, CPU, record=True)
    batch = torch.randint(64, (2, 8, 32))
    for index in range(12):
        if index == 6:
            step.record_again()
        step(batch[0], batch[1], 1e-3)
    assert [each.replays for each in _Recording.made] == [3, 3]  # three plain steps before each


def test_a_step_that_is_not_recorded_stays_so(tiny_settings: Settings) -> None:
    _, step = _step(_settings(tiny_settings, None))
    step.record_again()
    batch = torch.randint(64, (2, 8, 32))
    for _ in range(5):
        step(batch[0], batch[1], 1e-3)  # a recording on a CPU would fail
