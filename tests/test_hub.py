"""The hub's refusals, said in a sentence with the way out: against a server that answers as the hub does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from conftest import make_pipe
from mrflow import MrFlow, read_recipe
from mrflow.errors import ModelError, MrFlowWarning, UnsupportedPipelineError
from mrflow.files import save_image
from mrflow.hub import has_revision
from mrflow.loading import check_dtype
from support.cli import invoke

REFUSALS = {  # what the hub's client knows them by: status and the header X-Error-Code
    "ann/gated": (403, "GatedRepo"),
    "ann/none": (401, "RepoNotFound"),
    "black-forest-labs/FLUX.1-devv": (404, "RepoNotFound"),
    "ann/files": (404, "EntryNotFound"),
}
SAID = {
    "ann/gated": "is gated. Accept its terms on https://huggingface.co/ann/gated, then log in here: hf auth login",
    "ann/none": "There is no ann/none on Hugging Face, or it is private. A private one needs: hf auth login",
    "black-forest-labs/FLUX.1-devv": "or it is private. Did you mean flux-dev",
    "ann/files": "ann/files is no pipeline in diffusers' layout: it has no model_index.json",
}
ASK = """
import json, sys, time
from mrflow import MrFlow, read_recipe
from mrflow.errors import MrFlowError, RequestError
answers = {}
for source in sys.argv[1:]:
    begin = time.monotonic()
    try:
        MrFlow.from_pretrained(source, upscaler="bicubic")
        answers[source] = "loaded", time.monotonic() - begin, False
    except MrFlowError as error:
        answers[source] = str(error), time.monotonic() - begin, isinstance(error, RequestError)
print(json.dumps(answers))
"""


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        name = "/".join(self.path.lstrip("/").removeprefix("api/models/").split("/")[:2])
        status, code = REFUSALS.get(name, (200, ""))
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(endpoint: str, home: Path, *sources: str) -> dict[str, tuple[str, float, bool]]:
    """Return what loading each says in a fresh process, the seconds it took, and whether the name was wrong."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK, *sources], env=env, capture_output=True, text=True, check=True
    )
    answers: dict[str, tuple[str, float, bool]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_each_refusal_has_its_way_out(address: str, tmp_path: Path) -> None:
    answers = ask(address, tmp_path, *SAID)
    for name, said in SAID.items():
        assert said in answers[name][0], answers[name]
        assert answers[name][2] == said.startswith(("There is no", "or it is"))


def test_offline_it_is_said_at_once_and_what_is_cached_is_used(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--ann--tiny"
    make_pipe().save_pretrained(folder / "snapshots" / ("0" * 40))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    answers = ask("http://127.0.0.1:9", tmp_path, "ann/tiny", "ann/gone")  # where nobody answers
    assert answers["ann/tiny"][0] == "loaded"
    text, seconds, _ = answers["ann/gone"]
    assert "ann/gone is not on this machine" in text
    assert "hf download ann/gone" in text
    assert seconds < 10  # the hub's own client tries for half a minute


def test_a_file_that_was_cut_short_is_said(tmp_path: Path) -> None:
    make_pipe().save_pretrained(tmp_path)
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"vae.* is no whole .safetensors file .*Is its download complete"):
        MrFlow.from_pretrained(tmp_path, upscaler="bicubic")


def test_what_follows_no_flow_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    with pytest.raises(UnsupportedPipelineError) as error:
        MrFlow.from_pretrained(tmp_path, upscaler="bicubic")
    assert "denoises by another law than flow matching" in str(error.value)
    assert "FluxPipeline" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_dtype_that_the_card_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrflow.loading.has_bfloat16", lambda device: False)
    with pytest.warns(MrFlowWarning, match="does not compute in bfloat16 itself.*Try float16"):
        assert check_dtype("bfloat16", torch.device("cuda", 0)) == torch.bfloat16
    assert check_dtype(None, torch.device("cuda", 0)) == torch.float16


OLD, NEW = "0" * 40, "1" * 40


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the snapshots of ann/tiny in a cache: two commits, the new one being main, and no network."""
    folder = tmp_path / "models--ann--tiny"
    for commit in (OLD, NEW):
        pipe = make_pipe()
        if commit == NEW:
            torch.nn.init.normal_(pipe.transformer.proj_out.weight, std=0.5)
        pipe.save_pretrained(folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(NEW)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("mrflow.loading.is_offline", lambda: True)
    return folder / "snapshots"


def test_the_commit_is_recorded_whoever_loads_the_model(cached: Path) -> None:
    from diffusers import DiffusionPipeline

    assert MrFlow.from_pretrained("ann/tiny", upscaler="bicubic").model.revision == NEW
    old = MrFlow.from_pretrained("ann/tiny", upscaler="bicubic", revision=OLD)
    assert (old.model.name, old.model.revision) == ("ann/tiny", OLD)
    pipe = DiffusionPipeline.from_pretrained("ann/tiny", revision=OLD, local_files_only=True)
    wrapped = MrFlow(pipe, "bicubic").model
    assert (wrapped.name, wrapped.revision) == ("ann/tiny", OLD)


def test_a_replay_takes_the_recorded_commit_or_says_which_it_took(cached: Path, tmp_path: Path) -> None:
    old, out = MrFlow.from_pretrained("ann/tiny", upscaler="bicubic", revision=OLD), tmp_path / "a.png"
    made = old("a red boat", width=32, height=32, plan="1+1", seed=7)
    save_image(made.images[0], out, made.recipes[0])
    assert read_recipe(out).revision == OLD
    command = ["replay", out, "--out", tmp_path / "b.png", "--force"]
    again = invoke(command)
    assert (again.exit_code, "same pixels" in again.stderr) == (0, True), again.stderr
    shutil.rmtree(cached / OLD)
    other = invoke(command)
    assert other.exit_code == 1
    assert f"revision {OLD}, here {NEW}" in other.stderr
    for revision in ("../../refs", NEW[:7], None, "2" * 40):  # as a forged picture may have
        assert not has_revision("ann/tiny", revision)
    assert not has_revision("../../etc", NEW)
