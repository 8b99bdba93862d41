"""Methods side by side: the same prompts and seeds, in turn, every picture kept with its seconds.

For each prompt and seed all methods run one after another, and who begins rotates: a slow minute of the machine
falls on all, and none always runs on caches that another has warmed. Speed is compared within one such turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mrflow.bench.ledger import EVERY, Ledger, Run
from mrflow.bench.methods import Method
from mrflow.bench.prompts import Question
from mrflow.bench.records import Json
from mrflow.bench.timing import OnRun, attempt, time_in_turn
from mrflow.errors import RequestError
from mrflow.memory import PeakMemory

if TYPE_CHECKING:
    import torch

    from mrflow.drafts import Result
    from mrflow.jobs import Size
    from mrflow.pipeline import MrFlow
    from mrflow.progress import Progress

Turn = tuple[int, list[Method]]
"""A picture's number, and the methods that make it, one after another."""
_STAGES = ("decode_draft", "upscale", "decode")

_FEW, _MORE = 4, 12  # native steps between which a line is drawn, to find those that take a plan's time
_REPEATS = 3
EQUAL_TIME_RUNS = 3 * _REPEATS + 2
"""How many runs `steps_of_equal_time` takes."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """What is compared. The first method is the baseline. seeds: pictures per prompt, with seeds of their own.

    timed_against: the method whose time the others are held against; None is the baseline.
    """

    methods: Sequence[Method]
    questions: Sequence[Question]
    seeds: int = 1
    seed: int = 0
    timed_against: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= 100:
            raise RequestError(f"seeds is {self.seeds}; it must lie between 1 and 100. Try 1.")

    @property
    def first_plan(self) -> Method | None:
        """The first plan as it is, which the alternatives are held against; None without one."""
        return next((each for each in self.methods if each.plan is not None and each.plain), None)

    @property
    def items(self) -> list[tuple[Question, int]]:
        """Each prompt with each of its seeds, the pictures of a prompt side by side."""
        return [
            (question, self.seed + number * self.seeds + k)
            for number, question in enumerate(self.questions)
            for k in range(self.seeds)
        ]

    def items_of(self, prompts: Sequence[int]) -> list[int]:
        """Return the numbers of these prompts' pictures."""
        return [prompt * self.seeds + k for prompt in prompts for k in range(self.seeds)]

    def to_dict(self) -> Json:
        """Return the course as plain JSON values."""
        prompts = [{"prompt": each.prompt, "labels": each.labels} for each in self.questions]
        return {"questions": prompts, "seeds": self.seeds, "seed": self.seed}


def missing(course: Course, ledger: Ledger) -> list[Turn]:
    """Return what is still to be made: items, and for each the methods in the order in which they run.

    The baseline (or what stands for it in time) runs again with what is missing, unless this process has timed
    it: speed is compared between runs of one turn only.
    """
    turns = []
    able = [method for method in course.methods if not ledger.failed(method.name)]
    for item in range(len(course.items)):
        absent = {method.name for method in able if not ledger.done(method.name, item)}
        if not absent:
            continue
        baseline = course.timed_against or course.methods[0].name
        if not ledger.timed_now(baseline, item):
            absent.add(baseline)
        begin = item % len(able)
        order = [*able[begin:], *able[:begin]]
        turns.append((item, [method for method in order if method.name in absent]))
    return turns


def count_runs(turns: Sequence[Turn]) -> int:
    """Return how many runs the turns take, the warm-up of each method included."""
    return sum(len(methods) for _, methods in turns) + len({method.name for _, group in turns for method in group})


def run_turns(
    fast: MrFlow, course: Course, ledger: Ledger, turns: Sequence[Turn], size: Size, on_run: OnRun
) -> None:
    """Make what is missing. on_run: called with what runs before each run; what it raises ends the work."""
    methods = {method.name: method for _, group in turns for method in group}
    items = course.items
    for method in methods.values():
        on_run("warm up")
        _make(fast, ledger, method, items[0], size, warm_up=True)
    for item, group in turns:
        for method in group:
            on_run(method.name)
            made = None if ledger.failed(method.name) else _make(fast, ledger, method, items[item], size)
            if made is None:
                continue
            result, watch = made
            run = Run(
                method=method.name,
                item=item,
                session=ledger.session,
                seconds=dict(result.seconds),
                moments=watch.moments(),
                memory=watch.gauge.read(),
            )
            if ledger.done(method.name, item):  # the baseline again, for its seconds
                ledger.add(run)
            else:
                ledger.add(run, result.images[0], result.recipes[0])


class Watch:
    """A callback that keeps the pixels of each stage of one picture; a reference costs the run nothing.

    gauge: of the run's peak of memory.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin with nothing seen."""
        self.gauge = PeakMemory(device)
        self.gauge.reset()
        self._pixels: dict[str, Any] = {}

    def __call__(self, news: Progress) -> None:
        """Keep what a stage made."""
        self.gauge(news)
        if news.pixels is not None and news.stage in _STAGES:
            self._pixels[news.stage] = news.pixels

    def moments(self) -> dict[str, list[float]]:
        """Return [red, green, blue, contrast] of each stage, in levels of 255."""
        from mrflow.metrics.pixels import moments

        return {stage: moments(pixels[0]) for stage, pixels in self._pixels.items()}


def _make(
    fast: MrFlow, ledger: Ledger, method: Method, item: tuple[Question, int], size: Size, *, warm_up: bool = False
) -> tuple[Result, Watch] | None:
    """Return what was made; a method that memory does not suffice for is written down, and None returned."""
    (question, seed), watch = item, Watch(fast.model.device)
    settings = {"prompt": question.prompt, "seed": seed, "width": size[0], "height": size[1], "callback": watch}
    run = method.warm_up if warm_up else method.run
    result = attempt(lambda: run(fast, **settings), fast.model.device)
    if result is None:
        ledger.add(Run(method=method.name, item=EVERY, session=ledger.session, failed="out of memory"))
        return None
    return result, watch


def steps_of_equal_time(fast: MrFlow, method: Method, settings: dict[str, Any], on_run: OnRun) -> int:
    """Return the fewest native steps that take at least as long as `method`: rounded in native's favour.

    A line through the times of 4 and 12 steps, medians of three runs in turn. settings: of a picture.
    """
    few, more = (Method(name=f"native:{steps}", steps=steps) for steps in (_FEW, _MORE))
    ways = {each.name: (lambda m=each: m.run(fast, **settings)) for each in (few, more, method)}
    for each in (few, method):
        on_run("warm up")
        each.warm_up(fast, **settings)
    timed = time_in_turn(ways, _REPEATS, on_run)
    low, high, wanted = (timed[each.name].seconds["total"] for each in (few, more, method))
    step = max((high - low) / (_MORE - _FEW), 1e-9)
    return max(1, math.ceil(_FEW + (wanted - low) / step - 1e-6))
