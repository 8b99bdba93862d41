"""The command line on vista itself, as the README shows it; skipped where the weights are not installed."""

from __future__ import annotations

import json

import pytest

from mrflow import load_image, read_recipe, vista
from support.cli import Result, invoke

PROMPT = "a snowy lake at sunset with mountains, many pine trees and a red hot air balloon on the left"

pytestmark = pytest.mark.skipif(
    not vista.available(), reason="vista's weights are not in this installation; see training/README.md"
)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """Run each test in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    result = invoke(arguments)
    assert result.exit_code == 0, result.stderr
    return result


def test_generate_needs_nothing_but_a_prompt():
    (path,) = run("generate", PROMPT).stdout.splitlines()
    assert load_image(path).size == (512, 512)
    recipe = read_recipe(path)
    assert (recipe.model, recipe.revision, recipe.plan.label) == ("vista", vista.revision(), "12+1")
    assert "same pixels" in run("replay", path).stderr


def test_the_prompt_of_the_readme_has_no_unknown_words():
    assert "does not know" not in run("draft", PROMPT, "-n", "1").stderr


def test_words_that_vista_lacks_are_named():
    assert "'lighthouse'" in run("draft", "a lighthouse by a lake", "-n", "1").stderr


def test_compare():
    data = json.loads(run("generate", PROMPT, "--compare", "--repeats", "1", "--json").stdout)
    assert data["native"]["recipe"]["plan"]["steps"] == 50
    assert data["speedup"] > 2  # eight times and more on a quiet machine; this one may be busy


def test_enhance_makes_a_draft_larger():
    (draft,) = run("draft", PROMPT, "-n", "1", "--out", "draft.png").stdout.splitlines()
    run("enhance", draft, "--prompt", PROMPT, "--out", "large.png")
    assert load_image("large.png").size == (512, 512)
