"""docs/results.md holds what is recorded, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tools.write_results import PAGE, SECTIONS, results_page

from mrflow.errors import OutputError

ROOT = Path(__file__).parents[1]


def test_the_page_is_current() -> None:
    page = PAGE.read_text(encoding="utf-8")
    made = results_page(ROOT / "benchmarks", ROOT / "docs" / "images")
    assert page == made, "python -m tools.write_results"


def test_without_records_there_are_commands_and_no_figures(tmp_path: Path) -> None:
    page = results_page(tmp_path)
    files = {name: section for known, _ in SECTIONS for name, section in known.items()}
    assert page.count("Not recorded yet") == len(files)
    assert "|" not in page
    for heading, command in files.values():
        assert heading in page
        assert all(f"    {line}" in page for line in command.splitlines())


def test_recorded_figures_are_written_as_they_are(tmp_path: Path) -> None:
    place = {
        **{"device_name": "a CPU", "device": "cpu", "dtype": "float32", "threads": 2, "commit": None},
        "versions": {"torch": "2"},
    }
    value = {"value": 1.4321, "low": 1.3, "high": 1.5}
    row = {"method": "8+1", "times_faster": value, "composite": value, "change_of_composite": value, "prompts": 32}
    measured = {
        **{"environment": place, "model": {"name": "tiny"}, "size": [256, 256]},
        **{"reference": "12+1", "all": [row]},
    }
    (tmp_path / "tuned-vista-cpu.json").write_text(json.dumps({"format": 1, "plan": {}, "measured": measured}))
    page = results_page(tmp_path)
    assert "| 8+1 | 1.43 (1.30 to 1.50) | 1.432 (1.300 to 1.500) | +1.432 (+1.300 to +1.500) | 32 |" in page
    assert "commit unknown, 256x256; all changes are against 12+1." in page


def test_a_plain_script_is_written_beside_what_it_is_compared_with(tmp_path: Path) -> None:
    place = {
        **{"device_name": "a GPU", "device": "cuda", "dtype": "bfloat16", "threads": 2, "commit": "0" * 40},
        "versions": {"torch": "2"},
    }
    way = {
        "seconds": {"total": {"median": 2.0, "low": 1.5, "high": 2.5}},
        "outside_transformer": {"median": 0.0512, "low": 0.05, "high": 0.06},
    }
    report = {
        **{"environment": place, "model": "FLUX.1-dev, random weights", "size": [1024, 1024], "repeats": 5},
        **{"ways": {"12+1": way}, "speedup": {"12+1 over plain script": {"median": 1.4, "low": 1.3, "high": 1.5}}},
    }
    (tmp_path / "plain-script-flux-dev-cuda.json").write_text(json.dumps(report))
    page = results_page(tmp_path)
    assert "FLUX.1-dev, random weights on a GPU (cuda, bfloat16, 2 threads), torch 2" in page
    assert "| 12+1 | 2.000 (1.500 to 2.500) | 5.1 (5.0 to 6.0) |" in page
    assert "| 12+1 over plain script | 1.40 (1.30 to 1.50) |" in page


def test_a_broken_record_is_said(tmp_path: Path) -> None:
    (tmp_path / "bench-vista-cpu.json").write_text("[")
    with pytest.raises(OutputError, match="no recorded result"):
        results_page(tmp_path)
