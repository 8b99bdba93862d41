"""What requests may hold, OpenAI's fields and ours, and the work that they ask for.

What the fields say is checked by the code that Python callers meet.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO, Annotated, Any, Literal, TypeVar, Union

from fastapi.exceptions import RequestValidationError
from PIL import Image
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import from_json

from mrflow.arguments import read_references
from mrflow.drafts import Draft, drafts_from_images, replan_drafts
from mrflow.errors import LoraNameError, MrFlowError, MrFlowWarning, PlanError, PromptError, SizeError
from mrflow.files import load_image
from mrflow.jobs import (
    MAX_LORA_NAME,
    MAX_LORA_WEIGHT,
    MAX_LORAS,
    MAX_SEED,
    Job,
    Lora,
    Size,
    ask,
    parse_size,
    read_loras,
    split_weight,
)
from mrflow.model import Model
from mrflow.plan import ABOUT, FINISHING, About, Defaults, Plan, get_plan
from mrflow.server import errors
from mrflow.server.errors import ApiError
from mrflow.server.other_names import translate
from mrflow.server.scheduler import Scheduler
from mrflow.server.settings import MAX_DRAFTS, MAX_N, Settings

Body = TypeVar("Body", bound=BaseModel)
Format = Literal["png", "jpeg", "webp"]
Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]

# Draft steps as shares of the model's own plan: of 12 they make 8, 12, 20, 30 and 50, of a 4-step checkpoint's 4
# they make 3, 4, 7, 10 and 17. 12+1 and 20+1 are the published plans, 50 is the usual number of native sampling.
QUALITY = {"low": 8 / 12, "medium": 1.0, "high": 20 / 12, "xhigh": 30 / 12, "max": 50 / 12}
_SEVERAL = Annotated[str, Field(pattern=r"\+", max_length=80)]  # 0.12+0.2
OLDER_QUALITY = {"standard": "medium", "hd": "high"}
_UNUSED = ("style", "input_fidelity")  # OpenAI's fields that are known and change nothing, and might be thought to


def with_plan_fields(about: Mapping[str, About]) -> Callable[[type[Body]], type[Body]]:
    """Give a body an optional field for each of these numbers of a plan that HTTP may set."""

    def extend(body: type[Body]) -> type[Body]:
        wanted = {each.http: each for each in about.values() if each.http}
        fields: dict[str, Any] = {name: _field(each) for name, each in wanted.items()}
        return create_model(
            body.__name__, __base__=body, __module__=body.__module__, __doc__=body.__doc__, **fields
        )

    return extend


def _field(about: About) -> tuple[Any, Any]:
    """Return an optional field with the bounds of a plan's number; which texts there are, the plan says."""
    kind: Any = about.typed(_bounded(about))
    if about.each:
        kind = Union[kind, Annotated[list[kind], Field(max_length=8)], _SEVERAL]  # noqa: UP007  # of a variable
    return kind | None, Field(None, description=about.text)


def _bounded(about: About) -> Any:
    if about.kind is str:
        return Annotated[str, Field(max_length=40)]
    low, high = ("gt" if about.low in about.open else "ge"), ("lt" if about.high in about.open else "le")
    limits: dict[str, Any] = {low: about.low, high: about.high}
    limits = {name: bound for name, bound in limits.items() if math.isfinite(bound)}
    if about.kind is float:
        limits["allow_inf_nan"] = False
    return Annotated[about.kind, Field(**limits)]


def validated(kind: type[Body], fields: Mapping[str, Any]) -> Body:
    """Return a body of these fields, which came otherwise than as its JSON; raises a RequestValidationError."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        wrong = error.errors(include_input=False)
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in wrong]) from None


def plan_numbers(body: BaseModel) -> dict[str, Any]:
    """Return what a body says of a plan's numbers, by the names that Plan has for them."""
    given = {name: getattr(body, about.http or "", None) for name, about in ABOUT.items()}
    return {name: value for name, value in given.items() if value is not None}


class ErrorObject(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every answer that is no success, as OpenAI's clients read it."""

    error: ErrorObject


class ImageBody(BaseModel):
    """What all requests may say: for which model, and how pictures are given out.

    Fields that other servers have are taken as `translate` says.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str | None = Field(None, max_length=200, description="A name that GET /v1/models lists.")
    user: str | None = Field(None, max_length=1000, description="Accepted and not used.")
    output_format: Format | None = Field(None, description="png if absent.")
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of jpeg and webp; absent: jpeg of 95, webp without loss."
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None,
        description="b64_json if absent, or url for models called dall-e-2 and -3, as at OpenAI; "
        "a url is served by this server for a limited time.",
    )
    _notes: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _read_other_names(cls, given: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        """Take what other servers and clients say, and note what became of it."""
        if not isinstance(given, dict):
            return handler(given)
        known, notes = translate(given, cls.model_fields)
        body = handler(known)
        unused = [name for name in _UNUSED if known.get(name)]
        body._notes = notes | {name: f"{name} is ignored: it changes nothing here." for name in unused}
        return body

    def warnings(self, *, strict: bool = False) -> list[str]:
        """Return what became of fields that others have. strict: raise an ApiError for those we do not know."""
        for name in self._notes if strict else ():
            if name not in _UNUSED:
                raise ApiError(400, f"Unknown parameter: {name!r}.", param=name, code="unknown_parameter")
        return list(dict.fromkeys(self._notes.values()))


class StreamedBody(ImageBody):
    stream: bool | None = Field(None, description="Send events instead of one object.")
    progress: bool | None = Field(None, description="Of a stream: an event for each step, too.")


class PreviewedBody(StreamedBody):
    partial_images: int | None = Field(
        None,
        ge=0,
        le=3,
        description="Previews: 1 is the draft, 2 and 3 also the upscaled pictures, one of each level.",
    )


class LoraBody(BaseModel):
    """A LoRA on the picture; a text such as "style:0.8" says the same."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field(min_length=1, max_length=MAX_LORA_NAME, description="As GET /v1/loras has it.")
    weight: float = Field(
        1.0, ge=-MAX_LORA_WEIGHT, le=MAX_LORA_WEIGHT, allow_inf_nan=False, description="1 is its own strength."
    )


def _read_lora(value: Any) -> Any:
    return dict(zip(("name", "weight"), split_weight(value), strict=True)) if isinstance(value, str) else value


_Lora = Annotated[LoraBody, BeforeValidator(_read_lora, json_schema_input_type=LoraBody | str)]


def _from_text(value: Any) -> Any:
    """Return a field of a form, which arrives as text, as the JSON that it holds."""
    return from_json(value.encode()) if isinstance(value, str) else value


@with_plan_fields(ABOUT)
class PromptBody(ImageBody):
    """OpenAI's fields of a prompt, and ours, which its clients pass as `extra_body`."""

    # min_length has pydantic look into texts, and refuse halves of characters; so it does where there is a most
    prompt: str = Field(min_length=0, description="What the picture shows.")
    size: str | None = Field(
        None, max_length=20, description='Pixels, "WIDTHxHEIGHT"; "auto": the model\'s own, or twice the image\'s.'
    )
    quality: Quality | None = Field(None, description="How many draft steps, where neither plan nor steps say.")
    safety_identifier: str | None = Field(None, max_length=1000, description="Accepted and not used.")
    background: Literal["auto", "opaque"] | None = Field(None, description="Pictures are opaque.")
    moderation: Literal["auto", "low"] | None = Field(None, description="Accepted; nothing is moderated.")
    negative_prompt: str | None = Field(None, min_length=0, description="What it should not show; needs guidance.")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Of the first picture; the others take seed + 1, ... Drawn if absent."
    )
    plan: str | None = Field(
        None,
        max_length=80,
        description='Draft steps + refine steps, such as "12+1", a few-step model\'s "3/4", or a preset\'s name.',
    )
    loras: Annotated[list[_Lora], BeforeValidator(_from_text)] | None = Field(
        None,
        max_length=MAX_LORAS,
        description="Of those that GET /v1/loras lists; [] for none, absent: the server's.",
    )


class GenerateBody(PromptBody, PreviewedBody):
    """POST /v1/images/generations."""

    n: int | None = Field(None, ge=1, le=MAX_N, description="Pictures, 1 if absent.")
    style: Literal["vivid", "natural"] | None = Field(None, description="Accepted and not used.")
    native: bool | None = Field(
        None, description="The plain pipeline's picture instead, in its own number of steps, to compare with."
    )
    dry_run: bool | None = Field(None, description="Make nothing: answer with plan, size and warnings.")


class EditBody(PromptBody, PreviewedBody):
    """The text fields of POST /v1/images/edits; all arrive as text."""

    model_config = ConfigDict(strict=False)
    n: int | None = Field(None, ge=1, le=MAX_N, description="Pictures, 1 if absent.")
    input_fidelity: Literal["high", "low"] | None = Field(None, description="Accepted; refine_sigma decides.")


class DraftsBody(PromptBody, StreamedBody):
    """POST /v1/images/drafts."""

    n: int | None = Field(None, ge=1, le=MAX_DRAFTS, description="Drafts, 8 if absent.")


@with_plan_fields({name: ABOUT[name] for name in FINISHING})
class FinishBody(PreviewedBody):
    """POST /v1/images/finish."""

    drafts: list[Annotated[str, Field(max_length=100)]] = Field(
        min_length=1, max_length=MAX_DRAFTS, description="Ids that POST /v1/images/drafts gave."
    )
    plan: str | None = Field(None, max_length=80, description="Another refine pass: its refine steps and sigma.")


@dataclass(frozen=True)
class Checked:
    """What is to be made: jobs of one plan and size, perhaps with drafts, and what the caller should know."""

    jobs: Sequence[Job]
    drafts: Sequence[Draft] = ()
    warnings: Sequence[str] = ()

    @property
    def plan(self) -> Plan:
        """Of all jobs; of drafts the first one's."""
        return self.jobs[0].plan

    @property
    def size(self) -> Size:
        """Likewise."""
        return self.jobs[0].size


def check_prompt(scheduler: Scheduler, body: PromptBody, n: int, references: Sequence[IO[bytes]] = ()) -> Checked:
    """Return the work for `n` pictures of a prompt; raises an ApiError."""
    model, settings = scheduler.model, scheduler.settings
    seen = _read_images(references, settings)
    with _reading(scheduler, body) as warned:
        plan, (width, height) = _plan(model, body, settings), _size(body)
        _check_text(body, settings)
        told: dict[str, Any] = {"plan": plan, "width": width, "height": height, "loras": _loras(body)}
        told["references"] = read_references(seen)
        asked = ask(body.prompt, body.negative_prompt, body.seed, n, **told)
        jobs = model.resolve(asked)
        _check_pixels(jobs[0].size, settings)
    return Checked(jobs, warnings=warned)


def as_native(scheduler: Scheduler, body: PromptBody, checked: Checked) -> Checked:
    """Return the work of the plain pipeline's pictures, guided throughout, by its own scheduler unless asked."""
    asked, steps = plan_numbers(body), scheduler.model.defaults.native_steps
    own = {name: asked.get(name) for name in ("guidance_stop", "solver")}
    plan = checked.plan.native(asked.get("steps", steps), **own)
    unused = [str(ABOUT[name].http) for name in FINISHING if name in asked]
    if body.plan is not None:
        unused.insert(0, "plan")
    if unused:
        told = f"native runs no stages, so that it leaves out {', '.join(unused)}."
        checked = replace(checked, warnings=[*checked.warnings, told])
    return replace(checked, jobs=[replace(job, plan=plan) for job in checked.jobs])


def check_image(
    scheduler: Scheduler, body: PromptBody, n: int, file: IO[bytes], references: Sequence[IO[bytes]] = ()
) -> Checked:
    """Return the work for `n` pictures from a given one; raises an ApiError."""
    model, settings = scheduler.model, scheduler.settings
    image, *seen = _read_images([file, *references], settings)
    with _reading(scheduler, body) as warned:
        plan, (width, height) = _plan(model, body, settings), _size(body)
        _check_text(body, settings)
        seeds = [one.seed for one in ask(body.prompt, body.negative_prompt, body.seed, n)]
        told: dict[str, Any] = {"plan": plan, "width": width, "height": height, "loras": _loras(body)}
        told["references"] = read_references(seen)
        (draft,) = drafts_from_images(model, image, body.prompt, body.negative_prompt, seeds[0], **told)
        _check_pixels(draft.base_recipe.size, settings)
        drafts = [replace(draft, base_recipe=replace(draft.base_recipe, seed=seed)) for seed in seeds]
    return of_drafts(drafts, warned)


def check_drafts(scheduler: Scheduler, body: FinishBody, drafts: Sequence[Draft]) -> Checked:
    """Return the work of finishing drafts, with the refine pass changed as asked; raises an ApiError."""
    with _reading(scheduler, body) as warned:
        numbers = plan_numbers(body)
        if body.plan is not None:
            named = get_plan(body.plan).changed(**numbers)
            numbers = {"refine_steps": named.refine_steps, "refine_sigma": named.refine_sigma} | numbers
            numbers |= {"scales": named.scales} if named.scales else {}
        changed = replan_drafts(scheduler.model, drafts, numbers=numbers)
        for draft in changed:
            check_steps(draft.base_recipe.plan, scheduler.settings)
            _check_pixels(draft.base_recipe.size, scheduler.settings)
        return of_drafts(changed, warned)


def of_drafts(drafts: list[Draft], warned: Sequence[str] = ()) -> Checked:
    """Return the work of finishing drafts."""
    return Checked([draft.base_recipe for draft in drafts], drafts, warned)


def _read_images(files: Sequence[IO[bytes]], settings: Settings) -> list[Image.Image]:
    try:
        return [load_image(file, max_pixels=settings.max_input_pixels) for file in files]
    except MrFlowError as error:
        raise errors.from_error(error) from None


def _size(body: PromptBody) -> Size | tuple[None, None]:
    return parse_size(None if body.size == "auto" else body.size)


def _loras(body: PromptBody) -> tuple[Lora, ...] | None:
    return None if body.loras is None else read_loras([each.model_dump() for each in body.loras])


def _plan(model: Model, body: PromptBody, settings: Settings) -> Plan:
    numbers, plan = plan_numbers(body), model.defaults.plan if body.plan is None else get_plan(body.plan)
    quality = body.quality or "auto"
    if body.plan is None and "steps" not in numbers and quality != "auto":
        plan = replace(plan, steps=steps_of(model.defaults, quality))
    plan = plan.changed(**numbers)
    check_steps(plan, settings)
    if body.plan is None and "steps" in numbers and not getattr(body, "native", None):
        model.warn_of_steps(plan)
    return plan


def steps_of(own: Defaults, quality: str) -> int:
    """Return the draft steps of a quality; those that a distilled model has learned are its best."""
    if own.learned_steps:
        return own.plan.steps
    share = QUALITY[OLDER_QUALITY.get(quality, quality)]
    return math.ceil(round(own.plan.steps * share, 6))


def check_steps(plan: Plan, settings: Settings) -> None:
    """Raise PlanError for more steps than the server takes."""
    if max(plan.steps, plan.all_refine_steps) > settings.max_steps:
        raise PlanError(f"The plan is {plan.label}; this server takes {settings.max_steps} steps of each at most.")


def _check_pixels(size: Size, settings: Settings) -> None:
    width, height = size
    if width * height > settings.max_pixels:
        raise SizeError(f"The size is {width}x{height}; this server makes {settings.max_pixels} pixels at most.")


def _check_text(body: PromptBody, settings: Settings) -> None:
    for name, text in (("prompt", body.prompt), ("negative_prompt", body.negative_prompt)):
        if text is not None and len(text) > settings.max_prompt:
            raise PromptError(f"The {name} has {len(text)} characters; at most {settings.max_prompt} are read.")


@contextmanager
def _reading(scheduler: Scheduler, body: ImageBody) -> Iterator[list[str]]:
    """Use the model's tokenizers; give a list of warnings, which afterwards holds mrflow's own, too.

    The lock also keeps `catch_warnings`, which is not made for threads, to one thread at a time.
    """
    texts = body.warnings(strict=scheduler.settings.strict)
    if not scheduler.reading.acquire(timeout=30):
        raise errors.hung()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", MrFlowWarning)
            yield texts
        texts += [str(each.message) for each in caught if issubclass(each.category, MrFlowWarning)]
    except MrFlowError as error:
        params: dict[type, str] = {PlanError: "plan", SizeError: "size", PromptError: "prompt"}
        params |= {LoraNameError: "loras"}
        raise errors.from_error(error, params.get(type(error))) from None
    finally:
        scheduler.reading.release()
