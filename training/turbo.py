"""vista-turbo: a student of four steps without guidance, from a teacher of twelve with it.

    python -m training.turbo --minutes 60 --out runs/turbo/export

Each of the student's steps stands for three of the teacher's: it learns the mean velocity with which the
teacher crosses them, from where the teacher stood (progressive distillation, Salimans and Ho, arXiv 2202.00512,
in one go, guidance included as in Meng et al., arXiv 2210.03142). The teacher's steps are of second order, for
twelve of Euler's leave two thirds of the texture that fifty do. The nodes are the steps of the pipeline's own
schedule for four, at each of three sizes: of drafts, and of finished pictures. At the larger two, half of the ways
begin in the middle, at noised pictures, and each is followed by one from a low sigma, where a refine pass begins.
At the smaller two, the last two steps are one line, so that `3/4` leaves a draft at its end. Where a step
ends a picture, the strength of the teacher's texture is asked for, too, place by place: the mean square wipes out
what the student can't foretell. Text encoders are the teacher's and stay.
"""

from __future__ import annotations

import copy
import math
import signal
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from training.data import to_tensor
from training.evaluate import score
from training.flow_model import GUIDANCE, WEIGHTS, Flow, load_flow, pack, save_pipeline, shift, unpack
from training.latents import LATENTS, project, read_projection
from training.losses import spreads
from training.optim import Average, make_optimizers, set_lr
from training.precision import faster_dtype, products_in
from training.text import make_tokenizer, tokenize
from training.track import Log, load_state, save_state
from training.world import Scene, caption, paint, sample_scene

RUN = Path("runs/turbo")
STEPS, EACH = 4, 3
"""Steps of the student, and of the teacher in each of them."""
SHARES = {8: 0.1, 16: 0.4, 32: 0.5}
"""Of the ways: to pictures of so many tokens a side, 16 pixels each."""
REFINED = 16
"""Tokens a side of the smallest pictures that are refined."""
REFINE = (0.05, 0.3)
"""Between which sigmas a refine pass may begin."""
MIDDLE = 2
"""Where ways from noised pictures begin: before which of the student's steps."""
PICTURES = 0.5
"""Share of such ways to the larger pictures."""
TEXTURE = 0.5
"""Weight of the texture's strength beside the velocity's mean square."""
KEPT = 64
"""Segments that are kept to be learned again: the teacher's way costs far more than a step of the student."""
AGAIN = 4

Velocity = Callable[[Tensor, Tensor], Tensor]
"""What a flow gives for one text and size: the velocity at x (B, tokens, C), sigma (B,)."""


@dataclass(frozen=True)
class Segment:
    """A step to learn: where it begins (B, tokens, C), at which sigma (B,), under what text, its mean velocity.

    last: it ends a picture, or would if it went on to sigma 0.
    """

    x: Tensor
    sigma: Tensor
    text: tuple[Tensor, Tensor]
    velocity: Tensor
    last: bool


def make_segment(
    x: Tensor, end: Tensor, sigma: Tensor, until: Tensor, text: tuple[Tensor, Tensor], last: bool
) -> Segment:
    """Return the step from x at sigma (B,) to its end at another."""
    return Segment(x, sigma, text, (end - x) / (until - sigma)[:, None, None], last)


def teacher_sigmas(tokens: int, first: int = 0) -> Tensor:
    """Return the teacher's sigmas from the student's step `first` on; every EACH-th is the student's, too."""
    steps = STEPS * EACH
    return torch.cat([shift(torch.linspace(1, 1 / steps, steps), tokens), torch.zeros(1)])[first * EACH :]


def lead(velocity: Velocity, x: Tensor, sigmas: Tensor) -> list[Tensor]:
    """Return where x (B, tokens, C) comes by at sigmas (steps + 1, B), itself included.

    Adams and Bashforth's two steps: a velocity goes on changing as it did since the last; Euler's step first.
    """
    found, before = [x], None
    for k, (begin, end) in enumerate(pairwise(sigmas)):
        now, stride = velocity(found[-1], begin), (end - begin)[:, None, None]
        last = (begin - sigmas[k - 1])[:, None, None]
        ahead = now if before is None else now + (now - before) * stride / (2 * last)
        found.append(found[-1] + stride * ahead)
        before = now
    return found


class Distillation:
    """A teacher, its student and the steps to be learned."""

    def __init__(
        self,
        teacher: Flow,
        tokenizer: PreTrainedTokenizerFast,
        place: torch.device,
        lr: tuple[float, float],
        begun: Flow | None = None,
    ):
        """begun: an earlier student; without it the new one begins as its teacher."""
        self.teacher, self.tokenizer, self.place = teacher.to(place).eval().requires_grad_(False), tokenizer, place
        self.dtype = faster_dtype(place)
        self.student = copy.deepcopy(self.teacher)
        if begun:
            self.student.transformer = begun.transformer.to(place).eval()
        self.student.transformer.requires_grad_(True)
        self.average = Average(self.student, 0.99)
        self.optimizers = make_optimizers(self.student.transformer, self.student.matrices(), *lr, dtype=self.dtype)
        self.modules: dict[str, nn.Module] = {"student": self.student, "average": self.average.model}
        self.kept: list[Segment] = []

    def at(self, flow: Flow, text: tuple[Tensor, Tensor], rows: int) -> Velocity:
        """Return a flow's velocity for square pictures of `rows` tokens a side, in this machine's precision."""

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            with products_in(self.dtype, self.place):
                found: Tensor = flow(x, sigma, text, rows, rows)
            return found.float()

        return velocity

    @torch.no_grad()
    def follow(
        self, texts: list[str], noise: Tensor, guidance: float, pictures: Tensor | None = None
    ) -> tuple[list[Segment], Tensor]:
        """Return the student's steps on the teacher's way from noise (B, tokens, C), and where it ends.

        pictures: latents like the noise; with them the way begins at its MIDDLE, where it mixes both. Up to the
        size of drafts the last two steps are one straight line: a plan that switches takes the first to its end.
        """
        rows, count = math.isqrt(noise.shape[1]), len(texts)
        asked, free = (
            self.teacher.text(tokenize(self.tokenizer, lines).to(self.place)) for lines in (texts, [""] * count)
        )
        plain, unasked = (self.at(self.teacher, text, rows) for text in (asked, free))

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            without = unasked(x, sigma)
            return without + guidance * (plain(x, sigma) - without)

        sigmas = teacher_sigmas(rows**2, 0 if pictures is None else MIDDLE).to(self.place)
        x = noise if pictures is None else torch.lerp(pictures, noise, sigmas[0])
        way, sigmas = lead(velocity, x, sigmas[:, None].expand(-1, count))[::EACH], sigmas[::EACH]
        straight = rows <= REFINED
        if straight:
            way[-2] = torch.lerp(way[-3], way[-1], 1 - sigmas[-2] / sigmas[-3])
        return [
            make_segment(*ends, sigma.expand(count), until.expand(count), asked, k >= len(way) - 2 - straight)
            for k, (ends, (sigma, until)) in enumerate(zip(pairwise(way), pairwise(sigmas), strict=True))
        ], way[-1]

    @torch.no_grad()
    def refine(self, end: Tensor, text: tuple[Tensor, Tensor], rng: torch.Generator) -> Segment:
        """Return the step to learn from a finished picture's latents (B, tokens, C), noised a little."""
        sigma = (REFINE[0] + (REFINE[1] - REFINE[0]) * torch.rand(len(end), generator=rng)).to(self.place)
        x = torch.lerp(end, torch.randn(end.shape, generator=rng).to(self.place), sigma[:, None, None])
        sigmas = torch.linspace(1, 0, EACH + 1, device=self.place)[:, None] * sigma
        way = lead(self.at(self.teacher, text, math.isqrt(end.shape[1])), x, sigmas)
        return make_segment(x, way[-1], sigma, sigmas[-1], text, last=True)

    def loss(self, segment: Segment) -> tuple[Tensor, Tensor]:
        """Return what is to become less, and the velocity's mean square in it."""
        rows = math.isqrt(segment.x.shape[1])
        velocity = self.at(self.student, segment.text, rows)(segment.x, segment.sigma)
        error = (velocity - segment.velocity).pow(2).mean()
        if not segment.last:
            return error, error
        side, sigma = 2 * rows, segment.sigma[:, None, None]
        made, true = (
            spreads(unpack(segment.x - sigma * each, side, side)) for each in (velocity, segment.velocity)
        )
        return error + TEXTURE * (made - true).abs().mean(), error

    def learn(self, segment: Segment) -> float:
        """Take one step of training; returns the mean square of what was left to learn."""
        loss, error = self.loss(segment)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.transformer.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update(self.student)
        return error.item()

    def round(self, segments: list[Segment], rng: torch.Generator) -> list[float]:
        """Learn new segments, and some old ones again."""
        self.kept = (self.kept + segments)[-KEPT:]
        old = [self.kept[int(torch.randint(len(self.kept), (), generator=rng))] for _ in range(AGAIN)]
        return [self.learn(segment) for segment in (*segments, *old)]


def main(
    minutes: Annotated[float, typer.Option(help="Training time; pauses do not count.")] = 60,
    teacher: Annotated[Path, typer.Option(help="The teacher's pipeline.")] = WEIGHTS,
    begin: Annotated[
        Path | None, typer.Option(help="Whose transformer the student begins with; the teacher's unless given.")
    ] = None,
    lr: Annotated[float, typer.Option(help="AdamW's learning rate.")] = 2e-4,
    matrix_lr: Annotated[float, typer.Option(help="Muon's learning rate.")] = 6e-4,
    tokens: Annotated[int, typer.Option(help="Image tokens a step: 2048 are 32 pictures of 128x128.")] = 2048,
    guidance: Annotated[float, typer.Option(help="Strength of the teacher's guidance.")] = GUIDANCE,
    decay: Annotated[float, typer.Option(help="Share of the time, at the end, in which the rate falls.")] = 0.4,
    save_every: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 10,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: Annotated[str, typer.Option(help="Where to train: cpu, or cuda.")] = "cpu",
    run: Annotated[Path, typer.Option(help="Where the state is kept.")] = RUN,
    out: Annotated[Path, typer.Option(help="Where the pipeline is written at the end.")] = RUN / "export",
) -> None:
    """Train the student, going on from `run` if it was begun there."""
    tokenizer, log = make_tokenizer(), Log("turbo")
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "vae", dtype=torch.float32).requires_grad_(False)
    begun = load_flow(begin)[0] if begin else None
    work = Distillation(load_flow(teacher)[0], tokenizer, torch.device(device), (lr, matrix_lr), begun)
    if load_state(run, work.modules, work.optimizers):
        work.average.updates = 10**6
    words, rng = (
        np.random.default_rng(seed + log.steps_before),
        torch.Generator().manual_seed(seed + log.steps_before),
    )
    projection = read_projection(vae, to_tensor(paint([sample_scene(words) for _ in range(16)], 128, 128)))

    def painted(scenes: list[Scene], rows: int) -> Tensor:
        return pack(project(to_tensor(paint(scenes, 16 * rows, 16 * rows)), *projection))

    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))
    saved, step = 0.0, 0
    while (progress := log.clock.seconds / (minutes * 60)) < 1 and not told:
        rows = int(words.choice(list(SHARES), p=list(SHARES.values())))
        scenes = [sample_scene(words) for _ in range(max(1, tokens // rows**2))]
        texts = [caption(scene, words, full=bool(words.random() < 0.7)) for scene in scenes]
        noise = torch.randn(len(scenes), rows * rows, 4 * LATENTS, generator=rng).to(work.place)
        large = rows >= REFINED
        pictures = painted(scenes, rows).to(work.place) if large and words.random() < PICTURES else None
        segments, end = work.follow(texts, noise, guidance, pictures)
        if large:
            segments.append(work.refine(end, segments[-1].text, rng))
        set_lr(work.optimizers, step, progress, 20, decay)
        errors = work.round(segments, rng)
        step += 1
        log.mean({f"{16 * rows}": sum(errors) / len(errors)})
        if step % 20 == 0:
            log.write(step, {})
        if log.clock.seconds - saved > save_every * 60:
            save_state(run, work.modules, work.optimizers)
            saved = log.clock.seconds
    save_state(run, work.modules, work.optimizers)
    save_pipeline(work.average.model, vae, tokenizer, out)
    drawing = {"steps": STEPS, "guidance": 1.0}
    log.write(step, score(work.average.model, vae, tokenizer, run / "samples.png", 64, **drawing))


if __name__ == "__main__":
    typer.run(main)
