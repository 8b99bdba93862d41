"""Single files: the transformer in a .safetensors or .gguf file, the rest from its base."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from safetensors.torch import load_file, save_file

from conftest import make_pipe
from mrflow import MrFlow, read_recipe, single_files, weights
from mrflow.architectures import make_component, read_architecture
from mrflow.errors import MissingExtraError, ModelError, ModelNameError
from mrflow.folders import find_model, identify
from mrflow.hub import fetch_command
from mrflow.known_models import KNOWN
from mrflow.single_files import find_base
from support import families
from support.cli import invoke
from support.gguf_files import write_gguf
from support.pictures import bytes_of
from support.pipelines import aligned

ASKED: dict[str, Any] = {"width": 64, "height": 64, "plan": "1+1", "seed": 7}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny model whose transformer is another than the file's."""
    pipe, place = make_pipe(), tmp_path_factory.mktemp("base") / "tiny"
    torch.nn.init.normal_(pipe.transformer.proj_out.weight, std=0.5)
    pipe.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("files") / "diffusion_models" / "mine.safetensors"
    place.parent.mkdir()
    save_file(make_pipe().transformer.state_dict(), place)
    return place


def load(source: Path, base: Path | str | None = None) -> MrFlow:
    return MrFlow.from_pretrained(source, base=base, upscaler="bicubic")


def test_a_file_is_the_transformer_and_the_base_the_rest(file: Path, base: Path) -> None:
    expected = MrFlow(make_pipe(), "bicubic")("a red boat", **ASKED)
    read = load(file, base)
    aligned(read.pipe)
    made = read("a red boat", **ASKED)
    assert bytes_of(made.images) == bytes_of(expected.images)
    assert bytes_of(made.images) != bytes_of(load(base)("a red boat", **ASKED).images)
    assert (made.recipes[0].model, made.recipes[0].revision) == ("mine.safetensors", identify(str(file))[1])


def test_a_checkpoint_as_comfyui_keeps_it(tmp_path: Path) -> None:
    """Keys with a prefix, and parts of other kinds beside them, which the base has."""
    case = families.CASES["QwenImagePipeline"]
    case.make().save_pretrained(tmp_path / "base")
    weights = {f"model.diffusion_model.{k}": v for k, v in case.make().transformer.state_dict().items()}
    save_file({**weights, "vae.post_quant.weight": torch.zeros(1)}, tmp_path / "all.safetensors")
    own, read = case.make().transformer.state_dict(), load(tmp_path / "all.safetensors", tmp_path / "base")
    found = read.pipe.transformer.state_dict()
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], own[name]) for name in own)
    weights.popitem()
    save_file(weights, tmp_path / "less.safetensors")
    with pytest.raises(ModelError, match=r"less.*, as the transformer of .*base, lacks weights, such as"):
        load(tmp_path / "less.safetensors", tmp_path / "base")


def as_published(vae: dict[str, torch.Tensor], levels: int) -> dict[str, torch.Tensor]:
    """Return an autoencoder's weights under the names that its authors gave them (CompVis, latent-diffusion)."""
    names = [
        (r"conv_norm_out", "norm_out"),
        (r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}"),
        (r"mid_block\.attentions\.0\.", "mid.attn_1."),
        (r"attn_1\.group_norm", "attn_1.norm"),
        (r"attn_1\.to_(q|k|v)\.", r"attn_1.\1."),
        (r"attn_1\.to_out\.0", "attn_1.proj_out"),
        (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets\.(\d)", lambda found: f"up.{levels - 1 - int(found[1])}.block.{found[2]}"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{levels - 1 - int(found[1])}.upsample"),
        (r"conv_shortcut", "nin_shortcut"),
    ]
    made = {}
    for name, weight in vae.items():
        attention = "attentions" in name and weight.ndim == 2
        for pattern, other in names:
            name = re.sub(pattern, other, name)
        made[name] = weight[..., None, None].clone() if attention else weight  # a convolution there
    return made


@pytest.mark.parametrize("kind", single_files.PARTS)
def test_a_whole_checkpoint_brings_its_autoencoder_and_text_encoders(kind: str, tmp_path: Path) -> None:
    case, parts = families.CASES[kind], single_files.PARTS[kind]
    own, other = case.make(), case.make()
    for name in ("transformer", *parts):
        for weight in getattr(other, name).parameters():
            torch.nn.init.normal_(weight, std=0.3)
    other.save_pretrained(tmp_path / "base")
    weights = {f"model.diffusion_model.{key}": each for key, each in own.transformer.state_dict().items()}
    for name, prefix in parts.items():
        held = getattr(own, name).state_dict()
        if name == "vae":
            held = as_published(held, len(own.vae.config.block_out_channels))
        elif "clip" in prefix:  # older transformers kept all but the projection inside a text_model
            held = {key if key.startswith("text_") else f"text_model.{key}": each for key, each in held.items()}
        elif "t5" in prefix:
            held = {key: each for key, each in held.items() if key != "encoder.embed_tokens.weight"}  # shared
        weights |= {prefix + key: each for key, each in held.items()}
    file = tmp_path / "all.safetensors"
    save_file(weights, file)
    read = load(file, tmp_path / "base")
    for name in ("transformer", *parts):
        found, wanted = getattr(read.pipe, name).state_dict(), getattr(own, name).state_dict()
        if "clip_l" in parts.get(name, "") and (has := wanted.get("text_projection.weight")) is not None:
            has.copy_(torch.eye(*has.shape))  # in the pipeline, too: Stable Diffusion 3's has none
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted), name
    aligned(read.pipe)
    made, expected = (fast("a red boat", **ASKED) for fast in (read, MrFlow(own, "bicubic")))
    assert bytes_of(made.images) == bytes_of(expected.images)
    text = next(key for key in weights if "final_layer_norm" in key)
    save_file({key: each for key, each in weights.items() if key != text}, file)
    with pytest.raises(ModelError, match=r"as the text_encoder of .*, lacks weights, such as .*final_layer_norm"):
        load(file, tmp_path / "base")
    save_file({key: each[:1] if "fc1.weight" in key else each for key, each in weights.items()}, file)
    with pytest.raises(ModelError, match=r"as the text_encoder of .*fc1.weight of shape \(1, .*--base"):
        load(file, tmp_path / "base")


def test_what_the_caller_gives_or_leaves_out_is_not_read_from_a_file(tmp_path: Path) -> None:
    own = families.CASES["StableDiffusion3Pipeline"].make()
    weights = {f"model.diffusion_model.{key}": each for key, each in own.transformer.state_dict().items()}
    for name, prefix in single_files.PARTS["StableDiffusion3Pipeline"].items():
        if name != "vae":
            weights |= {prefix + key: each.clone() for key, each in getattr(own, name).state_dict().items()}
    save_file(weights, tmp_path / "all.safetensors")
    own.save_pretrained(tmp_path / "base")
    mine = own.text_encoder_2
    common: dict[str, Any] = {"base": tmp_path / "base", "upscaler": "bicubic"}
    given = MrFlow.from_pretrained(
        tmp_path / "all.safetensors", text_encoder_2=mine, text_encoder_3=None, **common
    )
    assert given.pipe.text_encoder_2 is mine
    assert given.pipe.text_encoder_3 is None
    own.register_modules(text_encoder_3=None, tokenizer_3=None)
    own.save_pretrained(tmp_path / "less")
    with pytest.raises(ModelError, match=r"has no text_encoder_3, which a StableDiffusion3Pipeline expects"):
        load(tmp_path / "all.safetensors", tmp_path / "less")


def test_text_encoders_in_8_bits_are_read_in_the_models_dtype(tmp_path: Path) -> None:
    own = families.CASES["FluxPipeline"].make()
    own.save_pretrained(tmp_path / "base")
    weights = {f"model.diffusion_model.{key}": each for key, each in own.transformer.state_dict().items()}
    halved = {key: each.to(torch.float8_e4m3fn) for key, each in own.text_encoder_2.state_dict().items()}
    halved.pop("encoder.embed_tokens.weight", None)
    weights |= {f"text_encoders.t5xxl.transformer.{key}": each for key, each in halved.items()}
    save_file(weights, tmp_path / "fp8.safetensors")
    found = load(tmp_path / "fp8.safetensors", tmp_path / "base").pipe.text_encoder_2.state_dict()
    assert all(torch.equal(found[key], each.float()) for key, each in halved.items())


@pytest.mark.parametrize("names", [("scale_weight", "scale_input"), ("weight_scale", "input_scale")])
def test_weights_in_8_bits_are_multiplied_by_their_scales(
    names: tuple[str, str], base: Path, tmp_path: Path
) -> None:
    """As ComfyUI keeps fp8_scaled files: one scale a layer, or one a row; a mark that says so."""
    own, held = make_pipe().transformer.state_dict(), {}
    wanted = dict(own)
    for number, (name, weight) in enumerate(own.items()):
        layer = name.removesuffix(".weight")
        if weight.ndim == 2 and layer != name:
            scale = weight.abs().amax(1 if number % 2 else (0, 1)) / 448
            rows = scale[:, None] if number % 2 else scale
            held[name] = (weight / rows).to(torch.float8_e4m3fn)
            held |= {f"{layer}.{names[0]}": scale, f"{layer}.{names[1]}": torch.ones(())}
            wanted[name] = held[name].float() * rows
        else:
            held[name] = weight
    held["scaled_fp8"] = torch.empty(2, dtype=torch.float8_e4m3fn)
    save_file(held, tmp_path / "scaled.safetensors")
    found = load(tmp_path / "scaled.safetensors", base).pipe.transformer.state_dict()
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert max(float((found[name] - own[name]).abs().max() / own[name].abs().max()) for name in own) < 0.05
    packed = next(name for name in held if name.endswith(names[0])).removesuffix(names[0]) + "weight"
    save_file({**held, packed: held[packed].view(torch.uint8)}, tmp_path / "packed.safetensors")
    with pytest.raises(ModelError, match=r"in uint8 with scales, which is not read.*fp8"):
        load(tmp_path / "packed.safetensors", base)


def test_a_gguf_file_is_dequantised_as_it_runs(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "none.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(ModelError, match=r"no whole \.gguf file"):
        load(tmp_path / "none.gguf", base)
    path = tmp_path / "mine-Q8_0.gguf"
    rounded = write_gguf(path, make_pipe().transformer.state_dict())
    fast = load(path, base)
    plain = make_pipe()
    plain.transformer.load_state_dict(rounded)
    asked = {**ASKED, "output_type": "pt"}
    made, expected = fast("a red boat", **asked), MrFlow(plain, "bicubic")("a red boat", **asked)
    again = MrFlow.from_pretrained(
        path, base=base, upscaler="bicubic", quantize="int8"
    )  # no text encoder is large
    assert bytes_of(again("a red boat", **ASKED).images) == bytes_of(fast("a red boat", **ASKED).images)
    assert (made.images - expected.images).abs().max() < 2e-3  # diffusers multiplies in float16
    assert (made.images - expected.images).abs().mean() < 1e-4
    assert made.recipes[0].conditions == {"weights": "GGUFParameter"}


def test_only_linear_layers_stay_packed(tmp_path: Path) -> None:
    """Z-Image's tokens for padding are of two dimensions, too, and are put beside others."""
    pytest.importorskip("gguf")
    pipe = families.CASES["ZImagePipeline"].make()
    pipe.save_pretrained(tmp_path / "base")
    rounded = write_gguf(tmp_path / "z.gguf", {**pipe.transformer.state_dict(), "more": torch.zeros(1)})
    found = load(tmp_path / "z.gguf", tmp_path / "base")
    token = found.pipe.transformer.x_pad_token
    assert type(token) is torch.nn.Parameter
    assert torch.allclose(token.data, rounded["x_pad_token"], rtol=1e-3)  # diffusers' scales are float16
    pipe.transformer.load_state_dict(rounded, strict=False)
    plain = MrFlow(pipe, "bicubic")
    asked = {**ASKED, "output_type": "pt"}
    assert (found("a red boat", **asked).images - plain("a red boat", **asked).images).abs().max() < 5e-3


def test_what_a_file_is_of_is_known_by_its_weights(tmp_path: Path, file: Path) -> None:
    """The marks that published files of these models have."""
    marks = {
        "black-forest-labs/FLUX.1-dev": [
            "double_blocks.0.img_attn.norm.key_norm.scale",
            "guidance_in.in_layer.bias",
        ],
        "black-forest-labs/FLUX.1-schnell": ["model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale"],
    }
    for model, keys in marks.items():
        shapes = {key: torch.zeros(1) for key in keys}
        prefix = keys[0].partition("double_blocks")[0]
        shapes[f"{prefix}img_in.weight"] = torch.zeros(3072, 64)
        save_file(shapes, tmp_path / "a.safetensors")
        assert find_base(tmp_path / "a.safetensors") == model
    with pytest.raises(
        ModelError, match=r"mine.safetensors are of no model that is known by them\. If .* with base= or --base\."
    ):
        find_base(file)


def as_flux2_has_it(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a transformer's weights under the names of black-forest-labs/flux2, without values."""
    names = [
        (r"^x_embedder", "img_in"),
        (r"^context_embedder", "txt_in"),
        (r"time_guidance_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
        (r"time_guidance_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
        (r"^(double_stream_modulation_(img|txt)|single_stream_modulation)\.linear", r"\1.lin"),
        (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
        (r"^proj_out", "final_layer.linear"),
        (r"^transformer_blocks\.(\d+)\.attn\.norm_(q|k)\.weight", r"double_blocks.\1.img_attn.norm.\2_norm.scale"),
        (
            r"^transformer_blocks\.(\d+)\.attn\.norm_added_(q|k)\.weight",
            r"double_blocks.\1.txt_attn.norm.\2_norm.scale",
        ),
        (r"^transformer_blocks\.(\d+)\.attn\.to_out\.0", r"double_blocks.\1.img_attn.proj"),
        (r"^transformer_blocks\.(\d+)\.attn\.to_add_out", r"double_blocks.\1.txt_attn.proj"),
        (r"^transformer_blocks\.(\d+)\.ff\.linear_in", r"double_blocks.\1.img_mlp.0"),
        (r"^transformer_blocks\.(\d+)\.ff\.linear_out", r"double_blocks.\1.img_mlp.2"),
        (r"^transformer_blocks\.(\d+)\.ff_context\.linear_in", r"double_blocks.\1.txt_mlp.0"),
        (r"^transformer_blocks\.(\d+)\.ff_context\.linear_out", r"double_blocks.\1.txt_mlp.2"),
        (r"^single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj", r"single_blocks.\1.linear1"),
        (r"^single_transformer_blocks\.(\d+)\.attn\.to_out", r"single_blocks.\1.linear2"),
        (r"^single_transformer_blocks\.(\d+)\.attn\.norm_(q|k)\.weight", r"single_blocks.\1.norm.\2_norm.scale"),
        (r"\.q_norm\.", ".query_norm."),
        (r"\.k_norm\.", ".key_norm."),
    ]
    made = {}
    for name, weight in weights.items():
        if found := re.fullmatch(r"transformer_blocks\.(\d+)\.attn\.(to|add)_(q|k|v)(_proj)?\.weight", name):
            if found[3] == "q":  # queries, keys and values are one there
                part = "img" if found[2] == "to" else "txt"
                shape = (3 * weight.shape[0], weight.shape[1])
                made[f"double_blocks.{found[1]}.{part}_attn.qkv.weight"] = torch.empty(shape, device="meta")
            continue
        for pattern, other in names:
            name = re.sub(pattern, other, name)
        made[name] = weight
    return made


def transformer_of(name: str) -> dict[str, torch.Tensor]:
    """Return the weights of a known model's transformer at full size, without values."""
    with warnings.catch_warnings(action="ignore"):  # Chroma's uses what goes with diffusers 1.0
        return dict(make_component(read_architecture(name)["components"]["transformer"], "meta").state_dict())


ONE_OF_EACH = {known.architecture: name for name, known in reversed(KNOWN.items()) if known.architecture}


@pytest.mark.parametrize("name", ONE_OF_EACH.values())
def test_every_architecture_is_known_by_its_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As diffusers names them, of which its own marks know 4 of 24."""
    own = transformer_of(name)
    monkeypatch.setattr(single_files, "read_header", lambda _: own)
    assert find_base(Path("weights.safetensors")) == KNOWN[name].id


def test_checkpoints_with_other_parts_are_known_and_such_as_lack_weights_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = {f"model.diffusion_model.{key}": each for key, each in transformer_of("qwen-image").items()}
    own["vae.decoder.conv1.weight"] = torch.empty(2 * 10**10, device="meta")
    monkeypatch.setattr(single_files, "read_header", lambda _: own)
    assert find_base(Path("weights.safetensors")) == "Qwen/Qwen-Image"
    own.pop("model.diffusion_model.transformer_blocks.0.attn.add_q_proj.weight")
    with pytest.raises(ModelError, match="--base"):
        find_base(Path("weights.safetensors"))


@pytest.mark.parametrize("name", ["flux2-dev", "flux2-klein-4b", "flux2-klein-9b"])
def test_sizes_of_a_family_are_told_apart_by_shapes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their authors' names, by which diffusers takes all three for FLUX.2-dev."""
    own = as_flux2_has_it(transformer_of(name))
    assert not any("transformer_blocks" in key for key in own)
    monkeypatch.setattr(single_files, "read_header", lambda _: own)
    assert find_base(Path("weights.safetensors")) == KNOWN[name].id


FILE_NAMES = {
    "z_image_turbo_bf16": "z-image-turbo",
    "z_image_bf16": "z-image",
    "Z-Image-Turbo-Q4_K_S": "z-image-turbo",
    "mine": "z-image-turbo",
    "flux-2-klein-base-4b-fp8": "flux2-klein-base-4b",
    "flux-2-klein-4b": "flux2-klein-4b",
    "flux1-krea-dev_fp8_scaled": "flux-krea-dev",
    "qwen_image_2512_fp8_e4m3fn": "qwen-image-2512",
    "qwen_image_fp8_e4m3fn": "qwen-image",
    "sd3.5_large_turbo": "sd3.5-large-turbo",
}


@pytest.mark.parametrize(("stem", "name"), FILE_NAMES.items())
def test_of_models_of_the_same_shapes_the_file_s_name_decides(
    stem: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, file = transformer_of(name), Path(f"{stem}.safetensors")
    monkeypatch.setattr(single_files, "read_header", lambda _: own)
    assert find_base(file) == KNOWN[name].id
    said = single_files.describe(file, KNOWN[name].id, found=True)
    assert "unless --base says otherwise (it may be of " in said
    alike = {other for other, known in KNOWN.items() if known.architecture == KNOWN[name].architecture}
    assert alike - set(said.replace(")", " ").split()) == {name}


def test_files_of_families_that_diffusers_reads_none_of_are_refused_at_once(tmp_path: Path) -> None:
    case = families.CASES["OvisImagePipeline"]
    pipe = case.make()
    pipe.save_pretrained(tmp_path / "base")
    save_file(pipe.transformer.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"no single files of a OvisImagePipeline. Take the model's folder"):
        load(tmp_path / "a.safetensors", tmp_path / "base")
    result = invoke(["check", tmp_path / "a.safetensors", "--base", tmp_path / "base"])
    assert result.exit_code == 1
    assert "no single files of a OvisImagePipeline" in result.stdout


def test_a_base_that_is_not_here_is_to_be_fetched_without_what_the_file_has(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrflow.loading.is_offline", lambda: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    command = fetch_command("black-forest-labs/FLUX.1-dev", ["transformer"])
    with pytest.raises(ModelError, match=rf"where there is a network: {re.escape(command)}$"):
        MrFlow.from_pretrained(file, base="flux-dev", upscaler="bicubic", cache_dir=tmp_path)
    told = dict[str, list[str]]()
    words = shlex.split(command)[3:]
    for option, pattern in zip(words[::2], words[1::2], strict=True):
        told.setdefault(option, []).append(pattern)
    here = ["model_index.json", "transformer/config.json", "vae/config.json", "vae/model.safetensors"]
    whole = [
        "flux1-dev.safetensors",
        "ae.safetensors",
        "README.md",
        "transformer/model-00001-of-00003.safetensors",
    ]
    fetched = filter_repo_objects(
        [*here, *whole], allow_patterns=told["--include"], ignore_patterns=told["--exclude"]
    )
    assert list(fetched) == here
    assert fetch_command("ann/model") == 'hf download ann/model --include "*/*" --include model_index.json'


def test_files_that_do_not_go_with_their_base(file: Path, base: Path, tmp_path: Path) -> None:
    weights = load_file(file)
    first = next(iter(weights))
    save_file({key: each for key, each in weights.items() if key != first}, tmp_path / "less.safetensors")
    save_file({key: each[:1].clone() for key, each in weights.items()}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-1000])
    for name, text in (
        ("less", rf"lacks weights, such as {first}\."),
        ("other", r"as the transformer of .* has .* of shape \(1, .*, where .*config.json wants"),
        ("cut", "its download complete"),
    ):
        with pytest.raises(ModelError, match=f"(?i){text}") as told:
            load(tmp_path / f"{name}.safetensors", base)
        checked = invoke(["check", tmp_path / f"{name}.safetensors", "--base", base])
        assert (checked.exit_code, str(told.value) in " ".join(checked.stdout.split())) == (1, True)
    with pytest.raises(ModelError, match="download complete"):
        load(tmp_path / "cut.safetensors")
    with pytest.raises(ModelNameError, match=r"goes with a \.safetensors or \.gguf file alone"):
        load(base, base)
    with pytest.raises(ModelNameError, match=r"file alone\. Leave it out"):
        MrFlow.from_pretrained("vista", base=base)
    with pytest.raises(ModelNameError, match=r"no model 'gone.safetensors'"):
        load(Path("gone.safetensors"))


def test_weights_that_no_network_has_are_left_out(file: Path, base: Path, tmp_path: Path) -> None:
    """As folders have it; diffusers would take them for a checkpoint of others' making."""
    more = {**load_file(file), "__index_timestep_zero__": torch.zeros(0)}
    expected = load(file, base).pipe.transformer.state_dict()
    for name, prefix in (("more", ""), ("all", "model.diffusion_model.")):
        save_file({prefix + key: each for key, each in more.items()}, tmp_path / f"{name}.safetensors")
        found = load(tmp_path / f"{name}.safetensors", base).pipe.transformer.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], each) for key, each in expected.items())


def test_without_gguf_the_extra_is_named(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "find_spec", lambda _: None)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(MissingExtraError, match=r"\.\[gguf\]"):
        load(tmp_path / "a.gguf", base)


def test_files_and_folders_are_found_by_name(file: Path, base: Path) -> None:
    places = [file.parents[1], base.parent]
    assert find_model("mine.safetensors", None, places) == find_model("mine", None, places) == str(file)
    assert find_model("mine.safetensors", identify(str(file))[1], places) == str(file)
    assert find_model("other.safetensors", identify(str(file))[1], places) == str(file)
    assert find_model("other", identify(str(base))[1], places) == str(base)
    assert find_model("mine.safetensors", "0" * 12, places) is None
    assert find_model("tiny", None, places) == str(base)


def test_a_model_that_may_not_be_read_is_not_the_one(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def identify(_: str) -> None:
        raise PermissionError

    monkeypatch.setattr("mrflow.folders.identify", identify)
    assert find_model("tiny", "0" * 12, [base.parent]) is None


def test_the_command_line_and_a_replay(file: Path, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    places = ["--models-dir", file.parents[1], "--models-dir", base.parent]  # which have the base, too
    common = ["--base", base.name, *places, "--upscaler", "bicubic"]
    options = ["--model", "mine", "--size", "64", "--plan", "1+1", "--seed", "7", "--out", out]
    result = invoke(["generate", "a red boat", *common, *options])
    assert result.exit_code == 0, result.stderr
    assert Image.open(out).tobytes() == load(file, base)("a red boat", **ASKED).images[0].tobytes()
    assert read_recipe(out).model == "mine.safetensors"
    again = invoke(["replay", out, *common, "--out", tmp_path / "b.png"])
    assert "same pixels" in again.stderr, again.stderr
    unknown = invoke(["generate", "a red boat", "--model", file, "--out", tmp_path / "c.png"])
    assert (unknown.exit_code, unknown.stderr.count("\n")) == (1, 1)
    assert "--base" in unknown.stderr
