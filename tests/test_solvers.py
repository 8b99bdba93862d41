"""Solvers of second order in the draft: their order on a flow known in closed form, and parity on every family."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import wraps
from itertools import pairwise
from typing import Any

import diffusers as d
import pytest
import torch
from torch import Tensor

from conftest import make_fast, make_pipe
from mrflow import MrFlow, Plan
from mrflow.backbones import get_backbone
from mrflow.borrowing import borrowed, run_pipeline, settings
from mrflow.errors import BusyError, PlanError, RecipeError
from mrflow.plan import ABOUT
from mrflow.recipe import Recipe
from mrflow.sampling import draft_generators
from mrflow.schedulers import draft_scheduler, own_scheduler, take_head, take_tail, takes_solver
from support.families import CASES, SIZE
from support.families import make_fast as make_family
from support.lakonlab_stand_in import FlowMapSDEScheduler
from support.pipelines import state_of

# diffusers 0.42.1 warns of its own ChromaTransformer2DModel and PRXPipeline, NumPy of BriaPipeline and of solvers
pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`LoraLoaderMixin` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
each_solver = pytest.mark.parametrize("solver", ABOUT["solver"].choices[1:])
SCHEDULES: dict[str, dict[str, Any]] = {
    "by size": {},
    "shift 3": {"use_dynamic_shifting": False, "shift": 3.0},
    "to a terminal": {"shift_terminal": 0.02},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "500 training steps": {"num_train_timesteps": 500},
}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0}


class Gaussian:
    """A flow whose data are N(mean, width**2): its velocity, and where it leads, are known."""

    mean, width = 0.5, 2.0

    def velocity(self, x: Tensor, sigma: float) -> Tensor:
        alpha, y = 1 - sigma, x.double()
        variance = (alpha * self.width) ** 2 + sigma**2
        clean = self.mean + alpha * self.width**2 / variance * (y - alpha * self.mean)
        return ((y - clean) / sigma).to(x.dtype)

    def end(self, noise: Tensor) -> Tensor:
        return self.mean + self.width * noise


def error(solver: str | None, steps: int) -> float:
    """Return how far from where the flow leads the draft's scheduler ends, on average."""
    pipe, noise = make_pipe(use_dynamic_shifting=False), torch.linspace(-2, 2, 41)[:, None]
    scheduler = draft_scheduler(pipe, solver)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    x = noise
    for sigma, t in zip(scheduler.sigmas.tolist(), scheduler.timesteps, strict=False):
        x = scheduler.step(Gaussian().velocity(x, sigma), t, x, return_dict=False)[0]
    return float((x - Gaussian().end(noise)).abs().mean())


@pytest.mark.parametrize(
    # DPM-Solver++'s error has a logarithm of the steps besides their square, for its last steps are never small
    ("solver", "low", "high"),
    [(None, 0.9, 1.1), ("dpm++2m", 1.65, 2.2), ("unipc", 1.85, 2.3)],
)
def test_the_order_of_convergence(solver: str | None, low: float, high: float) -> None:
    errors = [error(solver, steps) for steps in (32, 64, 128)]
    assert all(low < math.log2(more / less) < high for more, less in pairwise(errors)), errors


@each_solver
def test_twelve_steps_are_nearer_than_twice_as_many_of_euler(solver: str) -> None:
    assert error(solver, 12) < error(None, 24)


@each_solver
@pytest.mark.parametrize("options", SCHEDULES.values(), ids=SCHEDULES)
def test_sigmas_and_timesteps_are_the_pipelines_own(solver: str, options: dict[str, Any]) -> None:
    pipe = make_pipe(**options)
    own, solved = own_scheduler(pipe), draft_scheduler(pipe, solver)
    for each in (own, solved):
        each.set_timesteps(sigmas=torch.linspace(1, 0.2, 5).tolist(), device="cpu", mu=0.8)
        each.set_begin_index(0)
    assert torch.equal(own.sigmas, solved.sigmas)
    assert torch.equal(own.timesteps, solved.timesteps)
    assert (type(solved), solved.config, solved.order) == (type(own), own.config, 1)


class ByHand(d.FlowMatchEulerDiscreteScheduler):
    """The solvers written out, in float64, over the sigmas of the class it is made from, with alpha = 1 - sigma.

    dpm++2m: arXiv 2211.01095, algorithm 2. unipc: arXiv 2302.04867, algorithms 1 and 2 with B(h) = e^h - 1.
    """

    solver = ""

    @wraps(d.FlowMatchEulerDiscreteScheduler.set_timesteps)  # pipelines look its arguments up
    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        d.FlowMatchEulerDiscreteScheduler.set_timesteps(self, *args, **kwargs)
        self.past: list[tuple[Tensor, float, float]] = []  # clean pictures, their lambdas, the order of the step
        self.last: Tensor | None = None

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        return sample  # BriaPipeline asks

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **options: Any
    ) -> Any:
        known, now = len(self.past), [float(sigma) for sigma in self.sigmas]
        if self.solver == "unipc":
            now[0] = min(now[0], float(torch.tensor(1 - 1e-6)))
        sigma, following = now[known], now[known + 1]
        x = sample.double()
        clean, here = x - sigma * model_output.double(), level(sigma)
        if self.solver == "unipc" and self.past:
            x = self.corrected(clean, here, sigma, now[known - 1])
        order = 1 if known == 0 or following == 0 else 2
        made = clean
        if following > 0:
            guess, ahead = clean, level(following) - here
            if order == 2 and math.isfinite(self.past[-1][1]):
                guess = clean + (clean - self.past[-1][0]) * ahead / (here - self.past[-1][1]) / 2
            made = following / sigma * x - (1 - following) * math.expm1(-ahead) * guess
        self.past.append((clean, here, order))
        self.last = x
        made = made.to(model_output.dtype)
        return d.schedulers.scheduling_utils.SchedulerOutput(made) if return_dict else (made,)

    def corrected(self, clean: Tensor, here: float, sigma: float, before: float) -> Tensor:
        """Return the sample that was reached, corrected by what the model says there."""
        previous, level_then, order = self.past[-1]
        h = here - level_then
        shrink = math.expm1(-h)
        first = shrink / -h - 1
        if order == 1:
            change = 0.5 * (clean - previous)
        else:
            further, level_further, _ = self.past[-2]
            ratio = (level_further - level_then) / h
            system = torch.tensor([[1.0, 1.0], [ratio, 1.0]], dtype=torch.float64)
            wanted = torch.tensor([first, 2 * (first / -h - 0.5)], dtype=torch.float64) / shrink
            one, two = torch.linalg.solve(system, wanted).tolist()
            change = one * (further - previous) / ratio + two * (clean - previous)
        return sigma / before * self.last - (1 - sigma) * shrink * (previous + change)


def level(sigma: float) -> float:
    """Return the logarithm of signal over noise."""
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf


@pytest.mark.parametrize(
    ("solver", "name"),
    [*(("unipc", name) for name in CASES), ("dpm++2m", "FluxPipeline"), ("dpm++2m", "SanaPipeline")],
)
def test_the_draft_is_the_pipelines_with_the_solver_written_out(solver: str, name: str) -> None:
    case, pipe = CASES[name], CASES[name].make()
    plan = Plan(steps=5, solver=solver, noise="own", **case.plan)
    draft = make_family(case, pipe).draft("a red boat", seed=7, plan=plan)[0]
    pipe.scheduler = type("ByHand", (ByHand,), {"solver": solver}).from_config(pipe.scheduler.config)
    by_hand = case.run(pipe, (SIZE[0] // 2, SIZE[1] // 2), 5)
    assert torch.allclose(draft.pixels, by_hand.float(), atol=1e-5)


@each_solver
@pytest.mark.parametrize("name", ["FluxPipeline", "CogView4Pipeline", "PRXPipeline", "ErnieImagePipeline"])
def test_a_run_in_two_parts_is_the_run_in_one_bit_for_bit(name: str, solver: str) -> None:
    case, pipe = CASES[name], CASES[name].make()
    backbone, plan = get_backbone(name), make_family(case, pipe).model.resolve_plan(None)
    done: list[int] = []
    with borrowed(pipe), settings(pipe, backbone.settings(pipe, *SIZE)):
        rows = backbone.encode_prompts(pipe, ["a red boat"], [""], case.text_length)
        arguments = {
            **backbone.call_arguments(pipe, rows, plan.guidance_scale, plan.true_cfg_scale or 1.0),
            **backbone.draft_arguments(pipe, 5),
            "width": SIZE[0],
            "height": SIZE[1],
        }
        begin = {**arguments, "generator": draft_generators([7])}
        expected, _ = run_pipeline(pipe, {"scheduler": draft_scheduler(pipe, solver)}, begin, done.append)
        begin, scheduler = {**arguments, "generator": draft_generators([7])}, draft_scheduler(pipe, solver)
        take_head(scheduler, 3)
        _, held = run_pipeline(pipe, {"scheduler": scheduler}, begin, done.append)
        take_tail(scheduler)
        arguments["latents"] = backbone.resume(pipe, held, *SIZE)
        assert torch.equal(
            run_pipeline(pipe, {"scheduler": scheduler}, arguments, done.append, before=3)[0], expected
        )
    assert done == [1, 2, 3, 4, 5] * 2


@each_solver
def test_where_guidance_has_no_effect_neither_has_its_stop(solver: str) -> None:
    fast = make_fast(make_pipe())
    once, twice = (
        fast.draft(
            "a red boat",
            negative_prompt="a red boat",
            seed=1,
            plan=Plan(steps=5, true_cfg_scale=2.0, guidance_stop=stop, solver=solver),
        )[0]
        for stop in (1.0, 0.6)
    )
    assert torch.allclose(once.pixels, twice.pixels, atol=1e-5)


@each_solver
def test_a_batch_is_its_pictures_made_alone_and_the_pipeline_stays_as_it_was(solver: str) -> None:
    pipe, plan = make_pipe(), Plan(steps=5, solver=solver)
    fast, before = make_fast(pipe, batch_size=3), state_of(pipe)
    prompts = ["a red boat", "a big house at a lake", "a boat"]
    together = fast(prompts, seed=[1, 2, 3], plan=plan, num_images=1)
    for k, prompt in enumerate(prompts):
        alone = fast(prompt, seed=k + 1, plan=plan)
        assert torch.allclose(together.drafts[k].pixels, alone.drafts[0].pixels, atol=1e-5)

    def nested(_news: Any) -> None:
        with pytest.raises(BusyError):
            fast.draft("a boat", plan=plan)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fast.draft("a boat", plan=plan, callback=nested)
    assert state_of(pipe) == before


@pytest.mark.parametrize(
    ("solver", "own"), [("unipc", d.UniPCMultistepScheduler), ("dpm++2m", d.DPMSolverMultistepScheduler)]
)
def test_a_pipeline_that_has_the_solver_already_gives_the_same(solver: str, own: type) -> None:
    case, pipe = CASES["StableDiffusion3Pipeline"], CASES["StableDiffusion3Pipeline"].make()
    pipe.scheduler = own(**FLOW)
    fast = make_family(case, pipe)
    theirs, ours = (fast.draft("a boat", seed=1, plan=Plan(steps=4, solver=name))[0] for name in (None, solver))
    assert torch.allclose(theirs.pixels, ours.pixels, atol=1e-6)


@pytest.mark.parametrize("own", [d.UniPCMultistepScheduler, d.DPMSolverMultistepScheduler])
def test_a_solver_of_the_pipelines_own_is_not_misled_by_a_cut_either(own: type) -> None:
    case, pipe = CASES["StableDiffusion3Pipeline"], CASES["StableDiffusion3Pipeline"].make()
    pipe.scheduler = own(**FLOW)
    fast = make_family(case, pipe)
    once, twice = (
        fast.draft(
            "a boat",
            negative_prompt="a boat",
            seed=1,
            plan=Plan(steps=6, true_cfg_scale=2.0, guidance_stop=stop),
        )[0]
        for stop in (1.0, 0.5)
    )
    assert torch.allclose(once.pixels, twice.pixels, atol=1e-5)


@each_solver
def test_steps_are_reckoned_in_float32_and_come_back_as_they_came(solver: str) -> None:
    x = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    ends = []
    for dtype in (torch.bfloat16, torch.float32):
        scheduler = draft_scheduler(make_pipe(), solver)
        scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.5)
        steps = [scheduler.step((x * k).to(dtype), t, x.to(dtype)) for k, t in enumerate(scheduler.timesteps)]
        assert all(step.prev_sample.dtype == dtype for step in steps)
        ends.append(torch.stack([step.prev_sample for step in steps]))
    assert torch.equal(ends[0], ends[1].bfloat16())


class Own(d.FlowMatchEulerDiscreteScheduler):
    def step(self, *args: Any, **kwargs: Any) -> Any:
        return super().step(*args, **kwargs)


@pytest.mark.parametrize(
    "scheduler",
    [
        d.FlowMatchHeunDiscreteScheduler(),
        d.FlowMatchLCMScheduler(),
        d.DEISMultistepScheduler(**FLOW),
        d.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        d.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        FlowMapSDEScheduler(),
        Own(),
    ],
    ids=lambda each: type(each).__name__,
)
def test_schedulers_that_cannot_be_replaced_are_refused_before_any_work(scheduler: Any, events: Any) -> None:
    pipe, (seen, callback) = make_pipe(), events
    fast = make_fast(pipe)
    assert takes_solver(pipe)
    pipe.scheduler = scheduler
    assert not takes_solver(pipe)
    for verb in (fast, fast.draft, fast.native):
        with pytest.raises(PlanError, match=r"solver is 'unipc'; it can stand in for .* scheduler is .*Leave"):
            verb("a boat", seed=1, callback=callback, plan=Plan(solver="unipc"))
    assert seen == []


def test_a_models_default_solver_stands_in_for_plain_euler_unless_the_plan_says_otherwise() -> None:
    pipe = make_pipe()
    plain = make_fast(pipe)
    own = plain.model.defaults
    ours = make_fast(pipe, defaults=replace(own, plan=replace(own.plan, steps=4, solver="unipc")))

    def same(plan: Plan | None, other: Plan) -> bool:
        mine, theirs = (fast("a boat", seed=1, plan=each) for fast, each in ((ours, plan), (plain, other)))
        return mine.recipes[0].pixels_sha256 == theirs.recipes[0].pixels_sha256

    assert same(None, Plan(steps=4, solver="unipc"))
    assert same(Plan(steps=4), Plan(steps=4, solver="unipc"))
    assert same(Plan(steps=4, solver="own"), Plan(steps=4))
    assert not same(Plan(steps=4), Plan(steps=4))
    assert ours.model.resolve_plan(ours.model.resolve_plan("12+1")).solver == "unipc"
    assert ours.model.resolve_plan(ours.model.resolve_plan(Plan(solver="own"))).solver == "own"
    made = ours("a boat", seed=1, plan=Plan(steps=4, solver="own"))
    assert ours.replay(made.recipes[0]).recipes[0].pixels_sha256 == made.recipes[0].pixels_sha256
    native = ours.native("a boat", seed=1, steps=3).recipes[0].pixels_sha256
    assert native == plain.native("a boat", seed=1, steps=3).recipes[0].pixels_sha256

    pipe.scheduler = d.FlowMatchHeunDiscreteScheduler()  # which somebody chose
    assert ours.model.resolve_plan(None).solver is None
    assert ours.model.resolve_plan("12+1").solver is None
    assert ours.model.resolve_plan(Plan(solver="own")).solver == "own"


def test_sigmas_that_do_not_fall_are_refused() -> None:
    scheduler = draft_scheduler(make_pipe(use_dynamic_shifting=False), "unipc")
    with pytest.raises(PlanError, match="do not fall with every one of 3 steps"):
        scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.5])


@pytest.mark.parametrize("value", ["euler", "", "UNIPC", 2, True, ["unipc"], "x" * 1000])
def test_a_plan_takes_known_solvers_alone(value: Any) -> None:
    for make in (lambda: Plan(solver=value), lambda: Plan.from_dict({"solver": value})):
        with pytest.raises(PlanError, match=r"solver is .*; it must be dpm\+\+2m or unipc, or own for") as caught:
            make()
        assert len(str(caught.value)) < 300


def test_the_plain_pipeline_takes_one_where_the_plan_says_so_and_replays_it() -> None:
    fast = make_fast(make_pipe())
    own, solved = (fast.native("a boat", seed=1, steps=4, plan=Plan(solver=name)) for name in (None, "unipc"))
    assert [each.recipes[0].plan.solver for each in (own, solved)] == [None, "unipc"]
    assert own.recipes[0].pixels_sha256 != solved.recipes[0].pixels_sha256
    again = fast.replay(Recipe.from_json(solved.recipes[0].to_json()))
    assert again.recipes[0].pixels_sha256 == solved.recipes[0].pixels_sha256


def test_recipes_from_before_are_read_and_unknown_solvers_refused(fast: MrFlow) -> None:
    record = json.loads(fast.draft("a boat", seed=1).recipes[0].to_json())
    assert "solver" not in record["plan"]
    assert Recipe.from_json(json.dumps(record)).plan.solver is None
    record["plan"]["solver"] = "heun"
    with pytest.raises(RecipeError, match="solver is 'heun'"):
        Recipe.from_json(json.dumps(record))
