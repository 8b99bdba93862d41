"""Comparing on a tiny pipeline: turns, what is kept and taken up again, and the figures against closed forms."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import make_fast, make_pipe
from mrflow import MrFlow
from mrflow.bench.compare import Course, count_runs, missing, run_turns, steps_of_equal_time
from mrflow.bench.ledger import EVERY, Ledger, Run, folder_name
from mrflow.bench.measurements import Examiner
from mrflow.bench.methods import Method, read_methods
from mrflow.bench.prompts import Question
from mrflow.bench.report import finest_part, write_report
from mrflow.bench.scores import complete_prompts, score
from mrflow.errors import OutputError, RequestError
from mrflow.images import to_pil
from mrflow.metrics.frechet import Gaussian, Renders
from mrflow.metrics.pixels import fine_energy
from mrflow.vista.grammar import ATTRIBUTES

TEXTS = ["native:3", "2+1", "2+0"]
QUESTIONS = [Question("a red boat", {"time": "noon"}), Question("a blue house", {"time": "dawn"})]
HEAD = {
    "format": 1,
    "environment": {
        **{"device_name": "a <tiny> CPU", "device": "cpu", "dtype": "float32", "threads": 1},
        **{"versions": {"torch": "2"}, "commit": None},
    },
    "model": {"name": "tiny", "revision": None, "upscaler": "bicubic"},
    "size": [64, 64],
    "equal_time": {"method": "2+1", "steps": 3},
}


class Seer:
    """An inspector for whom it is always noon."""

    def name(self, images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images), len(ATTRIBUTES)), 1)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


def course(texts: list[str] = TEXTS, seeds: int = 2) -> Course:
    return Course(methods=read_methods(texts), questions=QUESTIONS, seeds=seeds, seed=10)


def open_ledger(folder: Path, made: Course) -> Ledger:
    return Ledger(folder, {**HEAD, **made.to_dict(), "methods": [m.name for m in made.methods]})


def go_on(fast: MrFlow, made: Course, ledger: Ledger, on_run=lambda name: None) -> None:
    run_turns(fast, made, ledger, missing(made, ledger), (64, 64), on_run)


@pytest.fixture(scope="module")
def fast() -> MrFlow:
    return make_fast(make_pipe())


@pytest.fixture(scope="module")
def compared(fast, tmp_path_factory) -> tuple[Course, Ledger, list[str]]:
    made, names = course(), []
    ledger = open_ledger(tmp_path_factory.mktemp("compare"), made)
    go_on(fast, made, ledger, names.append)
    return made, ledger, names


def test_methods_take_turns_and_who_begins_rotates(compared) -> None:
    made, ledger, names = compared
    assert names == ["warm up"] * 3 + [
        *("native:3", "2+1", "2+0", "2+1", "2+0", "native:3", "2+0", "native:3", "2+1", "native:3", "2+1", "2+0")
    ]
    assert [(question.prompt, seed) for question, seed in made.items] == [
        *(("a red boat", 10), ("a red boat", 11), ("a blue house", 12), ("a blue house", 13))
    ]
    assert missing(made, ledger) == []
    assert complete_prompts(made, ledger) == [0, 1]


def test_each_picture_is_the_methods_own(fast, compared) -> None:
    made, ledger, _ = compared
    for method in made.methods:
        own = method.run(fast, prompt="a blue house", seed=13, width=64, height=64).images[0]
        assert np.array_equal(np.asarray(Image.open(ledger.picture(method.name, 3))), np.asarray(own))


def test_a_stopped_comparison_goes_on(fast, tmp_path) -> None:
    made = course(seeds=1)

    def stop(name: str, left=[6]) -> None:  # noqa: B006
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go_on(fast, made, open_ledger(tmp_path, made), stop)
    with open(tmp_path / "runs.jsonl", "a") as file:
        file.write('{"method": "2+0", "it')  # the machine went down while this was written
    ledger = open_ledger(tmp_path, made)
    assert [(run.method, run.item) for run in ledger.runs] == [("native:3", 0), ("2+1", 0)]
    turns = [(item, [method.name for method in group]) for item, group in missing(made, ledger)]
    # the baseline runs again beside what is timed now
    assert turns == [(0, ["native:3", "2+0"]), (1, ["2+1", "2+0", "native:3"])]
    assert count_runs(missing(made, ledger)) == 5 + 3
    before = ledger.picture("native:3", 0).read_bytes()
    go_on(fast, made, ledger)
    assert ledger.picture("native:3", 0).read_bytes() == before
    again = open_ledger(tmp_path, made)
    assert missing(made, again) == []
    assert [run.session for run in again.of("native:3", 0)] == [1, 2]
    scores = score(made, again, Examiner(None, {}), None, lambda name: None)
    assert [method["speed"]["pairs"] for method in scores["methods"]] == [2, 2, 2]


def test_methods_can_be_added_and_nothing_else_changed(fast, compared) -> None:
    made, ledger, _ = compared
    more = course([*TEXTS, "native:1"])
    added = open_ledger(ledger.folder, more)
    assert {method.name for _, group in missing(more, added) for method in group} == {"native:1", "native:3"}
    with pytest.raises(RequestError, match="begun with another seeds"):
        open_ledger(ledger.folder, course(seeds=3))
    (ledger.folder / "course.json").write_text(json.dumps({**HEAD, **made.to_dict(), "methods": TEXTS}))


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_a_foreign_folder_is_left_alone(tmp_path, text) -> None:
    (tmp_path / "course.json").write_text(text)
    with pytest.raises(OutputError, match="no comparison"):
        open_ledger(tmp_path, course())
    assert (tmp_path / "course.json").read_text() == text


@pytest.mark.parametrize("text", ["{}\n", "[]\n", '{"method": 1}\n', "\x00\n"])
def test_damaged_lines_are_refused(tmp_path, text) -> None:
    open_ledger(tmp_path, course())
    (tmp_path / "runs.jsonl").write_text(text)
    with pytest.raises(OutputError, match="is damaged"):
        open_ledger(tmp_path, course())


def test_a_method_without_memory_is_said_and_the_others_go_on(fast, tmp_path, monkeypatch) -> None:
    run = Method.run

    def hungry(self, *arguments, **settings):
        if self.name == "2+1":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, *arguments, **settings)

    monkeypatch.setattr(Method, "run", hungry)
    made = course(seeds=1)
    ledger = open_ledger(tmp_path, made)
    go_on(fast, made, ledger)
    scores = score(made, ledger, Examiner(None, {}), None, lambda name: None)
    assert scores["methods"][1]["failed"] == "out of memory"
    assert "quality" not in scores["methods"][1]
    assert scores["methods"][2]["quality"]["composite"]["value"] is not None


def test_figures_against_closed_forms(tmp_path) -> None:
    """Pictures painted for it: the second method is the first with half the contrast, and half as slow."""
    made = Course(methods=read_methods(["native:3", "native:2"]), questions=QUESTIONS)
    ledger = open_ledger(tmp_path, made)
    rng = torch.Generator().manual_seed(0)
    for item in range(2):
        pixels = 0.25 + 0.5 * torch.rand(1, 3, 64, 64, generator=rng)
        softer = pixels.mean((2, 3), keepdim=True) * 0.5 + pixels * 0.5
        for name, row, seconds in (("native:3", pixels, 3.0), ("native:2", softer, 1.5)):
            stages = {"decode": [float(255 * row.mean())] * 3 + [0.0]}
            run = Run(method=name, item=item, session=1, seconds={"total": seconds, "draft": 1.0}, moments=stages)
            ledger.add(run, to_pil(row)[0])
    gaussian = Gaussian.of(np.random.default_rng(0).normal(0, 1, (50, 3)))
    renders = Renders(gaussian, gaussian, {})
    scores = score(made, ledger, Examiner(Seer(), {}), renders, lambda name: None)  # type: ignore[arg-type]
    base, other = scores["methods"]
    assert other["speed"]["speedup"] == {"value": 2, "low": 2, "high": 2}
    assert other["speed"]["seconds"]["total"]["median"] == 1.5
    quality = other["quality"]
    assert quality["contrast"]["value"] == pytest.approx(0.5, abs=0.01)
    assert quality["sharpness"]["value"] == pytest.approx(0.25, abs=0.01)
    assert quality["texture"]["value"] == pytest.approx(0.25, abs=0.01)
    assert quality["found"]["time"]["value"] == 0.5  # noon of noon and dawn
    assert set(quality["found"]) == {"time", "scene", "all"}  # nothing else is asked
    assert quality["composite"]["value"] == pytest.approx(0.5 * 0.25 * 0.5, rel=0.05)
    assert base["quality"]["composite"]["value"] == 0.5
    assert quality["composite_change"]["value"] == pytest.approx(0.5 * (0.25 * 0.5 - 1), rel=0.05)
    assert quality["found_change"]["all"]["value"] == 0
    assert all(abs(value["value"]) < 1 for value in quality["color"].values())
    assert np.nanmedian([value for value in quality["spectrum"] if value]) == pytest.approx(0.25, rel=0.05)
    assert 10 < quality["psnr"]["value"] < 30
    assert (base["quality"]["psnr"], base["quality"]["diversity"]) == (None, None)
    assert quality["frechet"] is quality["patch_frechet"] is None  # two pictures have no covariance to speak of
    assert base["quality"]["composite_change"] is None


def test_alternatives_are_held_against_the_first_plan_in_pairs(tmp_path) -> None:
    texts = ["native:3", "2+1:upscaler=bicubic", "2+1", "2+0"]
    questions = [Question(f"a boat {number}", {"time": "noon"}) for number in range(32)]
    made = Course(methods=read_methods(texts), questions=questions)
    assert made.first_plan is made.methods[2]  # the one before has another upscaler
    ledger = open_ledger(tmp_path, made)
    rng = torch.Generator().manual_seed(0)
    for item in range(32):
        pixels = torch.rand(1, 3, 64, 64, generator=rng)
        soft = 0.8 * pixels + 0.1 * torch.rand(1, 1, 1, 1, generator=rng)
        for name, row in zip(texts, (pixels, pixels, soft, soft), strict=True):
            ledger.add(Run(method=name, item=item, session=1, seconds={"total": 1.0}, moments={}), to_pil(row)[0])
    gaussian = Gaussian.of(np.random.default_rng(0).normal(0, 1, (50, 3)))
    renders = Renders(gaussian, gaussian, {})
    scores = score(made, ledger, Examiner(Seer(), {}), renders, lambda name: None)  # type: ignore[arg-type]
    assert scores["plan"] == "2+1"
    native, bicubic, plan, unrefined = (row["quality"] for row in scores["methods"])
    assert plan["composite_to_plan"] is None
    assert "to_plan" not in plan["frechet"]
    assert unrefined["composite_to_plan"] == {"value": 0, "low": 0, "high": 0}  # the same pictures
    assert bicubic["composite_to_plan"] == native["composite_to_plan"]

    def turned(change: dict[str, float]) -> list[float]:
        return [-change["value"], -change["high"], -change["low"]]

    assert list(native["composite_to_plan"].values()) == pytest.approx(turned(plan["composite_change"]))
    for name in ("frechet", "patch_frechet"):
        assert unrefined[name]["to_plan"] == {"value": 0, "low": 0, "high": 0}
        assert list(native[name]["to_plan"].values()) == pytest.approx(turned(plan[name]["change"]))
        assert abs(plan[name]["change"]["value"]) > 1e-3
        assert "change" not in native[name]


def test_a_grid_is_as_sharp_as_noise_and_not_alike(tmp_path) -> None:
    made = Course(methods=read_methods(["native:3", "native:2"]), questions=QUESTIONS)
    ledger = open_ledger(tmp_path, made)
    rng = torch.Generator().manual_seed(0)
    for item in range(2):
        noise = torch.rand(1, 3, 64, 64, generator=rng) - 0.5
        grid = noise[..., ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3)
        grid = grid * (fine_energy(noise) / fine_energy(grid)).sqrt().float()
        for name, row in (("native:3", noise), ("native:2", grid)):
            run = Run(method=name, item=item, session=1, seconds={"total": 1.0}, moments={})
            ledger.add(run, to_pil(row * 0.3 + 0.5)[0])
    base, other = score(made, ledger, Examiner(None, {}), None, lambda name: None)["methods"]
    assert other["quality"]["sharpness"]["value"] == pytest.approx(1, abs=0.03)
    assert other["quality"]["texture"]["value"] < 0.5
    assert base["quality"]["texture"]["value"] == 1


def test_a_report_holds_everything_and_fetches_nothing(compared) -> None:
    made, ledger, _ = compared
    scores = score(made, ledger, Examiner(Seer(), {}), None, lambda name: None)  # type: ignore[arg-type]
    scores["inspector"] = {"time": 0.987}
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    paths = write_report(ledger.folder, made, ledger, HEAD, scores, show=1)
    assert [path.name for path in paths] == ["report.html", "tradeoff.png", "spectrum.png", "scores.json"]
    page = paths[0].read_text()
    assert set(re.findall(r'\b(?:src|href)\s*=\s*"(.{5})', page)) == {"data:"}
    assert not re.search(r"url\(|@import|\bhref=", page)
    assert "<script" not in page
    assert "a &lt;tiny&gt; CPU" in page
    assert page.count("<figure>") == 3
    for text in ("a red boat", "2+0", "time 0.987", "times faster", "upscale: red", "native:3 is the native run"):
        assert text in page
    for row in scores["methods"]:
        speed = row["speed"]["speedup"]
        assert f"{speed['value']:.2f}<small>{speed['low']:.2f} to {speed['high']:.2f}" in page
    assert set(scores["methods"][1]["drift"]) == {"upscale", "refine"}
    assert scores["methods"][0]["quality"]["diversity"]["value"] > 0
    write_report(ledger.folder, made, ledger, HEAD, scores, show=0)  # over the earlier one
    assert "<figure>" not in paths[0].read_text()


def test_what_users_wrote_is_text_on_the_page(tmp_path) -> None:
    hostile = '"><script>alert(1)</script>'
    methods = [Method(name=f"native {hostile}"), Method(name=f"failed {hostile}")]
    made = Course(methods=methods, questions=[Question(f"a boat {hostile}")])
    ledger = open_ledger(tmp_path, made)
    picture = to_pil(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))[0]
    ledger.add(Run(method=methods[0].name, item=0, session=1, seconds={"total": 1.0}), picture)
    ledger.add(Run(method=methods[1].name, item=EVERY, session=1, failed=f"no memory {hostile}"))
    head = {**HEAD, "model": {**HEAD["model"], "name": f"tiny {hostile}"}}
    scores = {**score(made, ledger, Examiner(None, {}), None, lambda name: None), "inspector": None}
    page = write_report(tmp_path, made, ledger, head, scores, show=1)[0].read_text()
    assert "<script" not in page
    for words in ("tiny", "native", "failed", "no memory", "a boat"):
        assert f"{words} &#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<figure>") == 1


def test_a_report_without_pictures_has_no_figures(tmp_path) -> None:
    made = course()
    ledger = open_ledger(tmp_path, made)
    scores = {**score(made, ledger, Examiner(None, {}), None, lambda name: None), "inspector": None}
    assert [row["failed"] for row in scores["methods"]] == ["not measured"] * 3
    paths = write_report(tmp_path, made, ledger, HEAD, scores, show=3)
    assert [path.name for path in paths] == ["report.html", "scores.json"]
    assert "not measured" in paths[0].read_text()


def test_hostile_names_stay_in_their_folder(tmp_path) -> None:
    names = ["../../a", "a/b", "a\\b", "native:25", "native-25", "x" * 300]
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    assert not any("/" in name or name.startswith(".") or len(name) > 80 for name in folders)
    assert folder_name("12+1") == "12+1"
    assert Run(method="a", item=EVERY, session=1, failed="x").item == -1


def test_the_part_with_most_detail_is_enlarged() -> None:
    image = Image.new("RGB", (64, 64), "grey")
    checks = Image.fromarray(np.indices((16, 16)).sum(0).astype(np.uint8) % 2 * 255)
    image.paste(checks, (40, 16))
    assert finest_part(image) == (40, 16, 56, 32)
    assert finest_part(Image.new("RGB", (3, 2)))[2:] <= (3, 2)


def test_native_steps_of_equal_time_are_rounded_up(monkeypatch) -> None:
    class Result:
        def __init__(self, seconds: float) -> None:
            self.seconds = {"total": seconds}

    def run(self, fast, **settings):
        return Result(0.5 + 0.1 * self.steps if self.plan is None else 1.55)

    monkeypatch.setattr(Method, "run", run)
    (plan,) = read_methods(["12+1"])
    runs: list[str] = []
    assert steps_of_equal_time(make_fast(make_pipe()), plan, {}, runs.append) == 11  # 10.5 steps
    assert len(runs) == 11


@pytest.mark.parametrize("seeds", [0, 101])
def test_courses_are_checked(seeds) -> None:
    with pytest.raises(RequestError, match="seeds is"):
        course(seeds=seeds)
