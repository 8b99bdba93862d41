"""No input gives anything but a result or an error of ours, whatever hypothesis thinks of, at each reader."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tools.fuzz import CORPUS, TARGETS, corpus, read_input

from mrflow.errors import MrFlowError, PlanError, RecipeError
from mrflow.plan import ABOUT, Plan
from mrflow.recipe import Recipe
from support.json_values import json_values
from support.serving import Server, check_error, serving

quick = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50
)

HOSTILE = [
    *(
        b"",
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r",
        b"{",
        b"[" * 3000,
        b'{"plan": ' * 500,
        b'"',
        b"\xed\xa0\x80",
    ),
    *(b"9" * 5000, b"1e999", b"-0", b"NaN", b"{}", b"null", b"12+1:scale=nan", b"native:25,cache=taylorseer@inf"),
    *(b"{seed:{name}}.png", b"{seed:{}}.png", b"{prompt.__class__}.png", b"{seed:>9999999}.png", b"%s.png"),
    *(b"\xd9\xa1+1", b"1" * 300 + b".json", b"a\0b.json", "ä".encode() * 200 + b".png", b"prompt\n\x00\n"),
]


@st.composite
def damaged(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """Draw one of these with some bytes changed, put in, taken out or cut off; or what looks nothing like it."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(HOSTILE) | st.binary(max_size=60) | st.text(max_size=30).map(_encoded))
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        put = draw(
            st.binary(max_size=4) | st.sampled_from([b"\0", b'"', b"\r", b"{", b"}", b",", b"9" * 20, b"\xff"])
        )
        data[at : at + draw(st.sampled_from([0, len(put), 1, 8, len(data)]))] = put
    return bytes(data)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("name", TARGETS)
def test_readers_give_a_result_or_an_error_of_ours(name: str) -> None:
    for data in (*corpus(name), *HOSTILE):
        read_input(name, data)

    @quick
    @given(damaged(corpus(name)))
    def read(data: bytes) -> None:
        read_input(name, data)

    read()


JSON = json_values("12+1", "own", text=8, key=4, leaves=5)


@quick
@given(st.dictionaries(st.sampled_from(sorted(ABOUT)) | st.text(max_size=5), JSON, max_size=4) | JSON)
@example({"scale": 10**400})
@example({"steps": 10**5000})
def test_plans_from_any_json(data: Any) -> None:
    try:
        plan = Plan.from_dict(data)
    except PlanError:
        return
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@quick
@given(
    st.dictionaries(st.sampled_from(sorted(Recipe.__dataclass_fields__)) | st.text(max_size=5), JSON, max_size=4)
)
def test_recipes_with_any_value_in_any_field(changes: dict[str, Any]) -> None:
    (recipe,) = corpus("recipe")
    try:
        made = Recipe.from_json(json.dumps({**json.loads(recipe), **changes}))
    except RecipeError:
        return
    assert Recipe.from_json(made.to_json()) == made


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(max_steps=2, max_pixels=64 * 64) as server:
        yield server


def test_bodies_of_any_bytes_are_answered_in_shape(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http:

        @settings(quick, max_examples=40)
        @given(
            st.sampled_from(["generations", "drafts", "finish", "edits"]),
            damaged(corpus("body")),
            st.sampled_from(["application/json", "multipart/form-data; boundary=x", "text/plain", ""]),
        )
        def send(route: str, body: bytes, media: str) -> None:
            headers = {"content-type": media} if media else {}
            answer = http.post(f"/v1/images/{route}", content=body, headers=headers)
            if answer.status_code != 200:
                check_error(answer, 400, 404, 413, 415, 422)

        send()
        assert http.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_small_and_begins_with_what_is_right(name: str) -> None:
    sizes = [path.stat().st_size for path in (CORPUS / name).iterdir()]
    assert 0 < sum(sizes) < 8000
    right = 0
    for data in corpus(name):
        try:
            TARGETS[name](data)
            right += 1
        except MrFlowError:
            pass
    assert right


@pytest.mark.slow
@pytest.mark.skipif(find_spec("atheris") is None, reason='atheris is not installed: pip install ".[fuzz]"')
@pytest.mark.parametrize("name", TARGETS)
def test_a_fuzzer_finds_nothing_in_a_few_seconds(name: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "tools.fuzz", name, "--seconds", "5"]
    path = {"PYTHONPATH": f"{root / 'src'}:{root}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    assert not list(tmp_path.glob("crash-*"))
