"""What version 0.1.0 wrote is read, finished, replayed and resumed: drafts, pictures, a plan, half of a batch."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mrflow import Draft, MrFlow, Plan, get_plan, load_image, read_recipe, vista
from mrflow.batch.output import Output
from mrflow.batch.run import run_batch
from mrflow.batch.tasks import RowDefaults, read_request
from mrflow.errors import OutputExistsError
from mrflow.plan import named_plan
from mrflow.prompt_rows import read_rows

OLD = Path(__file__).parent / "fixtures" / "0.1.0"
PLAN = replace(get_plan("2+1"), refine_sigma=0.2)


@pytest.fixture(scope="module")
def fast() -> MrFlow:
    """Return vista, guided by default as it was then: by 3."""
    usual = vista.DEFAULTS["vista"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vista.DEFAULTS, "vista", replace(usual, plan=replace(usual.plan, true_cfg_scale=3.0)))
        return MrFlow.from_pretrained("vista")


@pytest.fixture
def out(fast: MrFlow, tmp_path: Path) -> Path:
    """Return a copy of the batch, as if the model had stayed the same."""
    copy = Path(shutil.copytree(OLD / "batch", tmp_path / "batch"))
    manifest = copy / "manifest.jsonl"
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines = [json.dumps({**entry, "revision": fast.model.revision}) + "\n" for entry in entries]
    manifest.write_text("".join(lines))
    return copy


def resume(fast: MrFlow, out: Path, plan: Plan) -> tuple[int, int, int]:
    request = read_request(read_rows(OLD / "prompts.jsonl"), RowDefaults(width=64, height=64))
    done = run_batch(fast, request, Output(out), plan)
    assert done.left == done.lost == 0
    return done.made, done.skipped, done.failed


def test_an_unfinished_batch_goes_on(fast: MrFlow, out: Path) -> None:
    before = (out / "manifest.jsonl").read_text()
    assert resume(fast, out, PLAN) == (2, 2, 0)
    after = (out / "manifest.jsonl").read_text()
    assert after.startswith(before)  # what was there is neither made nor told again
    entries = {entry["id"]: entry for entry in map(json.loads, after.splitlines())}
    assert list(entries) == ["first", "second", "000003", "fourth"]
    # of another version are the words, not the meaning
    plans = {id: Plan.from_dict(entry["plan"]) for id, entry in entries.items()}
    assert plans["fourth"] == plans["000003"] == fast.model.resolve_plan(PLAN)
    assert plans["first"] == replace(plans["fourth"], noise="own")  # as it was made
    assert plans["second"] == replace(fast.model.resolve_plan(get_plan("3+1")), noise="own")
    for id in ("first", "second"):
        assert (out / f"{id}.png").read_bytes() == (OLD / "batch" / f"{id}.png").read_bytes()
        assert read_recipe(out / f"{id}.png").plan == plans[id]
    assert load_image(out / "fourth.png").size == (64, 64)
    assert resume(fast, out, PLAN) == (0, 4, 0)


def test_another_plan_is_still_seen(fast: MrFlow, out: Path) -> None:
    with pytest.raises(OutputExistsError, match=r"such as first: refine_sigma was 0\.2, now 0\.16"):
        resume(fast, out, replace(PLAN, refine_sigma=0.16))


def test_a_tuned_plan_means_what_it_meant() -> None:
    assert named_plan(str(OLD / "plan.json")) == Plan(
        steps=8, refine_sigma=0.2, true_cfg_scale=3.0, guidance_stop=0.5, noise="own"
    )


@pytest.mark.parametrize("name", ["staged", "native", "finished", "enhanced"])
def test_pictures_are_replayed(fast: MrFlow, name: str) -> None:
    recipe = read_recipe(OLD / f"{name}.png")
    given = load_image(OLD / "native.png") if name == "enhanced" else None
    again = fast.replay(recipe, given)
    assert again.images[0].size == load_image(OLD / f"{name}.png").size == recipe.size
    told = recipe.differences(again.recipes[0])
    # the machine, the libraries and the weights may be others by now; nothing that a caller decides may be
    allowed = {"pixels_sha256", "input_sha256", "revision", "upscaler_sha256", "threads", "device", "dtype"}
    assert {each for each in told if not each.startswith("versions.")} <= allowed


def test_a_draft_is_read_and_finished(fast: MrFlow) -> None:
    draft = Draft.from_image(OLD / "draft.png")
    recipe = fast.finish(draft).recipes[0]
    old = read_recipe(OLD / "finished.png")
    assert (recipe.prompt, recipe.seed, recipe.size, recipe.plan) == (old.prompt, old.seed, old.size, old.plan)
    assert (recipe.mode, recipe.input_sha256) == ("finish", old.input_sha256)
