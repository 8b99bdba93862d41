import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mrflow import MrFlow
from mrflow.errors import DeviceError, ModelError, UnsupportedPipelineError, UpscalerError
from mrflow.folders import find_model, identify
from mrflow.loading import check_device, check_dtype, load_model


def test_a_folder_loads_silently_and_runs(
    tiny: Path, network_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fast = MrFlow.from_pretrained(str(tiny), upscaler=network_file, batch_size=2)
    assert capfd.readouterr().err == ""
    assert fast.model.name == tiny.name
    assert len(fast.model.revision or "") == 12
    assert MrFlow(fast.pipe, "bicubic").model.revision == fast.model.revision
    assert fast.model.dtype == torch.float32
    assert fast.batch_size == 2
    fast.pipe.set_progress_bar_config(disable=True)
    image = fast("a boat", width=32, height=32, plan="1+1", seed=1).images[0]
    assert image.size == (32, 32)


def test_packages_of_quantisation_say_nothing_as_they_are_imported(tiny: Path) -> None:
    pytest.importorskip("torchao")
    code = f"from mrflow import MrFlow; MrFlow.from_pretrained({str(tiny)!r}, upscaler='bicubic')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stderr == ""


def test_the_dtype_is_the_callers(tiny: Path) -> None:
    for option in ({"dtype": "bfloat16"}, {"torch_dtype": torch.bfloat16}):
        assert load_model(tiny, upscaler="bicubic", **option).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "source", ["", "fast", "no/such/folder/here", "../etc/passwd", "a b/c", "x" * 9000, "/none"]
)
def test_an_unknown_model_says_what_can_be_given(source: str) -> None:
    with pytest.raises(ModelError, match="Give 'vista', a name that mrflow models lists, an existing folder"):
        MrFlow.from_pretrained(source)


@pytest.mark.parametrize("name", ["models/flux1-dev.ckpt", "flux1-dev.pt"])
@pytest.mark.parametrize("kind", [str, Path, os.path.abspath])
def test_a_single_file_of_another_kind_is_refused(tmp_path: Path, monkeypatch: Any, name: str, kind: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path(name).write_bytes(b"x" * 100)
    with pytest.raises(
        ModelError, match=r"ends in '\.(ckpt|pt)'; a single file must be one of \.safetensors, \.gguf"
    ):
        MrFlow.from_pretrained(kind(name), upscaler="bicubic")


def test_a_folder_must_be_in_diffusers_layout(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no model_index\.json"):
        MrFlow.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", "\0"])
def test_a_broken_folder_gives_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(ModelError):
        MrFlow.from_pretrained(tmp_path, upscaler="bicubic")


def test_an_unknown_family_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline", "vae": ["x", "y"]}))
    with pytest.raises(UnsupportedPipelineError, match="KandinskyPipeline"):
        MrFlow.from_pretrained(tmp_path, upscaler="bicubic")


def test_missing_weights_give_one_clear_error(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_bytes((tiny / "model_index.json").read_bytes())
    with pytest.raises(ModelError, match="has no folder scheduler"):
        MrFlow.from_pretrained(tmp_path, upscaler="bicubic")


def test_a_hub_model_that_cannot_be_reached_gives_one_clear_error() -> None:
    with pytest.raises(ModelError, match="nobody/nothing is not on this machine"):
        MrFlow.from_pretrained("nobody/nothing", upscaler="bicubic", local_files_only=True)


def test_the_upscaler_is_checked_first(tiny: Path) -> None:
    with pytest.raises(UpscalerError):
        MrFlow.from_pretrained(tiny, upscaler="none.pth")


@pytest.mark.parametrize("device", ["banana", "meta", "cuda:99", ""])
def test_devices_that_are_not_there_are_refused(device: str) -> None:
    with pytest.raises(DeviceError, match="device is"):
        check_device(device)


def test_dtypes() -> None:
    assert check_dtype(None, torch.device("cpu")) == torch.float32
    assert check_dtype(None, torch.device("cuda")) == torch.bfloat16
    assert check_dtype("float16", torch.device("cpu")) == torch.float16
    for dtype in ("int8", torch.float64, "half", ""):
        with pytest.raises(DeviceError, match="must be one of"):
            check_dtype(dtype, torch.device("cpu"))


def test_a_folder_is_known_by_its_name_and_content(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / tiny.name
    shutil.copytree(tiny, copy)
    assert identify(str(copy)) == identify(str(tiny))
    weights = next(copy.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert identify(str(copy)) != identify(str(tiny))
    assert find_model(*identify(str(tiny)), [tmp_path]) is None
    assert find_model(*identify(str(tiny)), [tmp_path / "none", tiny.parent]) == str(tiny)
    cached = tmp_path / "models--owner--name" / "snapshots" / "0123abc"
    cached.mkdir(parents=True)
    assert identify(str(cached)) == ("owner/name", "0123abc")
    assert identify("owner/name", "main") == ("owner/name", "main")
