"""Methods, read from short texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mrflow import Defaults, MrFlow, Plan
from mrflow.bench.methods import Method, read_methods
from mrflow.bench.variants import with_model
from mrflow.errors import ModelError, PlanError, RequestError, UpscalerError
from mrflow.plan import ABOUT, written


def test_texts_become_methods():
    native, fewer, plan, changed = read_methods(["native", "native:25", "12+1", "4+2:scale=1.5,refine_sigma=0.2"])
    assert native == Method(name="native")
    assert (fewer.kind, fewer.steps) == ("native", 25)
    assert (plan.kind, plan.plan) == ("staged", Plan(steps=12))
    assert changed.plan == Plan(steps=4, refine_steps=2, scale=1.5, refine_sigma=0.2)
    (levels,) = read_methods(["4+1+2:scales=1.5+2,refine_sigma=0.2+auto"])
    assert levels.plan == Plan(steps=4, refine_steps=(1, 2), scales=(1.5, 2), refine_sigma=(0.2, "auto"))


def test_a_warm_up_takes_few_steps_of_the_same_kind():
    short = [method.shortened() for method in read_methods(["native", "native:1", "12+1:scale=4", "1+3"])]
    assert [method.steps for method in short[:2]] == [2, 1]
    assert [method.plan.label for method in short[2:]] == ["2+1", "1+3"]
    assert short[2].plan.scale == 4


@pytest.mark.parametrize("name", ABOUT)
def test_every_number_of_a_plan_can_be_said_in_a_text(name):
    about = ABOUT[name]
    value = about.choices[0] if about.choices else about.kind(0.5 * (about.low + min(about.high, 3)))
    value = (2.0, 1.5) if name == "scales" else value
    (method,) = read_methods([f"12+1:{name}={written(value)}"])
    assert getattr(method.plan, name) == value
    assert method.plan.to_dict() == Plan(**{"steps": 12, name: value}).to_dict()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "There is no plan ''"),
        ("quick", "There is no plan 'quick'"),
        ("native:", "a number of steps"),
        ("native:-1", "a number of steps"),
        ("native:0", "steps is 0"),
        ("12+1:", "has ''"),
        ("12+1:speed=2", "has 'speed'"),
        ("12+1:scale", "gives scale as ''"),
        ("12+1:refine_sigma=much", "gives refine_sigma as 'much'"),
        ("12+1:refine_sigma=nan", "must be finite"),
        ("12+1:steps=1.5", "gives steps as '1.5'"),
        ("12+1:scale=2,scale=3", "gives scale twice"),
    ],
)
def test_what_is_no_method_is_refused(text, words):
    with pytest.raises(PlanError, match=words.replace("+", r"\+")):
        read_methods([text])


def test_none_and_twice_are_refused():
    with pytest.raises(RequestError, match="0 methods"):
        read_methods([])
    with pytest.raises(RequestError, match="12\\+1 is given twice"):
        read_methods(["12+1", "native", "12+1"])


def test_variants_are_read():
    latent, unrefined, cached, native = read_methods(
        [
            "12+1:upscaler=latent",
            "8+0:upscaler=lanczos",
            "12+1:scale=1.5,cache=taylorseer@3",
            "native:cache=first-block@1",
        ]
    )
    assert (latent.upscaler, latent.refined, latent.plan) == ("latent", True, Plan(steps=12))
    assert (unrefined.upscaler, unrefined.refined, unrefined.plan.steps) == ("lanczos", False, 8)
    assert (cached.cache.kind, cached.plan.scale) == ("taylorseer", 1.5)
    assert (native.steps, native.cache.level) == (None, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("native:25,scale=2", "has 'scale'"),
        ("native:25,guidance_stop=2", "guidance_stop is 2.0"),
        ("native:25,solver=heun", "solver is 'heun'"),
        ("native:25,solver", "solver is ''"),
        ("12+1:solver=2", "solver is '2'"),
        ("native:cache=teacache@1", "no cache 'teacache'"),
        ("12+0:upscaler=latent", "want refining"),
        ("12+0:cache=", "no cache ''"),
        ("native:25,steps=30", "gives steps twice"),
    ],
)
def test_variants_that_are_none_are_refused(text, words):
    with pytest.raises(PlanError, match=words):
        read_methods([text])


def test_solvers_are_read_for_plans_and_for_the_plain_pipeline(fast: MrFlow):
    native, plan = read_methods(["native:4,solver=dpm++2m", "4+1:solver=unipc,refine_sigma=0.2"])
    assert (native.steps, native.solver, native.shortened().solver) == (4, "dpm++2m", "dpm++2m")
    assert plan.plan == Plan(steps=4, refine_sigma=0.2, solver="unipc")
    assert native.run(fast, prompt="a boat", seed=1).recipes[0].plan.solver == "dpm++2m"
    assert plan.run(fast, prompt="a boat", seed=1).recipes[0].plan.solver == "unipc"


def test_an_upscaler_that_is_not_there_is_refused():
    with pytest.raises(UpscalerError, match="no upscaler file"):
        read_methods(["12+1:upscaler=nowhere.pth"])


def test_the_plain_pipeline_is_guided_throughout_unless_asked(pipe: Any) -> None:
    defaults = Defaults(
        width=64, height=64, plan=Plan(true_cfg_scale=2.0, guidance_stop=0.5), max_sequence_length=16
    )
    fast = MrFlow(pipe, "bicubic", defaults=defaults)
    stops = [
        method.run(fast, prompt="a boat", seed=1).recipes[0].plan.guidance_stop
        for method in read_methods(["native:2", "native:2,guidance_stop=0.5", "2+1", "2+1:guidance_stop=1"])
    ]
    assert stops == [1.0, 0.5, 0.5, 1.0]


def test_another_model_runs_beside_the_first(fast: MrFlow, pipe: Any, tmp_path: Path) -> None:
    with torch.no_grad():
        pipe.transformer.proj_out.weight.neg_()
    folder = tmp_path / "other"
    pipe.save_pretrained(folder)
    with torch.no_grad():
        pipe.transformer.proj_out.weight.neg_()
    texts = ["native:2", f"native:2,model={folder}", "2+1", f"2+1:model={folder},upscaler=lanczos"]
    methods = read_methods(texts)
    assert [method.plain for method in methods] == [True, False, True, False]
    place = {"prompt": "a boat", "seed": 1, "width": 64, "height": 64}
    own, native, _, plan = (method.run(fast, **place) for method in methods)
    assert [made.recipes[0].model for made in (native, plan)] == ["other", "other"]
    assert own.recipes[0].model != "other"
    assert own.images[0].tobytes() != native.images[0].tobytes()
    alone = MrFlow.from_pretrained(folder).native(steps=2, plan=Plan(guidance_stop=None), **place)
    assert native.images[0].tobytes() == alone.images[0].tobytes()
    assert with_model(fast, str(folder)).pipe is with_model(fast, str(folder)).pipe


def test_a_model_that_is_none_is_refused_before_anything_is_made() -> None:
    with pytest.raises(ModelError, match="nowhere"):
        read_methods(["native", "4+1:model=nowhere"])
    assert read_methods(["4+1:model=vista-turbo"])[0].model == "vista-turbo"
