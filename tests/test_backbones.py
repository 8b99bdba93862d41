import re
from pathlib import Path

import pytest
import torch

from conftest import make_fast, make_pipe
from mrflow import Defaults, MrFlow, Plan, backbones
from mrflow.backbones import get_backbone, register_backbone, supported
from mrflow.backbones.families import NOT_POSSIBLE, NOT_YET, VARIANTS
from mrflow.backbones.family import split_rows, stack_rows, trim
from mrflow.backbones.flux import FluxBackbone
from mrflow.errors import UnsupportedPipelineError

SMALL = Defaults(width=64, height=64, max_sequence_length=16)


def test_a_registered_backbone_drives_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "_registered", {})
    with pytest.raises(UnsupportedPipelineError, match=r"supported are .*FluxPipeline.*register_backbone"):
        get_backbone("MyPipeline")
    mine = FluxBackbone()
    register_backbone("MyPipeline", mine)
    assert get_backbone("MyPipeline") is mine
    assert {"FluxPipeline", "MyPipeline"} < set(supported())

    pipe = make_pipe()
    pipe.__class__ = type("MyPipeline", (type(pipe),), {})
    assert make_fast(pipe)("a boat", seed=1).images[0].size == (64, 64)


def test_a_family_that_cannot_work_says_why() -> None:
    with pytest.raises(UnsupportedPipelineError, match="XLPipeline, which cannot work: it denoises by"):
        get_backbone("StableDiffusionXLPipeline")
    with pytest.raises(UnsupportedPipelineError, match="which is not driven yet: it has seven sizes"):
        get_backbone("Kandinsky5T2IPipeline")
    with pytest.raises(UnsupportedPipelineError, match="global random state") as refused:
        get_backbone("StableDiffusion3ControlNetPipeline")
    assert "a flow" not in str(refused.value)  # which it follows


def test_the_documents_say_which_controlnets_work() -> None:
    page = (Path(__file__).parents[1] / "docs" / "pipelines.md").read_text(encoding="utf-8")
    driven, refused = page.split("## ControlNet\n")[1].split("\n## ")[0].split("Other families")
    names = {name for name in VARIANTS if "Control" in name}
    assert set(re.findall(r"`(\w+Pipeline)`", driven)) == names
    wanted = {name for name in {**NOT_POSSIBLE, **NOT_YET} if "Control" in name}
    assert set(re.findall(r"`(\w+Pipeline)`", refused)) == wanted


def test_the_documents_family_of_ones_own_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "_registered", {})
    page = (Path(__file__).parents[1] / "docs" / "pipelines.md").read_text(encoding="utf-8")
    example = page.split("## A family of your own")[1].split("```python\n")[1].split("```")[0]
    exec(example, {})
    pipe = make_pipe()
    pipe.__class__ = type("MyPipeline", (type(pipe),), {})
    guided = make_fast(make_pipe())("a boat", seed=1, plan=Plan(true_cfg_scale=4.0)).images[0]
    assert MrFlow(pipe, "bicubic", defaults=SMALL)("a boat", seed=1).images[0].tobytes() == guided.tobytes()
    theirs = make_fast(make_pipe())("a boat", seed=1, plan=Plan(true_cfg_scale=1.0)).images[0]
    assert make_fast(pipe)("a boat", seed=1, plan=Plan(true_cfg_scale=1.0)).images[0].tobytes() == theirs.tobytes()


def test_rows_of_different_lengths_are_padded_and_trimmed() -> None:
    rows = [{"text": torch.ones(1, n, 2), "mask": torch.ones(1, n)} for n in (2, 3)]
    both = stack_rows(rows)
    assert both["mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert both["text"].sum(dim=(1, 2)).tolist() == [4, 6]
    for before, after in zip(rows, split_rows(both), strict=True):
        trimmed = trim(after, "mask", "text")
        assert all(torch.equal(before[name], trimmed[name]) for name in before)


def test_the_guidance_of_a_checkpoint() -> None:
    flux = FluxBackbone()
    plain, embedded = make_pipe(), make_pipe(guidance_embeds=True)
    assert (flux.guidance_field(plain), flux.default_guidance(plain)) == ("true_cfg_scale", 1.0)
    assert (flux.guidance_field(embedded), flux.default_guidance(embedded)) == ("guidance_scale", 3.5)
    assert flux.guidance(None, 2.0) == {"true_cfg_scale": 2.0}


@pytest.mark.parametrize(
    ("prompt", "cut", "unknown"),
    [
        ("a red boat", "", ()),
        ("a " * 15, "", ()),
        ("a " * 15 + "boat", "boat", ()),
        ("a " * 15 + "big, boat!", "big, boat!", ()),
        ("a Red boat, a Red lake", "", ("Red",)),
    ],
)
def test_reading_a_prompt(pipe, prompt: str, cut: str, unknown: tuple[str, ...]) -> None:
    reading = FluxBackbone().read_prompt(pipe, prompt, 16)
    assert (reading.cut, reading.unknown) == (cut, unknown)


def test_what_is_said_to_be_cut_is_what_the_pipeline_cuts(pipe) -> None:
    whole, cut = "a red boat at dusk " * 3, FluxBackbone().read_prompt(pipe, "a red boat at dusk " * 3, 16).cut
    kept = whole[: whole.rindex(cut)] if cut else whole
    encode = lambda text: FluxBackbone().encode_prompts(pipe, [text], None, 16)[0]["prompt_embeds"]  # noqa: E731
    with torch.no_grad():
        assert torch.equal(encode(whole.strip()), encode(kept.strip()))
