"""The families as data: pipeline class, backbone, checkpoints, what a reader should know. No torch here.

docs/models.md is written from this; see tools/write_models.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class FamilyFacts:
    """One family. backbone: "module:class" in mrflow.backbones. checkpoints: examples, hub ids or file names.

    guidance: how a Plan's guidance reaches the pipeline, and its default. note: what differs from the others.
    """

    name: str
    backbone: str
    checkpoints: tuple[str, ...]
    guidance: str
    note: str = ""


FAMILIES: Mapping[str, FamilyFacts] = MappingProxyType(
    {
        "FluxPipeline": FamilyFacts(
            name="FLUX.1",
            backbone="flux:FluxBackbone",
            checkpoints=(
                "black-forest-labs/FLUX.1-dev",
                "black-forest-labs/FLUX.1-schnell",
                "black-forest-labs/FLUX.1-Krea-dev",
            ),
            guidance="guidance_scale, 3.5, where embedded (dev), else none; true_cfg_scale besides",
        ),
        "QwenImagePipeline": FamilyFacts(
            name="Qwen-Image",
            backbone="qwen_image:QwenImageBackbone",
            checkpoints=("Qwen/Qwen-Image", "Qwen/Qwen-Image-2512"),
            guidance="true_cfg_scale, 4",
        ),
        "QwenImage21Pipeline": FamilyFacts(
            name="Qwen-Image 2.1",
            backbone="qwen_image:QwenImage21Backbone",
            checkpoints=("Qwen/Qwen-Image-2.1",),
            guidance="true_cfg_scale, 1",
            note="The autoencoder's fourth channel is given as opaque and left out of pictures. "
            "A checkpoint's own `sample_sigmas` make the draft where their number is the plan's steps.",
        ),
        "Flux2Pipeline": FamilyFacts(
            name="FLUX.2",
            backbone="flux2:Flux2Backbone",
            checkpoints=("black-forest-labs/FLUX.2-dev",),
            guidance="guidance_scale, 4; no true CFG",
        ),
        "Flux2KleinPipeline": FamilyFacts(
            name="FLUX.2 Klein",
            backbone="flux2:Flux2KleinBackbone",
            checkpoints=("black-forest-labs/FLUX.2-klein-4B", "black-forest-labs/FLUX.2-klein-base-9B"),
            guidance="true_cfg_scale, 4; distilled checkpoints (`is_distilled`) take none",
        ),
        "ZImagePipeline": FamilyFacts(
            name="Z-Image",
            backbone="z_image:ZImageBackbone",
            checkpoints=("Tongyi-MAI/Z-Image-Turbo", "Tongyi-MAI/Z-Image"),
            guidance="true_cfg_scale, 6: the pipeline's guidance_scale + 1",
            note="Turbo is known by its name; under another name give its plan.",
        ),
        "StableDiffusion3Pipeline": FamilyFacts(
            name="Stable Diffusion 3",
            backbone="stable_diffusion_3:StableDiffusion3Backbone",
            checkpoints=(
                "stabilityai/stable-diffusion-3-medium-diffusers",
                "stabilityai/stable-diffusion-3.5-large",
            ),
            guidance="true_cfg_scale, 7",
        ),
        "ChromaPipeline": FamilyFacts(
            name="Chroma",
            backbone="chroma:ChromaBackbone",
            checkpoints=("lodestones/Chroma1-HD",),
            guidance="true_cfg_scale, 5",
        ),
        "Krea2Pipeline": FamilyFacts(
            name="Krea 2",
            backbone="krea2:Krea2Backbone",
            checkpoints=("Krea 2 base", "Krea 2 Turbo"),
            guidance="true_cfg_scale, 5.5: the pipeline's guidance_scale + 1; distilled (`is_distilled`) 1",
        ),
        "Lumina2Pipeline": FamilyFacts(
            name="Lumina-Image 2.0",
            backbone="lumina2:Lumina2Backbone",
            checkpoints=("Alpha-VLLM/Lumina-Image-2.0",),
            guidance="true_cfg_scale, 4",
        ),
        "AuraFlowPipeline": FamilyFacts(
            name="AuraFlow",
            backbone="aura_flow:AuraFlowBackbone",
            checkpoints=("fal/AuraFlow",),
            guidance="true_cfg_scale, 3.5",
        ),
        "OvisImagePipeline": FamilyFacts(
            name="Ovis-Image",
            backbone="ovis_image:OvisImageBackbone",
            checkpoints=("AIDC-AI/Ovis-Image-7B",),
            guidance="true_cfg_scale, 5",
        ),
        "CogView4Pipeline": FamilyFacts(
            name="CogView4",
            backbone="cogview4:CogView4Backbone",
            checkpoints=("THUDM/CogView4-6B",),
            guidance="true_cfg_scale, 5",
        ),
        "SanaPipeline": FamilyFacts(
            name="Sana",
            backbone="sana:SanaBackbone",
            checkpoints=("Efficient-Large-Model/Sana_1600M_1024px_diffusers",),
            guidance="true_cfg_scale, 4.5",
            note="Sizes are taken as they are, in multiples of 32, not rounded to trained ones.",
        ),
        "ErnieImagePipeline": FamilyFacts(
            name="ERNIE-Image",
            backbone="ernie_image:ErnieImageBackbone",
            checkpoints=("ERNIE-Image",),
            guidance="true_cfg_scale, 4",
            note="Prompts are taken as they are: its enhancer, a language model that rewrites them, has no part.",
        ),
        "BriaPipeline": FamilyFacts(
            name="Bria 3.2",
            backbone="bria:BriaBackbone",
            checkpoints=("briaai/BRIA-3.2",),
            guidance="true_cfg_scale, 5",
        ),
        "PRXPipeline": FamilyFacts(
            name="PRX",
            backbone="prx:PRXBackbone",
            checkpoints=("Photoroom/prx-512-t2i-sft",),
            guidance="true_cfg_scale, 4",
            note="Pictures go through it one by one, whatever the batch size; sizes are not rounded.",
        ),
        "NucleusMoEImagePipeline": FamilyFacts(
            name="NucleusMoE-Image",
            backbone="nucleusmoe_image:NucleusMoEImageBackbone",
            checkpoints=("NucleusAI/NucleusMoE-Image",),
            guidance="true_cfg_scale, 4, with the norm of the conditional prediction",
        ),
        "HiDreamImagePipeline": FamilyFacts(
            name="HiDream-I1",
            backbone="hidream_image:HiDreamImageBackbone",
            checkpoints=("HiDream-ai/HiDream-I1-Full", "HiDream-ai/HiDream-I1-Dev"),
            guidance="true_cfg_scale, 5",
            note="Dev and Fast are distilled: give them `Plan(true_cfg_scale=1)`. Pictures that are not square "
            "have 1024x1024 pixels at most, by the transformer's `max_resolution`.",
        ),
        "LuminaPipeline": FamilyFacts(
            name="Lumina-Next",
            backbone="lumina:LuminaBackbone",
            checkpoints=("Alpha-VLLM/Lumina-Next-SFT-diffusers",),
            guidance="true_cfg_scale, 4, of three of four channels",
            note="Captions are not cleaned of markup, as the pipeline's default would with further libraries.",
        ),
        "PRXPixelPipeline": FamilyFacts(
            name="PRX Pixel",
            backbone="prx:PRXPixelBackbone",
            checkpoints=("PRX Pixel",),
            guidance="true_cfg_scale, 4",
            note="Works on pixels: nothing is encoded, and noise is of the checkpoint's `noise_scale`.",
        ),
        "BriaFiboPipeline": FamilyFacts(
            name="Bria FIBO",
            backbone="bria_fibo:BriaFiboBackbone",
            checkpoints=("briaai/FIBO",),
            guidance="true_cfg_scale, 5",
            note="Its call takes no embeddings: each pass encodes the text again. Checkpoints expect "
            "captions in JSON.",
        ),
    }
)

VARIANTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "FluxControlNetPipeline": ("FluxPipeline", "flux:FluxBackbone"),
        "FluxControlPipeline": ("FluxPipeline", "flux:FluxControlBackbone"),
        "QwenImageControlNetPipeline": ("QwenImagePipeline", "qwen_image:QwenImageBackbone"),
        "ZImageControlNetPipeline": ("ZImagePipeline", "z_image:ZImageBackbone"),
        "PiFluxPipeline": ("FluxPipeline", "piflow:PiFluxBackbone"),
        "PiQwenImagePipeline": ("QwenImagePipeline", "piflow:PiQwenImageBackbone"),
    }
)
"""Other pipeline classes of a family: class to the family's own class and its backbone."""

_GLOBAL_NOISE = (
    "it draws noise for its control image from the global random state, so that a seed makes no picture"
)
_LEFT_BEHIND = (
    "a call that is cut short leaves its perturbed attention in the transformer, so that the pipeline would not "
    "be as it was (diffusers 0.42.1)"
)
_NO_FLOW = "it denoises by another law than flow matching, to which a sigma between 0 and 1 means nothing"

NOT_POSSIBLE: Mapping[str, str] = MappingProxyType(
    {
        "StableDiffusionPipeline": _NO_FLOW,
        "StableDiffusionXLPipeline": _NO_FLOW,
        "KolorsPipeline": _NO_FLOW,
        "HunyuanDiTPipeline": _NO_FLOW,
        "PixArtAlphaPipeline": _NO_FLOW,
        "PixArtSigmaPipeline": _NO_FLOW,
        "CogView3PlusPipeline": _NO_FLOW,
        "StableDiffusion3ControlNetPipeline": f"{_GLOBAL_NOISE} (diffusers 0.42.1)",
        "CogView4ControlPipeline": f"{_GLOBAL_NOISE} (diffusers 0.42.1)",
        "HunyuanImagePipeline": "its guidance is a component with a state of its own, chosen for a whole batch by "
        "whether a prompt quotes text, so that no plan could set it, nor a batch give what its pictures give "
        "alone (diffusers 0.42.1)",
        "SanaSprintPipeline": "it is distilled into another law, TrigFlow, with a scheduler of its own",
        "Cosmos2TextToImagePipeline": "its sigmas run from 0.002 to 80; their noise is added to a picture, not "
        "mixed with it",
        "GlmImagePipeline": "a language model draws tokens of the picture first, for its size and from the "
        "global random state: those of a draft do not fit the larger picture, and a seed makes none",
        "StableDiffusion3PAGPipeline": _LEFT_BEHIND,
        "SanaPAGPipeline": _LEFT_BEHIND,
        "LongCatImagePipeline": "its call takes no callback and fails on prompt embeddings: it counts the prompts "
        "that are not given beside them (diffusers 0.42.1)",
    }
)

NOT_YET: Mapping[str, str] = MappingProxyType(
    {
        "Kandinsky5T2IPipeline": "seven sizes to which it rounds all others, and an answer of another shape",
        "Ideogram4Pipeline": "a call that takes texts alone, and a second transformer for guidance",
        "BriaFibo2Pipeline": "drawn words of the caption, which its text encoder is shown from some step on",
        "OmniGenPipeline": "one transformer for texts and pictures, and a call that takes texts alone",
        "ZImageOmniPipeline": "reference pictures among what it is conditioned on; ZImagePipeline needs none",
        "SanaControlNetPipeline": "a control image, not tried with this transformer",
        "Flux2KleinKVPipeline": "a cache of reference pictures; Flux2KleinPipeline needs none",
    }
)
"""Text-to-image pipelines that nobody has tried here, and what would be new about them."""
