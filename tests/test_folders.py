"""Folders that are broken, or not to be trusted: one sentence each that names the part, through each door."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from mrflow import MrFlow, estimate
from mrflow.architectures import read_folder
from mrflow.errors import ModelError, ModelNameError
from mrflow.folders import check_parts, components
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
]


@pytest.mark.parametrize(("damage", "said"), BROKEN)
def test_a_broken_folder_names_what_is_broken_at_each_door(folder: Path, damage: Break, said: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match="tiny") as told:
        MrFlow.from_pretrained(folder)
    assert said in str(told.value)
    result = invoke(["check", str(folder)])
    assert result.exit_code == 1
    assert said in result.stderr
    assert "--debug" not in result.stderr
    if "weights" not in said:
        with pytest.raises(ModelError):
            estimate(str(folder))


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


def test_weights_that_a_configuration_wants_and_no_file_has(folder: Path) -> None:
    (file,) = (folder / "transformer").glob("*.safetensors")
    weights = load_file(file)
    save_file({key: each for key, each in weights.items() if "proj_out" not in key}, file)
    with pytest.raises(ModelError, match=r"The transformer of .*tiny lacks weights, such as single_.*proj_out"):
        MrFlow.from_pretrained(folder, device="cpu")


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
    for found in (components(check_parts(tmp_path)), read_folder(tmp_path)["components"]):
        assert {"scheduler", "transformer", "vae"} & pipe.components.keys() <= found.keys()
