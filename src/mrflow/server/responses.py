"""Pictures as answers: encoded, kept where a url is wanted, described as OpenAI does and with our own fields."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mrflow.errors import OutputError
from mrflow.files import encode_image
from mrflow.recipe import Recipe
from mrflow.server import errors
from mrflow.server.errors import ApiError
from mrflow.server.requests import Format, OutputBody
from mrflow.server.store import Store
from mrflow.server.tickets import Made
from mrflow.sizes import Size

MEDIA_TYPES: dict[Format, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
OLDER_QUALITY = {"standard": "medium", "hd": "high"}
_SUFFIXES: dict[Format, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


@dataclass(frozen=True)
class StoredFile:
    """A file that the server gives out: its bytes and their media type."""

    data: bytes
    media_type: str


@dataclass(frozen=True)
class Form:
    """How pictures are given out: format, quality of lossy ones, and the url to put before a kept file's name."""

    format: Format = "png"
    quality: int | None = None
    base_url: str | None = None

    @classmethod
    def of(cls, body: OutputBody, base_url: str) -> Form:
        """Return what a request asks for; raises an ApiError."""
        form = body.output_format or "png"
        if form == "png" and body.output_compression not in (None, 100):
            raise ApiError(
                400,
                "output_compression is for jpeg and webp; png is always whole. Leave one out.",
                param="output_compression",
                code="invalid_value",
            )
        quality = None if form == "png" else body.output_compression
        return cls(form, quality, base_url if body.response_format == "url" else None)

    def encode(self, image: Image.Image, recipe: Recipe | None = None) -> bytes:
        """Return the file, with the recipe inside; raises an ApiError for what the format can't hold."""
        try:
            return encode_image(image, _SUFFIXES[self.format], recipe, quality=self.quality)
        except OutputError as error:
            raise errors.from_error(error) from None

    def item(self, image: Image.Image, recipe: Recipe | None, files: Store[StoredFile]) -> dict[str, Any]:
        """Return the picture as b64_json, or as the url of a file that is kept."""
        data = self.encode(image, recipe)
        if self.base_url is None:
            return {"b64_json": base64.b64encode(data).decode()}
        name = files.put(StoredFile(data, MEDIA_TYPES[self.format]), len(data))
        return {"url": f"{self.base_url}v1/files/{name}"}


def describe(made: Made) -> dict[str, Any]:
    """Return our fields of one picture: seed, plan, seconds per stage, batch, recipe."""
    recipe = made.recipe
    if recipe is None and made.draft is not None:
        recipe = made.draft.recipe
    assert recipe is not None
    return {
        "seed": recipe.seed,
        "plan": recipe.plan.label,
        "seconds": {name: round(value, 4) for name, value in made.seconds.items()},
        "batch": made.batch,
        "recipe": json.loads(recipe.to_json()),
    }


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


def common(form: Form, quality: str, size: Size) -> dict[str, Any]:
    """Return the fields that answers and events share."""
    return {
        "output_format": form.format,
        "quality": OLDER_QUALITY.get(quality, quality),
        "size": f"{size[0]}x{size[1]}",
        "background": "opaque",
    }


def now() -> int:
    """Return the time as OpenAI gives it."""
    return int(time.time())
