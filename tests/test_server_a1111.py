"""AUTOMATIC1111's API, asked as its tools ask: a hires fix is a plan, strengths are sigmas."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from conftest import make_fast, make_pipe
from mrflow import read_recipe
from mrflow.server.a1111 import SIGMAS, SOLVERS
from support.cli import invoke
from support.serving import Server, check_error, serving, until

KEY = "a-good-key-of-24-letters"
GUIDE = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(a1111=True) as running:
        yield running


def post(server: Server, what: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/sdapi/v1/{what}", json=body, timeout=60)


def recipe_of(answer: httpx.Response, index: int = 0) -> Any:
    assert answer.status_code == 200, answer.text
    return read_recipe(BytesIO(base64.b64decode(answer.json()["images"][index])))


def test_a_hires_fix_is_a_plan(server: Server) -> None:
    body = {"prompt": "a red boat", "steps": 2, "width": 32, "height": 48, "seed": 3, "denoising_strength": 0.7}
    answer = post(
        server, "txt2img", **body, enable_hr=True, hr_scale=1.5, hr_second_pass_steps=2, hr_upscaler="Latent"
    )
    recipe = recipe_of(answer)
    assert (recipe.width, recipe.height, recipe.seed) == (48, 64, 3)  # 72 is no multiple of 16
    plan = recipe.plan
    assert (plan.label, plan.scale, plan.refine_sigma) == ("2+2", 1.5, 0.2)
    info = json.loads(answer.json()["info"])
    assert info["all_seeds"] == [3]
    assert "denoising_strength 0.7 is read as refine_sigma 0.2" in info["warnings"][0]
    alone = make_fast(make_pipe())("a red boat", width=48, height=64, seed=3, plan=plan).images[0]
    made = Image.open(BytesIO(base64.b64decode(answer.json()["images"][0])))
    assert max(abs(a - b) for a, b in zip(made.tobytes(), alone.tobytes(), strict=True)) <= 1
    wrong = post(server, "txt2img", **body, enable_hr=True, hr_scale=1.37)
    assert check_error(wrong, 422)["param"] == "hr_scale"


def test_without_it_width_and_height_are_the_pictures(server: Server) -> None:
    answer = post(
        server,
        "txt2img",
        prompt="a boat",
        width=64,
        height=96,
        batch_size=2,
        n_iter=1,
        seed=5,
        denoising_strength=1,
    )
    first, second = recipe_of(answer), recipe_of(answer, 1)
    assert (first.width, first.height, first.plan.refine_sigma) == (64, 96, 0.12)
    assert (first.seed, second.seed) == (5, 6)
    assert json.loads(answer.json()["info"])["warnings"] == []
    drawn = {recipe_of(post(server, "txt2img", prompt="a boat", steps=1, seed=-1)).seed for _ in range(2)}
    assert len(drawn) == 2


@pytest.mark.parametrize("strength", [0, 0.2, 0.3, 0.5, 0.7, 1])
def test_no_strength_asks_for_more_than_a_step_can_carry(server: Server, strength: float) -> None:
    file = BytesIO()
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(file, "PNG")
    image = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    answer = post(
        server, "img2img", prompt="a boat", init_images=[image], width=64, height=64, denoising_strength=strength
    )
    recipe = recipe_of(answer)
    assert (recipe.mode, recipe.width) == ("enhance", 64)
    assert recipe.plan.refine_sigma == next(sigma for most, sigma in SIGMAS if strength <= most) <= 0.2


def test_the_guide_prints_the_table() -> None:
    rows = re.findall(r"^\| to ([\d.]+) \| ([\d.]+) \|$", GUIDE, re.MULTILINE)
    assert [(float(most), float(sigma)) for most, sigma in rows] == list(SIGMAS)


def test_samplers_and_guidance(server: Server) -> None:
    assert [each["name"] for each in httpx.get(f"{server.url}/sdapi/v1/samplers").json()] == list(SOLVERS)
    answer = post(server, "txt2img", prompt="a boat", steps=4, sampler_name="UniPC", cfg_scale=2.5)
    assert (recipe_of(answer).plan.solver, recipe_of(answer).plan.true_cfg_scale) == ("unipc", 2.5)
    answer = post(server, "txt2img", prompt="a boat", steps=1, sampler_name="Euler a", cfg_scale=7)
    told = json.loads(answer.json()["info"])["warnings"]
    assert told == ["sampler_name 'Euler a' is ignored: the model's own is taken."]


def test_guidance_of_a_model_with_embeddings_is_the_distilled_one() -> None:
    with serving(make_fast(make_pipe(guidance_embeds=True)).model, a1111=True) as server:
        answer = post(server, "txt2img", prompt="a boat", steps=1, cfg_scale=7, distilled_cfg_scale=2.5)
    plan = recipe_of(answer).plan
    assert (plan.guidance_scale, plan.true_cfg_scale) == (2.5, 1.0)
    assert "cfg_scale is ignored" in json.loads(answer.json()["info"])["warnings"][0]


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("txt2img", {}),
        ("txt2img", {"prompt": "a boat", "width": 63, "height": 64}),
        ("txt2img", {"prompt": "a boat", "batch_size": 4, "n_iter": 4}),
        ("txt2img", {"prompt": "a boat", "script_name": "x/y plot"}),
        ("txt2img", {"prompt": "a boat", "alwayson_scripts": {"controlnet": {"args": [{}]}}}),
        ("txt2img", {"prompt": "a boat", "denoising_strength": 2}),
        ("txt2img", {"prompt": "\ud800"}),
        ("txt2img", {"prompt": "a boat", "negative_prompt": "\ud800"}),
        ("img2img", {"prompt": "a boat"}),
        ("img2img", {"prompt": "a boat", "init_images": ["no base64!"]}),
        ("img2img", {"prompt": "a boat", "init_images": ["aGVsbG8="]}),
        ("img2img", {"prompt": "a boat", "init_images": ["aGVsbG8="], "mask": "aGVsbG8="}),
        ("options", {"sd_model_checkpoint": "another"}),
    ],
)
def test_what_can_not_be_is_refused_in_shape(server: Server, what: str, body: dict[str, Any]) -> None:
    answer = httpx.post(f"{server.url}/sdapi/v1/{what}", content=json.dumps(body), timeout=60)
    check_error(answer, 400, 404, 422)


@pytest.mark.parametrize("name", ["steps", "hr_second_pass_steps"])
def test_too_many_steps_are_refused_by_the_name_that_they_came_under(server: Server, name: str) -> None:
    answer = post(server, "txt2img", prompt="a boat", enable_hr=True, **{name: int("123" + 90 * "3")})
    assert check_error(answer, 400)["param"] == name


def test_what_tools_ask_first(server: Server) -> None:
    def get(what: str) -> Any:
        return httpx.get(f"{server.url}/sdapi/v1/{what}").json()

    assert get("options")["sd_model_checkpoint"] == get("sd-models")[0]["title"] == "FluxPipeline"
    assert post(server, "options", sd_model_checkpoint="FluxPipeline", CLIP_stop_at_last_layers=2).json() == {}
    assert get("upscalers")[0]["name"] == server.scheduler.model.upscaler.name
    assert get("progress")["progress"] == 0


def test_progress_is_told_and_an_interrupt_frees_the_worker() -> None:
    with serving(a1111=True, draft_batch=1) as server:
        answers: list[httpx.Response] = []
        body = {"prompt": "a boat", "steps": 100, "width": 128, "height": 128, "batch_size": 3}
        asking = threading.Thread(target=lambda: answers.append(post(server, "txt2img", **body)))
        asking.start()
        told: dict[str, Any] = {}

        def begun() -> bool:
            told.update(httpx.get(f"{server.url}/sdapi/v1/progress").json())
            return 0.01 < told["progress"] < 1

        until(begun)
        assert told["state"]["job_count"] == 3
        assert told["eta_relative"] > 0
        assert post(server, "interrupt").json() == {}
        asking.join(30)
        assert len(answers[0].json()["images"]) < 3
        until(lambda: server.scheduler.waiting == 0 and server.scheduler.workers[0].tickets == [])
        assert httpx.get(f"{server.url}/sdapi/v1/progress").json()["progress"] == 0


def test_it_is_on_a_switch_and_behind_the_keys() -> None:
    with serving() as server:
        check_error(httpx.get(f"{server.url}/sdapi/v1/options"), 404)
    with serving(a1111=True, keys=[KEY]) as server:
        url = f"{server.url}/sdapi/v1/options"
        check_error(httpx.get(url), 401)
        check_error(httpx.get(url, auth=("user", "wrong" * 5)), 401)
        check_error(httpx.get(url, headers={"Authorization": "Basic %%%"}), 401)
        check_error(httpx.get(f"{server.url}/v1/models", auth=("user", KEY)), 401)
        assert httpx.get(url, auth=("user", KEY)).status_code == 200
        assert httpx.get(url, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    refused = invoke(["serve", "--a1111", "--ray"])
    assert refused.exit_code == 2
    assert "bound to one process" in " ".join(refused.stderr.split())


def test_the_description_of_the_api_lists_its_routes(server: Server) -> None:
    answer = httpx.get(f"{server.url}/docs")
    assert answer.status_code == 200
    assert all(f"/sdapi/v1/{name}" in answer.text for name in ("txt2img", "img2img", "options"))


def test_galleries_find_the_prompt_in_saved_pictures(server: Server) -> None:
    answer = post(
        server, "txt2img", prompt="a boat, Hügel 山", negative_prompt="fog", steps=2, seed=3, width=64, height=64
    )
    text = Image.open(BytesIO(base64.b64decode(answer.json()["images"][0]))).text["parameters"]  # type: ignore[attr-defined]
    assert text.startswith("a boat, Hügel 山\n")
    assert re.search(r"\nSteps: 2, .*Seed: 3, Size: 64x64, Model: FluxPipeline, Denoising strength: 0.12", text)
    assert json.loads(answer.json()["info"])["infotexts"] == [text]


def test_its_own_client(server: Server) -> None:
    webuiapi = pytest.importorskip("webuiapi", reason="webuiapi is not installed")
    host, _, port = server.host.partition(":")
    api = webuiapi.WebUIApi(host=host, port=int(port))
    made = api.txt2img(prompt="a boat", steps=2, width=32, height=32, enable_hr=True, hr_scale=2, seed=3)
    assert made.image.size == (64, 64)
    again = api.img2img(
        prompt="a boat", images=[made.image], steps=2, width=128, height=128, denoising_strength=0.3
    )
    assert again.image.size == (128, 128)
    assert api.get_progress()["progress"] == 0
    assert api.util_get_model_names() == ["FluxPipeline"]
