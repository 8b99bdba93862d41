"""Arguments of the pipeline's call that shape the text's embeddings, which are made once, before any pass."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from mrflow import Plan
from mrflow.arguments import OWNED, read_call
from mrflow.backbones import get_backbone, supported
from mrflow.errors import RequestError
from support.families import CASES, SIZE, make_fast

VALUES = {
    **{"clip_skip": 1, "text_encoder_out_layers": (1, 2, 3), "return_index": -2},
    **{"complex_human_instruction": None, "clean_caption": True},
}
# what diffusers' loops use (0.42.1), whatever the embeddings were made of
OF_THE_PASSES = {
    *("callback_on_step_end", "callback_on_step_end_tensor_inputs"),
    *("attention_kwargs", "joint_attention_kwargs"),
    *(
        "ip_adapter_image",
        "ip_adapter_image_embeds",
        "negative_ip_adapter_image",
        "negative_ip_adapter_image_embeds",
    ),
    *("control_image", "control_mode", "controlnet_conditioning_scale"),
    *("control_guidance_start", "control_guidance_end"),
    *("skip_guidance_layers", "skip_layer_guidance_scale"),
    *("skip_layer_guidance_start", "skip_layer_guidance_stop"),
    *("cfg_normalization", "cfg_trunc_ratio", "cfg_truncation", "normalize", "clip_value", "eta", "mu"),
    *("original_size", "crops_coords_top_left", "do_patching", "scaling_watershed", "proportional_attn"),
    "use_kv_cache",
}
KINDS = [name for name in supported() if hasattr(diffusers, name)]


def theirs(name: str) -> list[str]:
    """Return the arguments of a pipeline's call that a caller of ours may give, beside those that are read."""
    kind = getattr(diffusers, name)
    pipe, backbone, taken = kind.__new__(kind), get_backbone(name), list[str]()
    parameters = inspect.signature(kind.__call__).parameters  # in order: test processes must agree
    for each in [each for each in parameters if each not in {"self", "kwargs"}]:
        try:
            taken += [one for one in read_call(pipe, backbone, {each: False}).extra if one == each]
        except RequestError:
            continue  # ours
    return taken


def of_the_text(name: str) -> list[str]:
    encode = inspect.signature(getattr(diffusers, name).encode_prompt).parameters
    return [each for each in theirs(name) if each in encode]


def cleaned(_pipe: Any, text: str | list[str], clean_caption: bool = False) -> list[str]:
    texts = [text] if isinstance(text, str) else text
    return [each.replace("red", "blue") if clean_caption else each for each in texts]


@pytest.mark.parametrize("name", KINDS)
def test_no_argument_is_taken_and_dropped(name: str) -> None:
    """One that diffusers adds is looked at before it stands in a list here."""
    assert set(theirs(name)) - OF_THE_PASSES <= set(VALUES)
    assert set(of_the_text(name)).isdisjoint(OF_THE_PASSES)


@pytest.mark.parametrize(("name", "argument"), [(name, each) for name in CASES for each in of_the_text(name)])
def test_the_draft_is_the_pipelines_own_with_such_an_argument(
    name: str, argument: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, value = CASES[name], VALUES[argument]
    pipe = case.make()
    if argument == "return_index":  # which asks the vision-language model that a language model stands in for
        pipe.text_encoder.config.text_config = SimpleNamespace(num_hidden_layers=9)
    fast, plan = make_fast(case, pipe), Plan(steps=2, refine_sigma=0.3, noise="own", **case.plan)
    if argument == "clean_caption":  # which wants further libraries
        monkeypatch.setattr(type(pipe), "_text_preprocessing", cleaned)
    size = (SIZE[0] // 2, SIZE[1] // 2)
    usual = case.run(pipe, size, 2)
    monkeypatch.setitem(case.by_hand, argument, value)  # type: ignore[arg-type]
    own = case.run(pipe, size, 2)
    assert not torch.equal(own, usual)

    result = fast("a red boat", seed=7, plan=plan, **{argument: value})
    assert torch.equal(result.drafts[0].pixels, own)
    assert "encode_prompt" not in vars(pipe)
    assert result.recipes[0].conditions[f"argument.{argument}"]
    again = fast.finish(replace(result.drafts[0], embeds=None), **{argument: value})
    assert again.recipes[0].pixels_sha256 == result.recipes[0].pixels_sha256  # a draft without its embeddings


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("Flux2Pipeline", "caption_upsample_temperature"),
        ("QwenImage21Pipeline", "output_resolution"),
        ("HiDreamImagePipeline", "zebra"),
    ],
)
def test_what_would_change_nothing_is_refused(name: str, argument: str) -> None:
    with pytest.raises(RequestError, match=f"{argument} is not for the caller|no argument '{argument}'"):
        make_fast(CASES[name], CASES[name].make())("a red boat", **{argument: 1})
    assert argument in {*OWNED, "zebra"}
