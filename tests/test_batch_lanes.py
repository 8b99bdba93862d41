"""Lanes: pictures made side by side are those made alone, for every family; one thread each, and no trace left."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import make_fast, make_pipe
from mrflow import Defaults, MrFlow, batches
from mrflow.batch.run import News
from mrflow.errors import BatchError
from mrflow.lanes import Lanes
from support.batches import IDS, ROWS, assert_complete, files, manifest, run
from support.families import CASES


@pytest.fixture(scope="module")
def model() -> MrFlow:
    """Return one tiny model for all tests here: lanes leave it as it was."""
    return make_fast(make_pipe())


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> Path:
    """Return the folder of a batch made by one lane."""
    out = tmp_path_factory.mktemp("whole")
    assert run(model, out, lanes=1) == (4, 0, 0)
    return out


def test_pictures_made_side_by_side_are_those_made_alone(model, whole, tmp_path):
    before = dict(vars(model.pipe))
    assert run(model, tmp_path, lanes=3) == (4, 0, 0)
    assert_complete(tmp_path, whole)
    assert [entry["id"] for entry in manifest(tmp_path)] == IDS  # in the order of their rows
    assert dict(vars(model.pipe)) == before


def test_video_autoencoders_do_not_share_their_caches(tmp_path, monkeypatch):
    """A decoding begins with fresh caches of its own; here lanes are made to meet between that and their use."""
    pipe = CASES["QwenImagePipeline"].make()
    fast = MrFlow(pipe, "bicubic", defaults=Defaults(width=32, height=32, max_sequence_length=16))
    vae = type(fast.pipe.vae)
    clear = vae.clear_cache
    monkeypatch.setattr(vae, "clear_cache", lambda self: (clear(self), time.sleep(0.02)))
    rows = [{"prompt": "a red boat", "num_images": 6}]
    run(fast, tmp_path / "alone", *rows, lanes=1)
    run(fast, tmp_path / "beside", *rows, lanes=3)
    assert files(tmp_path / "alone") == files(tmp_path / "beside")


def test_lanes_share_weights_and_no_state(model):
    with Lanes(model.model, 2) as two:
        pipes: list[Any] = []
        for _ in range(2):
            list(two.take(lambda lane: pipes.append(lane.pipe) or threading.Event().wait(0.05) or []))
        list(two.rest())
    one, other = pipes
    assert one is not other
    assert one.vae is not other.vae
    assert one.vae.decoder is model.pipe.vae.decoder
    assert one.tokenizer is model.pipe.tokenizer


def test_each_lane_has_one_thread_and_the_caller_all_of_them_again(model, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with Lanes(model.model, 2) as two:
            for _ in range(2):
                seen = list(two.take(lambda lane: [torch.get_num_threads()]))
            seen += list(two.rest())
        assert seen == [1, 1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_lane_that_fails_costs_its_picture(model, whole, tmp_path, monkeypatch):
    real = batches.finish_drafts

    def picky(stages: Any, drafts: Any, *rest: Any) -> Any:
        if drafts[0].base_recipe.seed == 7:
            raise RuntimeError("no boats today")
        return real(stages, drafts, *rest)

    monkeypatch.setattr(batches, "finish_drafts", picky)
    assert run(model, tmp_path, lanes=2) == (3, 0, 1)
    monkeypatch.undo()
    run(model, tmp_path, lanes=2)
    assert_complete(tmp_path, whole)


def test_when_every_lane_fails_the_run_stops(model, tmp_path, monkeypatch):
    def broken(*_: Any) -> None:
        raise RuntimeError("the device fell off the bus")

    monkeypatch.setattr(batches, "make_drafts", broken)
    with pytest.raises(BatchError, match="fell off the bus"):
        run(model, tmp_path, {"prompt": "a boat", "num_images": 60}, lanes=3)


def test_ctrl_c_stops_all_lanes_and_blames_no_row(model, whole, tmp_path):
    """The signal reaches the calling thread, wherever the lanes are."""
    threads, before = torch.get_num_threads(), threading.active_count()
    sent: list[int] = []

    def interrupt(news: News) -> None:
        if news.progress is not None and news.progress.stage == "refine" and news.summary.made and not sent:
            sent.append(news.summary.made)
            _thread.interrupt_main()

    rows = [*ROWS, {"prompt": "a big lake", "num_images": 20, "plan": "30+1"}]
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path, *rows, lanes=2, on_news=interrupt)
    assert (torch.get_num_threads(), threading.active_count()) == (threads, before)
    assert not (tmp_path / "errors.jsonl").exists()
    assert sorted(files(tmp_path)) == sorted(entry["path"] for entry in manifest(tmp_path))
    run(model, tmp_path, lanes=2)
    assert {name: data for name, data in files(tmp_path).items() if not name[0].isdigit()} == files(whole)


def test_results_come_in_order_and_no_more_is_begun_than_lanes_and_one(model):
    begun: list[int] = []

    def work(number: int) -> Any:
        def run(_: Any) -> Iterator[int]:
            begun.append(number)
            threading.Event().wait(0.02 * (3 - number % 3))
            yield number

        return run

    made: list[int] = []
    with Lanes(model.model, 2) as two:
        for number in range(7):
            made += two.take(work(number))
            assert len(begun) <= len(made) + 3
        made += two.rest()
    assert made == list(range(7))
