"""Modular Diffusers blocks, held against MrFlow on the same tiny components."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers as d
import pytest
import torch
from diffusers import ModularPipeline
from torch import Tensor

from mrflow import MrFlow, Plan, Progress
from mrflow.errors import PlanError, SizeError
from mrflow.images import to_pil
from mrflow.modular import (
    FAMILIES,
    Blocks,
    Flux2KleinBlocks,
    Flux3Blocks,
    Flux3DistilledBlocks,
    FluxBlocks,
    Krea2TurboBlocks,
    QwenImage21Blocks,
    StableDiffusion3Blocks,
    ZImageBlocks,
)
from mrflow.sampling import draft_generators, make_noise, refine_generators, refine_sigmas
from mrflow.upscaler import Upscaler
from support.families import CASES, SIGMA, SIZE, make_fast
from support.pipelines import aligned

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers calls guiders experimental, each time one is made
PLAN = Plan(steps=3, refine_steps=2, refine_sigma=SIGMA, true_cfg_scale=1.0)
FLUX3 = (Flux3Blocks, Flux3DistilledBlocks)
"""Which have no pipeline that MrFlow could drive."""
BESIDE = [kind for kind in FAMILIES if kind not in FLUX3]
GUIDED = [kind for kind in BESIDE if "guider" in {each.name for each in kind().expected_components}]


def make(kind: type[Blocks], *, texts: bool = True) -> tuple[Any, MrFlow]:
    """Return the blocks' pipeline, with or without its text encoder, and MrFlow over the same components."""
    distilled = {"is_distilled": True} if kind in (Flux2KleinBlocks, Krea2TurboBlocks) else {}
    pipe = CASES[kind.pipeline].make(**distilled)
    blocks = kind()
    if not texts:
        blocks.sub_blocks.pop("text_encoder")
    made = blocks.init_pipeline()
    made.update_components(
        **{name: part for name, part in pipe.components.items() if name in made.component_names}
    )
    made.update_components(upscaler="bicubic")
    made.set_progress_bar_config(disable=True)
    return made, make_fast(CASES[kind.pipeline], pipe)


def encoded(fast: MrFlow, prompts: list[str], guided: bool = False) -> dict[str, Any]:
    """Return prompts as a pipeline's call takes them encoded: templates differ from what tiny pipelines have."""
    backbone, pipe = fast.model.backbone, fast.pipe
    rows = backbone.encode_prompts(pipe, prompts, [""] * len(prompts) if guided else None, 16)
    return backbone.stack(rows)


def ours(fast: MrFlow, prompts: list[str], plan: Plan) -> dict[str, Tensor]:
    """Return what MrFlow shows of each stage."""
    seen: dict[str, list[Tensor]] = {}

    def note(progress: Progress) -> None:
        if progress.pixels is not None:
            seen.setdefault(progress.stage, []).append(progress.pixels)

    fast(prompts, seed=7, width=SIZE[0], height=SIZE[1], plan=plan, callback=note)
    return {stage: torch.cat(parts) for stage, parts in seen.items()}


def run(made: Any, plan: Plan, **more: Any) -> Any:
    return made(seed=7, width=SIZE[0], height=SIZE[1], plan=plan, output_type="pt", **more)


@pytest.mark.parametrize("kind", BESIDE, ids=lambda kind: kind.__name__)
def test_the_blocks_give_what_mrflow_gives(kind: type[Blocks]) -> None:
    texts = kind is QwenImage21Blocks  # which tells more of its texts than their embeddings, and has no template
    made, fast = make(kind, texts=texts)
    embedded = {name: value for name, value in CASES[kind.pipeline].plan.items() if name == "guidance_scale"}
    plan = replace(PLAN, **embedded)
    state = run(made, plan, **({"prompt": "a red boat"} if texts else encoded(fast, ["a red boat"])))
    expected = ours(fast, ["a red boat"], plan)
    assert state.drafts.shape[-2:] == (SIZE[1] // 2, SIZE[0] // 2)
    assert (state.drafts[:, :3] - expected["decode_draft"]).abs().max() < 1e-5
    assert (state.upscaled - expected["upscale"]).abs().max() < 1e-5
    assert (state.images[:, :3].float() - expected["decode"]).abs().max() < 1e-5
    assert state.images.std() > 0.01


def make_flux3(kind: type[Blocks]) -> tuple[Any, Any]:
    """Return the blocks' pipeline and diffusers' own blocks over the same components, without text encoders."""
    torch.manual_seed(5)
    transformer = d.Flux3Transformer2DModel(
        in_channels=16,
        cond_in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(4, 4, 4, 4),
        flow_map=kind is Flux3DistilledBlocks,
    )
    parts = {"transformer": transformer.eval(), "vae": CASES["Flux2Pipeline"].make().vae}
    made = []
    for blocks in (kind(), getattr(d, kind.auto)()):
        for name in ("prompt_upsampler", "text_encoder"):
            blocks.sub_blocks.pop(name)
        pipe = blocks.init_pipeline()
        pipe.update_components(**parts)
        pipe.set_progress_bar_config(disable=True)
        made.append(pipe)
    made[0].update_components(upscaler="bicubic")
    return made[0], made[1]


def refined_by_hand(pipe: Any, pixels: Tensor, plan: Plan, texts: list[Tensor], scale: float) -> Tensor:
    """Return pictures (1, 3, H, W) after Euler steps written out, with tokens' places and times given outright."""
    vae, rows, columns = pipe.vae, SIZE[1] // 16, SIZE[0] // 16
    mean, std = vae.bn.running_mean, (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    patches = torch.nn.functional.pixel_unshuffle(vae.encode(pixels * 2 - 1).latent_dist.mode(), 2)
    tokens = (patches.flatten(2).mT - mean) / std
    noise = make_noise(patches.shape[1:], refine_generators([7])).flatten(2).mT
    sigmas = refine_sigmas(plan.refine_sigma, plan.refine_steps)
    x = (1 - sigmas[0]) * tokens + sigmas[0] * noise
    zero, down, across = torch.zeros(()), torch.arange(rows) * 0.5, torch.arange(columns) * 0.5
    places = torch.cartesian_prod(zero[None], down, across, zero[None])
    for sigma, after in pairwise(sigmas):
        answers = [
            pipe.transformer(
                hidden_states=x,
                encoder_hidden_states=text,
                timestep=torch.tensor([sigma]),
                img_ids=places,
                txt_ids=torch.cat([torch.zeros(text.shape[1], 3), torch.arange(text.shape[1])[:, None]], 1),
                **({"target_timestep": torch.tensor([after])} if pipe.transformer.config.flow_map else {}),
            ).sample
            for text in texts
        ]
        velocity = answers[0] if scale == 1 else answers[1] + scale * (answers[0] - answers[1])
        x = x + (after - sigma) * velocity
    grid = (x * std + mean).mT.unflatten(2, (rows, columns))
    return (vae.decode(torch.nn.functional.pixel_shuffle(grid, 2)).sample / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("kind", FLUX3, ids=lambda kind: kind.__name__)
def test_flux3_drafts_as_its_own_blocks_do_and_refines_as_written_out(kind: type[Blocks], scale: float) -> None:
    distilled = kind is Flux3DistilledBlocks
    if distilled and scale != 1:
        pytest.skip("distilled ones have no guidance")
    made, own = make_flux3(kind)
    plan = replace(PLAN, noise="own", true_cfg_scale=scale)
    texts = [torch.randn(1, 7, 12), torch.randn(1, 5, 12)]
    given = {"prompt_embeds": texts[0]} | ({} if scale == 1 else {"negative_prompt_embeds": texts[1]})
    state = run(made, plan, **given)
    if not distilled:
        own.update_components(guider=d.ClassifierFreeGuidance(guidance_scale=scale, enabled=scale > 1))
    draft = own(
        num_inference_steps=3,
        generator=draft_generators([7]),
        width=SIZE[0] // 2,
        height=SIZE[1] // 2,
        output_type="pt",
        **given,
    ).images
    assert (state.drafts - draft).abs().max() < 1e-5
    expected = refined_by_hand(made, state.upscaled, plan, texts, scale)
    assert (state.images - expected).abs().max() < 1e-5
    assert state.images.std() > 0.01
    assert (run(made, replace(plan, noise="native"), **given).drafts - draft).abs().max() > 0.01


def test_flux3_rewrites_prompts_first_unless_that_is_taken_out() -> None:
    for kind in FLUX3:
        assert list(kind().sub_blocks)[:3] == ["prompt_upsampler", "text_encoder", "vae_encoder"]


def test_a_familys_pipeline_is_that_of_its_own_blocks() -> None:
    for kind in FAMILIES:
        made, own = kind().init_pipeline(), getattr(d, kind.auto)().init_pipeline()
        assert type(made) is type(own)


@torch.no_grad()
def test_flux3_sees_a_reference_in_both_passes() -> None:
    """Its tokens, as its own blocks encode them, beside the picture's in every call of the transformer."""
    made, own = make_flux3(Flux3Blocks)
    seen: list[Tensor] = []
    made.transformer.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["image_cond_hidden_states"]), with_kwargs=True
    )
    image = to_pil(torch.rand(1, 3, 48, 80, generator=torch.Generator().manual_seed(2)))[0]
    asked = {"prompt_embeds": torch.randn(1, 7, 12), "image": image}
    state, count = run(made, PLAN, **asked), len(seen)
    assert state.images.shape[-2:] == (SIZE[1], SIZE[0])
    own.update_components(guider=d.ClassifierFreeGuidance(enabled=False))
    latents = own(num_inference_steps=1, **asked).image_cond_latents
    assert count == 3 + 2
    assert all(torch.allclose(each, latents[0].flatten(2).mT, atol=1e-6) for each in seen)


def test_noise_of_a_drafts_own_can_be_asked_for() -> None:
    made, fast = make(FluxBlocks, texts=False)
    drafts = {}
    for noise in ("own", "native"):
        plan = replace(PLAN, noise=noise)
        drafts[noise] = run(made, plan, **encoded(fast, ["a red boat"])).drafts
        assert (drafts[noise] - ours(fast, ["a red boat"], plan)["decode_draft"]).abs().max() < 1e-5
    assert not torch.equal(drafts["own"], drafts["native"])


@pytest.mark.parametrize("kind", GUIDED, ids=lambda kind: kind.__name__)
def test_guidance_is_the_plans(kind: type[Blocks]) -> None:
    plan = Plan(steps=3, refine_sigma=SIGMA, true_cfg_scale=3.0, refine_true_cfg_scale=1.5, guidance_stop=0.5)
    texts = kind is QwenImage21Blocks
    made, fast = make(kind, texts=texts)
    own, asked = made.guider, {"prompt": "a red boat", "negative_prompt": ""}
    images = run(made, plan, **(asked if texts else encoded(fast, ["a red boat"], guided=True))).images
    assert made.guider is own
    assert (images[:, :3].float() - ours(fast, ["a red boat"], plan)["decode"]).abs().max() < 1e-5


@pytest.mark.parametrize("kind", [FluxBlocks, ZImageBlocks], ids=lambda kind: kind.__name__)
def test_prompts_of_a_batch_have_seeds_of_their_own(kind: type[Blocks]) -> None:
    made, fast = make(kind)
    prompts = ["a red boat", "a big house"]
    state = run(made, PLAN, prompt=prompts, max_sequence_length=16)
    assert state.seeds == [7, 8]
    assert (state.images - ours(fast, prompts, PLAN)["decode"]).abs().max() < 2e-5


def test_a_solver_takes_the_drafts_steps() -> None:
    made, fast = make(FluxBlocks, texts=False)
    plan = Plan(steps=4, refine_sigma=SIGMA, true_cfg_scale=1.0, solver="unipc")
    images = run(made, plan, **encoded(fast, ["a red boat"])).images
    assert (images - ours(fast, ["a red boat"], plan)["decode"]).abs().max() < 1e-5


def test_all_is_put_back_after_an_error() -> None:
    made, fast = make(StableDiffusion3Blocks, texts=False)
    own, texts = (made.scheduler, made.guider), encoded(fast, ["a red boat"])
    before = own[0].sigmas.clone()
    whole, calls = made.transformer.forward, []

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) in broken:
            raise RuntimeError("broken on purpose")
        return whole(*args, **kwargs)

    made.transformer.forward = fail
    for broken in ([2], [4]):  # in the draft; in the refine pass
        calls.clear()
        with pytest.raises(RuntimeError, match="on purpose"):
            run(made, PLAN, **texts)
        assert len(calls) == broken[0]
        assert (made.scheduler, made.guider) == own
        assert torch.equal(made.scheduler.sigmas, before)


def test_unasked_they_take_the_upscaler_that_mrflow_takes() -> None:
    made = FluxBlocks().init_pipeline()
    assert made.config.upscaler == Upscaler.usual().name


@pytest.mark.parametrize("kind", [FluxBlocks, ZImageBlocks], ids=lambda kind: kind.__name__)
def test_saved_and_loaded_they_give_the_same(kind: type[Blocks], tmp_path: Path) -> None:
    made, _ = make(kind)
    folder = str(tmp_path / "saved")
    made.save_pretrained(folder, overwrite_modular_index=True)
    made.blocks.save_pretrained(folder)
    loaded = ModularPipeline.from_pretrained(folder, trust_remote_code=True)
    loaded.load_components()
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.blocks) is kind
    assert loaded.config.upscaler == "bicubic"
    asked = {"prompt": "a red boat", "max_sequence_length": 16}
    assert torch.equal(run(aligned(loaded), PLAN, **asked).images, run(made, PLAN, **asked).images)


def test_blocks_say_what_they_take_and_do() -> None:
    for kind in FAMILIES:
        blocks = kind()
        assert {"plan", "width", "height", "seed"} <= {each.name for each in blocks.inputs}
        assert not {"latents", "generator", "num_inference_steps", "seeds", "noised"} & set(blocks.input_names)
        for name in ("plan", "draft", "lift", "noise", "refine"):
            assert blocks.sub_blocks[name].description
        assert all(each.description for each in blocks.sub_blocks["lift"].inputs)


def test_what_cannot_be_is_refused() -> None:
    made, fast = make(FluxBlocks, texts=False)
    texts = encoded(fast, ["a red boat"])
    with pytest.raises(SizeError, match="multiples of 16"):
        made(seed=7, width=100, height=64, plan=PLAN, **texts)
    with pytest.raises(PlanError, match="no plan 'quick'"):
        made(seed=7, width=128, height=64, plan="quick", **texts)
    with pytest.raises(PlanError, match="refine_sigma is 'switch'"):
        run(made, "3/4", **texts)
    with pytest.raises(PlanError, match="by the upscaler alone"):
        run(made, Plan(color_guard=0.1), **texts)
