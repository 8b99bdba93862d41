"""Plan files: what tune writes and every command reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrflow import Plan
from mrflow.bench.methods import read_methods
from mrflow.cli.planning import PlanOptions
from mrflow.errors import PlanError
from mrflow.plan import get_plan, named_plan, plan_to_json, read_plan

PLAN = Plan(steps=8, refine_sigma=0.2, guidance_stop=0.5)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tuned.json"
    path.write_text(plan_to_json(PLAN, {"prompts": 32}))
    return path


def test_a_plan_comes_back(file: Path) -> None:
    assert read_plan(file) == named_plan(f" {file} ") == PLAN
    assert named_plan("20+1") == Plan(steps=20)
    assert json.loads(file.read_text())["measured"] == {"prompts": 32}


def test_commands_take_the_file(file: Path) -> None:
    fast = type("Fast", (), {"model": type("Model", (), {"backbone": None, "defaults": None})})
    fast.model.backbone = type("Backbone", (), {"guidance_field": staticmethod(lambda pipe: "true_cfg_scale")})
    fast.pipe = None
    assert PlanOptions(plan=str(file)).resolve(fast) == PLAN  # type: ignore[arg-type]
    assert PlanOptions(plan=str(file), steps=6).resolve(fast).steps == 6  # type: ignore[arg-type]
    (method,) = read_methods([str(file)])
    assert method.plan == PLAN


def test_only_commands_read_files(file: Path) -> None:
    with pytest.raises(PlanError, match="There is no plan"):
        get_plan(str(file))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", 'holds no "plan"'),
        ('{"plan": 3}', 'holds no "plan"'),
        ('{"plan": {}}', "has format None"),
        ('{"format": 2, "plan": {}}', "has format 2"),
        ('{"format": 1, "plan": {"speed": 3}}', "no field 'speed'"),
        ('{"format": 1, "plan": {"steps": -1}}', "steps is -1"),
        ('{"format": 1, "plan": {"steps": "all"}}', "steps is 'all'"),
    ],
    ids=range(9),
)
def test_what_is_no_plan_file_is_refused(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(PlanError, match=words):
        named_plan(str(file))


@pytest.mark.parametrize("name", ["nowhere.json", ".json", "x" * 5000 + ".json", "\x00.json"], ids=range(4))
def test_a_missing_file_is_said(name: str) -> None:
    with pytest.raises(PlanError, match="There is no plan file"):
        named_plan(name)
