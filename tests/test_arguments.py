"""Arguments of the pipeline's own call go through ours to both passes; what is ours or nobody's is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from conftest import make_fast, make_pipe
from mrflow import Defaults, MrFlow, Plan
from mrflow.arguments import describe_arguments, fit_arguments, read_call
from mrflow.backbones.flux import FluxBackbone
from mrflow.errors import ImageError, MrFlowWarning, RequestError
from mrflow.sampling import draft_generators
from support.controlnets import controlled, edges, flux_control, qwen_controlnet, z_image_controlnet
from support.families import CASES
from support.families import make_fast as family_fast
from support.pictures import bytes_of
from support.pipelines import own_call, state_of

# diffusers 0.42.1 warns of its own FluxControlNetModel
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")

UNGUIDED = Plan(steps=2, refine_sigma=0.3, true_cfg_scale=1.0)


# --- callbacks ---


def test_the_callers_callback_is_reached_in_both_passes_beside_ours(fast: MrFlow, events: Any) -> None:
    news, ours = events
    steps: list[tuple[int, tuple[int, ...]]] = []

    def theirs(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert pipe is fast.pipe
        steps.append((step, tuple(tensors["latents"].shape)))
        return {}

    plain = fast("a boat", seed=1, plan=UNGUIDED)
    watched = fast("a boat", seed=1, plan=UNGUIDED, callback=ours, callback_on_step_end=theirs)
    assert steps == [(0, (1, 4, 64)), (1, (1, 4, 64)), (0, (1, 16, 64))]
    assert [(n.stage, n.step) for n in news if n.stage in ("draft", "refine")] == [
        ("draft", 0), ("draft", 1), ("draft", 2), ("refine", 0), ("refine", 1),
    ]  # fmt: skip
    assert bytes_of(watched.images) == bytes_of(plain.images)


def test_a_callback_counts_on_where_guidance_stops(fast: MrFlow) -> None:
    steps: list[tuple[int, float]] = []

    def watch(_pipe: Any, step: int, timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append((step, float(timestep)))
        return {}

    def watched(stop: float) -> list[tuple[int, float]]:
        steps.clear()
        fast.draft("a boat", seed=1, plan=Plan(steps=4, guidance_stop=stop), callback_on_step_end=watch)
        return steps.copy()

    assert watched(0.5) == watched(1.0)
    assert [step for step, _ in steps] == [0, 1, 2, 3]


def test_a_callback_may_change_latents_and_ask_for_more_tensors(fast: MrFlow) -> None:
    def still(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert tensors["prompt_embeds"].ndim == 3
        return {"latents": torch.zeros_like(tensors["latents"])}

    names = ["latents", "prompt_embeds"]
    one, other = (
        fast("a boat", seed=s, callback_on_step_end=still, callback_on_step_end_tensor_inputs=names)
        for s in (1, 2)
    )
    assert bytes_of(one.images) == bytes_of(other.images)
    still.tensor_inputs = names  # type: ignore[attr-defined]  # as diffusers' PipelineCallback says it
    assert bytes_of(fast("a boat", seed=3, callback_on_step_end=still).images) == bytes_of(one.images)


def test_a_callback_that_raises_ends_the_call_and_the_pipeline_is_as_it_was(fast: MrFlow) -> None:
    def stop(*_: Any) -> None:
        raise KeyError("stop")

    before = state_of(fast.pipe)
    with pytest.raises(KeyError, match="stop"):
        fast("a boat", seed=1, callback_on_step_end=stop)
    assert state_of(fast.pipe) == before


# --- refusals ---


@pytest.mark.parametrize("verb", ["__call__", "draft", "native", "enhance"])
@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"zebra": 3}, r"no argument 'zebra', nor has FluxPipeline one; beside ours it takes ip_adapter_image, "),
        ({"widht": 3}, "did you mean width"),
        ({"joint_attention_kwarg": {}}, "did you mean joint_attention_kwargs"),
        ({"control_image": None}, "nor has FluxPipeline one"),
        ({"sigmas": [1.0]}, "The plan has the steps"),
        ({"num_inference_steps": 4, "steps": 5}, "steps is 5 and num_inference_steps is 4; they mean the same"),
        ({"num_inference_steps": 0}, "steps is 0; it must lie between 1 and 1000"),
        ({"refine_sigma": 2}, "between 0 and 1"),
        ({"generator": torch.Generator().manual_seed(2)}, "seed is 1 and generator is .* Give one"),
        ({"generator": 3}, "seed is 1 and generator is 3"),
        ({"latents": torch.zeros(1, 4, 64)}, "seed="),
        ({"stages": True}, "Give keep_upscaled="),
        ({"prompt_embeds": torch.zeros(1, 4, 16)}, "encoded once, from its text"),
        ({"negative_pooled_prompt_embeds": torch.zeros(1, 16)}, "encoded once"),
        ({"prompt_2": "a"}, "encoded once"),
        ({"output_type": "latent"}, "finished pictures are pixels"),
        ({"output_type": "jpeg"}, "must be one of pil, pt, np"),
        ({"max_sequence_length": 0}, "max_sequence_length is 0; it must be a whole number from 1"),
        ({"callback_on_step_end": 3}, "must be a function"),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["noise"]},
            "has 'noise'; known are",
        ),
    ],
    ids=lambda value: re.sub(r"<.*?>", "", str(value)),
)
def test_what_is_ours_or_nobodys_is_refused_before_any_work(
    fast: MrFlow, events: Any, verb: str, extra: dict[str, Any], words: str
) -> None:
    seen, callback = events
    given = {"image": Image.new("RGB", (32, 32))} if verb == "enhance" else {}
    unused = f"{verb} takes no {next(iter(extra))}"  # what a verb has no use for is refused as that
    with pytest.raises(RequestError, match=f"({words})|{unused}"):
        getattr(fast, verb)(prompt="a boat", seed=1, callback=callback, **given, **extra)
    assert seen == []


def test_finish_and_replay_refuse_too(fast: MrFlow) -> None:
    drafts = fast.draft("a boat", seed=1)
    for verb, given in ((fast.finish, drafts), (fast.replay, drafts[0].recipe)):
        with pytest.raises(RequestError, match="no argument 'contol_image'"):
            verb(given, contol_image=None)


def test_a_call_that_takes_anything_is_given_anything() -> None:
    class Open:
        def __call__(self, prompt: str, **kwargs: Any) -> None: ...

    assert read_call(Open(), FluxBackbone(), {"novelty": 3}).extra == {"novelty": 3}
    with pytest.raises(RequestError, match="seed="):
        read_call(Open(), FluxBackbone(), {"latents": 3})


# --- what recipes say of them ---


def test_arguments_are_told_apart_by_their_values() -> None:
    image, other = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "red")
    told = [
        describe_arguments({"x": value})["argument.x"]
        for value in (
            image,
            other,
            torch.zeros(2),
            torch.ones(2),
            [1, 2],
            {"a": image},
            [None],
            "text",
            print,
            0.5,
        )
    ]
    assert len(set(told)) == len(told)
    assert told[-5:] == [f"{{a: {told[0]}}}", "[None]", "'text'", "print", "0.5"]


def test_arguments_are_recorded_and_missed(fast: MrFlow) -> None:
    given = {"joint_attention_kwargs": {"scale": 0.5}}
    result = fast("a boat", seed=1, **given)
    recipe = type(result.recipes[0]).from_json(result.recipes[0].to_json())
    assert recipe.conditions == {"argument.joint_attention_kwargs": "{scale: 0.5}"}
    assert bytes_of(fast.replay(recipe, **given).images) == bytes_of(result.images)
    with pytest.warns(MrFlowWarning, match=r"joint_attention_kwargs \{scale: 0.5\}, here none"):
        again = fast.replay(recipe)
    assert recipe.differences(again.recipes[0]).keys() == {"conditions.argument.joint_attention_kwargs"}

    with pytest.warns(MrFlowWarning, match="A draft was made with other settings"):
        finished = fast.finish(fast.draft("a boat", seed=1, **given))
    assert finished.recipes[0].conditions == {"draft.argument.joint_attention_kwargs": "{scale: 0.5}"}


# --- ControlNet ---


def test_a_control_image_guides_both_passes_at_their_sizes() -> None:
    pipe, image = controlled(), edges(40, 24)
    fast = make_fast(pipe)
    given = {"control_image": image, "controlnet_conditioning_scale": 0.7}
    by_hand = own_call(pipe, width=48, negative_prompt="", true_cfg_scale=2.0, **given)
    sizes: list[int] = []
    hook = lambda _module, _args, kwargs: sizes.append(kwargs["controlnet_cond"].shape[1])  # noqa: E731
    pipe.controlnet.register_forward_pre_hook(hook, with_kwargs=True)
    plan = Plan(steps=2, refine_sigma=0.3, true_cfg_scale=2.0, noise="own")
    result = fast("a red boat", width=96, height=64, seed=7, plan=plan, **given)
    assert torch.equal(result.drafts[0].pixels, by_hand)
    assert sizes == [6, 6, 24]  # tokens of 16 x 16 pixels
    weaker = fast("a red boat", width=96, height=64, seed=7, plan=plan, control_image=image,
                  controlnet_conditioning_scale=0.1)  # fmt: skip
    assert bytes_of(weaker.images) != bytes_of(result.images)
    again = fast("a red boat", width=96, height=64, seed=7, plan=plan, **given)
    assert bytes_of(again.images) == bytes_of(result.images)


def test_a_control_image_as_a_tensor_is_resized_for_each_pass() -> None:
    fast = make_fast(controlled())
    tensor = torch.rand(1, 3, 64, 96)
    whole = fast("a boat", width=96, height=64, seed=[7, 8], control_image=tensor)
    assert [image.size for image in whole.images] == [(96, 64)] * 2
    small = fit_arguments({"control_image": tensor, "control_mode": 1}, (48, 32))
    assert small["control_image"].shape == (1, 3, 32, 48)
    assert small["control_mode"] == 1
    several = fit_arguments({"control_image": [tensor, tensor]}, (48, 32))["control_image"]
    assert [each.shape for each in several] == [(1, 3, 32, 48)] * 2
    assert small["control_image"].min() >= tensor.min()
    assert small["control_image"].max() <= tensor.max()
    assert tensor.shape == (1, 3, 64, 96)


@pytest.mark.parametrize(
    ("make", "plan", "by_hand"),
    [
        (z_image_controlnet, {"true_cfg_scale": 2.0}, {"guidance_scale": 1.0, "negative_prompt": [""]}),
        (flux_control, {"guidance_scale": 3.0}, {"guidance_scale": 3.0}),
        (qwen_controlnet, {"true_cfg_scale": 2.0}, {"true_cfg_scale": 2.0, "negative_prompt": [""]}),
    ],
)
def test_other_pipelines_with_a_control_image(make: Any, plan: Any, by_hand: Any, events: Any) -> None:
    pipe, image = make(), edges(40, 24)
    pipe.set_progress_bar_config(disable=True)
    expected = own_call(pipe, width=64, prompt=["a red boat"], control_image=image, **by_hand)
    fast = MrFlow(pipe, "bicubic", defaults=Defaults(max_sequence_length=16))
    plan = Plan(steps=2, refine_sigma=0.3, noise="own", **plan)
    options = {"width": 128, "height": 64, "seed": 7, "plan": plan}
    result = fast("a red boat", control_image=image, **options)
    assert torch.equal(result.drafts[0].pixels, expected)
    assert result.images[0].size == (128, 64)
    finished = fast.finish(result.drafts, control_image=image)
    assert bytes_of(finished.images) == bytes_of(result.images)
    with pytest.warns(MrFlowWarning, match="A draft was made with other settings"):
        other = fast.finish(result.drafts, control_image=edges(24, 40))
    assert bytes_of(other.images) != bytes_of(result.images)

    seen, callback = events
    with pytest.raises(RequestError, match="needs a control image"):
        fast("a red boat", callback=callback, **options)
    assert seen == []


@pytest.mark.parametrize("guidance_stop", [1.0, 0.5])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"control_guidance_end": 0.5}, [1, 1, 0, 0, 0]),
        ({"control_guidance_start": 0.5}, [0, 0, 1, 1, 1]),  # a sigma of .12 is near the end of the way
        ({"control_guidance_start": 0.25, "control_guidance_end": 0.75}, [0, 1, 1, 0, 0]),
        ({"control_guidance_start": [0.5], "control_guidance_end": [1.0]}, [0, 0, 1, 1, 1]),
    ],
)
def test_a_share_of_control_is_one_of_the_whole_way(
    guidance_stop: float, given: dict[str, Any], expected: list[int]
) -> None:
    pipe, seen = controlled(), []
    fast = make_fast(pipe)
    hook = lambda _m, _a, kwargs: seen.append(kwargs["conditioning_scale"])  # noqa: E731
    pipe.controlnet.register_forward_pre_hook(hook, with_kwargs=True)
    plan = Plan(steps=4, true_cfg_scale=2.0, guidance_stop=guidance_stop)
    fast("a boat", seed=1, width=64, height=64, plan=plan, control_image=edges(64, 64), **given)
    assert seen == expected


# --- IP-Adapter ---


def ip_adapter(pipe: Any, width: int) -> dict[str, Any]:
    """Return the weights of a tiny IP-Adapter for `pipe`, in the layout of published files."""
    config = pipe.transformer.config
    inner = config.num_attention_heads * config.attention_head_dim
    make = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(5)) * 0.3  # noqa: E731
    blocks: dict[str, Any] = {}
    for block in range(config.num_layers):
        for key in ("k", "v"):
            blocks[f"{block}.to_{key}_ip.weight"] = make(inner, config.joint_attention_dim)
            blocks[f"{block}.to_{key}_ip.bias"] = make(inner)
    project = {
        "proj.weight": make(config.joint_attention_dim * 4, width),
        "proj.bias": make(config.joint_attention_dim * 4),
        "norm.weight": torch.ones(config.joint_attention_dim),
        "norm.bias": torch.zeros(config.joint_attention_dim),
    }
    return {"image_proj": project, "ip_adapter": blocks}


def test_an_ip_adapter_guides_both_passes() -> None:
    pipe = make_pipe(guidance_embeds=True)
    pipe.transformer._load_ip_adapter_weights([ip_adapter(pipe, 8)])
    fast = make_fast(pipe)
    embeds = [torch.ones(1, 1, 8)]
    given = {"ip_adapter_image_embeds": embeds, "negative_ip_adapter_image_embeds": [torch.zeros(1, 1, 8)]}
    by_hand = own_call(pipe, guidance_scale=3.5, **given)
    plan = Plan(steps=2, guidance_scale=3.5, noise="own")
    seen: list[bool] = []
    hook = lambda _m, _a, kwargs: seen.append(bool(kwargs["joint_attention_kwargs"]))  # noqa: E731
    pipe.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    result = fast("a red boat", seed=7, plan=plan, **given)
    assert torch.equal(result.drafts[0].pixels, by_hand)
    assert seen == [True, True, True]
    other = fast("a red boat", seed=7, plan=plan, **{**given, "ip_adapter_image_embeds": [-embeds[0]]})
    assert bytes_of(other.images) != bytes_of(result.images)


def with_image_encoder(pipe: Any) -> Any:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPVisionConfig(**sizes, projection_dim=8, image_size=16, patch_size=8)
    torch.manual_seed(0)
    pipe.image_encoder = CLIPVisionModelWithProjection(config).eval()
    edge = {"shortest_edge": 16}
    pipe.feature_extractor = CLIPImageProcessor(size=edge, crop_size={"height": 16, "width": 16})
    pipe.transformer._load_ip_adapter_weights([ip_adapter(pipe, 8)])
    return pipe


@pytest.mark.parametrize("nested", [False, True])
def test_an_adapters_images_guide_every_picture_of_every_batch(nested: bool) -> None:
    pipe = with_image_encoder(make_pipe())
    image = edges(32, 32)
    given = {"ip_adapter_image": [[image, Image.new("RGB", (32, 32), "red")]] if nested else image}
    plan = Plan(steps=2, true_cfg_scale=2.0, noise="own")
    three = {"prompt": ["a boat"] * 3, "negative_prompt": [""] * 3, "generator": draft_generators([1, 2, 3])}
    plain = own_call(pipe, true_cfg_scale=2.0, **three, **given)
    batches = [
        make_fast(pipe, batch_size=size)("a boat", num_images=3, seed=1, plan=plan, **given) for size in (1, 2, 3)
    ]
    for made in batches:
        drafts = torch.cat([draft.pixels for draft in made.drafts])
        assert torch.allclose(drafts, plain, atol=1e-3)
        for one, other in zip(made.images, batches[0].images, strict=True):
            assert np.abs(np.array(one, dtype=int) - np.array(other, dtype=int)).max() <= 1


def test_images_without_an_adapter_of_their_own_are_refused(events: Any) -> None:
    seen, callback = events
    for pipe, count in ((make_pipe(), 0), (with_image_encoder(make_pipe()), 1)):
        with pytest.raises(RequestError, match=f"is for 2 IP-Adapters, and the pipeline has {count}"):
            make_fast(pipe)("a boat", callback=callback, ip_adapter_image=[edges(8, 8)] * 2)
    case = CASES["StableDiffusion3Pipeline"]
    with pytest.raises(RequestError, match="the pipeline has 0"):  # diffusers leaves it out in silence
        family_fast(case, case.make())("a boat", callback=callback, ip_adapter_image=edges(8, 8))
    assert seen == []


# --- images of every kind, one for each picture; shares of the whole way ---


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA", "bytes", "floats", "grey tensor"])
def test_a_control_image_of_any_kind_is_made_rgb(mode: str) -> None:
    fast, image = make_fast(controlled()), edges(64, 64).convert("L" if mode == "grey tensor" else "RGB")
    plain: Any = image.convert("RGB") if mode != "grey tensor" else torch.full((1, 3, 64, 64), 0.25)
    given: Any = {
        "bytes": lambda: np.array(plain),
        "floats": lambda: np.array(plain)[None] / 255,
        "grey tensor": lambda: torch.full((1, 1, 64, 64), 0.25),
    }.get(mode, lambda: image.convert(mode))()
    if mode in ("L", "P", "1", "LA"):
        plain = given.convert("RGB")
    made, expected = (fast("a boat", seed=1, control_image=each).images for each in (given, plain))
    assert bytes_of(made) == bytes_of(expected)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("kind", ["pil", "pt"])
def test_of_several_control_images_each_picture_gets_its_own(batch_size: int, kind: str) -> None:
    pipe = controlled()
    fast = make_fast(pipe, batch_size=batch_size)
    images: Any = [edges(64, 64), Image.new("L", (64, 64), 90)]
    if kind == "pt":
        images = torch.rand(2, 3, 64, 64)
    alone = [
        fast(["a boat"], seed=seed, control_image=images[k] if kind == "pil" else images[k : k + 1]).images[0]
        for seed, k in ((1, 0), (2, 0), (3, 1), (4, 1))
    ]
    told: list[int] = []
    together = fast(["a boat", "a boat"], num_images=2, seed=1, control_image=images).images
    for one, other in zip(alone, together, strict=True):
        told.append(int(np.abs(np.array(one, dtype=int) - np.array(other, dtype=int)).max()))
    assert max(told) <= 1


@pytest.mark.parametrize(
    "given",
    [
        {"control_image": Image.new("RGB", (0, 4))},
        {"control_image": []},
        {"control_image": torch.zeros(1, 3, 0, 4)},
        {"control_image": np.zeros((0, 0, 3), np.uint8)},
        {"control_image": np.zeros((4, 4, 3), np.int64)},
        {"control_image": 3},
        {"control_image": [edges(8, 8)] * 3},
        {"control_image": edges(8, 8), "control_guidance_start": "a"},
        {"control_image": edges(8, 8), "control_guidance_end": [1.5]},
        {"control_image": edges(8, 8), "control_guidance_end": float("nan")},
    ],
)
def test_control_that_cannot_be_is_refused_before_any_work(given: dict[str, Any], events: Any) -> None:
    seen, callback = events
    with pytest.raises((RequestError, ImageError)):
        make_fast(controlled())(["a boat", "a lake"], seed=1, callback=callback, **given)
    assert seen == []


@pytest.mark.parametrize("guidance_stop", [1.0, 0.5])
def test_a_truncated_guidance_is_a_share_of_the_whole_way(guidance_stop: float) -> None:
    case = CASES["Lumina2Pipeline"]
    fast, calls = family_fast(case, case.make()), [0]
    hook = lambda *_: calls.__setitem__(0, calls[0] + 1)  # noqa: E731
    fast.pipe.transformer.register_forward_hook(hook)
    plan = Plan(steps=4, true_cfg_scale=2.0, guidance_stop=guidance_stop)
    fast("a boat", seed=1, plan=plan, cfg_trunc_ratio=0.25)
    assert calls == [6]  # guided in the first of four, not in the refine step


def test_a_share_of_no_way_divides_by_nothing() -> None:
    fitted = fit_arguments({"control_guidance_start": 0.5, "cfg_trunc_ratio": 1}, (32, 32), 1.0, 1.0)
    assert fitted["control_guidance_start"] < 0
    assert fitted["cfg_trunc_ratio"] == 0


@pytest.mark.parametrize(
    ("given", "refines"),
    [({}, False), ({"skip_layer_guidance_start": 0.5, "skip_layer_guidance_stop": 1.0}, True)],
)
def test_skipped_layers_are_shares_of_the_whole_way(given: dict[str, float], refines: bool) -> None:
    case = CASES["StableDiffusion3Pipeline"]
    fast, skipped = family_fast(case, case.make()), list[bool]()
    hook = lambda _m, _a, kwargs: skipped.append(bool(kwargs.get("skip_layers")))  # noqa: E731
    fast.pipe.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    drafts = fast.draft("a boat", seed=1, skip_guidance_layers=[0], **given)
    skipped.clear()
    fast.finish(drafts, skip_guidance_layers=[0], **given)
    assert any(skipped) == refines
