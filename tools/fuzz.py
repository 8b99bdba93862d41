"""Feed readers with damaged input, guided by the code that it reaches: python -m tools.fuzz csv --seconds 600

A target reads some bytes as one of the package's readers would get them. Whatever they are, it returns; anything
but a result or a MrFlowError is a fault, which atheris prints and keeps as crash-... in this folder, to be read
again by `python -m tools.fuzz csv crash-...`. Needs atheris: pip install ".[fuzz]". Without it,
tests/test_properties.py gives the same targets what hypothesis thinks of.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrflow.model import Model

CORPUS = Path(__file__).parents[1] / "tests" / "fixtures" / "fuzz"
MOST = 4096  # bytes of an input


def read_input(name: str, data: bytes) -> None:
    """Give the target its bytes; returns unless the reader is at fault."""
    from mrflow.errors import MrFlowError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(MrFlowError):
            TARGETS[name](data)


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="mrflow-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _file(suffix: str, data: bytes) -> Path:
    path = _folder() / f"input{suffix}"
    path.write_bytes(data)
    return path


def _text(data: bytes) -> str:
    """Return text that may hold lone surrogates, as JSON and file names can."""
    return data.decode("utf-8", "surrogateescape")


def _read_rows(form: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        from mrflow.batch.tasks import read_request
        from mrflow.prompt_rows import read_rows

        request = read_request(read_rows(_file(f".{form}", data)))
        json.dumps([failure.to_dict() for failure in request.failures])

    return read


def _read_recipe(data: bytes) -> None:
    from mrflow.recipe import Recipe

    recipe = Recipe.from_json(_text(data))
    assert Recipe.from_json(recipe.to_json()) == recipe


def _read_plan(data: bytes) -> None:
    from mrflow.plan import Plan, named_plan

    plan = named_plan(_text(data))
    assert Plan.from_dict(plan.to_dict()) == plan


def _read_plan_file(data: bytes) -> None:
    from mrflow.plan import plan_to_json, read_plan

    plan = read_plan(_file(".json", data))
    assert read_plan(_file(".json", plan_to_json(plan, {}).encode())) == plan


def _read_method(data: bytes) -> None:
    from mrflow.bench.methods import read_methods

    read_methods([_text(data)])


def _read_size(data: bytes) -> None:
    from mrflow.jobs import parse_size

    parse_size(_text(data))


def _read_body(data: bytes) -> None:
    from pydantic import ValidationError

    from mrflow.jobs import parse_size
    from mrflow.plan import Plan, get_plan
    from mrflow.server import requests
    from mrflow.server.errors import invalid_field

    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # FastAPI's own to answer
        return
    for kind in (requests.GenerateBody, requests.EditBody, requests.DraftsBody, requests.FinishBody):
        try:
            body = kind.model_validate(value)
        except ValidationError as error:
            for each in error.errors():
                invalid_field({**each, "loc": ("body", *each["loc"])}).response()
            continue
        get_plan(body.plan)
        if isinstance(body, requests.PromptBody):
            Plan(**requests.plan_numbers(body))
            parse_size(None if body.size == "auto" else body.size)


def _read_image(data: bytes) -> None:
    from mrflow.errors import ImageError, RecipeError
    from mrflow.files import load_image, read_latents, read_recipe

    with contextlib.suppress(ImageError):
        assert load_image(BytesIO(data), max_pixels=2**20).mode == "RGB"
    with contextlib.suppress(ImageError, RecipeError):
        read_recipe(BytesIO(data))
    with contextlib.suppress(ImageError):
        read_latents(_file(".png", data))


def _read_upscaler(data: bytes) -> None:
    from mrflow.upscaler import Upscaler

    Upscaler.load(_file(".safetensors", data))


def _read_ncnn(data: bytes) -> None:
    from mrflow.upscaler import Upscaler

    graph, _, weights = data.partition(b"\0")  # two files as one input
    _file(".param", graph)
    Upscaler.load(_file(".bin", weights))


def _read_lora(data: bytes) -> None:
    from mrflow.loras import find_loras

    find_loras([f"{_file('.safetensors', data)}:0.5"])


def _read_checkpoint(data: bytes) -> None:
    from mrflow.single_files import find_base

    find_base(_file(".gguf" if data.startswith(b"GGUF") else ".safetensors", data))


def _read_config(data: bytes) -> None:
    from mrflow.cli.config import read_config

    os.environ["MRFLOW_CONFIG"] = str(_file(".toml", data))
    try:
        read_config()
    finally:
        del os.environ["MRFLOW_CONFIG"]


def _read_a1111(data: bytes) -> None:
    from fastapi.exceptions import RequestValidationError
    from pydantic import ValidationError

    from mrflow.server import a1111, requests
    from mrflow.server.errors import ApiError

    for kind, ours in ((a1111.TextBody, requests.GenerateBody), (a1111.ImageBody, requests.EditBody)):
        try:
            body = kind.model_validate_json(data)
        except ValidationError:  # FastAPI's own to answer
            continue
        with contextlib.suppress(ApiError, RequestValidationError):
            a1111.read_body(_model(), body, ours)


@cache
def _model() -> Model:
    from mrflow.loading import load_model

    return load_model("vista")


def _read_keys(data: bytes) -> None:
    from mrflow.server.keys import Keys

    assert Keys.read(_file(".txt", data))


def _read_pattern(data: bytes) -> None:
    from mrflow.cli.outputs import Subject, plan_outputs

    subjects = [Subject(prompt="a-lake", seed=7, index=index) for index in (1, 2)]
    pattern = _text(data).replace("..", ".")
    for path in plan_outputs(f"{_folder()}/{pattern}", "{prompt}-{seed}.png", subjects):
        assert path.suffix


TARGETS: dict[str, Callable[[bytes], None]] = {
    **{form: _read_rows(form) for form in ("jsonl", "csv", "txt", "parquet")},
    "recipe": _read_recipe,
    "plan": _read_plan,
    "plan-file": _read_plan_file,
    "method": _read_method,
    "size": _read_size,
    "body": _read_body,
    "image": _read_image,
    "upscaler": _read_upscaler,
    "ncnn": _read_ncnn,
    "lora": _read_lora,
    "checkpoint": _read_checkpoint,
    "config": _read_config,
    "a1111": _read_a1111,
    "keys": _read_keys,
    "out": _read_pattern,
}


def corpus(name: str) -> list[bytes]:
    """Return the inputs that a target's search begins with."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def main() -> None:
    """Search one target for a while."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("inputs", nargs="*", help="files to read once, instead of searching")
    parser.add_argument("--seconds", type=int, default=60)
    given = parser.parse_args()
    try:
        import atheris
    except ImportError:
        sys.exit('atheris is not installed. In a clone of mrflow: pip install ".[fuzz]"')
    with atheris.instrument_imports(include=["mrflow", "PIL"]):
        for data in corpus(given.target):  # imports what the reader needs
            read_input(given.target, data)
    seeds = Path(tempfile.mkdtemp(prefix="seeds-", dir=_folder()))  # what the search finds is added to a copy
    shutil.copytree(CORPUS / given.target, seeds, dirs_exist_ok=True)
    options = [f"-max_total_time={given.seconds}", f"-max_len={MOST}", "-rss_limit_mb=4096", "-timeout=20"]
    places = given.inputs or [str(seeds)]
    atheris.Setup([sys.argv[0], *options, *places], lambda data: read_input(given.target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
