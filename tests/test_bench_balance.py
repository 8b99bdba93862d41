"""Workers of each stage, from a report: against a search by hand, and the recorded report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrflow.bench.balance import Cost, balance_workers, calculate, read_costs, split_workers
from mrflow.errors import RequestError
from support.cli import Result, invoke

RECORDED = Path(__file__).parents[1] / "benchmarks" / "bench-vista-cpu.json"


def cost(draft: float, finish: float) -> Cost:
    return Cost(method="12+1", width=1024, height=1024, batch=1, draft=draft, finish=finish)


def balance(*arguments: str, code: int = 0) -> Result:
    result = invoke(["balance", *arguments])
    assert result.exit_code == code, result.stderr
    return result


@pytest.mark.parametrize(
    ("draft", "finish", "workers"),
    [(3.0, 1.0, (3, 1)), (1.0, 1.0, (1, 1)), (2.0, 3.0, (2, 3)), (1.0, 4.0, (1, 4))],
)
def test_stages_in_whole_proportions_are_always_busy(draft, finish, workers):
    split = balance_workers(cost(draft, finish))
    assert (split.draft_workers, split.finish_workers) == workers
    assert split.busy == pytest.approx(1)
    assert split.pictures_per_second == pytest.approx(sum(workers) / (draft + finish))


def test_neither_stage_could_spare_a_worker():
    for workers in range(2, 12):
        split = split_workers(cost(2.7, 1.1), workers)
        assert split.draft_workers + split.finish_workers == workers
        others = [min(n / 2.7, (workers - n) / 1.1) for n in range(1, workers)]
        assert split.pictures_per_second == pytest.approx(max(others))
        assert 0 < split.busy <= 1


@pytest.mark.parametrize(
    ("draft", "finish"), [(1000.0, 1.0), (1.0, 1e6), (19.3, 1.0), (1.0, 1.037), (3.1416, 2.7183)]
)
def test_the_fewest_workers_that_are_busy(draft, finish):
    split = balance_workers(cost(draft, finish))
    workers = split.draft_workers + split.finish_workers
    assert split.busy >= 0.95
    assert all(split_workers(cost(draft, finish), fewer).busy < 0.95 for fewer in range(2, workers))
    assert workers <= 20


def test_two_stages_need_two_workers():
    with pytest.raises(RequestError, match="workers is 1"):
        split_workers(cost(1, 1), 1)


def test_a_batch_on_paper():
    one = cost(3.0, 1.0)
    paper = calculate(one, split_workers(one, 4), 2_500_000)
    assert (paper.commands, paper.files_per_folder, paper.shards) == (3, 1_000_000, 2500)
    assert paper.worker_hours == pytest.approx(2_500_000 * 4 / 3600)
    assert paper.days == pytest.approx(2_500_000 / 86400)
    assert (paper.put_requests, paper.get_requests) == (2_500_003, 2_500_000)
    assert calculate(one, split_workers(one, 4), 10).files_per_folder == 10


def test_the_recorded_report():
    report = json.loads(RECORDED.read_text())
    staged = [m for m in report["groups"][0]["methods"] if m["kind"] == "staged"]
    totals = {m["name"]: m["seconds"]["total"]["median"] for m in staged}
    costs = {each.method: each for each in read_costs(RECORDED)}
    assert {"12+1", "20+1"} <= set(costs) == set(totals)
    for name, each in costs.items():
        assert each.whole == pytest.approx(totals[name], rel=0.05)  # medians of stages need not add up
    assert costs["20+1"].draft > costs["12+1"].draft


def test_seconds_of_a_batch_are_divided_by_its_pictures(tmp_path):
    report = json.loads(RECORDED.read_text())
    report["groups"][0]["batch"] = 4
    (tmp_path / "r.json").write_text(json.dumps(report))
    assert read_costs(tmp_path / "r.json")[0].draft == pytest.approx(read_costs(RECORDED)[0].draft / 4)


def test_at_the_door():
    text = balance(str(RECORDED), "--workers", "6", "--pictures", "1e8").stdout
    cost = read_costs(RECORDED)[0]
    split = split_workers(cost, 6)
    title = f"12+1 at {cost.width}x{cost.height}, {split.draft_workers} + {split.finish_workers} workers"
    assert text.startswith(f"{title}\n    draft        {cost.draft:.3f} s\n")
    assert f"100,000,000 pictures, 20+1 at {cost.width}x{cost.height}" in text
    assert "100 of 1,000,000 rows at most" in text
    rows = json.loads(balance(str(RECORDED), "--json", "--pictures", "100").stdout)
    rows = rows["methods"]
    assert [row["method"] for row in rows] == [each.method for each in read_costs(RECORDED)]
    assert rows[0]["paper"]["pictures"] == 100


def test_lines_are_no_longer_than_the_terminal_and_end_between_words(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    whole = balance(str(RECORDED), "--pictures", "1e8").stdout
    monkeypatch.setenv("COLUMNS", "60")
    narrow = balance(str(RECORDED), "--pictures", "1e8").stdout
    assert max(map(len, narrow.splitlines())) <= 60 < max(map(len, whole.splitlines()))
    assert narrow.split() == whole.split()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no report"),
        ("[1]", "no report"),
        ('{"groups": 3}', "no report"),
        ('{"groups": []}', "no staged method"),
        ('{"groups": [{"methods": [{"kind": "native"}]}]}', "no staged method"),
        ('{"groups": [{"methods": [{"kind": "staged", "seconds": {"text": {"median": NaN}}}]}]}', "no report"),
        ("[" * 100_000, "no report"),
    ],
)
def test_what_is_no_report(tmp_path, content, words):
    (tmp_path / "r.json").write_text(content)
    (line,) = balance(str(tmp_path / "r.json"), code=2).stderr.strip().splitlines()
    assert words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pictures", "0"], "--pictures is 0"),
        (["--pictures", "1.5"], "--pictures is 1.5"),
        (["--pictures", "nan"], "--pictures is nan"),
        (["--pictures", "1e13"], "--pictures is"),
        (["--workers", "1"], "workers is 1"),
    ],
)
def test_numbers_that_make_no_sense(arguments, words):
    assert words in balance(str(RECORDED), *arguments, code=2).stderr


def test_a_report_that_is_missing():
    assert "missing.json cannot be read" in balance("missing.json", code=2).stderr
