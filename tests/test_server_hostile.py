"""Hostile and careless requests: refused in OpenAI's shape, without a word of the server's insides."""

from __future__ import annotations

import base64
import json
import random
import socket
import string
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from typing import Any

import httpx
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from PIL import Image

from mrflow.server.other_names import IGNORED, SAME
from support.json_values import json_values
from support.serving import ROUTES, Server, check_error, serving

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(body_seconds=3.0, max_upload=2**20, max_input_pixels=10_000) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def make_value(draw: random.Random, depth: int = 0) -> Any:
    """Return some JSON value, seldom a sensible one."""
    kinds = [
        lambda: None,
        lambda: draw.random() < 0.5,
        lambda: draw.choice([0, -1, 1, 3, 11, 2**31, 2**63, 2**64, -(10**30)]),
        lambda: draw.choice([0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf")]),
        lambda: "".join(draw.choices(string.printable + "\x00é漢😀\u202e", k=draw.randrange(12))),
        lambda: draw.choice(
            ["auto", "64x64", "0x0", "99999x1", "1+1", "x" * 5000, "\ud800", "../../etc/passwd", "{}"]
        ),
        lambda: [make_value(draw, depth + 1) for _ in range(draw.randrange(3))] if depth < 3 else [],
        lambda: {str(make_value(draw, 9)): make_value(draw, depth + 1)} if depth < 3 else {},
    ]
    return draw.choice(kinds)()


JSON_VALUES = json_values("auto", "1+1", text=20, key=8, leaves=6)


def fits(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> bool:
    """Whether a value is one that the OpenAPI document allows."""
    return Draft202012Validator({**schema, "components": document["components"]}).is_valid(value)


@st.composite
def malformed(draw: st.DrawFn, document: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Draw a route of the OpenAPI document, and arguments for httpx of a request that it does not allow."""
    posts = {path: verbs["post"] for path, verbs in document["paths"].items() if "post" in verbs}
    bodies = {path: post["requestBody"]["content"] for path, post in posts.items()}
    path = draw(st.sampled_from(sorted(bodies)))
    ((media, content),) = bodies[path].items()
    schema = content["schema"]
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if draw(st.integers(0, 4)) == 0:
        return path, {"content": draw(st.binary(max_size=40)), "headers": {"content-type": media}}
    fields = sorted(schema["properties"])
    body: dict[str, Any] = {"prompt": "a boat", "drafts": ["draft_x"], "plan": "1+1"}
    body = {name: value for name, value in body.items() if name in fields}
    way = draw(st.sampled_from(["missing", "unknown", "wrong"]))
    if way == "missing":
        del body[draw(st.sampled_from([name for name in schema["required"] if name in body]))]
    elif way == "unknown":
        known = {*fields, *IGNORED, *SAME}
        body[draw(st.text(min_size=1, max_size=20).filter(lambda name: name not in known))] = draw(JSON_VALUES)
    if way == "wrong" and media == "application/json":
        name = draw(st.sampled_from(fields))
        body[name] = draw(JSON_VALUES.filter(lambda value: not fits(value, schema["properties"][name], document)))
    if media == "application/json":
        return path, {"content": json.dumps(body), "headers": {"content-type": media}}
    if way == "wrong":  # in a form all is text: a file that is none
        return path, {"data": body, "files": {"image": ("x.png", draw(st.binary(max_size=40)))}}
    return path, {"data": {name: str(value) for name, value in body.items()}, "files": {"image": ("x.png", PIXEL)}}


def test_the_document_allows_a_lora_as_text_too(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    schema = document["components"]["schemas"]["GenerateBody"]["properties"]["loras"]
    for loras, right in ((["style:0.8"], True), ([{"name": "style"}], True), ([3], False), ("style", False)):
        assert fits(loras, schema, document) is right


def test_a_thousand_malformed_requests(http: httpx.Client) -> None:
    """Each breaks the OpenAPI document in one way: no body of that kind, a field missing, unknown or wrong."""
    document = http.get("/openapi.json").json()
    sent: set[str] = set()

    @given(malformed(document))
    @hypothesis.settings(max_examples=1000, deadline=None, derandomize=True, database=None)
    def refuse(request: tuple[str, dict[str, Any]]) -> None:
        path, arguments = request
        sent.add(path)
        check_error(http.post(path, **arguments), 400)

    refuse()
    assert sent == {*ROUTES, "/v1/images/edits", "/v1/images/tasks"}
    assert http.get("/health").json() == {
        "status": "ok",
        "waiting": 0,
        "workers": [{"device": "cpu", "status": "ok"}],
    }


@pytest.mark.parametrize(
    "field",
    ["n", "seed", "num_inference_steps", "guidance_stop", "solver", "refine_sigma", "plan", "size", "stream"],
)
def test_each_field_alone_with_every_kind_of_value(http: httpx.Client, field: str) -> None:
    draw = random.Random(field)
    for _ in range(20):
        value = make_value(draw)
        body = json.dumps({"prompt": "a boat", "model": "none such", field: value})
        answer = http.post(ROUTES[0], content=body, headers={"content-type": "application/json"})
        check_error(answer, 400, 404)


def test_malformed_edits(http: httpx.Client) -> None:
    def edit(image: bytes, **fields: str) -> httpx.Response:
        return http.post("/v1/images/edits", files={"image": ("../../x.png", image)}, data=fields)

    png = BytesIO()
    Image.new("RGB", (32, 32)).save(png, "PNG")
    assert check_error(edit(b"no image", prompt="a boat"), 400)["code"] == "invalid_image"
    check_error(edit(png.getvalue()[:60], prompt="a boat"), 400)
    assert check_error(edit(png.getvalue()), 400)["param"] == "prompt"
    assert check_error(edit(png.getvalue(), prompt="a boat", mask="x"), 400)["param"] == "mask"
    assert check_error(edit(png.getvalue(), prompt="a boat", n="many"), 400)["param"] == "n"
    assert check_error(edit(png.getvalue(), prompt="a boat", size="65x64"), 422)["param"] == "size"
    check_error(http.post("/v1/images/edits", json={"prompt": "a boat"}), 400)
    check_error(
        http.post("/v1/images/edits", content=b"--x", headers={"content-type": "multipart/form-data"}), 400
    )
    two = [("image[]", ("a.png", png.getvalue())), ("image[]", ("b.png", png.getvalue()))]
    check_error(http.post("/v1/images/edits", files=two, data={"prompt": "a boat"}), 400)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(http: httpx.Client) -> None:
    bomb = BytesIO()
    Image.new("1", (20_000, 3_000)).save(bomb, "PNG")
    answer = http.post("/v1/images/edits", files={"image": bomb.getvalue()}, data={"prompt": "a boat"})
    assert "at most 10000" in check_error(answer, 400)["message"]


@pytest.mark.parametrize("route", [*ROUTES, "/v1/images/edits"])
def test_bodies_that_are_too_large(http: httpx.Client, route: str) -> None:
    most = 2**20

    def pieces() -> Iterator[bytes]:  # sent in chunks, without saying how much there is
        if "edits" in route:
            yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        for _ in range(2 * most // 65536):
            yield b" " * 65536

    headers = {"content-type": "multipart/form-data; boundary=x" if "edits" in route else "application/json"}
    check_error(http.post(route, content=b" " * (most + 1), headers=headers), 413)
    with suppress(httpx.TransportError):  # the server may hang up while we are still sending
        check_error(http.post(route, content=pieces(), headers=headers), 413)


def test_a_body_that_does_not_come(server: Server) -> None:
    with socket.create_connection(server.host.split(":")) as line:
        line.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        line.sendall(b"Content-Length: 100\r\n\r\n{")
        line.settimeout(30)
        assert b" 408 " in line.recv(200)


def test_unknown_routes_and_methods(http: httpx.Client) -> None:
    check_error(http.get("/v1/nothing"), 404)
    check_error(http.post("/v1/chat/completions", json={}), 404)
    check_error(http.get("/nothing"), 404)
    check_error(http.get("/v1/files/../../etc/passwd"), 404)
    check_error(http.get("/v1/files/%2e%2e%2fetc%2fpasswd"), 404)
    check_error(http.delete("/v1/images/generations"), 404, 405)


def test_other_sites_are_not_answered(server: Server, http: httpx.Client) -> None:
    body = {"prompt": "a boat"}
    assert check_error(http.post(ROUTES[0], json=body, headers={"Origin": "https://evil.example"}), 403)
    same = http.post(ROUTES[0], json={**body, "plan": "1+1"}, headers={"Origin": server.url})
    assert same.status_code == 200


def test_the_openapi_document_tells_how_errors_look(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    for path, verbs in document["paths"].items():
        for verb, route in verbs.items():
            assert set(route["responses"]) == {"200", "default"}, (verb, path)  # no 422 of FastAPI's own shape
    error = document["components"]["schemas"]["ErrorAnswer"]["properties"]["error"]["$ref"].rpartition("/")[2]
    refused = http.get("/v1/models/none").json()["error"]
    assert fits(refused, document["components"]["schemas"][error], document)


def test_docs_and_metrics(http: httpx.Client) -> None:
    docs = http.get("/docs").text
    for text in ("/v1/images/generations", "refine_sigma", "partial_images", "multipart/form-data"):
        assert text in docs
    assert "http" not in docs.replace("http-equiv", "")  # nothing is loaded from elsewhere
    http.post(ROUTES[0], json={"prompt": "a boat", "plan": "1+1"})
    numbers = http.get("/metrics").text
    for name in (
        'mrflow_requests_total{route="/v1/images/generations",status="200"}',
        'mrflow_request_seconds_count{route="/v1/images/generations",status="200"}',
        'mrflow_stage_seconds_bucket{le="0.15",stage="refine"}',
        "mrflow_queue_length 0.0",
        "mrflow_hung_workers 0.0",
        "mrflow_queue_wait_seconds_count",
        'mrflow_stage_seconds_count{stage="refine"}',
        'mrflow_batch_size_sum{kind="draft"}',
        'mrflow_images_total{kind="finish"}',
        'mrflow_pixels_total{kind="finish"}',
        'mrflow_peak_memory_bytes{device="cpu"}',
    ):
        assert name in numbers, name


HALVES = ["\ud83d", "a lake \ud83d at dawn", "\udfff\ud800"]


@pytest.mark.parametrize("half", HALVES)
def test_half_a_character_is_refused_in_every_text_of_every_route(http: httpx.Client, half: str) -> None:
    document = http.get("/openapi.json").json()
    for route in ROUTES:
        name = document["paths"][route]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        fields = document["components"]["schemas"][name.rpartition("/")[2]]["properties"]
        for field in fields:
            value = [half] if field == "drafts" else half
            body = {"prompt": "a boat", "drafts": ["x"], field: value}
            body = {name: value for name, value in body.items() if name in fields}
            error = check_error(http.post(route, content=json.dumps(body)), 400)
            assert (error["param"] or "").startswith(field), (route, field)
        check_error(http.post(route, content=json.dumps({"prompt": "a boat", half: 1})), 400)


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "size", "user", "model", "no such"])
@pytest.mark.parametrize("kind", ["", "; charset=unicode_escape", "; charset=utf-16"])
def test_a_form_is_utf_8(http: httpx.Client, field: str, kind: str) -> None:
    """Half a character, cp1252 and what only another codec could read are refused, not read as latin-1."""
    for raw in (b"\xed\xa0\xbd", b"caf\xe9", b"\\ud800\xff"):
        parts = {"image": PIXEL, "prompt": b"a boat", field: raw}
        body = b"".join(
            b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
            % (name.encode(), b'; filename="x"' if name == "image" else b"", value)
            for name, value in parts.items()
        )
        headers = {"Content-Type": f"multipart/form-data; boundary=x{kind}"}
        answer = http.post("/v1/images/edits", content=body + b"--x--\r\n", headers=headers)
        assert "UTF-8" in check_error(answer, 400)["message"]


def test_a_form_in_any_script(http: httpx.Client) -> None:
    answer = http.post(
        "/v1/images/edits", files={"image": PIXEL}, data={"prompt": "ein Hügel, 山, 😀", "plan": "1+1"}
    )
    assert answer.json()["data"][0]["recipe"]["prompt"] == "ein Hügel, 山, 😀"


def test_empty_fields_of_a_form_are_absent(http: httpx.Client) -> None:
    empty = dict.fromkeys(
        ["negative_prompt", "size", "seed", "n", "quality", "refine_sigma", "stream", "mask"], ""
    )
    data = {"prompt": "a boat", "plan": "1+1", **empty}
    files = [("image", ("a.png", PIXEL)), ("mask", ("", b"")), ("image[]", ("", b""))]
    assert http.post("/v1/images/edits", files=files, data=data).status_code == 200
    missing = http.post("/v1/images/edits", files={"image": PIXEL}, data={"prompt": ""})
    assert check_error(missing, 400)["code"] == "missing_required_parameter"
    unknown = http.post("/v1/images/edits", files={"image": PIXEL}, data={"prompt": "a boat", "none": ""})
    assert check_error(unknown, 400)["code"] == "unknown_parameter"
    none = http.post("/v1/images/edits", files={"image": ("", b"")}, data={"prompt": "a boat"})
    assert check_error(none, 400)["param"] == "image"


@pytest.mark.parametrize(
    "request_line",
    [b"GET /v1/models?\xed\xa0\x80", b"GET /v1/models/%ED%A0%80", b"GET /v1/models?x=%ED%A0%80", b"GET /\xff"],
)
@pytest.mark.parametrize("header", [b"X: y", b"Authorization: Bearer \xed\xa0\x80", b"Cookie: \xed\xa0\x80=\xff"])
def test_bytes_that_are_no_text_in_queries_and_headers(server: Server, request_line: bytes, header: bytes) -> None:
    with socket.create_connection(server.host.split(":")) as line:
        line.sendall(request_line + b" HTTP/1.1\r\nHost: x\r\n" + header + b"\r\nConnection: close\r\n\r\n")
        line.settimeout(30)
        answer = b"".join(iter(lambda: line.recv(4096), b""))
    assert answer[9:12] in (b"200", b"400", b"404")
    assert b"Traceback" not in answer


def test_a_body_that_cannot_be_read_is_called_so(http):
    for body in (b'{"prompt": "\xe9"}', b"[" * 100_000, b'{"seed": ' + b"1" * 5000 + b"}"):
        answer = http.post("/v1/images/generations", content=body)
        assert check_error(answer, 400)["code"] in ("invalid_body", "invalid_json")
        assert "body" in answer.json()["error"]["message"]


def test_a_number_of_the_wrong_kind_is_named_as_the_client_does(http):
    body = {"prompt": "a boat", "refine_sigma": "0.1"}
    answer = http.post("/v1/images/generations", json=body)
    assert check_error(answer, 400)["param"] == "refine_sigma"
