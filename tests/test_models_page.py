"""docs/models.md is what the registry says; distilled checkpoints are known by what they say of themselves."""

from typing import Any

import pytest
from tools.write_models import PAGE, models_page

from conftest import make_pipe
from mrflow import MrFlow
from mrflow.backbones.checkpoints import DISTILLED, checkpoint_defaults
from mrflow.backbones.families import FAMILIES, NOT_POSSIBLE, NOT_YET, VARIANTS
from mrflow.plan import PRESETS


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == models_page(), "python -m tools.write_models"


def test_a_family_is_either_possible_or_not() -> None:
    groups = (FAMILIES, VARIANTS, NOT_POSSIBLE, NOT_YET)
    assert len(set().union(*groups)) == sum(map(len, groups))
    assert {family for family, _ in VARIANTS.values()} <= set(FAMILIES)
    assert {each.pipeline for each in DISTILLED} <= {*FAMILIES, *VARIANTS}
    assert {each.preset for each in DISTILLED} <= set(PRESETS)


def pipeline(name: str, **config: Any) -> Any:
    return type(name, (), {"config": config})()


@pytest.mark.parametrize(
    ("pipe", "name", "label"),
    [
        (pipeline("FluxPipeline"), "black-forest-labs/FLUX.1-schnell", "4+1"),
        (pipeline("FluxPipeline"), "black-forest-labs/FLUX.1-dev", "12+1"),
        (pipeline("ZImagePipeline"), "/models/z-image-turbo", "8+1"),
        (pipeline("ZImagePipeline"), "Tongyi-MAI/Z-Image", "12+1"),
        (pipeline("Flux2KleinPipeline", is_distilled=True), "any", "4+1"),
        (pipeline("Flux2KleinPipeline", is_distilled=False), "any", "12+1"),
        (pipeline("Krea2Pipeline", is_distilled=True), "any", "8+1"),
        (pipeline("QwenImagePipeline"), "Qwen/Qwen-Image", "12+1"),
        (pipeline("PiFluxPipeline"), "black-forest-labs/FLUX.1-dev", "4+1"),
        (pipeline("PiQwenImagePipeline"), "Qwen/Qwen-Image", "4+1"),
    ],
)
def test_a_distilled_checkpoint_takes_its_preset(pipe: Any, name: str, label: str) -> None:
    defaults = checkpoint_defaults(pipe, name)
    assert defaults.plan.label == label
    guided = label == "12+1" or type(pipe).__name__.startswith("Pi")  # which take none whatever a plan says
    assert defaults.plan.true_cfg_scale == (None if guided else 1.0)
    assert defaults.native_steps == (50 if label == "12+1" else defaults.plan.steps)


def test_a_wrapped_pipeline_says_what_it_is() -> None:
    pipe = make_pipe()
    pipe.register_to_config(_name_or_path="black-forest-labs/FLUX.1-schnell")
    assert MrFlow(pipe, "bicubic").model.defaults.plan is PRESETS["schnell-4+1"].plan
