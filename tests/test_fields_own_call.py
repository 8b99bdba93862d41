"""A call as diffusers' documentation has it, with nothing changed but the object, is a call of ours."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from conftest import make_fast, make_pipe
from mrflow import Defaults, MrFlow, Plan
from mrflow.errors import MrFlowWarning, RequestError, StoppedError
from mrflow.sampling import draft_generators
from support.pipelines import own_call


def over(pipe: Any) -> MrFlow:
    """Return MrFlow over a pipeline that asks for the small pictures of these tests where a call says no size."""
    pipe.set_progress_bar_config(disable=True)
    return MrFlow(pipe, "bicubic", defaults=Defaults(width=64, height=64, max_sequence_length=16))


@pytest.fixture
def drafted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return what the pipeline is called with in each pass, which takes steps; a run without draws the noise."""
    from diffusers import FluxPipeline

    seen: list[dict[str, Any]] = []
    call = FluxPipeline.__call__

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = call(self, *args, **kwargs)
        if len(self.scheduler.timesteps):
            seen.append(kwargs)
        return made

    spy.__signature__ = __import__("inspect").signature(call)  # type: ignore[attr-defined]
    monkeypatch.setattr(FluxPipeline, "__call__", spy)
    return seen


def test_flux_dev_as_documented(drafted: list[dict[str, Any]]) -> None:
    """FluxPipeline's guide: docs/source/en/api/pipelines/flux.md, 'Guidance-distilled'."""
    pipe = over(make_pipe(guidance_embeds=True))
    out = pipe(
        prompt="a big boat",
        guidance_scale=3.5,
        height=96,
        width=176,
        num_inference_steps=5,
    ).images[0]
    assert out.size == (176, 96)
    assert (drafted[0]["num_inference_steps"], drafted[0]["guidance_scale"]) == (5, 3.5)
    assert (drafted[0]["width"], drafted[0]["height"]) == (96, 48)  # half of 176 is no whole number of patches
    assert drafted[1]["num_inference_steps"] == 1


def test_flux_schnell_as_documented(drafted: list[dict[str, Any]]) -> None:
    """The same page, 'Timestep-distilled', and the example in the pipeline's own docstring."""
    pipe = over(make_pipe())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = pipe(
            prompt="a big boat",
            guidance_scale=0.0,
            height=64,
            width=96,
            num_inference_steps=4,
            max_sequence_length=16,
        ).images[0]
        assert out.size == (96, 64)
        image = pipe("a big boat", num_inference_steps=4, guidance_scale=0.0).images[0]
    assert image.size == (64, 64)
    assert [each["num_inference_steps"] for each in drafted] == [4, 1, 4, 1]


@pytest.mark.parametrize("given", [{"num_inference_steps": 28}, {"steps": 50}])
def test_native_steps_left_in_a_call_are_warned_of(given: dict[str, int]) -> None:
    """FluxPipeline's own number, which existing code has: as many small steps, and the refine pass."""
    steps = next(iter(given.values()))
    pipe = over(make_pipe(guidance_embeds=True))
    with pytest.warns(MrFlowWarning, match=rf"is {steps}, .*The plan is {steps}\+1: .*this model's 12\+1"):
        pipe.draft("a big boat", **given)


@pytest.mark.parametrize(
    "given",
    [
        {"num_inference_steps": 27},
        {"plan": "28+1"},
        {"plan": Plan(steps=50)},
        {"plan": "50+1", "num_inference_steps": 50},
        {"refine_sigma": 0.2},
    ],
    ids=str,
)
def test_a_plan_that_is_named_is_meant(given: dict[str, Any]) -> None:
    over(make_pipe(guidance_embeds=True)).draft("a big boat", **given)
    assert over(make_pipe()).native("a big boat", num_inference_steps=28, width=32, height=32).images


def test_the_steps_of_a_distilled_checkpoint_are_its_plans() -> None:
    pipe = make_pipe()
    pipe.register_to_config(_name_or_path="black-forest-labs/FLUX.1-schnell")
    fast = MrFlow(pipe, "bicubic")
    assert (fast.model.defaults.plan.label, fast.model.defaults.native_steps) == ("4+1", 4)
    fast.draft("a boat", num_inference_steps=4, width=64, height=64, max_sequence_length=16)
    with pytest.warns(MrFlowWarning, match="this model's 4\\+1"):
        fast.draft("a boat", num_inference_steps=28, width=64, height=64, max_sequence_length=16)


def test_flux_true_cfg_with_a_negative_prompt(drafted: list[dict[str, Any]]) -> None:
    pipe = over(make_pipe(guidance_embeds=True))
    pipe("a big boat", negative_prompt="a red house", true_cfg_scale=4.0, num_inference_steps=2)
    assert [each["true_cfg_scale"] for each in drafted] == [4.0, 4.0]


def test_qwen_image_as_documented() -> None:
    """QwenImagePipeline's guide: docs/source/en/api/pipelines/qwenimage.md."""
    pipe = family("QwenImagePipeline")
    image = pipe(
        prompt="a red boat",
        negative_prompt=" ",
        width=128,
        height=64,
        num_inference_steps=3,
        true_cfg_scale=4.0,
        generator=torch.Generator(device="cpu").manual_seed(42),
    )
    assert image.images[0].size == (128, 64)
    recipe = image.recipes[0]
    assert (recipe.seed, recipe.plan.label, recipe.plan.true_cfg_scale, recipe.negative_prompt) == (
        42,
        "3+1",
        4,
        " ",
    )


def test_stable_diffusion_3_as_documented() -> None:
    """StableDiffusion3Pipeline's guide: its guidance_scale is classifier-free guidance."""
    pipe = family("StableDiffusion3Pipeline")
    result = pipe(
        "a red boat",
        negative_prompt="",
        num_inference_steps=3,
        height=64,
        width=64,
        guidance_scale=7.5,
    )
    recipe = result.recipes[0]
    assert (recipe.plan.true_cfg_scale, recipe.plan.guidance_scale, recipe.plan.steps) == (7.5, None, 3)


def test_guidance_means_what_it_means_to_the_pipeline() -> None:
    """Z-Image's 0 is no guidance, as others' 1 is."""
    result = family("ZImagePipeline")("a red boat", num_inference_steps=2, guidance_scale=0.0, seed=1)
    assert result.recipes[0].plan.true_cfg_scale == 1.0


def family(name: str) -> MrFlow:
    from support.families import CASES

    return over(CASES[name].make())


# --- what comes back ---


def test_outputs_are_those_of_diffusers(fast: MrFlow) -> None:
    given = {"num_images_per_prompt": 2, "num_inference_steps": 2}
    pil = fast("a red boat", seed=3, **given)
    pt = fast("a red boat", seed=3, output_type="pt", **given).images
    array = fast("a red boat", seed=3, output_type="np", **given).images
    assert isinstance(pt, torch.Tensor)
    assert isinstance(array, np.ndarray)
    assert (tuple(pt.shape), array.shape) == ((2, 3, 64, 64), (2, 64, 64, 3))
    assert np.array_equal(pt.permute(0, 2, 3, 1).numpy(), array)
    assert np.array_equal((array[1] * 255).round().astype("uint8"), np.asarray(pil.images[1]))
    (images,) = fast("a red boat", seed=3, return_dict=False, **given)  # type: ignore[misc]
    assert [image.tobytes() for image in images] == [image.tobytes() for image in pil.images]
    heard: list[Any] = []
    fast("a red boat", seed=3, output_type="pt", on_picture=lambda _, one: heard.append(one.images), **given)
    assert torch.equal(torch.cat(heard), pt)


def test_a_plan_s_fields_are_keywords_of_every_verb(fast: MrFlow) -> None:
    whole = fast("a boat", seed=1, plan=Plan(steps=2, refine_sigma=0.3, true_cfg_scale=2.0))
    assert fast("a boat", seed=1, steps=2, refine_sigma=0.3).images[0].tobytes() == whole.images[0].tobytes()
    assert fast("a boat", seed=1, plan="2+1", refine_sigma=0.3).images[0].tobytes() == whole.images[0].tobytes()
    draft = fast.draft("a boat", seed=1, steps=2)[0]
    assert fast.finish(draft, refine_sigma=0.3).images[0].tobytes() == whole.images[0].tobytes()
    assert fast.native("a boat", seed=1, num_inference_steps=2).recipes[0].plan.steps == 2
    assert fast.enhance(draft.image, "a boat", seed=1, scale=3).images[0].size == (96, 96)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"plan": "4+1", "steps": 5}, "steps is 5 and the plan says 4"),
        ({"plan": "4+1", "num_inference_steps": 5}, "steps is 5 and the plan says 4"),
        ({"plan": Plan(refine_sigma=0.2), "refine_sigma": 0.3}, "refine_sigma is 0.3 and the plan says 0.2"),
        ({"num_images": 2, "num_images_per_prompt": 3}, "num_images is 2 and num_images_per_prompt is 3"),
        ({"seed": 3, "generator": torch.Generator().manual_seed(4)}, "seed is 3 and generator"),
    ],
    ids=lambda value: re.sub(r"<.*?>", "", str(value)),
)
def test_the_same_thing_said_twice_is_refused(fast: MrFlow, given: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        fast("a boat", **given)


def test_the_same_thing_said_twice_alike_is_fine(fast: MrFlow) -> None:
    generator = torch.Generator().manual_seed(4)
    result = fast("a boat", plan="2+1", steps=2, num_inference_steps=2, seed=4, generator=generator)
    assert (result.recipes[0].seed, result.recipes[0].plan.steps) == (4, 2)


def test_a_generator_gives_the_draft_that_the_pipeline_would(fast: MrFlow) -> None:
    guided = {"negative_prompt": "", "true_cfg_scale": 2.0}
    plain = own_call(fast.pipe, steps=3, generator=torch.Generator().manual_seed(9), **guided)
    seeded = torch.Generator().manual_seed(9)
    assert torch.equal(fast.draft("a red boat", generator=seeded, noise="own")[0].pixels, plain)
    both = fast.draft("a red boat", generator=draft_generators([9, 4]))
    assert [draft.base_recipe.seed for draft in both] == [9, 4]


def test_a_longer_text_is_asked_for_and_recorded(fast: MrFlow) -> None:
    result = fast("a red boat", seed=1, max_sequence_length=8)
    assert result.recipes[0].max_sequence_length == 8
    assert fast.replay(result.recipes[0]).images[0].tobytes() == result.images[0].tobytes()


def test_a_size_need_only_fit_the_model(fast: MrFlow) -> None:
    result = fast("a red boat", seed=1, width=80, height=48)  # halves of 40 and 24 are no whole patches
    assert result.images[0].size == (80, 48)
    assert result.drafts[0].image.size == (48, 32)
    draft = type(result.drafts[0])
    loaded = draft(result.drafts[0].pixels, result.drafts[0].base_recipe)
    assert fast.finish(loaded).images[0].tobytes() == result.images[0].tobytes()
    assert fast.finish(loaded, refine_sigma=0.2).images[0].size == (80, 48)


def test_drafts_of_such_sizes_go_through_files(fast: MrFlow, tmp_path: Any) -> None:
    draft = fast.draft("a red boat", seed=1, width=80, height=48)[0]
    loaded = type(draft).from_image(draft.save(tmp_path / "draft.png"))
    assert fast.finish(loaded).images[0].size == (80, 48)


def test_from_pipe_takes_a_pipeline_or_another_of_ours(fast: MrFlow) -> None:
    again = MrFlow.from_pipe(fast, upscaler="bicubic")
    assert again.pipe is MrFlow.from_pipe(fast.pipe, upscaler="bicubic").pipe is fast.pipe


# --- in a notebook ---


def test_what_comes_back_fits_on_two_lines_and_shows_itself(fast: MrFlow) -> None:
    result = fast(["a red boat " * 4, "a blue house"], seed=3)
    for shown in (result, result.drafts[0], fast.draft("a boat", seed=1)):
        text = repr(shown)
        assert len(text) < 200
        assert "seed" in text
        assert shown._repr_png_().startswith(b"\x89PNG")
    assert fast("a boat", seed=1, output_type="pt")._repr_png_() is None


def test_one_bar_names_the_stage(capfd: Any) -> None:
    fast = make_fast(make_pipe())
    fast.pipe.set_progress_bar_config()
    fast(["a boat", "a red boat"], seed=1)
    shown = capfd.readouterr().err
    for words in ("encode the prompt", "draft 1/2", "draft 2/2", "refine 2/2", "decode 2/2"):
        assert words in shown
    assert shown.count("\n") == 1  # one bar, which stays
    fast.pipe.set_progress_bar_config(disable=True)
    fast("a boat", seed=1)
    assert capfd.readouterr().err == ""


# --- the pipeline's own stop signal ---


@pytest.mark.parametrize("guidance_stop", [1.0, 0.5])
@pytest.mark.parametrize("when", [1, 2, 5])
def test_the_pipelines_stop_signal_ends_the_call(fast: MrFlow, guidance_stop: float, when: int) -> None:
    seen: list[int] = []

    def stop(pipe: Any, step: int, _timestep: Any, _tensors: Any) -> dict[str, Any]:
        seen.append(step)
        pipe._interrupt = len(seen) == when
        return {}

    plan = Plan(steps=4, true_cfg_scale=2.0, guidance_stop=guidance_stop)
    with pytest.raises(StoppedError, match="_interrupt"):
        fast("a boat", seed=1, plan=plan, callback_on_step_end=stop)
    assert len(seen) == when
    assert fast("a boat", seed=1, plan=plan).images[0].size == (64, 64)  # and the next call goes through


def test_only_what_differs_is_in_the_recipe(fast: MrFlow) -> None:
    recipe = fast("a boat", seed=1).recipes[0]
    assert replace(recipe, plan=Plan()).plan.to_dict() == {"noise": "native"}


# --- what a verb has no use for ---


@pytest.mark.parametrize(
    ("verb", "given"),
    [
        ("finish", {"num_images_per_prompt": 3}),
        ("finish", {"generator": torch.Generator()}),
        ("finish", {"max_sequence_length": 8}),
        ("finish", {"steps": 9}),
        ("finish", {"width": 128}),
        ("finish", {"seed": 3}),
        ("finish", {"prompt": "x"}),
        ("enhance", {"num_images_per_prompt": 3}),
        ("enhance", {"num_images": 3}),
        ("enhance", {"num_inference_steps": 3}),
        ("native", {"refine_sigma": 0.4}),
        ("native", {"scale": 3}),
        ("draft", {"output_type": "pt"}),
        ("draft", {"return_dict": False}),
        ("draft", {"keep_upscaled": True}),
        ("replay", {"steps": 2}),
        ("replay", {"width": 96}),
        ("replay", {"output_type": "pt"}),
    ],
    ids=lambda value: re.sub(r"<.*?>", "", str(value)),
)
def test_what_a_verb_has_no_use_for_is_refused_by_its_name(fast: MrFlow, verb: str, given: dict[str, Any]) -> None:
    draft = fast.draft("a boat", seed=1)[0]
    first = {"finish": [draft], "enhance": [draft.image, "a boat"], "replay": [draft.recipe]}.get(verb, ["a boat"])
    with pytest.raises(RequestError, match=f"{verb} takes no {next(iter(given))}"):
        getattr(fast, verb)(*first, **given)


def test_a_refused_call_uses_up_no_seed(fast: MrFlow) -> None:
    generator = torch.Generator().manual_seed(7)
    for refused in ({"width": 70}, {"plan": Plan(solver="unipc"), "height": 1}):
        with pytest.raises(RequestError):
            fast("a boat", generator=generator, **refused)
    assert fast.draft("a boat", generator=generator)[0].base_recipe.seed == 7


@pytest.mark.parametrize("given", [{"seed": []}, {"generator": []}])
def test_no_seeds_at_all_are_refused(fast: MrFlow, given: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="0 seeds"):
        fast("a boat", **given)


def test_seeds_and_generators_are_compared_one_by_one(fast: MrFlow) -> None:
    generators = draft_generators([1, 2])
    both = fast.draft(["a boat", "a lake"], seed=np.array([1, 2]), generator=generators)
    assert [draft.base_recipe.seed for draft in both] == [1, 2]
    with pytest.raises(RequestError, match="they mean the same"):
        fast(["a boat", "a lake"], seed=[1, 3], generator=draft_generators([1, 2]))
    with pytest.raises(RequestError, match="steps is"):
        fast("a boat", plan="4+1", steps=np.array([1, 2]))


def test_none_says_nothing(fast: MrFlow) -> None:
    assert fast("a boat", seed=1, joint_attention_kwargs=None, latents=None).recipes[0].conditions == {}
    with pytest.raises(AttributeError):  # the pipeline's own answer to a number there
        fast("a boat", seed=1, joint_attention_kwargs=3)


@pytest.mark.parametrize("verb", ["__call__", "draft", "finish", "enhance"])
def test_a_warning_points_at_the_callers_line(fast: MrFlow, verb: str) -> None:
    draft = fast.draft("a boat", seed=1)[0]
    first = {"finish": [draft], "enhance": [draft.image, "a boat"]}.get(verb, ["a boat"])
    with pytest.warns(MrFlowWarning, match="no guidance embeddings") as caught:
        getattr(fast, verb)(*first, plan=Plan(steps=1, guidance_scale=3.5))
    assert {each.filename for each in caught} == {__file__}


def test_negative_prompts_may_be_given_for_some(fast: MrFlow) -> None:
    result = fast(["a boat", "a lake"], negative_prompt=[None, "a house"], seed=1)
    assert [recipe.negative_prompt for recipe in result.recipes] == ["", "a house"]
