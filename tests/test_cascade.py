"""Plans of more than two sizes: each level held against the same done by hand, on tensors, one after the other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import make_fast, make_pipe
from mrflow import Draft, MrFlow, Plan, Recipe, estimate, sampling, steps
from mrflow.bench.methods import read_methods
from mrflow.bench.tune import make_candidates, name_plan
from mrflow.errors import PlanError, RequestError, SizeError
from mrflow.files import read_recipe, save_image
from mrflow.plan import get_plan
from mrflow.progress import Progress
from mrflow.sampling import make_noise, refine_generators
from support.families import CASES
from support.families import make_fast as make_family
from support.pictures import bytes_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__:DeprecationWarning")
PLAN = Plan(steps=2, scales=(2, 2), refine_steps=(1, 2), refine_sigma=(0.12, 0.3), true_cfg_scale=1.0, noise="own")
SIZE = {"width": 128, "height": 64}


@contextmanager
def second_stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give what is made by hand the noise of a second level."""
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "refine_generators", lambda seeds, _level: refine_generators(seeds, 2))
        yield


def by_hand(fast: MrFlow, plan: Plan, patch: pytest.MonkeyPatch, size: dict[str, int], **more: Any) -> Tensor:
    """Return what a draft gives that is finished at half the size, and its tensor enhanced to the whole."""
    first, second = plan.levels
    half = {name: side // 2 for name, side in size.items()}
    middle = fast.finish(fast.draft("a boat", seed=7, plan=first, **half), output_type="pt", **more)
    with second_stream(patch):
        made = fast.enhance(middle.images, "a boat", seed=7, plan=second, output_type="pt", **size, **more)
    assert middle.images.shape[-2:] == (half["height"], half["width"])
    return made.images


@pytest.mark.parametrize("name", CASES)
def test_each_family_lifts_and_refines_twice_as_by_hand(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    fast, plan = make_family(case, case.make()), replace(PLAN, **{**case.plan, "true_cfg_scale": 1.0})
    size = {"width": 8 * fast.model.multiple, "height": 4 * fast.model.multiple}
    made = fast("a boat", seed=7, plan=plan, output_type="pt", **size)
    assert (made.images - by_hand(fast, plan, monkeypatch, size)).abs().max() < 1e-5
    assert made.images.shape[-2:] == (size["height"], size["width"])
    assert made.recipes[0].plan.scales == (2, 2)


@pytest.mark.parametrize(
    "more",
    [
        {"lift": "bicubic"},
        {"color_guard": 0.25},
        {"true_cfg_scale": 3.0, "refine_true_cfg_scale": 2.0, "solver": "unipc"},
        {"refine_steps": 3, "refine_sigma": 0.4},
        {"scales": (2, 1)},
    ],
)
def test_whatever_else_a_plan_says_holds_at_each_level(
    more: dict[str, Any], network_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, plan = make_fast(make_pipe(), upscaler=network_file), replace(PLAN, **more)
    made = fast("a boat", seed=7, plan=plan, output_type="pt", **SIZE).images
    half = 1 if plan.scales == (2, 1) else 2
    first, second = plan.levels
    middle = fast("a boat", seed=7, plan=first, width=128 // half, height=64 // half, output_type="pt").images
    with second_stream(monkeypatch):
        wanted = fast.enhance(middle, "a boat", seed=7, plan=second, output_type="pt", **SIZE).images
    assert torch.equal(made, wanted)
    assert not torch.equal(
        made, fast.enhance(middle, "a boat", seed=7, plan=second, output_type="pt", **SIZE).images
    )


def test_latents_are_lifted_again_without_ever_being_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, plan, kept = make_fast(make_pipe()), replace(PLAN, lift="latent"), list[Tensor]()
    refine = steps.refine

    def keep(*args: Any) -> Tensor:
        kept.append(refine(*args))
        return kept[-1]

    with monkeypatch.context() as patch:
        patch.setattr(steps, "refine", keep)
        made = fast("a boat", seed=7, plan=plan, output_type="pt", keep_upscaled=True, **SIZE)
    assert "encode" not in made.seconds
    assert made.upscaled[0].size == (128, 64)
    first, second = plan.levels
    middle = fast("a boat", seed=7, plan=first, width=64, height=32, output_type="pt").images
    (base,) = fast.draft("a boat", seed=7, plan=second, **SIZE).drafts
    with second_stream(monkeypatch):
        wanted = fast.finish(Draft(middle, base.base_recipe, base.embeds, kept[0]), output_type="pt").images
    assert torch.equal(made.images, wanted)


def test_every_level_has_noise_of_its_own_and_the_first_what_it_had() -> None:
    def seed_of(text: str) -> int:
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    assert refine_generators([7])[0].initial_seed() == seed_of("mrflow refine 7")
    assert refine_generators([7], 2)[0].initial_seed() == seed_of("mrflow refine 7 2")
    rows = torch.cat([make_noise((4, 64, 64), refine_generators([7, 8], level)) for level in (1, 2, 3)])
    like = torch.corrcoef(rows.flatten(1)) - torch.eye(6)
    assert like.abs().max() < 5 / (4 * 64 * 64) ** 0.5


def test_a_batch_is_what_its_pictures_are_alone() -> None:
    fast = make_fast(make_pipe(), batch_size=3)
    together = fast(["a boat", "a house", "a boat"], seed=[1, 2, 3], plan=PLAN, output_type="pt", **SIZE)
    assert [recipe.batch for recipe in together.recipes] == [3, 3, 3]
    for k, prompt in enumerate(["a boat", "a house", "a boat"]):
        alone = make_fast(fast.pipe)(prompt, seed=k + 1, plan=PLAN, output_type="pt", **SIZE).images
        assert (together.images[k] - alone[0]).abs().max() < 5e-5


def test_a_draft_goes_on_through_all_levels_and_its_recipe_makes_the_picture_again(tmp_path: Path) -> None:
    fast = make_fast(make_pipe())
    made = fast("a boat", seed=7, plan=PLAN, **SIZE)
    (draft,) = fast.draft("a boat", seed=7, plan=PLAN, **SIZE).drafts
    assert draft.image.size == (32, 16)
    assert bytes_of(fast.finish(draft).images) == bytes_of(made.images)
    recipe = Recipe.from_json(made.recipes[0].to_json())
    assert (recipe, recipe.plan.label) == (made.recipes[0], "2+1+2")
    assert bytes_of(fast.replay(recipe).images) == bytes_of(made.images)
    again = Draft.from_image(draft.save(tmp_path / "draft.png"))
    finished = fast.finish(again)
    assert bytes_of(fast.replay(finished.recipes[0]).images) == bytes_of(finished.images)
    assert finished.recipes[0].mode == "finish"


def test_finishing_may_add_a_level_or_leave_one_out() -> None:
    fast = make_fast(make_pipe())
    one, two = (fast.draft("a boat", seed=7, plan=each, **SIZE)[0] for each in (PLAN.levels[0], PLAN))
    assert fast.finish(one, scales=[2, 2]).images[0].size == (256, 128)
    assert fast.finish(two, plan="2+1").images[0].size == (64, 32)
    assert fast.finish(two, refine_sigma=(0.2, 0.1)).recipes[0].plan.refine_sigma == (0.2, 0.1)
    with pytest.raises(PlanError, match="such as 12"):
        fast.finish(two, scale=2)
    with pytest.raises(PlanError, match=r"refine_steps is \(1, 2\), for 2 levels; the plan has 3"):
        fast.finish(two, scales=(2, 2, 2))


def test_a_given_picture_is_lifted_by_all_levels_to_whole_patches() -> None:
    fast, picture = make_fast(make_pipe()), torch.full((1, 3, 24, 40), 0.5)
    made = fast.enhance(picture, "a boat", seed=7, plan=replace(PLAN, scales=(2, 1.5)))
    assert made.images[0].size == (112, 64)
    assert (made.recipes[0].mode, fast.replay(made.recipes[0], picture).recipes) == ("enhance", made.recipes)
    with pytest.raises(SizeError, match="at scale 64 is"):
        fast.enhance(torch.zeros(1, 3, 160, 160), "a boat", scales=(8, 8))


@pytest.mark.parametrize("scales", [(2, 2), (1.5, 2), (2, 4 / 3, 3), (3, 1, 1.25, 2)])
def test_sizes_between_are_whole_patches_next_to_their_share(scales: tuple[float, ...]) -> None:
    plan = Plan(scales=scales)
    sizes = plan.sizes(1008, 592, 16)
    assert (sizes[0], sizes[-1], len(sizes)) == (plan.draft_size(1008, 592, 16), (1008, 592), len(scales) + 1)
    for k, (small, large) in enumerate(pairwise(sizes)):
        for below, above in zip(small, large, strict=True):
            assert below % 16 == 0
            assert abs(below - above / scales[k]) <= 8 + 8 / scales[k]


def test_each_level_is_news_with_its_own_previews() -> None:
    heard, fast = list[Progress](), make_fast(make_pipe())
    made = fast("a boat", seed=7, plan=PLAN, callback=heard.append, keep_upscaled=True, **SIZE)
    pictures = [(each.stage, each.level, each.pixels.shape[-1]) for each in heard if each.pixels is not None]
    assert pictures == [
        ("decode_draft", 1, 32),
        ("upscale", 1, 64),
        ("decode", 1, 64),
        ("upscale", 2, 128),
        ("decode", 2, 128),
    ]
    assert [(each.step, each.steps, each.level) for each in heard if each.stage == "refine"] == [
        (0, 1, 1),
        (1, 1, 1),
        (0, 2, 2),
        (1, 2, 2),
        (2, 2, 2),
    ]
    assert heard[-1].words == "decode (level 2 of 2)"
    assert next(each.words for each in heard if each.stage == "draft") == "draft"
    assert made.upscaled[0].size == (128, 64)


def test_native_noise_is_that_of_the_finished_size() -> None:
    fast, more = make_fast(make_pipe()), {"noise": "native", "seed": 7, **SIZE}
    cascade, one = (fast.draft("a boat", plan=plan, **more)[0] for plan in (Plan(scales=(2, 2)), Plan(scale=4)))
    assert torch.equal(cascade.pixels, one.pixels)
    assert not torch.equal(
        cascade.pixels, fast.draft("a boat", plan=Plan(scale=4, noise="own"), seed=7, **SIZE)[0].pixels
    )


def test_auto_fits_each_level_and_the_recipe_holds_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[Plan] = []

    def fit(_pipe: object, _backbone: object, _lift: object, plan: Plan, _prompt: str) -> float:
        fits.append(plan)
        return plan.scale / 10

    monkeypatch.setattr("mrflow.model.fit_sigma", fit)
    fast = make_fast(make_pipe())
    plans = [replace(PLAN, scales=(2, 3), refine_sigma=sigma) for sigma in ("auto", ("auto", 0.4), (0.4, "auto"))]
    sigmas = [fast.draft("a boat", plan=plan, seed=1).recipes[0].plan.refine_sigma for plan in plans]
    assert sigmas == [(0.2, 0.3), (0.2, 0.4), (0.4, 0.3)]
    assert [plan.scale for plan in fits] == [2, 3, 2, 3]


@pytest.mark.parametrize("given", ["12+1+2", " 12 + 1 + 2 "])
def test_texts_lists_and_tuples_say_the_same(given: str) -> None:
    plan = Plan(refine_steps=(1, 2), scales=(2, 2))
    assert (get_plan(given), plan.label, get_plan(plan.label)) == (plan, "12+1+2", plan)
    told = {"scales": [2, 2], "refine_steps": [1, 2], "refine_sigma": [0.12, 0.12], "noise": "native"}
    assert Plan.from_dict(told) == plan
    assert Plan(scales="2+2", refine_steps="1+2", refine_sigma="0.12+0.12") == plan  # type: ignore[arg-type]
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert get_plan("12+1").changed(scales=(2, 2), refine_steps=(1, 2)) == plan
    assert get_plan("12+1+1+1") == Plan(scales=(2, 2, 2))
    assert plan.native(9).to_dict() == {"steps": 9, "guidance_stop": 1.0}


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"scale": 3, "scales": (2, 2)}, r"scale is 3.0 and scales is \(2.0, 2.0\); .* Leave one out"),
        ({"scales": (2,)}, r"scales is \(2.0,\); it must be 2 to 4 ratios.* give scale"),
        ({"scales": 2}, "scales is 2.0; it must be 2 to 4"),
        ({"scales": (2, 2, 2, 2, 2)}, "it must be 2 to 4"),
        ({"scales": (2, 9)}, "scales is 9; it must lie between 1 and 8"),
        ({"scales": (2, None)}, "scales is None; it must be a number"),
        ({"scales": (2, 1.4142)}, "ratio of small whole numbers"),
        ({"scales": "2+two"}, "scales is '2.two'; it must be a number"),
        ({"scales": (2, 2), "refine_sigma": "switch"}, "a plan of several levels cannot"),
        ({"scales": (2, 2), "refine_sigma": (0.1, "switch")}, "a plan of several levels cannot"),
        ({"scales": (2, 2), "refine_sigma": (0.1, 1.2)}, "refine_sigma is 1.2; it must lie between"),
        ({"scales": (2, 2), "refine_steps": (1, 2, 3)}, "for 3 levels; the plan has 2"),
        ({"refine_sigma": (0.1, 0.2)}, "for 2 levels; the plan has 1"),
        ({"refine_steps": []}, r"refine_steps is \(\), for 0 levels"),
        ({"refine_steps": [1, 1.5], "scales": (2, 2)}, "refine_steps is 1.5; it must be a whole number"),
        ({"steps": (1, 2)}, r"steps is \(1, 2\); it must be a whole number"),
    ],
)
def test_levels_that_do_not_fit_together_are_refused(numbers: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Plan(**numbers)
    with pytest.raises(PlanError):
        Plan.from_dict(json.loads(json.dumps(numbers)))


def test_one_scale_beside_several_is_refused_wherever_they_come_from() -> None:
    fast = make_fast(make_pipe())
    calls: Sequence[dict[str, Any]] = (
        {"scale": 2, "scales": (2, 2)},
        {"scale": 2, "plan": "12+1+1"},
        {"scale": 3, "plan": PLAN},
    )
    for call in calls:
        with pytest.raises(RequestError, match="has one or the other"):
            fast("a boat", **call)
    assert Plan(scale=3).changed(scales=(2, 2)) == Plan(scales=(2, 2))
    made = fast.draft("a boat", plan="2+1+1", scales=(2, 1.5), width=96, height=96)
    assert made[0].image.size == (32, 32)


def test_an_estimate_counts_every_level() -> None:
    ways = estimate("vista", width=256, height=256, plans=["12+1", "12+1+2", "4k"]).ways
    assert [way.calls - ways[1].calls for way in ways[1:]] == [0, 2, 1]
    one, two = ways[1].stages, ways[2].stages
    small = estimate("vista", width=128, height=128, plans=["12+1"]).ways[1].stages
    assert two["refine"].operations == 2 * one["refine"].operations + small["refine"].operations
    assert two["draft"].operations == small["draft"].operations
    assert two["encode"].operations == one["encode"].operations + small["encode"].operations


def test_saved_pictures_hold_the_levels(tmp_path: Path) -> None:
    fast = make_fast(make_pipe())
    made = fast("a boat", seed=7, plan=PLAN, **SIZE)
    recipe = read_recipe(save_image(made.images[0], tmp_path / "boat.png", made.recipes[0]))
    assert recipe == made.recipes[0]
    assert recipe.plan.to_dict() == {**PLAN.to_dict(), "refine_true_cfg_scale": 1.0, "guidance_stop": 1.0}


def test_a_cascade_can_be_tuned() -> None:
    plan = Plan(steps=4, scales=(2, 2), refine_sigma=(0.12, 0.2))
    tried = [each for each in make_candidates(plan, native_steps=4) if each.plan]
    assert all(each.plan and each.plan.scales == (2, 2) and not each.plan.switches for each in tried)
    assert [each.plan for each in read_methods([name_plan(each.plan, Plan()) for each in tried if each.plan])] == [
        each.plan for each in tried
    ]
