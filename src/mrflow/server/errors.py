"""What a client is told when it gets no picture, in the shape of OpenAI's errors."""

from __future__ import annotations

import json
import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from mrflow.errors import ImageError, LoraError, MrFlowError, OutputError, RecipeError, RequestError

_SERVER = "server_error"


class ApiError(HTTPException):
    """An answer that is no picture: status, message, OpenAI's type, code and param, and when to try again.

    An HTTPException because FastAPI passes those on from wherever they are raised, also while a body is read.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        kind: str = "invalid_request_error",
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Say `message` with `status`; kind is OpenAI's `type`, retry_after is in seconds."""
        headers = {} if retry_after is None else {"Retry-After": str(max(math.ceil(retry_after), 1))}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, detail=message, headers=headers or None)
        self.message, self.code, self.kind, self.param = message, code, kind, param

    def body(self) -> dict[str, Any]:
        """Return the JSON object that OpenAI's clients read."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        """Return the answer that holds that object; of a redirection only where to."""
        if self.status_code == 303:
            return Response(status_code=303, headers={"Location": self.message})
        text = json.dumps(self.body())  # ASCII, so that odd characters of a request can't break it
        return Response(text, self.status_code, self.headers, "application/json")


def from_error(error: MrFlowError, param: str | None = None) -> ApiError:
    """Return what a client is told of an error: our own words for what it asked, none of our insides else."""
    if isinstance(error, RequestError):
        return ApiError(422, str(error), param=param, code="unprocessable")
    if isinstance(error, (ImageError, RecipeError)):
        return ApiError(400, _own_words(error), param=param or "image", code="invalid_image")
    if isinstance(error, OutputError):
        return ApiError(422, _own_words(error), param="output_format", code="unprocessable")
    if isinstance(error, LoraError):
        return ApiError(422, _own_words(error), param="loras", code="unprocessable")
    return failed(error)


def invalid_field(error: dict[str, Any]) -> ApiError:
    """Return what is wrong with a field, as pydantic says it, in OpenAI's words where there are any."""
    where = [str(part) for part in error["loc"][1:] if "constrained-" not in str(part)]  # pydantic's, of unions
    param = ".".join(where)[:100] or None
    if error["type"] == "missing" and param is not None:
        text, code = f"Missing required parameter: {param!r}.", "missing_required_parameter"
    elif error["type"] == "extra_forbidden":
        text, code = f"Unknown parameter: {param!r}. {error['msg']}", "unknown_parameter"
    elif error["type"] == "string_unicode":
        text, code = (
            f"{param or 'A name'!r} holds half a character (a lone surrogate), which is no text.",
            "invalid_value",
        )
    elif error["type"] == "json_invalid" or param is None:
        return ApiError(400, "The body is not a JSON object of the fields in /docs.", code="invalid_json")
    else:
        text, code = f"Invalid value for {param!r}: {error['msg']}.", "invalid_value"
    return ApiError(400, text, param=param, code=code)


def queue_full(seconds: float) -> ApiError:
    """Return that the queue is full; `seconds` until there may be room."""
    text, wait = "The queue is full. Try again later.", min(max(seconds, 1.0), 60.0)
    return ApiError(429, text, code="rate_limit_exceeded", kind="rate_limit_error", retry_after=wait)


def too_late(seconds: float) -> ApiError:
    """Return that the picture was not made in time."""
    return _unavailable(f"The picture was not made within {seconds:g} seconds. Try again.", "timeout")


def stopping() -> ApiError:
    """Return that the server is shutting down."""
    return _unavailable("The server is shutting down. Try again.", "shutting_down")


def hung() -> ApiError:
    """Return that nobody works."""
    return _unavailable("The model does not respond. Try again later.", "worker_hung", 30)


def failed(error: BaseException) -> ApiError:
    """Return that making the picture failed; of what went wrong only the kind is told."""
    text = f"The picture could not be made ({type(error).__name__})."
    return ApiError(500, text, code="internal_error", kind=_SERVER)


def internal() -> ApiError:
    """Return that something else failed, of which nothing is told."""
    return ApiError(500, "Something went wrong.", code="internal_error", kind=_SERVER)


def gone() -> ApiError:
    """Return that the client went away; nobody reads it."""
    return ApiError(499, "The client closed the connection.", code="client_closed_request")


def _own_words(error: MrFlowError) -> str:
    """Return what an error says, without what a library said, for that may hold paths."""
    return str(error) if error.__cause__ is None else str(error).partition(": ")[0].rstrip(".") + "."


def _unavailable(message: str, code: str, retry_after: float = 5) -> ApiError:
    return ApiError(503, message, code=code, kind=_SERVER, retry_after=retry_after)
