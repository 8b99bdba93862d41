"""The student's lessons: its steps, taken one after the other, are the guided teacher's way."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("numba")

from training import turbo
from training.evaluate import draw
from training.flow_model import (
    BASE_SHIFT,
    GUIDANCE,
    LARGE_TOKENS,
    MAX_SHIFT,
    SMALL_TOKENS,
    Flow,
    make_scheduler,
    make_transformer,
    pack,
    shift,
)
from training.latents import LATENTS
from training.text import make_encoders, make_tokenizer
from training.turbo import AGAIN, EACH, MIDDLE, STEPS, Distillation, Velocity, lead, teacher_sigmas

TEXTS = ["a lake at night", "a green meadow with a red house on the left"]


@pytest.fixture
def work() -> Distillation:
    """Return a distillation of a small random flow."""
    torch.manual_seed(0)
    flow = Flow(*make_encoders(), make_transformer())
    for parameter in flow.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.03)
    work = Distillation(flow, make_tokenizer(), torch.device("cpu"), (3e-4, 3e-4))
    work.dtype = torch.float32  # the same on every machine
    return work


def noise(rows: int) -> Tensor:
    return torch.randn(len(TEXTS), rows * rows, 4 * LATENTS, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("tokens", [64, 256])
def test_the_students_nodes_are_the_pipelines_schedule_for_so_many_steps(tokens: int) -> None:
    scheduler = make_scheduler()
    scheduler.set_timesteps(
        sigmas=np.linspace(1, 1 / STEPS, STEPS),
        mu=BASE_SHIFT + (MAX_SHIFT - BASE_SHIFT) * (tokens - SMALL_TOKENS) / (LARGE_TOKENS - SMALL_TOKENS),
    )
    assert torch.allclose(teacher_sigmas(tokens)[::EACH], scheduler.sigmas)


def test_the_teachers_steps_are_of_second_order() -> None:
    """Of dx/ds = x, which grows by e from 0 to 1: half the stride leaves a quarter of the error."""
    errors = []
    for steps in (16, 32, 64):
        sigmas = torch.linspace(0, 1, steps + 1, dtype=torch.float64).square()[:, None]  # uneven
        way = lead(lambda x, _: x, torch.ones(1, 1, 1, dtype=torch.float64), sigmas)
        assert len(way) == steps + 1
        errors.append(abs(float(way[-1]) - math.e))
    assert [a / b for a, b in pairwise(errors)] == pytest.approx([4, 4], rel=0.15)


def euler(velocity: Velocity, x: Tensor, sigmas: Tensor) -> list[Tensor]:
    found = [x]
    for begin, end in pairwise(sigmas):
        found.append(found[-1] + (end - begin)[:, None, None] * velocity(found[-1], begin))
    return found


def test_the_students_steps_end_where_the_guided_teacher_does(
    work: Distillation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Euler's steps, by which the pipeline's own are known."""
    monkeypatch.setattr(turbo, "lead", euler)
    steps, end = work.follow(TEXTS, noise(4), GUIDANCE)
    sigmas = [*(float(step.sigma[0]) for step in steps), 0.0]
    x = steps[0].x
    for step, (sigma, following) in zip(steps, pairwise(sigmas), strict=True):
        assert torch.allclose(x, step.x, atol=1e-4)
        x = x + (following - sigma) * step.velocity
    teacher = pack(draw(work.teacher, work.tokenizer, TEXTS, side=64, steps=STEPS * EACH, seed=3))
    assert torch.allclose(x, teacher, atol=1e-3)
    assert torch.allclose(end, teacher, atol=1e-3)
    assert [step.last for step in steps] == [False, False, True, True]
    for step in steps[2:]:  # one line
        assert torch.allclose(step.x - step.sigma[:, None, None] * step.velocity, teacher, atol=1e-3)


def test_large_pictures_end_on_the_teachers_own_way(work: Distillation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turbo, "REFINED", 3)
    steps, end = work.follow(TEXTS, noise(4), GUIDANCE)
    assert [step.last for step in steps] == [False, False, False, True]
    before, last = (step.x - step.sigma[:, None, None] * step.velocity for step in steps[2:])
    assert torch.allclose(last, end, atol=1e-4)
    assert not torch.allclose(before, end, atol=1e-2)


def test_noised_pictures_are_in_the_middle_of_a_way(work: Distillation) -> None:
    pictures = torch.full((2, 16, 4 * LATENTS), 0.5)
    steps, end = work.follow(TEXTS, noise(4), GUIDANCE, pictures)
    assert len(steps) == STEPS - MIDDLE
    sigma = float(shift(torch.tensor(1 - MIDDLE / STEPS), 16))
    assert torch.allclose(steps[0].x, (1 - sigma) * pictures + sigma * noise(4), atol=1e-6)
    assert torch.allclose(end, steps[-1].x - steps[-1].sigma[0] * steps[-1].velocity, atol=1e-6)


def test_a_refine_step_goes_to_zero_without_guidance(work: Distillation) -> None:
    (first, *_), end = work.follow(TEXTS, noise(4), GUIDANCE)
    step = work.refine(end, first.text, torch.Generator().manual_seed(3))
    assert step.last
    assert ((step.sigma >= 0.05) & (step.sigma <= 0.3)).all()
    with torch.no_grad():
        way = euler(
            lambda x, sigma: work.teacher(x, sigma, first.text, 4, 4),
            step.x,
            torch.linspace(1, 0, 61)[:, None] * step.sigma,
        )
    made = step.x - step.sigma[:, None, None] * step.velocity
    assert (made - way[-1]).norm() < 0.05 * (way[-1] - step.x).norm()


def test_the_student_learns_and_the_teacher_stays(work: Distillation) -> None:
    before = [parameter.clone() for parameter in work.teacher.parameters()]
    steps, _ = work.follow(TEXTS, noise(4), 3.0)
    errors = [work.learn(steps[-1]) for _ in range(4)]
    assert errors[-1] < 0.9 * errors[0], errors
    assert len(work.round(steps[:1], torch.Generator().manual_seed(0))) == 1 + AGAIN
    assert all(torch.equal(one, other) for one, other in zip(before, work.teacher.parameters(), strict=True))


def test_a_student_that_wipes_texture_out_is_told_so(work: Distillation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is more than the mean square where latents are flat that the teacher's are not."""
    (*_, last), _ = work.follow(TEXTS, noise(4), 3.0)
    flat = replace(last, velocity=last.x / last.sigma[:, None, None])  # that ends in latents of zeros
    found = []
    for truth, made in ((last, flat), (last, last)):
        monkeypatch.setattr(work, "at", lambda *_, made=made: lambda x, sigma: made.velocity.requires_grad_())
        found.append(work.loss(truth)[0].item() - work.loss(truth)[1].item())
    assert found[0] > 0.01 > found[1] == 0.0
