"""`mrflow check`: models that are here, in part or not, and devices with more and less memory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mrflow import MrFlow, vista
from mrflow.architectures import make_component, read_architecture
from mrflow.cli import check as command
from mrflow.costs import estimate
from mrflow.errors import ModelError
from mrflow.known_models import KNOWN
from mrflow.single_files import TRANSFORMER as KEYS
from support import families
from support.cli import invoke

ID = "black-forest-labs/FLUX.1-dev"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache of the test's own, on a machine that can reach the hub and nobody logged in."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("mrflow.hub.is_offline", lambda: False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr(command, "_costs", lambda *_, **__: None)  # which take seconds to count
    return tmp_path


def found(*arguments: str, code: int) -> dict[str, tuple[str, str]]:
    result = invoke(["check", *arguments, "--json"])
    assert result.exit_code == code, result.stderr
    data = json.loads(result.stdout)
    assert data["runs"] == (code == 0)
    return {each["about"]: (each["level"], each["text"]) for each in data["findings"]}


def hold(cache: Path, size: float, name: str = ID, file: str = "model_index.json") -> None:
    path = cache / f"models--{name.replace('/', '--')}" / "snapshots" / ("0" * 40) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, int(size))  # sparse: it takes no room


@pytest.mark.skipif(not vista.available(), reason="vista's weights are not in this installation")
def test_vista_runs() -> None:
    said = found("vista", "--size", "320x192", code=0)
    assert {level for level, _ in said.values()} == {"ok"}
    assert "12+1 at 320x192" in said["plan"][1]


def test_a_gated_model_that_is_not_here(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = found("flux-dev", code=1)
    assert said["gated"][0] == "no"
    assert f"https://huggingface.co/{ID}" in said["gated"][1]
    assert "hf auth login" in said["gated"][1]
    assert said["model"] == ("note", f"{ID}, 33.7 GB to be fetched")
    assert "[dev]" in invoke(["check", "flux-dev"]).stdout  # no markup of ours
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**12))
    assert found("flux-dev", code=0)["gated"][0] == "note"
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**9))
    assert found("flux-dev", code=1)["disk"][0] == "no"
    monkeypatch.setattr("mrflow.hub.is_offline", lambda: True)
    assert f"hf download {ID}" in found(ID, code=1)["network"][1]


def test_what_is_here_is_not_fetched_again(cache: Path) -> None:
    hold(cache, KNOWN["flux-dev"].download or 0)
    said = found("flux-dev", code=0)
    assert said["model"] == ("ok", f"{ID} is here, 33.7 GB")
    assert not {"disk", "network", "gated"} & set(said)


def test_what_is_here_in_part(cache: Path) -> None:
    hold(cache, 10e9)
    assert found("flux-dev", code=1)["model"] == ("note", f"{ID}, 23.7 GB to be fetched; 10.0 GB are here")


def test_a_repository_that_nobody_described(cache: Path) -> None:
    assert found("ann/model", code=0)["model"] == ("note", "ann/model, of unknown size")


def test_a_single_file_is_as_its_base(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the file has is not fetched, nor by the printed command, and what is here of it counts for nothing."""
    part, name = read_architecture("z-image-turbo")["components"]["transformer"], "Tongyi-MAI/Z-Image-Turbo"
    weights = make_component(part, "meta").state_dict()
    monkeypatch.setattr("mrflow.single_files.read_header", lambda _: weights)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=9 * 10**9))
    file = cache / "z_image_turbo_bf16.safetensors"
    file.touch()
    said = found(str(file), code=0)
    text = f"z_image_turbo_bf16.safetensors has the transformer; the rest is of {name}"
    assert said["file"] == ("ok", f"{text}, unless --base says otherwise (it may be of z-image)")
    assert said["model"] == ("note", f"{name}, 8.2 GB to be fetched")  # 32.8, less 6.15 billion of 4 bytes
    assert said["disk"][0] == "ok"
    assert found(str(file), "--base", "z-image", code=0)["file"][1].endswith("the rest is of z-image")
    hold(cache, 20e9, name, "transformer/model.safetensors")
    hold(cache, 4e9, name, "text_encoder/model.safetensors")
    assert found(str(file), code=0)["model"][1] == f"{name}, 4.2 GB to be fetched; 4.0 GB are here"
    monkeypatch.setattr("mrflow.hub.is_offline", lambda: True)
    assert '--exclude "transformer/*.safetensors"' in found(str(file), code=1)["network"][1]


def test_what_waits_beside_a_card_is_a_line_of_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrflow.loading.check_device", torch.device)
    monkeypatch.setattr("mrflow.loading.has_bfloat16", lambda _: True)
    monkeypatch.setattr(command, "_costs", lambda name, *_, **__: estimate("lumina2", dtype=torch.bfloat16))
    have = {"cuda": 6.5e9, "cpu": 64e9}
    monkeypatch.setattr("mrflow.offloading.free_memory", lambda device: int(have[device.type]))
    said = found("lumina2", "--device", "cuda", code=0)
    assert said["memory"][1].startswith("fits with model offload: 5.7 GB of 6.5 GB free, on cuda; faster: ")
    assert said["ram"] == ("ok", "10.6 GB of weights wait in RAM; 64.0 GB are available")
    have["cpu"] = 8e9
    said = found("lumina2", "--device", "cuda", code=1)
    assert said["ram"][0] == "no"
    assert "10.6 GB of weights wait in RAM; 8.0 GB are available; these fit: quantize int8" in said["ram"][1]


def test_a_size_that_no_picture_has() -> None:
    result = invoke(["check", "sd3.5-medium", "--size", "1000x999"])
    assert result.exit_code == 2
    assert "multiples of 16" in result.stderr


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(path)), path)


def without(part: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {key: each for key, each in weights.items() if part not in key}


def cut(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: each[:1].clone() for key, each in weights.items()}


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


TRANSFORMER, VAE = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("transformer", "vae"))
CLIP, T5 = (f"{part}/model.safetensors" for part in ("text_encoder", "text_encoder_2"))
UNLOADABLE: list[tuple[str, Callable[[Path], Any]]] = [
    (TRANSFORMER, lambda path: truncate(path, 1000)),
    (VAE, lambda path: truncate(path, -1)),
    (CLIP, lambda path: truncate(path, 0)),
    (TRANSFORMER, lambda path: rewrite(path, without("proj_out"))),
    (VAE, lambda path: rewrite(path, without("encoder.conv_out"))),
    (CLIP, lambda path: rewrite(path, without("q_proj"))),
    (T5, lambda path: rewrite(path, without(""))),
    (TRANSFORMER, lambda path: rewrite(path, cut)),
    (VAE, lambda path: rewrite(path, cut)),
    (T5, lambda path: rewrite(path, cut)),
    ("transformer/config.json", lambda path: path.write_text('{"num_layers": "two"}')),
    ("vae/config.json", Path.unlink),
    ("scheduler/scheduler_config.json", Path.unlink),
    ("tokenizer/tokenizer.json", lambda path: path.write_text("{}")),
]


@pytest.mark.parametrize(("part", "damage"), UNLOADABLE)
def test_what_loading_refuses_is_a_line_of_the_report(
    part: str, damage: Callable[[Path], Any], tiny: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    damage(folder / part)
    with pytest.raises(ModelError) as told:
        MrFlow.from_pretrained(folder, upscaler="bicubic")
    assert found(str(folder), code=1)["model"] == ("no", str(told.value))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_weights_that_may_not_be_read_are_said(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    (folder / CLIP).chmod(0)
    assert "Permission denied" in found(str(folder), code=1)["model"][1]


def test_what_nobody_foresaw_is_a_line_too(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_costs", lambda *_, **__: [][0])
    assert found(str(tiny), code=1)["model"] == ("no", "It would fail: list index out of range")
    assert "Traceback" in invoke(["check", str(tiny), "--debug"]).stderr


def test_single_files_must_fit_their_base(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_costs", lambda *_, **__: None)
    file, base = tmp_path / "mine.safetensors", ("--base", "tiny", "--models-dir", str(tiny.parent))
    shutil.copy(tiny / TRANSFORMER, file)
    assert found(str(file), *base, code=0)["file"][1].startswith("mine.safetensors has the transformer")
    for change in (without(""), without("proj_out"), cut, lambda _: load_file(tiny / T5)):
        shutil.copy(tiny / TRANSFORMER, file)
        rewrite(file, change)
        with pytest.raises(ModelError) as told:
            MrFlow.from_pretrained(file, base=tiny, upscaler="bicubic")
        assert found(str(file), *base, code=1)["model"] == ("no", str(told.value))
    assert "with base= or --base" in found(str(file), code=1)["model"][1]


def test_a_base_must_have_a_place_for_what_a_checkpoint_has(tmp_path: Path) -> None:
    own = families.CASES["StableDiffusion3Pipeline"].make()
    weights = {f"{KEYS}{key}": each for key, each in own.transformer.state_dict().items()}
    weights |= {f"text_encoders.t5xxl.transformer.{key}": torch.ones(1) for key in ("shared.weight", "odd")}
    save_file(weights, tmp_path / "all.safetensors")
    own.register_modules(text_encoder_3=None, tokenizer_3=None)
    own.save_pretrained(tmp_path / "base")
    file, base = str(tmp_path / "all.safetensors"), str(tmp_path / "base")
    with pytest.raises(ModelError, match="no text_encoder_3") as told:
        MrFlow.from_pretrained(file, base=base, upscaler="bicubic")
    assert found(file, "--base", base, code=1)["model"] == ("no", str(told.value))


def test_what_follows_no_flow_is_known_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrflow.hub.is_offline", lambda: pytest.fail("the network was asked"))
    for name in ("stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/sdxl-turbo", "sdxl"):
        assert "another law than flow matching" in found(name, code=1)["model"][1]
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    assert "another law than flow matching" in found(str(tmp_path), code=1)["model"][1]


@pytest.mark.parametrize(("offline", "level"), [(True, "no"), (False, "note")])
def test_an_upscaler_that_cannot_be_fetched_is_in_the_way(
    offline: bool, level: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_costs", lambda *_, **__: None)
    monkeypatch.setenv("MRFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr("mrflow.known_upscalers.find_spec", lambda _: None)
    monkeypatch.setattr("mrflow.hub.is_offline", lambda: offline)
    told = found(str(tiny), code=int(offline))["upscaler"]
    assert told[0] == level
    assert ("upscalers" in told[1]) == offline


def test_a_plan_that_saves_nothing_is_said_so(tiny: Path) -> None:
    told = found(str(tiny), "--size", "64", "--quantize", "none", code=0)
    assert "no fewer operations than" in told["plan"][1]


@pytest.mark.parametrize(("name", "said"), [("flux-dv", "Did you mean flux-dev"), ("", "no model ''")])
def test_names_that_are_none(name: str, said: str) -> None:
    result = invoke(["check", name])
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.skipif(not vista.available(), reason="vista's weights are not in this installation")
def test_memory_says_what_loading_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `test_offloading` has it; on a CPU there is nowhere to offload to."""
    monkeypatch.setattr("mrflow.offloading.free_memory", lambda _: 10**9)
    assert found("vista", code=0)["memory"][1].startswith("fits whole: 0.2 GB of 1.0 GB free, on cpu")
    monkeypatch.setattr("mrflow.offloading.free_memory", lambda _: 1)
    level, text = found("vista", code=1)["memory"]
    assert (level, "offload" in text) == ("no", False)
    assert text.endswith("; a .gguf file, a smaller size or model may fit")
    assert invoke(["check", "vista", "--quantize", "int2"]).exit_code == 2
