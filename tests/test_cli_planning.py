"""Sizes and plans from options."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import make_fast, make_pipe
from mrflow import Defaults, MrFlow, Plan
from mrflow.cli.planning import PlanOptions
from mrflow.errors import PlanError, RequestError


@pytest.mark.parametrize(
    "options",
    [{"plan": "best"}, {"steps": 0}, {"refine_sigma": 1.4}, {"scale": 0.5}, {"guidance": -1.0}, {"solver": "x"}],
)
def test_a_wrong_plan_is_refused_without_a_model(options):
    with pytest.raises(PlanError):
        PlanOptions(**options)


def test_without_options_the_plan_is_the_models_own(fast):
    assert PlanOptions().resolve(fast) == fast.model.defaults.plan


def test_options_change_the_named_plan(fast):
    plan = PlanOptions(plan="20+1", refine_sigma=0.2).resolve(fast)
    assert (plan.label, plan.refine_sigma) == ("20+1", 0.2)


@pytest.mark.parametrize(("embeds", "field"), [(True, "guidance_scale"), (False, "true_cfg_scale")])
def test_guidance_is_of_the_kind_that_the_checkpoint_takes(embeds, field):
    fast = make_fast(make_pipe(guidance_embeds=embeds))
    assert getattr(PlanOptions(plan="12+1", guidance=4.0).resolve(fast), field) == 4.0


def test_two_guidances_of_one_kind_are_refused(fast):
    with pytest.raises(RequestError, match="--true-cfg-scale"):
        PlanOptions(guidance=4.0, true_cfg_scale=3.0).resolve(fast)


def test_given():
    assert PlanOptions(steps=3, scale=2.0).given() == ["steps", "scale"]
    assert PlanOptions().given() == []


def test_the_plain_pipeline_is_guided_throughout_unless_asked(pipe: Any) -> None:
    fast = MrFlow(pipe, "bicubic", defaults=Defaults(plan=Plan(true_cfg_scale=2.0, guidance_stop=0.5)))
    assert PlanOptions().resolve(fast).guidance_stop == 0.5
    assert PlanOptions().resolve_native(fast).guidance_stop is None
    assert PlanOptions(guidance_stop=0.4).resolve_native(fast).guidance_stop == 0.4


def test_a_solver_is_the_drafts_and_the_plain_pipelines_if_asked_for(pipe: Any) -> None:
    fast = MrFlow(pipe, "bicubic", defaults=Defaults(plan=Plan(solver="dpm++2m")))
    assert PlanOptions().resolve(fast).solver == "dpm++2m"
    assert PlanOptions().resolve_native(fast).solver is None
    assert PlanOptions(solver="unipc").resolve(fast).solver == "unipc"
    assert PlanOptions(solver="unipc").resolve_native(fast).solver == "unipc"
