"""`mrflow tune`: a plan for a target, found by measuring on the user's model and machine."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrflow.bench.compare import Course
from mrflow.bench.environment import describe_environment
from mrflow.bench.ledger import Ledger
from mrflow.bench.methods import Method, read_methods
from mrflow.bench.prompts import VISTA_TUNING, read_questions
from mrflow.cli import options
from mrflow.cli.loading import ModelOptions
from mrflow.cli.progress import run_bar
from mrflow.cli.reporting import FAILURE, each_warning_once, reporting, say, stderr_console
from mrflow.cli.tables import fits, make_table
from mrflow.cli.writing import tell_paths
from mrflow.errors import OutputError, OutputExistsError, RequestError
from mrflow.files import write_text
from mrflow.presets import plan_to_json
from mrflow.request import make_seeds
from mrflow.sizes import parse_size

if TYPE_CHECKING:
    from rich.table import Table

    from mrflow import MrFlow
    from mrflow.bench.tune import Finding
    from mrflow.plan import Plan

_TARGET, _WHAT, _WHERE = "Target", "What", "Output"
_GIB = 2**30


def tune(
    methods: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="METHOD",
            help="Candidates: plans and native runs with steps, such as 8+1:solver=unipc native:8.",
            show_default="plans around the model's own, native runs",
        ),
    ] = None,
    at_least: Annotated[
        str | None,
        typer.Option(
            "--at-least",
            metavar="1.3x",
            help="Times faster than --than.",
            rich_help_panel=_TARGET,
            show_default=False,
        ),
    ] = None,
    at_most_loss: Annotated[
        float | None,
        typer.Option(
            "--at-most-loss",
            metavar="0.01",
            help="Of the composite quality, against --than.",
            rich_help_panel=_TARGET,
            show_default=False,
        ),
    ] = None,
    max_memory: Annotated[
        float | None,
        typer.Option(
            "--max-memory", metavar="GIB", help="Peak of a run.", rich_help_panel=_TARGET, show_default=False
        ),
    ] = None,
    than: Annotated[
        str | None,
        typer.Option(
            "--than",
            metavar="METHOD",
            help="The plan to be beaten, such as 20+1 or 12+1:solver=own.",
            rich_help_panel=_TARGET,
            show_default="the model's",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="As for mrflow compare; take others than you will judge by.",
            rich_help_panel=_WHAT,
            show_default="captions of vista's world that compare does not take",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=2, help="Prompts of the last round.", rich_help_panel=_WHAT)
    ] = 32,
    seed: Annotated[int, typer.Option("--seed", help="Of the first picture.", rich_help_panel=_WHAT)] = 1_000_000,
    size: options.Size = None,
    model: options.Model = "vista",
    upscaler: options.Upscaler = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE.json", help="The plan.", rich_help_panel=_WHERE)
    ] = Path("tuned.json"),
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            metavar="FOLDER",
            help="Pictures and seconds; the same command goes on after a stop.",
            rich_help_panel=_WHERE,
            show_default="--out without its .json",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out.", rich_help_panel=_WHERE)] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Search a plan for a target; every command takes the file by --plan.

    Candidates are measured on few prompts, the better half of them on twice as many, and so on. Native runs with
    few steps are always among them: where one of those does best, that is said, and no plan is written.

    Examples:
      mrflow tune --at-least 1.3x --out fast.json
      mrflow tune --at-most-loss 0.01 --limit 64 --prompts mine.jsonl
      mrflow generate "a lake at dusk" --plan fast.json
    """
    with reporting(debug):
        from mrflow.bench.tune import Target, choose, search

        target = Target(
            at_least=None if at_least is None else _read_factor(at_least),
            at_most_loss=at_most_loss,
            max_memory=None if max_memory is None else _to_bytes(max_memory),
        )
        if out.suffix.lower() != ".json":
            raise OutputError(f"{out} ends in {out.suffix!r}; it must be .json.")
        if os.path.lexists(out) and not force:
            raise OutputExistsError(f"{out} exists and is not overwritten. Choose another --out or give --force.")
        given = _check(read_methods(methods)) if methods else None
        plan = None if than is None else _read_reference(than)
        questions = read_questions(prompts or VISTA_TUNING, limit)
        first = make_seeds(seed, 1)[0]
        fast = ModelOptions(model=model, upscaler=upscaler, device=device, dtype=dtype).load()
        course = _course(fast, plan, than, given, questions, first)
        width, height = parse_size(size)
        sizes = {fast.model.resolve_size(width, height, method.plan) for method in course.methods}
        head = _describe(fast, course, list(sizes.pop()))
        ledger = Ledger(work or out.with_suffix(""), {**head, **course.to_dict()})
        with each_warning_once(), _Rounds() as on_round:
            findings = search(fast, course, ledger, target, _examiner(fast, course), head["size"], on_round)
        _print(findings)
        best = choose(findings, target, course.methods[1])
        told = [finding.to_dict() for finding in findings]
        if best is not None and best.method.plan is not None:
            measured = {**head, "found": best.to_dict(), "all": told}
            write_text(out, plan_to_json(best.method.plan, measured))
        if as_json:
            typer.echo(json.dumps({"plan": str(out) if best else None, "findings": told}, allow_nan=False))
        elif best is not None:
            tell_paths([out])
        if best is None:
            _explain(findings, course.methods[1].name, target)
            raise typer.Exit(FAILURE)
        say(f"{best.method.name} does best, measured on {best.prompts} prompts")


class _Rounds:
    """A bar for each round, one after another."""

    def __enter__(self) -> _Rounds:
        self._stack = ExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, candidates: int, prompts: int, runs: int) -> Any:
        self._stack.close()
        say(f"{candidates} candidates on {prompts} prompts")
        return self._stack.enter_context(run_bar(runs))


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
        raise RequestError(f"--than is {text}; it must be a plan, such as 12+1. Native runs are tried anyway.")
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

    inspected = fast.model.name == "vista" or any(each.labels for each in course.questions)
    return Examiner(inspector.load() if inspected else None, {})


def _read_factor(text: str) -> float:
    try:
        return float(text.strip().lower().removesuffix("x"))
    except ValueError:
        raise RequestError(f"--at-least is {text[:40]!r}; it must be a number such as 1.3 or 1.3x.") from None


def _to_bytes(gibibytes: float) -> int:
    if not 0 < gibibytes <= 2**20:
        raise RequestError(f"--max-memory is {gibibytes}; it must be GiB above 0.")
    return round(gibibytes * _GIB)


def _print(findings: list[Finding]) -> None:
    console = stderr_console()
    table = _table(findings)
    console.print(table if fits(table, console) else _table(findings, brief=True))


def _table(findings: list[Finding], *, brief: bool = False) -> Table:
    """Return a row for each finding. brief: of the intervals only the one that decides, and no memory."""
    columns = ["method", "times faster", "composite", "change of it", *([] if brief else ["peak memory, GiB"])]
    table = make_table("The last round, the best first", columns, whole=True)
    for each in findings:
        figures = [(each.faster, ".2f", not brief), (each.quality, ".3f", not brief), (each.change, "+.3f", True)]
        memory = "" if each.memory is None else f"{each.memory / _GIB:.2f}"
        cells = [_write(figure, style, interval=interval) for figure, style, interval in figures]
        table.add_row(each.method.name, *cells, *([] if brief else [memory]))
    return table


def _write(estimate: Any, style: str, *, interval: bool = True) -> str:
    if estimate.value is None:
        return ""
    bounds = f" ({estimate.low:{style}} to {estimate.high:{style}})" if interval else ""
    return f"{estimate.value:{style}}{bounds}"


def _explain(findings: list[Finding], reference: str, target: Any) -> None:
    """Say why no plan is written."""
    best = next((each for each in findings if each.method.name != reference), None)
    if best is not None and best.method.plan is None and best.meets(target):
        say(f"{best.method.name}, the plain pipeline, does better than any plan; no plan file is written")
    else:
        nearest = "" if best is None else f"; the nearest is {best.method.name}"
        say(f"no candidate meets the target{nearest}; no plan file is written")
