"""Every family's transformer is told the time that goes with the noise: the oracle is the pipeline's own run.

Most give their transformer sigma, a thousand times sigma, or one less sigma. CogView4 gives it the time before
the shift, which is another one at each size.
"""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from mrflow import Plan
from mrflow.backbones import get_backbone
from support.families import CASES, SIZE, make_fast
from support.pairing import Seen, native_pairing

# diffusers 0.42.1 warns of its own ChromaTransformer2DModel and PRXPipeline, NumPy of BriaPipeline and of solvers
pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`LoraLoaderMixin` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
each_family = pytest.mark.parametrize("name", CASES)
HALF = (SIZE[0] // 2, SIZE[1] // 2)
SCHEDULES: dict[str, tuple[dict[str, Any], tuple[int, int], float]] = {  # options, size, share of all timesteps
    "by size": ({}, SIZE, 2e-6),
    "by another size": ({}, (64, 96), 2e-6),
    "shift 3": ({"use_dynamic_shifting": False, "shift": 3.0}, SIZE, 2e-6),
    "linear shift": ({"time_shift_type": "linear", "base_shift": 0.25, "max_shift": 0.75}, SIZE, 2e-6),
    "500 training steps": ({"num_train_timesteps": 500}, SIZE, 2e-6),
    # these sigmas go by the number of the step, and CogView4 cuts its timesteps to whole ones
    "karras to a terminal": ({"use_karras_sigmas": True, "shift_terminal": 0.02}, SIZE, 1e-3),
}


def refined(name: str, pipe: Any, size: tuple[int, int], plan: Plan) -> list[float]:
    """Return the timesteps that the transformer is given in a refine pass."""
    image, seen = torch.rand(1, 3, *HALF[::-1], generator=torch.Generator().manual_seed(3)), Seen(pipe)
    fast = make_fast(CASES[name], pipe)
    fast.enhance(image, "a red boat", plan=plan, width=size[0], height=size[1], seed=7)
    seen.stop()
    return seen.steps


@each_family
@pytest.mark.parametrize(("options", "size", "share"), SCHEDULES.values(), ids=SCHEDULES)
def test_refining_at_a_sigma_of_the_pipelines_is_told_as_the_pipeline_tells_it(
    name: str, options: dict[str, Any], size: tuple[int, int], share: float
) -> None:
    case, pipe = CASES[name], CASES[name].make(**options)
    native = native_pairing(case, pipe, size, steps=8)
    pairs = [pair for pair in zip(native.sigmas, native.timesteps, strict=True) if 0.01 < pair[0] < 0.95]
    assert len(pairs) > 2
    for sigma, timestep in (pairs[0], pairs[len(pairs) // 2], pairs[-1]):
        given = refined(name, pipe, size, Plan(refine_sigma=sigma, **case.plan))
        assert given == pytest.approx([timestep], abs=share * max(native.timesteps))


@each_family
def test_refining_in_steps_is_told_what_lies_between(name: str) -> None:
    case, pipe = CASES[name], CASES[name].make()
    native = native_pairing(case, pipe, SIZE, steps=20)
    given = refined(name, pipe, SIZE, Plan(refine_sigma=0.5, refine_steps=4, **case.plan))
    expected = [native.timestep(sigma) for sigma in (0.5, 0.375, 0.25, 0.125)]
    assert given == pytest.approx(expected, abs=native.slack)


@each_family
@pytest.mark.parametrize("stop", [1.0, 0.6], ids=["guided throughout", "guidance stops"])
@pytest.mark.parametrize("solver", ["own", "unipc", "dpm++2m"])
def test_a_draft_is_told_as_the_pipeline_tells_it(name: str, solver: str, stop: float) -> None:
    case, pipe = CASES[name], CASES[name].make()
    native = native_pairing(case, pipe, HALF, steps=5)
    seen = Seen(pipe)
    make_fast(case, pipe).draft(
        "a red boat", seed=7, plan=Plan(steps=5, solver=solver, guidance_stop=stop, **case.plan)
    )
    assert seen.steps == native.timesteps


@pytest.mark.parametrize(
    ("side", "sigma", "timestep"), [(512, 0.1808, 112), (512, 0.334, 223), (1024, 0.12, 40), (1024, 0.5, 235)]
)
def test_cogview4_refines_large_pictures_early_in_its_time(side: int, sigma: float, timestep: float) -> None:
    """With the scheduler of THUDM/CogView4-6B; figures of native runs at these sizes."""
    case = CASES["CogView4Pipeline"]
    pipe = case.make(time_shift_type="linear", base_shift=0.25, max_shift=0.75)
    given = get_backbone("CogView4Pipeline").timesteps(pipe, [sigma], side, side)
    assert given == pytest.approx([timestep], abs=0.6)


def test_a_scheduler_that_takes_no_timesteps_has_no_pairing_of_its_own() -> None:
    pipe = CASES["CogView4Pipeline"].make()
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    assert get_backbone("CogView4Pipeline").timesteps(pipe, [0.3], *SIZE) is None
    assert refined("CogView4Pipeline", pipe, SIZE, Plan(refine_sigma=0.3, true_cfg_scale=1.0)) == [300.0]
