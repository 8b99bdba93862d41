"""`mrflow check`: models that are here, in part or not, and devices with more and less memory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from mrflow import vista
from mrflow.cli import check as command
from mrflow.known_models import KNOWN
from support.cli import invoke

ID = "black-forest-labs/FLUX.1-dev"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache of the test's own, on a machine that can reach the hub and nobody logged in."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("mrflow.hub.is_offline", lambda: False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr(command, "_costs", lambda *_: None)  # which take seconds to count
    return tmp_path


def found(*arguments: str, code: int) -> dict[str, tuple[str, str]]:
    result = invoke(["check", *arguments, "--json"])
    assert result.exit_code == code, result.stderr
    data = json.loads(result.stdout)
    assert data["runs"] == (code == 0)
    return {each["about"]: (each["level"], each["text"]) for each in data["findings"]}


def hold(cache: Path, size: float) -> None:
    folder = cache / f"models--{ID.replace('/', '--')}" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (folder / "model_index.json").touch()
    os.truncate(folder / "model_index.json", int(size))  # sparse: it takes no room


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
    monkeypatch.setattr("mrflow.single_files.find_base", lambda file: ID)
    monkeypatch.setattr("mrflow.single_files.parts_in", lambda file, pipeline: {"transformer": ""})
    (cache / "flux.gguf").touch()
    said = found(str(cache / "flux.gguf"), code=1)
    assert said["file"] == ("ok", f"flux.gguf has the transformer; the rest is of {ID}")
    assert said["model"][1].startswith(ID)


def test_a_size_that_no_picture_has() -> None:
    result = invoke(["check", "sd3.5-medium", "--size", "1000x999"])
    assert result.exit_code == 2
    assert "multiples of 16" in result.stderr


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
    assert invoke(["check", "vista", "--quantize", "int2"]).exit_code == 2
