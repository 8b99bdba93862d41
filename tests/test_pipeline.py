from __future__ import annotations

import re
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, FluxPipeline
from PIL import Image

from conftest import ROUNDING, make_fast, make_pipe
from mrflow import Defaults, Draft, MrFlow, Plan, Result, known_upscalers, save_image
from mrflow.errors import (
    BusyError,
    ImageError,
    MrFlowWarning,
    PlanError,
    PromptError,
    PromptWarning,
    RequestError,
    SizeError,
    UnsupportedPipelineError,
    UpscalerError,
)
from mrflow.images import pixels_sha256
from mrflow.progress import Progress
from support.pictures import bytes_of
from support.pipelines import state_of

PROMPTS = ["a red boat", "a blue house and a big boat", "a lake at dusk", "a boat"]


# --- what comes out ---


def test_a_call_gives_pictures_recipes_and_seconds(fast: MrFlow) -> None:
    result = fast(PROMPTS[:2], width=96, height=64, seed=3, num_images=2, keep_upscaled=True)
    assert [image.size for image in result.images] == [(96, 64)] * 4
    assert [image.size for image in result.upscaled] == [(96, 64)] * 4
    assert [draft.image.size for draft in result.drafts] == [(48, 32)] * 4
    assert [recipe.seed for recipe in result.recipes] == [3, 4, 5, 6]
    assert [recipe.prompt for recipe in result.recipes] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert [recipe.pixels_sha256 for recipe in result.recipes] == [pixels_sha256(i) for i in result.images]
    recipe = result.recipes[0]
    assert (recipe.mode, recipe.width, recipe.height, recipe.upscaler) == ("staged", 96, 64, "bicubic")
    assert (recipe.device, recipe.dtype, recipe.negative_prompt) == ("cpu", "float32", "")
    assert recipe.batch == 1
    assert recipe.plan == Plan(steps=3, true_cfg_scale=2.0, refine_true_cfg_scale=2.0, guidance_stop=1.0)
    stages = ["text", "draft", "decode_draft", "upscale", "encode", "refine", "decode"]
    assert list(result.seconds) == [*stages, "total"]
    assert sum(result.seconds[s] for s in stages) <= result.seconds["total"]
    assert fast("a boat", seed=1).upscaled == []


def test_the_same_seed_twice_gives_the_same_bytes(fast: MrFlow) -> None:
    first, second, other = (fast("a red boat", seed=seed).images[0] for seed in (5, 5, 6))
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != other.tobytes()


def test_a_drawn_seed_is_recorded(fast: MrFlow) -> None:
    result = fast("a red boat")
    again = fast("a red boat", seed=result.recipes[0].seed)
    assert bytes_of(again.images) == bytes_of(result.images)


@pytest.mark.parametrize("guidance_embeds", [False, True])
@pytest.mark.parametrize("batch_size", [2, 4])
def test_a_batch_equals_its_pictures_made_alone(guidance_embeds: bool, batch_size: int) -> None:
    fast = make_fast(make_pipe(guidance_embeds=guidance_embeds), batch_size=batch_size)
    batch, seen = finished_pixels(fast, PROMPTS, seed=[9, 9, 2, 11])
    assert {p.batches for p in seen if p.stage == "refine"} == {4 // batch_size}
    assert fast(PROMPTS, seed=1).recipes[0].batch == batch_size
    for k, (prompt, seed) in enumerate(zip(PROMPTS, [9, 9, 2, 11], strict=True)):
        alone, _ = finished_pixels(fast, prompt, seed=seed)
        assert (batch[k] - alone[0]).abs().max() < ROUNDING


def finished_pixels(fast: MrFlow, prompt: Any, **options: Any) -> tuple[torch.Tensor, list[Progress]]:
    seen: list[Progress] = []
    fast(prompt, callback=seen.append, **options)
    return torch.cat([p.pixels for p in seen if p.stage == "decode" and p.pixels is not None]), seen


def test_draft_then_finish_equals_the_call(fast: MrFlow) -> None:
    called = fast(PROMPTS, seed=1)
    drafts = fast.draft(PROMPTS, seed=1)
    assert len(drafts) == 4
    assert bytes_of(drafts.images) == bytes_of([d.image for d in called.drafts])
    assert bytes_of(fast.finish(drafts).images) == bytes_of(called.images)
    one = fast.finish(drafts[2])
    assert "text" not in one.seconds
    assert one.recipes[0].mode == "staged"
    assert bytes_of(one.images) == bytes_of(called.images[2:3])


def test_a_draft_goes_through_a_file(fast: MrFlow, tmp_path: Path) -> None:
    draft = fast.draft("a red boat", seed=4)[0]
    loaded = Draft.from_image(draft.save(tmp_path / "draft.png"))
    assert loaded.recipe == draft.recipe
    assert (loaded.pixels - draft.pixels).abs().max() <= 1 / 509
    finished = fast.finish([loaded, draft])
    assert [recipe.mode for recipe in finished.recipes] == ["finish", "staged"]
    assert finished.recipes[0].input_sha256 == draft.recipe.pixels_sha256
    picture = save_image(finished.images[1], tmp_path / "picture.png", finished.recipes[1])
    with pytest.raises(ImageError, match="must be a draft"):
        Draft.from_image(picture)


def test_a_resized_draft_file_is_refused(fast: MrFlow, tmp_path: Path) -> None:
    draft = fast.draft("a red boat", seed=4)[0]
    save_image(draft.image.resize((48, 48)), tmp_path / "draft.png", draft.recipe)
    with pytest.raises(ImageError, match="48x48, its recipe says 32x32"):
        Draft.from_image(tmp_path / "draft.png")


def test_drafts_can_be_finished_by_another_plan(fast: MrFlow) -> None:
    drafts = fast.draft(PROMPTS[:2], seed=4)
    result = fast.finish(drafts, plan=Plan(scale=3, refine_sigma=0.3, refine_steps=2))
    assert [image.size for image in result.images] == [(96, 96)] * 2
    assert result.recipes[0].plan.label == "3+2"  # the draft was made in three steps, whatever the plan says
    with pytest.raises(SizeError, match="does not fit"):
        fast.finish(drafts, plan=Plan(scale=1.25))
    unguided = fast.draft("a boat", seed=1, plan=Plan(steps=2, true_cfg_scale=1.0, refine_true_cfg_scale=1.0))
    assert unguided.recipes[0].negative_prompt is None
    assert fast.finish(unguided, plan=Plan(true_cfg_scale=2.0)).recipes[0].negative_prompt == ""


def test_mixed_drafts_come_back_in_order(fast: MrFlow) -> None:
    small = fast.draft("a boat", seed=[1, 2])
    large = fast.draft("a boat", seed=3, width=96)
    result = fast.finish([small[0], large[0], small[1]], keep_upscaled=True)
    assert [image.size for image in result.images] == [(64, 64), (96, 64), (64, 64)]
    assert [image.size for image in result.upscaled] == [(64, 64), (96, 64), (64, 64)]
    assert [recipe.seed for recipe in result.recipes] == [1, 3, 2]


def test_the_prompt_is_encoded_once(fast: MrFlow) -> None:
    calls: list[Any] = []
    fast.pipe.text_encoder_2.register_forward_hook(lambda *_: calls.append(1))
    fast.finish(fast.draft("a red boat", seed=[1, 2, 3]))
    assert len(calls) == 2  # the prompt and the empty negative one


def test_native_uses_the_same_prompt_handling(fast: MrFlow) -> None:
    result = fast.native("a boat", steps=2, seed=[1, 2])
    assert result.recipes[0].mode == "native"
    assert result.recipes[0].plan.steps == 2
    assert list(result.seconds) == ["text", "draft", "decode", "total"]
    assert bytes_of(fast.native("a boat", steps=2, seed=2).images) == bytes_of(result.images[1:])
    assert fast.native("a boat", seed=1, width=80).images[0].size == (80, 64)  # no draft has to fit


def test_enhance_takes_images_paths_and_tensors(fast: MrFlow, tmp_path: Path) -> None:
    image = Image.new("RGB", (50, 34), "teal")
    image.save(tmp_path / "a.png")
    result = fast.enhance([image, tmp_path / "a.png"], "a lake", seed=[1, 1])
    assert [i.size for i in result.images] == [(96, 64)] * 2
    assert bytes_of(result.images)[0] == bytes_of(result.images)[1]
    assert result.recipes[0].mode == "enhance"
    assert result.recipes[0].input_sha256 == pixels_sha256(image)
    tensor = torch.full((1, 3, 16, 16), 0.5)
    assert fast.enhance(tensor, "a lake", width=80, height=48).images[0].size == (80, 48)


@pytest.mark.parametrize("mode", ["staged", "draft", "finish", "enhance", "native"])
def test_every_recipe_can_be_replayed(fast: MrFlow, mode: str) -> None:
    image = Image.new("RGB", (40, 40), "teal")
    if mode == "enhance":
        made: Result = fast.enhance(image, "a lake", seed=8)
    elif mode == "native":
        made = fast.native("a lake", steps=2, seed=8)
    elif mode == "finish":
        made = fast.finish(fast.draft("a lake", seed=8)[0].rounded())
    elif mode == "draft":
        drafts = fast.draft("a lake", seed=8)
        made = Result(drafts.images, drafts.recipes, drafts.seconds)
    else:
        made = fast("a lake", seed=8, plan=Plan(steps=2, refine_sigma=0.2))
    recipe = type(made.recipes[0]).from_json(made.recipes[0].to_json())
    again = fast.replay(recipe, image if mode == "enhance" else None)
    assert bytes_of(again.images) == bytes_of(made.images)
    assert recipe.differences(again.recipes[0]) == {}


@pytest.mark.parametrize("recorded", [1, 2, 3, None])
def test_replay_takes_as_many_threads_as_the_picture_had(
    fast: MrFlow, monkeypatch: pytest.MonkeyPatch, recorded: int | None
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)  # three are then more than there are
    own, seen = torch.get_num_threads(), set()
    recipe = replace(fast("a lake", seed=8).recipes[0], threads=recorded)
    again = fast.replay(recipe, callback=lambda _: seen.add(torch.get_num_threads()))
    assert seen == {again.recipes[0].threads} == {recorded if recorded in (1, 2) else own}
    assert torch.get_num_threads() == own


def test_a_picture_finished_with_other_threads_than_its_draft_has_no_number(fast: MrFlow) -> None:
    drafts = fast.draft("a lake", seed=8)
    other = replace(drafts[0], base_recipe=replace(drafts[0].recipe, threads=torch.get_num_threads() + 1))
    assert [fast.finish(draft).recipes[0].threads for draft in (drafts[0], other)] == [
        torch.get_num_threads(),
        None,
    ]


def test_replay_of_enhance_needs_the_same_image(fast: MrFlow) -> None:
    recipe = fast.enhance(Image.new("RGB", (40, 40), "teal"), "a lake", seed=8).recipes[0]
    with pytest.raises(ImageError, match="give that image"):
        fast.replay(recipe)
    with pytest.raises(ImageError, match="not the one"):
        fast.replay(recipe, Image.new("RGB", (40, 40), "red"))


# --- progress ---


def test_progress_names_every_stage_and_step(fast: MrFlow, events: Any) -> None:
    seen, callback = events
    fast("a boat", seed=1, callback=callback)
    assert [(p.stage, p.step) for p in seen] == [
        ("text", 0), ("text", 1),
        ("draft", 0), ("draft", 1), ("draft", 2), ("draft", 3),
        ("decode_draft", 0), ("decode_draft", 1),
        ("upscale", 0), ("upscale", 1),
        ("encode", 0), ("encode", 1),
        ("refine", 0), ("refine", 1),
        ("decode", 0), ("decode", 1),
    ]  # fmt: skip
    shapes = {p.stage: tuple(p.pixels.shape) for p in seen if p.pixels is not None}
    assert shapes == {"decode_draft": (1, 3, 32, 32), "upscale": (1, 3, 64, 64), "decode": (1, 3, 64, 64)}


def test_the_pipelines_own_bar_is_silent_only_while_we_report(fast: MrFlow, capfd: Any) -> None:
    fast.pipe.set_progress_bar_config(desc="theirs")
    fast("a boat", seed=1, callback=lambda _: None)
    assert capfd.readouterr().err == ""
    fast("a boat", seed=1)
    assert "theirs" in capfd.readouterr().err


# --- the pipeline is borrowed ---


class Stop(Exception):
    pass


@pytest.mark.parametrize(("error", "bar"), [(None, None), (Stop, {"desc": "theirs"}), (KeyboardInterrupt, None)])
@pytest.mark.parametrize("stage", ["text", "draft", "decode_draft", "upscale", "encode", "refine", "decode"])
def test_the_pipeline_is_as_it_was(stage: str, error: Any, bar: Any) -> None:
    fast = make_fast(make_pipe())
    if bar is None:
        del fast.pipe._progress_bar_config
    else:
        fast.pipe.set_progress_bar_config(**bar)
    steps: list[int] = []

    def callback(progress: Progress) -> None:
        if progress.stage == stage:
            steps.append(progress.step)
            if progress.step == 1 and error is not None:
                raise error

    before = state_of(fast.pipe)
    if error is None:
        fast("a boat", seed=1, callback=callback)
    else:
        with pytest.raises(error):
            fast("a boat", seed=1, callback=callback)
        assert steps == [0, 1]  # stopped within the step
    assert state_of(fast.pipe) == before
    assert torch.is_grad_enabled()
    fast("a boat", seed=1, callback=lambda _: None)  # and it is free again


def test_a_broken_pipeline_is_given_back_too(fast: MrFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(fast.pipe.transformer, "forward", fail)
    before = state_of(fast.pipe)
    with pytest.raises(MemoryError):
        fast("a boat", seed=1)
    assert state_of(fast.pipe) == before


def test_a_second_call_at_the_same_time_is_refused(pipe: Any) -> None:
    first, second = make_fast(pipe), make_fast(pipe)
    other = make_fast(make_pipe())
    refused: list[str] = []

    def call_again(progress: Progress) -> None:
        if progress.stage != "draft" or progress.step != 1:
            return
        for verb in (first, second.native, second.draft):
            try:
                verb("a boat", seed=1)
            except BusyError as error:
                refused.append(str(error))
        thread = threading.Thread(target=lambda: other("a boat", seed=1))  # another pipeline is free
        thread.start()
        thread.join()

    first("a boat", seed=1, callback=call_again)
    assert len(refused) == 3
    assert "another call" in refused[0]
    second("a boat", seed=1)


def test_global_random_state_is_not_touched(fast: MrFlow) -> None:
    before = torch.get_rng_state()
    fast("a boat", seed=1)
    assert torch.equal(torch.get_rng_state(), before)


# --- what is refused, before any work ---


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (SizeError, "Try 96x64 or 112x64", {"width": 100}),
        (SizeError, "width is 0", {"width": 0}),
        (SizeError, "height is 1.5", {"height": 1.5}),
        (SizeError, "between 16 and 8192", {"height": 10**9}),
        (PlanError, "Known: 12", {"plan": "quick"}),
        (PlanError, "must be a Plan", {"plan": 12}),
        (PromptError, "is empty", {"prompt": "  "}),
        (PromptError, "0 prompts", {"prompt": []}),
        (PromptError, "must be text", {"prompt": [3]}),
        (PromptError, "characters", {"prompt": "a " * 20_000}),
        (RequestError, "seed is -1", {"seed": -1}),
        (RequestError, "3 seeds for 2", {"seed": [1, 2, 3], "num_images": 2}),
        (RequestError, "num_images is 0", {"num_images": 0}),
        (PromptError, "2 negative prompts for 1", {"negative_prompt": ["a", "b"]}),
    ],
)
@pytest.mark.parametrize("verb", ["__call__", "draft", "native"])
def test_bad_requests_are_refused_before_any_work(
    fast: MrFlow, events: Any, verb: str, error: Any, words: str, options: dict[str, Any]
) -> None:
    seen, callback = events
    with pytest.raises(error, match=words):
        getattr(fast, verb)(**{"prompt": "a boat", "callback": callback, **options})
    assert seen == []


@pytest.mark.parametrize(
    ("error", "image", "options"),
    [
        (ImageError, "none.png", {}),
        (ImageError, b"bytes", {}),
        (ImageError, [], {}),
        (ImageError, None, {}),
        (ImageError, 3, {}),
        (ImageError, torch.zeros(3, 8, 8), {}),
        (ImageError, torch.full((1, 3, 8, 8), 2.0), {}),
        (ImageError, torch.full((1, 3, 8, 8), float("nan")), {}),
        (ImageError, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), {}),
        (PromptError, Image.new("RGB", (9, 9)), {"prompt": ""}),
        (RequestError, Image.new("RGB", (9, 9)), {"prompt": ["a", "a boat"]}),
        (SizeError, Image.new("RGB", (9, 9)), {"width": 64}),
        (SizeError, Image.new("RGB", (9, 9)), {"width": 64, "height": 65}),
        (SizeError, Image.new("RGB", (5000, 9)), {}),
        (RequestError, Image.new("RGB", (9, 9)), {"seed": 1.5}),
    ],
)
def test_enhance_refuses_before_any_work(
    fast: MrFlow, events: Any, error: Any, image: Any, options: dict[str, Any]
) -> None:
    seen, callback = events
    with pytest.raises(error):
        fast.enhance(image, **{"prompt": "a boat", "callback": callback, **options})
    assert seen == []


@pytest.mark.parametrize("drafts", [[], ["draft.png"], [None], None, "draft.png", 3])
def test_finish_refuses_what_is_no_draft(fast: MrFlow, drafts: Any) -> None:
    with pytest.raises(RequestError):
        fast.finish(drafts)


@pytest.mark.parametrize("steps", [0, -1, 2.5, "50", True])
def test_native_checks_its_steps(fast: MrFlow, steps: Any) -> None:
    with pytest.raises(PlanError, match="steps is"):
        fast.native("a boat", steps=steps)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, "4"])
def test_batch_size_is_checked(pipe: Any, batch_size: Any) -> None:
    with pytest.raises(RequestError, match="batch_size"):
        make_fast(pipe, batch_size=batch_size)


def test_an_unknown_family_says_what_is_supported() -> None:
    class KandinskyPipeline:
        pass

    with pytest.raises(
        UnsupportedPipelineError, match=r"KandinskyPipeline; supported are .*FluxPipeline.*register_backbone"
    ):
        MrFlow(KandinskyPipeline(), "bicubic")


# --- what is said ---


def test_a_prompt_too_long_says_what_is_cut(fast: MrFlow) -> None:
    with pytest.warns(PromptWarning, match="this end is cut off: 'boat big boat'"):
        fast.draft("a " * 15 + "boat big boat", seed=1)


def test_unknown_words_are_named(fast: MrFlow) -> None:
    with pytest.warns(PromptWarning, match="does not know: 'zebra', '紅'"):
        fast.draft("a zebra and a red zebra 紅 boat", seed=1)


@pytest.mark.filterwarnings("ignore:.*does not know")
@pytest.mark.parametrize("markup", ["<lora:film:0.8>", "(red:1.2)"])
def test_other_programs_markup_is_said_to_be_words(fast: MrFlow, markup: str) -> None:
    with pytest.warns(PromptWarning, match=re.escape(f"has {markup!r}, which is read as mere words")):
        fast.draft(f"a {markup} boat", seed=1)


def test_prompts_that_are_understood_say_nothing(fast: MrFlow) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast("a " * 15, seed=1)


def test_settings_without_effect_are_said(pipe: Any) -> None:
    with pytest.warns(MrFlowWarning, match="guidance_scale has no effect"):
        make_fast(pipe).draft("a boat", plan=Plan(steps=1, guidance_scale=5.0), seed=1)
    plan = Plan(steps=1, true_cfg_scale=1.0, refine_true_cfg_scale=1.0)
    with pytest.warns(PromptWarning, match="negative prompt has no effect"):
        make_fast(pipe).draft("a boat", negative_prompt="a house", plan=plan, seed=1)


def test_the_methods_own_upscaler_is_asked_for_before_any_sampling(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_upscalers, "find_spec", lambda _: None)  # the extra is not installed
    monkeypatch.setenv("MRFLOW_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fast, seen = MrFlow(pipe), list[Any]()
    assert (fast.model.upscaler.name, fast.model.upscaler.factor) == ("realesrgan-x2", None)
    drafts = fast.draft("a boat", width=64, height=64, plan="1+1")  # needs none
    for call in (
        lambda: fast("a boat", width=64, height=64, plan="1+1", callback=seen.append),
        lambda: fast.finish(drafts, callback=seen.append),
        lambda: fast.enhance(drafts[0].image, "a boat", callback=seen.append),
    ):
        with pytest.raises(UpscalerError, match=rf"Put RealESRGAN_x2plus.pth .* into {tmp_path}.*\.\[upscalers"):
            call()
    assert not seen


def test_guidance_is_filled_in_from_plan_defaults_and_family() -> None:
    embedded = make_fast(make_pipe(guidance_embeds=True)).model
    assert embedded.resolve_plan("4+1").guidance_scale == 3.5
    assert embedded.resolve_plan(Plan(guidance_scale=1.5)).guidance_scale == 1.5
    assert embedded.resolve_plan(None).true_cfg_scale == 1.0
    plain = make_fast(make_pipe()).model
    assert plain.resolve_plan("4+1").guidance_scale is None
    assert plain.resolve_plan("4+1").true_cfg_scale == 2.0
    assert plain.resolve_plan(Plan(true_cfg_scale=5.0)).refine_true_cfg_scale == 5.0


def test_to_moves_the_pipeline_and_returns_itself(fast: MrFlow) -> None:
    assert fast.to("cpu", "float32") is fast


def test_step_calls_offloading_when_a_call_is_cut_short(fast: MrFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[int] = []
    monkeypatch.setattr(fast.pipe, "maybe_free_model_hooks", lambda: freed.append(1))

    def stop(progress: Progress) -> None:
        if progress.stage == "draft" and progress.step == 1:
            raise Stop

    with pytest.raises(Stop):
        fast("a boat", seed=1, callback=stop)
    assert freed == [1, 1]  # the first after the run without a step, which draws the noise


def test_guidance_that_stops_leaves_out_the_second_branch(fast: MrFlow) -> None:
    calls: list[float] = []
    steps: list[int] = []
    hook = lambda module, args, kwargs: calls.append(float(kwargs["timestep"][0]))  # noqa: E731
    fast.pipe.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    before = state_of(fast.pipe)

    def draft(stop: float | None, **options: Any) -> tuple[list[float], str | None]:
        calls.clear()
        steps.clear()
        made = fast.draft("a boat", seed=1, plan=Plan(steps=4, guidance_stop=stop), **options)
        return calls.copy(), made.recipes[0].pixels_sha256

    full, whole = draft(None)
    assert draft(1.0) == (full, whole)
    half, other = draft(
        0.5, callback=lambda progress: steps.append(progress.step) if progress.stage == "draft" else None
    )
    assert half == [*full[:4], full[4], full[6]]  # two guided steps, then one branch of each
    assert steps == [0, 1, 2, 3, 4]
    assert other != whole
    assert state_of(fast.pipe) == before


def test_native_pictures_are_guided_throughout_unless_asked(pipe: FluxPipeline) -> None:
    defaults = Defaults(
        width=64, height=64, plan=Plan(true_cfg_scale=2.0, guidance_stop=0.5), max_sequence_length=16
    )
    fast = MrFlow(pipe, "bicubic", defaults=defaults)
    assert fast.draft("a boat", seed=1).recipes[0].plan.guidance_stop == 0.5
    native = fast.native("a boat", seed=1, steps=2)
    assert native.recipes[0].plan.guidance_stop == 1.0
    asked = fast.native("a boat", seed=1, steps=2, plan=Plan(guidance_stop=0.5))
    assert asked.recipes[0].plan.guidance_stop == 0.5
    assert fast.replay(asked.recipes[0]).recipes[0].pixels_sha256 == asked.recipes[0].pixels_sha256


def test_guidance_cannot_stop_within_a_step(pipe: FluxPipeline) -> None:
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(PlanError, match=r"guidance_stop is 0\.5; .* once a step"):
        MrFlow(pipe, "bicubic").draft("a boat", plan=Plan(true_cfg_scale=2.0, guidance_stop=0.5))
