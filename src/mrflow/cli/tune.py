"""`mrflow tune`: a plan for a target, found by measuring on the user's model and machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from mrflow import vista
from mrflow.bench.compare import Course
from mrflow.bench.environment import describe_environment
from mrflow.bench.ledger import Ledger
from mrflow.bench.methods import Method, read_methods
from mrflow.bench.prompts import VISTA_TUNING, read_questions
from mrflow.cli.loading import TunedModel
from mrflow.cli.options import OUTPUT, TARGET, WHAT, Size, Streams, Whole
from mrflow.cli.outputs import tell_json, tell_paths
from mrflow.cli.progress import run_bar
from mrflow.cli.report_tables import print_findings
from mrflow.cli.reporting import FAILURE, each_warning_once, say
from mrflow.errors import FileNameError, OutputExistsError, RequestError
from mrflow.files import write_text
from mrflow.jobs import make_seeds, parse_bytes, parse_size
from mrflow.plan import plan_to_json

if TYPE_CHECKING:
    from mrflow import MrFlow
    from mrflow.bench.tune import Finding
    from mrflow.plan import Plan


def tune(
    *method: Annotated[str, Parameter(show_default="plans around the model's own, native runs")],
    at_least: Annotated[str | None, Parameter(metavar="1.3x", group=TARGET)] = None,
    at_most_loss: Annotated[float | None, Parameter(metavar="0.01", group=TARGET)] = None,
    max_memory: Annotated[str | None, Parameter(metavar="SIZE", group=TARGET)] = None,
    than: Annotated[str | None, Parameter(metavar="METHOD", group=TARGET, show_default="the model's")] = None,
    prompts: Annotated[
        Path | None,
        Parameter(metavar="FILE", group=WHAT, show_default="captions of vista's world that compare does not take"),
    ] = None,
    limit: Annotated[Whole, Parameter(metavar="N", group=WHAT, validator=Number(gte=2))] = 32,
    seed: Annotated[Whole, Parameter(group=WHAT)] = 1_000_000,
    size: Size = None,
    model: TunedModel = TunedModel(),
    out: Annotated[Path, Parameter(alias="-o", metavar="FILE.json", group=OUTPUT)] = Path("tuned.json"),
    work: Annotated[
        Path | None, Parameter(metavar="FOLDER", group=OUTPUT, show_default="--out without its .json")
    ] = None,
    force: Annotated[bool, Parameter(group=OUTPUT)] = False,
    streams: Streams = Streams(),
) -> int | None:
    """Search a plan for a target; what makes pictures from prompts takes the file by --plan.

    Candidates are measured on few prompts, the better half of them on twice as many, and so on. Unless you name
    them, native runs with few steps are among them: where one does best, that is said, and no plan is written.

    Args:
        method: Candidates: plans and native runs with steps, such as 8+1:solver=unipc native:8.
        at_least: Times faster than --than.
        at_most_loss: Of the composite quality, against --than.
        max_memory: Peak of a run, such as 24GB.
        than: The plan to be beaten, such as 20+1 or 12+1:solver=own.
        prompts: As for mrflow compare; take others than you will judge by.
        limit: Prompts of the last round.
        seed: Of the first picture.
        out: The plan.
        work: Pictures and seconds; the same command goes on after a stop.
        force: Overwrite --out.

    Examples:
      mrflow tune --at-least 1.3x --out fast.json
      mrflow tune --at-most-loss 0.01 --limit 64 --prompts mine.jsonl
      mrflow generate "a lake at dusk" --plan fast.json
    """
    from mrflow.bench.tune import Target, choose, search
    from mrflow.metrics.pixels import check_similarity

    check_similarity()
    target = Target(
        at_least=None if at_least is None else _read_factor(at_least),
        at_most_loss=at_most_loss,
        max_memory=parse_bytes(max_memory, "--max-memory"),
    )
    if out.suffix.lower() != ".json":
        raise FileNameError(f"{out} ends in {out.suffix!r}; it must be .json.")
    if os.path.lexists(out) and not force:
        raise OutputExistsError(f"{out} exists and is not overwritten. Choose another --out or give --force.")
    given = _check(read_methods(method)) if method else None
    plan = None if than is None else _read_reference(than)
    questions = read_questions(prompts or VISTA_TUNING, limit)
    first = make_seeds(seed, 1)[0]
    fast = model.load()
    course = _course(fast, plan, than, given, questions, first)
    head = _describe(fast, course, list(fast.model.resolve_size(*parse_size(size))))
    ledger = Ledger(work or out.with_suffix(""), {**head, **course.to_dict()})
    with each_warning_once(), _rounds() as on_round:
        findings = search(fast, course, ledger, target, _examiner(fast, course), head["size"], on_round)
    print_findings(findings)
    best = choose(findings, target, course.methods[1])
    told = [finding.to_dict() for finding in findings]
    if best is not None and best.method.plan is not None:
        measured = {**head, "found": best.to_dict(), "all": told}
        write_text(out, plan_to_json(best.method.plan, measured))
    if streams.json:
        tell_json({"plan": str(out) if best else None, "findings": told}, indent=None)
    elif best is not None:
        tell_paths([out])
    if best is None:
        _explain(findings, course.methods[1].name, target)
        return FAILURE
    say(f"{best.method.name} does best, measured on {best.prompts} prompts")
    return None


@contextmanager
def _rounds() -> Iterator[Any]:
    """Give a function that draws a bar for each round, one after another."""
    with ExitStack() as stack:

        def on_round(candidates: int, prompts: int, runs: int) -> Any:
            stack.close()
            say(f"{candidates} candidates on {prompts} prompts")
            return stack.enter_context(run_bar(runs))

        yield on_round


def _course(
    fast: MrFlow, plan: Plan | None, than: str | None, given: list[Method] | None, questions: Any, seed: int
) -> Course:
    """Return native, the reference and the candidates."""
    from mrflow.bench.tune import make_candidates
    from mrflow.schedulers import takes_solver

    reference = fast.model.resolve_plan(plan)
    native = Method(name="native")
    one = Method(name=than or reference.label, plan=reference)
    candidates = given or make_candidates(
        reference,
        fast.model.defaults.native_steps,
        solvers=takes_solver(fast.pipe),
        own=fast.model.resolve_plan(None),
    )
    others = [method for method in candidates if method.name not in (native.name, one.name)]
    if not others:
        raise RequestError("There are 0 candidates besides native and the reference. Give some, such as 8+1.")
    return Course(methods=[native, one, *others], questions=questions, seed=seed)


def _check(methods: list[Method]) -> list[Method]:
    for method in methods:
        if not method.plain:
            raise RequestError(f"{method.name} is more than a plan; a plan file cannot say it. Leave it out.")
    return methods


def _read_reference(text: str) -> Plan:
    (method,) = _check(read_methods([text]))
    if method.plan is None:
        raise RequestError(f"--than is {text}; it must be a plan, such as 12+1. Name native runs as candidates.")
    return method.plan


def _describe(fast: MrFlow, course: Course, size: list[int]) -> dict[str, Any]:
    model = fast.model
    return {
        "environment": describe_environment(model.device, model.dtype),
        "model": {"name": model.name, "revision": model.revision, "upscaler": model.upscaler.name},
        "size": size,
        "reference": course.methods[1].name,
    }


def _examiner(fast: MrFlow, course: Course) -> Any:
    from mrflow.bench.measurements import Examiner
    from mrflow.vista import inspector

    inspected = fast.model.name in vista.DEFAULTS or any(each.labels for each in course.questions)
    return Examiner(inspector.load() if inspected else None, {})


def _read_factor(text: str) -> float:
    try:
        return float(text.strip().lower().removesuffix("x"))
    except ValueError:
        raise RequestError(f"--at-least is {text[:40]!r}; it must be a number such as 1.3 or 1.3x.") from None


def _explain(findings: list[Finding], reference: str, target: Any) -> None:
    """Say why no plan is written."""
    best = next((each for each in findings if each.method.name != reference), None)
    if best is not None and best.method.plan is None and best.meets(target):
        say(f"{best.method.name}, the plain pipeline, does better than any plan; no plan file is written")
    else:
        nearest = "" if best is None else f"; the nearest is {best.method.name}"
        say(f"no candidate meets the target{nearest}; no plan file is written")
