"""Tools for assistants, called by the protocol's own client, in all three ways."""

from __future__ import annotations

import asyncio
import base64
import os
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from conftest import make_fast, make_pipe
from mrflow import read_recipe
from mrflow.server.app import create_app
from support.serving import check_error, serving

pytest.importorskip("mcp", reason="the Model Context Protocol's SDK is not installed")

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from mrflow.server.mcp import to_app, to_url, tools

KEY, OTHER = "a-good-key-of-24-letters", "another-key-of-24-letters"
SOURCE = str(Path(__file__).parents[1] / "src")


def pictures(content: list[Any]) -> list[Any]:
    return [read_recipe(BytesIO(base64.b64decode(each.data))) for each in content if each.type == "image"]


def texts(content: list[Any]) -> list[str]:
    return [each.text for each in content if each.type == "text"]


async def walk(client: Any, image: str) -> None:
    """Call every tool, and one in a way that is refused."""
    assert {each.name for each in (await client.list_tools()).tools} == {
        "generate",
        "draft",
        "finish",
        "enhance",
        "models",
    }
    made = await client.call_tool("generate", {"prompt": "a boat", "plan": "1+1", "seed": 7, "size": "96x64"})
    (recipe,) = pictures(made.content)
    assert (recipe.prompt, recipe.seed, recipe.width) == ("a boat", 7, 96)
    assert texts(made.content) == ["seed 7, plan 1+1, 96x64"]
    drafts = await client.call_tool("draft", {"prompt": "a boat", "n": 2, "plan": "1+1", "seed": 7})
    ids = [each.split(",")[0].removeprefix("id ") for each in texts(drafts.content)]
    finished = await client.call_tool("finish", {"drafts": ids[1:], "refine_sigma": 0.2})
    (recipe,) = pictures(finished.content)
    assert (recipe.seed, recipe.plan.refine_sigma) == (8, 0.2)
    enhanced = await client.call_tool("enhance", {"image": image, "prompt": "a boat"})
    assert pictures(enhanced.content)[0].mode == "enhance"
    assert texts((await client.call_tool("models", {})).content) == ["FluxPipeline"]
    wrong = await client.call_tool("generate", {"prompt": "a boat", "size": "63x64"})
    assert wrong.is_error
    assert "sides must be multiples of 16" in texts(wrong.content)[0]
    unread = await client.call_tool("generate", {"prompt": "a zeppelin", "plan": "1+1"})
    assert texts(unread.content)[0] == "FluxPipeline does not know: 'zeppelin'"


def base64_of_a_picture() -> str:
    file = BytesIO()
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with ThreadPoolExecutor(1) as thread:  # away from loops of other tests
        thread.submit(asyncio.run, work()).result()


def test_over_http_with_keys() -> None:
    with serving(mcp=True, keys=[KEY, OTHER]) as server:

        async def work() -> None:
            headers = {"Authorization": f"Bearer {KEY}"}
            async with (
                httpx2.AsyncClient(headers=headers, timeout=60) as http,
                Client(streamable_http_client(f"{server.url}/mcp", http_client=http)) as client,
            ):
                await walk(client, base64_of_a_picture())
                local = await client.call_tool("enhance", {"image": "/etc/hostname", "prompt": "a boat"})
                assert local.is_error

        run(work)
        numbers = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
        assert 'mrflow_requests_total{route="/v1/images/generations",status="200"}' in numbers
        assert 'mrflow_requests_total{route="/mcp",status="200"}' in numbers
        for verb in ("GET", "POST", "DELETE"):
            check_error(httpx.request(verb, f"{server.url}/mcp"), 401)
        evil = {"Origin": "https://evil.example", "Authorization": f"Bearer {KEY}"}
        check_error(httpx.post(f"{server.url}/mcp", json={}, headers=evil), 403)
    with serving() as server:
        check_error(httpx.post(f"{server.url}/mcp", json={}), 404)


def test_of_this_process(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(base64.b64decode(base64_of_a_picture()))
    app = create_app(make_fast(make_pipe()).model, page=False)

    async def work() -> None:
        async with app.router.lifespan_context(app), Client(tools(to_app(app), local=True)) as client:
            await walk(client, str(file))

    run(work)


def test_on_standard_input_over_a_server_elsewhere() -> None:
    with serving(keys=[KEY]) as server:
        command = ["-c", "from mrflow.cli import main; main()", "mcp", "--url", f"{server.url}/v1"]
        variables = {**os.environ, "PYTHONPATH": SOURCE, "MRFLOW_API_KEY": KEY}
        told = StdioServerParameters(command=sys.executable, args=command, env=variables)

        async def work() -> None:
            async with Client(stdio_client(told)) as client:
                await walk(client, base64_of_a_picture())
            async with Client(tools(to_url(server.url, OTHER))) as client:
                refused = await client.call_tool("models", {})
                assert "The API key is missing or wrong." in texts(refused.content)[0]
            async with Client(tools(to_url("http://127.0.0.1:9", ""))) as client:
                gone = await client.call_tool("models", {})
                assert "does not answer" in texts(gone.content)[0]

        run(work)
