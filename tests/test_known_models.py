"""One registry of names: what stands in it works, sizes are those of the architectures, every door knows it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mrflow.architectures import architectures, make_component, read_architecture
from mrflow.backbones.checkpoints import known_defaults
from mrflow.backbones.families import FAMILIES, VARIANTS
from mrflow.errors import ModelNameError
from mrflow.known_models import BITS, BY_ID, KNOWN, find, full_name
from mrflow.loading import load_model
from support.cli import invoke


def test_every_name_is_of_a_family_that_works() -> None:
    assert len(BY_ID) == len(KNOWN)
    assert "vista" not in KNOWN
    assert {known.pipeline for known in KNOWN.values()} <= {*FAMILIES, *VARIANTS}
    assert set(FAMILIES) <= {known.pipeline for known in KNOWN.values()}  # each has an example
    for name in architectures():
        spec = read_architecture(name)
        assert spec["pipeline"] == KNOWN[name].pipeline
        assert KNOWN[name].parameters


def count(model: Any) -> int:
    """Return the numbers that a file of the model holds: parameters, shared ones once, and lasting buffers."""
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    lasting = model.state_dict(keep_vars=True).values()
    return sum(each.numel() for each in {id(each): each for each in lasting}.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", {known.architecture: name for name, known in KNOWN.items()}.values())
def test_sizes_are_those_of_the_architecture(name: str) -> None:
    if not KNOWN[name].architecture:
        return
    found: dict[str, float] = {}
    for part, described in read_architecture(name)["components"].items():
        model = make_component(described)
        if hasattr(model, "state_dict"):
            kind = "text" if part.startswith("text") else part
            found[kind] = found.get(kind, 0) + count(model) / 1e9
    assert found == pytest.approx(dict(KNOWN[name].parameters), rel=2e-3)


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("flux-dev", 33.7),
        ("qwen-image", 57.7),
        ("z-image-turbo", 32.8),
        ("lumina2", 21.2),
        ("cogview4", 31.1),
        ("sd3.5-medium", 16.3),
        ("fibo", 25.6),
    ],
)
def test_downloads_weigh_what_their_pages_list(name: str, gigabytes: float) -> None:
    """Files as the hub listed them, in GB: of FLUX.1-dev 23.8 + 9.52 + .25 + .17, and so on."""
    assert KNOWN[name].download == pytest.approx(gigabytes * 1e9, rel=0.01)


def test_memory_is_counted_by_how_weights_are_held() -> None:
    known = KNOWN["flux-dev"]  # 11.9 and 4.885 billion, and .084 that stay whole
    sizes = [known.weights(held) for held in BITS]
    assert sizes == pytest.approx([33.74e9, 16.787e9 + 0.168e9, 8.393e9 + 0.168e9], rel=1e-3)
    assert KNOWN["bria"].download is KNOWN["bria"].weights("4-bit") is None


def test_the_plan_of_a_checkpoint_is_known_before_it_is_here() -> None:
    plans = {name: known_defaults(KNOWN[name]) for name in KNOWN}
    assert plans["flux-dev"].plan.label == plans["flux2-klein-base-9b"].plan.label == "12+1"
    assert plans["flux2-klein-9b"].plan.true_cfg_scale == plans["sd3.5-large-turbo"].plan.true_cfg_scale == 1.0
    steps = {name: plans[name].native_steps for name in ("flux-schnell", "z-image-turbo", "sd3.5-large", "krea2")}
    assert steps == {"flux-schnell": 4, "z-image-turbo": 8, "sd3.5-large": 28, "krea2": 52}


def test_a_name_stands_for_its_id_and_a_wrong_one_for_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def loaded(path: str, *_: object) -> None:
        asked.append(path)
        raise ModelNameError("enough")

    monkeypatch.setattr("mrflow.loading._fetch", loaded)
    with pytest.raises(ModelNameError, match="enough"):
        load_model("flux2-klein-4b", upscaler="bicubic")
    assert asked == ["black-forest-labs/FLUX.2-klein-4B"]
    for page in (
        "https://huggingface.co/Qwen/Qwen-Image/",
        "http://hf.co/Qwen/Qwen-Image/tree/main",
        "QWEN-Image",
        "qwen_image",
    ):
        assert full_name(page) == "Qwen/Qwen-Image"
        assert find(page) is KNOWN["qwen-image"]
    for other in ("somebody/else", "https://huggingface.co/datasets/a/b", "https://else.co/Qwen/Qwen-Image"):
        assert full_name(other) == other
    with pytest.raises(ModelNameError, match=r"no model 'flux1-dev'. Did you mean flux-dev"):
        load_model("flux1-dev")


def test_models_lists_them() -> None:
    shown = invoke(["models"], env={"COLUMNS": "200"}).stdout
    assert "black-forest-labs/FLUX.2-klein-4B" in shown
    assert "33.7 / 17.0 / 8.6    FLUX.1 [dev] Non-Commercial, gated  12+1" in shown
    listed = {each["name"]: each for each in json.loads(invoke(["models", "--json"]).stdout)["models"]}
    assert list(listed) == list(KNOWN)
    assert listed["flux-dev"]["gated"] is True
    assert listed["z-image-turbo"]["plan"] == "8+1"
    assert listed["qwen-image"]["weights"]["whole"] == KNOWN["qwen-image"].weights()
