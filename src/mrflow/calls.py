"""Jobs cut into batches, taken through the steps, given their recipes: what a call of any door comes down to."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mrflow.backbones.family import Embeds
from mrflow.drafts import Draft, Result
from mrflow.images import pixels_sha256, to_pil
from mrflow.jobs import Job
from mrflow.recipe import Recipe
from mrflow.steps import Batch, Run, draft, encode_prompts, finish, native

OnPicture = Callable[[int, Result], None]
"""Takes each picture as soon as it is finished: its number, from 0, and a result of it alone."""


def make_drafts(run: Run, jobs: Sequence[Job], rows: Sequence[Embeds] = ()) -> list[Draft]:
    """Return one draft per job: steps 1 to 3. rows: their encoded prompts, where that has been done."""
    drafts: dict[int, Draft] = {}
    for part, batch in _batches(run, Batch(jobs, rows)):
        pixels, latents = draft(run, batch)
        for at, (k, job, row) in enumerate(zip(part, batch.jobs, batch.rows, strict=True)):
            recipe = run.model.recipe("draft", job, len(part), run.conditions, run.clock.device)
            kept = latents[at : at + 1].clone(memory_format=torch.contiguous_format)  # as they come from files
            drafts[k] = Draft(pixels[at : at + 1].clone(), recipe, row, kept)
    return [drafts[k] for k in range(len(jobs))]


def finish_drafts(
    run: Run,
    drafts: Sequence[Draft],
    *,
    keep_upscaled: bool = False,
    on_picture: OnPicture | None = None,
    output_type: str = "pil",
) -> Result:
    """Return the drafts at full size: steps 4 to 8, and step 1 for those whose prompt is not encoded yet."""
    pictures = _Pictures(run, drafts, on_picture, output_type)
    shapes = [(each.pixels.shape, None if each.latents is None else each.latents.shape) for each in drafts]
    whole = Batch([each.base_recipe for each in drafts], rows_of(run, drafts))
    for part, batch in _batches(run, whole, shapes):
        small = torch.cat([drafts[k].pixels.to(run.clock.device) for k in part])
        kept = [each.to(run.clock.device) for k in part if (each := drafts[k].latents) is not None]
        upscaled, final = finish(run, batch, small, torch.cat(kept) if kept else None, show=keep_upscaled)
        pictures.add(part, final, [drafts[k].base_recipe for k in part], upscaled if keep_upscaled else None)
    return pictures.result()


def make_natives(
    run: Run,
    jobs: Sequence[Job],
    rows: Sequence[Embeds] = (),
    *,
    on_picture: OnPicture | None = None,
    output_type: str = "pil",
) -> Result:
    """Return one picture per job from the plain pipeline at full size."""
    pictures = _Pictures(run, (), on_picture, output_type)
    for part, batch in _batches(run, Batch(jobs, rows)):
        pixels = native(run, batch)
        pictures.add(part, pixels, batch.jobs)
    return pictures.result()


def rows_of(run: Run, drafts: Sequence[Draft]) -> list[Embeds]:
    """Return each draft's encoded prompt: its own, or encoded now where it has none."""
    missing = [draft.base_recipe for draft in drafts if draft.embeds is None]
    if missing:
        run.model.check_parts()
    new = iter(encode_prompts(run, Batch(missing)).rows if missing else ())
    return [next(new) if draft.embeds is None else draft.embeds for draft in drafts]


def cut_batches(keys: Sequence[Hashable], size: int) -> list[list[int]]:
    """Return the indices of equal keys together, `size` of them at most."""
    groups: dict[Hashable, list[int]] = {}
    for k, key in enumerate(keys):
        groups.setdefault(key, []).append(k)
    return [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]


def _batches(run: Run, whole: Batch, kinds: Sequence[Hashable] = ()) -> Iterator[tuple[list[int], Batch]]:
    """Yield batches of what may go together, each with the numbers of its jobs. kinds: what else must be equal."""
    whole = whole if whole.rows else encode_prompts(run, whole)
    keys: list[Hashable] = [None]
    if len(whole.jobs) > 1:
        kinds, key = kinds or (None,) * len(whole.jobs), run.model.backbone.batch_key
        of_all = zip(whole.jobs, whole.rows, kinds, strict=True)
        keys = [(job.kind, kind, key(row)) for job, row, kind in of_all]
    parts = cut_batches(keys, run.batch_size)
    for number, part in enumerate(parts, 1):
        jobs, rows = [whole.jobs[k] for k in part], [whole.rows[k] for k in part]
        yield part, Batch(jobs, rows, number, len(parts), part, len(whole.jobs))


class _Pictures:
    """The pictures of a call, as they come from its batches."""

    def __init__(self, run: Run, drafts: Sequence[Draft], on_picture: OnPicture | None, output_type: str) -> None:
        self._run, self._drafts, self._on_picture, self._output = run, drafts, on_picture, output_type
        self._made: dict[int, tuple[Any, Recipe, list[Image.Image]]] = {}

    def add(
        self, part: Sequence[int], pixels: Tensor, made_of: Sequence[Job], upscaled: Tensor | None = None
    ) -> None:
        """Take a batch: the numbers of its pictures, (B, 3, h, w), and perhaps those of step 4.

        made_of: jobs of native pictures, or the recipes that drafts and given images were planned with.
        """
        run, images, larger = self._run, to_pil(pixels), [] if upscaled is None else to_pil(upscaled)
        for at, (k, image) in enumerate(zip(part, images, strict=True)):
            shown, digest = image if self._output == "pil" else pixels[at : at + 1], pixels_sha256(image)
            recipe = run.model.finished_recipe(made_of[at], len(part), run.conditions, run.clock.device, digest)
            self._made[k] = shown, recipe, larger[at : at + 1]
            if self._on_picture is not None:
                self._on_picture(k, self._give([k]))

    def result(self) -> Result:
        """Return all pictures, in the order that they were asked for."""
        return self._give(range(len(self._made)))

    def _give(self, numbers: Sequence[int]) -> Result:
        made = [self._made[k] for k in numbers]
        return Result(
            images=self._as_asked([image for image, _, _ in made]),
            recipes=[recipe for _, recipe, _ in made],
            drafts=[self._drafts[k] for k in numbers] if self._drafts else (),
            upscaled=[image for _, _, larger in made for image in larger],
            seconds=self._run.clock.totals(),
        )

    def _as_asked(self, images: list[Any]) -> Any:
        if self._output == "pil":
            return images
        pixels = torch.cat(images)
        return pixels if self._output == "pt" else pixels.permute(0, 2, 3, 1).cpu().numpy()
