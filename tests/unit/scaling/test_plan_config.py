"""The settings of a planned run are those of the model, width and data that the plan chose."""

from __future__ import annotations

from questlm.config import load_config, to_yaml
from questlm.scaling import LawFit
from questlm.scaling.limits import Limits
from questlm.scaling.plan import make_plan
from questlm.scaling.plan_config import run_config


def test_every_choice_of_a_plan_is_a_run_of_it(published_fit: LawFit, tmp_path) -> None:
    limits = Limits(memory=50e6, tokens=2e9, vocab_size=1024, embeddings="int8", tied_head=True)
    choices = make_plan(published_fit, limits).choices
    assert len({choice.group for choice in choices}) > 2
    for choice in choices:
        config = run_config(choice, limits)
        assert config.model.block_parameters == choice.model.block_parameters
        assert (config.model.tied_head, config.data.vocab_size) == (True, 1024)
        assert config.quant == choice.quant
        assert config.token_budget() == 2_000_000_000
        (tmp_path / "plan.yaml").write_text(to_yaml(config), encoding="utf-8")
        assert load_config(file=tmp_path / "plan.yaml") == config
