"""Staged sampling against a plain script of the same plan: Pillow pictures between two pipelines of diffusers.

    python benchmarks/plain_script.py --device cpu                                        # vista
    python benchmarks/plain_script.py --random-weights flux-dev --size 1024 --device cuda
    python benchmarks/plain_script.py --random-weights qwen-image --size 1024 --device cuda

Three ways, in one process, in turn (A B C A B C) after a short run of each to warm up:

native          the plain pipeline at full size
staged          the plan, by mrflow
plain script    the plan as one writes it with diffusers alone: the text-to-image pipeline at draft size, its
                picture through the same upscaler in overlapping tiles, numpy arrays in and out, pasted on the
                CPU, and then into the image-to-image pipeline of the same components, which encodes the prompt
                again. Tiles of 512 pixels share 32, so that a draft of up to 512 pixels is one tile

Left as it is, the image-to-image pipeline would shift the plan's sigma: FLUX.1's by the size, Qwen-Image's, whose
schedule ends at `shift_terminal`, always to 0.02; and `strength` can only choose from that shifted schedule. So
the script does what such scripts do: it gives the image-to-image pipeline a scheduler of the same configuration
without shift and terminal, hands over the plan's sigmas, and sets strength to 1, so that all of them are run: one
step for 12+1.

Given are medians with the smallest and the largest, speed-ups, and what share of the total is spent outside of the
transformer, by the device's own events on CUDA. The last line of stdout is JSON; --out writes it to a file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoPipelineForImage2Image
from PIL import Image

from mrflow import MrFlow, Plan
from mrflow.architectures import read_architecture
from mrflow.bench.environment import describe_run
from mrflow.bench.measure import save_report
from mrflow.bench.random_weights import make_random
from mrflow.bench.timing import Spread, Timed, speedup, time_in_turn
from mrflow.drafts import Result
from mrflow.errors import MrFlowError, RequestError
from mrflow.jobs import Size, parse_size
from mrflow.loading import check_device, check_dtype
from mrflow.plan import OWN, get_plan
from mrflow.progress import Clock
from mrflow.sampling import refine_sigmas

TILE, OVERLAP = 512, 32  # those of ComfyUI's ImageUpscaleWithModel, in pixels of the draft
PLAIN = "plain script"
WARM_STEPS = 2
PIPELINES = ("FluxPipeline", "QwenImagePipeline")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table and then the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vista", help="of FLUX.1's or Qwen-Image's family")
    parser.add_argument("--random-weights", metavar="NAME", help="instead: flux-dev or qwen-image at full size")
    parser.add_argument("--prompt", default="a lake at sunset with mountains, many pine trees and a red boat")
    parser.add_argument("--plan", default="12+1")
    parser.add_argument("--native-steps", type=int, help="default: the model's")
    parser.add_argument("--size", help="pixels: 1024 or 1024x768; default: the model's")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", help="default: bfloat16 on CUDA, float32 on a CPU")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    asked = parser.parse_args(arguments)
    try:
        report = measure(load(asked), asked)
        save_report(report, asked.out)
    except MrFlowError as error:
        raise SystemExit(str(error)) from None
    for name, way in report["ways"].items():
        shown, outside = way["seconds"]["total"], way["outside_transformer"]
        print(f"{name:12} {shown['median']:9.3f} s, {outside['median']:.1%} outside of the transformer")
    for name, ratio in report["speedup"].items():
        print("{}: x{median:.2f} [{low:.2f}, {high:.2f}]".format(name, **ratio))
    print(json.dumps(report))


def load(asked: argparse.Namespace) -> MrFlow:
    """Return the model that the options name."""
    device = check_device(asked.device)
    if asked.random_weights is None:
        fast = MrFlow.from_pretrained(asked.model, device=device, dtype=asked.dtype)
    else:
        fast = make_random(read_architecture(asked.random_weights), device, check_dtype(asked.dtype, device))
    fast.pipe.set_progress_bar_config(disable=True)
    return fast


def measure(fast: MrFlow, asked: argparse.Namespace) -> dict[str, Any]:
    """Return the report: environment, seconds by stage, the share outside of the transformer, speed-ups."""
    plan = resolve(fast, get_plan(asked.plan))
    size = fast.model.resolve_size(*parse_size(asked.size))
    steps = asked.native_steps or fast.model.defaults.native_steps
    short = replace(plan, steps=min(WARM_STEPS, plan.steps))
    warm = ways(fast, short, min(WARM_STEPS, steps), size, asked.prompt)
    for name, way in [*warm.items()] * asked.warm_up:
        print(f"warm up: {name}", file=sys.stderr)
        way()
    made = ways(fast, plan, steps, size, asked.prompt)
    names = [f"native:{steps}", plan.label, PLAIN]
    timed = time_in_turn(
        dict(zip(names, made.values(), strict=True)), asked.repeats, partial(print, "run:", file=sys.stderr)
    )
    native, staged, plain = timed.values()
    return {
        **describe_run(fast, plan, size),
        "upscaler": fast.model.upscaler.name,
        "prompt": asked.prompt,
        "repeats": asked.repeats,
        "warm_up": asked.warm_up,
        "tile": [TILE, OVERLAP],
        "ways": {name: describe(one) for name, one in timed.items()},
        "speedup": {
            f"{plan.label} over {PLAIN}": speedup(plain, staged).to_dict(),
            f"{plan.label} over native:{steps}": speedup(native, staged).to_dict(),
            f"{PLAIN} over native:{steps}": speedup(native, plain).to_dict(),
        },
    }


def resolve(fast: MrFlow, plan: Plan) -> Plan:
    """Return the plan as every way runs it: from own noise, guided in all steps by plain Euler, as there.

    Raises RequestError for a pipeline that the script is not written for.
    """
    if type(fast.pipe).__name__ not in PIPELINES:
        raise RequestError(
            f"The pipeline is a {type(fast.pipe).__name__}; this script is written for {' and '.join(PIPELINES)}."
        )
    return fast.model.resolve_plan(replace(plan, guidance_stop=1.0, solver=OWN, noise=OWN))


def ways(
    fast: MrFlow, plan: Plan, native_steps: int, size: Size, prompt: str, seed: int = 0
) -> dict[str, Callable[[], Result]]:
    """Return the three ways of making the picture, each of which also times the transformer."""
    settings: dict[str, Any] = {"width": size[0], "height": size[1], "seed": seed}
    given = {"native": partial(fast.native, prompt, steps=native_steps, **settings)}
    given["staged"] = partial(fast, prompt, plan=plan, **settings)
    given[PLAIN] = partial(plain_script, fast, image_to_image(fast.pipe), plan, size, prompt, seed)
    return {
        name: partial(with_passes, fast.pipe.transformer, fast.model.device, way) for name, way in given.items()
    }


def with_passes(transformer: Any, device: torch.device, way: Callable[[], Result]) -> Result:
    """Return the way's result with the seconds of the transformer's passes among the others."""
    with passes(transformer, device) as total:
        result = way()
        seconds = total()
    return replace(result, seconds={**result.seconds, "transformer": seconds})


@contextmanager
def passes(transformer: Any, device: torch.device) -> Iterator[Callable[[], float]]:
    """Time the transformer's passes meanwhile; gives a function that returns their seconds so far.

    On CUDA by events on the stream: waiting at each pass would slow down what is measured.
    """
    marks: list[Any] = []

    def mark(*_: Any) -> None:
        if device.type == "cuda":
            marks.append(torch.cuda.Event(enable_timing=True))
            marks[-1].record()
        else:
            marks.append(time.perf_counter())

    def total() -> float:
        pairs = zip(marks[::2], marks[1::2], strict=True)
        if device.type != "cuda":
            return sum(end - begin for begin, end in pairs)
        torch.cuda.synchronize()
        return sum(begin.elapsed_time(end) for begin, end in pairs) / 1000

    hooks = [transformer.register_forward_pre_hook(mark), transformer.register_forward_hook(mark)]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()


def image_to_image(pipe: Any) -> Any:
    """Return the image-to-image pipeline of the same components, whose scheduler leaves sigmas as they are."""
    unshifted = {"shift": 1.0, "use_dynamic_shifting": False, "shift_terminal": None}
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **unshifted)
    made = AutoPipelineForImage2Image.from_pipe(pipe, scheduler=scheduler)
    made.set_progress_bar_config(disable=True)
    return made


def plain_script(fast: MrFlow, second: Any, plan: Plan, size: Size, prompt: str, seed: int) -> Result:
    """Return the picture of the plan, made by the two pipelines; `second` is the image-to-image one."""
    small = plan.draft_size(*size, fast.model.multiple)
    sigmas = refine_sigmas(plan.refine_sigma, plan.refine_steps)[:-1]  # the scheduler appends the 0
    clock = Clock(fast.model.device)
    with clock.stage("text to image"):
        draft = fast.pipe(
            **texts(fast, plan, plan.true_cfg_scale, prompt),
            width=small[0],
            height=small[1],
            num_inference_steps=plan.steps,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
    with clock.stage("upscale"):
        enlarged = upscale(fast, draft, size)
    with clock.stage("image to image"):
        picture = second(
            **texts(fast, plan, plan.refine_true_cfg_scale, prompt),
            image=enlarged,
            width=size[0],
            height=size[1],
            strength=1.0,
            num_inference_steps=len(sigmas),
            sigmas=list(sigmas),
            generator=torch.Generator().manual_seed(seed + 1),
        ).images[0]
    return Result([picture], [], clock.totals())


def texts(fast: MrFlow, plan: Plan, true_cfg_scale: float | None, prompt: str) -> dict[str, Any]:
    """Return the prompts and how strongly they guide, as arguments of either pipeline."""
    cfg, length = true_cfg_scale or 1.0, fast.model.defaults.max_sequence_length
    negative = {"negative_prompt": fast.model.defaults.negative_prompt} if cfg > 1 else {}
    guidance = fast.model.backbone.guidance(plan.guidance_scale, cfg)
    return {"prompt": prompt, **negative, **guidance, **({"max_sequence_length": length} if length else {})}


def upscale(fast: MrFlow, picture: Image.Image, size: Size, tile: int = TILE) -> Image.Image:
    """Return the picture at `size`: enlarged tile by tile, numpy arrays in and out, and resized by Pillow.

    Of what two tiles share, each keeps the half that is farther from its edge.
    """
    upscaler = fast.model.upscaler
    factor = upscaler.factor or ceil(size[0] / picture.width)
    pixels = np.asarray(picture, dtype=np.float32) / 255
    enlarged = np.empty((picture.height * factor, picture.width * factor, 3), np.float32)
    for top, bottom, above, below in spans(picture.height, tile):
        for left, right, before, after in spans(picture.width, tile):
            part = torch.from_numpy(pixels[None, top:bottom, left:right].transpose(0, 3, 1, 2)).to(
                fast.model.device
            )
            with torch.no_grad():
                large = upscaler.upscale(part, (right - left) * factor, (bottom - top) * factor)
            large = large[0].cpu().numpy().transpose(1, 2, 0)
            rows = slice((above - top) * factor, (below - top) * factor)
            columns = slice((before - left) * factor, (after - left) * factor)
            enlarged[above * factor : below * factor, before * factor : after * factor] = large[rows, columns]
    made = Image.fromarray((enlarged.clip(0, 1) * 255).round().astype(np.uint8))
    return made if made.size == size else made.resize(size, Image.Resampling.LANCZOS)


def spans(length: int, tile: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield tiles along one side: where each begins and ends, and from where to where it is kept."""
    start, kept = 0, 0
    while kept < length:
        end = min(start + tile, length)
        keep = end if end == length else end - OVERLAP // 2
        yield start, end, kept, keep
        start, kept = end - OVERLAP, keep


def describe(timed: Timed) -> dict[str, Any]:
    """Return the seconds of each stage and what share of each run was spent outside of the transformer."""
    outside = [1 - run["transformer"] / run["total"] for run in timed.runs]
    return {
        "seconds": {name: each.to_dict() for name, each in timed.spreads.items()},
        "totals": timed.totals,
        "outside_transformer": Spread.of(outside).to_dict(),
    }


if __name__ == "__main__":
    main()
