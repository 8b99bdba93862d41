"""Tools of the Model Context Protocol, over the images API: of this process, or of a server elsewhere.

Each call is a request to that API, so that its limits, keys and errors are theirs.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2  # the client that the SDK itself has
from fastapi import FastAPI
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from starlette.requests import Request

import mrflow

Connect = Callable[[Context], httpx2.AsyncClient]
"""Opens the API for one call."""
Seed = int | None

_ABOUT = """Pictures by staged sampling: drafted small, then finished large. `generate` makes finished pictures. To
choose among many, `draft` first, which is cheap, and `finish` the ids you like; `enhance` enlarges any picture."""


def to_app(app: FastAPI) -> Connect:
    """Return what opens an application of this process, as whoever asked the tool."""

    def connect(context: Context) -> httpx2.AsyncClient:
        request = context.request_context.request
        headers, peer = {}, "mcp"
        if isinstance(request, Request):
            headers = {name: value for name, value in request.headers.items() if name == "authorization"}
            peer = request.client.host if request.client else peer
        transport = httpx2.ASGITransport(app=app, client=(peer, 0))
        return httpx2.AsyncClient(transport=transport, base_url="http://localhost", headers=headers, timeout=None)

    return connect


def to_url(url: str, key: str) -> Connect:
    """Return what opens a server elsewhere."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return lambda context: httpx2.AsyncClient(base_url=url.removesuffix("/v1"), headers=headers, timeout=None)


def mount(app: FastAPI) -> None:
    """Give an application the tools at /mcp; the guard in front of it sees to keys, hosts and sizes."""
    server = tools(to_app(app))
    security = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    inner = server.streamable_http_app(stateless_http=True, json_response=True, transport_security=security)
    app.router.routes.extend(inner.routes)
    app.state.mcp = server.session_manager


async def run(connect: Connect, app: FastAPI | None = None) -> None:
    """Serve the tools on standard input until it ends. app: whose work is to be started."""
    server = tools(connect, local=True)
    if app is None:
        await server.run_stdio_async()
        return
    async with app.router.lifespan_context(app):
        await server.run_stdio_async()


def tools(connect: Connect, *, local: bool = False) -> MCPServer[Any]:
    """Return a server of the tools. local: pictures to enhance may be files of this machine."""
    server: MCPServer[Any] = MCPServer(
        "mrflow", instructions=_ABOUT, version=mrflow.__version__, log_level="WARNING"
    )

    async def ask(context: Context, method: str, path: str, **request: Any) -> dict[str, Any]:
        async with connect(context) as api:
            try:
                answer = await api.request(method, f"/v1/{path}", **request)
            except httpx2.HTTPError as error:
                raise ToolError(f"The server does not answer ({type(error).__name__}).") from None
        if answer.is_error:
            raise ToolError(answer.json()["error"]["message"])
        told: dict[str, Any] = answer.json()
        return told

    async def make(context: Context, path: str, body: Mapping[str, Any], **more: Any) -> list[Any]:
        fields = {name: value for name, value in body.items() if value is not None}
        answer = await ask(
            context, "POST", f"images/{path}", **({"data": fields, **more} if more else {"json": fields})
        )
        content: list[Any] = list(answer["warnings"])
        for each in answer["data"]:
            recipe = each["recipe"]
            told = f"seed {each['seed']}, plan {each['plan']}, {recipe['width']}x{recipe['height']}"
            content.append(f"id {each['id']}, {told}" if "id" in each else told)
            content.append(Image(data=base64.b64decode(each["b64_json"]), format=answer["output_format"]))
        return content

    @server.tool(structured_output=False)
    async def generate(
        context: Context,
        prompt: str,
        n: int = 1,
        size: str = "auto",
        seed: int | None = None,
        plan: str | None = None,
    ) -> list[Any]:
        """Make finished pictures. size: "WIDTHxHEIGHT". plan: draft steps + refine steps, such as "12+1"."""
        body = {"prompt": prompt, "n": n, "size": size, "seed": seed, "plan": plan}
        return await make(context, "generations", body)

    @server.tool(structured_output=False)
    async def draft(
        context: Context,
        prompt: str,
        n: int = 4,
        size: str = "auto",
        seed: int | None = None,
        plan: str | None = None,
    ) -> list[Any]:
        """Make cheap drafts, each with an id to be finished by. size: of the finished picture."""
        body = {"prompt": prompt, "n": n, "size": size, "seed": seed, "plan": plan}
        return await make(context, "drafts", body)

    @server.tool(structured_output=False)
    async def finish(context: Context, drafts: list[str], refine_sigma: float | None = None) -> list[Any]:
        """Finish drafts, by their ids, at full size. refine_sigma: 0.12 is usual, 0.2 redraws more."""
        return await make(context, "finish", {"drafts": drafts, "refine_sigma": refine_sigma})

    @server.tool(structured_output=False)
    async def enhance(
        context: Context, image: str, prompt: str, size: str = "auto", refine_sigma: float | None = None
    ) -> list[Any]:
        """Enlarge a picture, twice if not to a size, and refine it. image: base64, or a file's path if local."""
        body = {"prompt": prompt, "size": size, "refine_sigma": refine_sigma}
        return await make(context, "edits", body, files={"image": _bytes_of(image, local=local)})

    @server.tool(structured_output=False)
    async def models(context: Context) -> list[str]:
        """Name the model, as GET /v1/models does."""
        return [each["id"] for each in (await ask(context, "GET", "models"))["data"]]

    return server


def _bytes_of(image: str, *, local: bool) -> bytes:
    """Return the file that base64 text, a data: url or, on this machine, a path stands for."""
    if local and len(image) < 4096 and Path(image).is_file():
        return Path(image).read_bytes()
    try:
        return base64.b64decode(image.rpartition(",")[2], validate=True)
    except ValueError:
        raise ToolError("The image is neither base64 nor a file that can be read.") from None
