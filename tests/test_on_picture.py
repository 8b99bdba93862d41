"""Pictures are handed over, and written, as soon as each is finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import make_fast, make_pipe
from mrflow import MrFlow, load_image, read_recipe
from mrflow.cli.loading import ModelOptions
from mrflow.cli.progress import StageBars
from mrflow.drafts import Result
from mrflow.images import pixels_sha256
from support.cli import invoke

PROMPTS = ["a red boat", "a lake at dusk", "a big house"]

VERBS: dict[str, Callable[..., Result]] = {
    "call": lambda fast, **given: fast(PROMPTS, seed=[3, 4, 5], keep_upscaled=True, **given),
    "native": lambda fast, **given: fast.native(PROMPTS, seed=[3, 4, 5], **given),
    "finish": lambda fast, **given: fast.finish(fast.draft(PROMPTS, seed=[3, 4, 5]), **given),
    "enhance": lambda fast, **given: fast.enhance(
        [draft.image for draft in fast.draft(PROMPTS, seed=[3, 4, 5])], PROMPTS, seed=[3, 4, 5], **given
    ),
}


@pytest.mark.parametrize("verb", list(VERBS))
def test_each_picture_is_handed_over_before_the_next_batch_begins(verb: str) -> None:
    """Batches of two: the first two come between them, with what the result will hold of each."""
    fast = make_fast(make_pipe(), batch_size=2)
    seen: list[Any] = []
    alone: dict[int, Result] = {}

    def take(number: int, result: Result) -> None:
        seen.append(number)
        alone[number] = result

    def hear(news: Any) -> None:
        if news.stage == "decode" and news.step == news.steps:
            seen.append(f"batch {news.batch}")

    result = VERBS[verb](fast, callback=hear, on_picture=take)
    assert seen == ["batch 1", 0, 1, "batch 2", 2]
    for number, one in alone.items():
        assert [image.tobytes() for image in one.images] == [result.images[number].tobytes()]
        assert one.recipes == [result.recipes[number]]
        assert one.recipes[0].pixels_sha256 == pixels_sha256(one.images[0])
        assert list(one.drafts) == list(result.drafts[number : number + 1])
        assert [image.tobytes() for image in one.upscaled] == [
            image.tobytes() for image in result.upscaled[number : number + 1]
        ]
        assert 0 < one.seconds["decode"] <= result.seconds["decode"]
    assert len(result.upscaled) == (3 if verb == "call" else 0)
    assert [recipe.seed for recipe in result.recipes] == [3, 4, 5]


def test_what_it_raises_ends_the_call_and_gives_the_pipeline_back(fast: MrFlow) -> None:
    scheduler, taken = fast.pipe.scheduler, list[int]()

    def full(number: int, _result: Result) -> None:
        taken.append(number)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        fast(PROMPTS, seed=1, on_picture=full)
    assert taken == [0]
    assert fast.pipe.scheduler is scheduler
    assert len(fast("a lake", seed=1).images) == 1


@pytest.mark.parametrize(
    ("arguments", "stage"),
    [
        (["generate", "a red boat", "-n", "3", "--stages"], "refine"),
        (["generate", "a red boat", "-n", "3", "--native"], "draft"),
        (["finish", "d-1.png", "d-2.png", "d-3.png", "--stages"], "refine"),
        (["enhance", "d-1.png", "d-2.png", "d-3.png", "--prompt", "a red boat"], "refine"),
    ],
)
@pytest.mark.parametrize("ended", [KeyboardInterrupt(), RuntimeError("out of luck")])
def test_what_is_finished_stays_when_a_command_ends_early(
    arguments: list[str], stage: str, ended: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third picture never comes: two are whole, nothing else lies beside them, and stderr says so."""
    monkeypatch.chdir(tmp_path)
    fast = make_fast(make_pipe())
    monkeypatch.setattr(ModelOptions, "load", lambda self: fast)
    for seed in (1, 2, 3):
        fast.draft("a red boat", seed=seed)[0].save(f"d-{seed}.png")

    def hear(self: StageBars, news: Any) -> None:
        if news.stage == stage and news.batch == 3:
            raise ended

    monkeypatch.setattr(StageBars, "__call__", hear)
    Path("out").mkdir()
    result = invoke([*arguments, "--out", "out/{index}.png", *(["--seed", "1"] * ("-n" in arguments))])
    assert result.exit_code == (130 if isinstance(ended, KeyboardInterrupt) else 1)
    assert result.stdout == ""
    assert "2 of 3 pictures are finished and kept; the last is out/2.png" in " ".join(result.stderr.split())
    made = sorted(path.name for path in Path("out").iterdir())
    kept = [name for name in made if "-" not in name]
    assert kept == ["1.png", "2.png"]
    beside = {"generate": ["draft", "upscaled"], "finish": ["upscaled"]}.get(arguments[0], [])
    labels = beside if "--stages" in arguments else []
    assert sorted({*made} - {*kept}) == sorted(f"{k}-{label}.png" for k in (1, 2) for label in labels)
    for name in kept:
        assert read_recipe(f"out/{name}").pixels_sha256 == pixels_sha256(load_image(f"out/{name}"))


def test_json_names_all_pictures_in_the_order_they_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ModelOptions, "load", lambda self: make_fast(make_pipe(), batch_size=2))
    result = invoke(["generate", *PROMPTS, "--seed", "1", "--json"])
    assert result.exit_code == 0, result.stderr
    assert [entry["recipe"]["prompt"] for entry in json.loads(result.stdout)["pictures"]] == PROMPTS
