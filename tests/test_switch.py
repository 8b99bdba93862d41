"""The switch inside a few-step model's schedule: the first steps small, the others large, no step more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers as d
import pytest
import torch

from conftest import make_fast, make_pipe
from mrflow import Defaults, Draft, MrFlow, Plan, Recipe
from mrflow.errors import PlanError, RequestError
from mrflow.sampling import add_noise, make_noise, refine_generators
from support.families import CASES, SIZE
from support.families import make_fast as make_family
from support.lakonlab_stand_in import FlowMapSDEScheduler
from support.pairing import Seen, native_pairing
from support.pictures import bytes_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__:DeprecationWarning")
HALF = (SIZE[0] // 2, SIZE[1] // 2)


def switched(steps: int, of: int, **more: Any) -> Plan:
    return Plan(steps=steps, refine_steps=of - steps, refine_sigma="switch", **more)


@pytest.mark.parametrize("name", CASES)
def test_both_passes_are_one_schedule_of_the_pipelines_own(name: str) -> None:
    """Held against native runs of diffusers' pipeline at both sizes, step by step."""
    case, pipe = CASES[name], CASES[name].make()
    small, large = (native_pairing(case, pipe, size, 5) for size in (HALF, SIZE))
    plan = switched(3, 5, **{**case.plan, "true_cfg_scale": 1.0})
    fast, first = make_family(case, pipe), Seen(pipe)
    draft = fast.draft("a red boat", seed=7, plan=plan)[0]
    first.stop()
    backbone, rest = fast.model.backbone, Seen(pipe)
    pixels = fast.finish(draft, output_type="pt", keep_upscaled=True)
    assert first.timesteps == pytest.approx(small.timesteps[:3], rel=1e-6)
    assert rest.timesteps == pytest.approx(large.timesteps[3:], rel=1e-6)
    with torch.no_grad():
        if name != "Flux2KleinPipeline":  # whose pipeline gives the latents another form than it takes
            velocity = case.flow(first.hidden[-1], first.given[-1], small.sigmas[2])
            clean = first.hidden[-1] - small.sigmas[2] * velocity
            assert (backbone.decode(pipe, clean, *HALF) - draft.pixels).abs().max() < 1e-5
        latents = backbone.encode(pipe, fast.model.upscaler.upscale(draft.pixels, *SIZE))
        noised = add_noise(latents, large.sigmas[3], make_noise(latents.shape[1:], refine_generators([7])))
        assert torch.allclose(rest.hidden[0], case.pack(pipe, noised), atol=1e-5)
        velocity = case.flow(rest.hidden[0], rest.given[0], large.sigmas[3])
        assert torch.allclose(
            rest.hidden[1], rest.hidden[0] + (large.sigmas[4] - large.sigmas[3]) * velocity, atol=1e-5
        )
    assert pixels.images.isfinite().all()


PLAN = switched(2, 3, true_cfg_scale=1.0)


@pytest.mark.parametrize("solver", ["own", "unipc", "dpm++2m"])
def test_every_solver_ends_the_small_steps_at_the_models_own_clean_estimate(solver: str) -> None:
    fast = make_fast(make_pipe())
    small, seen = native_pairing(CASES["FluxPipeline"], fast.pipe, (32, 32), 6), Seen(fast.pipe)
    draft = fast.draft("a boat", seed=3, plan=switched(4, 6, true_cfg_scale=1.0, solver=solver))[0]
    clean = seen.hidden[-1] - small.sigmas[3] * seen.given[-1]
    with torch.no_grad():
        made = fast.model.backbone.decode(fast.pipe, clean, 32, 32)
    assert len(seen.timesteps) == 4
    assert (draft.pixels - made).abs().max() < 1e-5


@pytest.mark.parametrize("solver", ["unipc", "dpm++2m"])
def test_a_solver_of_second_order_begins_anew_with_the_large_steps(solver: str) -> None:
    """Three large steps: the first is Euler's, for nothing is remembered; the second is not."""
    fast = make_fast(make_pipe())
    large = native_pairing(CASES["FluxPipeline"], fast.pipe, (64, 64), 6)
    draft = fast.draft("a boat", seed=3, plan=switched(3, 6, true_cfg_scale=1.0, solver=solver))[0]
    seen, (_, _, _, s, t, u) = Seen(fast.pipe), large.sigmas
    fast.finish(draft)
    first, second = (seen.hidden[k] + (b - a) * seen.given[k] for k, (a, b) in enumerate([(s, t), (t, u)]))
    assert torch.allclose(seen.hidden[1], first, atol=1e-5)
    assert not torch.allclose(seen.hidden[2], second, atol=1e-4)


def test_guidance_stops_among_the_small_steps() -> None:
    fast = make_fast(make_pipe())
    seen, plain = Seen(fast.pipe), native_pairing(CASES["FluxPipeline"], fast.pipe, (32, 32), 4)
    plan = switched(3, 4, true_cfg_scale=2.0, guidance_stop=0.34, refine_true_cfg_scale=1.0)
    fast.draft("a boat", seed=3, plan=plan)
    first, second, third = plain.timesteps[:3]
    assert seen.timesteps[-5:] == [first, first, second, second, third]  # guided ones are two calls
    fast.draft("a boat", seed=3, plan=plan)
    assert fast("a boat", seed=3, plan=plan).recipes[0].plan.label == "3/4"
    assert len(seen.timesteps) == 4 * 2 + 3 * 5 + 1


def test_shares_of_the_way_are_those_of_the_whole_schedule(fast: MrFlow) -> None:
    """A callback counts as it does natively where the schedule is one; shares are taken from the same way."""
    told: list[int] = []

    def watch(_pipe: Any, index: int, _timestep: Any, _tensors: Any) -> dict[str, Any]:
        told.append(index)
        return {}

    fast("a boat", seed=3, plan=PLAN, callback_on_step_end=watch)
    assert told == [0, 1, 0]


def test_a_draft_goes_through_a_file_and_its_recipe_says_that_it_ended_early(fast: MrFlow, tmp_path: Path) -> None:
    whole = fast("a boat", seed=3, plan=PLAN)
    draft = fast.draft("a boat", seed=3, plan=PLAN)[0]
    assert bytes_of(fast.finish(draft).images) == bytes_of(whole.images)
    loaded = Draft.from_image(draft.save(tmp_path / "draft.png"))
    assert (loaded.base_recipe.plan.label, loaded.base_recipe.plan.refine_sigma) == ("2/3", "switch")
    for picture in (whole, fast.finish(loaded), fast.finish(draft, scale=3), fast.finish(loaded, plan=PLAN)):
        recipe = Recipe.from_json(picture.recipes[0].to_json())
        assert recipe.plan.switches
        assert bytes_of(fast.replay(recipe).images) == bytes_of(picture.images)


@pytest.mark.parametrize("more", [{"refine_sigma": 0.2}, {"plan": "12+1"}, {"refine_steps": 2}, {"plan": "4/8"}])
def test_such_a_draft_keeps_to_its_schedule(fast: MrFlow, more: dict[str, Any]) -> None:
    draft = fast.draft("a boat", seed=3, plan=PLAN)[0]
    with pytest.raises((PlanError, RequestError), match="2/3"):
        fast.finish(draft, **more)


def test_a_finished_schedule_and_a_given_image_have_nothing_to_go_on_with(fast: MrFlow) -> None:
    draft = fast.draft("a boat", seed=3, plan="2+1")[0]
    with pytest.raises(PlanError, match=r"The draft is of the plan 2\+1, and 2/3 is asked for"):
        fast.finish(draft, refine_sigma="switch")
    with pytest.raises(PlanError, match=r"a given image has none\. Give refine_sigma a number"):
        fast.enhance(torch.full((1, 3, 32, 32), 0.5), "a boat", plan="3/4")


def test_the_plain_pipeline_takes_its_steps_whatever_switches(fast: MrFlow) -> None:
    own = fast.native("a boat", steps=2, seed=3, true_cfg_scale=1.0)
    given = fast.native("a boat", steps=2, seed=3, plan=PLAN)
    assert bytes_of(own.images) == bytes_of(given.images)
    assert own.recipes[0].plan == given.recipes[0].plan


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (d.FlowMatchLCMScheduler(), "FlowMatchLCMScheduler, which draws noise anew"),
        (d.FlowMatchHeunDiscreteScheduler(), "FlowMatchHeunDiscreteScheduler, which asks the model twice"),
        (FlowMapSDEScheduler(), "FlowMapSDEScheduler, whose network was taught each of its steps whole"),
        (d.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "with stochastic_sampling, which may do"),
    ],
    ids=["lcm", "heun", "pi-Flow", "stochastic"],
)
def test_schedules_that_cannot_be_cut_are_refused_with_their_reason(scheduler: Any, reason: str) -> None:
    fast = make_fast(make_pipe())
    fast.pipe.scheduler = scheduler
    with pytest.raises(PlanError, match=reason):
        fast("a boat", seed=3, plan="3/4")
    fast.model.resolve_plan("4+1")


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_batch_equals_its_pictures_made_alone(batch_size: int) -> None:
    fast = make_fast(make_pipe(), batch_size=batch_size)
    both = fast(["a boat", "a red boat"], seed=[3, 4], plan=PLAN, output_type="pt").images
    for k, prompt in enumerate(("a boat", "a red boat")):
        alone = fast(prompt, seed=3 + k, plan=PLAN, output_type="pt").images[0]
        assert (both[k] - alone).abs().max() < 2e-5


def test_the_native_noise_goes_with_it(fast: MrFlow) -> None:
    own, native = (fast("a boat", seed=3, plan=PLAN, noise=each).images[0].tobytes() for each in ("own", "native"))
    assert own != native


def test_a_sigma_beside_it_is_refused_at_every_door(fast: MrFlow) -> None:
    from mrflow.bench.methods import read_methods
    from mrflow.cli.planning import PlanOptions

    for ask in (
        lambda: fast("a boat", plan="3/4", refine_sigma=0.2),
        lambda: PlanOptions(plan="3/4", refine_sigma=0.2),
        lambda: read_methods(["3/4:refine_sigma=0.2"]),
        lambda: MrFlow(fast.pipe, "bicubic", defaults=Defaults(plan=PLAN))("a boat", refine_sigma=0.2),
    ):
        with pytest.raises((PlanError, RequestError), match=r"refine_sigma is 0\.2 and the plan"):
            ask()
    (method,) = read_methods(["3/4:refine_sigma=switch,solver=unipc"])
    assert method.plan == switched(3, 4, solver="unipc")
    assert PlanOptions(plan="3/4", refine_sigma="switch").resolve(fast).label == "3/4"
