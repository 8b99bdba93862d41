"""What a server allows, and how it shares its time: numbers that are checked once."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mrflow.errors import RequestError
from mrflow.jobs import MAX_PROMPT, MAX_SIDE

MAX_N = 10  # pictures of one request, as at OpenAI
MAX_DRAFTS = 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and patience of a server. Checked on creation: raises RequestError.

    lanes: pictures made side by side on a CPU with one set of weights, a worker each; None is one for each core
        where there is one model and it is small (mrflow.lanes), else 1.
    draft_batch, finish_batch: pictures that go through the model at once; None is 8 for drafts, and for
        finishing 1 on a CPU and 4 elsewhere. On a CPU a draft in a batch of 8 took .6 of its time alone,
        finishing in a batch of 4 took 1.3 (vista, one thread), since only the small pass is mostly overhead.
    max_waiting: pictures that may wait; beyond it requests get 429. One client may hold half of it.
    timeout: seconds after which a request that is not answered gets 503.
    hang_after: seconds without a sign of life after which a worker counts as hung.
    drain: seconds that a stopping server gives to what is queued.
    max_body, max_upload: bytes of a JSON body, and of one with an image.
    max_prompt: characters. max_steps: of either pass. max_pixels: of a finished picture.
    max_input_pixels: of a given image, decoded.
    keep_seconds: how long files and drafts are kept. keep_bytes: how much of each.
    body_seconds: patience between two pieces of a request's body.
    """

    lanes: int | None = None
    draft_batch: int | None = None
    finish_batch: int | None = None
    max_waiting: int = 128
    timeout: float = 300.0
    hang_after: float = 300.0
    drain: float = 30.0
    max_body: int = 2**20
    max_upload: int = 32 * 2**20
    max_prompt: int = 4000
    max_steps: int = 100
    max_pixels: int = 2048 * 2048
    max_input_pixels: int = 4096 * 4096
    keep_seconds: float = 600.0
    keep_bytes: int = 256 * 2**20
    body_seconds: float = 30.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None and item.name in ("lanes", "draft_batch", "finish_batch"):
                continue
            whole = "float" not in str(item.type)
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not value > 0:
                kind = "whole number" if whole else "number"
                raise RequestError(f"{item.name} is {value!r}; it must be a {kind} above 0.")
        for name, most in (("max_prompt", MAX_PROMPT), ("max_input_pixels", MAX_SIDE**2)):
            if getattr(self, name) > most:
                raise RequestError(f"{name} is {getattr(self, name)}; it may be {most} at most.")
        if self.max_waiting < 2 * MAX_DRAFTS:
            least = f"at least {2 * MAX_DRAFTS}, so that two clients can ask for {MAX_DRAFTS} drafts"
            raise RequestError(f"max_waiting is {self.max_waiting}; it must be {least}.")

    @property
    def max_waiting_per_client(self) -> int:
        """Pictures that one client may have waiting, so that no client shuts the others out."""
        return self.max_waiting // 2
