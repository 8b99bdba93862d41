import json
from dataclasses import FrozenInstanceError, replace

import pytest

from mrflow.errors import PlanError
from mrflow.plan import PRESETS, Plan, get_plan


def test_presets_name_their_source_and_whose_numbers_they_are() -> None:
    assert list(PRESETS)[:7] == ["12+1", "20+1", "fast", "fastest", "4+1", "2k", "4k"]
    for name, preset in PRESETS.items():
        assert preset.name == name
        ours = name.removesuffix("-published")
        assert ours.rpartition("-")[2] == (name if name in ("fast", "fastest", "2k", "4k") else preset.plan.label)
        assert (preset.plan.refine_sigma in (0.12, "switch", 0.16, (0.12, 0.16))) is (ours == name)
        assert preset.plan.switches is ("/" in name)
        undistilled = ours in (
            "12+1",
            "20+1",
            "fast",
            "fastest",
            "4+1",
            "2k",
            "4k",
            "piflow-4+1",
            "klein-base-12+1",
        )
        assert preset.plan.true_cfg_scale == (None if undistilled else 1.0)
        assert any(
            word in preset.source for word in ("arXiv 26", "diffusers", "huggingface.co", "docs/results.md")
        )


def test_published_sigmas_are_what_the_published_scripts_really_mix_in() -> None:
    """Their nominal values through diffusers' own schedulers, as their pipelines set them."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    def effective(nominal: float, mu: float | None = None, **scheduler: object) -> float:
        made = FlowMatchEulerDiscreteScheduler(**scheduler)
        made.set_timesteps(sigmas=[nominal], mu=mu)
        return float(made.sigmas[0])

    mu = compute_empirical_mu(1024 * 1024 // 16**2, num_steps=1)
    expected = {
        "klein-base-12+1-published": effective(0.12, mu, use_dynamic_shifting=True),
        "klein-4+1-published": effective(0.25, mu, use_dynamic_shifting=True),
        "piflow-4+1-published": effective(0.25, shift=3.2),
        "z-image-turbo-8+1-published": effective(1 / 9, shift=3.0),
    }
    for name, sigma in expected.items():
        assert PRESETS[name].plan.refine_sigma == pytest.approx(sigma, abs=6e-4), name
    assert effective(0.10, mu, use_dynamic_shifting=True) == pytest.approx(0.528, abs=6e-4)


def test_presets_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        PRESETS["9+9"] = PRESETS["12+1"]  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        PRESETS["12+1"].plan.steps = 1  # type: ignore[misc]


def test_get_plan_takes_presets_any_pair_plans_and_none() -> None:
    assert get_plan("20+1") == PRESETS["20+1"].plan
    assert get_plan(" 16 + 2 ") == Plan(steps=16, refine_steps=2)
    assert get_plan(None).label == "12+1"
    plan = Plan(scale=1.5)
    assert get_plan(plan) is plan


def test_steps_of_one_schedule_are_written_as_a_share_of_it() -> None:
    plan = get_plan(" 3 / 4 ")
    assert plan == Plan(steps=3, refine_steps=1, refine_sigma="switch")
    assert (plan.label, plan.schedule_steps, get_plan(plan.label)) == ("3/4", 4, plan)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert (get_plan("3+1").schedule_steps, Plan(refine_sigma="auto").label) == (3, "12+1")
    for text, instead in (("4/4", "3/4"), ("5/4", "3/4"), ("1/1", "1/2")):
        with pytest.raises(PlanError, match=f"The plan is {text}; .* Try {instead}"):
            get_plan(text)
    with pytest.raises(PlanError, match="steps is 0"):
        get_plan("0/4")


def test_a_sigma_beside_a_schedules_own_is_refused() -> None:
    assert get_plan("3/4").changed(steps=2, refine_sigma="switch").label == "2/3"
    with pytest.raises(PlanError, match=r"refine_sigma is 0\.2 and the plan 3/4 .*such as 4\+1"):
        get_plan("3/4").changed(refine_sigma=0.2)


def test_the_native_plan_has_no_use_for_words() -> None:
    assert {Plan(refine_sigma=word).native(4).refine_sigma for word in ("auto", "switch", 0.3)} == {0.12, 0.3}


@pytest.mark.parametrize(
    "name", ["quick", "", "12", "3/4/5", "/4", "3-4", "12+", "+1", "a+b", "-3+1", "12+1+1+1+1+1", "\uff11\uff12+1"]
)
def test_an_unknown_plan_names_the_known_ones(name: str) -> None:
    with pytest.raises(PlanError, match=r"Known: 12\+1, 20\+1, fast, fastest, 4\+1.*such as '3/4'"):
        get_plan(name)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("refine_sigma", 1.4, "refine_sigma is 1.4; it must lie between 0 and 1. Try 0.12."),
        ("refine_sigma", 0, "between 0 and 1"),
        ("refine_sigma", 1, "between 0 and 1"),
        ("refine_sigma", float("nan"), "finite"),
        ("refine_sigma", "0.12", "it must be a number or auto or switch. Try 0.12."),
        ("refine_sigma", True, "a number"),
        ("steps", 0, "between 1 and 1000"),
        ("steps", 1001, "between 1 and 1000"),
        ("steps", 12.0, "whole number"),
        ("steps", True, "whole number"),
        ("steps", "12", "whole number"),
        ("refine_steps", 0, "between 1 and 1000"),
        ("scale", 0.5, "between 1 and 8"),
        ("scale", 100, "between 1 and 8"),
        ("scale", 10**400, "between 1 and 8"),
        ("scale", float("inf"), "finite"),
        ("scale", 1.4142, "ratio of small whole numbers"),
        ("guidance_scale", -1, "between 0 and 100"),
        ("true_cfg_scale", float("inf"), "finite"),
        ("refine_true_cfg_scale", "3", "a number"),
        ("guidance_stop", 0, "above 0"),
        ("guidance_stop", 1.01, "at most 1"),
        ("guidance_stop", float("nan"), "finite"),
    ],
)
def test_numbers_out_of_range_say_the_value_and_the_rule(field: str, value: object, words: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan(**{field: value})
    assert str(caught.value).startswith(f"{field} is ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "stop", "guided"),
    [(12, None, 12), (12, 1.0, 12), (12, 0.5, 6), (12, 0.51, 7), (1, 0.1, 1), (10, 0.7, 7)],
)
def test_guidance_stops_after_a_whole_step(steps: int, stop: float | None, guided: int) -> None:
    assert Plan(steps=steps, guidance_stop=stop).guided_steps == guided


def test_the_native_plan_is_the_plain_pipelines_unless_asked() -> None:
    plan = Plan(true_cfg_scale=3.0, refine_true_cfg_scale=1.0, guidance_stop=0.33, solver="unipc")
    plain = replace(plan, steps=50, refine_true_cfg_scale=None, guidance_stop=1.0, solver=None)
    assert plan.native(50) == replace(plain, noise="own")
    assert plan.native(9, guidance_stop=0.5, solver="own").guided_steps == 5
    with pytest.raises(PlanError, match="guidance_stop is 0"):
        plan.native(9, guidance_stop=0.0)


def test_a_plan_survives_json() -> None:
    plan = Plan(steps=7, scale=1.5, true_cfg_scale=3.0)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_ratio_typed_with_few_digits_is_meant_exactly() -> None:
    assert Plan(scale=1.333).ratio == Plan(scale=4 / 3).ratio


@pytest.mark.parametrize("data", [{"speed": 9}, [], "12+1", {"steps": None}])
def test_from_dict_refuses_what_is_no_plan(data: object) -> None:
    with pytest.raises(PlanError):
        Plan.from_dict(data)  # type: ignore[arg-type]


def test_replace_checks_again() -> None:
    with pytest.raises(PlanError):
        replace(get_plan("12+1"), refine_sigma=2.0)
