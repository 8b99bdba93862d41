"""The scripts of benchmarks/ run; what they measure is recorded, not tested."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import numpy as np
import pytest
from benchmarks import batch_ray, batch_throughput, full_size, same_seed, solvers
from benchmarks import load as load_script
from PIL import Image

from conftest import make_fast, make_pipe
from mrflow import MrFlow
from mrflow.errors import RequestError
from mrflow.files import encode_image
from support.serving import serving


def test_the_throughput_of_batches(monkeypatch, capsys):
    monkeypatch.setattr(MrFlow, "from_pretrained", lambda name: make_fast(make_pipe()))
    monkeypatch.setattr(batch_throughput, "make_prompts", lambda count: ["a red boat"] * count)
    batch_throughput.main(["--pictures", "3", "--rounds", "2"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(report["ways"]) == ["loop", "one lane", "lanes"]
    assert report["same_files"]
    assert report["ways"]["loop"]["speedup"] == {"median": 1, "low": 1, "high": 1}
    rates = report["ways"]["lanes"]["pictures_per_second"]
    assert 0 < rates["low"] <= rates["median"] <= rates["high"]
    assert len(report["ways"]["lanes"]["seconds"]) == 2


def test_how_near_solvers_come(monkeypatch, capsys):
    monkeypatch.setattr(MrFlow, "from_pretrained", lambda name, batch_size: make_fast(make_pipe()))
    asked = [solvers.Question("a red boat", {"time": "noon"})]
    monkeypatch.setattr(solvers, "read_questions", lambda path, limit: asked * limit)
    solvers.main(["--prompts", "2", "--steps", "4", "--many", "20"])
    many, *few = json.loads(capsys.readouterr().out.splitlines()[-1])["drafts"]
    assert (many["steps"], many["distance"]) == (20, 0)
    assert [each["solver"] for each in few] == ["own", "dpm++2m", "unipc"]
    assert all(each["distance"] > 0 and 0 <= each["found"] <= each["of"] == 2 for each in few)


def test_how_much_nearer_the_same_seed_is(tmp_path, capsys):
    """Pictures off by 4 levels and by 8: 20 log10(255 / d) dB, at any size; prompts that lack one are out."""
    (tmp_path / "course.json").write_text(json.dumps({"methods": ["native", "12+1", "12+1:noise=own"]}))
    native = np.random.default_rng(0).integers(20, 200, (32, 32, 3), np.uint8)
    for name, off in (("native", 0), ("12+1", 4), ("12+1:noise=own", 8)):
        for prompt in range(3 if off else 2):
            path = same_seed.picture_file(tmp_path, name, prompt)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(native + np.uint8(off)).save(path)
    same_seed.main([str(tmp_path)])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["prompts"] == 2
    expected = {"12+1": 20 * math.log10(255 / 4), "12+1:noise=own": 20 * math.log10(255 / 8)}
    for name, value in (expected | {"gain": 20 * math.log10(2)}).items():
        for figure in ("psnr", "psnr_averaged_down"):
            assert report["figures"][name][figure]["value"] == pytest.approx(value, abs=0.02)
    with pytest.raises(RequestError, match=r"has no method 3\+1"):
        same_seed.main([str(tmp_path), "--method", "3+1"])


def test_a_speed_up_is_that_of_the_medians():
    described = batch_throughput.describe([1.0, 2.0, 4.0], [4.0, 4.0, 4.0], 8)
    assert described["pictures_per_second"] == {"median": 4, "low": 2, "high": 8}
    assert described["speedup"] == {"median": 2, "low": 1, "high": pytest.approx(4)}


def test_what_ray_adds_to_a_picture(monkeypatch, capsys):
    """Ray itself is left out: what it costs is recorded, the report is tested."""
    monkeypatch.setattr(MrFlow, "from_pretrained", lambda name, device: make_fast(make_pipe()))
    monkeypatch.setattr(batch_ray, "make_rows", lambda count: [{"prompt": "a red boat"}] * count)
    run_batch = batch_ray.run_batch

    def without_ray(*given: Any, cluster: Any = None, **options: Any) -> Any:
        return run_batch(*given, **options)

    monkeypatch.setattr(batch_ray, "run_batch", without_ray)
    batch_ray.main(["--pictures", "3", "--draft-workers", "2"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["same_files"]
    assert report["workers"] == {"drafting": 2, "finishing": 1}
    ways = report["ways"]
    assert all(way["start"] < way["total"] and way["drafting"] > 0 < way["finishing"] for way in ways.values())
    assert report["overhead_per_picture"] == pytest.approx(
        ways["ray"]["between_pictures"] - max(ways["ray"]["drafting"] / 2, ways["ray"]["finishing"])
    )


def test_the_start_and_what_was_drafted_meanwhile_are_left_out():
    stages = [{"draft": 9.0}, {"draft": 1.0, "refine": 0.5}, {"draft": 2.0, "refine": 0.5}]
    described = batch_ray.Watch(saved=[10.0, 10.5, 14.5], stages=stages).describe()
    assert (described["start"], described["between_pictures"], described["total"]) == (10, 4, 14.5)
    assert (described["drafting"], described["finishing"]) == (1.5, 0.5)


def test_load_loses_no_request_and_sees_the_pictures_made_alone():
    """Twelve clients at two servers of tiny pipelines, one with two workers and batches, one without."""
    options = load_script.parse(["--clients", "12", "--plan", "2+1"])

    def answers(**settings: Any) -> list[load_script.Answer]:
        with serving(**settings) as server:
            return asyncio.run(load_script.load(server.url, options))

    loaded, alone = answers(lanes=2), answers(draft_batch=1, finish_batch=1)
    figures = load_script.summary(loaded, 2.0, 3.0)
    assert (figures["pictures"], figures["refused_429"], figures["lost"]) == (12, 0, 0)
    assert (figures["pictures_per_second"], figures["processor_seconds_per_picture"]) == (6, 0.25)
    assert 0 < figures["p50_seconds"] <= figures["p95_seconds"]
    compared = load_script.compare([each.file for each in loaded], [each.file for each in alone])
    assert (compared["compared"], compared["different"]) == (12, 0)


def test_load_counts_what_is_refused_lost_and_different():
    def file(value: int) -> bytes:
        return encode_image(Image.fromarray(np.full((4, 4, 3), value, np.uint8)), ".png")

    answers = [load_script.Answer(200, 1.0, file(9)), load_script.Answer(429, 0.1), load_script.Answer(0, 9.0)]
    figures = load_script.summary(answers, 2.0, 3.0)
    assert (figures["pictures"], figures["refused_429"], figures["lost"]) == (1, 1, 1)
    assert load_script.compare([file(9), file(9), file(9), None], [file(9), file(10), file(12), file(9)]) == {
        "compared": 3,
        "equal": 1,
        "different": 1,
        "largest_difference": 3,
    }


def test_full_size_steps(monkeypatch, capsys, tmp_path):
    """A small transformer of the class stands in for the full size."""
    spec = full_size.read_architecture("flux2-klein-4b")
    small = spec["components"]["transformer"]["config"] | {"num_layers": 1, "num_single_layers": 1}
    spec["components"]["transformer"]["config"] = small
    spec["components"]["text_encoder"]["config"] |= {"hidden_size": 64, "intermediate_size": 64}
    small |= {"num_attention_heads": 2, "joint_attention_dim": 192}
    for module in ("benchmarks.full_size", "mrflow.costs"):
        monkeypatch.setattr(f"{module}.read_architecture", lambda _: spec)
    full_size.main(["flux2-klein-4b", "--size", "64", "--plan", "2+1", "--out", str(tmp_path / "report.json")])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert len(report["steps"]["draft"]["all"]) == 2
    assert report["ratio"]["counted"] > 1
    assert all(report["memory"][name] > 0 for name in ("measured", "counted"))
