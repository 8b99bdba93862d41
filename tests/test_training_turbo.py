"""The student's lessons: its steps, taken one after the other, are the guided teacher's way."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

pytest.importorskip("numba")

from training.evaluate import draw
from training.flow_model import GUIDANCE, Flow, make_transformer, pack, shift
from training.text import make_encoders, make_tokenizer
from training.turbo import AGAIN, STEPS, Distillation, teacher_sigmas

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


@pytest.mark.parametrize("tokens", [64, 256])
def test_the_students_nodes_are_the_pipelines_schedule_for_so_many_steps(tokens: int) -> None:
    own = torch.cat([shift(torch.linspace(1, 1 / STEPS, STEPS), tokens), torch.zeros(1)])
    assert torch.allclose(teacher_sigmas(tokens)[::3], own)


def test_the_students_steps_end_where_the_guided_teacher_does(work: Distillation) -> None:
    steps = work.follow(TEXTS, 4, GUIDANCE, 0.33, torch.Generator().manual_seed(3))
    sigmas = [*(float(step.sigma[0]) for step in steps), 0.0]
    x = steps[0].x
    for step, (sigma, following) in zip(steps, pairwise(sigmas), strict=True):
        assert torch.allclose(x, step.x, atol=1e-4)
        x = x + (following - sigma) * step.velocity
    teacher = draw(work.teacher, work.tokenizer, TEXTS, side=64, steps=12, guidance_stop=0.33, seed=3)
    assert torch.allclose(x, pack(teacher), atol=1e-3)


def test_full_size_adds_a_refine_step_without_guidance(work: Distillation) -> None:
    steps = work.follow(TEXTS[:1], 16, 3.0, 0.33, torch.Generator().manual_seed(3))
    assert len(steps) == STEPS + 1
    last = steps[-1]
    with torch.no_grad():
        velocity = work.teacher(last.x, last.sigma, last.text, 16, 16)
    assert torch.allclose(last.velocity, velocity, atol=1e-4)
    assert 0.05 <= float(last.sigma[0]) <= 0.3


def test_the_student_learns_and_the_teacher_stays(work: Distillation) -> None:
    before = [parameter.clone() for parameter in work.teacher.parameters()]
    steps = work.follow(TEXTS, 4, 3.0, 0.33, torch.Generator().manual_seed(3))
    errors = [work.learn(steps[-1]) for _ in range(4)]
    assert errors[-1] < 0.9 * errors[0], errors
    assert len(work.round(steps[:1], torch.Generator().manual_seed(0))) == 1 + AGAIN
    assert all(torch.equal(one, other) for one, other in zip(before, work.teacher.parameters(), strict=True))
