"""Every family that is built in, against its own pipeline: one file for all of them."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from conftest import ROUNDING
from mrflow import Defaults, MrFlow, Plan
from mrflow.backbones import get_backbone, supported
from mrflow.backbones.families import FAMILIES, NOT_POSSIBLE, NOT_YET, VARIANTS
from mrflow.borrowing import borrowed, run_pipeline, settings
from mrflow.errors import MrFlowWarning, PromptWarning, SizeError
from mrflow.progress import Progress
from mrflow.sampling import add_noise, draft_generators, make_noise, refine_generators
from mrflow.schedulers import exact_scheduler, own_scheduler, take_head, take_tail
from support.families import CASES, SIGMA, SIZE, make_fast
from support.pairing import Seen, native_pairing
from support.pictures import bytes_of
from support.pipelines import state_of

# diffusers 0.42.1 warns of its own ChromaTransformer2DModel and PRXPipeline, NumPy of BriaPipeline
pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`LoraLoaderMixin` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

SCHEDULERS = [  # as it comes, and everything at once that could move a sigma; one by one: test_parity.py
    {},
    {"use_dynamic_shifting": False, "shift": 3.0, "shift_terminal": 0.02, "use_karras_sigmas": True},
]
each_family = pytest.mark.parametrize("name", CASES)


def test_every_family_is_tested() -> None:
    assert set(CASES) == set(FAMILIES) == set(supported()) - set(VARIANTS)  # see test_arguments.py


@each_family
@pytest.mark.parametrize("prompt", ["a red boat", "a big house at a lake"])
def test_a_draft_of_own_noise_is_the_pipelines_own_bit_for_bit(name: str, prompt: str) -> None:
    case, pipe = CASES[name], CASES[name].make()
    by_hand = case.run(pipe, (SIZE[0] // 2, SIZE[1] // 2), 2, prompt)
    draft = make_fast(case, pipe).draft(prompt, seed=7, noise="own")[0]
    assert draft.pixels.shape == (1, 3, SIZE[1] // 2, SIZE[0] // 2)
    assert torch.equal(draft.pixels, by_hand)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # Krea 2's norms
@each_family
def test_both_passes_run_in_bfloat16(name: str) -> None:
    """As published checkpoints are loaded; what is mixed in between is float32."""
    case, pipe = CASES[name], CASES[name].make()
    for part in filter(lambda each: isinstance(each, torch.nn.Module), pipe.components.values()):
        torch.nn.Module.to(part, torch.bfloat16)
    made = make_fast(case, pipe)("a red boat", seed=7, plan=Plan(steps=2, **case.plan), output_type="pt").images
    assert made.shape == (1, 3, SIZE[1], SIZE[0])
    assert made.std() > 1e-3


@each_family
def test_a_run_in_two_parts_is_the_run_in_one_bit_for_bit(name: str) -> None:
    case, pipe = CASES[name], CASES[name].make()
    backbone, plan = get_backbone(name), make_fast(case, pipe).model.resolve_plan(None)
    cfg = plan.true_cfg_scale or 1.0
    done: list[int] = []
    steps: list[tuple[int, float]] = []

    def watch(_pipe: Any, index: int, timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append((index, float(timestep)))
        return {}

    with borrowed(pipe), settings(pipe, backbone.settings(pipe, *SIZE)):
        rows = backbone.encode_prompts(pipe, ["a red boat"], ["a house"] if cfg > 1 else None, case.text_length)
        arguments = {
            **backbone.call_arguments(pipe, rows, plan.guidance_scale, cfg),
            **backbone.draft_arguments(pipe, 3),
            "width": SIZE[0],
            "height": SIZE[1],
            "callback_on_step_end": watch,
        }
        begin = {**arguments, "generator": draft_generators([7])}
        expected, _ = run_pipeline(pipe, {"scheduler": own_scheduler(pipe)}, begin, done.append)
        begin, scheduler = {**arguments, "generator": draft_generators([7])}, own_scheduler(pipe)
        take_head(scheduler, 2)
        _, held = run_pipeline(pipe, {"scheduler": scheduler}, begin, done.append)
        take_tail(scheduler)
        arguments["latents"] = backbone.resume(pipe, held, *SIZE)
        assert torch.equal(
            run_pipeline(pipe, {"scheduler": scheduler}, arguments, done.append, before=2)[0], expected
        )
    assert done == [1, 2, 3] * 2
    assert steps[:3] == steps[3:]  # a caller's callback cannot tell
    assert [index for index, _ in steps[:3]] == [0, 1, 2]


@each_family
def test_pixels_become_the_pipelines_latents(name: str) -> None:
    case, pipe = CASES[name], CASES[name].make()
    pixels = torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        expected = case.normalise(pipe, mode_of(name, pipe, pixels))
        assert torch.equal(get_backbone(name).encode(pipe, pixels), expected)


def mode_of(name: str, pipe: Any, pixels: Tensor) -> Tensor:
    """Return the mode of the posterior of the pipeline's autoencoder, or the images where it has none."""
    images = pixels * 2 - 1
    if name == "QwenImage21Pipeline":
        images = torch.cat([images, torch.ones_like(images[:, :1])], dim=1)
    if CASES[name].normalise.__name__ == "standardised":
        images = images.unsqueeze(2)
    if not hasattr(pipe, "vae"):
        return images
    with torch.no_grad():
        encoded = pipe.vae.encode(images)
    return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent


@each_family
def test_what_is_encoded_comes_through_the_pipeline_as_it_went_in(name: str) -> None:
    case, pipe = CASES[name], CASES[name].make()
    backbone, count = get_backbone(name), 1 if name.startswith("PRX") else 2  # which takes no batches
    pixels = torch.rand(count, 3, SIZE[1], SIZE[0])

    def stand_still(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if name == "PRXPixelPipeline":  # it says what the picture is
            return (kwargs["hidden_states"],)
        first = [torch.zeros_like(each) for each in output[0]]
        return (first if isinstance(output[0], list) else torch.stack(first),)

    pipe.transformer.register_forward_hook(stand_still, with_kwargs=True)
    vae, decoded_from = getattr(pipe, "vae", None), list[Tensor]()
    if vae is not None:
        decode = vae.decode
        vae.decode = lambda z, *args, **kwargs: (decoded_from.append(z), decode(z, *args, **kwargs))[1]
    with borrowed(pipe), settings(pipe, backbone.settings(pipe, *SIZE)):
        latents = backbone.encode(pipe, pixels)
        rows = backbone.encode_prompts(pipe, ["a red boat"] * count, None, case.text_length)
        given, _ = run_pipeline(
            pipe,
            {"scheduler": exact_scheduler(pipe, [SIGMA, 0.0])},
            {
                **backbone.call_arguments(pipe, rows, case.plan.get("guidance_scale"), 1.0),
                "width": SIZE[0],
                "height": SIZE[1],
                "num_inference_steps": 1,
                "generator": refine_generators(range(count)),
                "latents": backbone.pack(pipe, latents),
            },
            lambda done: None,
        )
        decoded = backbone.decode(pipe, given, *SIZE)
        again = backbone.encode(pipe, decoded)
        unpacked = latents.unsqueeze(2) if case.normalise.__name__ == "standardised" else latents
        expected = pixels if vae is None else backbone.autoencoder.decode(vae, unpacked)[:, :3]
    assert decoded.shape == pixels.shape
    assert (decoded - expected).abs().max() < 1e-5
    assert (again.shape, again.dtype) == (latents.shape, torch.float32)
    if vae is not None:  # the decoder, whose call the draft shares with the pipeline's own, gets what was encoded
        assert (decoded_from[0] - mode_of(name, pipe, pixels)).abs().max() < 1e-4


@each_family
@pytest.mark.parametrize("options", SCHEDULERS, ids=str)
def test_the_refine_pass_begins_at_exactly_the_sigma_mixed_in(name: str, options: dict[str, Any]) -> None:
    case = CASES[name]
    pipe = case.make(**options)
    backbone, pixels = get_backbone(name), []
    fast = make_fast(case, pipe)

    def keep(progress: Progress) -> None:
        if progress.stage in ("upscale", "decode") and progress.pixels is not None:
            pixels.append(progress.pixels)

    draft = fast.draft("a red boat", seed=7)[0]
    native, seen = native_pairing(case, pipe, SIZE, steps=12), Seen(pipe)
    once = Plan(refine_sigma=SIGMA, true_cfg_scale=1.0)
    fast.finish(draft, plan=once, callback=keep)
    fast.finish(draft, plan=Plan(refine_sigma=0.12, refine_steps=3, true_cfg_scale=1.0))
    told = [native.timestep(sigma) for sigma in (SIGMA, 0.12, 0.08, 0.04)]
    assert seen.timesteps == pytest.approx(told, abs=native.slack)

    upscaled, refined = pixels
    with torch.no_grad():
        latents = backbone.encode(pipe, upscaled)
        noised = add_noise(latents, SIGMA, make_noise(latents.shape[1:], refine_generators([7])))
        assert torch.equal(seen.hidden[0], case.pack(pipe, noised))
        velocity = case.flow(seen.hidden[0], seen.given[0], SIGMA)
        tokens = seen.hidden[0] - SIGMA * velocity  # one Euler step from SIGMA to 0
        expected = by_hand_pixels(name, pipe, tokens)
    assert (refined - expected).abs().max() < 1e-5
    assert (refined - upscaled).abs().max() > 1e-3


def by_hand_pixels(name: str, pipe: Any, tokens: Tensor) -> Tensor:
    """Return the transformer's hidden states as pixels, through the pipeline's own functions."""
    if name == "Flux2KleinPipeline":  # whose pipeline gives the latents another form than it takes
        (width, height), bn = SIZE, pipe.vae.bn
        std = torch.sqrt(bn.running_var + pipe.vae.config.batch_norm_eps).view(1, -1, 1, 1)
        patches = tokens.transpose(1, 2).reshape(1, -1, height // 16, width // 16)
        tokens = pipe._unpatchify_latents(patches * std + bn.running_mean.view(1, -1, 1, 1))
    return get_backbone(name).decode(pipe, tokens, *SIZE)


@each_family
def test_a_batch_gives_what_its_pictures_give_alone(name: str) -> None:
    case, pipe = CASES[name], CASES[name].make()
    prompts = ["a boat", "a big blue house and a red boat"]
    negatives = None if "guidance_scale" in case.plan else ["a lake at dusk", ""]
    together: list[Tensor] = []
    alone: list[Tensor] = []

    def keep(pixels: list[Tensor]) -> Any:
        def callback(progress: Progress) -> None:
            if progress.stage in ("decode_draft", "decode") and progress.pixels is not None:
                pixels.extend(progress.pixels)

        return callback

    make_fast(case, pipe, batch_size=2)(prompts, negative_prompt=negatives, seed=[1, 2], callback=keep(together))
    make_fast(case, pipe, batch_size=1)(prompts, negative_prompt=negatives, seed=[1, 2], callback=keep(alone))
    assert len(together) == len(alone) == 4
    for batched, single in zip(together, alone, strict=True):
        assert (batched - single).abs().max() < ROUNDING
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore::mrflow.errors.PromptWarning")  # CLIP's 16 tokens
@each_family
def test_a_long_text_beside_a_short_one_changes_neither(name: str) -> None:
    case, pipe = CASES[name], CASES[name].make()
    length = case.text_length and 40
    if name == "HiDreamImagePipeline":  # whose CLIPs are given as many, and tiny ones have no more
        length = case.text_length
    plan = Plan(steps=2, **case.plan)
    defaults = Defaults(width=SIZE[0], height=SIZE[1], plan=plan, max_sequence_length=length)
    prompts = ["a boat", "a big blue house and a red boat at a lake at dusk and a big boat and a blue lake"]
    together, alone = (
        MrFlow(pipe, "bicubic", defaults=defaults, batch_size=size).draft(prompts, seed=[1, 2]) for size in (2, 1)
    )
    for batched, single in zip(together, alone, strict=True):
        assert (batched.pixels - single.pixels).abs().max() < ROUNDING


@each_family
def test_drafts_are_finished_and_the_pipeline_is_as_it_was(name: str) -> None:
    case, pipe = CASES[name], CASES[name].make()
    fast = make_fast(case, pipe, batch_size=2)
    before = state_of(pipe)
    drafts = fast.draft(["a red boat", "a boat"], seed=1)
    result = fast.finish(drafts)
    assert [image.size for image in result.images] == [SIZE] * 2
    assert fast.replay(result.recipes[1]).images[0].size == SIZE
    assert fast.native("a boat", steps=1, seed=1, width=64, height=96).images[0].size == (64, 96)
    assert state_of(pipe) == before


@each_family
@pytest.mark.parametrize("stage", ["draft", "refine"])
def test_after_a_call_that_raised_half_way_the_pipeline_gives_what_it_gave(name: str, stage: str) -> None:
    case, pipe = CASES[name], CASES[name].make()
    fast, seen = make_fast(case, pipe), list[int]()
    before, expected = state_of(pipe), bytes_of(fast.native("a boat", steps=1, seed=1, width=64, height=96).images)

    def stop(progress: Progress) -> None:
        if progress.stage == stage and progress.step == 1:
            seen.append(progress.step)
            raise KeyError(stage)

    with pytest.raises(KeyError, match=stage):
        fast("a red boat", seed=1, callback=stop)
    assert seen == [1]
    assert state_of(pipe) == before
    assert bytes_of(fast.native("a boat", steps=1, seed=1, width=64, height=96).images) == expected


@each_family
def test_a_size_of_broken_patches_is_refused_before_any_work(name: str, events: Any) -> None:
    case, pipe = CASES[name], CASES[name].make()
    seen, callback = events
    unit = get_backbone(name).multiple(pipe)
    for width, words in (
        (2 * unit + 1, f"Try {2 * unit}x{2 * unit} or {3 * unit}x{2 * unit}"),
        (unit - 1, "between"),
    ):
        with pytest.raises(SizeError, match=words):
            make_fast(case, pipe)("a boat", seed=1, width=width, height=2 * unit, callback=callback)
    assert seen == []


@each_family
def test_what_is_said_to_be_cut_is_what_the_pipeline_cuts(name: str) -> None:
    case, pipe, backbone = CASES[name], CASES[name].make(), get_backbone(name)
    long = "a big red boat and a blue house at a lake at dusk " * 3
    cut = backbone.read_prompt(pipe, long, case.text_length).cut
    if name == "BriaFiboPipeline":  # whose call is given texts
        backbone.encode_prompts = lambda pipe, texts, *_: [  # type: ignore[method-assign]
            {"prompt_embeds": pipe.get_prompt_embeds(texts, max_sequence_length=case.text_length)[0]}
        ]
    assert cut or case.text_length is None
    if not cut:
        return
    kept = long[: long.rindex(cut)].strip()
    assert backbone.read_prompt(pipe, kept + " zebra", 64).unknown == ("zebra",)

    def encode(text: str) -> dict[str, Any]:
        with torch.no_grad():
            return backbone.encode_prompts(pipe, [text], None, case.text_length)[0]

    changed = encode(kept + " house" * 30)  # other words where the cut was
    one_less = encode(kept.rsplit(" ", 1)[0] + " <unk>" + " house" * 30)
    for key, value in encode(long).items():
        torch.testing.assert_close(value, changed[key])
    assert any(not torch.allclose(value, changed[key], atol=1e-3) for key, value in one_less.items())


def test_distilled_checkpoints_take_no_guidance() -> None:
    for name in ("Flux2KleinPipeline", "Krea2Pipeline"):
        assert get_backbone(name).default_guidance(CASES[name].make(is_distilled=True)) == 1.0
    case = CASES["Flux2Pipeline"]
    fast = make_fast(case, case.make())
    with pytest.warns(MrFlowWarning, match="takes no classifier-free guidance"):
        plan = fast.model.resolve_plan(Plan(true_cfg_scale=3.0))
    with pytest.warns(PromptWarning, match="free guidance, which Flux2Pipeline does not take"):
        fast.draft("a boat", negative_prompt="a house", plan="1+1", seed=1)
    assert (plan.guidance_scale, plan.true_cfg_scale, plan.refine_true_cfg_scale) == (3.0, 1.0, 1.0)


def test_a_checkpoints_own_sigmas_make_the_draft_where_their_number_fits() -> None:
    case = CASES["QwenImage21Pipeline"]
    pipe = case.make(sample_sigmas=[1.0, 0.7], use_dynamic_shifting=False)
    fast, seen = make_fast(case, pipe), Seen(pipe)
    fast.draft("a boat", seed=1, plan=Plan(steps=2, true_cfg_scale=1.0))
    fast.draft("a boat", seed=1, plan=Plan(steps=4, true_cfg_scale=1.0))
    assert seen.timesteps == pytest.approx([1.0, 0.7, 1.0, 0.75, 0.5, 0.25])


# --- which families there are ---

TAKES_PICTURES = ("Img2Img", "Inpaint", "Edit", "Refiner", "Fill", "Kontext", "I2I")
MAKES_VIDEOS = ("Wan", "SanaVideo", "SanaImageToVideo", "LTX2")  # the last needs a newer transformers than others


def flow_pipelines() -> set[str]:
    """Return the names of diffusers' text-to-image pipelines whose scheduler is one of flow matching."""
    found = set()
    for name in (each for each in dir(diffusers) if each.endswith("Pipeline")):
        if any(part in name for part in (*TAKES_PICTURES, *MAKES_VIDEOS)):
            continue
        kind = getattr(diffusers, name)
        call = inspect.signature(kind.__call__).parameters
        scheduler = str(inspect.signature(kind.__init__).parameters.get("scheduler"))
        flows = "FlowMatch" in scheduler or name.startswith("Sana")  # whose DPM-Solver++ is one with flow sigmas
        pictures = {"prompt", "latents", "height", "width"} <= set(call) and "num_frames" not in call
        if flows and pictures:
            found.add(name)
    return found


def test_every_text_to_image_pipeline_of_diffusers_is_driven_or_has_a_reason() -> None:
    assert flow_pipelines() - {*FAMILIES, *VARIANTS, *NOT_POSSIBLE, *NOT_YET} == set()
    assert set(FAMILIES) <= flow_pipelines()
