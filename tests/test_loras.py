"""LoRA files by name and weight: the same through every door, gone again bit for bit, never anybody else's."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save_file

from conftest import make_fast, make_pipe
from mrflow import Draft, MrFlow, Plan, loras, read_recipe
from mrflow.errors import LoraError, LoraNameError, MissingExtraError, MrFlowError, MrFlowWarning, RequestError
from mrflow.jobs import Lora, read_loras
from mrflow.lanes import check_lanes
from mrflow.recipe import Recipe
from support import families
from support.batches import errors, run
from support.cli import invoke
from support.loras import LAYOUTS, of_diffusers, of_dora, of_family, of_kohya, write
from support.pictures import bytes_of
from support.pipelines import own_call, state_of
from support.serving import Server, check_error, serving

# peft tells that the layers of so small a transformer are few
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:`(FluxPosEmbed|LoraLoaderMixin)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

PLAN = Plan(steps=2, refine_sigma=0.3, true_cfg_scale=1.0, noise="own")
ASKED: dict[str, Any] = {"seed": 7, "plan": PLAN}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two LoRAs, one of them in a folder inside."""
    place = tmp_path_factory.mktemp("loras")
    write(place / "style.safetensors")
    (place / "light").mkdir()
    write(place / "light" / "dusk.safetensors", of_diffusers(1))
    return place


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def state(pipe: Any) -> dict[str, Any]:
    """Return what must be as before, but for the flags that transformers and diffusers leave behind."""
    return {name: value for name, value in state_of(pipe).items() if name != "patched"}


def drafted(fast: MrFlow, **options: Any) -> torch.Tensor:
    return fast.draft("a red boat", **{**ASKED, **options})[0].pixels


def by_hand(*weights: tuple[Path, float]) -> torch.Tensor:
    """Return the draft that diffusers alone makes with these LoRAs."""
    pipe, names = make_pipe(), [f"n{k}" for k in range(len(weights))]
    for name, (path, _) in zip(names, weights, strict=True):
        pipe.load_lora_weights(str(path), adapter_name=name)
    pipe.set_adapters(names, [weight for _, weight in weights])
    return own_call(pipe)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_of_each_layout_gives_what_diffusers_gives_and_is_gone_again(layout: str, tmp_path: Path) -> None:
    path = write(tmp_path / "style.safetensors", LAYOUTS[layout]())
    fast = make_fast(make_pipe())
    bare, bare_whole = drafted(fast), fast("a red boat", **ASKED)
    before = state(fast.pipe)
    assert fast.load_loras(f"{path}:0.5") == (Lora(name="style", weight=0.5, sha256=digest(path)),)
    assert torch.equal(drafted(fast), by_hand((path, 0.5)))
    assert not torch.equal(drafted(fast), bare)
    assert torch.equal(drafted(fast, loras=[]), bare)
    assert state(fast.pipe)["components"] == before["components"]
    assert fast.load_loras() == ()
    assert bytes_of(fast("a red boat", **ASKED).images) == bytes_of(bare_whole.images)
    assert state(fast.pipe) == before


def of_trainer(weights: dict[str, torch.Tensor], prefix: str, dot: str = ".") -> dict[str, torch.Tensor]:
    """Return the transformer's part under another prefix; without dots as kohya has it, alphas being the rank."""
    found = {}
    for key, weight in weights.items():
        layer, _, rest = key.removeprefix("transformer.").partition(".lora_")
        layer = prefix + layer.replace(".", dot)
        if not key.startswith("text_encoder"):
            found[f"{layer}.lora_{rest if dot == '.' else {'A': 'down', 'B': 'up'}[rest[0]] + rest[1:]}"] = weight
            if dot != "." and rest[0] == "A":
                found[f"{layer}.alpha"] = torch.tensor(float(len(weight)))
    return found


TRAINERS = [
    ("base_model.model.", "."),
    ("base_model.model.transformer.", "."),
    ("diffusion_model.", "."),
    ("", "."),
    ("lora_unet_", "_"),
    ("lora_transformer_", "_"),
]


@pytest.mark.parametrize(("prefix", "dot"), TRAINERS)
def test_layers_of_diffusers_names_are_read_with_any_prefix(prefix: str, dot: str, tmp_path: Path) -> None:
    weights = {key: weight for key, weight in of_diffusers().items() if key.startswith("transformer.")}
    oracle, fast = write(tmp_path / "oracle.safetensors", weights), make_fast(make_pipe())
    path = write(tmp_path / "style.safetensors", of_trainer(weights, prefix, dot))
    assert fast.load_loras(f"{path}:0.5")[0].sha256 == digest(path)
    assert torch.equal(drafted(fast), by_hand((oracle, 0.5)))


@pytest.mark.parametrize("prefix", ["diffusion_model.", "base_model.model.", "", "lora_transformer_"])
def test_the_published_names_of_flux_are_read_with_any_prefix(prefix: str, tmp_path: Path) -> None:
    oracle, fast = write(tmp_path / "oracle.safetensors", of_kohya()), make_fast(make_pipe())
    dots = {"double_blocks_0_img_attn_qkv": "double_blocks.0.img_attn.qkv", "single_blocks_0": "single_blocks.0"}
    named = {}
    for key, weight in of_kohya().items():
        for flat, dotted in dots.items():
            key = key.replace(flat, flat if prefix.endswith("_") else dotted)
        key = key.replace("lora_unet_", prefix).replace("lora_down", "lora_A").replace("lora_up", "lora_B")
        named[key] = weight
    fast.load_loras(write(tmp_path / "style.safetensors", named))
    assert torch.equal(drafted(fast), by_hand((oracle, 1.0)))


def test_the_name_of_an_adapter_in_the_keys_is_no_matter(tmp_path: Path) -> None:
    """As peft_model.state_dict() has it; diffusers alone leaves such weights uninitialised."""
    weights = of_diffusers() | of_dora(1)
    oracle, fast = write(tmp_path / "oracle.safetensors", weights), make_fast(make_pipe())
    named = {key.replace(".weight", ".default.weight"): weight for key, weight in weights.items()}
    for key in [key for key in named if key.endswith("magnitude_vector")]:
        named[f"{key}.default.weight"] = named.pop(key)
    fast.load_loras(write(tmp_path / "all.safetensors", named))
    assert torch.equal(drafted(fast), by_hand((oracle, 1.0)))
    half = dict(list(weights.items())[:4]) | dict(list(named.items())[4:])
    fast.load_loras(write(tmp_path / "half.safetensors", half))
    assert torch.equal(drafted(fast), by_hand((oracle, 1.0)))
    half = {key.removeprefix("transformer.") if "single" in key else key: weights[key] for key in weights}
    fast.load_loras(write(tmp_path / "prefixes.safetensors", half))
    assert torch.equal(drafted(fast), by_hand((oracle, 1.0)))


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_an_adapter_whose_weights_are_not_the_files_is_taken_out(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loras, "_ADAPTER", re.compile("(?!)()"))  # as if such keys were new
    named = {
        key.replace(".weight", ".new.weight") if key.startswith(part) else key: weight
        for key, weight in of_diffusers().items()
    }
    fast = make_fast(make_pipe())
    bare, before = drafted(fast), state(fast.pipe)
    with pytest.raises(LoraError, match="The LoRA odd does not fit FluxPipeline here"):
        fast.load_loras(write(tmp_path / "odd.safetensors", named))
    assert torch.equal(drafted(fast), bare)
    assert state(fast.pipe) == before


def test_several_at_once_each_at_its_weight(folder: Path) -> None:
    fast = make_fast(make_pipe())
    assert fast.load_loras(folders=[folder]) == ()
    plain = drafted(fast)
    both = drafted(fast, loras=["style:0.5", {"name": "light/dusk", "weight": -0.25}])
    one, other = folder / "style.safetensors", folder / "light" / "dusk.safetensors"
    assert torch.equal(both, by_hand((one, 0.5), (other, -0.25)))
    assert torch.equal(drafted(fast, loras="light/dusk"), by_hand((other, 1.0)))
    assert torch.equal(drafted(fast), plain)


def test_the_refine_pass_has_them_too(folder: Path) -> None:
    fast, image = make_fast(make_pipe()), torch.full((1, 3, 32, 32), 0.5)
    fast.load_loras(folders=[folder])
    bare = fast.enhance(image, "a red boat", **ASKED)
    made = fast.enhance(image, "a red boat", **ASKED, loras=["style"])
    assert bytes_of(made.images) != bytes_of(bare.images)
    again = fast.replay(made.recipes[0], image)
    assert bytes_of(again.images) == bytes_of(made.images)


def test_the_callers_own_adapters_stay_as_they_are(folder: Path) -> None:
    pipe = make_pipe()
    pipe.load_lora_weights(of_kohya(3), adapter_name="own")
    pipe.set_adapters("own", 0.5)
    fast = make_fast(pipe)
    alone = drafted(fast)
    fast.load_loras(f"{folder}/style.safetensors")
    both = fast.draft("a red boat", **ASKED)[0]
    assert not torch.equal(both.pixels, alone)
    assert (both.recipe.conditions["lora.own"], both.recipe.loras[0].name) == ("0.5", "style")
    assert torch.equal(drafted(fast, loras=()), alone)
    fast.load_loras()
    assert torch.equal(drafted(fast), alone)
    pipe.disable_lora()
    bare = drafted(fast)
    fast.load_loras(f"{folder}/style.safetensors")
    assert torch.equal(drafted(fast), by_hand((folder / "style.safetensors", 1.0)))
    assert torch.equal(drafted(fast, loras=()), bare)


def test_a_call_may_scale_them_on_top(folder: Path) -> None:
    fast = make_fast(make_pipe())
    fast.load_loras(f"{folder}/style.safetensors:0.5")
    scaled = drafted(fast, joint_attention_kwargs={"scale": 0.5})
    assert torch.allclose(scaled, by_hand((folder / "style.safetensors", 0.25)), atol=1e-6)
    assert torch.equal(drafted(fast), by_hand((folder / "style.safetensors", 0.5)))


def test_recipes_name_hash_and_weigh_them(folder: Path, tmp_path: Path) -> None:
    fast = make_fast(make_pipe())
    fast.load_loras(f"{folder}/style.safetensors:0.8")
    result = fast("a red boat", **ASKED)
    recipe = Recipe.from_json(result.recipes[0].to_json())
    assert recipe.loras == (Lora(name="style", weight=0.8, sha256=digest(folder / "style.safetensors")),)
    assert bytes_of(fast.replay(recipe).images) == bytes_of(result.images)
    other = make_fast(make_pipe())
    with pytest.raises(LoraNameError, match=r"'style' of the hash \w{12}; known are: none\.$"):
        other.replay(recipe)
    (tmp_path / "renamed.safetensors").write_bytes((folder / "style.safetensors").read_bytes())
    other.load_loras(folders=[tmp_path])
    assert bytes_of(other.replay(recipe).images) == bytes_of(result.images)


def test_a_draft_is_finished_with_its_own(folder: Path, tmp_path: Path) -> None:
    fast = make_fast(make_pipe())
    fast.load_loras(folders=[folder])
    draft = fast.draft("a red boat", **ASKED, loras=["style"])[0]
    path = draft.save(tmp_path / "draft.png")
    assert bytes_of(fast.finish(draft).images) == bytes_of(fast("a red boat", **ASKED, loras=["style"]).images)
    again = fast.finish(Draft.from_image(path))
    assert again.recipes[0].loras == draft.recipe.loras
    with pytest.raises(LoraNameError, match="style"):
        make_fast(make_pipe()).finish(Draft.from_image(path))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["nope"], r"no LoRA 'nope'; known are: light/dusk, style\.$"),
        (["Stlye"], r"known are: light/dusk, style\. Did you mean style\?$"),
        (["../style"], r"no LoRA '\.\./style'"),
        ("style:11", r"weight of the LoRA 'style' is 11.*from -10 to 10"),
        ("style:nan", r"weight of the LoRA 'style' is nan"),
        (["style", "style:0.5"], r"'style' is given twice"),
        ([{"name": "style", "path": "/etc/passwd"}], r"must be a name, NAME:WEIGHT or an object"),
        ([7], r"A LoRA is 7; it must be a name"),
        ([""], r"name is ''; it must be a short text"),
        (["style"] * 17, r"given twice|at most 16"),
    ],
)
def test_what_cannot_be_asked_for(given: Any, text: str, folder: Path) -> None:
    fast = make_fast(make_pipe())
    fast.load_loras(folders=[folder])
    with pytest.raises(RequestError, match=text):
        fast("a red boat", loras=given)


def test_texts_and_objects_say_the_same() -> None:
    expected = (Lora(name="C:\\a b", weight=0.5), Lora(name="light"))
    assert read_loras("C:\\a b:0.5, light") == expected
    assert read_loras([{"name": "C:\\a b", "weight": 0.5}, "light"]) == expected
    assert (read_loras(None), read_loras(""), read_loras([])) == (None, (), ())


def _weights(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {name.replace("__", "."): torch.zeros(*shape) for name, shape in shapes.items()}


_Q = "transformer__transformer_blocks__0__attn__to_q__lora"
UNFIT = {
    "another family": (
        _weights(unet__down__lora_A__weight=(4, 8), unet__down__lora_B__weight=(8, 4)),
        "fits Flux",
    ),
    "unknown layers": (
        _weights(transformer__x__lora_A__weight=(4, 32), transformer__x__lora_B__weight=(32, 4)),
        "fits",
    ),
    "smaller": (
        _weights(**{f"{_Q}_A__weight": (4, 16), f"{_Q}_B__weight": (32, 4)}),
        "expects 16 .* model has 32",
    ),
    "larger": (_weights(**{f"{_Q}_A__weight": (4, 64), f"{_Q}_B__weight": (32, 4)}), "expects 64 .* model has 32"),
    "other outputs": (
        _weights(**{f"{_Q}_A__weight": (4, 32), f"{_Q}_B__weight": (48, 4)}),
        r"expects 48 .*lora_B\.weight, and the model has 32",
    ),
    "other ranks": (
        _weights(**{f"{_Q}_A__weight": (2, 32), f"{_Q}_B__weight": (32, 4)}),
        r"is damaged: .* \(2, 32\) .* \(32, 4\) have two ranks",
    ),
    "no matrices": (_weights(**{f"{_Q}_A__weight": (4,), f"{_Q}_B__weight": (4,)}), "damaged"),
    "half": (_weights(**{f"{_Q}_A__weight": (4, 32)}), r"has \S+to_q\.lora_A\.weight without \S+lora_B\.weight"),
    "other half": ({k: v for k, v in of_diffusers().items() if "_A" not in k or "text" not in k}, "without"),
    "whole numbers": (
        {k: v.to(torch.int8) for k, v in of_diffusers().items()},
        r"torch\.int8\. Take one in float",
    ),
    "several": (
        {f"{_Q.replace('__', '.')}_{k}.weight": torch.ones(4, 4) for k in ("A.one", "A.two", "B.one", "B.two")},
        "several adapters",
    ),
    "a magnitude short": (
        {k: v for k, v in of_dora().items() if "magnitude" not in k or "single" not in k},
        "no weights for transformer.single_transformer_blocks.0.attn.to_q.lora_magnitude_vector",
    ),
    "text encoder of another model": (
        {k.replace("layers.0", "layers.9"): v for k, v in of_diffusers().items() if "text" in k},
        "for another model than",
    ),
    "control": (
        {**of_diffusers(), "transformer.transformer_blocks.0.attn.norm_q.weight": torch.ones(16)},
        "control",
    ),
    "no LoRA": (_weights(a__weight=(4, 4)), "no LoRA"),
    "LoHa": (_weights(lora_unet_x__hada_w1_a=(4, 4)), "LoHa"),
    "empty": ({}, "no LoRA"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_file_that_does_not_fit_is_refused_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    weights, text = UNFIT[name]
    fast = make_fast(make_pipe())
    bare, before = drafted(fast), state(fast.pipe)
    with pytest.raises(LoraError, match=text):
        fast.load_loras(write(tmp_path / "bad.safetensors", weights))
    assert torch.equal(drafted(fast), bare)
    assert state(fast.pipe) == before
    assert not any(hasattr(part, "base_layer") for part in fast.pipe.transformer.modules())
    fast.load_loras(write(tmp_path / "good.safetensors"))
    assert not torch.equal(drafted(fast), bare)


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = make_fast(make_pipe())
    torch.save(of_diffusers(), tmp_path / "pickle.bin")
    (tmp_path / "cut.safetensors").write_bytes(write(tmp_path / "a.safetensors").read_bytes()[:100])
    for source, text in (
        (tmp_path / "pickle.bin", "pickle.bin is no .safetensors file"),
        (f"{tmp_path / 'a.safetensors'}:much", "has the weight 'much'; it must be a number"),
        (tmp_path / "cut.safetensors", "damaged"),
        (tmp_path / "gone.safetensors", "There is no LoRA"),
        ("gone.safetensors", "There is no LoRA"),
    ):
        with pytest.raises(LoraError, match=text):
            fast.load_loras(source)
    with pytest.raises(LoraNameError, match="no folder"):
        fast.load_loras(folders=[tmp_path / "none"])
    with monkeypatch.context() as patch:  # which root may read
        patch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
        with pytest.raises(LoraNameError, match=f"no folder {tmp_path} of LoRAs that can be read"):
            fast.load_loras("a", folders=[tmp_path])
    with pytest.raises(LoraNameError, match="a is given twice"):
        fast.load_loras(tmp_path / "a.safetensors", f"{tmp_path / 'a.safetensors'}:0.5")
    with pytest.raises(LoraNameError, match=r"no LoRA 'Cutt'.*in the folder of LoRAs \(a, cut\).* mean cut\?"):
        fast.load_loras("Cutt", folders=[tmp_path])
    lokr = {"diffusion_model.double_blocks.0.img_attn.qkv.lokr_w1": torch.ones(2, 2)}
    save_file(lokr, tmp_path / "lokr.safetensors")
    with pytest.raises(LoraError, match=r"is a LoKr, which diffusers reads for FLUX\.2 and Z-Image alone"):
        fast.load_loras(tmp_path / "lokr.safetensors")
    (tmp_path / "b").mkdir()
    with pytest.raises(LoraNameError, match="both called 'a'"):
        fast.load_loras(tmp_path / "a.safetensors", write(tmp_path / "b" / "a.safetensors"))
    monkeypatch.setattr(loras, "MAX_BYTES", 100)
    with pytest.raises(LoraError, match="at most 100"):
        fast.load_loras(tmp_path / "a.safetensors")


def test_a_lokr_of_z_image_works_and_is_gone_again(tmp_path: Path) -> None:
    pipe = families.CASES["ZImagePipeline"].make()
    layers = [name for name, _ in pipe.transformer.named_modules() if name.endswith("attention.to_q")]
    weights = {
        f"diffusion_model.{name}.lokr_w{k}": torch.randn(s, s) for name in layers for k, s in ((1, 4), (2, 8))
    }
    save_file(weights, tmp_path / "kron.safetensors")
    fast, asked = MrFlow(pipe, "bicubic"), {"width": 64, "height": 64, "plan": "1+1", "seed": 7}
    before = bytes_of(fast("a boat", **asked).images)
    fast.load_loras(tmp_path / "kron.safetensors")
    assert bytes_of(fast("a boat", **asked).images) != before
    assert bytes_of(fast("a boat", loras=[], **asked).images) == before


def test_a_lokr_that_would_fuse_the_model_for_good_is_refused(tmp_path: Path) -> None:
    weights = {f"diffusion_model.double_blocks.0.img_attn.qkv.lokr_w{k}": torch.ones(2, 2) for k in (1, 2)}
    save_file(weights, tmp_path / "kron.safetensors")
    with pytest.raises(LoraError, match="a LoKr of queries, keys and values in one"):
        MrFlow(families.CASES["Flux2Pipeline"].make(), "bicubic").load_loras(tmp_path / "kron.safetensors")


def test_without_peft_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loras, "find_spec", lambda name: None if name == "peft" else find_spec(name))
    with pytest.raises(MissingExtraError, match=r"\.\[lora\]"):
        make_fast(make_pipe()).load_loras(folder / "style.safetensors")


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    more = _weights(transformer__gone__lora_A__weight=(4, 32), transformer__gone__lora_B__weight=(32, 4))
    with pytest.warns(
        MrFlowWarning, match=r"fits in part, without 1 of its 6 layers, .*'transformer.gone.lora_A.weight'"
    ):
        make_fast(make_pipe()).load_loras(write(tmp_path / "a.safetensors", of_diffusers() | more))
    dora = of_kohya() | {"lora_unet_double_blocks_0_img_attn_qkv.dora_scale": torch.ones(96, 1)}
    with pytest.warns(MrFlowWarning, match="without 1 magnitudes of a DoRA"):
        make_fast(make_pipe()).load_loras(write(tmp_path / "b.safetensors", dora))


def test_the_oldest_leave_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loras, "_MOST_LOADED", 2)
    for k in range(4):
        write(tmp_path / f"n{k}.safetensors", of_diffusers(k))
    fast = make_fast(make_pipe())
    fast.load_loras(folders=[tmp_path])
    pictures = [drafted(fast, loras=[f"n{k}"]) for k in range(4)]
    assert len(loras.loaded(fast.pipe)) == 2
    three = drafted(fast, loras=["n0", "n1", "n2"])
    assert torch.equal(three, by_hand(*((tmp_path / f"n{k}.safetensors", 1.0) for k in range(3))))
    for k in (2, 0, 3, 1):
        assert torch.equal(drafted(fast, loras=[f"n{k}"]), pictures[k])


def test_a_hub_id_is_found_in_the_cache_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    inside = tmp_path / "models--ann--boats" / "snapshots" / ("0" * 40)
    inside.mkdir(parents=True)
    (inside.parents[1] / "refs").mkdir()
    (inside.parents[1] / "refs" / "main").write_text("0" * 40)
    path = write(inside / "pytorch_lora_weights.safetensors")
    found = loras.find_loras(["ann/boats:0.5"])
    assert found.usual == (Lora(name="boats", weight=0.5, sha256=digest(path)),)
    write(inside / "second.safetensors", of_diffusers(1))
    with pytest.raises(LoraNameError, match=r"has 2 .safetensors files: .*second"):
        loras.find_loras(["ann/boats"])
    assert loras.find_loras(["ann/boats/second.safetensors"]).usual[0].name == "second"
    with pytest.raises(LoraError, match="ann/gone is not on this machine"):
        loras.find_loras(["ann/gone"])


NO_LORAS = ("PRXPipeline", "PRXPixelPipeline")  # whose loader in diffusers 0.42.1 looks for a UNet
TAKES_LORAS = [
    case
    for case in families.CASES.values()
    if case.name not in NO_LORAS and hasattr(getattr(families.d, case.name), "load_lora_weights")
]


@pytest.mark.parametrize("case", TAKES_LORAS, ids=lambda case: case.name)
def test_every_family_that_takes_loras(case: families.Case, tmp_path: Path) -> None:
    fast = families.make_fast(case, case.make())
    bare = fast.draft("a red boat", seed=7)[0].pixels
    fast.load_loras(write(tmp_path / "style.safetensors", of_family(fast.pipe)))
    assert not torch.equal(fast.draft("a red boat", seed=7)[0].pixels, bare)
    off = fast.draft("a red boat", seed=7, loras=[])[0].pixels
    assert torch.allclose(off, bare, atol=1e-6)  # Krea 2's projector rounds by where its input lies in memory


WITH_CONVERTERS = ("Flux", "StableDiffusion3", "QwenImage", "ZImage", "Flux2Klein", "Krea2", "ErnieImage")


@pytest.mark.parametrize("family", WITH_CONVERTERS)  # of their own; the others passed it, too
def test_a_family_reads_diffusers_names_with_any_prefix(family: str, tmp_path: Path) -> None:
    pipe = families.CASES[f"{family}Pipeline"].make()
    weights = of_family(pipe)

    def loaded(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        loras.load(pipe, "mrflow_x", "style", write(tmp_path / "style.safetensors", weights))
        made = {name: each.clone() for name, each in pipe.transformer.named_parameters() if "mrflow_x" in name}
        loras.unload(pipe, ["mrflow_x"])
        return made

    expected = loaded(weights)
    assert len(expected) == len(weights)
    for prefix, dot in TRAINERS:
        made = loaded(of_trainer(weights, prefix, dot))
        assert all(torch.equal(made[name], expected[name]) for name in expected), prefix


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        (of_kohya(), r"kohya's layout \(lora_unet_\*\), which is not known for StableDiffusion3Pipeline"),
        (of_trainer(of_diffusers(), "diffusion_model.x."), "ComfyUI's layout .* is not known for"),
        (of_trainer(of_diffusers(), "base_model.model.x."), "peft's layout .* is not known for"),
        (of_trainer(of_diffusers(), "transformer.x."), "is for another model than"),
    ],
)
def test_a_layout_that_is_not_read_is_named(weights: Any, text: str, tmp_path: Path) -> None:
    pipe = families.CASES["StableDiffusion3Pipeline"].make()
    with pytest.raises(LoraError, match=text):
        MrFlow(pipe, "bicubic").load_loras(write(tmp_path / "style.safetensors", weights))


@pytest.mark.parametrize("name", ["Flux2KleinPipeline", "QwenImagePipeline"])
def test_a_lokr_of_layers_by_diffusers_names(name: str, tmp_path: Path) -> None:
    pipe = families.CASES[name].make()
    layer = "diffusion_model.transformer_blocks.0.attn.to_q.lokr_w"
    path = write(tmp_path / "kron.safetensors", {f"{layer}1": torch.ones(2, 2), f"{layer}2": torch.ones(16, 16)})
    if name == "Flux2KleinPipeline":
        loras.load(pipe, "mrflow_x", "kron", path)
        assert "mrflow_x" in pipe.transformer.transformer_blocks[0].attn.to_q.lokr_w1
        return
    with pytest.raises(LoraError, match=r"^kron is a LoKr, which diffusers reads for FLUX\.2 and Z-Image alone"):
        loras.load(pipe, "mrflow_x", "kron", path)


@pytest.mark.parametrize("name", ["OvisImagePipeline", "PRXPipeline"])
def test_a_family_that_takes_none_says_so(name: str, tmp_path: Path) -> None:
    fast = families.make_fast(families.CASES[name], families.CASES[name].make())
    with pytest.raises(LoraError, match=f"takes no LoRA|does not fit {name}"):
        fast.load_loras(write(tmp_path / "style.safetensors", of_family(fast.pipe)))
    assert not loras.loaded(fast.pipe)


def test_a_model_with_loras_has_one_lane(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    fast = make_fast(make_pipe())
    assert check_lanes(fast.model, None) == 4
    fast.load_loras(folders=[folder])
    assert check_lanes(fast.model, None) == 1
    with pytest.raises(RequestError, match="LoRAs makes one picture at a time"):
        check_lanes(fast.model, 2)


# --- the doors ---


@pytest.fixture(scope="module")
def expected(tiny: Path, folder: Path) -> dict[str, bytes]:
    """Return the pictures that Python makes, by their LoRAs."""
    fast = MrFlow.from_pretrained(tiny, upscaler="bicubic")
    fast.load_loras(folders=[folder])
    asked: dict[str, Any] = {"seed": 7, "plan": "2+1", "width": 32, "height": 32}
    texts = ("", "style:0.5", "light/dusk")
    made = {text: fast("a red boat", **asked, loras=text).images for text in texts}
    assert len(set(map(str, map(bytes_of, made.values())))) == len(texts)
    return {text: bytes_of(images)[0] for text, images in made.items()}


@pytest.fixture(scope="module")
def server(tiny: Path, folder: Path) -> Iterator[Server]:
    fast = MrFlow.from_pretrained(tiny, upscaler="bicubic")
    place = folder.parent / "served"
    place.mkdir(exist_ok=True)
    for path in folder.rglob("*.safetensors"):
        (place / path.relative_to(folder)).parent.mkdir(exist_ok=True)
        (place / path.relative_to(folder)).write_bytes(path.read_bytes())
    write(place / "unfit.safetensors", UNFIT["another family"][0])
    fast.load_loras(folders=[place])
    with serving(fast.model, draft_batch=1, a1111=True) as running:  # bit for bit, as alone
        yield running


def post(server: Server, **fields: Any) -> httpx.Response:
    body = {"prompt": "a red boat", "seed": 7, "plan": "2+1", "size": "32x32", **fields}
    return httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60)


def picture(answer: httpx.Response) -> tuple[bytes, Recipe]:
    from PIL import Image

    assert answer.status_code == 200, answer.text
    data = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return Image.open(BytesIO(data)).convert("RGB").tobytes(), read_recipe(BytesIO(data))


def test_command_line(tiny: Path, folder: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    base = [
        "generate",
        "a red boat",
        "--model",
        tiny,
        "--upscaler",
        "bicubic",
        "--plan",
        "2+1",
        "--seed",
        "7",
        "-s",
        "32",
    ]
    out = tmp_path / "a.png"
    result = invoke([*base, "--lora", f"{folder / 'style.safetensors'}:0.5", "--out", out])
    assert result.exit_code == 0, result.stderr
    from PIL import Image

    assert Image.open(out).convert("RGB").tobytes() == expected["style:0.5"]
    result = invoke([*base, "--lora", "light/dusk", "--loras-dir", folder, "--out", tmp_path / "b.png"])
    assert result.exit_code == 0, result.stderr
    assert Image.open(tmp_path / "b.png").convert("RGB").tobytes() == expected["light/dusk"]
    replayed = ["replay", out, "--model", tiny, "--out", tmp_path / "c.png"]
    missing = invoke(replayed)
    assert (missing.exit_code, missing.stderr.count("\n")) == (2, 1)
    assert "no LoRA 'style' of the hash" in missing.stderr
    assert "Give its file (--lora) or its folder (--loras-dir)." in missing.stderr
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "renamed.safetensors").write_bytes((folder / "style.safetensors").read_bytes())
    found = invoke(replayed, env={"MRFLOW_LORAS_DIR": str(tmp_path / "other")})
    assert (found.exit_code, "same pixels" in found.stderr) == (0, True), found.stderr
    wrong = invoke([*base, "--model", "no/such", "--lora", "gone.safetensors", "--out", tmp_path / "d.png"])
    assert "There is no LoRA 'gone.safetensors'" in wrong.stderr  # before any model is looked for


def test_batch_columns(tiny: Path, folder: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    from PIL import Image

    fast = MrFlow.from_pretrained(tiny, upscaler="bicubic")
    fast.load_loras(f"{folder / 'style.safetensors'}:0.5", folders=[folder])
    row = {"prompt": "a red boat", "seed": 7, "plan": "2+1"}
    rows: list[dict[str, Any]] = [
        {**row, "id": "usual"},
        {**row, "id": "none", "loras": []},
        {**row, "id": "dusk", "loras": [{"name": "light/dusk"}]},
        {**row, "id": "wrong", "loras": ["/etc/passwd"]},
    ]
    assert run(fast, tmp_path / "out", *rows, batch_size=4) == (3, 0, 1)
    names = {"usual": "style:0.5", "none": "", "dusk": "light/dusk"}
    for id, key in names.items():
        made = Image.open(tmp_path / "out" / f"{id}.png").convert("RGB").tobytes()
        assert made == expected[key], id
    assert "no LoRA '/etc/passwd'" in errors(tmp_path / "out")[0]["error"]
    assert "--lora" not in errors(tmp_path / "out")[0]["error"]
    assert run(fast, tmp_path / "out", *rows, batch_size=4) == (0, 3, 1)
    with pytest.raises(MrFlowError, match="loras"):
        run(fast, tmp_path / "out", *rows[:2], {**rows[2], "loras": "light/dusk:0.5"}, batch_size=4)


def test_a_column_of_a_table(tiny: Path, folder: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    from PIL import Image

    table = tmp_path / "rows.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "seed", "id", "loras"], ["a red boat", 7, "a", "style:0.5"]])
    result = invoke(
        [
            *("batch", table, "--model", tiny, "--upscaler", "bicubic", "--plan", "2+1", "--size", "32"),
            *("--loras-dir", folder, "--out", tmp_path / "out", "--json"),
        ]
    )
    assert result.exit_code == 0, result.stderr
    assert Image.open(tmp_path / "out" / "a.png").convert("RGB").tobytes() == expected["style:0.5"]
    (line,) = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert json.loads(line)["loras"][0]["weight"] == 0.5


def test_requests(server: Server, folder: Path, expected: dict[str, bytes]) -> None:
    listed = httpx.get(f"{server.url}/v1/loras").json()["data"]
    assert [each["id"] for each in listed] == ["light/dusk", "style", "unfit"]
    pixels, recipe = picture(post(server, loras=[{"name": "style", "weight": 0.5}]))
    assert pixels == expected["style:0.5"]
    assert recipe.loras == (Lora(name="style", weight=0.5, sha256=digest(folder / "style.safetensors")),)
    assert picture(post(server, loras=["style:0.5"]))[0] == expected["style:0.5"]
    assert picture(post(server))[0] == picture(post(server, loras=[]))[0] == expected[""]


def test_a1111s_clients_name_them_in_the_prompt(server: Server) -> None:
    body = {"prompt": "a red boat <lora:style:0.5> <lora:light/dusk>", "steps": 1, "width": 32, "height": 32}
    answer = httpx.post(f"{server.url}/sdapi/v1/txt2img", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    recipe = read_recipe(BytesIO(base64.b64decode(answer.json()["images"][0])))
    assert (recipe.prompt, recipe.loras[0].weight, recipe.loras[1].name) == ("a red boat", 0.5, "light/dusk")
    for wrong, status in (("<lora:stlye:1>", 422), ("<lora:style:11>", 400)):
        answer = httpx.post(
            f"{server.url}/sdapi/v1/txt2img", json={**body, "prompt": f"a boat {wrong}"}, timeout=60
        )
        assert check_error(answer, status)["param"].startswith("loras")


def test_requests_at_once_get_their_own(server: Server, expected: dict[str, bytes]) -> None:
    wanted = list(expected) * 4
    bodies = [
        [{"name": t.partition(":")[0], "weight": float(t.partition(":")[2] or 1)}] if t else [] for t in wanted
    ]
    with ThreadPoolExecutor(len(wanted)) as pool:
        answers = list(pool.map(lambda body: picture(post(server, loras=body))[0], bodies))
    assert answers == [expected[text] for text in wanted]


def test_an_edit_says_them_as_json(server: Server) -> None:
    from PIL import Image

    file = BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, "PNG")
    fields = {"prompt": "a red boat", "seed": "7", "plan": "2+1"}
    url, image = f"{server.url}/v1/images/edits", {"image": file.getvalue()}
    bare = picture(httpx.post(url, data=fields, files=image, timeout=60))
    made = picture(httpx.post(url, data={**fields, "loras": '[{"name": "style"}]'}, files=image, timeout=60))
    assert (made[0] != bare[0], made[1].loras[0].name) == (True, "style")
    for text in ("[{", "style", "[" * 10_000):
        check_error(httpx.post(url, data={**fields, "loras": text}, files=image, timeout=60), 400)


@pytest.mark.parametrize(
    ("given", "status", "text"),
    [
        ([{"name": "/etc/passwd"}], 422, "no LoRA '/etc/passwd'"),
        ([{"name": "../style"}], 422, "no LoRA"),
        ([{"name": "stlye"}], 422, "Did you mean style?"),
        ([{"name": "style", "weight": 11}], 400, "loras"),
        ([{"name": "style"}, {"name": "style"}], 422, "given twice"),
        ([{"name": "style", "path": "x"}], 400, "loras"),
        (["style:11"], 400, "loras"),
        (["stlye:0.5"], 422, "Did you mean style?"),
        ([{"name": f"n{k}"} for k in range(17)], 400, "loras"),
        ([{"name": "unfit"}], 422, "None of the 2 keys of the LoRA unfit fits FluxPipeline"),
    ],
)
def test_requests_that_are_refused(server: Server, given: Any, status: int, text: str) -> None:
    error = check_error(post(server, loras=given), status)
    assert text in f"{error['param']} {error['message']}"
    assert "served" not in error["message"]
    assert "--lora" not in error["message"]
    assert picture(post(server))[0]
