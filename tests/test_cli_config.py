"""Defaults from the environment and a file: which comes first, where they stand back, and that they are shown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrflow.cli.app import app
from mrflow.cli.config import config_file
from support.cli import invoke


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return what writes the file that the commands then read."""

    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text)
        monkeypatch.setenv("MRFLOW_CONFIG", str(path))
        return path

    return write


def parse(*arguments: str) -> dict[str, Any]:
    """Return what a command would be called with."""
    _, bound, _ = app.parse_args(arguments)
    return {**bound.arguments}


def test_the_command_line_then_the_environment_then_a_table_then_the_top(configure, monkeypatch, capsys):
    configure(
        'device = "top"\ndtype = "top"\nsize = 256\nseed = 1\n[generate]\nsize = 512\ndtype = "table"\nseed = 2'
    )
    monkeypatch.setenv("MRFLOW_DTYPE", "variable")
    called = parse("generate", "a lake", "--seed", "3")
    assert (called["model"].device, called["model"].dtype) == ("top", "variable")
    assert (called["pictures"].size, called["pictures"].seed) == ("512", 3)
    said = capsys.readouterr().err
    assert said == "--size 512, --device top, --dtype variable: set by your configuration, see mrflow config\n"
    called = parse("draft", "a lake")
    assert (called["drafts"].size, called["drafts"].seed) == ("256", 1)


def test_nothing_is_said_where_nothing_is_set(configure, capsys):
    configure("[bench]\nrepeats = 9")
    parse("generate", "a lake")
    assert capsys.readouterr().err == ""


def test_options_of_several_values_and_flags(configure):
    configure('device = ["cuda:0", "cuda:1"]\njson = true')
    assert parse("serve")["model"].devices == ("cuda:0", "cuda:1")
    assert parse("models")["streams"].json


def test_folders_of_models_stand_in_the_file_and_before_it_in_a_variable(configure, monkeypatch):
    configure('models-dir = ["a", "b"]\nloras-dir = "c"')
    model = parse("generate", "a lake")["model"]
    assert (model.models_dir, model.loras_dir) == ((Path("a"), Path("b")), (Path("c"),))
    monkeypatch.setenv("MRFLOW_MODELS_DIR", os.pathsep.join(("d", "e")))
    assert parse("generate", "a lake")["model"].models_dir == (Path("d"), Path("e"))


def test_a_model_that_stands_in_the_command_comes_before_the_files(configure):
    configure('model = "flux-dev"')
    assert parse("estimate", "z-image")["model"] == "z-image"
    assert parse("estimate")["model"] == "flux-dev"


def test_what_a_recipe_answers_stays_the_recipes(configure, monkeypatch):
    configure('model = "flux-dev"\nupscaler = "lanczos"\n[enhance]\nmodel = "z-image"')
    monkeypatch.setenv("MRFLOW_DTYPE", "bfloat16")
    assert "model" not in parse("replay", "a.png")
    called = parse("finish", "a.png")["model"]
    assert (called.model, called.upscaler, called.dtype) == ("", "lanczos", "bfloat16")
    assert parse("enhance", "a.png", "--prompt", "a lake")["model"].model == "z-image"


def test_native_takes_no_plan_from_a_file(configure):
    configure('plan = "20+1"\nsigma = "0.2"\nsolver = "unipc"')
    called = parse("generate", "a lake", "--native")["plans"]
    assert (called.plan, called.refine_sigma, called.solver) == (None, None, "unipc")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("size = ", "is no TOML that can be read"),
        ('modell = "x"', "holds modell, which nothing here can take. Did you mean model?"),
        ("width = 512", "Did you mean size?"),
        ('out = "pictures/"', "Put it into a command's table, such as [generate]."),
        ("[generat]\nsize = 1", "holds a table generat, which nothing here can take. Did you mean generate?"),
        ("[draft]\nstages = true", "[draft], holds stages"),
        ("[bench]\nforce = true", "[bench], holds force"),
    ],
)
def test_a_file_that_no_command_could_take_is_one_line(configure, text, words):
    path = configure(text)
    for arguments in (["generate", "a lake"], ["config"]):
        result = invoke(arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert str(path) in line
        assert words in line


def test_a_wrong_value_is_refused_and_said_where_it_comes_from(configure):
    configure('steps = "many"')
    result = invoke(["generate", "a lake"])
    assert result.exit_code == 2
    assert "--steps many: set by your configuration" in result.stderr
    assert "'many' is no whole number" in result.stderr


def test_config_shows_what_is_set_and_no_secret(configure, monkeypatch):
    path = configure('model = "flux-dev"\n[generate]\nnum_images = 2')
    monkeypatch.setenv("MRFLOW_DEVICE", "cuda:1")
    monkeypatch.setenv("MRFLOW_MODLE", "x")
    monkeypatch.setenv("MRFLOW_API_KEYS", "a-very-secret-key")
    shown = invoke(["config"]).stdout
    assert shown.splitlines() == [
        str(path),
        "  --model flux-dev  (every command)",
        "  --num-images 2  (generate)",
        "MRFLOW_DEVICE: --device cuda:1",
        "MRFLOW_MODLE: no command has such an option",
    ]
    told = json.loads(invoke(["config", "--json"]).stdout)
    assert told == {
        "file": str(path),
        "exists": True,
        "sets": {"model": "flux-dev", "generate": {"num_images": 2}},
        "environment": {"MRFLOW_DEVICE": "cuda:1"},
    }


def test_where_the_file_is(monkeypatch, tmp_path):
    assert invoke(["config"], env={"MRFLOW_CONFIG": ""}).stdout == "no file: MRFLOW_CONFIG is empty\n"
    missing = invoke(["config"], env={"MRFLOW_CONFIG": str(tmp_path / "none.toml")})
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert "none.toml" in missing.stderr
    monkeypatch.delenv("MRFLOW_CONFIG")
    monkeypatch.setattr("mrflow.cli.config.user_config_path", lambda name, appauthor: tmp_path / name)
    assert config_file() == tmp_path / "mrflow" / "config.toml"
    assert invoke(["config"]).stdout == f"{config_file()} (not there)\n"
    assert invoke(["models"]).stderr == ""
