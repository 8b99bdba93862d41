"""Server-sent events: previews as they are made, then the picture, as OpenAI's image streams send them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from mrflow.progress import Stage
from mrflow.server.errors import ApiError
from mrflow.server.orders import News, Order
from mrflow.server.responses import Form, common, describe, now, usage
from mrflow.server.tickets import Made

Verb = Literal["image_generation", "image_edit"]

_PREVIEWS: tuple[Stage, ...] = ("decode_draft", "upscale")
_NAMES: dict[Stage, str] = {"decode_draft": "draft", "upscale": "upscaled"}
_SILENCE = 15.0  # seconds after which a comment is sent, so that proxies keep the line open


def previews(partial_images: int | None, *, drafted: bool) -> tuple[Stage, ...]:
    """Return the stages to show for partial_images; where nothing is drafted that is the upscaled picture."""
    return (_PREVIEWS if drafted else _PREVIEWS[1:])[: partial_images or 0]


class OrderStream(StreamingResponse):
    """The events of an order that has joined the line; whatever ends the answer gives up what is not made."""

    def __init__(self, order: Order, events: AsyncIterator[bytes]) -> None:
        """Send `events`, and forget `order` in the end."""
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._order = order

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client goes away."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._order.forget()


@dataclass(frozen=True)
class EventWriter:
    """Writes the events of one order. verb: what their names begin with. patch, given: see usage."""

    order: Order
    form: Form
    verb: Verb
    quality: str | None
    patch: int
    given: int = 0

    async def events(self) -> AsyncIterator[bytes]:
        """Yield events, and in place of a picture that is refused an error."""
        shown = [0] * len(self.order.tickets)
        try:
            async for news in _with_comments(self.order.news()):
                if news is None:
                    yield b": still at it\n\n"
                elif news.made is not None:
                    yield await run_in_threadpool(self._completed, news.index, news.made)
                elif news.image is not None:
                    yield await run_in_threadpool(self._partial, news, shown[news.index])
                    shown[news.index] += 1
        except ApiError as refusal:
            yield _event("error", {"type": "error", **refusal.body()})

    def _partial(self, news: News, number: int) -> bytes:
        assert news.image is not None
        assert news.stage is not None
        data = self.form.encode(news.image)
        more = {"partial_image_index": number, "stage": _NAMES[news.stage], "seconds": round(news.seconds, 4)}
        return self._image("partial_image", news.index, data, more)

    def _completed(self, index: int, made: Made) -> bytes:
        assert made.image is not None
        size = self.order.tickets[index].size
        counts = usage([made], [size], self.patch, self.given if index == 0 else 0)
        data = self.form.encode(made.image, made.recipe)
        return self._image("completed", index, data, {"usage": counts, **describe(made)})

    def _image(self, what: str, index: int, data: bytes, more: dict[str, Any]) -> bytes:
        name = f"{self.verb}.{what}"
        return _event(
            name,
            {
                "type": name,
                "b64_json": base64.b64encode(data).decode(),
                "created_at": now(),
                **common(self.form, self.quality or "auto", self.order.tickets[index].size),
                "image_index": index,
                **more,
            },
        )


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


async def _with_comments(news: AsyncIterator[News]) -> AsyncIterator[News | None]:
    """Yield the news, and None wherever there is none for a while."""
    waiting = asyncio.ensure_future(_next(news))
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=_SILENCE)
            if not done:
                yield None
                continue
            try:
                item = waiting.result()
            except StopAsyncIteration:
                return
            yield item
            waiting = asyncio.ensure_future(_next(news))
    finally:
        waiting.cancel()


async def _next(news: AsyncIterator[News]) -> News:
    return await anext(news)
