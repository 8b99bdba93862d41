"""What was meant by a command or an option that there is not: other programs' words, beginnings, near misses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches

# ours: what diffusers, other command lines and web interfaces call it
COMMANDS = {
    "generate": "create image img make paint prompt run t2i text2img text2image txt2img",
    "enhance": "hires i2i img2img refine upscale",
    "batch": "queue",
    "serve": "api gui server start ui web webui",
    "models": "list ls presets upscalers",
    "estimate": "cost memory vram",
    "bench": "benchmark profile time",
    "replay": "again recipe repeat reproduce",
    "config": "configure defaults settings",
}
OPTIONS = {
    "--size": "aspect aspect-ratio dimensions h height image-size resolution w width",
    "--steps": "inference-steps num-inference-steps num-steps sample-steps sampling-steps",
    "--guidance": "cfg cfg-scale guidance-scale",
    "--sigma": "denoise denoising-strength noise-level strength",
    "--num-images": "batch batch-count batch-size count n n-samples num num-images-per-prompt number samples",
    "--solver": "sampler sampling-method scheduler",
    "--upscaler": "hires-upscaler upscale-model",
    "--model": "base-model checkpoint ckpt model-id model-name model-path pretrained repo",
    "--dtype": "bf16 fp16 precision torch-dtype",
    "--out": "dir file filename outdir outfile output output-dir output-path save",
    "--force": "overwrite y yes",
    "--debug": "traceback v verbose",
    "--offload": "cpu-offload low-vram lowvram medvram sequential-cpu-offload",
}


def suggest(word: str, names: Collection[str], words: Mapping[str, str]) -> str:
    """Return which of `names` was meant by `word`, or "". words: theirs, parted by spaces, by ours."""
    bare = word.split("=")[0].lstrip("-").lower().replace("_", "-")
    for ours, theirs in words.items():
        if ours in names and bare in theirs.split():
            return ours
    by_bare = {name.lstrip("-"): name for name in names}
    begin = [name for name in by_bare if len(bare) > 1 and name.startswith(bare)]
    near = sorted(begin, key=len) or get_close_matches(bare, by_bare, n=1)
    return by_bare[near[0]] if near else ""
