"""Write the ComfyUI workflows: as API prompts, and from those, by a running ComfyUI's own page, as graphs.

    python -m tools.comfyui_workflows                                       # comfyui/api_workflows
    python -m tools.comfyui_workflows http://127.0.0.1:8188                 # and comfyui/example_workflows

The page needs `pip install playwright` and a Chromium. It loads each prompt, lays its nodes out, adds the note,
and is photographed; what it would send is held to be the prompt again.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

PACK = Path(__file__).parents[1] / "comfyui"
PROMPT = "a lighthouse on a cliff at dusk, waves breaking below, a small red boat on the left"
Graph = dict[str, dict[str, Any]]

# text: the loader of the text encoders. patch: what the model's shift is set by. positive: what follows the text.
# negative: the text, None for no guidance. plan: widgets of the plan that differ. sampler: those of the sampler.
MODELS: dict[str, dict[str, Any]] = {
    "FLUX.1-dev": {
        "files": ("flux1-dev.safetensors", "ae.safetensors"),
        "text": ("DualCLIPLoader", {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp16.safetensors"}),
        "type": "flux",
        "patch": ("ModelSamplingFlux", {"max_shift": 1.15, "base_shift": 0.5}),
        "guidance": 3.5,
        "plan": {"preset": "12+1"},
        "note": "12+1: 8.25 times faster than 50 steps on FLUX.1-dev (arXiv 2607.01642). For small text raise "
        "refine_sigma to 0.16 or 0.20: choose 'the numbers below' as the preset first.",
    },
    "Qwen-Image": {
        "files": ("qwen_image_fp8_e4m3fn.safetensors", "qwen_image_vae.safetensors"),
        "text": ("CLIPLoader", {"clip_name": "qwen_2.5_vl_7b_fp8_scaled.safetensors"}),
        "type": "qwen_image",
        "patch": ("ModelSamplingAuraFlow", {"shift": 3.1}),
        "negative": "",
        "plan": {"preset": "12+1", "true_cfg_scale": 4.0},
        "note": "12+1: 10.3 times faster than 50 steps on Qwen-Image (arXiv 2607.01642). Guidance halves the "
        "speed of a step: guidance_stop 0.5 guides only the first half of the draft.",
    },
    "Z-Image-Turbo": {
        "files": ("z_image_turbo_bf16.safetensors", "ae.safetensors"),
        "text": ("CLIPLoader", {"clip_name": "qwen_3_4b.safetensors"}),
        "type": "lumina2",
        "patch": ("ModelSamplingAuraFlow", {"shift": 3.0}),
        "plan": {"preset": "z-image-turbo-8+1"},
        "note": "A distilled checkpoint in the eight steps it was made for, without guidance.",
    },
    "Krea-2-Turbo": {
        "files": ("krea2_turbo_fp8_scaled.safetensors", "qwen_image_vae.safetensors"),
        "text": ("CLIPLoader", {"clip_name": "qwen3vl_4b_fp8_scaled.safetensors"}),
        "type": "krea2",
        "plan": {"preset": "krea-2-turbo-8+1"},
        "note": "A distilled checkpoint in the eight steps it was made for, without guidance.",
    },
    "FLUX.2-Klein-4B": {
        "files": ("flux-2-klein-4b.safetensors", "flux2-vae.safetensors"),
        "text": ("CLIPLoader", {"clip_name": "qwen_3_4b.safetensors"}),
        "type": "flux2",
        "plan": {"preset": "klein-4+1"},
        "schedule": "Flux2Scheduler",
        "note": "A distilled checkpoint in four steps. FLUX.2's schedule depends on the size: it is made for the "
        "draft's, which the plan gives.",
    },
    "SDXL": {
        "files": ("sd_xl_base_1.0.safetensors",),
        "negative": "blurry, deformed, watermark",
        "plan": {"steps": 20, "refine_steps": 2, "refine_sigma": 0.25, "true_cfg_scale": 7.0},
        "sampler": {"sampler_name": "dpmpp_2m", "scheduler": "karras"},
        "note": "No flow model: refine_sigma is turned into the level of the same signal-to-noise ratio, 0.25 "
        "into 0.33. No figures are published; a draft of 512x512 is small for SDXL: a scale of 1.5 may do better.",
    },
}


def main() -> None:
    """Write the prompts and, where a server is named, the graphs."""
    folder = PACK / "api_workflows"
    folder.mkdir(exist_ok=True)
    for name in MODELS:
        (folder / f"{name}.json").write_text(json.dumps(prompt(name), indent=2) + "\n")
    if len(sys.argv) > 1:
        draw(sys.argv[1])


def prompt(name: str) -> Graph:
    """Return a model's workflow as `/prompt` takes it."""
    given = MODELS[name]
    graph: Graph = {}

    def add(kind: str, **inputs: Any) -> str:
        graph[str(len(graph) + 1)] = {"class_type": kind, "inputs": inputs}
        return str(len(graph))

    size = {"width": 1024, "height": 1024}
    plan = add("MrFlowPlan", **size, **{"preset": "the numbers below", **given["plan"]})
    small = {"width": [plan, 1], "height": [plan, 2]}
    model, text, vae = _loaders(given, add)
    if "patch" in given:
        kind, numbers = given["patch"]
        shaped = small if kind == "ModelSamplingFlux" else {}
        model = [add(kind, model=model, **numbers, **shaped), 0]
    positive = add("CLIPTextEncode", clip=text, text=PROMPT)
    if "guidance" in given:
        positive = add("FluxGuidance", conditioning=[positive, 0], guidance=given["guidance"])
    wired: dict[str, Any] = {"model": model, "positive": [positive, 0], "vae": vae, "plan": [plan, 0]}
    if "negative" in given:
        wired["negative"] = [add("CLIPTextEncode", clip=text, text=given["negative"]), 0]
    wired["upscale_model"] = [add("UpscaleModelLoader", model_name="RealESRGAN_x2plus.pth"), 0]
    if "schedule" in given:
        wired["sigmas"] = [add(given["schedule"], steps=[plan, 3], **small), 0]
    numbers = {"seed": 7, "batch_size": 1, "sampler_name": "euler", "scheduler": "simple"}
    sampler = add("MrFlowSampler", **wired, **{**numbers, **given.get("sampler", {})})
    add("PreviewImage", images=[sampler, 2])
    add("SaveImage", images=[sampler, 1], filename_prefix="mrflow")
    return graph


def _loaders(given: dict[str, Any], add: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the sockets of model, text encoder and autoencoder."""
    if len(given["files"]) == 1:
        whole = add("CheckpointLoaderSimple", ckpt_name=given["files"][0])
        return [whole, 0], [whole, 1], [whole, 2]
    model = add("UNETLoader", unet_name=given["files"][0], weight_dtype="default")
    kind, names = given["text"]
    text = add(kind, **names, type=given["type"], device="default")
    return [model, 0], [text, 0], [add("VAELoader", vae_name=given["files"][1]), 0]


_LOAD = """async ([prompt, name, note]) => {
    await window.app.loadApiJson(prompt, name)
    const graph = window.app.graph
    const said = window.LiteGraph.createNode("MarkdownNote")
    said.title = name
    said.widgets[0].value = note
    said.size = [420, 160]
    graph.arrange(60)
    const sampler = graph._nodes.find((node) => node.type === "MrFlowSampler")
    said.pos = [sampler.pos[0], sampler.pos[1] + sampler.size[1] + 80]
    graph.add(said)
    const sent = await window.app.graphToPrompt()
    return [graph.serialize(), sent.output]
}"""

_FIT = """() => {
    const canvas = window.app.canvas, nodes = window.app.graph._nodes
    const left = Math.min(...nodes.map((n) => n.pos[0])) - 20, top = Math.min(...nodes.map((n) => n.pos[1])) - 60
    const right = Math.max(...nodes.map((n) => n.pos[0] + n.size[0])) + 20
    const bottom = Math.max(...nodes.map((n) => n.pos[1] + n.size[1])) + 20
    const box = canvas.canvas.getBoundingClientRect()
    const scale = Math.min(box.width / (right - left), box.height / (bottom - top))
    canvas.ds.scale = scale
    canvas.ds.offset = [-left, -top]
    canvas.setDirty(true, true)
    const shown = {x: box.x, y: box.y, width: (right - left) * scale, height: (bottom - top) * scale}
    return [nodes.filter((n) => n.has_errors).map((n) => n.type), shown]
}"""

_GRAPH_ALONE = "body * {visibility: hidden} #graph-canvas, .dom-widget, .dom-widget * {visibility: visible}"


def draw(address: str) -> None:
    """Write graphs and pictures of them with the page of a running ComfyUI."""
    from playwright.sync_api import sync_playwright

    folder = PACK / "example_workflows"
    folder.mkdir(exist_ok=True)
    with sync_playwright() as play:
        options = ["--no-sandbox", "--use-gl=swiftshader"]
        browser = play.chromium.launch(executable_path=os.environ.get("CHROMIUM"), args=options)
        page = browser.new_page(viewport={"width": 1900, "height": 950})
        page.request.post(f"{address}/settings", data={"Comfy.TutorialCompleted": True})
        page.goto(address)
        page.wait_for_function("() => window.app?.graph && window.LiteGraph?.registered_node_types?.MrFlowSampler")
        page.add_style_tag(content=_GRAPH_ALONE)
        for name, given in MODELS.items():
            graph, sent = page.evaluate(_LOAD, [prompt(name), name, given["note"]])
            _hold_same(prompt(name), sent)
            (folder / f"{name}.json").write_text(json.dumps(graph, indent=1) + "\n")
            red, shown = page.evaluate(_FIT)
            assert red == [], (name, red)
            page.wait_for_timeout(3000)
            page.screenshot(path=folder / f"{name}.jpg", type="jpeg", quality=80, clip=shown)
        browser.close()


def _hold_same(before: Graph, after: Graph) -> None:
    """Raise AssertionError where the graph would send another prompt; widgets left out may have been filled in."""
    for number, node in before.items():
        sent = after[number]
        assert sent["class_type"] == node["class_type"]
        for name, value in node["inputs"].items():
            assert sent["inputs"][name] == value, (node["class_type"], name, value, sent["inputs"].get(name))


if __name__ == "__main__":
    main()
