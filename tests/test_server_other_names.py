"""Requests as other people's clients send them, and fields that other servers have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image
from pydantic import ValidationError

from mrflow.server.other_names import IGNORED, REFUSED, SAME
from mrflow.server.requests import DraftsBody, EditBody, FinishBody, GenerateBody
from support.serving import ROUTES, Server, check_error, serving

FULL: dict[str, Any] = {"prompt": "a boat", "plan": "1+1"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        names = ("black-forest-labs/FLUX.1-dev", "dall-e-3", "gpt-image-1", "vista")
        running.app.state.service.__dict__["names"] = names
        yield running


def post(server: Server, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{ROUTES[0]}", json=fields, timeout=60)


@pytest.mark.parametrize("body", [GenerateBody, EditBody, DraftsBody])
def test_the_tables_name_no_field_of_ours_and_lead_to_ours(body: Any) -> None:
    known = set(body.model_fields)
    assert not known & IGNORED
    assert not known & set(SAME)
    assert set(SAME.values()) <= known
    assert not IGNORED & set(SAME) | IGNORED & set(REFUSED) | set(SAME) & set(REFUSED)


@pytest.mark.parametrize("name", SAME)
def test_what_means_the_same_is_read_as_ours(name: str) -> None:
    ours = SAME[name]
    value = {"output_format": "webp", "negative_prompt": "fog"}.get(ours, 2)
    body = GenerateBody.model_validate({"prompt": "a boat", name: value})
    assert getattr(body, ours) == value
    assert body.warnings() == [f"{name} is read as {ours}."]
    with pytest.raises(ValidationError, match="says the same"):
        GenerateBody.model_validate({"prompt": "a boat", name: value, ours: value})


@pytest.mark.parametrize(("name", "status"), [("flux-dev", 200), ("flux-schnell", 404), ("FluxPipeline", 404)])
def test_a_known_model_is_served_under_its_short_name_too(server: Server, name: str, status: int) -> None:
    assert post(server, model=name, prompt="a boat", dry_run=True).status_code == status


def test_steps_under_another_name_make_the_same_picture(server: Server) -> None:
    ours = post(server, prompt="a boat", num_inference_steps=2, size="96x64", seed=3).json()
    theirs = post(server, prompt="a boat", steps=2, width=96, height=64, seed=3, user_id="u", metadata={}).json()
    assert theirs["data"][0]["recipe"]["pixels_sha256"] == ours["data"][0]["recipe"]["pixels_sha256"]
    assert ours["warnings"] == []
    assert theirs["warnings"] == [
        "width and height are read as size.",
        "steps is read as num_inference_steps.",
        "user_id is ignored: it changes nothing here.",
        "metadata is ignored: it changes nothing here.",
    ]


@pytest.mark.parametrize(
    "name", [*REFUSED, "promt", "negativ_prompt", "refine_sigm", "num_inference_step", "Seed", "foo"]
)
def test_what_would_change_the_picture_and_near_misses_are_refused_with_a_hint(server: Server, name: str) -> None:
    value = "painterly" if name == "style" else 1
    error = check_error(post(server, **FULL, **{name: value}), 400)
    assert error["param"] == name
    if name in REFUSED and name != "style":
        assert error["code"] == "unknown_parameter"
        assert REFUSED[name] in error["message"]
    near = {"promt": "prompt", "negativ_prompt": "negative_prompt", "refine_sigm": "refine_sigma", "Seed": "seed"}
    assert name not in near or f"Did you mean {near[name]!r}?" in error["message"]


def test_a_strict_server_takes_its_own_fields_alone() -> None:
    with serving(strict=True) as server:
        for name, value in {"steps": 2, "user_id": "u", "metadata": {}}.items():
            assert check_error(post(server, prompt="a boat", **{name: value}), 400)["param"] == name
        assert post(server, **FULL, user="u", style="vivid", moderation="low").status_code == 200


CLIENTS: dict[str, dict[str, Any]] = {
    "Open WebUI": {
        "model": "gpt-image-1",
        "prompt": "a boat",
        "n": 1,
        "size": "64x64",
        "response_format": "b64_json",
    },
    "Open WebUI with parameters": {"model": "vista", "prompt": "a boat", "n": 1, "steps": 2, "seed": 4},
    "LibreChat": {
        "model": "dall-e-3",
        "quality": "hd",
        "style": "natural",
        "size": "64x64",
        "prompt": "a boat",
        "n": 1,
    },
    "LiteLLM": {"model": "vista", "prompt": "a boat", "user": "u", "metadata": {"tags": ["x"]}},
    "n8n": {
        "model": "dall-e-3",
        "prompt": "a boat",
        "n": 1,
        "quality": "standard",
        "size": "64x64",
        "style": "vivid",
        "response_format": "b64_json",
    },
}


@pytest.mark.parametrize("name", CLIENTS)
def test_the_shapes_that_clients_send(server: Server, name: str) -> None:
    answer = post(server, **CLIENTS[name])
    assert answer.status_code == 200, answer.text
    (made,) = answer.json()["data"]
    assert ("url" in made) == (name == "LibreChat")
    if name == "LibreChat":
        file = httpx.get(made["url"])
        assert re.search(r"[\w\d]+\.png$", made["url"])
        assert file.content.startswith(b"\x89PNG")
        assert httpx.get(made["url"].removesuffix(".png")).content == file.content
        check_error(httpx.get(made["url"].replace(".png", ".webp")), 404)
        assert answer.json()["warnings"] == ["style is ignored: it changes nothing here."]


def test_forms_and_streams_tell_too(server: Server) -> None:
    file = BytesIO()
    Image.new("RGB", (32, 32)).save(file, "PNG")
    data = {"prompt": "a boat", "model": "vista", "steps": "2", "n": "1", "response_format": "b64_json"}
    answer = httpx.post(
        f"{server.url}/v1/images/edits", data=data, files={"image": file.getvalue()}, timeout=60
    ).json()
    assert answer["warnings"] == ["steps is read as num_inference_steps."]
    events = post(server, **FULL, stream=True, user_id="u").text
    assert '"warnings": ["user_id is ignored' in events
    drafts = [
        each["id"]
        for each in httpx.post(f"{server.url}{ROUTES[1]}", json={**FULL, "n": 1}, timeout=60).json()["data"]
    ]
    finished = httpx.post(f"{server.url}{ROUTES[2]}", json={"drafts": drafts, "timeout": 60}, timeout=60).json()
    assert finished["warnings"] == ["timeout is ignored: it changes nothing here."]
    assert FinishBody.model_validate({"drafts": ["x"]}).warnings() == []
