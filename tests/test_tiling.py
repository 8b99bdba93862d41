"""Networks in tiles, held against themselves whole."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from conftest import make_fast, make_pipe
from mrflow import Defaults, MrFlow, Plan, steps
from mrflow.backbones.families import FAMILIES, largest_whole
from mrflow.errors import PlanError
from mrflow.jobs import Asked
from mrflow.progress import Progress
from mrflow.tiling import transformer_in_tiles
from support.families import CASES
from support.families import make_fast as make_family
from support.pictures import bytes_of
from support.pipelines import state_of
from test_arguments import controlled, edges, flux_control, qwen_controlnet, z_image_controlnet

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__:DeprecationWarning")
CUT = [name for name in CASES if FAMILIES[name].positions != "never cut"]


def attend_to_oneself(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Return attention of a token to itself alone, which depends on where it stands, as rotary tables say."""
    if query.shape[-2] > key.shape[-2]:  # to texts
        return torch.zeros_like(query)
    groups = query.shape[-3] // value.shape[-3]
    return value[..., -query.shape[-2] :, :].repeat_interleave(groups, -3) * query.tanh()  # behind texts, if any


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
            layer.capacity_factor = layer.num_experts  # each of NucleusMoE's experts takes all tokens, not the best
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
    assert largest_whole("FluxPipeline") == largest_whole("FluxControlNetPipeline") == 2**21
    assert largest_whole("StableDiffusion3Pipeline") == largest_whole("AnythingElse") == 2**23
    for width, tile, resolved in ((1024, None, None), (1536, None, 64), (1536, "whole", "whole"), (1536, 128, 128)):
        (job,) = fast.model.resolve([Asked(prompt="a boat", seed=1, plan=Plan(tile=tile), width=width, height=1536)])
        assert job.plan.tile == resolved
        assert job.plan.cut(width, 1536) == (resolved if isinstance(resolved, int) else None)
    (job,) = fast.model.resolve([Asked(prompt="a boat", seed=1, width=1536, height=1536)], native=True)
    assert job.plan.tile is None


def test_what_cannot_be_cut_is_refused_with_its_reason() -> None:
    controlled = {"control_image": edges(8, 8)}
    for fast, more in ((make_cut("QwenImage21Pipeline")[0], {}), (MrFlow(z_image_controlnet(), "bicubic"), controlled)):
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
