"""Bad input at the command line's door: one clear line on stderr, the right exit code, and no work before."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from mrflow import Plan, Recipe, read_recipe, save_image, vista
from mrflow.cli.loading import ModelOptions
from mrflow.folders import identify
from support.cli import Result, invoke

LAKE = ["generate", "a lake"]
RECIPE = Recipe(mode="draft", prompt="a lake", seed=1, width=64, height=64, plan=Plan(), model="vista")


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """Run each test in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_model(monkeypatch):
    """Fail the test if a model is loaded."""

    def load(self: ModelOptions) -> None:
        pytest.fail("the model was loaded before the input was checked")

    monkeypatch.setattr(ModelOptions, "load", load)


@pytest.fixture(scope="module")
def tiny(tiny: Path) -> str:
    """Return it as it is typed."""
    return str(tiny)


def refuse(arguments: list[str], code: int, *words: str) -> Result:
    result = invoke(arguments)
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[0]
    return result


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*LAKE, "--size", "huge"], ["'huge'", "320x192"]),
        ([*LAKE, "--size", "99999"], ["99999", "8192"]),
        ([*LAKE, "--sigma", "1.4"], ["refine_sigma is 1.4", "Try 0.12"]),
        ([*LAKE, "--solver", "heun"], ["solver is 'heun'", "dpm++2m or unipc, or own"]),
        ([*LAKE, "--sigma", "0"], ["refine_sigma is 0"]),
        ([*LAKE, "--steps", "0"], ["steps is 0"]),
        ([*LAKE, "--refine-steps", "0"], ["refine_steps is 0"]),
        ([*LAKE, "--scale", "0.5"], ["scale is 0.5"]),
        ([*LAKE, "--guidance", "nan"], ["nan"]),
        ([*LAKE, "--plan", "best"], ["'best'", "12+1", "20+1"]),
        ([*LAKE, "--seed", "-1"], ["seed is -1"]),
        ([*LAKE, "-n", "0"], ["num_images is 0"]),
        ([*LAKE, "-n", "100000"], ["num_images is 100000", "1 to 1000"]),
        (["generate", ""], ["prompt is empty"]),
        (["generate", "a lake " * 5000], ["characters", "Shorten"]),
        ([*LAKE, "-n", "2", "--out", "lake.png"], ["two pictures", "{seed}"]),
        ([*LAKE, "--out", "{sed}.png"], ["{sed}", "{seed}"]),
        ([*LAKE, "--native", "--stages"], ["--native", "--stages"]),
        ([*LAKE, "--native", "--sigma", "0.2"], ["--sigma"]),
        ([*LAKE, "--compare", "-n", "2"], ["--compare", "one picture"]),
        (["enhance", "x.png", "--prompt", " "], ["prompt is empty"]),
        (["draft", "a lake", "--steps", "0"], ["steps is 0"]),
    ],
)
def test_wrong_requests_exit_with_2(arguments, words):
    refuse(arguments, 2, *words)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("command", ["finish", "replay", "enhance"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"this is no picture", "no image"),
        ("cut", "cut short"),
        ("bomb", "too large"),
    ],
    ids=["missing", "text", "cut", "bomb"],
)
def test_a_corrupt_image(command, content, words):
    if content == "cut":
        save_image(Image.effect_noise((64, 64), 50), "x.png", RECIPE)
        Path("x.png").write_bytes(Path("x.png").read_bytes()[:1500])
    elif content == "bomb":
        Path("x.png").write_bytes(bomb())
    elif content is not None:
        Path("x.png").write_bytes(content)
    code = 1 if content else 2
    refuse([command, "x.png", *(["--prompt", "a lake"] if command == "enhance" else [])], code, words)


def bomb() -> bytes:
    """Return a small PNG that claims to have 60000 x 60000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")


@pytest.mark.usefixtures("no_model")
def test_an_output_that_exists():
    Path("lake.png").write_text("precious")
    refuse([*LAKE, "--out", "lake.png"], 1, "lake.png exists")
    assert Path("lake.png").read_text() == "precious"


@pytest.mark.usefixtures("no_model")
def test_a_stage_that_exists():
    Path("lake-draft.png").write_text("precious")
    refuse([*LAKE, "--out", "lake.png", "--stages"], 1, "lake-draft.png exists")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("out", "code"),
    [("nowhere/lake.png", 1), ("lake.bmp", 2), ("lake", 2), ("湖" * 84 + ".png", 2), ("{prompt:500}.png", 2)],
)
def test_an_output_that_cannot_be_written(out, code):
    refuse([*LAKE, "--out", out], code)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "arguments", [[*LAKE], ["draft", "a lake"], ["enhance", "a.png", "--prompt", "a lake"], ["finish", "a.png"]]
)
def test_a_folder_that_ends_in_a_slash_is_made(arguments, monkeypatch):
    def load(self: ModelOptions) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelOptions, "load", load)
    save_image(Image.new("RGB", (32, 32)), "a.png", RECIPE)
    assert invoke([*arguments, "--out", "deep/new/"]).exit_code == 130
    assert Path("deep/new").is_dir()


@pytest.mark.usefixtures("no_model")
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    refuse([*LAKE, "--out", f"{folder}/"], 1, "not writable")


@pytest.mark.usefixtures("no_model")
def test_an_unwritable_folder_also_for_root(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    refuse(LAKE, 1, "not writable")


@pytest.mark.usefixtures("no_model")
def test_drafts_that_cannot_be_finished_together():
    for k, (model, steps) in enumerate([("vista", 12), ("other/model", 12), ("vista", 20)]):
        recipe = Recipe(
            mode="draft", prompt="a lake", seed=1, width=64, height=64, plan=Plan(steps=steps), model=model
        )
        save_image(Image.new("RGB", (32, 32)), f"{k}.png", recipe)
    refuse(["finish", "0.png", "1.png"], 2, "other/model")
    refuse(["finish", "0.png", "2.png", "--sigma", "0.2"], 2, "different plans")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model", "no such model"], 2, ["'no such model'", "vista"]),
        (["--model", "TINY", "--base", "flux-dev"], 2, ["base is flux-dev", "Leave it out"]),
        (["--model", "."], 1, ["model_index.json"]),
        (["--model", "../nowhere"], 2, ["'../nowhere'", ".safetensors or .gguf file", "--models-dir"]),
        (["--model", "a/b/c"], 2, ["'a/b/c'"]),
        (["--model", "mein", "--models-dir", "here"], 2, ["'mein'", "Did you mean mine"]),
        (["--model", "TINY", "--size", "250"], 2, ["250x250", "256x256"]),
        (["--model", "TINY", "--device", ""], 2, ["device is ''"]),
        (["--model", "TINY", "--offload", ""], 2, ["offload is ''"]),
        (["--model", "TINY", "--quantize", ""], 2, ["quantize is ''", "none"]),
        (["--model", "TINY", "--dtype", ""], 2, ["dtype is ''"]),
        (["--model", "TINY", "--upscaler", ""], 2, ["no upscaler file ''"]),
        (["--model", "TINY", "--upscaler", "realesrgan-x2plus"], 2, ["Did you mean realesrgan-x2 "]),
        (["--model", "TINY", "--device", "quantum"], 2, ["quantum", "Try cpu"]),
        (["--model", "TINY", "--device", "cuda:99"], 1, ["not available here", "Try cpu"]),
        (["--model", "TINY", "--upscaler", "nope"], 2, ["nope", "realesrgan-x2"]),
        (["--model", "TINY", "--dtype", "int8"], 2, ["int8", "float32"]),
        (["--model", "TINY", "--upscaler", "missing.pth"], 2, ["missing.pth"]),
        (["--model", "TINY", "--upscaler", "text.pth"], 1, ["text.pth"]),
        (
            ["--model", "TINY", "--upscaler", "bicubic", "--guidance", "2", "--true-cfg-scale", "2"],
            2,
            ["--guidance"],
        ),
    ],
)
def test_models_devices_and_upscalers(tiny, arguments, code, words):
    Path("text.pth").write_text("no weights")
    Path("here").mkdir()
    Path("here/mine.safetensors").touch()
    refuse(
        [*LAKE, "--upscaler", "bicubic", *(tiny if each == "TINY" else each for each in arguments)], code, *words
    )
    assert {path.name for path in Path().iterdir()} == {"text.pth", "here"}


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="has one")
def test_a_device_that_is_not_there_is_said_in_our_words(tiny):
    result = refuse([*LAKE, "--model", tiny, "--device", "mps"], 1, "not available here: this machine has none")
    assert "Facebook" not in result.stderr


def test_quantize_none_is_none_whatever_the_environment_says(tiny):
    asked = [*LAKE, "--model", tiny, "--size", "64", "--plan", "1+1", "--upscaler", "bicubic", "--out", "a.png"]
    result = invoke([*asked, "--quantize", "none"], env={"MRFLOW_QUANTIZE": "int8"})
    assert result.exit_code == 0, result.stderr
    assert not read_recipe("a.png").conditions


@pytest.mark.parametrize("content", ["[]", '{"format": 1}'])
def test_a_broken_recipe_names_its_file(content):
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text("mrflow", content)
    Image.new("RGB", (32, 32)).save("odd.png", pnginfo=chunk)
    result = refuse(["replay", "odd.png"], 1, "odd.png: The recipe")
    assert "__init__" not in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_picture_that_may_not_be_read():
    save_image(Image.new("RGB", (32, 32)), "closed.png", RECIPE)
    Path("closed.png").chmod(0)
    refuse(["replay", "closed.png"], 1, "closed.png cannot be read: Permission denied")


def test_a_base_that_does_not_fit_is_not_the_pictures_word(tiny):
    """The recorded file is here, so that nothing would be downloaded."""
    Path("models").mkdir()
    save_file({"a": torch.zeros(1)}, "models/mine.safetensors")
    recipe = replace(RECIPE, model="mine.safetensors", revision=identify("models/mine.safetensors")[1])
    save_image(Image.new("RGB", (32, 32)), "draft.png", recipe)
    common = ["finish", "draft.png", "--models-dir", "models"]
    result = refuse([*common, "--base", tiny], 1, "mine.safetensors, as the transformer of", "lacks weights")
    assert "word" not in result.stderr
    save_file({"a": torch.ones(1)}, "models/mine.safetensors")
    refuse([*common, "--base", tiny], 2, "models/mine.safetensors has that name, and other weights", "word")


def test_vista_without_its_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(vista, "_HERE", tmp_path)
    refuse(LAKE, 1, "vista", "missing", "training/README.md")


def test_words_that_the_model_lacks_are_a_warning(tiny):
    result = invoke(["draft", "a red zebra", "--model", tiny, "--size", "64", "--steps", "1", "-n", "1"])
    assert result.exit_code == 0
    assert "Warning: " in result.stderr
    assert "'zebra'" in result.stderr
    assert "zebra" in result.stdout


def test_prompts_without_quotes_are_a_warning(monkeypatch):
    monkeypatch.setattr(ModelOptions, "load", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    result = invoke(["generate", "a", "snowy", "lake"])
    assert "3 prompts of one word each" in result.stderr


def test_debug_shows_the_traceback():
    result = invoke([*LAKE, "--sigma", "2", "--debug"])
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("Error: refine_sigma is 2.0")


def test_an_unforeseen_error_is_a_line_too(monkeypatch):
    def load(self: ModelOptions) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(ModelOptions, "load", load)
    refuse(LAKE, 1, "RuntimeError: out of memory", "--debug")


def test_nothing_is_downloaded_on_a_pictures_word(monkeypatch):
    asked = []

    def load_config(_path: str, *, local_files_only: bool = False) -> None:
        asked.append(local_files_only)
        raise OSError("it is not here")

    monkeypatch.setattr("diffusers.DiffusionPipeline.load_config", staticmethod(load_config))
    monkeypatch.setattr("mrflow.loading.is_offline", lambda: False)
    save_image(Image.new("RGB", (32, 32)), "draft.png", replace(RECIPE, model="nobody/nothing"))
    for command in ("finish", "replay"):
        refused = invoke([command, "draft.png"])
        assert refused.exit_code == 1
        assert "nobody/nothing cannot be loaded: it is not here" in refused.stderr
        assert "nothing is downloaded on a picture's word: if you trust it, give it as --model." in refused.stderr
        trusted = invoke([command, "draft.png", "--model", "nobody/nothing"])
        assert "picture's word" not in trusted.stderr
    assert asked == [True, False] * 2


def test_interrupted_while_loading(monkeypatch):
    def load(self: ModelOptions) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelOptions, "load", load)
    result = invoke(LAKE)
    assert (result.exit_code, result.stdout) == (130, "")
    assert "Interrupted" in result.stderr
