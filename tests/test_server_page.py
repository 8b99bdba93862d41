"""The page, clicked through by a real browser; skipped where there is none."""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from conftest import make_fast, make_pipe
from mrflow import MrFlow, Plan, load_image, read_recipe, vista
from support.loras import of_diffusers, write
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
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
SCRIPT = (Path(__file__).parents[1] / "src" / "mrflow" / "server" / "static" / "page.js").read_text("utf-8")

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


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


@pytest.fixture
def opened(server: Server, browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Give the page, and see that nothing failed in it, nor came from elsewhere."""
    page = browser.new_page(**getattr(request, "param", {}))
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
    page.on("request", lambda asked: wrong.append(asked.url) if not own(asked.url, server) else None)
    page.set_default_timeout(90_000)
    page.goto(server.url)
    yield page
    assert not wrong
    page.close()


def own(url: str, server: Server) -> bool:
    return url.startswith((server.url, "blob:", "data:"))


def test_the_page_and_the_api_live_side_by_side(server: Server) -> None:
    page = httpx.get(f"{server.url}/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<style|<script(?! defer src=)| style=| on\w+=", page.text)
    assert httpx.get(f"{server.url}/v1/models").json()["object"] == "list"
    assert httpx.get(f"{server.url}/v1/none").json()["error"]["code"] == "not_found"


def test_the_script_writes_texts_as_texts_alone() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", SCRIPT)


@needs_browser
def test_three_stages_a_download_and_its_recipe_read_back(opened: Any, tmp_path: Path) -> None:
    page, prompt = opened, opened.get_by_label("What does the picture show?")
    prompt.fill("a red boat")
    page.get_by_text("Advanced", exact=True).click()
    page.get_by_label("Guided share of the draft").fill("0.5")
    page.get_by_label("Solver").select_option("unipc")
    page.get_by_label("Exact size").fill("128x64")
    page.get_by_label("Compare with native sampling").check()
    prompt.press("Enter")  # by keyboard
    page.locator("#slide").wait_for()
    assert page.locator("#stages button").all_inner_texts() == ["Draft", "Enlarged", "Final"]
    assert re.search(r"128.64, made in .* times faster than native", page.locator("#facts").inner_text())
    assert "begin with the same noise" in page.locator("#scene").inner_text()
    before = page.locator("#native").evaluate("each => each.style.clipPath")
    page.locator("#slide input").press("ArrowLeft")
    assert page.locator("#native").evaluate("each => each.style.clipPath") != before
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    file = tmp_path / "picture.png"
    download.value.save_as(file)
    recipe = read_recipe(file)
    assert (recipe.prompt, recipe.width, recipe.height) == ("a red boat", 128, 64)
    assert (recipe.plan.guidance_stop, recipe.plan.solver) == (0.5, "unipc")
    for kind in ("webp", "jpeg"):
        load_image(file).save(tmp_path / f"plain.{kind}")
    page.get_by_role("button", name="Back to the model's own").click()
    prompt.fill("something else")
    chooser = page.get_by_label("Settings from a picture that mrflow made")
    chooser.set_input_files(str(tmp_path / "plain.webp"))
    page.get_by_text("plain.webp holds no recipe").wait_for()
    chooser.set_input_files(str(file))
    page.get_by_text(f"The settings of seed {recipe.seed}").wait_for()
    assert prompt.input_value() == "a red boat"
    assert page.get_by_label("Guided share of the draft").input_value() == "0.5"
    assert page.get_by_label("Solver").input_value() == "unipc"
    assert page.get_by_label("Seed", exact=True).input_value() == str(recipe.seed)
    assert page.get_by_label("Exact size").input_value() == "128x64"


@pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
@needs_browser
def test_recipes_of_every_format_are_read_in_the_browser(opened: Any, server: Server, form: str) -> None:
    """Whatever stands in a prompt: quotes, braces, letters beyond ASCII and what looks like a page's."""
    prompt = 'a "boat" } \\ { <img src=x onerror=alert(1)> Hügel 山'
    body = {"prompt": prompt, "plan": "2+1", "seed": 5, "output_format": form, "refine_sigma": 0.2}
    made = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60).json()["data"][0]["b64_json"]
    file = {"name": "a", "mimeType": f"image/{form}", "buffer": base64.b64decode(made)}
    opened.get_by_label("Settings from a picture that mrflow made").set_input_files(file)
    opened.get_by_text("The settings of seed 5, made by FluxPipeline").wait_for()
    assert opened.get_by_label("What does the picture show?").input_value() == prompt
    assert opened.locator("[name=refine_sigma]").input_value() == "0.2"
    assert opened.locator("[name=plan]").input_value() == "2+1"
    opened.locator("#notes li").first.wait_for()  # of the words that the model does not know
    assert opened.locator("#notes img").count() == 0


@needs_browser
def test_what_a_model_can_not_paint_is_told_before(opened: Any) -> None:
    prompt = opened.get_by_label("What does the picture show?")
    prompt.fill("a zeppelin")
    opened.get_by_text("does not know: 'zeppelin'").wait_for()
    prompt.fill("a boat")
    opened.locator("#notes:empty").wait_for(state="attached")
    opened.get_by_text("Advanced", exact=True).click()
    opened.get_by_label("Exact size").fill("63x64")
    opened.get_by_text("sides must be multiples of 16").wait_for()
    opened.get_by_role("button", name="Make the picture").click()
    alert = opened.get_by_role("alert")
    alert.filter(has_text="sides must be multiples of 16").wait_for()


def test_native_over_http_is_the_picture_of_the_plain_pipeline() -> None:
    """Guided throughout, by its own scheduler, though the model's drafts are neither, unless somebody asks."""
    fast = make_fast(make_pipe())
    own = replace(fast.model.defaults.plan, guidance_stop=0.33, solver="unipc")
    fast.model = replace(fast.model, defaults=replace(fast.model.defaults, plan=own))
    with serving(fast.model) as server:

        def native(**fields: Any) -> bytes:
            body = {"prompt": "a red boat", "seed": 5, "native": True, **fields}
            whole = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60).json()
            made = whole["data"][0]
            assert made["recipe"]["mode"] == "native"
            steps = fields.get("num_inference_steps", fast.model.defaults.native_steps)
            assert whole["plan"] == made["plan"] == f"native:{steps}"
            return Image.open(BytesIO(base64.b64decode(made["b64_json"]))).tobytes()

        plain, asked = native(), native(guidance_stop=0.34, solver="unipc")
        few = native(num_inference_steps=2)
    fast = make_fast(make_pipe())
    assert plain == fast.native("a red boat", seed=5).images[0].tobytes()
    changed = fast.native("a red boat", seed=5, plan=Plan(guidance_stop=0.34, solver="unipc")).images[0]
    assert asked == changed.tobytes() != plain
    assert few == fast.native("a red boat", seed=5, steps=2).images[0].tobytes()


def walk(page: Any, *, to: str, most: int = 60) -> None:
    """Press Tab until the element of this selector has the focus."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("to => document.activeElement.matches(to)", to):
            return
    raise AssertionError(f"no Tab leads to {to}")


@needs_browser
@pytest.mark.parametrize("opened", [{"viewport": PHONE, "color_scheme": "dark"}], indirect=True)
def test_eight_drafts_and_some_finished_on_a_phone_by_keyboard_alone(opened: Any) -> None:
    page = opened
    page.keyboard.type("a lake")  # the prompt has the focus
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowRight")  # from a picture to drafts
    walk(page, to="#make")
    page.keyboard.press("Enter")
    page.locator("#drafts .card").nth(7).wait_for()
    page.get_by_text("8 drafts. Choose those to finish.").wait_for()
    for _ in range(2):
        walk(page, to="#drafts input")
        page.keyboard.press("Space")
    walk(page, to="#finish")
    page.keyboard.press("Enter")
    page.get_by_text("2 of 2 done.").wait_for()
    assert page.locator("#history button").count() == 2
    assert page.locator("#picture").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # nothing hangs out of a phone
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", background)[:3])) < 64, background
    seeds = [int(each.split()[-1]) for each in page.locator("#drafts .card").all_inner_texts()]
    assert seeds == sorted(seeds)


@needs_browser
def test_a_picture_is_enhanced_and_one_that_was_made_again(opened: Any) -> None:
    page, file = opened, BytesIO()
    Image.linear_gradient("L").resize((48, 32)).convert("RGB").save(file, "PNG")
    page.get_by_role("radio", name="Enhance").check()
    assert not page.get_by_text("Compare with native sampling").is_visible()
    given = {"name": "photo.png", "mimeType": "image/png", "buffer": file.getvalue()}
    page.get_by_label("A picture to enhance").set_input_files(given)
    page.get_by_label("What does the picture show?").fill("a red boat")
    page.get_by_role("radio", name="Strong").check()
    page.get_by_role("button", name="Enhance it", exact=True).first.click()
    page.get_by_text("Done.").wait_for()
    assert "96\xd764" in page.locator("#facts").inner_text()
    assert page.locator("#stages button").all_inner_texts() == ["Enlarged", "Final"]
    page.locator("#better").click()
    page.locator("#make").click()
    page.get_by_text("192\xd7128").wait_for()
    assert page.locator("#history button").count() == 2


@needs_browser
def test_loras_of_the_operator_are_chosen_by_their_strength(browser: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    for seed, name in enumerate(("style", "light")):
        write(tmp_path / f"{name}.safetensors", of_diffusers(seed))
    fast, file = make_fast(make_pipe()), BytesIO()
    fast.load_loras("style", folders=[tmp_path])
    Image.linear_gradient("L").resize((48, 32)).convert("RGB").save(file, "PNG")
    with serving(fast.model, page=True) as server:
        page = browser.new_page()
        page.set_default_timeout(90_000)
        page.goto(server.url)
        page.get_by_text("Advanced", exact=True).click()
        assert page.get_by_label("style", exact=True).input_value() == "1"
        page.get_by_label("style", exact=True).fill("0")
        page.get_by_label("light", exact=True).fill("0.5")
        page.get_by_label("What does the picture show?").fill("a red boat")
        page.locator("#make").click()
        page.get_by_text("Done.").wait_for()
        assert loras_of(page) == [["light", 0.5]]
        page.get_by_role("button", name="Back to the model's own").click()
        assert page.get_by_label("style", exact=True).input_value() == "1"
        page.get_by_role("button", name="Use its settings").click()
        assert page.get_by_label("light", exact=True).input_value() == "0.5"
        page.get_by_role("radio", name="Enhance").check()  # a form, which holds the list as text
        given = {"name": "photo.png", "mimeType": "image/png", "buffer": file.getvalue()}
        page.get_by_label("A picture to enhance").set_input_files(given)
        page.get_by_label("Exact size").fill("")
        page.locator("#make").click()
        page.get_by_text("96\xd764").wait_for()
        assert loras_of(page) == [["light", 0.5]]
        page.close()


def loras_of(page: Any) -> Any:
    return page.evaluate("shown.recipe.loras.map((each) => [each.name, each.weight])")


@needs_browser
def test_stop_frees_the_server(server: Server, opened: Any) -> None:
    opened.get_by_label("What does the picture show?").fill("a red boat")
    opened.get_by_text("Advanced", exact=True).click()
    opened.locator("[name=plan]").fill("100+100")
    opened.get_by_label("Exact size").fill("256x256")
    opened.get_by_role("button", name="Make the picture").click()
    opened.get_by_text("Drafting, step").wait_for()
    opened.get_by_role("button", name="Stop").click()
    opened.get_by_text("Stopped.").wait_for()
    assert opened.get_by_role("button", name="Make the picture").is_enabled()


@needs_browser
def test_with_keys_the_page_asks_for_one_and_works_with_it(browser: Any) -> None:
    with serving(keys=[KEY], page=True) as server:
        page = browser.new_page()
        page.set_default_timeout(90_000)
        page.goto(server.url)
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button").click()
        page.get_by_label("What does the picture show?").fill("a red boat")
        page.get_by_role("button", name="Make the picture").click()
        page.get_by_text("Done.").wait_for()
        page.context.clear_cookies()  # the session is over
        page.get_by_label("What does the picture show?").fill("a blue boat")  # which is checked in the background
        page.get_by_text("Your session is over").wait_for()
        page.get_by_role("button", name="Make the picture").click()
        with page.expect_popup() as opened:
            page.get_by_role("link", name="Sign in again").click()
        opened.value.get_by_label("API key").fill(KEY)
        opened.value.get_by_role("button").click()
        opened.value.get_by_label("What does the picture show?").wait_for()
        assert page.get_by_label("What does the picture show?").input_value() == "a blue boat"
        page.get_by_role("button", name="Make the picture").click()  # nothing is lost
        page.locator("#history button").nth(1).wait_for()
        assert page.get_by_role("link", name="Sign in again").is_hidden()
        page.close()


AXE = os.environ.get("MRFLOW_AXE", "")  # axe.min.js, of `npm pack axe-core`


@needs_browser
@pytest.mark.slow
@pytest.mark.skipif(not AXE, reason="MRFLOW_AXE names no axe.min.js")
@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("opened", [{"viewport": PHONE}, {"viewport": DESK}], indirect=True)
def test_axe_finds_no_violations(opened: Any, colours: str) -> None:
    opened.emulate_media(color_scheme=colours)
    opened.evaluate(Path(AXE).read_text("utf-8"))

    def violations() -> list[str]:
        found = opened.evaluate("axe.run()")["violations"]
        return [
            f"{each['id']}: {node['html'][:200]} {node['failureSummary']}"
            for each in found
            for node in each["nodes"]
        ]

    assert not violations()
    opened.get_by_label("What does the picture show?").fill("a zeppelin")
    opened.get_by_text("Advanced", exact=True).click()
    opened.get_by_label("Compare with native sampling").check()
    opened.get_by_role("button", name="Make the picture").click()
    opened.locator("#slide").wait_for()
    opened.get_by_role("radio", name="Drafts").check()
    opened.get_by_role("button", name="Make drafts").click()
    opened.get_by_text("8 drafts. Choose").wait_for()
    opened.locator("#drafts input").first.check()
    assert not violations()
    opened.get_by_role("radio", name="Enhance").check()
    assert not violations()


@needs_browser
@pytest.mark.slow
@pytest.mark.skipif(not vista.available(), reason="vista's weights are not in this installation")
def test_vista_on_the_page(browser: Any, tmp_path: Path) -> None:
    """Takes the README's picture too: MRFLOW_SCREENSHOT=docs/images/page.png pytest -m slow -k vista_on"""
    with serving(MrFlow.from_pretrained("vista").model, page=True) as server:
        page = browser.new_page(viewport={"width": 1180, "height": 860})
        page.set_default_timeout(550_000)
        page.goto(server.url)
        page.get_by_text("The words that vista knows").click()
        page.get_by_role("button", name="peaks", exact=True).click()
        assert page.get_by_label("What does the picture show?").input_value() == "peaks"
        page.get_by_text("The words that vista knows").click()
        page.get_by_role("button", name=re.compile("a red sailing boat")).click()
        page.get_by_text("Advanced", exact=True).click()
        page.get_by_label("Seed", exact=True).fill("7")
        page.get_by_text("Advanced", exact=True).click()
        page.get_by_label("Compare with native sampling").check()
        page.get_by_role("button", name="Make the picture").click()
        page.locator("#slide").wait_for()
        page.wait_for_timeout(1000)
        page.evaluate("scrollTo(0, 0)")
        file = Path(os.environ.get("MRFLOW_SCREENSHOT", tmp_path / "page.png"))
        page.screenshot(path=file)
        assert file.stat().st_size > 10_000
        page.close()
