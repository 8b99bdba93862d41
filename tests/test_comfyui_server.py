"""The nodes in a real ComfyUI, held against MrFlow with the same weights: `make test-comfyui`."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import diffusers as d
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from safetensors.torch import save_file
from tools import comfyui_workflows

from mrflow import MrFlow, Plan, Progress, get_plan, load_image
from mrflow.images import to_pil, to_tensor
from mrflow.sampling import make_noise, refine_generators
from mrflow.tiling import transformer_in_tiles
from mrflow.upscaler import Upscaler
from support import comfyui
from support.comfyui import ComfyUI, cut
from support.families import CASES

pytestmark = [pytest.mark.comfyui, pytest.mark.filterwarnings("ignore")]
SIZE = (160, 96)
PROMPT, NEGATIVE = "a red boat at dusk", "a big house"


def sd3() -> Any:
    """Return a tiny Stable Diffusion 3 whose transformer is 64 wide for each of its blocks, as ComfyUI wants."""
    pipe = CASES["StableDiffusion3Pipeline"].make(use_dynamic_shifting=False, shift=3.0)
    torch.manual_seed(2)
    transformer = d.SD3Transformer2DModel(
        sample_size=32,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=pipe.transformer.config.joint_attention_dim,
        caption_projection_dim=128,
        pooled_projection_dim=pipe.transformer.config.pooled_projection_dim,
        pos_embed_max_size=32,
        in_channels=16,
        out_channels=16,
    )
    vae = comfyui.make_vae(comfyui.SD3_SCALING, comfyui.SD3_SHIFT)
    return d.StableDiffusion3Pipeline(**{**pipe.components, "transformer": transformer.eval(), "vae": vae})


def flux() -> Any:
    """Return FLUX.1 of one block, as wide as the real one: before 0.9, ComfyUI takes nothing narrower for it."""
    pipe = CASES["FluxPipeline"].make(guidance_embeds=True)
    torch.manual_seed(4)
    transformer = d.FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=0,
        attention_head_dim=128,
        num_attention_heads=24,
        joint_attention_dim=pipe.transformer.config.joint_attention_dim,
        pooled_projection_dim=pipe.transformer.config.pooled_projection_dim,
        guidance_embeds=True,
        axes_dims_rope=(16, 56, 56),
    )
    vae = comfyui.make_vae(comfyui.FLUX_SCALING, comfyui.FLUX_SHIFT)
    return d.FluxPipeline(**{**pipe.components, "transformer": transformer.bfloat16().float().eval(), "vae": vae})


PIPES = {"sd3": sd3, "flux": flux}


@pytest.fixture(scope="module")
def models() -> dict[str, MrFlow]:
    made = {}
    for name, make in PIPES.items():
        pipe = make()
        pipe.set_progress_bar_config(disable=True)
        made[name] = MrFlow(pipe, Upscaler.load(comfyui.UPSCALER))
    return made


@pytest.fixture
def fast(models: dict[str, MrFlow]) -> MrFlow:
    return models["sd3"]


@pytest.fixture(scope="module")
def server(models: dict[str, MrFlow], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    made = ComfyUI(tmp_path_factory.mktemp("comfyui") / "base")
    for family, fast in models.items():
        folder = made.folder / "models"
        comfyui.save_transformer(fast.pipe.transformer, folder / "diffusion_models" / f"{family}.safetensors")
        comfyui.save_vae(fast.pipe.vae, folder / "vae" / f"{family}.safetensors")
        for name, text in (("positive", PROMPT), ("negative", NEGATIVE)):
            row = fast.model.backbone.encode_prompts(fast.pipe, [text], None, None)[0]
            texts = {"embeds": row["prompt_embeds"], "pooled": row["pooled_prompt_embeds"]}
            save_file(texts, made.folder / f"{family}-{name}.safetensors")
    comfyui.place_files(made.folder / "models", comfyui_workflows.MODELS)
    torch.manual_seed(3)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 10), size=(48, 80), mode="bicubic").clamp(0, 1)
    to_pil(smooth)[0].save(made.folder / "input" / "draft.png")
    with made:
        yield made


def graph(server: ComfyUI, family: str = "sd3", **nodes: dict[str, Any]) -> dict[str, Any]:
    """Return a prompt: loaders and conditionings of a family, and these nodes by their names."""
    file = f"{family}.safetensors"
    texts = {
        name: node("TestConditioning", path=f"{server.folder}/{family}-{name}.safetensors", guidance=3.5)
        for name in ("positive", "negative")
    }
    return {
        "model": node("UNETLoader", unet_name=file, weight_dtype="default"),
        "vae": node("VAELoader", vae_name=file),
        "network": node("UpscaleModelLoader", model_name=comfyui.UPSCALER.name),
        "image": node("LoadImage", image="draft.png"),
        **texts,
        **nodes,
    }


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def save(of: str, output: int = 0) -> dict[str, Any]:
    return node("SaveImage", images=[of, output], filename_prefix=of)


def refine(image: str = "lift", model: str = "model", **numbers: Any) -> dict[str, Any]:
    wired = {name: [name, 0] for name in ("positive", "negative", "vae")}
    usual = {"seed": 7, "refine_steps": 2, "refine_sigma": 0.3, "true_cfg_scale": 1.0, "sampler_name": "euler"}
    return node("MrFlowRefine", model=[model, 0], image=[image, 0], **wired, **{**usual, **numbers})


def lift(image: str = "image") -> dict[str, Any]:
    size = {"width": SIZE[0], "height": SIZE[1]}
    return node("MrFlowLift", image=[image, 0], upscale_model=["network", 0], method="lanczos", **size)


def plan(**numbers: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "preset": "the numbers below",
        "steps": 3,
        "refine_steps": 1,
        "refine_sigma": 0.25,
        "scale": 2.0,
        "true_cfg_scale": 1.0,
        "guidance_stop": 1.0,
        "noise": "own",
    }
    return node("MrFlowPlan", width=SIZE[0], height=SIZE[1], **{**usual, **numbers})


def sampler(**numbers: Any) -> dict[str, Any]:
    wired = {name: [name, 0] for name in ("model", "positive", "negative", "vae", "plan")}
    usual = {"seed": 7, "batch_size": 1, "sampler_name": "euler", "scheduler": "simple"}
    return node("MrFlowSampler", upscale_model=["network", 0], **wired, **{**usual, **numbers})


def schedule(fast: MrFlow, steps: int, area: int) -> list[float]:
    """Return the sigmas of the pipeline's own schedule for pictures of so many pixels."""
    scheduler = copy.deepcopy(fast.pipe.scheduler)
    if scheduler.config.use_dynamic_shifting:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(area // 16**2))
    else:
        scheduler.set_timesteps(steps)
    return list(scheduler.sigmas.tolist())


def stages(fast: MrFlow, make: Any, **asked: Any) -> dict[str, torch.Tensor]:
    """Return the pixels that MrFlow shows on the way, by stage."""
    seen: dict[str, torch.Tensor] = {}

    def note(progress: Progress) -> None:
        if progress.pixels is not None:
            seen[progress.stage] = progress.pixels

    make(**{"callback": note, "width": SIZE[0], "height": SIZE[1], "seed": 7, **asked})
    return seen


def assert_same(theirs: np.ndarray[Any, Any], ours: torch.Tensor, share: float = 1e-3) -> None:
    """Hold fetched pictures to ours: at most a level apart, and in that share of the values."""
    assert ours.std() > 0.05, "a picture of no contrast would show nothing"
    apart = np.abs(theirs.astype(int) - cut(ours).astype(int))
    assert apart.max() <= 1
    assert (apart > 0).mean() < share


@pytest.mark.parametrize("family", PIPES)
def test_lift_and_refine_give_what_enhance_gives(server: ComfyUI, models: dict[str, MrFlow], family: str) -> None:
    fast = models[family]
    lifted = node("SaveImage", images=["lift", 0], filename_prefix=family)  # else it would be there already
    outputs = server.run(
        graph(server, family, lift=lift(), refine=refine(), lifted=lifted, saved=save("refine", 1))
    )
    ours = stages(
        fast,
        fast.enhance,
        image=load_image(server.folder / "input" / "draft.png"),
        prompt=PROMPT,
        plan=Plan(refine_steps=2, refine_sigma=0.3, true_cfg_scale=1.0),
    )
    assert_same(server.pictures(outputs["lifted"]), ours["upscale"])
    assert_same(server.pictures(outputs["saved"]), ours["decode"])


@pytest.mark.parametrize("family", PIPES)
def test_refining_in_tiles_gives_what_ours_gives(server: ComfyUI, models: dict[str, MrFlow], family: str) -> None:
    """With positions of the whole where the family is told them, as FLUX.1 is; SD3's begin anew in both.

    FLUX.1's tiles are blended by the patch with us and by the latent there.
    """
    fast, tiled = models[family], refine(tile=64, seed=9)
    outputs = server.run(graph(server, family, lift=lift(), refine=tiled, saved=save("refine", 1)))
    plan = Plan(refine_steps=2, refine_sigma=0.3, true_cfg_scale=1.0)
    with transformer_in_tiles(fast.pipe.transformer, *SIZE, 16, 64):
        image = load_image(server.folder / "input" / "draft.png")
        ours = stages(fast, fast.enhance, image=image, prompt=PROMPT, plan=plan, seed=9)
    assert_same(server.pictures(outputs["saved"]), ours["decode"], 1e-2)


def test_a_guard_gives_the_drafts_colours_back_as_enhance_does(server: ComfyUI, models: dict[str, MrFlow]) -> None:
    guard = node("MrFlowColorGuard", image=["lift", 0], draft=["image", 0], color_guard=0.25)
    outputs = server.run(graph(server, lift=lift(), guard=guard, saved=save("guard"), plain=save("lift")))
    fast, image = models["sd3"], load_image(server.folder / "input" / "draft.png")
    guarded = Plan(refine_steps=1, refine_sigma=0.3, true_cfg_scale=1.0, color_guard=0.25)
    ours = stages(fast, fast.enhance, image=image, prompt=PROMPT, plan=guarded)
    assert_same(server.pictures(outputs["saved"]), ours["upscale"])
    assert (server.pictures(outputs["plain"]) != server.pictures(outputs["saved"])).any()


@pytest.mark.parametrize(
    ("family", "numbers"),
    [
        ("sd3", {}),
        ("sd3", {"true_cfg_scale": 3.0}),
        ("sd3", {"true_cfg_scale": 3.0, "guidance_stop": 0.5}),
        ("sd3", {"noise": "native"}),
        ("sd3", {"lift": "bicubic", "color_guard": 0.25}),
        ("sd3", {"lift": "latent"}),
        ("flux", {}),
        ("flux", {"noise": "native"}),
    ],
    ids=lambda given: given if isinstance(given, str) else "-".join(given) or "plain",
)
def test_the_sampler_gives_what_a_call_gives(
    server: ComfyUI, models: dict[str, MrFlow], numbers: dict[str, Any], family: str
) -> None:
    fast = models[family]
    sigmas = schedule(fast, 3, SIZE[0] * SIZE[1] // 4)
    nodes = {"plan": plan(**numbers), "sigmas": node("TestSigmas", sigmas=json.dumps(sigmas))}
    saved = {"saved": save("sampler", 1), "draft": save("sampler", 2), "lifted": save("sampler", 3)}
    outputs = server.run(graph(server, family, **nodes, sampler=sampler(sigmas=["sigmas", 0]), **saved))
    usual = {"steps": 3, "refine_sigma": 0.25, "true_cfg_scale": 1.0, "noise": "own"}
    guided = numbers.get("true_cfg_scale", 1.0) > 1
    asked = {"negative_prompt": NEGATIVE} if guided else {}
    ours = stages(fast, fast, prompt=PROMPT, plan=Plan(**{**usual, **numbers}), **asked)
    assert_same(server.pictures(outputs["draft"]), ours["decode_draft"])
    if numbers.get("lift") != "latent":  # which has no pixels with us
        assert_same(server.pictures(outputs["lifted"]), ours["upscale"])
    assert_same(server.pictures(outputs["saved"]), ours["decode"])


@pytest.mark.parametrize("family", PIPES)
def test_a_switch_goes_on_as_a_call_does(server: ComfyUI, models: dict[str, MrFlow], family: str) -> None:
    """With the schedules of both sizes, which for FLUX.1 differ."""
    fast, wired = models[family], {}
    for name, area in (("sigmas", 4), ("large_sigmas", 1)):
        sigmas = schedule(fast, 4, SIZE[0] * SIZE[1] // area)
        wired[name] = node("TestSigmas", sigmas=json.dumps(sigmas))
    numbers = {name: [name, 0] for name in wired}
    nodes = {"plan": plan(steps=3, refine_steps=1, switch=True), **wired, "sampler": sampler(**numbers)}
    outputs = server.run(graph(server, family, **nodes, saved=save("sampler", 1), draft=save("sampler", 2)))
    ours = stages(fast, fast, prompt=PROMPT, plan=replace(get_plan("3/4"), true_cfg_scale=1.0, noise="own"))
    assert_same(server.pictures(outputs["draft"]), ours["decode_draft"])
    assert_same(server.pictures(outputs["saved"]), ours["decode"])


@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "dpmpp_2m_sde", "uni_pc"])
def test_a_picture_of_a_batch_is_the_one_made_alone(server: ComfyUI, name: str) -> None:
    common: dict[str, Any] = {"plan": plan(refine_steps=2), "saved": save("sampler", 1)}
    made = {
        (seed, count): server.pictures(
            server.run(graph(server, **common, sampler=sampler(seed=seed, batch_size=count, sampler_name=name)))[
                "saved"
            ]
        )
        for seed, count in ((5, 3), (6, 1), (7, 1))
    }
    for k, alone in ((1, (6, 1)), (2, (7, 1))):
        assert np.abs(made[5, 3][k].astype(int) - made[alone][0].astype(int)).max() <= 1
    assert np.abs(made[5, 3][0].astype(int) - made[5, 3][1].astype(int)).max() > 9


def test_all_is_as_it_was(server: ComfyUI) -> None:
    """The random state, the upscale model and the model itself, around a sampler that seeds and one that draws."""

    def probe(image: str, output: int = 0) -> dict[str, Any]:
        return node("TestProbe", image=[image, output], model=["model", 0], upscale_model=["network", 0])

    nodes = {
        "before": probe("image"),
        "lift": lift("before"),
        "refine": refine(sampler_name="ddim"),
        "again": refine("refined", sampler_name="euler_ancestral", seed=8),
        "refined": probe("refine", 1),
        "after": probe("again", 1),
    }
    outputs = server.run(graph(server, **nodes))
    seen = [json.loads(outputs[name]["seen"][0]) for name in ("before", "refined", "after")]
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize(("law", "kind"), [("EPS", "epsilon"), ("V_PREDICTION", "v_prediction")])
def test_models_of_another_law_get_the_same_signal_to_noise_ratio(
    server: ComfyUI, fast: MrFlow, law: str, kind: str
) -> None:
    """Held against a step of diffusers' scheduler for that law, from sigma / (1 - sigma)."""
    changed = node("TestLaw", model=["model", 0], law=law)
    refined = refine("image", "law", refine_sigma=0.3, refine_steps=1)
    outputs = server.run(graph(server, law=changed, refine=refined, saved=save("refine", 1)))
    pipe, backbone, level = fast.pipe, fast.model.backbone, 0.3 / (1 - 0.3)
    euler = d.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind
    )
    usual = ((1 - euler.alphas_cumprod) / euler.alphas_cumprod) ** 0.5
    timestep = (usual.log() - math.log(level)).abs().argmin()[None].float()
    euler.sigmas, euler.timesteps = torch.tensor([level, 0.0]), timestep
    with torch.no_grad():
        image = to_tensor([load_image(server.folder / "input" / "draft.png")])
        latents = backbone.encode(pipe, image)
        sample = latents + level * make_noise(latents.shape[1:], refine_generators([7]))
        prompt, _, pooled, _ = pipe.encode_prompt(PROMPT, None, None, do_classifier_free_guidance=False)
        given = pipe.transformer(euler.scale_model_input(sample, timestep), prompt, pooled, timestep).sample
        made = euler.step(given, timestep, sample).prev_sample
        assert_same(server.pictures(outputs["saved"]), backbone.decode(pipe, made, 80, 48))


def test_an_interrupt_leaves_nothing_behind(server: ComfyUI) -> None:
    once = graph(server, plan=plan(), sampler=sampler(seed=11), saved=save("sampler", 1))
    before = server.pictures(server.run(once)["saved"])
    long = graph(server, plan=plan(steps=1000), sampler=sampler(seed=12), saved=save("sampler", 1))
    waiting = server.start(long)
    time.sleep(3)
    server.post("/interrupt", {})
    assert server.wait(waiting)["status"]["status_str"] == "error"
    server.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(2)
    assert np.array_equal(server.pictures(server.run(once)["saved"]), before)


@pytest.mark.parametrize("name", comfyui_workflows.MODELS)
def test_workflows_are_taken(server: ComfyUI, name: str) -> None:
    """By the server's own check, with files of the names that they use; what these hold can't be loaded."""
    graph = json.loads((comfyui_workflows.PACK / "api_workflows" / f"{name}.json").read_text())
    kinds = server.get("/object_info/CLIPLoader")["CLIPLoader"]["input"]["required"]["type"][0]
    wanted = {node["inputs"].get("type") for node in graph.values() if node["class_type"] == "CLIPLoader"}
    if not wanted <= set(kinds):
        pytest.skip(f"ComfyUI {server.system['comfyui_version']} has no text encoder of {wanted}")
    answer = server.post("/prompt", {"prompt": graph})
    assert answer["node_errors"] == {}
    assert server.wait(answer["prompt_id"])["status"]["status_str"] == "error"  # with the first file


def test_what_cannot_be_is_refused_in_words(server: ComfyUI) -> None:
    nodes = {"plan": plan(true_cfg_scale=4.0), "sampler": sampler(), "saved": save("sampler", 1)}
    del nodes["sampler"]["inputs"]["negative"]
    history = server.wait(server.start(graph(server, **nodes)))
    assert "no negative conditioning is wired in" in json.dumps(history["status"])


def test_the_pack_was_loaded_without_diffusers(server: ComfyUI) -> None:
    assert "IMPORT FAILED" not in server.log()
    known = server.get("/object_info")
    assert {"MrFlowPlan", "MrFlowLift", "MrFlowColorGuard", "MrFlowRefine", "MrFlowSampler"} <= set(known)
