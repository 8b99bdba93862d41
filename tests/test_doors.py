"""What libraries raise, at each public door: an error of ours or an answer in shape, never a traceback."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
import pyarrow
import pytest
import torch
from pyarrow import parquet
from safetensors import SafetensorError
from spandrel import UnsupportedModelError

from conftest import make_fast, make_pipe
from mrflow import MrFlow, Plan, load_image
from mrflow.cli.loading import ModelOptions
from mrflow.errors import ImageError, ModelError, MrFlowError, PlanError, RecipeError, RequestError, UpscalerError
from mrflow.files import read_recipe
from mrflow.plan import read_plan
from mrflow.prompt_rows import read_lines, read_rows
from mrflow.server.keys import Keys
from mrflow.server.settings import Settings
from mrflow.upscaler import Upscaler
from support.batches import errors, run
from support.cli import invoke
from support.serving import Server, check_error, serving

RAISED = [
    OSError(errno.EIO, "Input/output error"),
    PermissionError(errno.EACCES, "Permission denied"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    pyarrow.ArrowInvalid("Page was smaller than its header says"),
    SafetensorError("Error while deserializing header"),
    UnsupportedModelError(),
    ValueError("Cannot load because of missing keys"),  # diffusers' and peft's
    KeyError("base_model.model.weight"),
    RuntimeError("size mismatch for proj_out.weight"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    MemoryError(),
]


def raiser(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.fixture(params=RAISED, ids=lambda error: type(error).__name__)
def error(request: pytest.FixtureRequest) -> Exception:
    raised: Exception = request.param
    return raised


@pytest.fixture
def place(tmp_path: Path, network_file: Path) -> Path:
    """Return a folder with a right file of each kind."""
    (tmp_path / "up.safetensors").write_bytes(network_file.read_bytes())
    torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / "up.pth")
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    parquet.write_table(pyarrow.table({"prompt": ["a lake"]}), tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text("prompt\na lake\n")
    (tmp_path / "keys.txt").write_text("k" * 24)
    (tmp_path / "plan.json").write_text(json.dumps({"format": 1, "plan": {}}))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    return tmp_path


READERS: dict[str, tuple[str, Callable[[Path], object], type[MrFlowError]]] = {
    "safetensors": ("safetensors.torch.load_file", lambda at: Upscaler.load(at / "up.safetensors"), UpscalerError),
    "pickle": ("torch.load", lambda at: Upscaler.load(at / "up.pth"), UpscalerError),
    "spandrel": (
        "spandrel.ModelLoader.load_from_state_dict",
        lambda at: Upscaler.load(at / "up.safetensors"),
        UpscalerError,
    ),
    "image": ("PIL.Image.open", lambda at: load_image(at / "a.png"), ImageError),
    "pixels": ("PIL.ImageFile.ImageFile.load", lambda at: load_image(at / "a.png"), ImageError),
    "recipe": ("PIL.PngImagePlugin.PngImageFile.load", lambda at: read_recipe(at / "a.png"), ImageError),
    "parquet": ("pyarrow.parquet.ParquetFile", lambda at: list(read_rows(at / "rows.parquet")), RequestError),
    "model": (
        "diffusers.DiffusionPipeline.from_pretrained",
        lambda at: MrFlow.from_pretrained(str(at / "model"), device="cpu", upscaler="bicubic"),
        ModelError,
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_what_libraries_raise_while_reading_is_an_error_of_ours(
    name: str, error: Exception, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, read, kind = READERS[name]
    if name == "parquet" and not isinstance(error, (OSError, pyarrow.ArrowException)):
        pytest.skip("pyarrow raises no other")
    monkeypatch.setattr(target, raiser(error))
    with pytest.raises(kind) as raised:
        read(place)
    assert str(raised.value)


FILES: dict[str, tuple[Callable[[Path], object], type[MrFlowError] | tuple[type[MrFlowError], ...]]] = {
    "csv": (lambda at: list(read_rows(at / "rows.csv")), RequestError),
    "lines": (lambda at: read_lines(at / "rows.csv"), MrFlowError),
    "keys": (lambda at: Keys.read(at / "keys.txt"), RequestError),
    "plan": (lambda at: read_plan(at / "plan.json"), PlanError),
    "image": (lambda at: load_image(at / "a.png"), ImageError),
    "recipe": (lambda at: read_recipe(at / "a.png"), (ImageError, RecipeError)),
    "upscaler": (lambda at: Upscaler.load(at / "up.safetensors"), UpscalerError),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE])
def test_files_that_can_not_be_opened_are_an_error_of_ours(
    name: str, number: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, kind = FILES[name]
    refused = raiser(OSError(number, os.strerror(number)))
    opened = io.open

    def open_others(file: Any, *arguments: Any, **options: Any) -> Any:
        return (refused if place in Path(str(file)).parents else opened)(file, *arguments, **options)

    for module in (builtins, io):  # pathlib opens by the second
        monkeypatch.setattr(module, "open", open_others)
    with pytest.raises(kind):
        read(place)


@pytest.fixture
def fast() -> MrFlow:
    return make_fast(make_pipe())


PARTS = {"text": "text_encoder_2", "draft": "transformer"}


@pytest.mark.parametrize("part", PARTS)
def test_python_hands_on_what_the_pipeline_itself_raises(part: str, error: Exception, fast: MrFlow) -> None:
    """The loop is the user's pipeline's, and so are its errors, as `except torch.OutOfMemoryError` expects."""
    network = getattr(fast.pipe, PARTS[part])
    network.forward = raiser(error)
    with pytest.raises(type(error)) as raised:
        fast("a boat", seed=7, plan="1+1")
    assert raised.value is error or isinstance(raised.value, MrFlowError)
    del network.forward
    assert fast("a boat", seed=7, plan="1+1").images  # the pipeline was given back


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("verb", ["generate", "draft"])
def test_the_command_line_says_it_in_a_line(
    part: str, verb: str, error: Exception, fast: MrFlow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelOptions, "load", lambda self: fast)
    getattr(fast.pipe, PARTS[part]).forward = raiser(error)
    result = invoke([verb, "a boat", "--plan", "1+1", "--out", tmp_path / "{index}.png"])
    assert result.exit_code in (1, 2)
    assert "Traceback" not in result.output
    assert result.stderr.count("Error: ") >= 1
    assert not result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", PARTS)
def test_a_batch_fails_the_row_with_its_reason(part: str, error: Exception, fast: MrFlow, tmp_path: Path) -> None:
    network = getattr(fast.pipe, PARTS[part])
    network.forward = raiser(error)
    rows = [{"prompt": "a boat", "seed": 7}, {"prompt": "a lake", "seed": 8}]
    assert run(fast, tmp_path / "out", *rows) == (0, 0, 2)
    assert all(entry["error"] for entry in errors(tmp_path / "out"))
    del network.forward
    assert run(fast, tmp_path / "out", *rows) == (2, 0, 0)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Server, MrFlow]]:
    fast = make_fast(make_pipe())
    with serving(fast.model) as server:
        yield server, fast


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("route", ["generations", "drafts"])
def test_http_answers_in_shape(part: str, route: str, error: Exception, served: tuple[Server, MrFlow]) -> None:
    server, fast = served
    network = getattr(fast.pipe, PARTS[part])
    body = {"prompt": "a boat", "n": 1, "size": "64x64", "plan": "1+1", "seed": 7}

    def post() -> httpx.Response:
        return httpx.post(f"{server.url}/v1/images/{route}", json=body, timeout=60, trust_env=False)

    network.forward = raiser(error)
    try:
        told = check_error(post(), 500)
    finally:
        del network.forward
    assert str(error) not in told["message"] or not str(error)
    assert post().status_code == 200


TOO_LONG = 10**5000  # Python writes no number of more than 4300 digits


@pytest.mark.parametrize("value", [TOO_LONG, -TOO_LONG, [TOO_LONG]], ids=["high", "low", "listed"])
def test_a_number_too_long_to_be_written_is_refused_as_any_other(fast, value):
    recipe = fast.draft("a boat", seed=1).recipes[0]
    for name in ("mode", "seed", "width", "threads", "batch", "noise_width", "pixels_sha256"):
        with pytest.raises(RecipeError, match=f"The recipe's {name} is|mode is"):
            replace(recipe, **{name: value})
    for data in ({value if isinstance(value, int) else "zebra": 1}, {"steps": value}):
        with pytest.raises(PlanError):
            Plan.from_dict(data)
    for name in ("output_type", "num_inference_steps", "generator", "width"):
        with pytest.raises(MrFlowError, match="that can't be shown"):
            fast("a boat", **{name: value})
    with pytest.raises(RequestError, match="that can't be shown"):
        MrFlow(fast.pipe, "bicubic", batch_size=[value])
    with pytest.raises(RequestError, match="that can't be shown"):
        Settings(max_prompt=value)
