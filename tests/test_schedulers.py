"""The draft takes the caller's scheduler, the refine pass plain Euler; what follows no flow is refused."""

from typing import Any

import diffusers as d
import pytest
import torch

from conftest import make_fast, make_pipe
from mrflow import Defaults, MrFlow, Plan
from mrflow.errors import RequestError
from mrflow.progress import Progress
from mrflow.sampling import draft_generators
from mrflow.schedulers import exact_scheduler, own_scheduler
from support.families import CASES
from support.pipelines import own_call

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0}
OTHERS = {
    "unipc": lambda: d.UniPCMultistepScheduler(**FLOW),
    "dpm": lambda: d.DPMSolverMultistepScheduler(**FLOW),
    "heun": lambda: d.FlowMatchHeunDiscreteScheduler(shift=2.0),
}


def test_own_scheduler_is_an_equal_copy() -> None:
    pipe = make_pipe(use_dynamic_shifting=False, shift=3.0)
    pipe.scheduler.set_shift(2.0)  # set after construction, so not in the configuration
    copy = own_scheduler(pipe)
    assert copy is not pipe.scheduler
    assert copy.shift == 2.0
    assert dict(copy.config) == dict(pipe.scheduler.config)
    before = pipe.scheduler.sigmas.clone()
    copy.set_timesteps(3)
    assert torch.equal(pipe.scheduler.sigmas, before)


@pytest.mark.parametrize("asked", [{"sigmas": [0.9, 0.5], "mu": 2.3}, {"timesteps": [1.0]}, {}], ids=str)
def test_exact_scheduler_takes_its_sigmas_whatever_is_asked(asked: dict[str, object]) -> None:
    pipe = make_pipe(shift_terminal=0.1, use_karras_sigmas=True, num_train_timesteps=500)
    scheduler = exact_scheduler(pipe, [0.12, 0.06, 0.0])
    scheduler.set_timesteps(7, device="cpu", **asked)
    assert scheduler.sigmas.tolist() == torch.tensor([0.12, 0.06, 0.0]).tolist()
    assert scheduler.timesteps.tolist() == pytest.approx([60, 30])


# diffusers 0.42.1, scheduling_dpmsolver_multistep.py, hands NumPy a tensor the old way
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("name", OTHERS)
def test_other_schedulers_begin_from_the_native_noise_too(name: str) -> None:
    """Pooled by hand from what the pipeline draws at full size, and handed to its own call."""
    pipe = CASES["StableDiffusion3Pipeline"].make()
    sides = [side // pipe.vae_scale_factor for side in (64, 128)]
    full = torch.randn(1, pipe.transformer.config.in_channels, *sides, generator=draft_generators([7])[0])
    pipe.scheduler = OTHERS[name]()
    pooled = torch.nn.functional.avg_pool2d(full, 2) * 2
    by_hand = own_call(pipe, width=64, steps=3, guidance_scale=1.0, latents=pooled)
    pipe.scheduler = OTHERS[name]()
    fast = MrFlow(pipe, "bicubic", defaults=Defaults(max_sequence_length=16))
    plan = Plan(steps=3, true_cfg_scale=1.0)
    assert torch.equal(fast.draft("a red boat", width=128, height=64, plan=plan, seed=7)[0].pixels, by_hand)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("name", OTHERS)
def test_other_solvers_draft_as_the_pipeline_would_and_the_refine_pass_is_plain_euler(name: str) -> None:
    pipe = CASES["StableDiffusion3Pipeline"].make()
    pipe.scheduler = OTHERS[name]()
    before = (dict(pipe.scheduler.config), pipe.scheduler.timesteps.tolist())
    by_hand = own_call(pipe, width=64, steps=3, guidance_scale=1.0)
    pipe.scheduler = OTHERS[name]()
    seen: list[float] = []
    news: list[Progress] = []
    hook = lambda _module, _args, kwargs: seen.append(float(kwargs["timestep"][0]) / 1000)  # noqa: E731
    pipe.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    fast = MrFlow(pipe, "bicubic", defaults=Defaults(max_sequence_length=16))
    plan = Plan(steps=3, refine_steps=2, refine_sigma=0.3, true_cfg_scale=1.0, noise="own")
    result = fast("a red boat", width=128, height=64, plan=plan, seed=7, callback=news.append)
    assert torch.equal(result.drafts[0].pixels, by_hand)
    assert seen[-2:] == pytest.approx([0.3, 0.15], abs=1e-6)
    assert [n.step for n in news if n.stage == "draft"] == [0, 1, 2, 3]
    assert result.recipes[0].conditions == {"scheduler": type(pipe.scheduler).__name__}
    assert (dict(pipe.scheduler.config), pipe.scheduler.timesteps.tolist()) == before


def test_heun_passes_over_the_sigmas_that_flux_hands_it() -> None:
    pipe = make_pipe()
    pipe.scheduler = OTHERS["heun"]()
    seen: list[float] = []
    hook = lambda _module, _args, kwargs: seen.append(float(kwargs["timestep"][0]))  # noqa: E731
    pipe.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    make_fast(pipe).draft("a boat", seed=1, plan=Plan(steps=3, true_cfg_scale=1.0))
    assert len(seen) == 5  # two calls a step, and one for the last
    assert seen[0] == 1.0
    with pytest.raises(ValueError, match="sigmas"):
        pipe("a boat", width=32, height=32, num_inference_steps=2, max_sequence_length=16)  # by itself it refuses


@pytest.mark.parametrize(
    "scheduler",
    [
        d.EulerDiscreteScheduler(),
        d.DDIMScheduler(),
        d.UniPCMultistepScheduler(),
        d.DPMSolverMultistepScheduler(use_flow_sigmas=True),
        d.DPMSolverMultistepScheduler(prediction_type="flow_prediction"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_schedulers_of_other_laws_are_refused_before_any_work(pipe: Any, scheduler: Any, events: Any) -> None:
    seen, callback = events
    fast = make_fast(pipe)
    pipe.scheduler = scheduler
    for verb in (fast, fast.draft, fast.native):
        with pytest.raises(RequestError, match=r"The scheduler is .*; flow matching mixes .*use_flow_sigmas=True"):
            verb("a boat", seed=1, callback=callback)
    assert seen == []
    assert pipe.scheduler is scheduler
