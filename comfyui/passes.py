"""What the nodes compute on plain tensors and numbers; nothing here asks ComfyUI.

A sigma is mrflow's: (1 - sigma) of the picture and sigma of noise. Latents are (B, C, h, w), or (B, C, 1, h, w)
where the autoencoder is one of videos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from mrflow.errors import MrFlowError, PlanError
from mrflow.jobs import check_size
from mrflow.plan import ABOUT, DEFAULT_PLAN, NATIVE, PRESETS, SWITCH, About, Plan
from mrflow.sampling import draft_generators, make_noise, refine_generators, shrink_noise
from mrflow.tiles import in_tiles

MULTIPLE = 16  # pixels of a patch in nearly all families; ComfyUI itself pads for those of 32
OWN_NUMBERS = "the numbers below"
ELSEWHERE = {
    "guidance_scale": "FluxGuidance",
    "solver": "sampler_name",
    "scales": "MrFlowLift and MrFlowRefine again",
}
"""Numbers of a plan that ComfyUI has a place for already."""
USUAL = {"true_cfg_scale": 1.0, "guidance_stop": 1.0, "tile": 0}
"""What stands in a widget where a plan's None is the model's own, which no node can know."""
SINGLE = {name: preset for name, preset in PRESETS.items() if preset.plan.scales is None}
"""The presets of one lift."""


class Target(NamedTuple):
    """A plan and the size in pixels of the finished picture."""

    plan: Plan
    width: int
    height: int

    @property
    def draft_size(self) -> tuple[int, int]:
        """Width and height of the draft."""
        return self.plan.draft_size(self.width, self.height, MULTIPLE)


def numbers() -> Iterator[tuple[str, About, Any]]:
    """Yield name, description and default of each of a plan's numbers that the nodes offer; None: unless wired."""
    for name, about in ABOUT.items():
        if name not in ELSEWHERE:
            yield name, about, USUAL.get(name, getattr(DEFAULT_PLAN, name))


def make_target(
    width: int, height: int, preset: str = OWN_NUMBERS, *, switch: bool = False, **given: Any
) -> Target:
    """Return the plan of a preset, or of the numbers, at a size. Raises PlanError or SizeError.

    A preset sets steps, sigma and whatever else it names; the rest stays as given, or as the widgets' defaults.
    switch: in place of a sigma, both passes are one schedule.
    """
    check_size(width, height, MULTIPLE)
    usual = {name: default for name, _, default in numbers()}
    plan = make_plan(**{**usual, **given, **({"refine_sigma": SWITCH} if switch else {})})
    if preset != OWN_NUMBERS:
        named = SINGLE[preset].plan
        other = {name for name in ABOUT if getattr(named, name) != getattr(DEFAULT_PLAN, name)}
        said = {"steps", "refine_steps", "refine_sigma", *other}
        plan = replace(plan, **{name: getattr(named, name) for name in said})
    return Target(plan, width, height)


def make_plan(*, tile: int = 0, **numbers: Any) -> Plan:
    """Return the plan of a node's numbers, whose 0 for `tile` cuts nothing; raises PlanError."""
    return Plan(tile=tile or None, **numbers)


def scales(plan: Plan) -> tuple[float, float]:
    """Return classifier-free guidance of the draft and of the refine pass; 1 is none."""
    draft = 1.0 if plan.true_cfg_scale is None else plan.true_cfg_scale
    return draft, draft if plan.refine_true_cfg_scale is None else plan.refine_true_cfg_scale


def levels(sigmas: Sequence[float], flow: bool, data: float = 1.0) -> Tensor:
    """Return sigmas (N + 1) as ComfyUI counts them for a model, float32.

    flow: a model that mixes (1 - sigma) of the picture with sigma of noise takes them as they are, whatever its
    shift. Others add noise to the whole picture, which has the deviation `data`: there the same signal-to-noise
    ratio is data * sigma / (1 - sigma).
    """
    exact = torch.tensor(sigmas, dtype=torch.float64)
    return (exact if flow else data * exact / (1 - exact)).float()


def divide(plan: Plan, small: Tensor, large: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the levels of the draft and, where a plan switches, of the refine pass; else None.

    small, large: the schedules (N + 1) for the draft's size and the finished one. A plan that switches takes its
    first steps of the one, to an end at the clean estimate, and goes on with the other by number.
    Raises PlanError unless they have as many steps as the plan.
    """
    if not plan.switches:
        return small, None
    for schedule in (small, large):
        if len(schedule) - 1 != plan.schedule_steps:
            raise PlanError(
                f"The schedule has {len(schedule) - 1} steps and the plan {plan.label} divides "
                f"{plan.schedule_steps}. Make it of as many."
            )
    return torch.cat([small[: plan.steps], small[-1:]]), large[plan.steps :]


def guided_above(sigmas: Tensor, plan: Plan) -> float:
    """Return the level above which a draft over `sigmas` is guided: that of the first step without guidance."""
    steps = len(sigmas) - 1
    guided = replace(plan, steps=steps).guided_steps
    return -1.0 if guided == steps else float(sigmas[guided])


def draft_noise(plan: Plan, seeds: Sequence[int], shape: Sequence[int], native: Sequence[int]) -> Tensor:
    """Return the noise that drafts begin from, float32, each of its seed alone.

    shape: of one draft's latents, (C, h, w) or (C, 1, h, w). native: height and width of the finished picture's
    latents, whose noise is brought down where the plan says so.
    """
    generators = draft_generators(seeds)
    if plan.noise != NATIVE:
        return make_noise(shape, generators)
    noise = make_noise((*shape[:-2], *native), generators).flatten(1, -3)
    return shrink_noise(noise, *shape[-2:]).reshape(len(seeds), *shape)


def refine_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return the noise mixed in before refining, float32, each of its seed alone. shape: see `draft_noise`."""
    return make_noise(shape, refine_generators(seeds))


def stream_seeds(seeds: Sequence[int]) -> list[int]:
    """Return for each seed that of the noise which a sampler adds on its way, unrelated to what it began from."""
    return [generator.initial_seed() for generator in refine_generators(seeds)]


class Tiles:
    """Has a model answer in tiles, as ComfyUI's wrapper of a model's function.

    All of the text and the references is every tile's; of a ControlNet's answers and of what is concatenated each
    has its own part. Models that know `rope_options` (FLUX, Z-Image, Lumina, Wan) are told where a tile lies; for
    others positions begin anew.

    side: of a tile, in latents. patch: latents of a patch. within: another wrapper, to go on with.
    """

    def __init__(self, side: int, patch: int, within: Callable[..., Tensor] | None = None) -> None:
        self._side, self._patch, self._within = side, patch, within

    def __call__(self, apply: Callable[..., Tensor], given: Mapping[str, Any]) -> Tensor:
        """Return what the model answers for given["input"] (B, C, h, w) or (B, C, 1, h, w).

        Raises MrFlowError for conditioning that can't be cut.
        """
        conditions, (height, width) = given["c"], given["input"].shape[-2:]
        options = conditions.get("transformer_options", {})
        rope = options.get("rope_options", {})
        control = [each for each in tree_leaves(conditions.get("control")) if isinstance(each, Tensor)]
        down, across = (-(-side // self._patch) for side in (height, width))
        _check_cut(conditions, control, down * across)

        def part(rows: slice, columns: slice) -> Tensor:
            def take(value: Any) -> Any:
                if not isinstance(value, Tensor):
                    return value
                if value.ndim == 3:
                    y, x = (_scaled(span, 1, self._patch) for span in (rows, columns))
                    return value.unflatten(1, (down, across))[:, y, x].flatten(1, 2)
                y, x = (_scaled(rows, value.shape[-2], height), _scaled(columns, value.shape[-1], width))
                return value[..., y, x]

            place = {
                f"shift_{axis}": rope.get(f"shift_{axis}", 0.0)
                + rope.get(f"scale_{axis}", 1.0) * (span.start // self._patch)
                for axis, span in (("y", rows), ("x", columns))
            }
            cut = {name: tree_map(take, conditions[name]) for name in _SPATIAL & conditions.keys()}
            taken = {**conditions, **cut, "transformer_options": {**options, "rope_options": {**rope, **place}}}
            if self._within is not None:
                return self._within(apply, {**given, "input": take(given["input"]), "c": taken})
            return apply(take(given["input"]), given["timestep"], **taken)

        maps = any(each.ndim > 3 for each in control)  # some of them at an eighth of the latents
        overlap = max(self._side // 4, 2 * self._patch)
        return in_tiles(part, height, width, self._side, overlap, self._patch * (4 if maps else 1))

    def to(self, device: Any) -> Tiles:
        """Move another wrapper, if it is one to be moved, as ComfyUI does with models."""
        if hasattr(self._within, "to"):
            self._within = self._within.to(device)
        return self


_SPATIAL = {"c_concat", "denoise_mask", "image_cond", "control"}


def _check_cut(conditions: Mapping[str, Any], control: Sequence[Tensor], tokens: int) -> None:
    """Raise MrFlowError for conditioning of the whole picture that no tile can have a part of.

    control: what ControlNets answered. tokens: of the whole picture.
    """
    patches = conditions.get("transformer_options", {}).get("patches", {})
    mask = conditions.get("attention_mask")
    if any(hasattr(each, "encoded_image") for each in tree_leaves(patches)):  # which it scales to any input's size
        named = "A ControlNet that is a model patch"
    elif isinstance(mask, Tensor) and mask.ndim > 2 and mask.shape[-1] > tokens:
        named = "A style model's attention"
    elif any(each.ndim == 3 and each.shape[1] != tokens for each in control):
        named = "This ControlNet"
    else:
        return
    raise MrFlowError(f"{named} belongs to the whole picture and can't be cut into tiles. Set tile to 0.")


def _scaled(span: slice, have: int, length: int) -> slice:
    """Return a span of `length` places on a map of `have`; parts of places count whole."""
    if have >= length:
        return slice(span.start * (have // length), span.stop * (have // length))
    each = -(-length // have)
    return slice(span.start // each, -(-span.stop // each))


def check_guidance(scale: float, negative: object) -> None:
    """Raise MrFlowError where guidance has nothing to guide away from."""
    if scale != 1 and negative is None:
        raise MrFlowError(
            f"true_cfg_scale is {scale:g} and no negative conditioning is wired in. Wire one, or set it to 1."
        )


def check_network(network: Any) -> None:
    """Raise MrFlowError unless a spandrel network enlarges RGB pictures."""
    channels = network.input_channels, network.output_channels
    if network.scale < 2 or channels != (3, 3):
        raise MrFlowError(
            f"The upscale model enlarges {network.scale} times and has {channels[0]} channels; it must be of RGB "
            "and enlarge at least twice. Try a Real-ESRGAN file."
        )


def tooltip(about: About) -> str:
    """Return what a widget says of a number."""
    return f"{about.text} {about.more}".strip()


def bounds(about: About) -> Mapping[str, float]:
    """Return the limits and the step of a widget, within the number's own; from 0 for tiles."""
    if about is ABOUT["tile"]:
        return {"min": 0, "max": int(about.high), "step": MULTIPLE}
    step = 1 if about.kind is int else 0.01
    low, high = (about.low + step * (about.low in about.open), about.high - step * (about.high in about.open))
    return {"min": about.kind(low), "max": about.kind(high), "step": step}
