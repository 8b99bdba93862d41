"""The official `openai` package, unmodified, against a real server: generate, stream, edit, and its errors."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import ImageEditCompletedEvent, ImageGenCompletedEvent, ImageGenPartialImageEvent, ImagesResponse
from PIL import Image

from conftest import make_fast, make_pipe
from mrflow import Plan, read_recipe
from mrflow.images import to_pil
from support.serving import Server, serving

OUR_FIELDS = {"seed": 3, "plan": "2+1"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with server.client() as open_client:
        yield open_client


def picture(b64: str | None) -> Image.Image:
    assert b64 is not None
    return Image.open(BytesIO(base64.b64decode(b64)))


def as_typed(kind: Any, value: Any) -> None:
    """Check that an answer has every field that the package's type asks for, of the right type."""
    kind.model_validate(value.model_dump(), strict=True)


def close(a: Image.Image, b: Image.Image) -> bool:
    """Whether pictures are equal but for rounding; a batch of another size rounds sums otherwise."""
    pairs = zip(a.convert("RGB").tobytes(), b.convert("RGB").tobytes(), strict=True)
    return max(abs(x - y) for x, y in pairs) <= 1


def test_generate(client: OpenAI) -> None:
    answer = client.images.generate(prompt="a red boat", n=2, size="64x96", extra_body=OUR_FIELDS)
    as_typed(ImagesResponse, answer)
    assert answer.data is not None
    alone = make_fast(make_pipe())("a red boat", width=64, height=96, plan="2+1", seed=[3, 4])
    for item, image in zip(answer.data, alone.images, strict=True):
        assert close(picture(item.b64_json), image)
    extra = answer.data[1].model_extra
    assert extra is not None
    assert (extra["seed"], extra["plan"]) == (4, "2+1")
    assert {"queue", "draft", "refine"} <= set(extra["seconds"])
    assert (answer.size, answer.output_format, answer.quality) == ("64x96", "png", None)
    assert answer.usage is not None
    assert answer.usage.output_tokens == 2 * 4 * 6
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0


@pytest.mark.parametrize(("form", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_formats_hold_the_recipe(client: OpenAI, form: Any, kind: str) -> None:
    answer = client.images.generate(
        prompt="a red boat",
        output_format=form,
        output_compression=None if form == "png" else 50,
        extra_body=OUR_FIELDS,
    )
    assert answer.data is not None
    data = base64.b64decode(answer.data[0].b64_json or "")
    assert Image.open(BytesIO(data)).format == kind
    assert read_recipe(BytesIO(data)).seed == 3


def test_a_url_serves_the_picture(client: OpenAI, server: Server) -> None:
    answer = client.images.generate(prompt="a lake", response_format="url", extra_body=OUR_FIELDS)
    assert answer.data is not None
    url = answer.data[0].url
    assert url is not None
    assert url.startswith(f"{server.url}/v1/files/")
    file = httpx.get(url)
    assert file.headers["content-type"] == "image/png"
    assert Image.open(BytesIO(file.content)).size == (64, 64)
    assert httpx.get(url[:-1] + "-").status_code == 404


@pytest.mark.parametrize(
    ("count", "shown"), [(0, []), (1, ["draft"]), (2, ["draft", "upscaled"]), (3, ["draft", "upscaled"])]
)
def test_stream(client: OpenAI, count: int, shown: list[str]) -> None:
    events = list(
        client.images.generate(prompt="a red boat", stream=True, partial_images=count, extra_body=OUR_FIELDS)
    )
    *partial, last = events
    assert isinstance(last, ImageGenCompletedEvent)
    as_typed(ImageGenCompletedEvent, last)
    for number, event in enumerate(partial):
        assert isinstance(event, ImageGenPartialImageEvent)
        as_typed(ImageGenPartialImageEvent, event)
        assert event.partial_image_index == number
    assert [(event.model_extra or {})["stage"] for event in partial] == shown
    fast = make_fast(make_pipe())
    (draft,) = fast.draft("a red boat", plan="2+1", seed=3)
    result = fast.finish(draft, keep_upscaled=True)
    expected = [to_pil(draft.pixels)[0], result.upscaled[0]][: len(shown)]
    for event, image in zip([*partial, last], [*expected, result.images[0]], strict=True):
        assert close(picture(event.b64_json), image)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_stream_shows_every_level_but_no_more_than_was_asked(client: OpenAI, count: int) -> None:
    more = {"plan": "2+1+1", "refine_sigma": [0.1, 0.2], "size": "128x64"}
    *partial, last = client.images.generate(
        prompt="a red boat", stream=True, partial_images=count, extra_body={**OUR_FIELDS, **more}
    )
    assert [(event.model_extra or {})["stage"] for event in partial] == ["draft", "upscaled", "upscaled"][:count]
    assert [picture(event.b64_json).width for event in [*partial, last]] == [*[32, 64, 128][:count], 128]


def test_stream_of_several_pictures(client: OpenAI) -> None:
    events = list(
        client.images.generate(prompt="a lake", n=3, stream=True, partial_images=1, extra_body=OUR_FIELDS)
    )
    done = [(event.model_extra or {})["image_index"] for event in events if event.type.endswith("completed")]
    assert sorted(done) == [0, 1, 2]
    assert len(events) == 6


def photo(size: tuple[int, int] = (40, 32)) -> bytes:
    file = BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, "PNG")
    return file.getvalue()


def test_edit(client: OpenAI) -> None:
    answer = client.images.edit(image=("x.png", photo()), prompt="a red boat", size="auto", extra_body={"seed": 1})
    as_typed(ImagesResponse, answer)
    assert answer.data is not None
    alone = make_fast(make_pipe()).enhance(Image.open(BytesIO(photo())), "a red boat", seed=1)
    assert close(picture(answer.data[0].b64_json), alone.images[0])
    *partial, last = client.images.edit(image=[photo()], prompt="a boat", stream=True, partial_images=1, n=1)
    assert isinstance(last, ImageEditCompletedEvent)
    as_typed(ImageEditCompletedEvent, last)
    assert [event.type for event in partial] == ["image_edit.partial_image"]


@pytest.mark.parametrize(
    ("arguments", "error", "param"),
    [
        ({"prompt": ""}, openai.UnprocessableEntityError, "prompt"),
        ({"prompt": "a" * 5000}, openai.UnprocessableEntityError, "prompt"),
        ({"n": 11}, openai.BadRequestError, "n"),
        ({"size": "63x64"}, openai.UnprocessableEntityError, "size"),
        ({"size": "4096x4096"}, openai.UnprocessableEntityError, "size"),
        ({"size": "large"}, openai.UnprocessableEntityError, "size"),
        ({"model": "gpt-image-1"}, openai.NotFoundError, "model"),
        ({"quality": "best"}, openai.BadRequestError, "quality"),
        ({"background": "transparent"}, openai.BadRequestError, "background"),
        ({"output_compression": 50}, openai.BadRequestError, "output_compression"),
        ({"extra_body": {"plan": "999+1"}}, openai.UnprocessableEntityError, "plan"),
        ({"extra_body": {"stepz": 3}}, openai.BadRequestError, "stepz"),
        ({"extra_body": {"seed": -1}}, openai.BadRequestError, "seed"),
    ],
)
def test_wrong_values_are_named(client: OpenAI, arguments: dict[str, Any], error: type, param: str) -> None:
    with pytest.raises(error) as raised:
        client.images.generate(**{"prompt": "a boat", **arguments})
    assert raised.value.param == param


def test_words_that_cannot_be_read_are_told(client: OpenAI) -> None:
    answer = client.images.generate(prompt="a zeppelin", extra_body=OUR_FIELDS)
    assert (answer.model_extra or {})["warnings"] == ["FluxPipeline does not know: 'zeppelin'"]


@pytest.mark.parametrize(
    ("asked", "warned"),
    [
        ({"num_inference_steps": 28}, True),
        ({"steps": 28}, True),
        ({"num_inference_steps": 3}, False),
        ({"plan": "28+1"}, False),
        ({"quality": "max"}, False),
        ({"num_inference_steps": 28, "native": True}, False),
    ],
    ids=str,
)
def test_native_steps_are_warned_of(server: Server, asked: dict[str, Any], warned: bool) -> None:
    body = {"prompt": "a boat", "dry_run": True, **asked}
    answer = httpx.post(f"{server.url}/v1/images/generations", json=body).json()
    assert any("The plan is 28+1" in each for each in answer["warnings"]) == warned


@pytest.mark.parametrize(
    ("asked", "left_out"),
    [
        ({"plan": "2+1", "refine_sigma": 0.2, "num_inference_steps": 3}, "plan, refine_sigma"),
        ({"plan": "2+1"}, "plan"),
        ({"num_inference_steps": 3, "guidance_stop": 0.5}, None),
    ],
    ids=str,
)
def test_what_a_native_picture_leaves_out_is_told(
    server: Server, asked: dict[str, Any], left_out: str | None
) -> None:
    body = {"prompt": "a boat", "dry_run": True, "native": True, **asked}
    answer = httpx.post(f"{server.url}/v1/images/generations", json=body).json()
    told = [each for each in answer["warnings"] if each.startswith("native runs no stages")]
    assert told == ([f"native runs no stages, so that it leaves out {left_out}."] if left_out else [])
    assert answer["plan"] == "native:3"  # as many as are asked for, or the tiny model's own


@pytest.mark.parametrize(("quality", "label"), [("low", "2+1"), ("medium", "3+1"), ("hd", "5+1"), ("max", "13+1")])
def test_quality_chooses_the_steps(client: OpenAI, quality: Any, label: str) -> None:
    answer = client.images.generate(prompt="a boat", quality=quality)
    as_typed(ImagesResponse, answer)
    assert (answer.model_extra or {})["plan"] == label


def test_a_solver_and_guidance_in_part_of_the_steps(server: Server) -> None:
    fields: dict[str, Any] = {"true_cfg_scale": 2.0, "guidance_stop": 0.5, "solver": "unipc"}
    body = {"prompt": "a red boat", "seed": 5, "plan": "4+1", **fields}
    answer = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60).json()
    assert fields.items() <= answer["data"][0]["recipe"]["plan"].items()
    alone = make_fast(make_pipe())("a red boat", plan=Plan(steps=4, **fields), seed=5)
    assert close(picture(answer["data"][0]["b64_json"]), alone.images[0])
    refused = httpx.post(f"{server.url}/v1/images/generations", json={**body, "solver": "euler"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "plan")
    assert "unipc" in refused.json()["error"]["message"]


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["FluxPipeline"]
    assert client.models.retrieve("FluxPipeline").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("dall-e-3")


def test_drafts_are_finished_as_a_whole_run_would_have(server: Server) -> None:
    fields = {"prompt": "a red boat", "seed": 5, "plan": "2+1", "n": 3}
    drafts = httpx.post(f"{server.url}/v1/images/drafts", json=fields, timeout=60).json()
    assert [item["seed"] for item in drafts["data"]] == [5, 6, 7]
    assert picture(drafts["data"][0]["b64_json"]).size == (32, 32)
    chosen = [drafts["data"][k]["id"] for k in (2, 0)]
    finished = httpx.post(f"{server.url}/v1/images/finish", json={"drafts": chosen}, timeout=60).json()
    alone = make_fast(make_pipe())("a red boat", plan="2+1", seed=[7, 5])
    for item, image in zip(finished["data"], alone.images, strict=True):
        assert close(picture(item["b64_json"]), image)
    changed = httpx.post(
        f"{server.url}/v1/images/finish", json={"drafts": chosen, "refine_sigma": 0.3}, timeout=60
    ).json()
    assert changed["data"][0]["recipe"]["plan"]["refine_sigma"] == 0.3
    gone = httpx.post(f"{server.url}/v1/images/finish", json={"drafts": ["draft_none"]})
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "draft_not_found")
