"""The page, clicked through by a real browser; skipped where there is none."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import make_fast, make_pipe
from mrflow import MrFlow, Plan, read_recipe, vista
from mrflow.server.visit import Wishes, generate
from support.serving import Server, serving

CHROMIUM = shutil.which("chromium")
KEY = "a-good-key-of-24-letters"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(page=True) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


def test_the_page_and_the_api_live_side_by_side(server: Server) -> None:
    page = httpx.get(f"{server.url}/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert httpx.get(f"{server.url}/v1/models").json()["object"] == "list"
    assert httpx.get(f"{server.url}/v1/none").json()["error"]["code"] == "not_found"


def overlap(one: Any, other: Any) -> bool:
    """Whether two elements cover each other anywhere."""
    a, b = one.bounding_box(), other.bounding_box()
    across = a["x"] < b["x"] + b["width"] and b["x"] < a["x"] + a["width"]
    return across and a["y"] < b["y"] + b["height"] and b["y"] < a["y"] + a["height"]


@needs_browser
def test_three_stages_a_download_and_its_recipe_read_back(server: Server, browser: Any, tmp_path: Path) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_default_timeout(90_000)
    page.goto(server.url)
    page.locator("#prompt textarea").fill("a red boat")
    page.get_by_text("Settings").click()
    page.get_by_label("Guided share").fill("0.5")
    page.get_by_label("Solver").click()
    page.get_by_role("option", name="unipc").click()
    page.get_by_text("Settings").click()
    page.get_by_label("Compare with native sampling").check()
    page.locator("#generate").press("Enter")  # by keyboard
    for stage in ("draft", "upscaled", "final"):
        page.locator(f"#{stage} img").wait_for()
    page.locator("#slider img").first.wait_for()
    for stage in ("Draft", "Upscaled draft", "Final"):
        caption = page.get_by_text(re.compile(f"^{stage}, after "))
        assert caption.is_visible()
        assert not any(overlap(caption, page.locator(f"#{name}")) for name in ("draft", "upscaled", "final"))
    assert page.locator("#draft img").is_visible()  # still there
    with page.expect_download() as download:
        page.locator("#saved a").click()
    file = tmp_path / "picture.png"
    download.value.save_as(file)
    recipe = read_recipe(file)
    assert recipe.prompt == "a red boat"
    assert (recipe.plan.guidance_stop, recipe.plan.solver) == (0.5, "unipc")
    page.locator("#prompt textarea").fill("something else")
    page.get_by_text("Settings").click()
    page.get_by_label("Guided share").fill("")
    page.get_by_label("Solver").click()
    page.get_by_role("option", name="the model's").click()
    page.locator("input[type=file]").first.set_input_files(str(file))
    page.get_by_text(f"The recipe of seed {recipe.seed}").wait_for()
    assert page.locator("#prompt textarea").input_value() == "a red boat"
    assert page.get_by_label("Guided share").input_value() == "0.5"
    assert page.get_by_label("Solver").input_value() == "unipc"
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {
        server.host
    }  # nothing from elsewhere
    page.close()


def test_native_beside_it_is_the_picture_of_the_plain_pipeline() -> None:
    """Guided throughout, by its own scheduler, though the model's drafts are neither, unless the visitor asks."""
    fast = make_fast(make_pipe())
    own = replace(fast.model.defaults.plan, guidance_stop=0.33, solver="unipc")
    fast.model = replace(fast.model, defaults=replace(fast.model.defaults, plan=own))
    wishes = {"prompt": "a red boat", "seed": "5"}
    with serving(fast.model, page=True) as server:

        async def native(wishes: Wishes) -> Any:
            service = server.app.state.service
            views = [view async for view in generate(service, "somebody", wishes, compare=True)]
            return views[-1].pictures["native"][0]

        other = {**wishes, "guidance_stop": "0.34", "solver": "unipc"}
        with ThreadPoolExecutor(1) as thread:  # in this one, the browser's driver runs a loop
            plain, asked = (thread.submit(asyncio.run, native(each)).result() for each in (wishes, other))
    fast = make_fast(make_pipe())
    assert plain.tobytes() == fast.native("a red boat", seed=5).images[0].tobytes()
    changed = fast.native("a red boat", seed=5, plan=Plan(guidance_stop=0.34, solver="unipc")).images[0]
    assert asked.tobytes() == changed.tobytes() != plain.tobytes()


@needs_browser
def test_eight_drafts_and_a_click_finishes_one(server: Server, browser: Any) -> None:
    """On a phone, in dark mode, by keyboard alone once the prompt stands there."""
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page.set_default_timeout(90_000)
    page.goto(server.url)
    page.locator("#prompt textarea").fill("a lake")
    for _ in range(2):  # opened and closed: fields that nobody filled must still count as empty
        page.get_by_text("Settings").click()
    page.get_by_role("tab", name="Drafts").press("Enter")
    page.locator("#make-drafts").press("Enter")
    drafts = page.locator("#drafts button:has(img)")
    drafts.nth(7).wait_for()
    assert drafts.count() == 8
    drafts.nth(2).press("Enter")
    page.locator("#finished img").first.wait_for()
    page.locator("#drafts-saved a").wait_for()
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390  # nothing hangs out of a phone
    background = page.evaluate("getComputedStyle(document.querySelector('.gradio-container')).backgroundColor")
    assert max(map(int, re.findall(r"\d+", background)[:3])) < 64, background
    page.close()


@needs_browser
def test_with_keys_the_page_asks_for_one(browser: Any) -> None:
    with serving(keys=[KEY], page=True) as server:
        page = browser.new_page()
        page.set_default_timeout(90_000)
        page.goto(server.url)
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button").click()
        page.locator("#prompt textarea").wait_for()
        page.close()


@needs_browser
@pytest.mark.slow
@pytest.mark.skipif(not vista.available(), reason="vista's weights are not in this installation")
def test_vista_on_the_page(browser: Any, tmp_path: Path) -> None:
    """Takes the README's picture too: MRFLOW_SCREENSHOT=docs/images/page.png pytest -m slow -k vista_on"""
    prompt = "a snowy lake at sunset with mountains, many pine trees and a red hot air balloon on the left"
    with serving(MrFlow.from_pretrained("vista").model, page=True) as server:
        page = browser.new_page(viewport={"width": 1180, "height": 800})
        page.set_default_timeout(550_000)
        page.goto(server.url)
        page.locator("#prompt textarea").fill(prompt)
        page.get_by_text("Settings").click()
        page.get_by_label("Seed").fill("7")
        page.get_by_text("Settings").click()
        page.locator("#generate").click()
        page.get_by_text("Final, after").wait_for()
        page.locator("#saved a").wait_for()
        page.wait_for_timeout(1000)
        file = Path(os.environ.get("MRFLOW_SCREENSHOT", tmp_path / "page.png"))
        page.screenshot(path=file)
        assert file.stat().st_size > 10_000
        page.close()
