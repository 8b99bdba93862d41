"""Pictures as answers: encoded, kept where a url is wanted, described as OpenAI does and with our own fields.

One object at the end, or server-sent events: previews as they are made, then the picture.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from mrflow.errors import OutputError
from mrflow.files import encode_image
from mrflow.jobs import Size
from mrflow.plan import Plan
from mrflow.progress import Stage
from mrflow.recipe import Recipe
from mrflow.server import errors
from mrflow.server.errors import ApiError
from mrflow.server.requests import OLDER_QUALITY, Checked, Format, ImageBody, PreviewedBody
from mrflow.server.service import Service
from mrflow.server.store import Store, StoredFile
from mrflow.server.tickets import Made, News, TicketGroup

log = logging.getLogger("mrflow.server")

Outcome = TypeVar("Outcome")
Verb = Literal["image_generation", "image_edit", "image_draft"]

_STAGES: dict[Stage, str] = {"decode_draft": "draft", "upscale": "upscaled"}  # those shown, as clients read them
_SILENCE = 15.0  # seconds after which a comment is sent, so that proxies keep the line open


@dataclass(frozen=True)
class Encoder:
    """How pictures are given out: format, quality of lossy ones, and the url to put before a kept file's name."""

    format: Format = "png"
    quality: int | None = None
    base_url: str | None = None

    @classmethod
    def of(cls, body: ImageBody, base_url: str) -> Encoder:
        """Return what a request asks for; raises an ApiError."""
        form, quality = body.output_format or "png", body.output_compression
        if form == "png" and quality not in (None, 100):
            text = "output_compression is for jpeg and webp; png is always whole. Leave one out."
            raise ApiError(400, text, param="output_compression", code="invalid_value")
        usual = "url" if (body.model or "").startswith("dall-e-") else "b64_json"
        wanted = (body.response_format or usual) == "url"
        return cls(form, None if form == "png" else quality, base_url if wanted else None)

    def encode(self, image: Image.Image, recipe: Recipe | None = None) -> bytes:
        """Return the file, with the recipe inside; raises an ApiError for what the format can't hold."""
        try:
            return encode_image(image, f".{self.format}", recipe, quality=self.quality)
        except OutputError as error:
            raise errors.from_error(error) from None

    def item(self, image: Image.Image, recipe: Recipe | None, files: Store[StoredFile]) -> dict[str, Any]:
        """Return the picture as b64_json, or as the url of a file that is kept."""
        data = self.encode(image, recipe)
        if self.base_url is None:
            return {"b64_json": base64.b64encode(data).decode()}
        name = files.put(StoredFile(data, f"image/{self.format}"), len(data))
        return {"url": f"{self.base_url}v1/files/{name}.{self.format}"}  # some clients look for the ending


def later(request: Request) -> bool:
    """Return whether a request is to be answered with a task."""
    return "respond-async" in request.headers.get("prefer", "") or request.url.path.endswith("/images/tasks")


def shown(body: PreviewedBody, *, drafted: bool) -> tuple[Stage, ...]:
    """Return the stages to show in a stream; where nothing is drafted that is the upscaled picture."""
    return tuple(_STAGES)[not drafted :][: body.partial_images or 0] if body.stream else ()


def describe(made: Made) -> dict[str, Any]:
    """Return our fields of one picture: seed, plan, seconds per stage, batch, recipe."""
    _, recipe = _picture(made)
    return {
        "seed": recipe.seed,
        "plan": steps_of(recipe.plan, native=recipe.mode == "native"),
        "seconds": {name: round(value, 4) for name, value in made.seconds.items()},
        "batch": made.batch,
        "recipe": json.loads(recipe.to_json()),
    }


def steps_of(plan: Plan, *, native: bool) -> str:
    """Return the steps as a method's name has them: "12+1", "native:50"."""
    return f"native:{plan.steps}" if native else plan.label


def _picture(made: Made) -> tuple[Image.Image, Recipe]:
    """Return the finished picture or else the draft, with its recipe."""
    if made.image is not None and made.recipe is not None:
        return made.image, made.recipe
    assert made.draft is not None
    return made.draft.image, made.draft.recipe


def usage(made: Sequence[Made], sizes: Sequence[Size], patch: int, given: int = 0) -> dict[str, Any]:
    """Return token counts: rows of text that the transformer read, and patches of pictures.

    given: pixels of the pictures that the request brought.
    """
    text = sum(each.text_tokens for each in made)
    images_in = given // patch**2
    images = sum(width * height for width, height in sizes) // patch**2
    return {
        "input_tokens": text + images_in,
        "input_tokens_details": {"text_tokens": text, "image_tokens": images_in},
        "output_tokens": images,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": images},
        "total_tokens": text + images_in + images,
    }


def common(encoder: Encoder, quality: str | None, size: Size) -> dict[str, Any]:
    """Return the fields that answers and events share."""
    return {
        "output_format": encoder.format,
        "quality": OLDER_QUALITY.get(quality or "auto", quality or "auto"),
        "size": f"{size[0]}x{size[1]}",
        "background": "opaque",
    }


def now() -> int:
    """Return the time as OpenAI gives it."""
    return int(time.time())


async def unless_gone(request: Request, making: Coroutine[Any, Any, Outcome]) -> Outcome:
    """Return what is made; raises an ApiError as soon as the client is gone, for then nobody needs it."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, leaving = asyncio.ensure_future(making), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise errors.gone()
        return work.result()
    finally:
        for task in (work, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


@dataclass(frozen=True)
class Answer:
    """The pictures of one request, finished ones or kept drafts, as one object or as events.

    quality: as it was asked for. verb: what the names of events begin with. given: see `usage`.
    """

    service: Service
    group: TicketGroup
    encoder: Encoder
    quality: str | None = None
    verb: Verb = "image_generation"
    given: int = 0
    progress: bool | None = False

    async def send(self, request: Request, checked: Checked, stream: bool | None) -> Response:
        """Return all pictures once they are made, or at once the events that tell of them, or a task."""
        if later(request):
            return self._task(request, checked)
        if stream:
            self.group.submit()
            return _EventStream(self.group, self._events(checked.warnings))
        async with self.group:
            await unless_gone(request, self.group.made())
            return JSONResponse(await self.whole(checked))

    def _task(self, request: Request, checked: Checked) -> Response:
        tasks = self.service.tasks
        if tasks is None:
            raise ApiError(400, "There are no tasks here: they are bound to one process.", code="unsupported")
        told = tasks.describe(task := tasks.begin(request.state.client, self, checked))
        return JSONResponse(told, 202, headers={"Location": f"{request.base_url}v1/images/tasks/{task.id}"})

    async def whole(self, checked: Checked) -> dict[str, Any]:
        """Return the answer that holds all pictures, once they are made; raises the first ApiError."""
        made, created = await self.group.made(), now()
        items = await run_in_threadpool(self._items, made)
        answer = {
            "created": created,
            **({"expires_at": created + int(self.service.settings.keep_seconds)} if self._drafts else {}),
            **common(self.encoder, self.quality, checked.size),
            "model": self.service.names[0],
            "plan": items[0]["plan"],
            "data": items,
            "usage": usage(made, self._sizes(), self.service.patch, self.given),
            "warnings": checked.warnings,
        }
        if answer["quality"] == "auto":
            answer["quality"] = None  # as the plan says; no answer may say auto
        return answer

    def _items(self, made: Sequence[Made]) -> list[dict[str, Any]]:
        return [
            {**self._id(each), **self.encoder.item(*_picture(each), self.service.files), **describe(each)}
            for each in made
        ]

    @property
    def _drafts(self) -> bool:
        return self.verb == "image_draft"

    def _id(self, made: Made) -> dict[str, str]:
        """Return under which id a draft is kept; of a finished picture nothing."""
        return {"id": self.service.keep_draft(made.draft)} if self._drafts and made.draft is not None else {}

    def _sizes(self) -> list[Size]:
        jobs, patch = [ticket.job for ticket in self.group.tickets], self.service.patch
        return [job.plan.draft_size(*job.size, patch) if self._drafts else job.size for job in jobs]

    async def _events(self, warnings: Sequence[str]) -> AsyncIterator[bytes]:
        """Yield events, and in place of a picture that is refused an error."""
        previews = [0] * len(self.group.tickets)
        try:
            async for news in self.group.news(_SILENCE):
                if news.made is not None:
                    yield await run_in_threadpool(self._completed, news.index, news.made, warnings)
                elif news.image is not None:
                    yield await run_in_threadpool(self._partial, news, previews[news.index])
                    previews[news.index] += 1
                elif news.stage is None:
                    yield b": still at it\n\n"
                elif self.progress:
                    counts = {"step": news.step, "steps": news.steps, "image_index": news.index}
                    yield _event(f"{self.verb}.progress", {"stage": news.stage, **counts})
        except ApiError as error:
            yield _event("error", error.body())
        except Exception as error:  # of encoding, for one
            log.exception("a stream failed")
            yield _event("error", errors.failed(error).body())

    def _partial(self, news: News, number: int) -> bytes:
        assert news.image is not None
        assert news.stage is not None
        more = {"partial_image_index": number, "stage": _STAGES[news.stage], "seconds": round(news.seconds, 4)}
        return self._image("partial_image", news.index, self.encoder.encode(news.image), more)

    def _completed(self, index: int, made: Made, warnings: Sequence[str]) -> bytes:
        size = self._sizes()[index]
        counts = usage([made], [size], self.service.patch, self.given if index == 0 else 0)
        data = self.encoder.encode(*_picture(made))
        return self._image(
            "completed", index, data, {**self._id(made), "usage": counts, "warnings": warnings, **describe(made)}
        )

    def _image(self, what: str, index: int, data: bytes, more: dict[str, Any]) -> bytes:
        fields = common(self.encoder, self.quality, self.group.tickets[index].job.size)
        image = {"b64_json": base64.b64encode(data).decode(), "created_at": now(), **fields, "image_index": index}
        return _event(f"{self.verb}.{what}", image | more)


class _EventStream(StreamingResponse):
    """The events of tickets that have joined the queue; whatever ends the answer gives up what is not made."""

    def __init__(self, group: TicketGroup, events: AsyncIterator[bytes]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._group = group

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._group.forget()


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()
