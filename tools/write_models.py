"""docs/models.md, written from the families and presets as data.

python -m tools.write_models
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mrflow.backbones import get_backbone
from mrflow.backbones.checkpoints import DISTILLED
from mrflow.backbones.families import FAMILIES, NOT_POSSIBLE, NOT_YET, VARIANTS, WRONG_ARGUMENTS
from mrflow.known_upscalers import KNOWN
from mrflow.plan import PRESETS

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
_HEAD = """\
# Models

Written by `python -m tools.write_models` from `backbones/families.py`, `presets.py` and `known_upscalers.py`;
a test keeps it current.

`MrFlow(pipe)` takes a diffusers pipeline of these classes. The checkpoints are examples: any that the class loads
will do.

**What was verified.** Each family runs in `tests/test_families.py` as a tiny pipeline of diffusers' own class with
random weights, float32, on a CPU: its draft is the pipeline's own call bit for bit; the transformer sees exactly
the latents and the sigma mixed in, whatever the checkpoint's shifting; a refine step is one Euler step; a batch
gives what its pictures give alone (1e-5); sizes are not square; the pipeline is afterwards as it was, also after
an error. Where diffusers has an image-to-image pipeline of the family (FLUX.1, Qwen-Image, Stable Diffusion 3,
Chroma, Z-Image), the refine pass is held against it, picture, noise and sigma given (`tests/test_parity.py`,
1e-5). Large vision-language text encoders are stood in for by tiny language models.
**Not run:** real weights and full size, for any family but vista's own; anything on a GPU.

**Guidance.** `guidance_scale` in a plan is what a guidance-embedded transformer is told; `true_cfg_scale` is s in
uncond + s (cond - uncond), 1 being none, under whatever name and scale the pipeline takes it.
"""


def models_page() -> str:
    """Return the text of docs/models.md."""
    return "\n".join([_HEAD, *_families(), *_presets(), *_upscalers(), *_impossible()])


def _families() -> Iterable[str]:
    yield "## Families\n"
    yield "| family | pipeline class | example checkpoints | latents | autoencoder | guidance and default |"
    yield "|---|---|---|---|---|---|"
    for pipeline, facts in FAMILIES.items():
        backbone = get_backbone(pipeline)
        latents, autoencoder = backbone.layout.about, backbone.autoencoder.about
        checkpoints = "<br>".join(facts.checkpoints)
        yield f"| {facts.name} | `{pipeline}` | {checkpoints} | {latents} | {autoencoder} | {facts.guidance} |"
    yield ""
    yield from (f"- {facts.name}: {facts.note}" for facts in FAMILIES.values() if facts.note)
    for pipeline, (family, _) in VARIANTS.items():
        own = "with its own arguments: `fast(..., control_image=image)`"
        if pipeline.startswith("Pi"):
            own = "with LakonLab installed: see [pipelines.md](pipelines.md#pi-flow)"
        yield f"- `{pipeline}` works as {FAMILIES[family].name} does, {own}."
    yield ""


def _presets() -> Iterable[str]:
    known: dict[str, list[str]] = {}
    for each in DISTILLED:
        told = f'"{each.word}" in its name' if each.word else f"`{each.flag or each.pipeline}`"
        known.setdefault(each.preset, []).append(told)
    yield "## Presets\n"
    yield 'By name as `plan=`; any "N+M" works too. Those of distilled checkpoints are the default where the'
    yield "pipeline says what it is; a LoRA that distils comes and goes, so its preset is chosen by hand.\n"
    yield "| preset | steps | refine sigma | for | taken by itself for | source |"
    yield "|---|---|---|---|---|---|"
    for preset in PRESETS.values():
        plan, chosen = preset.plan, ", ".join(known.get(preset.name, ()))
        numbers = f"{plan.label} | {plan.refine_sigma:g}"
        yield f"| `{preset.name}` | {numbers} | {preset.about} | {chosen} | {preset.source} |"
    yield ""


def _upscalers() -> Iterable[str]:
    yield "## Upscalers\n"
    yield "Any file that spandrel reads works by its path. These work by name (`upscaler='realesrgan-x2'`): they"
    yield "are fetched once, and their hash is checked. The hashes are those that several public lists agree on;"
    yield "no file was fetched where this was written.\n"
    yield "| name | what | licence | from | SHA-256 |"
    yield "|---|---|---|---|---|"
    for known in KNOWN.values():
        yield f"| `{known.name}` | {known.about} | {known.licence} | {known.url} | `{known.sha256}` |"
    yield ""


def _impossible() -> Iterable[str]:
    yield "## Not possible\n"
    yield from (f"- `{pipeline}`: {reason}." for pipeline, reason in NOT_POSSIBLE.items())
    for argument, reason in WRONG_ARGUMENTS.items():
        yield f"- Any pipeline whose call takes `{argument}=`: {reason}."
    yield "\nGive a picture that is to be changed to `enhance`, with the family's text-to-image pipeline."
    yield "\n## Not yet\n"
    yield from (f"- `{pipeline}`: it has {reason}." for pipeline, reason in NOT_YET.items())
    yield "\nAny other class needs a backbone of its own: see `mrflow.backbones` and `register_backbone`."
    yield ""


if __name__ == "__main__":
    PAGE.write_text(models_page(), encoding="utf-8")
