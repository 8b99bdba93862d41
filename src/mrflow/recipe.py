"""Recipes: everything needed to make a picture again, as a record that travels inside the image file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from mrflow.errors import MrFlowError, MrFlowWarning, RecipeError, RequestError, warn
from mrflow.jobs import MAX_LORAS, MAX_SEED, Job, Lora, Reference
from mrflow.plan import Plan, shown, whole, written

Mode = Literal["staged", "draft", "finish", "enhance", "native"]
MODES: tuple[str, ...] = get_args(Mode)

ENCODED = "encoded"
FORMAT = 1
MAX_JSON = 256 * 1024  # characters; a real recipe has about a thousand
_TEXTS = ("conditions", "versions")  # fields that map names to texts
_PACKAGES = ("mrflow", "torch", "diffusers", "transformers", "spandrel")
_LATER = "A later mrflow wrote it: upgrade mrflow."
_ABSENT: Mapping[str, Any] = {
    "batch": 1,
    "loras": (),
    "references": (),
    "conditions": {},
    "versions": {},
}  # of a missing field, if not None
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Recipe(Job):
    """A job and all else that is needed to make its picture again. Checked on creation: raises RecipeError.

    mode: "staged" (draft, then finish), "draft" (a draft itself), "finish" (a draft that went through an
        8-bit file), "enhance" (steps 4 to 8 on a given image) or "native" (the plain pipeline).
    width, height: a draft records the size that it is meant for. plan: of a native picture only `steps` and the
        guidance count. The job's other fields: see there.
    model, revision: hub id, folder or "vista", and its commit or content hash where known.
    upscaler, upscaler_sha256: file or method name; the hash of the file, None for plain interpolation.
    dtype, device: of the transformer ("bfloat16", "cuda").
    batch: pictures that went through the model together. Sums are rounded otherwise in a batch of another size,
        so that a value of a pixel may differ by 1/255.
    threads: of torch, on a CPU; another number rounds sums otherwise, too. None on other devices, and where the
        draft had others than the finish.
    conditions: what else shaped the picture, name to short text: LoRAs that the caller put on the pipeline,
        another scheduler, a cache, quantised weights, arguments of the caller's (`borrowing.describe`). Empty for
        a plain pipeline.
    versions: package name to version.
    latents: "encoded" where latents were enlarged that first had to be encoded from pixels; else None.
    pixels_sha256: of the 8-bit RGB pixels, row by row. input_sha256: the same of the image that "enhance" or
        "finish" began with.
    """

    mode: Mode
    model: str
    revision: str | None = None
    upscaler: str | None = None
    upscaler_sha256: str | None = None
    dtype: str | None = None
    device: str | None = None
    batch: int = 1
    threads: int | None = None
    conditions: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    latents: str | None = None
    pixels_sha256: str | None = None
    input_sha256: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RecipeError(f"mode is {shown(self.mode)}; it must be one of {', '.join(MODES)}.")
        for name in ("prompt", "model"):
            _check(name, getattr(self, name), str)
        for name in ("negative_prompt", "revision", "upscaler", "dtype", "device"):
            _check(name, getattr(self, name), str, optional=True)
        if self.latents not in (None, ENCODED):
            raise RecipeError(f"The recipe's latents is {self.latents!r:.80}; it must be {ENCODED!r}, or absent.")
        _check_range("seed", self.seed, 0, MAX_SEED)
        _check_range("width", self.width, 1, 65536)
        _check_range("height", self.height, 1, 65536)
        _check_range("batch", self.batch, 1, 65536)
        for name in ("max_sequence_length", "threads", "noise_width", "noise_height"):
            if getattr(self, name) is not None:
                _check_range(name, getattr(self, name), 1, 65536)
        _check("plan", self.plan, Plan)
        _check("loras", self.loras, tuple)
        for lora in self.loras:
            _check("loras", lora, Lora)
            _check_hash("loras", lora.sha256)
        _check("references", self.references, tuple)
        for reference in self.references:
            _check("references", reference, Reference)
            _check_hash("references", reference.sha256)
        for name in ("upscaler_sha256", "pixels_sha256", "input_sha256"):
            _check_hash(name, getattr(self, name))
        for name in _TEXTS:
            _check(name, getattr(self, name), Mapping)
            for key, value in getattr(self, name).items():
                _check(name, key, str)
                _check(f"{name}[{key[:40]!r}]", value, str)

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and copy.deepcopy take along: neither knows a read-only mapping."""
        return {**self.__dict__, **{name: dict(getattr(self, name)) for name in _TEXTS}}

    def to_json(self) -> str:
        """Return the recipe as one JSON object of ASCII text, with its format number; unsaid fields left out."""
        return json.dumps({"format": FORMAT, **self._values()}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Return the recipe in `text`, which may come from anywhere.

        Raises RecipeError for text that is too long, no JSON, of a later format, with fields that only a later
        version knows, or with wrong values.
        """
        values = _parse(text)
        _check_range("format", values.pop("format", None), 1, FORMAT, hint=_LATER)
        if unknown := sorted(set(values) - {item.name for item in fields(cls)}):
            raise RecipeError(f"The recipe has {unknown[0][:80]!r}, which this mrflow does not know. {_LATER}")
        if lost := sorted({each.name for each in fields(cls) if each.default is each.default_factory} - {*values}):
            raise RecipeError(f"The recipe has no {lost[0]!r}; it must have one.")
        try:
            values["plan"] = Plan.from_dict(values["plan"])
            values["loras"] = _read_loras(values.get("loras", []))
            _check("references", values.setdefault("references", []), list)
            values["references"] = tuple(map(Reference, values["references"]))
            return cls(**values)
        except TypeError as error:
            raise RecipeError(f"The recipe is incomplete: {str(error).rpartition('() ')[2]}.") from None
        except RecipeError:
            raise
        except MrFlowError as error:
            raise RecipeError(f"The recipe is not valid: {error}") from error

    def seeing(self, given: Iterable[Reference]) -> Recipe:
        """Return the recipe with its reference pictures; raises RequestError where one is missing or another."""
        known, own = {each.sha256: each for each in given}, {each.sha256 for each in self.references}
        if odd := len(known.keys() - own):
            raise RequestError(f"{odd} of the references are not among the {len(own)} that this was made with.")
        filled = tuple(known.get(each.sha256, each) for each in self.references)
        if missing := sum(each.source is None for each in filled):
            text = f"This was made with {len(filled)} reference pictures, of which {missing} are missing here"
            raise RequestError(f"{text}. Give them too: references= in Python, --reference on the command line.")
        return replace(self, references=filled)

    @property
    def infotext(self) -> str:
        """What AUTOMATIC1111 writes into its pictures, and galleries show; to read again there is to_json."""
        plan = self.plan
        numbers: dict[str, Any] = {
            "Steps": plan.steps,
            "Sampler": plan.solver,
            "CFG scale": plan.guidance_scale or plan.true_cfg_scale,
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model": self.model,
        }
        if self.mode not in ("native", "draft"):
            sigma = written(plan.refine_sigma) if isinstance(plan.refine_sigma, tuple) else plan.refine_sigma
            numbers |= {"Denoising strength": sigma, "Hires steps": plan.all_refine_steps}
            numbers |= {
                "Hires upscale": float(plan.ratio) if plan.scales else plan.scale,
                "Hires upscaler": self.upscaler,
            }
        negative = f"\nNegative prompt: {self.negative_prompt}" if self.negative_prompt else ""
        told = ", ".join(f"{name}: {value}" for name, value in numbers.items() if value is not None)
        return f"{self.prompt}{negative}\n{told}"

    def differences(self, other: Recipe) -> dict[str, tuple[object, object]]:
        """Return the fields in which `other` differs, each as (here, there); of versions and conditions each."""
        mine, theirs = (recipe._flat() for recipe in (self, other))
        names = list({**mine, **theirs})
        return {n: (mine.get(n), theirs.get(n)) for n in names if mine.get(n) != theirs.get(n)}

    def _flat(self) -> dict[str, object]:
        inner = {f"{name}.{key}": text for name in _TEXTS for key, text in getattr(self, name).items()}
        return {name: value for name, value in self._values().items() if name not in _TEXTS} | inner

    def _values(self) -> dict[str, Any]:
        """Return the fields as JSON values, but those whose value is that of a file without them."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values |= {name: dict(values[name]) for name in _TEXTS}
        values = {name: value for name, value in values.items() if value != _ABSENT.get(name)}
        loras = {"loras": [vars(lora) for lora in self.loras]} if self.loras else {}
        seen = {"references": [each.sha256 for each in self.references]} if self.references else {}
        return values | {"plan": self.plan.to_dict(), **loras, **seen}


@cache
def library_versions() -> Mapping[str, str]:
    """Return the installed versions of mrflow and of the libraries that shape its pixels; not to be changed."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue  # vendored or built from source without metadata: nothing true can be said
    return MappingProxyType(versions)


def finished_conditions(draft: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Return those of a picture whose draft may have been made under others, which then begin with "draft."."""
    names = sorted({name for name in (*draft, *now) if draft.get(name) != now.get(name)})
    return {**now, **{f"draft.{name}": draft.get(name, "none") for name in names}}


def warn_of_difference(recorded: Mapping[str, str], here: Mapping[str, str], whose: str) -> None:
    """Warn (MrFlowWarning) where what shaped a picture is not what is here."""
    changed = {name for name in {**recorded, **here} if recorded.get(name) != here.get(name)}
    both = recorded.keys() & here.keys()  # hashes are for telling apart what has one name
    names = sorted(name for name in changed if name in both or not name.endswith(".sha256"))
    if names:
        told = "; ".join(f"{n} {recorded.get(n, 'none')[:80]}, here {here.get(n, 'none')[:80]}" for n in names)
        text = f"{whose} was made with other settings than the pipeline has now, and its pixels depend on them"
        warn(f"{text}: {told}.", MrFlowWarning)


def _read_loras(given: object) -> tuple[Lora, ...]:
    _check("loras", given, list)
    items = cast("list[Any]", given)[: MAX_LORAS + 1]
    _check_range("number of LoRAs", len(items), 0, MAX_LORAS)
    for each in items:
        _check("loras", each, dict)
    return tuple(Lora(**each) for each in items)


def _parse(text: str) -> dict[str, Any]:
    if len(text) > MAX_JSON:
        raise RecipeError(f"The recipe has {len(text)} characters; at most {MAX_JSON} are read.")
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"The recipe is not valid JSON: {error}.") from None
    if not isinstance(data, dict):
        raise RecipeError(f"The recipe is a JSON {type(data).__name__}; it must be an object.")
    return cast("dict[str, Any]", data)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _check(name: str, value: object, kind: type, *, optional: bool = False) -> None:
    if not (isinstance(value, kind) or (optional and value is None)):
        raise RecipeError(f"The recipe's {name} is {type(value).__name__}; it must be {kind.__name__}.")
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        raise RecipeError(f"The recipe's {name} holds half a character (a lone surrogate), which is no text.")


def _check_range(name: str, value: object, low: int, high: int, hint: str = "") -> None:
    number = value if type(value) is int else whole(value)
    if number is None or not low <= number <= high:
        rule = f"it must be a whole number from {low} to {high}."
        raise RecipeError(f"The recipe's {name} is {shown(value)}; {rule} {hint}".rstrip())


def _check_hash(name: str, value: object) -> None:
    if value is not None and not (isinstance(value, str) and _SHA256.fullmatch(value)):
        raise RecipeError(f"The recipe's {name} is {shown(value)}; it must be 64 hexadecimal digits.")
