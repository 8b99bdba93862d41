"""How a draft gets larger: pixels or latents, by a network or by interpolation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torch.nn.functional import interpolate

from conftest import make_fast, make_pipe
from mrflow import Draft, MrFlow, Plan, Recipe, Upscaler
from mrflow.borrowing import borrowed
from mrflow.errors import ImageError, ModelError, RecipeError
from mrflow.jobs import ask
from mrflow.steps import Batch, Run, encode_prompts, finish, upscale_latents
from mrflow.steps import draft as draw
from support.families import CASES, SIZE
from support.families import make_fast as make_family
from support.latents import write_network
from support.pictures import bytes_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__:DeprecationWarning")

LATENT = Plan(steps=2, lift="latent")


def picture(image: Any) -> Any:
    return np.asarray(image)


ODD = ("FluxPipeline", "QwenImagePipeline", "Flux2Pipeline", "Flux2KleinPipeline", "PRXPixelPipeline")


@pytest.mark.parametrize(("name", "scale"), [*((name, 2.0) for name in CASES), *((name, 1.5) for name in ODD)])
def test_latents_are_interpolated_where_they_lie_beside_each_other(name: str, scale: float) -> None:
    """The oracle is torch's own, in float64, on what the autoencoder's decoder would be given."""
    case, size = CASES[name], SIZE
    fast = make_family(case, case.make())
    backbone, pipe = fast.model.backbone, fast.pipe
    (job,) = fast.model.resolve(
        ask("a red boat", seed=7, width=size[0], height=size[1], plan=replace(LATENT, scale=scale))
    )
    with borrowed(pipe):
        run = Run.over(fast.model)
        batch = encode_prompts(run, Batch([job]))
        pixels, given = draw(run, batch)
        height, width = pixels.shape[-2:]
        small = backbone.unpack(pipe, given, width, height)
        large = upscale_latents(run, batch, small, pixels)
        again = backbone.encode(pipe, torch.rand(1, 3, size[1], size[0]))
        _, made = finish(run, batch, pixels, given)
    own = _own_latents(pipe, small)
    sides = [side * of // by for side, of, by in zip(own.shape[-2:], size[::-1], (height, width), strict=True)]
    wanted = interpolate(own.double(), sides, mode="bicubic", align_corners=False)
    assert large.shape == again.shape
    assert (_own_latents(pipe, large) - wanted).abs().max() < 2e-4 * wanted.abs().max()
    assert made.shape == (1, 3, size[1], size[0])


def _own_latents(pipe: Any, latents: Any) -> Any:
    """Return latents as they lie in space: without the 2x2 patches of the families of FLUX.2's autoencoder."""
    if not hasattr(getattr(pipe, "vae", None), "bn"):
        return latents
    bn, eps = pipe.vae.bn, 1e-5 if type(pipe).__name__.startswith("Ernie") else pipe.vae.config.batch_norm_eps
    raw = latents * (bn.running_var + eps).sqrt().view(1, -1, 1, 1) + bn.running_mean.view(1, -1, 1, 1)
    return pipe._unpatchify_latents(raw)


def test_the_latents_of_a_draft_are_those_that_its_pixels_were_decoded_from(fast: MrFlow) -> None:
    draft = fast.draft("a boat", seed=3, plan=LATENT)[0]
    with torch.no_grad():
        pixels = fast.model.backbone.decode(fast.pipe, draft.latents, 32, 32)
    assert torch.equal(pixels, draft.pixels)


@pytest.mark.parametrize("lift", ["upscaler", "bicubic", "latent"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_batch_equals_its_pictures_made_alone(lift: str, batch_size: int) -> None:
    fast, plan = make_fast(make_pipe(), batch_size=batch_size), Plan(steps=2, lift=lift, color_guard=0.2)
    both = fast(["a boat", "a red boat"], seed=[3, 4], plan=plan, output_type="pt").images
    for k, prompt in enumerate(("a boat", "a red boat")):
        alone = fast(prompt, seed=3 + k, plan=plan, output_type="pt").images
        assert (both[k : k + 1] - alone).abs().max() < (2e-5 if batch_size > 1 else 1e-9)


def test_a_plan_says_which_lift_and_the_recipe_what_it_was(network_file: Path) -> None:
    fast = make_fast(make_pipe(), upscaler=network_file)
    names = [fast("a boat", seed=3, plan=Plan(steps=2, lift=lift)).recipes[0] for lift in ("upscaler", "bicubic")]
    assert [each.upscaler for each in names] == [network_file.name, "bicubic"]
    assert [each.upscaler_sha256 is None for each in names] == [False, True]
    plain = make_fast(make_pipe())
    lifted = fast("a boat", seed=3, plan=Plan(steps=2, lift="bicubic")).images
    assert bytes_of(lifted) == bytes_of(plain("a boat", seed=3, plan=Plan(steps=2)).images)
    named = make_fast(make_pipe(), upscaler="latent")("a boat", seed=3, plan=Plan(steps=2)).images
    assert bytes_of(named) == bytes_of(fast("a boat", seed=3, plan=LATENT).images)


def test_a_lift_of_latents_neither_encodes_nor_decodes_in_between(fast: MrFlow) -> None:
    seen: list[str] = []
    fast.pipe.vae.encoder.register_forward_hook(lambda *_: seen.append("encoded"))
    result = fast("a boat", seed=3, plan=LATENT, keep_upscaled=True, callback=lambda news: seen.append(news.stage))
    assert "encoded" not in seen
    assert "encode" not in seen
    assert result.recipes[0].latents is None
    assert result.upscaled[0].size == (64, 64)
    mean = [picture(each).mean() for each in (result.upscaled[0], result.drafts[0].image)]
    assert abs(mean[0] - mean[1]) < 10  # what is shown of the lift is the draft, larger


@pytest.mark.parametrize("name", ["FluxPipeline", "QwenImagePipeline", "Flux2KleinPipeline", "SanaPipeline"])
def test_a_draft_from_a_file_is_finished_from_the_same_latents(name: str, tmp_path: Path) -> None:
    fast = make_family(CASES[name], CASES[name].make())
    draft = fast.draft("a red boat", seed=3, lift="latent")[0]
    loaded = Draft.from_image(draft.save(tmp_path / "draft.png"))
    assert torch.equal(loaded.latents, draft.latents)
    assert loaded.latents.dtype == draft.latents.dtype
    made = fast.finish(loaded)
    assert bytes_of(made.images) == bytes_of(fast.finish(draft).images)
    recipe = Recipe.from_json(made.recipes[0].to_json())
    assert (recipe.mode, recipe.latents, recipe.upscaler) == ("finish", None, "latent")
    assert bytes_of(fast.replay(recipe).images) == bytes_of(made.images)


def test_a_draft_without_latents_is_encoded_and_its_recipe_says_so(fast: MrFlow, tmp_path: Path) -> None:
    draft = fast.draft("a boat", seed=3, plan=LATENT)[0]
    loaded = Draft.from_image(draft.save(tmp_path / "draft.webp"))
    assert loaded.latents is None
    made = fast.finish(loaded)
    recipe = Recipe.from_json(made.recipes[0].to_json())
    assert (recipe.mode, recipe.latents) == ("finish", "encoded")
    assert bytes_of(fast.replay(recipe).images) == bytes_of(made.images) != bytes_of(fast.finish(draft).images)
    given = fast.enhance(draft.image, "a boat", seed=3, plan=LATENT)
    assert given.recipes[0].latents == "encoded"
    assert bytes_of(fast.replay(given.recipes[0], draft.image).images) == bytes_of(given.images)


def test_only_a_plan_that_enlarges_latents_needs_them(fast: MrFlow, tmp_path: Path) -> None:
    draft = fast.draft("a boat", seed=3, plan=Plan(steps=2))[0]
    later = fast.finish(Draft.from_image(draft.save(tmp_path / "draft.png")), lift="latent")
    assert bytes_of(later.images) == bytes_of(fast("a boat", seed=3, plan=LATENT).images)
    assert fast.finish(replace(draft, latents=None)).recipes[0].latents is None


def test_a_draft_of_another_model_or_a_retouched_one_is_encoded(fast: MrFlow, tmp_path: Path) -> None:
    draft = fast.draft("a boat", seed=3, plan=LATENT)[0]
    strange = replace(draft, base_recipe=replace(draft.base_recipe, model="another"))
    assert fast.finish(strange).recipes[0].latents == "encoded"
    path, image = tmp_path / "draft.png", draft.image.copy()
    image.putpixel((0, 0), (255, 0, 0))
    info = PngImagePlugin.PngInfo()
    info.add_text("mrflow", draft.recipe.to_json())
    info.add(b"mfLA", _chunk(draft, tmp_path))
    image.save(path, pnginfo=info)
    assert Draft.from_image(path).latents is None


def _chunk(draft: Draft, folder: Path) -> bytes:
    with Image.open(draft.save(folder / "whole.png")) as image:
        return next(data for name, data, *_ in image.private_chunks if name == b"mfLA")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cannot be read"),
        (b"\xff" * 64, "cannot be read"),
        (b"\x80\x02c", "cannot be read"),  # a pickle
        ({"others": torch.zeros(1, 16, 4, 4)}, "cannot be read"),
        ({"latents": torch.full((1, 16, 4), float("nan"))}, "no finite numbers"),
        ({"latents": torch.zeros(1, 16, 4, dtype=torch.int64)}, "no finite numbers"),
        ({"latents": torch.zeros(1, 3, 64)}, "are .1, 3, 64.; of this model they are .1, 16, 4, 4."),
        ({"latents": torch.zeros(1, 4, 32)}, "are .1, 8, 4, 4.; of this model"),
        ({"latents": torch.zeros(2, 4, 64)}, "are .2, 16, 4, 4.; of this model"),
    ],
)
def test_hostile_latents_are_refused(fast: MrFlow, tmp_path: Path, data: Any, words: str) -> None:
    from safetensors.torch import save

    draft = fast.draft("a boat", seed=3, plan=LATENT)[0]
    info = PngImagePlugin.PngInfo()
    info.add_text("mrflow", draft.recipe.to_json())
    info.add(b"mfLA", data if isinstance(data, bytes) else save(data))
    draft.image.save(tmp_path / "draft.png", pnginfo=info)
    with pytest.raises(ImageError, match=words):
        fast.finish(Draft.from_image(tmp_path / "draft.png"))


def test_too_many_latents_are_not_read(fast: MrFlow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fast.draft("a boat", seed=3)[0].save(tmp_path / "draft.png")
    monkeypatch.setattr("mrflow.files.MAX_LATENTS", 100)
    with pytest.raises(ImageError, match="at most 100 are read"):
        Draft.from_image(path)


def test_a_recipe_knows_no_other_word_for_latents(fast: MrFlow) -> None:
    recipe = fast("a boat", seed=3).recipes[0]
    with pytest.raises(RecipeError, match="latents is 'given'"):
        replace(recipe, latents="given")


def test_a_network_of_latents_lifts_and_is_named(tmp_path: Path) -> None:
    path = write_network(tmp_path / "latents.safetensors", channels=16)
    fast = make_fast(make_pipe(), upscaler=path)
    result = fast("a boat", seed=3, plan=Plan(steps=2))
    recipe = result.recipes[0]
    assert (recipe.upscaler, recipe.upscaler_sha256) == (path.name, Upscaler.load(path).sha256)
    assert bytes_of(fast.replay(recipe).images) == bytes_of(result.images)
    assert bytes_of(result.images) != bytes_of(fast("a boat", seed=3, plan=LATENT).images)
    three = fast("a boat", seed=3, width=96, height=96, plan=Plan(steps=2, scale=3))
    assert three.images[0].size == (96, 96)
    with pytest.raises(ModelError, match="latents of 4 channels; this autoencoder's have 16"):
        make_fast(make_pipe(), upscaler=write_network(tmp_path / "four.safetensors", channels=4))("a boat")
