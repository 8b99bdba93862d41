"""Tickets: whose turn it is in the queue, and what a request hears of its own."""

from __future__ import annotations

import asyncio

import pytest

from mrflow.jobs import ask
from mrflow.plan import get_plan
from mrflow.server.errors import ApiError
from mrflow.server.scheduler import Scheduler
from mrflow.server.tickets import News, Queue, TicketGroup
from support.serving import hold, scheduling, ticket, tiny_model, until


def test_turns_go_round_the_clients() -> None:
    model = tiny_model()
    queue = Queue()
    queue.join([ticket(model, seed=k, client="greedy") for k in range(6)])
    queue.join([ticket(model, seed=k, client=name) for name in ("b", "c") for k in range(2)])
    turns = [[one.client for one in queue.take(lambda _: 3)] for _ in range(4)]
    assert turns == [["greedy", "b", "c"], ["b", "c", "greedy"], ["greedy"] * 3, ["greedy"]]
    assert len(queue) == 0


def test_what_is_begun_ends_before_more_begins() -> None:
    model = tiny_model()
    queue = Queue()
    queue.join(ticket(model, seed=k, client=name) for name in "abcd" for k in range(2))
    begun = queue.take(lambda _: 2)
    queue.rejoin(begun)
    turns = [[(one.client, one.job.seed) for one in queue.take(lambda _: 1)] for _ in range(4)]
    assert turns == [[("a", 0)], [("b", 0)], [("c", 0)], [("d", 0)]]  # and nobody has two turns before others


def test_few_tickets_are_divided_between_workers() -> None:
    model = tiny_model()
    queue = Queue()
    queue.join(ticket(model, seed=k, client="ab"[k % 2]) for k in range(7))
    assert [len(queue.take(lambda _: 8, idle)) for idle in (3, 2, 1)] == [3, 2, 2]
    queue.join(ticket(model, seed=k) for k in range(40))
    assert len(queue.take(lambda _: 8, 2)) == 8


def test_what_does_not_fit_together_is_not_mixed() -> None:
    model = tiny_model()
    queue = Queue()
    queue.join(ticket(model, seed=k, size=(64, 64 + 32 * (k % 2)), client="ab"[k % 2]) for k in range(6))
    batches = [queue.take(lambda _: 8) for _ in range(2)]
    assert [{one.job.size for one in batch} for batch in batches] == [{(64, 64)}, {(64, 96)}]


def group_of(scheduler: Scheduler, *prompts: str) -> TicketGroup:
    """Return the tickets of a request for drafts, of which previews are wanted."""
    group = TicketGroup(scheduler, "somebody", ["decode_draft"])
    group.add(("draft",), scheduler.model.resolve(ask(prompts, seed=0, plan=get_plan("2+1"), width=64, height=64)))
    return group


def test_a_group_hears_of_steps_then_of_one_preview_then_of_the_end() -> None:
    async def listen(scheduler: Scheduler) -> list[News]:
        async with group_of(scheduler, "a boat", "a lake") as group:
            return [news async for news in group.news()]

    with scheduling() as scheduler:
        heard = asyncio.run(listen(scheduler))
    for index in (0, 1):
        mine = [news for news in heard if news.index == index]
        assert [news.step for news in mine if news.stage == "draft"] == [0, 1, 2]
        assert [news.stage for news in mine if news.image is not None] == ["decode_draft"]
        assert [news.made is not None for news in mine] == [False] * (len(mine) - 1) + [True]


def test_a_group_hears_that_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    gate = hold(model, monkeypatch)

    async def listen(scheduler: Scheduler) -> list[News]:
        heard: list[News] = []
        async with group_of(scheduler, "a boat") as group:
            async for news in group.news(pause=0.05):
                heard.append(news)
                if news.stage is None:
                    gate.open.set()
        return heard

    with scheduling(model) as scheduler:
        heard = asyncio.run(listen(scheduler))
    assert any(news.stage is None and news.image is None and news.made is None for news in heard)
    assert heard[-1].made is not None


def test_a_group_raises_the_first_error_and_gives_up_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    gate = hold(model, monkeypatch)

    async def listen(group: TicketGroup) -> list[News]:
        async with group:
            group.tickets[1].deadline = 0
            return [news async for news in group.news()]

    async def refused(scheduler: Scheduler) -> TicketGroup:
        group = group_of(scheduler, "a boat", "a lake")
        with pytest.raises(ApiError, match="not made within"):
            await listen(group)
        return group

    with scheduling(model) as scheduler:
        group = asyncio.run(refused(scheduler))
        assert [error.code for one in group.tickets if isinstance(error := one.future.exception(), ApiError)] == [
            "client_closed_request",
            "timeout",
        ]
        gate.open.set()
        until(lambda: not scheduler.busy)
