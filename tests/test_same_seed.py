"""The same seed shows the same scene: a draft may begin from the plain pipeline's noise, brought down."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import make_fast, make_pipe
from mrflow import Draft, MrFlow, Plan, Recipe, read_recipe
from mrflow.backbones import get_backbone
from mrflow.borrowing import borrowed, run_pipeline
from mrflow.sampling import draft_generators, shrink_noise
from mrflow.schedulers import own_scheduler, take_head
from support.families import CASES
from support.pictures import bytes_of
from support.pipelines import own_call

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__:DeprecationWarning")

NATIVE = Plan(steps=2, noise="native")


@pytest.mark.parametrize("size", [(4, 4), (4, 8), (3, 5), (5, 8), (7, 7), (1, 1), (8, 8)])
def test_noise_brought_down_is_white_and_of_unit_variance(size: tuple[int, int]) -> None:
    """The map from 8x8 values to fewer has orthonormal rows, so that white noise stays what it is."""
    basis = torch.eye(64).reshape(64, 1, 8, 8)
    rows = shrink_noise(basis, *size).reshape(64, -1).T.double()
    assert torch.allclose(rows @ rows.T, torch.eye(size[0] * size[1], dtype=torch.float64), atol=1e-6)


def test_whole_ratios_are_averages() -> None:
    noise = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    by_hand = noise.reshape(2, 3, 4, 2, 6, 2).sum((3, 5)) / 2
    assert torch.allclose(shrink_noise(noise, 4, 6), by_hand, atol=1e-6)


def test_the_draft_begins_from_the_pooled_noise_of_the_plain_pipeline() -> None:
    """FLUX.1 draws (1, 16, H/8, W/8) values: pooled by hand here, and handed to the plain pipeline."""
    pipe = make_pipe()
    full = torch.randn(1, 16, 8, 8, generator=draft_generators([7])[0])
    small = torch.nn.functional.avg_pool2d(full, 2) * 2
    draft = make_fast(pipe).draft("a red boat", seed=7, plan=NATIVE)[0]
    packed = pipe._pack_latents(small, *small.shape)
    plain = own_call(pipe, negative_prompt="", true_cfg_scale=2.0, latents=packed)
    assert torch.equal(draft.pixels, plain)


@pytest.mark.parametrize("name", CASES)
def test_the_noise_is_what_the_pipeline_draws(name: str) -> None:
    """Given back as latents, it makes the very picture that the seed makes."""
    case, pipe, backbone = CASES[name], CASES[name].make(), get_backbone(name)
    size = (64, 64) if backbone.multiple(CASES[name].make()) <= 32 else (128, 128)
    with borrowed(pipe):
        rows = backbone.encode_prompts(pipe, ["a red boat"], None, case.text_length)
        arguments = {
            **backbone.call_arguments(pipe, rows, case.plan.get("guidance_scale"), 1.0),
            **backbone.draft_arguments(pipe, 2),
            **dict(zip(("width", "height"), size, strict=True)),
        }
        own, quiet = backbone.settings(pipe, *size), lambda _: None
        empty = own_scheduler(pipe)
        take_head(empty, 0)
        seeded = {**arguments, "generator": draft_generators([7])}
        given, _ = run_pipeline(pipe, {**own, "scheduler": empty}, seeded, quiet)
        noise = backbone.unpack(pipe, given, *size)
        again = {**arguments, "latents": backbone.pack(pipe, noise), "generator": draft_generators([7])}
        seeded = {**arguments, "generator": draft_generators([7])}
        ends = []
        for each in (again, seeded):
            ends.append(run_pipeline(pipe, {**own, "scheduler": own_scheduler(pipe)}, each, quiet)[0])
    assert noise.ndim == 4
    assert 0.8 < float(noise.std()) < 1.2
    assert torch.allclose(*ends, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_batch_equals_its_pictures_made_alone(batch_size: int) -> None:
    fast = make_fast(make_pipe(), batch_size=batch_size)
    both = fast.draft(["a boat", "a red boat"], seed=[3, 4], plan=NATIVE)
    for k, prompt in enumerate(("a boat", "a red boat")):
        alone = fast.draft(prompt, seed=3 + k, plan=NATIVE)[0]
        assert (both[k].pixels - alone.pixels).abs().max() < 1e-5


def test_new_pictures_have_it_and_old_recipes_do_not(fast: MrFlow, tmp_path: Path) -> None:
    own, native = (fast("a boat", seed=3, noise=each) for each in ("own", "native"))
    assert bytes_of(fast("a boat", seed=3).images) == bytes_of(native.images) != bytes_of(own.images)
    told, ours = json.loads(own.recipes[0].to_json()), json.loads(native.recipes[0].to_json())
    assert "noise" not in told["plan"]  # which is what was written before there was a choice
    assert ours["plan"]["noise"] == "native"
    assert bytes_of(fast.replay(Recipe.from_json(json.dumps(told))).images) == bytes_of(own.images)
    draft = fast.draft("a boat", seed=3, noise="own")[0]
    before = Draft.from_image(draft.save(tmp_path / "draft.png"))
    assert fast.finish(before, plan="12+1").recipes[0].plan.noise == "own"  # it is no longer to be chosen


def test_a_picture_of_version_0_1_0_is_made_again_from_the_noise_it_had(fast: MrFlow) -> None:
    """By the plain pipeline's call at the draft's size, as that version made it."""
    old = read_recipe(Path(__file__).parent / "fixtures" / "0.1.0" / "draft.png")
    assert old.plan.noise == "own"
    recipe = replace(old, model=fast.model.name, prompt="a red boat", max_sequence_length=16)
    recipe = replace(recipe, plan=replace(old.plan, solver="own", guidance_stop=1.0))
    guided = {"negative_prompt": "", "true_cfg_scale": recipe.plan.true_cfg_scale}
    asked = {"prompt": recipe.prompt, "generator": draft_generators([recipe.seed]), "output_type": "pil"}
    plain = own_call(fast.pipe, recipe.width // 2, recipe.height // 2, recipe.plan.steps, **guided, **asked)
    assert bytes_of(fast.replay(recipe).images) == bytes_of(plain)


def test_solvers_and_guidance_that_stops_begin_there_too(fast: MrFlow) -> None:
    first: list[Any] = []
    hook = lambda _m, _a, kwargs: first.append(kwargs["hidden_states"])  # noqa: E731
    fast.pipe.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    seen = []
    for more in ({}, {"solver": "unipc"}, {"guidance_stop": 0.5, "true_cfg_scale": 2.0}):
        first.clear()
        fast.draft("a boat", seed=3, plan=Plan(steps=2, noise="native", **more))
        seen.append(first[0][:1])
    assert all(torch.equal(each, seen[0]) for each in seen)


def test_the_transformer_is_not_asked_for_the_noise(fast: MrFlow) -> None:
    calls: list[int] = []
    fast.pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    fast("a boat", seed=3, plan=Plan(steps=2, true_cfg_scale=1.0, noise="native"))
    assert len(calls) == 3


def test_a_finished_draft_keeps_where_its_noise_came_from(fast: MrFlow, tmp_path: Path) -> None:
    draft = fast.draft("a boat", seed=3, plan=NATIVE)[0]
    loaded = Draft.from_image(draft.save(tmp_path / "draft.png"))
    larger = fast.finish(draft, scale=3)
    recipe = Recipe.from_json(larger.recipes[0].to_json())
    assert (recipe.size, recipe.noise_width, recipe.noise_height) == ((96, 96), 64, 64)
    assert bytes_of(fast.replay(recipe).images) == bytes_of(larger.images)
    assert bytes_of(fast.finish(loaded, scale=3).images) != []
    usual = fast.finish(draft).recipes[0]
    assert (usual.noise_width, usual.plan.noise) == (None, "native")
    assert bytes_of(fast.replay(usual).images) == bytes_of(fast("a boat", seed=3, plan=NATIVE).images)


def test_refining_is_not_done_with_the_noise_that_made_the_picture(fast: MrFlow) -> None:
    """A picture refined with its own noise ends as a haloed copy (diffusers#14824)."""
    seen: list[Any] = []
    hook = lambda _m, _a, kwargs: seen.append(kwargs["hidden_states"].clone())  # noqa: E731
    fast.pipe.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    fast.enhance(
        torch.full((1, 3, 32, 32), 0.5), "a boat", seed=3, plan=Plan(true_cfg_scale=1.0, refine_sigma=0.9)
    )
    refined = fast.pipe._unpack_latents(seen[-1], 64, 64, 8).flatten()
    drawn = torch.randn(1, 16, 8, 8, generator=draft_generators([3])[0]).flatten()
    assert abs(float(torch.corrcoef(torch.stack([refined, drawn]))[0, 1])) < 0.15
