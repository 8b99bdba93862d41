"""What rows mean: ids, seeds, counts, plans; what can't be made is a failure with its reason."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from mrflow import Plan
from mrflow.batch.tasks import RowDefaults, make_seed, read_request, resolve_wanted
from mrflow.prompt_rows import Row


def request_of(*rows: dict[str, Any], **options: Any):
    return read_request([Row(number, values) for number, values in enumerate(rows, 1)], **options)


def test_a_row_without_anything_else_is_named_by_its_number():
    (one,) = request_of({"prompt": "a lake"}).wanted
    assert (one.id, one.row, one.asked.prompt, one.asked.plan, one.asked.width) == (
        "000001",
        1,
        "a lake",
        None,
        None,
    )
    assert one.asked.seed == make_seed(0, "000001")


def test_made_up_seeds_come_from_the_id_alone():
    first = request_of({"prompt": "a", "id": "x"}, {"prompt": "b", "id": "y"}).wanted
    again = request_of({"prompt": "b", "id": "y"}, {"prompt": "c"}, {"prompt": "a", "id": "x"}).wanted
    seeds = {one.id: one.asked.seed for one in again}
    assert [one.asked.seed for one in first] == [seeds["x"], seeds["y"]]
    assert seeds["x"] != seeds["y"]
    other = request_of({"prompt": "a", "id": "x"}, defaults=RowDefaults(seed=1)).wanted
    assert other[0].asked.seed != seeds["x"]


def test_several_pictures_of_a_row():
    wanted = request_of({"prompt": "a", "id": "x", "num_images": "2", "seed": 7}, {"prompt": "b"}).wanted
    assert [(one.id, one.asked.seed) for one in wanted[:2]] == [("x-1", 7), ("x-2", 8)]
    unseeded = request_of({"prompt": "a"}, defaults=RowDefaults(num_images=3)).wanted
    assert len({one.asked.seed for one in unseeded}) == 3


def test_numbers_from_text_and_floats():
    (one,) = request_of({"prompt": "a", "seed": "7", "width": 64.0, "height": "32", "plan": " 3+2 "}).wanted
    assert (one.asked.seed, one.asked.width, one.asked.height, one.asked.plan.label) == (7, 64, 32, "3+2")


def test_a_plan_as_an_object():
    (one,) = request_of({"prompt": "a", "plan": {"steps": 4, "scale": 1.5}}).wanted
    assert one.asked.plan == Plan(steps=4, scale=1.5)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "no prompt"),
        ({"text": "a"}, "'text'"),
        ({"prompt": " "}, "empty"),
        ({"prompt": 3}, "must be text"),
        ({"prompt": "a", "seed": -1}, "seed is -1"),
        ({"prompt": "a", "seed": 1.5}, "seed is 1.5"),
        ({"prompt": "a", "seed": True}, "seed is True"),
        ({"prompt": "a", "num_images": 0}, "num_images is 0"),
        ({"prompt": "a", "width": 99999}, "99999"),
        ({"prompt": "a", "plan": "best"}, "'best'"),
        ({"prompt": "a", "plan": {"stepz": 3}}, "stepz"),
        ({"prompt": "a", "plan": 3}, "plan is 3"),
        ({"prompt": "a", "negative_prompt": 3}, "negative prompt"),
        ({"prompt": "a", "id": "../x"}, "'../x'"),
        ({"prompt": "a", "id": ".hidden"}, "'.hidden'"),
        ({"prompt": "a", "id": "x" * 181}, "at most 180 bytes"),
        ({"prompt": "a", "id": ["x"]}, "id is"),
    ],
)
def test_a_bad_row_is_a_failure_and_the_others_are_unharmed(row, words):
    request = request_of({"prompt": "a"}, row, {"prompt": "b"})
    assert [one.row for one in request.wanted] == [1, 3]
    (failure,) = request.failures
    id = row.get("id", "000002")
    assert (failure.row, failure.id) == (2, None if isinstance(id, list) else id[:180])
    assert words in failure.error


def test_a_line_that_was_not_read_is_a_failure():
    request = read_request([Row(4, error="The line is no UTF-8 text (byte 0).")])
    assert (request.failures[0].row, request.failures[0].id) == (4, None)


def test_of_two_pictures_with_one_id_the_first_counts():
    request = request_of(
        {"prompt": "a", "id": "x-2"}, {"prompt": "b", "id": "x", "num_images": 2}, {"prompt": "c", "id": "X-1"}
    )
    assert [one.id for one in request.wanted] == ["x-2", "x-1"]
    assert [(each.row, each.id) for each in request.failures] == [(2, "x-2"), (3, "X-1")]
    assert "taken by row 1" in request.failures[0].error


def test_ids_with_dots_are_no_keys_of_shards():
    assert request_of({"prompt": "a", "id": "v1.2"}).wanted
    assert "dots out" in request_of({"prompt": "a", "id": "v1.2"}, dots=False).failures[0].error


def test_columns_that_are_not_ours_are_counted():
    assert request_of({"prompt": "a", "tag": 1}, {"prompt": "b", "tag": 2}).unused == {"tag": 2}


def test_what_the_model_settles(fast):
    request = request_of(
        {"prompt": "a boat"}, {"prompt": "a zebra", "width": 50}, {"prompt": "a zebra", "height": 96}
    )
    tasks, failures, warned = resolve_wanted(fast.model, request.wanted, Plan(steps=2))
    assert [(task.job.size, task.job.plan.label, task.job.plan.true_cfg_scale) for task in tasks] == [
        ((64, 64), "2+1", 2.0),
        ((64, 96), "2+1", 2.0),
    ]
    assert "50x64" in failures[0].error
    assert [(text.split(": ")[1], rows) for text, rows in warned.items()] == [("'zebra'", 1)]


@pytest.mark.parametrize("value", [7.0, "7.0", "7", Decimal("7.00")])
def test_whole_numbers_come_as_pandas_writes_them(value):
    request = read_request([Row(1, {"prompt": "a lake", "seed": value, "width": 256.0, "height": "256.0"})])
    assert (request.failures, request.wanted[0].asked.seed) == ([], 7)
    for wrong in (7.5, "7.5", "9007199254740993.0", float("inf"), Decimal("7.1")):
        assert "whole number" in read_request([Row(1, {"prompt": "a", "seed": wrong})]).failures[0].error


def test_a_plan_of_several_levels() -> None:
    plan, text = {"steps": 4, "scales": [2, 1.5], "refine_sigma": [0.1, "auto"]}, "4+1+2"
    first, second = request_of({"prompt": "a", "plan": plan}, {"prompt": "a", "plan": text}).wanted
    assert first.asked.plan == Plan(steps=4, scales=(2, 1.5), refine_sigma=(0.1, "auto"))
    assert second.asked.plan == Plan(steps=4, scales=(2, 2), refine_steps=(1, 2))


def test_ids_and_plans_of_columns_with_gaps():
    plan = {"steps": 8.0, "refine_steps": None, "scale": float("nan"), "solver": None}
    rows = [Row(1, {"prompt": "a", "id": 3.0, "plan": plan}), Row(2, {"prompt": "a", "plan": {"steps": None}})]
    request = read_request(rows)
    assert request.failures == []
    assert [(each.id, each.asked.plan) for each in request.wanted] == [("3", Plan(steps=8)), ("000002", None)]


class Strange(str):
    def strip(self, *args):
        raise OverflowError("too large")


def test_a_row_that_raises_anything_fails_alone():
    request = request_of({"prompt": Strange("a")}, {"prompt": "b"})
    assert [each.error for each in request.failures] == ["OverflowError: too large"]
    assert [each.asked.prompt for each in request.wanted] == ["b"]


def test_half_characters_fail_their_row_alone():
    half = "\ud83d"
    rows = [{"prompt": half}, {"prompt": "a", "id": half}, {"prompt": "a", "plan": half}, {"prompt": "a", half: 1}]
    rows += [{"prompt": "a", "negative_prompt": half}, {"prompt": "a", "plan": {half: 1}}]
    request = read_request([Row(number, row) for number, row in enumerate(rows, 1)])
    assert [each.row for each in request.wanted] == [4]
    assert [each.row for each in request.failures] == [1, 2, 3, 5, 6]
    assert all(json.dumps(each.to_dict()) for each in request.failures)
