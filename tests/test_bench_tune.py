"""Tuning: what is tried, who stays, what a target means, and a search end to end on a tiny pipeline."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conftest import make_fast, make_pipe
from mrflow import Plan
from mrflow.bench.compare import Course
from mrflow.bench.ledger import Ledger
from mrflow.bench.measurements import Examiner
from mrflow.bench.methods import read_methods
from mrflow.bench.prompts import Question
from mrflow.bench.tune import Finding, Target, choose, keep, make_candidates, name_plan, rounds_of, search
from mrflow.errors import RequestError
from mrflow.metrics.intervals import Estimate

GIB = 2**30


def finding(name: str, faster: float | None, quality: float, change: float, memory: int | None = GIB) -> Finding:
    (method,) = read_methods([name])
    estimates = [Estimate(value, value, value) for value in (faster, quality, change)]
    return Finding(method, *estimates, memory, 8)


def test_candidates_save_what_there_is_to_save() -> None:
    reference = Plan(steps=12, true_cfg_scale=3.0, refine_true_cfg_scale=3.0, guidance_stop=1.0)
    methods = make_candidates(reference, 50)
    plans = [method.plan for method in methods if method.plan]
    assert {plan.steps for plan in plans if plan.solver is None} == {6, 8, 12}
    assert {plan.steps for plan in plans if plan.solver == "unipc"} == {4, 6, 8}
    assert {plan.guidance_stop for plan in plans} == {1.0, 0.5}
    assert {plan.refine_true_cfg_scale for plan in plans} == {1.0, 3.0}
    assert {plan.refine_sigma for plan in plans} == {0.12, 0.2, "auto"}
    assert {plan.steps for plan in plans if plan.refine_sigma == "auto"} == {12}
    assert reference not in plans
    assert len(set(plans)) == len(plans) == 6 * 2 * 2 - 1 + 2
    natives = [(method.steps, method.solver) for method in methods if not method.plan]
    assert natives == [(5, None), (8, None), (12, None), (5, "unipc"), (8, "unipc")]
    assert len({method.name for method in methods}) == len(methods) <= 30


def test_guidance_that_stops_early_already_stops_earlier_or_halfway() -> None:
    reference = Plan(steps=12, true_cfg_scale=3.0, refine_true_cfg_scale=1.0, guidance_stop=0.4)
    plans = [method.plan for method in make_candidates(reference, 50) if method.plan]
    assert {plan.guidance_stop for plan in plans} == {0.4, 0.2, 0.5}
    assert {plan.refine_true_cfg_scale for plan in plans} == {1.0}
    assert len(plans) == 6 * 2 * 3 - 1 + 3


def test_where_no_solver_can_stand_in_none_is_tried() -> None:
    methods = make_candidates(Plan(steps=12, true_cfg_scale=1.0), 50, solvers=False)
    assert {method.plan.solver if method.plan else method.solver for method in methods} == {None}


def test_without_guidance_none_is_saved() -> None:
    methods = make_candidates(Plan(steps=4, true_cfg_scale=1.0), 4)
    assert {method.plan.steps for method in methods if method.plan} == {1, 2, 3, 4}
    assert [(method.steps, method.solver) for method in methods if not method.plan] == [(1, None), (1, "unipc")]


@pytest.mark.parametrize(
    ("reference", "native", "divided"),
    [
        (Plan(steps=4, true_cfg_scale=1.0), 4, {"3/4"}),
        (Plan(steps=8, true_cfg_scale=1.0), 8, {"6/8", "7/8"}),
        (Plan(steps=12, true_cfg_scale=1.0), 50, set()),
        (Plan(steps=1, true_cfg_scale=1.0), 1, set()),
    ],
)
def test_steps_of_a_few_step_model_are_divided_between_the_sizes(
    reference: Plan, native: int, divided: set[str]
) -> None:
    def found(**options: bool) -> set[str]:
        methods = make_candidates(reference, native, **options)
        return {method.name for method in methods if method.plan and method.plan.switches}

    assert found() == divided
    assert found(solvers=False) == set()
    for name in divided:
        (method,) = read_methods([name])
        assert method.plan == replace(method.plan, refine_sigma="switch", steps=int(name[0]))


def test_names_mean_the_same_to_other_commands() -> None:
    """Beside a reference unlike the model's own plan, names still say what differs from the latter."""
    own = Plan(steps=12, true_cfg_scale=3.0, refine_true_cfg_scale=1.0, guidance_stop=0.33, solver="unipc")
    published = replace(own, guidance_stop=1.0, solver="own")
    names = {method.name for method in make_candidates(published, 50, own=own)}
    assert {
        "8+1:guidance_stop=1,solver=own",
        "6+1:guidance_stop=0.5",
        "4+1:refine_sigma=0.2,guidance_stop=1",
    } <= names
    assert "12+1:guidance_stop=1,solver=own" not in names  # the reference


def test_names_say_what_differs_and_are_methods() -> None:
    reference = Plan(steps=12, true_cfg_scale=3.0, refine_true_cfg_scale=1.0, guidance_stop=1.0)
    for method in make_candidates(reference, 50):
        (again,) = read_methods([method.name])
        assert (again.kind, again.steps, again.solver) == (method.kind, method.steps, method.solver)
        assert (again.plan or reference).solver == (method.plan or reference).solver
    assert name_plan(Plan(steps=8, refine_sigma=0.2), Plan()) == "8+1:refine_sigma=0.2"


@pytest.mark.parametrize(
    ("candidates", "prompts", "rounds"),
    [
        (20, 32, [(20, 4), (10, 8), (5, 16), (3, 32)]),
        (20, 8, [(20, 4), (10, 8)]),
        (2, 32, [(2, 32)]),
        (40, 2, [(40, 2)]),
        (5, 1000, [(5, 4), (3, 1000)]),
    ],
)
def test_candidates_halve_and_prompts_double(candidates, prompts, rounds) -> None:
    assert rounds_of(candidates, prompts) == rounds


def test_targets_are_checked() -> None:
    with pytest.raises(RequestError, match="no target"):
        Target()
    for wrong in ({"at_least": 0}, {"at_most_loss": -0.1}, {"at_most_loss": float("nan")}, {"max_memory": 0}):
        with pytest.raises(RequestError, match=f"{next(iter(wrong))} is"):
            Target(**wrong)


def test_what_was_not_measured_meets_nothing() -> None:
    assert not finding("8+1", None, 0.9, 0).meets(Target(at_least=1.3))
    assert not finding("8+1", 2, 0.9, 0, None).meets(Target(max_memory=GIB))
    assert finding("8+1", 1.3, 0.9, -0.01).meets(Target(at_least=1.3, at_most_loss=0.01, max_memory=GIB))
    assert not finding("8+1", 1.3, 0.9, -0.011).meets(Target(at_least=1.3, at_most_loss=0.01))


def test_the_open_end_is_what_is_sought() -> None:
    fast, good = finding("4+1", 2.0, 0.80, -0.005), finding("8+1", 1.4, 0.85, 0.0)
    assert good.rank(Target(at_least=1.3)) > fast.rank(Target(at_least=1.3))
    assert fast.rank(Target(at_most_loss=0.01)) > good.rank(Target(at_most_loss=0.01))
    assert fast.rank(Target(at_least=1.5)) > good.rank(Target(at_least=1.5))


def test_the_best_native_run_stays() -> None:
    ranked = [finding(name, 2, 0.9, 0) for name in ("8+1", "6+1", "12+1", "native:8", "4+1", "native:5")]
    (reference,) = read_methods(["12+1"])
    assert [method.name for method in keep(ranked, Target(at_least=1), 2, reference)] == ["8+1", "6+1", "native:8"]
    assert [method.name for method in keep(ranked, Target(at_least=1), 4, reference)] == [
        *("8+1", "6+1", "native:8", "4+1")
    ]


def test_a_native_run_that_does_best_is_not_passed_over() -> None:
    (reference,) = read_methods(["12+1"])
    target = Target(at_least=1.3)
    native, plan = finding("native:8", 1.5, 0.95, 0), finding("8+1", 1.5, 0.9, 0)
    assert choose([plan, native], target, reference) is plan
    assert choose([native, plan], target, reference) is None
    slow = finding("8+1", 1.1, 0.99, 0)
    assert choose([slow], target, reference) is None
    assert choose([finding("12+1", 1.4, 1.0, 0)], target, reference) is None  # the reference itself


def test_a_search_halves_and_goes_on(tmp_path) -> None:
    fast = make_fast(make_pipe())
    questions = [Question(f"a {color} boat") for color in ("red", "blue", "big", "red red", "blue blue")]
    texts = ["native", "2+1", "1+1", "1+1:refine_sigma=0.3", "1+1:refine_sigma=0.4", "1+1:scale=1", "native:1"]
    course = Course(methods=read_methods(texts), questions=questions)
    rounds: list[tuple[int, int, int]] = []
    runs: list[str] = []

    def on_round(*numbers: int):
        rounds.append(numbers)
        return runs.append

    def go() -> list[Finding]:
        ledger = Ledger(tmp_path, {**course.to_dict(), "size": [64, 64]})
        target = Target(at_least=0.01)
        return search(fast, course, ledger, target, Examiner(None, {}), (64, 64), on_round)

    findings = go()
    assert rounds[0] == (5, 4, 7 * 4)
    candidates, prompts, left = rounds[1]
    assert (prompts, left) == (5, candidates + 2)  # one prompt more for those that stay, native and reference
    assert len(findings) == candidates + 1
    assert "native:1" in {each.method.name for each in findings}
    assert findings == sorted(findings, key=lambda each: each.rank(Target(at_least=0.01)), reverse=True)
    assert all(each.prompts == 5 and each.faster.value for each in findings)
    reference = next(each for each in findings if each.method.name == "2+1")
    assert (reference.faster.value, reference.change.value) == (1, 0)
    made = len(runs)
    assert {each.method.name: each.quality for each in go()} == {e.method.name: e.quality for e in findings}
    assert len(runs) == made  # all was there
