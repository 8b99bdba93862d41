"""Networks in tiles, held against themselves whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchmarks.tiles import seam
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from conftest import make_fast, make_pipe
from mrflow import Defaults, MrFlow, Plan, estimate, steps, vista
from mrflow.backbones.families import FAMILIES, largest_whole
from mrflow.costs import largest_tile
from mrflow.errors import PlanError, RequestError, SizeError
from mrflow.jobs import Asked, parse_bytes
from mrflow.progress import Progress
from mrflow.tiles import in_tiles
from mrflow.tiling import autoencoder_in_tiles, transformer_in_tiles
from support.controlnets import controlled, edges, flux_control, qwen_controlnet, z_image_controlnet
from support.families import CASES
from support.families import make_fast as make_family
from support.pictures import bytes_of
from support.pipelines import state_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__:DeprecationWarning")
CUT = [name for name in CASES if FAMILIES[name].positions != "never cut"]


def attend_to_oneself(
    query: Tensor, key: Tensor, value: Tensor, *_: Any, texts_first: bool = True, **__: Any
) -> Tensor:
    """Return attention of a token to itself alone, which depends on where it stands, as rotary tables say."""
    if query.shape[-2] > key.shape[-2]:  # to texts
        return torch.zeros_like(query)
    groups = query.shape[-3] // value.shape[-3]
    length = query.shape[-2]
    own = value[..., -length:, :] if texts_first else value[..., :length, :]
    return own.repeat_interleave(groups, -3) * query.tanh()


@pytest.fixture
def short_sighted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no token see another; autoencoders work whole, so that the transformer alone is in tiles."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend_to_oneself)
    monkeypatch.setattr(steps, "autoencoder_in_tiles", lambda *_: nullcontext())


def refined(fast: MrFlow, monkeypatch: pytest.MonkeyPatch, **given: Any) -> Tensor:
    """Return the latents that the refine pass gives."""
    kept, refine = list[Tensor](), steps.refine

    def keep(*args: Any) -> Tensor:
        kept.append(refine(*args))
        return kept[-1]

    with monkeypatch.context() as patch:
        patch.setattr(steps, "refine", keep)
        fast("a boat", seed=7, **given)
    return kept[-1]


def make_cut(name: str) -> tuple[MrFlow, Plan, dict[str, int]]:
    """Return a family with no weight at nought, a plan, and a picture of 8 x 4 patches."""
    case = CASES[name]
    pipe = case.make()
    for layer in pipe.transformer.modules():
        if hasattr(layer, "capacity_factor"):
            layer.capacity_factor = (
                layer.num_experts
            )  # each of NucleusMoE's experts takes all tokens, not the best
    for weight in pipe.transformer.parameters():
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    fast, plan = make_family(case, pipe), Plan(steps=1, refine_steps=2, refine_sigma=0.3, **case.plan)
    unit = fast.model.multiple
    return fast, plan, {"width": 8 * unit, "height": 4 * unit}


@pytest.mark.parametrize("name", CUT)
@pytest.mark.usefixtures("short_sighted")
def test_short_sighted_transformers_refine_the_same_in_tiles_where_positions_are_true(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, plan, size = make_cut(name)
    sight = partial(attend_to_oneself, texts_first=name != "NucleusMoEImagePipeline")
    monkeypatch.setattr(F, "scaled_dot_product_attention", sight)
    before = state_of(fast.pipe)
    whole = refined(fast, monkeypatch, plan=plan, **size)
    tiled = refined(fast, monkeypatch, plan=replace(plan, tile=size["height"]), **size)
    assert (state_of(fast.pipe), tiled.dtype) == (before, whole.dtype)
    error = float((tiled - whole).abs().max())
    # Sana has no positions, and linear attention of all to all
    assert (error < 1e-5) == (FAMILIES[name].positions == "true"), error
    assert error < float(whole.abs().max()) / 2


@pytest.mark.parametrize("given", ["FluxControlNetPipeline", "QwenImageControlNetPipeline", "FluxControlPipeline"])
@pytest.mark.usefixtures("short_sighted")
def test_what_a_control_image_adds_is_cut_too(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    makers = {"FluxControlNetPipeline": controlled, "QwenImageControlNetPipeline": qwen_controlnet}
    fast = MrFlow(makers.get(given, flux_control)(), "bicubic", defaults=Defaults(max_sequence_length=16))
    call = {"plan": Plan(steps=1, refine_sigma=0.3), "width": 128, "height": 64}
    alone, whole, tiled = (
        refined(fast, monkeypatch, **call, tile=tile, control_image=image)
        for tile, image in ((None, Image.new("RGB", (8, 8))), (None, edges(8, 8)), (64, edges(8, 8)))
    )
    assert (tiled - whole).abs().max() < 1e-5 < (alone - whole).abs().max()


@pytest.mark.usefixtures("short_sighted")
def test_references_are_seen_by_every_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, plan, size = make_cut("Flux2Pipeline")
    seen, pictures = list[int](), [edges(64, 64)]
    whole = refined(fast, monkeypatch, plan=plan, references=pictures, **size)
    hook = lambda _module, _args, kwargs: seen.append(kwargs["img_ids"].shape[1])  # noqa: E731
    fast.pipe.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    tiled = refined(fast, monkeypatch, plan=replace(plan, tile=size["height"]), references=pictures, **size)
    assert (tiled - whole).abs().max() < 1e-5
    assert (seen[0], set(seen[1:])) == (8 + 16, {16 + 16})  # tokens of the draft, of each tile; the reference's


@pytest.mark.parametrize("name", ["FluxPipeline", "StableDiffusion3Pipeline", "ZImagePipeline", "SanaPipeline"])
def test_one_tile_is_the_whole_to_the_bit(name: str) -> None:
    fast, plan, size = make_cut(name)
    whole = fast.native("a boat", seed=7, steps=1, plan=plan, **size)
    with transformer_in_tiles(fast.pipe.transformer, *size.values(), fast.model.multiple, 4096):
        assert bytes_of(fast.native("a boat", seed=7, steps=1, plan=plan, **size).images) == bytes_of(whole.images)


def test_tiles_come_and_go_also_after_an_error_and_leave_recipes_that_replay() -> None:
    fast = make_fast(make_pipe())
    given: dict[str, Any] = {"width": 128, "height": 64, "refine_steps": 2}
    made = fast("a boat", seed=7, tile=64, **given)
    assert made.recipes[0].plan.tile == 64
    assert bytes_of(fast.replay(made.recipes[0]).images) == bytes_of(made.images)
    assert bytes_of(made.images) != bytes_of(fast("a boat", seed=7, **given).images)
    before = state_of(fast.pipe)

    def stop(news: Progress) -> None:
        if news.stage == "refine" and news.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fast("a boat", seed=7, tile=64, callback=stop, **given)
    assert state_of(fast.pipe) == before
    (draft,) = fast.draft("a boat", seed=7, **given).drafts
    assert bytes_of(fast.finish(draft, tile=64).images) == bytes_of(made.images)


def test_larger_than_a_model_was_made_for_is_cut_unless_a_plan_says_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = make_fast(make_pipe())
    assert largest_whole("FluxPipeline") == largest_whole("FluxControlNetPipeline") == 2**22
    assert largest_whole("StableDiffusion3Pipeline") == largest_whole("AnythingElse") == 2**23
    for width, tile, resolved in (
        (2048, None, None),
        (2064, None, 64),
        (2064, "whole", "whole"),
        (2064, 128, 128),
    ):
        (job,) = fast.model.resolve(
            [Asked(prompt="a boat", seed=1, plan=Plan(tile=tile), width=width, height=2048)]
        )
        assert job.plan.tile == resolved
        assert job.plan.cut(width, 2048) == (resolved if isinstance(resolved, int) else None)
    (job,) = fast.model.resolve([Asked(prompt="a boat", seed=1, width=2064, height=2048)], native=True)
    assert job.plan.tile is None


def test_what_cannot_be_cut_is_refused_with_its_reason() -> None:
    controlled = {"control_image": edges(8, 8)}
    for fast, more in (
        (make_cut("QwenImage21Pipeline")[0], {}),
        (MrFlow(z_image_controlnet(), "bicubic"), controlled),
    ):
        side = 8 * fast.model.multiple
        with pytest.raises(PlanError, match=r"tile is 64; .*Pipeline can't be cut: its .*\. Leave it out"):
            fast("a boat", tile=64, width=side, height=side, **more)
        (job,) = fast.model.resolve([Asked(prompt="a boat", seed=1, width=4096, height=4096)])
        assert job.plan.tile is None
    fast = make_fast(make_pipe())
    with pytest.raises(PlanError, match="tile is 48; for this model it must be 64 at least"):
        fast("a boat", tile=48, width=128, height=64)
    with pytest.raises(PlanError, match="tile is 8; it must lie between 32 and 8192"):
        Plan(tile=8)
    with pytest.raises(PlanError, match="tile is 'some'; it must be a whole number or whole"):
        Plan(tile="some")


# --- autoencoders ---


@pytest.fixture(scope="module")
def painted() -> Iterator[tuple[Any, Tensor, Tensor]]:
    """Yield vista's autoencoder, a picture of 384 x 512 pixels in [-1, 1], smooth as a sky, and its latents."""
    vae = AutoencoderKL.from_pretrained(vista.folder() / "vae").eval()
    noise = torch.rand(1, 3, 3, 4, generator=torch.Generator().manual_seed(1))
    picture = F.interpolate(noise, (384, 512), mode="bicubic").clamp(0, 1) * 2 - 1
    with torch.no_grad():
        yield vae, picture, vae.encode(picture).latent_dist.mode()


@torch.no_grad()
def test_an_autoencoder_in_tiles_gives_what_it_gives_whole_where_diffusers_own_tiling_leaves_seams(
    painted: tuple[Any, Tensor, Tensor],
) -> None:
    vae, picture, latents = painted
    whole = vae.decode(latents).sample
    with autoencoder_in_tiles(vae, 256):
        tiled, encoded = vae.decode(latents).sample, vae.encode(picture).latent_dist.mode()
    assert not {"decode", "encode"} & vars(vae).keys()
    assert not any("forward" in vars(layer) for layer in vae.modules())
    assert (encoded - latents).abs().max() < 1e-5
    assert (tiled - whole).abs().max() * 127.5 < 0.25  # of 255 levels; the whole's own rounding is that large
    assert seam(tiled, whole, [128, 256, 384]) < 0.02
    cut = in_tiles(lambda y, x: vae.decode(latents[..., y, x]).sample, 48, 64, 32, 0)
    assert seam(cut, whole, [256]) > 0.1
    vae.tile_sample_min_size, vae.tile_latent_min_size = 256, 32
    vae.enable_tiling()
    own = vae.decode(latents).sample
    vae.disable_tiling()
    assert seam(own, whole, [192, 256, 384]) > 0.02


@torch.no_grad()
@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "QwenImagePipeline"])
def test_autoencoders_with_attention_come_near_to_the_whole(name: str) -> None:
    vae, video = CASES[name].make().vae, name == "QwenImagePipeline"
    noise = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(1))
    picture = F.interpolate(noise, (384, 512), mode="bicubic") * 2 - 1
    picture = picture.unsqueeze(2) if video else picture
    whole = vae.encode(picture).latent_dist.mode()
    pixels = vae.decode(whole).sample
    with autoencoder_in_tiles(vae, 256):
        tiled, again = vae.encode(picture).latent_dist.mode(), vae.decode(whole).sample
    assert (tiled.shape, again.shape) == (whole.shape, pixels.shape)
    # Statistics of group norms are found in passes, and random networks amplify errors; videos' have no such norms
    few = 1e-3 if video else 0.1
    assert (again - pixels).square().mean().sqrt() < few * pixels.std()
    assert (tiled - whole).square().mean().sqrt() < few * whole.std()
    assert ((again - pixels).mean((-1, -2)).abs() * 127.5 < 0.5).all()


# --- memory ---


def test_a_bound_of_memory_sets_the_tile_and_what_does_not_fit_is_refused() -> None:
    bounded = MrFlow(make_fast(make_pipe()).pipe, "bicubic", max_memory="35MB")
    side = bounded.model.side
    assert side in (256, 512)
    assert bounded.batch_size == 1
    (job,) = bounded.model.resolve([Asked(prompt="a boat", seed=1, width=2 * side, height=side)])
    assert job.plan.tile == side
    for tile in (1024, "whole"):
        with pytest.raises(SizeError, match=f"more than max_memory allows this model, {side}x{side}"):
            bounded("a boat", width=2048, height=2048, tile=tile)
    with pytest.raises(SizeError, match="2048x2048 pixels at a time"):
        bounded.native("a boat", width=2048, height=2048)
    with pytest.raises(SizeError, match="Take smaller drafts"):
        bounded.draft("a boat", width=2048, height=2048)
    assert largest_tile(bounded.model, 10**9) > side
    with pytest.raises(RequestError, match=r"max_memory is 0.001 GB and FluxPipeline needs .* for tiles of 256"):
        MrFlow(bounded.pipe, "bicubic", max_memory=10**6)
    texts = ("24GB", "1.5 gib", "3M", 5e6, "2Kib", "24 GBB")
    assert [parse_bytes(text) for text in texts[:4]] == [24 * 10**9, 3 * 2**29, 3 * 10**6, 5 * 10**6]
    for text in texts[4:]:
        with pytest.raises(RequestError, match="at least a megabyte"):
            parse_bytes(text)
    with pytest.raises(RequestError, match="max_memory is 'much'; it must be bytes"):
        MrFlow(bounded.pipe, "bicubic", max_memory="much")


def test_an_estimate_counts_tiles_and_finds_those_that_fit() -> None:
    size = {"width": 512, "height": 512, "native_steps": 1}
    plans = {"whole": Plan(steps=1, tile="whole"), "tiles": Plan(steps=1, tile=256)}
    found = estimate("vista", plans=plans, **size)
    whole, tiled = (way.stages for way in found.ways[1:])
    assert found.ways[2].calls - found.ways[1].calls == 8  # 9 tiles
    for stage in ("refine", "decode", "encode"):
        assert tiled[stage].activations < 0.5 * whole[stage].activations
    assert tiled["decode"].operations > whole["decode"].operations
    peaks = [found.peak(way) for way in found.ways]
    assert found.within(found.ways[1], peaks[1]) == ("whole", False)
    fitted = estimate("vista", plans={"1+1": Plan(steps=1)}, max_memory=peaks[2], **size).ways[1]
    assert (fitted.name, found.peak(fitted)) == ("1+1:tile=256", peaks[2])
    roomy = estimate("vista", plans={"1+1": Plan(steps=1)}, max_memory=peaks[1], **size).ways[1]
    assert (roomy.name, found.peak(roomy)) == ("1+1", peaks[1])
