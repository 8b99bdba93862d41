"""Folders that are broken, or not to be trusted: one sentence each that names the part, through each door."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from mrflow import MrFlow, estimate
from mrflow.architectures import read_folder
from mrflow.errors import ModelError, ModelNameError
from mrflow.folders import components, read_index
from mrflow.weights import check_fit, check_folder
from support import families
from support.cli import invoke

Break = Callable[[Path], Any]


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "tiny"))


def index(**changes: Any) -> Break:
    def change(folder: Path) -> None:
        path = folder / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def configure(part: Path, **changes: Any) -> None:
    path = part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit(part: str, keep: Callable[[str], bool], prefix: str = "", *, pickled: bool = False) -> Break:
    """Return what leaves out some weights of a part and gives the others names that begin otherwise."""

    def change(folder: Path) -> None:
        (file,) = (folder / part).glob("*.safetensors")
        weights = {prefix + key: each for key, each in load_file(file).items() if keep(key)}
        save_file(weights, file, {"format": "pt"})
        if pickled:
            torch.save(weights, file.with_name("pytorch_model.bin"))
            file.unlink()

    return change


def pickle(part: Path) -> None:
    (file,) = part.glob("*.safetensors")
    torch.save({"weight": Path("more than weights")}, part / "pytorch_model.bin")
    file.unlink()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


BROKEN: list[tuple[Break, str]] = [
    (lambda f: shutil.rmtree(f / "vae"), "no folder vae, which its model_index.json names"),
    (lambda f: shutil.rmtree(f / "tokenizer"), "no folder tokenizer"),
    (
        lambda f: [each.unlink() for each in (f / "transformer").glob("*.safetensors")],
        "transformer has no weights",
    ),
    (
        lambda f: [each.unlink() for each in (f / "text_encoder").glob("*.safetensors")],
        "text_encoder has no weights",
    ),
    (lambda f: (f / "model_index.json").write_text("{"), "model_index.json is damaged"),
    (lambda f: (f / "model_index.json").write_text("[1]"), "holds no JSON object"),
    (lambda f: (f / "model_index.json").write_bytes(b"\xff\xfe{}"), "model_index.json is damaged"),
    (lambda f: (f / "model_index.json").write_text("{}"), "names no pipeline: its _class_name is None"),
    (index(_class_name=7), "its _class_name is 7"),
    (index(_class_name=["FluxPipeline"]), "its _class_name is"),
    (index(**{"../outside": ["diffusers", "AutoencoderKL"]}), "the component '../outside'"),
    (index(vae=["diffusers"]), "the component 'vae'"),
    (index(vae=["diffusers", None]), "the component 'vae'"),
    (
        lambda f: (f / "transformer/config.json").write_text("[1]"),
        "transformer/config.json is damaged: it holds no",
    ),
    (
        lambda f: (f / "text_encoder/config.json").write_text("7"),
        "text_encoder/config.json is damaged: it holds no",
    ),
    (lambda f: (f / "scheduler/scheduler_config.json").write_text("[]"), "scheduler_config.json is damaged"),
    (lambda f: (f / "tokenizer/tokenizer_config.json").write_text("{"), "tokenizer_config.json is damaged"),
    (lambda f: (f / "tokenizer_2/tokenizer.json").write_text('{"a": 1}'), "it holds no tokenizer's model"),
    (lambda f: [each.unlink() for each in (f / "tokenizer").iterdir()], "tokenizer is empty"),
    (
        lambda f: configure(f / "transformer", num_layers=10**9),
        "config.json has num_layers 1000000000;",
    ),
    (lambda f: configure(f / "vae", layers_per_block=5000), "config.json has layers_per_block 5000"),
]
UNFIT: list[tuple[Break, str]] = [
    (index(text_encoder=[None, None]), "has no text_encoder, which a FluxPipeline expects"),
    (lambda f: (f / "text_encoder/config.json").unlink(), "config.json cannot be read: No such"),
    (lambda f: (f / "vae/config.json").unlink(), "config.json cannot be read: No such"),
    (lambda f: configure(f / "transformer", num_layers="two"), "config.json describes no FluxTransformer2DModel"),
    (lambda f: configure(f / "text_encoder", intermediate_size=24), "fc1.bias of shape (16,), where"),
    (lambda f: configure(f / "text_encoder_2", num_layers=2), "text_encoder_2 of"),
    (edit("text_encoder", lambda key: "q_proj.weight" not in key), "layers.0.self_attn.q_proj.weight. Is its"),
    (edit("text_encoder", lambda key: False), "and 19 more. Is its download complete?"),
    (edit("text_encoder_2", lambda key: "shared" not in key), "lacks weights, such as shared.weight. Is its"),
    (
        edit("transformer", lambda key: "proj_out.bias" not in key),
        "lacks weights, such as proj_out.bias and 1 more",
    ),
    (edit("text_encoder", lambda key: True, "foo."), "text_encoder of"),
    (edit("transformer", lambda key: True, "foo."), "transformer of"),
    (edit("text_encoder", lambda key: "fc1" not in key, pickled=True), "fc1.bias and 1 more"),
    (lambda f: pickle(f / "text_encoder"), "pytorch_model.bin is damaged, or holds more than weights"),
    (lambda f: cut(f / "transformer/diffusion_pytorch_model.safetensors"), "is no whole .safetensors file"),
    (lambda f: cut(f / "text_encoder_2/model.safetensors"), "is no whole .safetensors file"),
]


@pytest.mark.parametrize(("damage", "said"), BROKEN)
def test_a_broken_folder_names_what_is_broken_at_each_door(folder: Path, damage: Break, said: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match="tiny") as told:
        MrFlow.from_pretrained(folder)
    assert said in str(told.value)
    result = invoke(["check", str(folder)])
    assert (result.exit_code, said in " ".join(result.stdout.split())) == (1, True), result.stdout
    assert result.stderr == ""
    if "weights" not in said:
        with pytest.raises(ModelError):
            estimate(str(folder))


@pytest.mark.parametrize(("damage", "said"), UNFIT)
def test_weights_that_fit_no_configuration_are_refused_before_they_are_read(
    folder: Path, damage: Break, said: str
) -> None:
    damage(folder)
    with pytest.raises(ModelError, match="tiny") as told:
        MrFlow.from_pretrained(folder, upscaler="bicubic")
    assert said in str(told.value)
    assert "\n" not in str(told.value)
    result = invoke(["check", str(folder)])
    assert (result.exit_code, str(told.value) in " ".join(result.stdout.split())) == (1, True), result.stdout


def test_a_family_that_cannot_work_is_said_first(folder: Path) -> None:
    index(_class_name="StableDiffusionXLPipeline")(folder)
    with pytest.raises(ModelError, match="which cannot work"):
        MrFlow.from_pretrained(folder, upscaler="bicubic")
    assert "which cannot work" in " ".join(invoke(["check", str(folder)]).stdout.split())


def test_a_base_is_held_to_the_same(folder: Path, tiny: Path, tmp_path: Path) -> None:
    edit("text_encoder", lambda key: "q_proj.weight" not in key)(folder)
    file = shutil.copy(tiny / "transformer/diffusion_pytorch_model.safetensors", tmp_path)
    with pytest.raises(ModelError, match=r"The text_encoder of .* lacks weights, such as .*q_proj"):
        MrFlow.from_pretrained(file, base=folder, upscaler="bicubic")
    with pytest.raises(ModelError, match=r"The text_encoder of .*q_proj"):
        MrFlow.from_pretrained(folder, text_encoder_2=None, upscaler="bicubic")
    mine = t.CLIPTextModel.from_pretrained(tiny / "text_encoder")
    assert MrFlow.from_pretrained(folder, text_encoder=mine, upscaler="bicubic").pipe.text_encoder is mine


PUBLISHED: list[tuple[Any, dict[str, str]]] = [
    (t.CLIPTextModel, {r"^(text_model\.)?": "text_model."}),  # FLUX.1's, Stable Diffusion 3's
    (t.T5EncoderModel, {r"^encoder\.embed_tokens\..*": ""}),  # with the shared table alone
    (t.Qwen3Model, {"^": "model.", "^lm_head.*": ""}),  # Z-Image's
    (t.Qwen3ForCausalLM, {"^lm_head.*": ""}),
    (t.GemmaModel, {"^": "model."}),
    (
        t.Qwen2_5_VLForConditionalGeneration,  # Qwen-Image's
        {r"^model\.visual\.": "visual.", r"^model\.language_model\.": "model.", "^lm_head.*": ""},
    ),
    (
        t.Mistral3ForConditionalGeneration,  # FLUX.2's
        {
            r"^model\.language_model\.": "language_model.model.",
            r"^model\.(vision_tower|multi_modal_projector)": r"\1",
            r"^lm_head": "language_model.lm_head",
        },
    ),
]


@pytest.mark.parametrize(("kind", "renamed"), PUBLISHED, ids=[kind.__name__ for kind, _ in PUBLISHED])
def test_published_names_of_text_encoders_are_known(kind: Any, renamed: dict[str, str], tmp_path: Path) -> None:
    """Those that transformers itself finds under others, or has twice, are no missing weights; one less is."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"vocab_size": 32, "num_key_value_heads": 1, "head_dim": 8}
    small |= (
        {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2} if "T5" in kind.__name__ else {}
    )
    parts = {"text_config": small, "vision_config": {**small, "depth": 1, "num_heads": 2, "out_hidden_size": 16}}
    config = kind.config_class(**(parts if "Conditional" in kind.__name__ else small))
    made = kind(config)
    config.save_pretrained(tmp_path)
    weights = made.state_dict()
    for pattern, other in renamed.items():
        weights = {re.sub(pattern, other, key, count=1): each for key, each in weights.items()}
    weights.pop("", None)
    assert weights.keys() != made.state_dict().keys()
    check_fit(kind, tmp_path, weights, "It", "")
    weights.pop(next(key for key in sorted(weights) if "norm" in key))
    with pytest.raises(ModelError, match=r"It lacks weights, such as \S*norm\S*\."):
        check_fit(kind, tmp_path, weights, "It", "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_is_said_so(folder: Path) -> None:
    (folder / "model_index.json").chmod(0)
    with pytest.raises(ModelError, match="Permission denied"):
        MrFlow.from_pretrained(folder)


@pytest.mark.parametrize("index", [".index.json", ".index.fp16.json"])
@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_an_index_of_shards_stays_in_its_folder(folder: Path, part: str, index: str) -> None:
    (weights,) = (folder / part).glob("*.safetensors")
    keys = load_file(weights).keys()
    outside = folder.parent / "outside.safetensors"
    weights.rename(outside)
    shutil.copy(outside, folder / part / "unused.safetensors")
    told = {"metadata": {}, "weight_map": dict.fromkeys(keys, "../../outside.safetensors")}
    (folder / part / f"{weights.name}{index}").write_text(json.dumps(told))
    with pytest.raises(ModelError, match=r"names the file '../../outside.safetensors', which is not beside it"):
        MrFlow.from_pretrained(folder)


def test_a_name_is_looked_for_before_its_base(tmp_path: Path) -> None:
    for source in ("gone.gguf", "mien", str(tmp_path / "pickle.pt")):
        with pytest.raises(ModelNameError, match="There is no model"):
            MrFlow.from_pretrained(source, base="flux-dev")
    with pytest.raises(ModelNameError, match="base is flux-dev"):
        MrFlow.from_pretrained("flux-schnell", base="flux-dev")


@pytest.mark.parametrize("command", [["check", "tiny"], ["generate", "a boat", "--model", "tiny"]])
def test_folders_of_models_must_be_there(
    command: list[str], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = invoke([*command, "--models-dir", str(tmp_path / "gone")])
    assert result.exit_code == 2
    assert "gone of models (--models-dir or MRFLOW_MODELS_DIR)" in result.stderr
    assert invoke(["check", "tiny", "--models-dir", str(tiny.parent)]).exit_code == 0
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tiny.parent)  # which root may read
    result = invoke([*command, "--models-dir", str(tiny.parent)])
    assert (result.exit_code, f"no folder {tiny.parent} of models" in result.stderr) == (2, True)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of diffusers' own, when a pipeline is saved
@pytest.mark.parametrize("kind", sorted(families.CASES))
def test_what_each_family_saves_is_whole(kind: str, tmp_path: Path) -> None:
    pipe = families.CASES[kind].make()
    if not hasattr(pipe, "save_pretrained"):
        pytest.skip("has a library of its own")
    pipe.save_pretrained(tmp_path)
    check_folder(tmp_path, {"processor"})  # here some have a stand-in that can't be saved
    for found in (components(read_index(tmp_path)), read_folder(tmp_path)["components"]):
        assert {"scheduler", "transformer", "vae"} & pipe.components.keys() <= found.keys()
