"""The scripts of benchmarks/ run; what they measure is recorded, not tested."""

from __future__ import annotations

import json

import pytest
from benchmarks import batch_throughput

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
