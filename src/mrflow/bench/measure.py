"""What `mrflow bench` measures: each method at each size and batch, in turn, as a report of plain JSON values.

A group is one size and batch: its methods take turns. Groups follow each other, and a report that was stopped
after some of them is continued with the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mrflow.bench.methods import OF_NATIVE, Method
from mrflow.bench.records import Json, differing, read_record, write_record
from mrflow.bench.timing import OnRun, Run, Spread, Timed, attempt, speedup, time_in_turn
from mrflow.errors import OutputError, RequestError
from mrflow.jobs import Size
from mrflow.memory import PeakMemory

if TYPE_CHECKING:
    from mrflow.pipeline import MrFlow

FORMAT = 1
MAX_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a measurement is run. Checked on creation: raises RequestError.

    repeats: timed runs of each method. warm_up: short runs of each before them. seed: of the first picture.
    """

    methods: Sequence[Method]
    prompt: str
    repeats: int = 5
    warm_up: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("repeats", 1), ("warm_up", 0)):
            if not low <= getattr(self, name) <= 1000:
                raise RequestError(f"{name} is {getattr(self, name)}; it must lie between {low} and 1000.")

    def runs(self, groups: int) -> int:
        """Return the number of runs that so many groups take."""
        return groups * len(self.methods) * (self.warm_up + self.repeats)

    def to_dict(self) -> Json:
        """Return the course as plain JSON values, methods by name."""
        return {**vars(self), "methods": [method.name for method in self.methods]}


def measure_group(fast: MrFlow, course: Course, size: Size, batch: int, on_run: OnRun) -> Json:
    """Return the measurements of all methods at one size and batch; a method that runs out of memory says so.

    on_run: called with what runs before each run, warm-ups included; what it raises ends the measurement.
    """
    from mrflow.pipeline import MrFlow

    gauge = PeakMemory(fast.model.device)
    batched = MrFlow.from_pipe(fast, upscaler=fast.model.upscaler, defaults=fast.model.defaults, batch_size=batch)
    place = {"num_images": batch, "width": size[0], "height": size[1]}
    settings = {"prompt": course.prompt, "seed": course.seed, "callback": gauge, **place}

    def way(method: Method) -> Run:
        return lambda: method.run(batched, **settings)

    def fits(method: Method) -> bool:
        """Run the method shortened; say whether its memory sufficed."""
        for _ in range(course.warm_up):
            on_run("warm up")
            if attempt(lambda: method.warm_up(batched, **settings), fast.model.device) is None:
                return False
        return True

    ways = {method.name: way(method) for method in course.methods if fits(method)}
    timed = time_in_turn(ways, course.repeats, on_run, gauge) if ways else {}
    baseline = timed.get(course.methods[0].name)
    return {
        "width": size[0],
        "height": size[1],
        "batch": batch,
        "methods": [_describe(method, timed.get(method.name), baseline, batch) for method in course.methods],
    }


def check_batches(batches: Iterable[int]) -> None:
    """Raise RequestError for a batch size that makes no sense."""
    for batch in batches:
        if not 1 <= batch <= MAX_BATCH:
            raise RequestError(f"batch is {batch}; it must lie between 1 and {MAX_BATCH}. Try 1.")


def open_report(path: Path | None, head: Json) -> Json:
    """Return the report to continue: what `path` holds, if it was measured as `head` says, else a new one.

    head: environment, model and course. Raises RequestError if the file was measured otherwise, OutputError if
    it is no report.
    """
    foreign = "is there and no report of mrflow bench. Choose another --out."
    report = read_record(path, foreign) if path else None
    if report is None:
        return {"format": FORMAT, **head, "groups": []}
    if not isinstance(report.get("groups"), list):
        raise OutputError(f"{path} {foreign}")
    if names := differing(report, head):
        raise RequestError(f"{path} was measured with another {names}. Choose another --out.")
    return report


def missing_groups(report: Json, sizes: Sequence[Size], batches: Sequence[int]) -> list[tuple[Size, int]]:
    """Return the groups that the report lacks, in order."""
    there = {(group["width"], group["height"], group["batch"]) for group in report["groups"]}
    return [(size, batch) for size in sizes for batch in batches if (*size, batch) not in there]


def save_report(report: Json, path: Path | None) -> None:
    """Write the report, if it has a file."""
    if path is not None:
        write_record(path, report)


def _describe(method: Method, timed: Timed | None, baseline: Timed | None, batch: int) -> Json:
    if timed is None:
        return {"name": method.name, "kind": method.kind, "failed": "out of memory"}
    plan = timed.result.recipes[0].plan
    spreads = timed.spreads
    steps = {"draft": plan.steps, **({"refine": plan.all_refine_steps} if "refine" in spreads else {})}
    # what belongs to no stage: noise mixed in, tensors into images, hashes, recipes
    rest = [run["total"] - sum(value for name, value in run.items() if name != "total") for run in timed.runs]
    seconds = {**{name: each for name, each in spreads.items() if name != "total"}, "rest": Spread.of(rest)}
    peaks = [peak for peak in timed.gauge if peak is not None]
    return {
        "name": method.name,
        "kind": method.kind,
        "plan": asdict(plan)
        if method.plan
        else {name: getattr(plan, name) for name in (*OF_NATIVE, "true_cfg_scale")},
        "seconds": {name: each.to_dict() for name, each in {**seconds, "total": spreads["total"]}.items()},
        "totals": timed.totals,
        "seconds_per_step": {stage: spreads[stage].median / count for stage, count in steps.items()},
        "images_per_second": batch / spreads["total"].median,
        "peak_memory": max(peaks) if peaks else None,
        "speedup": speedup(baseline, timed).to_dict() if baseline is not None else None,
    }
