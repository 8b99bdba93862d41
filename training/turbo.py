"""vista-turbo: a student of four steps without guidance, from a teacher of twelve with it.

    python -m training.turbo --minutes 60 --out runs/turbo/export

Each of the student's steps stands for three of the teacher's: it learns the mean velocity with which the
teacher crosses them, from where the teacher stood (progressive distillation, Salimans and Ho, arXiv 2202.00512,
in one go, guidance included as in Meng et al., arXiv 2210.03142). Captions are enough, no picture is needed.
The nodes are the steps of the pipeline's own schedule for four, at each of three sizes: of drafts, and of finished
pictures. Of what the teacher made at the larger two it learns, besides, its velocity at low sigmas: from there a
refine pass takes its one step. Text encoders are the teacher's and stay.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from mrflow import Plan
from training.evaluate import score
from training.flow_model import GUIDANCE, WEIGHTS, Flow, load_flow, save_pipeline, shift
from training.optim import Average, make_optimizers, set_lr
from training.precision import faster_dtype, products_in
from training.text import make_tokenizer, tokenize
from training.track import Log, load_state, save_state
from training.world import caption, sample_scene

RUN = Path("runs/turbo")
STEPS, EACH = 4, 3
"""Steps of the student, and of the teacher in each of them."""
SHARES = {8: 0.25, 16: 0.5, 32: 0.25}
"""Of the ways: to pictures of so many tokens a side, 16 pixels each."""
REFINED = 16
"""Tokens a side of the smallest pictures that are refined."""
REFINE = (0.05, 0.3)
"""Between which sigmas a refine pass may begin."""
KEPT = 32
"""Segments that are kept to be learned again: the teacher's way costs far more than a step of the student."""
AGAIN = 2

Velocity = Callable[[Tensor, Tensor, tuple[Tensor, Tensor]], Tensor]
"""A flow at one size: velocity of x (B, tokens, C), sigma (B,), text."""


@dataclass(frozen=True)
class Segment:
    """A step to learn: where it begins (B, tokens, C), at which sigma (B,), under what text, its mean velocity."""

    x: Tensor
    sigma: Tensor
    text: tuple[Tensor, Tensor]
    velocity: Tensor
    rows: int


def teacher_sigmas(tokens: int) -> Tensor:
    """Return the teacher's sigmas, STEPS * EACH + 1 of them; every EACH-th is one of the student's own."""
    steps = STEPS * EACH
    return torch.cat([shift(torch.linspace(1, 1 / steps, steps), tokens), torch.zeros(1)])


@torch.no_grad()
def follow(
    teacher: Velocity,
    noise: Tensor,
    asked: tuple[Tensor, Tensor],
    free: tuple[Tensor, Tensor],
    guidance: float,
    guided: int,
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
    """Return the student's steps on the teacher's way as (x, sigma, mean velocity), and where the way ends.

    noise: (B, tokens, C). guided: the first so many of the teacher's steps take guidance.
    """
    sigmas, x, found = teacher_sigmas(noise.shape[1]).to(noise.device), noise, []
    for begin in range(0, STEPS * EACH, EACH):
        before = x
        for step in range(begin, begin + EACH):
            at = sigmas[step].expand(len(x))
            velocity = teacher(x, at, asked)
            if step < guided:
                unasked = teacher(x, at, free)
                velocity = unasked + guidance * (velocity - unasked)
            x = x + (sigmas[step + 1] - sigmas[step]) * velocity
        mean = (x - before) / (sigmas[begin + EACH] - sigmas[begin])
        found.append((before, sigmas[begin].expand(len(x)), mean))
    return found, x


class Distillation:
    """A teacher, its student and the steps to be learned."""

    def __init__(
        self, teacher: Flow, tokenizer: PreTrainedTokenizerFast, place: torch.device, lr: tuple[float, float]
    ):
        self.teacher, self.tokenizer, self.place = teacher.to(place).eval().requires_grad_(False), tokenizer, place
        self.dtype = faster_dtype(place)
        self.student = copy.deepcopy(self.teacher)
        self.student.transformer.requires_grad_(True)
        self.average = Average(self.student, 0.99)
        self.optimizers = make_optimizers(self.student.transformer, self.student.matrices(), *lr, dtype=self.dtype)
        self.modules: dict[str, nn.Module] = {"student": self.student, "average": self.average.model}
        self.kept: list[Segment] = []

    def at(self, flow: Flow, rows: int) -> Velocity:
        """Return a flow's velocity for square pictures of `rows` tokens a side, in this machine's precision."""

        def velocity(x: Tensor, sigma: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
            with products_in(self.dtype, self.place):
                found: Tensor = flow(x, sigma, text, rows, rows)
            return found.float()

        return velocity

    def follow(
        self, texts: list[str], rows: int, guidance: float, guidance_stop: float, rng: torch.Generator
    ) -> list[Segment]:
        """Return the teacher's way to pictures of these texts as the student's steps; if large, a refine step."""
        count = len(texts)
        with torch.no_grad():
            asked, free = (
                self.teacher.text(tokenize(self.tokenizer, lines).to(self.place))
                for lines in (texts, [""] * count)
            )
        width = self.teacher.transformer.config.in_channels
        noise = torch.randn(count, rows * rows, width, generator=rng).to(self.place)
        teacher = self.at(self.teacher, rows)
        guided = Plan(steps=STEPS * EACH, guidance_stop=guidance_stop).guided_steps
        steps, end = follow(teacher, noise, asked, free, guidance, guided)
        found = [Segment(x, sigma, asked, velocity, rows) for x, sigma, velocity in steps]
        if rows >= REFINED:
            sigma = (REFINE[0] + (REFINE[1] - REFINE[0]) * torch.rand(count, generator=rng)).to(self.place)
            again = torch.randn(end.shape, generator=rng).to(self.place)
            x = torch.lerp(end, again, sigma[:, None, None])
            with torch.no_grad():
                found.append(Segment(x, sigma, asked, teacher(x, sigma, asked), rows))
        return found

    def learn(self, segment: Segment) -> float:
        """Take one step of training; returns the mean square of what was left to learn."""
        velocity = self.at(self.student, segment.rows)(segment.x, segment.sigma, segment.text)
        loss = (velocity - segment.velocity).pow(2).mean()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.transformer.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update(self.student)
        return loss.item()

    def round(self, segments: list[Segment], rng: torch.Generator) -> list[float]:
        """Learn new segments, and some old ones again."""
        self.kept = (self.kept + segments)[-KEPT:]
        old = [self.kept[int(torch.randint(len(self.kept), (), generator=rng))] for _ in range(AGAIN)]
        return [self.learn(segment) for segment in (*segments, *old)]


def main(
    minutes: Annotated[float, typer.Option(help="Training time; pauses do not count.")] = 60,
    teacher: Annotated[Path, typer.Option(help="The teacher's pipeline.")] = WEIGHTS,
    lr: Annotated[float, typer.Option(help="AdamW's learning rate.")] = 2e-4,
    matrix_lr: Annotated[float, typer.Option(help="Muon's learning rate.")] = 6e-4,
    tokens: Annotated[int, typer.Option(help="Image tokens a step: 2048 are 32 pictures of 128x128.")] = 2048,
    guidance: Annotated[float, typer.Option(help="Strength of the teacher's guidance.")] = GUIDANCE,
    guidance_stop: Annotated[float, typer.Option(help="Share of the teacher's steps with guidance.")] = 0.33,
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
    work = Distillation(load_flow(teacher)[0], tokenizer, torch.device(device), (lr, matrix_lr))
    if load_state(run, work.modules, work.optimizers):
        work.average.updates = 10**6
    words, rng = (
        np.random.default_rng(seed + log.steps_before),
        torch.Generator().manual_seed(seed + log.steps_before),
    )
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))
    saved, step = 0.0, 0
    while (progress := log.clock.seconds / (minutes * 60)) < 1 and not told:
        rows = int(words.choice(list(SHARES), p=list(SHARES.values())))
        scenes = [sample_scene(words) for _ in range(max(1, tokens // rows**2))]
        texts = [caption(scene, words, full=bool(words.random() < 0.7)) for scene in scenes]
        set_lr(work.optimizers, step, progress, 20, decay)
        errors = work.round(work.follow(texts, rows, guidance, guidance_stop, rng), rng)
        step += 1
        log.mean({f"{16 * rows}": sum(errors) / len(errors)})
        if step % 20 == 0:
            log.write(step, {})
        if log.clock.seconds - saved > save_every * 60:
            save_state(run, work.modules, work.optimizers)
            saved = log.clock.seconds
    save_state(run, work.modules, work.optimizers)
    save_pipeline(work.average.model, vae, tokenizer, out)
    drawing = {"steps": STEPS, "guidance": 1.0, "guidance_stop": 0.01}
    log.write(step, score(work.average.model, vae, tokenizer, run / "samples.png", 64, **drawing))


if __name__ == "__main__":
    typer.run(main)
