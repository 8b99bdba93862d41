"""What a server allows, and how it shares its time: numbers that are checked once."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mrflow.errors import RequestError
from mrflow.jobs import MAX_PROMPT, MAX_SIDE
from mrflow.plan import shown

MAX_N = 10  # pictures of one request, as at OpenAI
MAX_DRAFTS = 16

Whole = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """Limits and patience of a server. Checked on creation: raises RequestError.

    lanes: pictures made side by side on a CPU with one set of weights, a worker each; None is one for each core
        where there is one model and it is small (mrflow.lanes), else 1.
    draft_batch, finish_batch: pictures that go through the model at once; None is 8 for drafts, and for
        finishing 1 on a CPU and 4 elsewhere. On a CPU a draft in a batch of 8 took .6 of its time alone,
        finishing in a batch of 4 took 1.3 (vista, one thread), since only the small pass is mostly overhead.
    max_waiting: pictures that may wait; beyond it requests get 429. One client may hold half of it, so that there
        must be room for the drafts of two.
    timeout: seconds after which a request that is not answered gets 503.
    hang_after: seconds without a sign of life after which a worker counts as hung.
    drain: seconds that a stopping server gives to what is queued.
    max_body, max_upload: bytes of a JSON body, and of one with an image.
    max_prompt: characters. max_steps: of either pass. max_pixels: of a finished picture.
    max_input_pixels: of a given image, decoded.
    keep_seconds: how long files and drafts are kept. keep_bytes: how much of each.
    body_seconds: patience between two pieces of a request's body.
    strict: refuse fields of requests that only other servers have, also those that change nothing.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    lanes: Whole | None = None
    draft_batch: Whole | None = None
    finish_batch: Whole | None = None
    max_waiting: Annotated[int, Field(ge=2 * MAX_DRAFTS)] = 128
    timeout: Seconds = 300.0
    hang_after: Seconds = 300.0
    drain: Seconds = 30.0
    max_body: Whole = 2**20
    max_upload: Whole = 32 * 2**20
    max_prompt: Annotated[Whole, Field(le=MAX_PROMPT)] = 4000
    max_steps: Whole = 100
    max_pixels: Whole = 2048 * 2048
    max_input_pixels: Annotated[Whole, Field(le=MAX_SIDE**2)] = 4096 * 4096
    keep_seconds: Seconds = 600.0
    keep_bytes: Whole = 256 * 2**20
    body_seconds: Seconds = 30.0
    strict: bool = False

    def __init__(self, **values: Any) -> None:
        """Take the values that differ from the defaults; raises RequestError."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            first, known = error.errors()[0], Settings.model_fields
            name, rule = str(first["loc"][0]), first["msg"].replace("Input", "it", 1)
            hint = f"Try {known[name].default}" if name in known else f"Settings are {', '.join(known)}"
            raise RequestError(f"{name} is {shown(first['input'])}; {rule}. {hint}.") from None

    @property
    def max_waiting_per_client(self) -> int:
        """Pictures that one client may have waiting, so that no client shuts the others out."""
        return self.max_waiting // 2
