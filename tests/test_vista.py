import shutil
from pathlib import Path

import pytest

from mrflow import MrFlow, vista
from mrflow.errors import ModelError, PromptWarning

needs_weights = pytest.mark.skipif(not vista.available(), reason="vista's weights are not in this checkout")


def test_absent_weights_give_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vista, "_HERE", tmp_path)
    vista.words.cache_clear()
    assert not vista.available()
    for call in (vista.folder, vista.upscaler, vista.words, lambda: MrFlow.from_pretrained("vista")):
        with pytest.raises(ModelError, match="missing from this installation"):
            call()


def test_the_defaults_fit_the_model() -> None:
    assert vista.DEFAULTS.width % 32 == vista.DEFAULTS.height % 32 == 0
    assert vista.DEFAULTS.plan.label == "12+1"


@pytest.fixture(scope="module")
def fast() -> MrFlow:
    return MrFlow.from_pretrained("vista")


@needs_weights
def test_vista_makes_a_picture_from_a_prompt(fast: MrFlow) -> None:
    fast.pipe.set_progress_bar_config(disable=True)
    result = fast("a lake at sunset with mountains", seed=1)
    assert result.images[0].size == (256, 256)
    recipe = result.recipes[0]
    assert (recipe.model, recipe.upscaler, recipe.revision) == ("vista", "vista-x2.safetensors", vista.revision())


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
