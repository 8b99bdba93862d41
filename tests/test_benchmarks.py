"""The scripts of benchmarks/ run; what they measure is recorded, not tested."""

from __future__ import annotations

import json
from typing import Any

import pytest
from benchmarks import batch_ray, batch_throughput

from conftest import make_fast, make_pipe
from mrflow import MrFlow


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


def test_seconds_between_pictures_leave_the_start_out():
    watch = batch_ray.Watch(saved=[10.0, 12.0, 16.0], stages=[{"draft": 1.0, "refine": 0.5}] * 3)
    described = watch.describe()
    assert (described["start"], described["between_pictures"], described["total"]) == (10, 3, 16)
    assert (described["drafting"], described["finishing"]) == (1, 0.5)
