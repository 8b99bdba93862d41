"""The scheduler: equal pictures, fair turns, and an end for whatever can't go on."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import replace
from typing import Any

import pytest
import torch

from conftest import ROUNDING, make_fast, make_pipe
from mrflow import MrFlow
from mrflow.errors import RequestError
from mrflow.lanes import copy_lane
from mrflow.model import Model
from mrflow.plan import Plan
from mrflow.progress import Progress
from mrflow.server.errors import ApiError
from mrflow.server.keys import Keys
from mrflow.server.service import make_service
from mrflow.server.settings import MAX_DRAFTS, Settings
from mrflow.server.tickets import Ticket
from mrflow.server.worker import Worker
from support.serving import Gate, hold, scheduling, ticket, tiny_model, until

PROMPTS = ("a red boat", "a blue house at dusk", "a big lake and a boat")


def error_of(ticket: Ticket) -> ApiError:
    error = ticket.future.exception(60)
    assert isinstance(error, ApiError)
    return error


class Finals:
    """Catches the float pixels of a ticket's finished picture."""

    pixels: torch.Tensor

    def __call__(self, news: Progress) -> None:
        if news.stage == "decode" and news.pixels is not None:
            self.pixels = news.pixels.clone()


@pytest.fixture
def four_threads() -> Iterator[None]:
    """Have torch take four threads for an operation, for workers to divide."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize("count", [16, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("lanes", "finish_batch"), [(1, 4), (2, 1)])
def test_pictures_made_under_load_equal_those_made_alone(lanes: int, finish_batch: int, count: int) -> None:
    """Mixed prompts, seeds, sizes, plans and clients, in shared batches: 1e-5 for each of the two passes."""
    model = make_fast(make_pipe().to(torch.float64)).model  # in single precision, processors differ by 2e-5
    copies = [copy_lane(model) for _ in range(lanes - 1)]
    alone = MrFlow(make_pipe().to(torch.float64), "bicubic", defaults=model.defaults, batch_size=1)
    draw = random.Random(0)
    asked = [
        (draw.choice(PROMPTS), seed, draw.choice([(64, 64), (64, 96)]), draw.choice(["1+1", "2+1"]))
        for seed in range(count)
    ]
    finals = [Finals() for _ in asked]
    with scheduling(model, *copies, draft_batch=8, finish_batch=finish_batch) as scheduler:
        tickets = [
            ticket(model, prompt, seed, size=size, plan=plan, client=str(seed % 3), on_news=final)
            for (prompt, seed, size, plan), final in zip(asked, finals, strict=True)
        ]
        for one in tickets:
            scheduler.submit([one])
        made = [one.future.result(600) for one in tickets]
    for (prompt, seed, (width, height), plan), picture, final in zip(asked, made, finals, strict=True):
        drafts = alone.draft(prompt, seed=seed, width=width, height=height, plan=plan)
        seen: list[Progress] = []
        result = alone.finish(drafts[0], callback=seen.append)
        pixels = next(news.pixels for news in seen if news.stage == "decode" and news.pixels is not None)
        assert picture.draft is not None
        torch.testing.assert_close(picture.draft.pixels, drafts[0].pixels, atol=ROUNDING, rtol=0)
        torch.testing.assert_close(final.pixels, pixels, atol=2 * ROUNDING, rtol=0)  # two batched passes
        assert picture.recipe is not None
        company = {"batch": 1, "threads": None, "pixels_sha256": None}  # what depends on who else was there
        assert replace(picture.recipe, **company) == replace(result.recipes[0], **company)
        assert {"queue", "text", "draft", "refine", "decode"} <= set(picture.seconds)
    assert max(picture.batch for picture in made) > 1


def test_native_pictures_are_those_of_the_plain_pipeline() -> None:
    model = tiny_model()
    with scheduling(model) as scheduler:
        one = ticket(model, todo=["native"], plan=Plan(steps=3))
        one.job = replace(
            one.job, plan=replace(one.job.plan, refine_true_cfg_scale=None, noise="own")
        )  # as native runs have it
        scheduler.submit([one])
        made = one.future.result(60)
    alone = make_fast(make_pipe()).native("a red boat", seed=0, steps=3)
    assert made.recipe == alone.recipes[0]


def test_a_small_model_gets_a_worker_for_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    model, other = tiny_model(), tiny_model()

    def workers(*models: Model, **settings: Any) -> list[Worker]:
        return make_service(models, Settings(**settings), Keys(), []).scheduler.workers

    lanes = workers(model)
    assert len(lanes) == 3
    assert len({id(worker.model.pipe) for worker in lanes}) == 3
    assert len({id(worker.reading) for worker in lanes}) == 1  # they share tokenizers
    assert len(workers(model, lanes=1)) == 1
    both = workers(model, other)  # as many as were asked for
    assert len({id(worker.reading) for worker in both}) == len(both) == 2
    assert len(workers(model, other, lanes=2)) == 4
    model.pipe.transformer.compile()
    assert len(workers(model)) == 1
    with pytest.raises(RequestError, match="lanes is 2"):
        workers(model, lanes=2)


def test_lanes_work_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    met, decode = threading.Barrier(2), type(model.backbone).decode

    def meeting(self: Any, *arguments: Any) -> Any:
        met.wait(60)  # breaks if nobody else comes
        return decode(self, *arguments)

    monkeypatch.setattr(type(model.backbone), "decode", meeting)
    with scheduling(model, copy_lane(model)) as scheduler:
        tickets = [ticket(model, seed=k, todo=["draft"]) for k in range(2)]
        scheduler.submit(tickets)
        assert all(one.future.result(60).batch == 1 for one in tickets)


def test_a_full_queue_refuses_and_says_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    with scheduling(model, max_waiting=32) as scheduler:
        gate = hold(model, monkeypatch)
        scheduler.submit([ticket(model)])
        assert gate.reached.wait(30)
        tickets = [ticket(model, client="a") for _ in range(16)]
        scheduler.submit(tickets)
        with pytest.raises(ApiError) as mine:  # one client gets half of the places
            scheduler.submit([ticket(model, client="a")])
        others = [ticket(model, client="b") for _ in range(15)]
        scheduler.submit(others)
        with pytest.raises(ApiError) as all_:
            scheduler.submit([ticket(model, client="c") for _ in range(2)])
        assert mine.value.status_code == all_.value.status_code == 429
        assert 1 <= int((mine.value.headers or {})["Retry-After"]) <= 60
        scheduler.forget(tickets)  # the clients go away: their places are free at once
        assert scheduler.waiting == 15
        gate.open.set()
        wait([one.future for one in others], 60)


def test_a_picture_that_nobody_waits_for_stops_between_steps() -> None:
    model = tiny_model()
    steps: list[int] = []
    box: list[Ticket] = []

    def listen(news: Progress) -> None:
        if news.stage == "draft":
            steps.append(news.step)
            if news.step == 2:
                box[0].give_up()

    with scheduling(model) as scheduler:
        box.append(ticket(model, plan="90+1", on_news=listen))
        scheduler.submit(box)
        error_of(box[0])
        other = ticket(model)
        scheduler.submit([other])
        other.future.result(60)
    assert steps == [0, 1, 2]


def test_a_failing_picture_does_not_take_its_neighbours_down(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    encode = type(model.backbone).encode_prompts

    def encoding(self: Any, pipe: Any, prompts: list[str], *more: Any) -> Any:
        if "a house" in prompts:
            raise RuntimeError("a secret: /etc/passwd")
        return encode(self, pipe, prompts, *more)

    monkeypatch.setattr(type(model.backbone), "encode_prompts", encoding)
    with scheduling(model, draft_batch=4) as scheduler:
        tickets = [ticket(model, prompt) for prompt in ("a boat", "a lake", "a house", "a big boat")]
        scheduler.submit(tickets)
        wait([one.future for one in tickets], 60)
    assert [one.future.exception() is None for one in tickets] == [True, True, False, True]
    error = error_of(tickets[2])
    assert (error.status_code, error.message) == (500, "The picture could not be made (RuntimeError).")


def test_patience_ends_for_those_that_wait_and_for_those_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    with scheduling(model) as scheduler:
        gate = hold(model, monkeypatch)
        tickets = [ticket(model, seconds=0.2), ticket(model, seconds=0.2, size=(64, 96))]
        scheduler.submit(tickets)
        errors = [error_of(one) for one in tickets]
        assert [(error.status_code, error.code) for error in errors] == [(503, "timeout")] * 2
        assert scheduler.waiting == 0
        gate.open.set()
        again = ticket(model)
        scheduler.submit([again])
        again.future.result(60)


def test_a_worker_that_hangs_is_noticed_and_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    with scheduling(model, hang_after=4) as scheduler:
        gate = hold(model, monkeypatch)
        tickets = [ticket(model), ticket(model, size=(64, 96))]
        scheduler.submit(tickets)
        assert [error_of(one).code for one in tickets] == ["worker_hung"] * 2
        assert scheduler.state == "hung"
        with pytest.raises(ApiError, match="does not respond"):
            scheduler.submit([ticket(model)])
        gate.open.set()
        until(lambda: scheduler.state == "ok")
        again = ticket(model)
        scheduler.submit([again])
        again.future.result(60)


def test_of_two_workers_one_may_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [tiny_model(), tiny_model()]
    with scheduling(*models, hang_after=4, draft_batch=1) as scheduler:
        held, denoiser = Gate(), models[0].pipe.transformer.forward

        def forward(*arguments: Any, **named: Any) -> Any:
            held()
            return denoiser(*arguments, **named)

        monkeypatch.setattr(models[0].pipe.transformer, "forward", forward)
        tickets = [ticket(models[0], seed=k) for k in range(8)]
        scheduler.submit(tickets)
        until(lambda: all(one.over for one in tickets))
        outcomes = [one.future.exception() is None for one in tickets]
        assert outcomes.count(False) == 1
        assert scheduler.state == "ok"
        assert [worker.hung for worker in scheduler.workers] == [True, False]
        held.open.set()


def test_a_worker_that_dies_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with scheduling() as scheduler:

        def die(*_: Any) -> Any:
            raise SystemExit

        monkeypatch.setattr(scheduler.workers[0], "_make", die)
        one = ticket(scheduler.model)
        scheduler.submit([one])
        assert error_of(one).code == "worker_hung"
        assert scheduler.state == "hung"


def test_stopping_finishes_what_is_queued_and_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    with scheduling(model) as scheduler:
        gate = hold(model, monkeypatch)
        tickets = [ticket(model, seed=k, size=(64, 64 + 32 * (k % 2))) for k in range(4)]
        scheduler.submit(tickets)
        scheduler.stop(60)
        with pytest.raises(ApiError, match="shutting down"):
            scheduler.submit([ticket(model)])
        gate.open.set()
        assert all(one.future.result(60).image is not None for one in tickets)


def test_stopping_refuses_what_does_not_get_done_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    with scheduling(model) as scheduler:
        gate = hold(model, monkeypatch)
        tickets = [ticket(model, seed=k) for k in range(12)]
        scheduler.submit(tickets)
        assert gate.reached.wait(30)
        scheduler.stop(0.1)
        assert {error_of(one).code for one in tickets} == {"shutting_down"}
        gate.open.set()


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout": 0},
        {"timeout": float("nan")},
        {"max_waiting": 2 * MAX_DRAFTS - 1},
        {"draft_batch": 0},
        {"lanes": 0},
        {"lanes": "2"},
        {"draft_batch": 1.5},
        {"max_pixels": True},
        {"max_prompt": 10**6},
        {"max_input_pixels": 10**9},
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(RequestError, match=f"^{name} is .*; it should be .* Try "):
        Settings(**settings)


def test_unknown_settings_are_named() -> None:
    with pytest.raises(RequestError, match=r"^max_wait is 3; .* max_waiting,"):
        Settings(max_wait=3)
