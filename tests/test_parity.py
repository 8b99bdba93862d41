"""Our two passes against diffusers itself, on the same random components: the oracle is theirs."""

import copy

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from conftest import make_fast, make_pipe
from mrflow import Defaults, MrFlow, Plan
from mrflow.backbones.families import FAMILIES
from mrflow.progress import Progress
from mrflow.sampling import refine_generators
from support.families import CASES
from support.pipelines import own_call

SCHEDULERS = [
    {},
    {"use_dynamic_shifting": False, "shift": 3.0},
    {"shift_terminal": 0.02},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"invert_sigmas": True},
    {"stochastic_sampling": True},
]


@pytest.mark.parametrize("guidance_embeds", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (96, 32)])
def test_a_draft_of_own_noise_is_the_pipelines_own_bit_for_bit(
    guidance_embeds: bool, size: tuple[int, int]
) -> None:
    pipe = make_pipe(guidance_embeds=guidance_embeds)
    guidance = {"guidance_scale": 3.5, "true_cfg_scale": 1.0 if guidance_embeds else 2.0}
    by_hand = own_call(pipe, size[0] // 2, size[1] // 2, steps=3, negative_prompt="", **guidance)
    draft = make_fast(pipe).draft("a red boat", seed=7, width=size[0], height=size[1], noise="own")[0]
    assert torch.equal(draft.pixels, by_hand)


def test_native_is_the_pipelines_own(pipe) -> None:
    by_hand = own_call(pipe, 64, 64, steps=3, negative_prompt="", true_cfg_scale=2.0, output_type="pil")[0]
    assert make_fast(pipe).native("a red boat", seed=7).images[0].tobytes() == by_hand.tobytes()


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=str)
@pytest.mark.parametrize("steps", [1, 3])
def test_the_refine_pass_is_image_to_image_at_the_same_sigma(scheduler: dict[str, object], steps: int) -> None:
    pipe = make_pipe(**scheduler)
    seen: list[Progress] = []
    plan = Plan(steps=2, refine_steps=steps, refine_sigma=0.12, true_cfg_scale=2.0)
    image = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(3))
    make_fast(pipe).enhance(image, "a red boat", plan=plan, seed=7, callback=seen.append)
    upscaled, refined = (
        next(p.pixels for p in seen if p.stage == s and p.step == 1) for s in ("upscale", "decode")
    )

    oracle = FluxImg2ImgPipeline(**{**pipe.components, "scheduler": FlowMatchEulerDiscreteScheduler()})
    oracle.set_progress_bar_config(disable=True)
    vae = pipe.vae.config
    with torch.no_grad():
        mode = pipe.vae.encode(upscaled * 2 - 1).latent_dist.mode()
    expected = own_call(
        oracle,
        128,
        64,
        steps,
        negative_prompt="",
        true_cfg_scale=2.0,
        image=(mode - vae.shift_factor) * vae.scaling_factor,
        strength=1.0,
        sigmas=[0.12 * (steps - k) / steps for k in range(steps)],
        generator=refine_generators([7]),
    )
    assert (refined - expected).abs().max() < 1e-5
    assert (refined - upscaled).abs().max() > 1e-3


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=str)
@pytest.mark.parametrize("sigma", [0.12, 0.2, 0.9])
def test_the_transformer_sees_exactly_the_sigma_mixed_in(scheduler: dict[str, object], sigma: float) -> None:
    pipe = make_pipe(**scheduler)
    seen: list[float] = []
    pipe.transformer.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(float(kwargs["timestep"][0])), with_kwargs=True
    )
    plan = Plan(refine_steps=2, refine_sigma=sigma, true_cfg_scale=1.0)
    make_fast(pipe).enhance(torch.zeros(1, 3, 32, 32), "a boat", plan=plan, seed=1)
    assert seen == pytest.approx([sigma, sigma / 2], abs=1e-7)


def test_a_leftover_use_flow_sigmas_does_not_take_our_sigmas_away(pipe) -> None:
    pipe.scheduler.register_to_config(use_flow_sigmas=True)
    seen: list[float] = []
    pipe.transformer.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(float(kwargs["timestep"][0])), with_kwargs=True
    )
    plan = Plan(true_cfg_scale=1.0)
    make_fast(pipe).enhance(torch.zeros(1, 3, 32, 32), "a boat", plan=plan, seed=1)
    assert seen == pytest.approx([0.12], abs=1e-7)


# --- every family that has an image-to-image pipeline ---

IMAGE_TO_IMAGE = {
    name: oracle for name in FAMILIES if (oracle := name.replace("Pipeline", "Img2ImgPipeline")) in dir(diffusers)
}


def test_no_image_to_image_pipeline_is_forgotten() -> None:
    assert set(IMAGE_TO_IMAGE) == {
        "FluxPipeline",
        "QwenImagePipeline",
        "StableDiffusion3Pipeline",
        "ChromaPipeline",
        "ZImagePipeline",
    }


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # by diffusers' own Chroma
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", IMAGE_TO_IMAGE)
def test_refining_a_picture_is_the_familys_own_image_to_image(
    name: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, pipe, seeds, prompts = CASES[name], CASES[name].make(), [7, 8], ["a red boat", "a big blue house"]
    seen: list[Progress] = []
    plan = Plan(refine_steps=steps, refine_sigma=0.3, **case.plan)
    fast = MrFlow(pipe, "bicubic", defaults=Defaults(max_sequence_length=case.text_length), batch_size=2)
    images = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(3))
    fast.enhance(list(images.split(1)), prompts, width=128, height=64, plan=plan, seed=seeds, callback=seen.append)
    upscaled, refined = (
        next(p.pixels for p in seen if p.stage == s and p.step == 1) for s in ("upscale", "decode")
    )
    assert upscaled is not None
    assert refined is not None

    # theirs draws from the posterior, with the generators that then make the noise; ours takes its mode
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    kind = getattr(diffusers, IMAGE_TO_IMAGE[name])
    oracle = kind(**{**pipe.components, "scheduler": FlowMatchEulerDiscreteScheduler()})
    oracle.set_progress_bar_config(disable=True)
    if hasattr(pipe, "prompt_template_encode"):
        oracle.prompt_template_encode = pipe.prompt_template_encode
    by_hand = {**copy.deepcopy(case.by_hand), "negative_prompt": ["", ""]}
    expected = oracle(
        prompt=list(prompts),
        image=upscaled,
        width=128,
        height=64,
        strength=1.0,
        num_inference_steps=steps,
        sigmas=[0.3 * (steps - k) / steps for k in range(steps)],
        generator=refine_generators(seeds),
        max_sequence_length=case.text_length,
        output_type="pt",
        **by_hand,
    ).images
    assert refined.shape == (2, 3, 64, 128)
    assert (refined - expected).abs().max() < 1e-5
    assert (refined - upscaled).abs().max() > 1e-3
