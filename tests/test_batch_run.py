"""A batch as a whole: each picture as if made alone, only what is missing, every fault one clear line."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import make_fast, make_pipe
from mrflow import MrFlow, batches, load_image, read_recipe, save_image
from mrflow.batch.output import Output
from mrflow.batch.run import News, prepare
from mrflow.errors import BatchError, BusyError, OutputError, OutputExistsError
from mrflow.model import Model
from support.batches import IDS, ROWS, TINY, assert_complete, errors, files, manifest, request, run, run_summary


@pytest.fixture(scope="module")
def model() -> MrFlow:
    """Return one tiny model for all tests here: a batch leaves it as it was."""
    return make_fast(make_pipe())


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> Path:
    """Return the folder of a batch that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    assert run(model, out) == (4, 0, 0)
    return out


def copied(whole: Path, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    for path in whole.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return out


def test_a_picture_is_the_file_that_it_is_when_made_alone(model, whole, tmp_path):
    result = model("a red boat", seed=7, **TINY)
    path = save_image(result.images[0], tmp_path / "alone.png", result.recipes[0])
    assert path.read_bytes() == (whole / "boat.png").read_bytes()
    (entry,) = [entry for entry in manifest(whole) if entry["id"] == "boat"]
    assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert entry["size"] == path.stat().st_size
    assert (entry["prompt"], entry["seed"], entry["plan"]["steps"], entry["path"]) == (
        "a red boat",
        7,
        1,
        "boat.png",
    )
    assert set(entry["seconds"]) == {
        *("text", "draft", "decode_draft", "upscale", "encode", "refine", "decode", "write")
    }


def test_the_order_of_rows_changes_no_picture(model, whole, tmp_path):
    run(model, tmp_path, *reversed(ROWS))
    assert files(tmp_path) == files(whole)


def test_rows_and_their_pictures(whole):
    assert sorted(files(whole)) == [f"{id}.png" for id in IDS]
    assert not (whole / "errors.jsonl").exists()
    assert load_image(whole / "lake-2.png").size == (64, 32)
    assert read_recipe(whole / "lake-1.png").seed != read_recipe(whole / "lake-2.png").seed


def test_a_second_run_makes_nothing(model, whole, tmp_path):
    out = copied(whole, tmp_path)
    before = (out / "manifest.jsonl").read_bytes()
    assert run(model, out) == (0, 4, 0)
    assert (out / "manifest.jsonl").read_bytes() == before


def test_what_is_damaged_missing_or_torn_is_made_again_and_nothing_else(model, whole, tmp_path):
    out = copied(whole, tmp_path)
    damaged = bytearray((out / "boat.png").read_bytes())
    damaged[-100] ^= 1
    (out / "boat.png").write_bytes(damaged)
    (out / "house.png").unlink()
    (out / ".lake-1.png.0123456789ab.part").write_bytes(b"half")
    lines = (out / "manifest.jsonl").read_bytes()
    (out / "manifest.jsonl").write_bytes(lines[:-30])  # the line of lake-2 is torn
    made: list[str] = []
    summary = run_summary(model, out, on_news=lambda news: made.append(news.entry.id) if news.entry else None)
    assert (made, summary.skipped, summary.lost) == (["boat", "house", "lake-2"], 1, 2)
    assert_complete(out, whole)


def test_a_planted_link_is_not_followed(model, whole, tmp_path):
    out = copied(whole, tmp_path)
    elsewhere = tmp_path / "elsewhere.png"
    (out / "boat.png").rename(elsewhere)
    (out / "boat.png").symlink_to(elsewhere)
    assert run(model, out) == (1, 3, 0)
    assert not (out / "boat.png").is_symlink()
    assert_complete(out, whole)


def test_larger_batches_are_the_same_to_rounding(model, whole, tmp_path):
    import numpy as np

    summary = run_summary(model, tmp_path, batch_size=4)
    assert (summary.made, summary.batch_sizes) == (4, {"draft": 4, "finish": 4})
    assert read_recipe(tmp_path / "boat.png").batch == 2  # the two of its size
    for id in IDS:
        one, other = (np.asarray(load_image(out / f"{id}.png"), dtype=int) for out in (tmp_path, whole))
        assert abs(one - other).max() <= 1


def test_memory_that_runs_out(model, whole, tmp_path, monkeypatch):
    real = batches.make_drafts

    def small(stages: Any, jobs: Any, *rest: Any) -> Any:
        if len(jobs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(stages, jobs, *rest)

    monkeypatch.setattr(batches, "make_drafts", small)
    summary = run_summary(model, tmp_path, batch_size=4)
    assert (summary.made, summary.failed, summary.batch_sizes["draft"]) == (4, 0, 1)


def test_bad_rows_are_listed_and_the_others_unharmed(model, whole, tmp_path):
    bad = [{"prompt": "a house", "id": "boat"}, {"prompt": "", "id": "empty"}, {"prompt": "a lake", "width": 50}]
    assert run(model, tmp_path, ROWS[0], *bad, *ROWS[1:]) == (4, 0, 3)
    assert_complete(tmp_path, whole)
    assert [each["row"] for each in errors(tmp_path)] == [2, 3, 4]
    assert run(model, tmp_path, *ROWS) == (0, 4, 0)
    assert not (tmp_path / "errors.jsonl").exists()


def test_a_row_that_fails_while_it_is_made(model, whole, tmp_path, monkeypatch):
    real = batches.finish_drafts

    def picky(stages: Any, drafts: Any, *rest: Any) -> Any:
        if drafts[0].base_recipe.seed == 7:
            raise RuntimeError("no boats today")
        return real(stages, drafts, *rest)

    monkeypatch.setattr(batches, "finish_drafts", picky)
    assert run(model, tmp_path) == (3, 0, 1)
    assert errors(tmp_path) == [{"row": 1, "id": "boat", "error": "RuntimeError: no boats today"}]
    monkeypatch.undo()
    assert run(model, tmp_path) == (1, 3, 0)
    assert_complete(tmp_path, whole)
    assert not (tmp_path / "errors.jsonl").exists()


def test_a_prompt_that_can_not_be_encoded(model, whole, tmp_path, monkeypatch):
    real = batches.encode_prompts

    def picky(run: Any, batch: Any) -> Any:
        if batch.jobs[0].prompt == "a blue house":
            raise RuntimeError("blue")
        return real(run, batch)

    monkeypatch.setattr(batches, "encode_prompts", picky)
    assert run(model, tmp_path) == (3, 0, 1)


def test_when_everything_fails_the_run_stops(model, tmp_path, monkeypatch):
    def broken(*_: Any) -> None:
        raise RuntimeError("the device fell off the bus")

    monkeypatch.setattr(batches, "make_drafts", broken)
    rows = [{"prompt": "a boat", "num_images": 40}]
    with pytest.raises(BatchError, match=r"20 pictures in a row.*fell off the bus"):
        run(model, tmp_path, *rows)
    assert len(errors(tmp_path)) == 20


def test_a_full_disk_stops_the_run_and_nothing_is_half_written(model, whole, tmp_path, monkeypatch):
    written = 0

    def sync(handle: int) -> None:
        nonlocal written
        written += 1
        if written > 5:  # the manifest's beginning and the first picture, each a file and its folder, and its line
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(OutputError, match="No space left on device"):
        run(model, tmp_path)
    monkeypatch.undo()
    assert set(files(tmp_path)) == {"boat.png"}
    assert [entry["id"] for entry in manifest(tmp_path)] == ["boat"]
    run(model, tmp_path)
    assert_complete(tmp_path, whole)


def test_a_name_that_is_taken_by_a_folder_costs_that_picture(model, tmp_path):
    run(model, tmp_path, ROWS[1])
    (tmp_path / "boat.png").mkdir()
    assert run(model, tmp_path, *ROWS[:2]) == (0, 1, 1)
    assert "boat.png" in errors(tmp_path)[0]["error"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder(model, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="not writable"):
        run(model, tmp_path / "out")


def test_a_folder_that_takes_no_files(model):
    with pytest.raises(OutputError, match="not writable"):
        run(model, "/proc/mrflow")


def test_a_file_in_the_place_of_the_folder(model, tmp_path):
    (tmp_path / "out").touch()
    for action in (lambda: run(model, tmp_path / "out"), Output(tmp_path / "out").check):
        with pytest.raises(OutputError, match="is a file"):
            action()


def test_pictures_of_somebody_else_are_left_alone(model, tmp_path):
    (tmp_path / "house.png").write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"house\.png and no manifest"):
        run(model, tmp_path)
    assert (tmp_path / "house.png").read_bytes() == b"mine"


def test_rows_that_have_changed_are_refused_unless_forced(model, whole, tmp_path):
    out = copied(whole, tmp_path)
    changed = [{**ROWS[0], "prompt": "a big boat"}, *ROWS[1:]]
    with pytest.raises(OutputExistsError, match=r"boat: prompt was 'a red boat', now 'a big boat'.*--force"):
        run(model, out, *changed)
    assert_complete(out, whole)
    assert run(model, out, *changed, remake=True) == (1, 3, 0)
    assert read_recipe(out / "boat.png").prompt == "a big boat"
    with pytest.raises(OutputExistsError, match="a batch as png"):
        run(model, out, form="webp")


def test_rows_may_be_added(model, whole, tmp_path):
    assert run(model, tmp_path, *ROWS[:1]) == (1, 0, 0)
    assert run(model, tmp_path, *ROWS[1:]) == (3, 0, 0)
    assert run(model, tmp_path) == (0, 4, 0)
    assert_complete(tmp_path, whole)


def test_two_runs_do_not_mix(model, tmp_path):
    with Output(tmp_path).locked(), pytest.raises(OutputError, match="in use by another run"):
        run(model, tmp_path)


def test_the_pipeline_is_borrowed_meanwhile(model, tmp_path):
    seen: list[Exception] = []

    def on_news(news: News) -> None:
        if news.progress is not None and news.progress.stage == "draft" and not seen:
            with pytest.raises(BusyError) as caught:
                model("a boat", **TINY)
            seen.append(caught.value)

    run(model, tmp_path, ROWS[0], on_news=on_news)
    assert seen


@pytest.mark.parametrize("stage", ["draft", "refine"])
def test_ctrl_c_leaves_a_state_to_go_on_from(model, whole, tmp_path, stage):
    def stop(news: News) -> None:
        if news.progress is not None and news.progress.stage == stage and news.summary.made:
            raise KeyboardInterrupt

    threads = threading.active_count()
    # the first picture is made safe by another thread, so the stop comes in the second or a later one
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path, *ROWS, {"prompt": "a big lake", "num_images": 8}, on_news=stop)
    assert threading.active_count() <= threads
    assert 1 <= len(manifest(tmp_path)) < 12
    assert sorted(files(tmp_path)) == sorted(entry["path"] for entry in manifest(tmp_path))
    run(model, tmp_path)
    assert {name: data for name, data in files(tmp_path).items() if not name[0].isdigit()} == files(whole)


def test_preparing_asks_for_the_device_once(model, monkeypatch, tmp_path):
    asked, told = [], Model.device.fget
    monkeypatch.setattr(Model, "device", property(lambda self: asked.append(1) or told(self)))
    assert len(prepare(model.model, request(), Output(tmp_path / "new")).todo) > 1
    assert asked == [1]


def test_prepare_changes_nothing(model, whole, tmp_path):
    out = copied(whole, tmp_path)
    (out / "boat.png").write_bytes(b"damaged")
    (out / ".x.png.0123456789ab.part").touch()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    prepared = prepare(model.model, request(), Output(out))
    assert [task.id for task in prepared.todo] == ["boat"]
    assert prepared.bytes_needed == 3 * 32 * 32 + 8192
    assert prepared.bytes_free
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_other_image_formats(model, tmp_path):
    for form in ("webp", "jpg"):
        assert run(model, tmp_path / form, ROWS[0], form=form) == (1, 0, 0)
        assert read_recipe(tmp_path / form / f"boat.{form}").seed == 7


def test_news_of_every_picture(model, tmp_path):
    news: list[News] = []
    made: list[int] = []

    def on_news(one: News) -> None:
        news.append(one)
        made.append(one.summary.made)

    run(model, tmp_path, *ROWS, {"prompt": ""}, on_news=on_news)
    assert [one.entry.id for one in news if one.entry] == IDS
    assert {one.progress.stage for one in news if one.progress} >= {"draft", "refine", "decode"}
    assert made == sorted(made)
    assert news[-1].summary.failed == 1
