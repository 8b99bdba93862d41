"""What requests may hold: OpenAI's fields with OpenAI's meaning, and ours beside them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mrflow.recipe import MAX_SEED
from mrflow.server.settings import MAX_DRAFTS, MAX_N

Format = Literal["png", "jpeg", "webp"]
Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]

_Scale = Annotated[float | None, Field(ge=0, le=100, allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorObject(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every answer that is no success, as OpenAI's clients read it."""

    error: ErrorObject


class OurFields(_Body):
    """Fields of mrflow's own, which OpenAI's clients pass as `extra_body`."""

    negative_prompt: str | None = Field(None, description="What the picture should not show; needs guidance.")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Of the first picture; the others take seed + 1, ... Drawn if absent."
    )
    plan: str | None = Field(
        None, max_length=80, description='Draft steps + refine steps, such as "12+1", or a preset\'s name.'
    )
    num_inference_steps: int | None = Field(None, ge=1, description="Steps of the draft, in place of the plan's.")
    guidance_scale: _Scale = Field(None, description="Of guidance-embedded checkpoints.")
    true_cfg_scale: _Scale = Field(None, description="Classifier-free guidance; 1 is none.")
    guidance_stop: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the draft's steps with classifier-free guidance; the rest cost half.",
    )
    solver: str | None = Field(
        None, max_length=40, description='"unipc" or "dpm++2m" for the draft, of second order, or "own".'
    )
    refine_sigma: float | None = Field(
        None, gt=0, lt=1, description="Noise that the refine pass begins with; .16 to .20 helps small text."
    )


class OutputBody(_Body):
    output_format: Format | None = Field(None, description="png if absent.")
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of jpeg and webp; absent: jpeg of 95, webp without loss."
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="b64_json if absent; a url is served by this server for a limited time."
    )


class StreamedBody(OutputBody):
    stream: bool | None = Field(None, description="Send events instead of one object.")
    partial_images: int | None = Field(
        None, ge=0, le=3, description="Previews: 1 is the draft, 2 and 3 also the upscaled draft."
    )


class AskedBody(OurFields):
    prompt: str = Field(description="What the picture shows.")
    model: str | None = Field(None, max_length=200, description="A name that GET /v1/models lists.")
    size: str | None = Field(
        None,
        max_length=20,
        description='Pixels, "WIDTHxHEIGHT"; "auto" is the model\'s own, or twice the image\'s.',
    )
    quality: Quality | None = Field(None, description="How many draft steps, where neither plan nor steps say.")
    user: str | None = Field(None, max_length=1000, description="Accepted and not used.")
    safety_identifier: str | None = Field(None, max_length=1000, description="Accepted and not used.")
    background: Literal["auto", "opaque"] | None = Field(None, description="Pictures are opaque.")
    moderation: Literal["auto", "low"] | None = Field(None, description="Accepted; nothing is moderated.")


class GenerateBody(AskedBody, StreamedBody):
    """POST /v1/images/generations."""

    n: int | None = Field(None, ge=1, le=MAX_N, description="Pictures, 1 if absent.")
    style: Literal["vivid", "natural"] | None = Field(None, description="Accepted and not used.")


class EditBody(AskedBody, StreamedBody):
    """The text fields of POST /v1/images/edits; all arrive as text."""

    model_config = ConfigDict(strict=False)
    n: int | None = Field(None, ge=1, le=MAX_N, description="Pictures, 1 if absent.")
    input_fidelity: Literal["high", "low"] | None = Field(None, description="Accepted; refine_sigma decides.")


class DraftsBody(AskedBody, OutputBody):
    """POST /v1/images/drafts."""

    n: int | None = Field(None, ge=1, le=MAX_DRAFTS, description="Drafts, 8 if absent.")


class FinishBody(StreamedBody):
    """POST /v1/images/finish."""

    drafts: list[Annotated[str, Field(max_length=100)]] = Field(
        min_length=1, max_length=MAX_DRAFTS, description="Ids that POST /v1/images/drafts gave."
    )
    model: str | None = Field(None, max_length=200, description="A name that GET /v1/models lists.")
    plan: str | None = Field(None, max_length=80, description="Another refine pass: its refine steps and sigma.")
    refine_sigma: float | None = Field(None, gt=0, lt=1, description="Noise that the refine pass begins with.")
    user: str | None = Field(None, max_length=1000, description="Accepted and not used.")
