import shutil
import warnings
from pathlib import Path

import pytest

from mrflow import MrFlow, vista
from mrflow.errors import ModelError, MrFlowWarning, PromptWarning
from mrflow.server.requests import steps_of

needs_weights = pytest.mark.skipif(not vista.available(), reason="vista's weights are not in this checkout")


def test_absent_weights_give_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vista, "_HERE", tmp_path)
    vista.words.cache_clear()
    assert not vista.available()
    for call in (vista.folder, vista.upscaler, vista.words, lambda: MrFlow.from_pretrained("vista")):
        with pytest.raises(ModelError, match="missing from this installation"):
            call()


def test_the_defaults_fit_the_model() -> None:
    assert vista.DEFAULTS["vista"].width % 32 == vista.DEFAULTS["vista"].height % 32 == 0
    assert vista.DEFAULTS["vista"].plan.label == "12+1"


@pytest.fixture(scope="module")
def fast() -> MrFlow:
    return MrFlow.from_pretrained("vista")


@needs_weights
def test_vista_makes_a_picture_from_a_prompt(fast: MrFlow) -> None:
    fast.pipe.set_progress_bar_config(disable=True)
    result = fast("a lake at sunset with mountains", seed=1)
    assert result.images[0].size == (512, 512)
    recipe = result.recipes[0]
    assert (recipe.model, recipe.upscaler, recipe.revision) == ("vista", "vista-x2.safetensors", vista.revision())


@needs_weights
def test_its_student_takes_four_steps_without_guidance_and_says_so() -> None:
    turbo, seen = MrFlow.from_pretrained("vista-turbo"), []
    turbo.pipe.set_progress_bar_config(disable=True)
    turbo.pipe.transformer.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["hidden_states"].shape[:2]), with_kwargs=True
    )
    recipe = turbo("a lake at sunset with mountains", seed=1, width=128, height=128).recipes[0]
    assert (recipe.model, recipe.plan.label) == ("vista-turbo", "4+1")
    assert recipe.revision == vista.revision("vista-turbo") != vista.revision()
    assert seen == [(1, 16)] * 4 + [(1, 64)]
    assert turbo.native("a lake", seed=1, width=128, height=128).recipes[0].plan.steps == 4
    with pytest.warns(MrFlowWarning, match="learned to paint in 4 steps; in 6 its pictures are worse"):
        turbo.draft("a lake", plan="6+1", seed=1, width=128, height=128)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        turbo("a lake", plan="3/4", seed=1, width=128, height=128)


@needs_weights
def test_words_that_vista_does_not_know_are_named(fast: MrFlow) -> None:
    assert {"lake", "sunset"} <= vista.words()
    with pytest.warns(PromptWarning, match="vista does not know: 'zeppelin'"):
        fast.draft("a lake with a zeppelin", plan="1+1", seed=1)


@needs_weights
def test_the_revision_follows_the_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = vista.revision()
    shutil.copytree(vista.folder(), tmp_path / "weights")
    monkeypatch.setattr(vista, "_HERE", tmp_path)
    vista.revision.cache_clear()
    assert vista.revision() == before
    (tmp_path / "weights" / "model_index.json").write_text("{}")
    vista.revision.cache_clear()
    assert vista.revision() != before
    vista.revision.cache_clear()


def test_more_care_is_no_use_to_a_student() -> None:
    """Whose own steps are its best."""
    steps = {name: [steps_of(own, each) for each in ("low", "high")] for name, own in vista.DEFAULTS.items()}
    assert steps == {"vista": [8, 20], "vista-turbo": [4, 4]}
