import copy
import json
import pickle
from dataclasses import replace

import pytest

from mrflow.errors import RecipeError
from mrflow.recipe import FORMAT, MAX_JSON, Recipe, library_versions
from support.pictures import make_recipe


def test_a_recipe_survives_json() -> None:
    recipe = make_recipe()
    text = recipe.to_json()
    assert text.isascii()
    assert json.loads(text)["format"] == FORMAT
    assert Recipe.from_json(text) == recipe


def test_a_recipe_goes_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(make_recipe())) == make_recipe()
    assert copy.deepcopy(make_recipe()) == make_recipe()


def test_fields_that_only_a_later_version_knows_are_named_and_refused() -> None:
    data = json.loads(make_recipe().to_json())
    with pytest.raises(RecipeError, match=r"'mood', which this mrflow does not know.*upgrade"):
        Recipe.from_json(json.dumps({**data, "mood": {"deep": []}}))


def test_what_says_nothing_is_not_written_and_read_as_what_it_means() -> None:
    recipe = replace(make_recipe(), batch=1, negative_prompt=None, conditions={})
    data = json.loads(recipe.to_json())
    assert not {"batch", "negative_prompt", "conditions"} & set(data)
    assert Recipe.from_json(json.dumps(data)) == recipe


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, "upgrade mrflow"),
        ({"format": True}, "format"),
        ({"mode": "magic"}, "mode"),
        ({"mode": ["staged"]}, "mode"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"width": "1024"}, "width"),
        ({"height": 10**9}, "height"),
        ({"prompt": None}, "prompt"),
        ({"plan": None}, "plan"),
        ({"plan": {"steps": 0}}, "steps is 0"),
        ({"plan": {"evil": 1}}, "no field 'evil'"),
        ({"versions": ["torch"]}, "versions"),
        ({"versions": {"torch": 2}}, "versions"),
        ({"pixels_sha256": "../../etc/passwd"}, "pixels_sha256"),
        ({"upscaler_sha256": 3}, "upscaler_sha256"),
        ({"max_sequence_length": 0}, "max_sequence_length"),
        ({"threads": 0}, "threads"),
        ({"threads": "two"}, "threads"),
    ],
)
def test_wrong_values_are_refused_by_name(change: dict[str, object], words: str) -> None:
    data = {**json.loads(make_recipe().to_json()), **change}
    with pytest.raises(RecipeError, match=words):
        Recipe.from_json(json.dumps(data))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '"x"', "{}", '{"format": 1}', "[" * 100_000, '{"format": NaN}', "x" * (MAX_JSON + 1)],
)
def test_what_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        Recipe.from_json(text)


@pytest.mark.parametrize("missing", ["mode", "prompt", "seed", "width", "height", "plan", "model"])
def test_a_missing_field_is_named(missing: str) -> None:
    data = json.loads(make_recipe().to_json())
    del data[missing]
    with pytest.raises(RecipeError, match=f"The recipe has no '{missing}'; it must have one"):
        Recipe.from_json(json.dumps(data))


def test_an_incomplete_lora_is_said_without_python() -> None:
    with pytest.raises(RecipeError, match=r"The recipe is incomplete: .*'name'") as told:
        Recipe.from_json(json.dumps({**json.loads(make_recipe().to_json()), "loras": [{"weight": 1.0}]}))
    assert "__init__" not in str(told.value)


def test_differences_names_fields_and_versions() -> None:
    recipe = make_recipe()
    other = replace(recipe, seed=1, versions={**recipe.versions, "torch": "9"})
    assert recipe.differences(recipe) == {}
    assert recipe.differences(other) == {
        "seed": (2**63 - 1, 1),
        "versions.torch": (recipe.versions["torch"], "9"),
    }


def test_versions_name_the_libraries_that_shape_pixels() -> None:
    assert {"mrflow", "torch", "diffusers", "transformers"} <= set(library_versions())


@pytest.mark.parametrize("name", ["prompt", "negative_prompt", "model", "upscaler", "conditions"])
def test_half_characters_are_refused(name: str) -> None:
    half = {"a": "\ud83d"} if name == "conditions" else "\ud83d"
    text = json.dumps({**json.loads(make_recipe().to_json()), name: half})
    with pytest.raises(RecipeError, match=f"{name}.*half a character"):
        Recipe.from_json(text)
