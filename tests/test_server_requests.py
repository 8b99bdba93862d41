"""Requests: their fields for a plan's numbers come from the plan's own descriptions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from mrflow.plan import ABOUT
from mrflow.server.requests import DraftsBody, EditBody, FinishBody, GenerateBody, plan_numbers

IN_REQUESTS = {about.http: about for about in ABOUT.values() if about.http}
FULL: dict[str, Any] = {"prompt": "a boat"}


@pytest.mark.parametrize("body", [GenerateBody, EditBody, DraftsBody])
def test_every_number_with_a_name_for_http_is_an_optional_field(body: type[BaseModel]) -> None:
    schema = body.model_json_schema()
    assert set(IN_REQUESTS) <= set(schema["properties"])
    assert not {name for name, about in ABOUT.items() if about.http is None} & set(schema["properties"])
    for name, about in IN_REQUESTS.items():
        assert schema["properties"][name]["description"] == about.text
        assert name not in schema["required"]


def test_finishing_takes_the_numbers_of_what_comes_after_the_draft_alone() -> None:
    assert set(IN_REQUESTS) & set(FinishBody.model_fields) == {"refine_sigma", "lift", "color_guard", "tile"}


@pytest.mark.parametrize("name", [name for name, about in IN_REQUESTS.items() if about.kind is not str])
def test_numbers_keep_to_their_bounds(name: str) -> None:
    about = IN_REQUESTS[name]
    beyond = [about.low - 1, about.high + 1, *about.open, float("nan"), float("inf"), float("-inf"), "1", True]
    for value in beyond:
        with pytest.raises(ValidationError):
            GenerateBody(**FULL, **{name: value})
    for bound in {about.low, about.high} - set(about.open):
        given = plan_numbers(GenerateBody(**FULL, **{name: bound}))
        assert list(given.values()) == [bound]


@pytest.mark.parametrize("body", [GenerateBody, EditBody, FinishBody])
def test_words_may_stand_for_a_number(body: type[BaseModel]) -> None:
    full: dict[str, Any] = FULL if body is not FinishBody else {"drafts": ["a"]}
    for word in ("auto", "switch"):
        assert plan_numbers(body(**full, refine_sigma=word)) == {"refine_sigma": word}
    for wrong in ("best", "", ["best"], [1.0], 1.0):
        with pytest.raises(ValidationError):
            body(**full, refine_sigma=wrong)
    kinds = body.model_json_schema()["properties"]["refine_sigma"]["anyOf"]
    kinds = [each.get("enum", each["type"]) for each in kinds]
    assert kinds == ["number", ["auto", "switch"], "array", "string", "null"]


def test_there_may_be_a_number_for_each_level() -> None:
    assert plan_numbers(GenerateBody(**FULL, refine_sigma=[0.1, "auto"])) == {"refine_sigma": [0.1, "auto"]}
    assert plan_numbers(EditBody(**FULL, refine_sigma="0.1+auto")) == {"refine_sigma": "0.1+auto"}
    with pytest.raises(ValidationError):
        GenerateBody(**FULL, refine_sigma=[0.1] * 9)


def test_a_forms_texts_are_numbers_or_words() -> None:
    assert plan_numbers(EditBody(**FULL, refine_sigma="0.2")) == {"refine_sigma": 0.2}


def test_numbers_have_the_names_of_the_plan() -> None:
    body = GenerateBody(**FULL, num_inference_steps=3, solver="unipc", plan="2+1")
    assert plan_numbers(body) == {"steps": 3, "solver": "unipc"}
    assert plan_numbers(GenerateBody(**FULL)) == {}


NEW_NUMBER = """
import dataclasses
from mrflow import plan

@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(plan.Plan):
    churn: float = 0.0

churn = plan.About(kind=float, absent=0.0, text="Noise put back in.", low=0, high=1, http="churn_rate")
plan.Plan, plan.ABOUT = Plan, {**plan.ABOUT, "churn": churn}

import httpx
from support.serving import check_error, serving

with serving(page=True) as server, httpx.Client(base_url=server.url, timeout=60) as client:
    schema = client.get("/openapi.json").json()["components"]["schemas"]["GenerateBody"]["properties"]
    number, _ = schema["churn_rate"]["anyOf"]
    assert number == {"type": "number", "minimum": 0, "maximum": 1}, number
    assert "Noise put back in." in client.get("/docs").text
    page = client.get("/").text
    assert "<span>Churn rate</span>" in page and 'data-number="churn"' in page and "Noise put back in." in page
    body = {"prompt": "a boat", "plan": "1+1", "churn_rate": 0.5}
    made = client.post("/v1/images/generations", json=body).json()
    assert made["data"][0]["recipe"]["plan"]["churn"] == 0.5, made
    wrong = client.post("/v1/images/generations", json={**body, "churn_rate": 2})
    assert check_error(wrong, 400)["param"] == "churn_rate"
"""


def test_a_new_number_of_the_plan_is_a_field_of_requests_and_of_the_page() -> None:
    """In a process of its own, for the bodies are made when the server is imported."""
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests.parent / "src"), str(tests)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", NEW_NUMBER], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
