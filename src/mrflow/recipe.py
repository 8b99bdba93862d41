"""Recipes: everything needed to make a picture again, as a record that travels inside the image file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from mrflow.errors import MrFlowError, RecipeError
from mrflow.plan import Plan

Mode = Literal["staged", "draft", "finish", "enhance", "native"]
MODES: tuple[str, ...] = get_args(Mode)

FORMAT = 1
MAX_JSON = 256 * 1024  # characters; a real recipe has about a thousand
MAX_SEED = 2**63 - 1  # what torch.Generator.manual_seed takes without wrapping round
_TEXTS = ("conditions", "versions")  # fields that map names to texts
_PACKAGES = ("torch", "diffusers", "transformers", "spandrel")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything needed to make one picture again. Checked on creation: raises RecipeError.

    mode: "staged" (draft, then finish), "draft" (a draft itself), "finish" (a draft that went through an
        8-bit file), "enhance" (steps 4 to 8 on a given image) or "native" (the plain pipeline).
    prompt, negative_prompt: as given; None where no negative prompt was used.
    seed: of this one picture; draft and refine noise both come from it (see `mrflow.sampling`).
    width, height: pixels of the finished picture; a draft records the size that it is meant for.
    plan: resolved, that is with the guidance really used. Of a native picture only `steps` and the guidance
        count.
    model, revision: hub id, folder or "vista", and its commit or content hash where known.
    upscaler, upscaler_sha256: file or method name; the hash of the file, None for plain interpolation.
    max_sequence_length: text tokens, None for the pipeline's default.
    dtype, device: of the transformer ("bfloat16", "cuda").
    batch: pictures that went through the model together. Sums are rounded otherwise in a batch of another size,
        so that a value of a pixel may differ by 1/255.
    threads: of torch, on a CPU; another number rounds sums otherwise, too. None on other devices, and where the
        draft had others than the finish.
    conditions: what else shaped the picture, name to short text: LoRAs and their weights, another scheduler, a
        cache, quantised weights, arguments of the caller's (see `mrflow.conditions`). Empty for a plain pipeline.
    versions: package name to version.
    pixels_sha256: of the 8-bit RGB pixels, row by row. input_sha256: the same of the image that "enhance" or
        "finish" began with.
    """

    mode: Mode
    prompt: str
    seed: int
    width: int
    height: int
    plan: Plan
    model: str
    negative_prompt: str | None = None
    revision: str | None = None
    upscaler: str | None = None
    upscaler_sha256: str | None = None
    max_sequence_length: int | None = None
    dtype: str | None = None
    device: str | None = None
    batch: int = 1
    threads: int | None = None
    conditions: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    pixels_sha256: str | None = None
    input_sha256: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RecipeError(f"mode is {self.mode!r}; it must be one of {', '.join(MODES)}.")
        for name in ("prompt", "model"):
            _check(name, getattr(self, name), str)
        for name in ("negative_prompt", "revision", "upscaler", "dtype", "device"):
            _check(name, getattr(self, name), str, optional=True)
        _check_range("seed", self.seed, 0, MAX_SEED)
        _check_range("width", self.width, 1, 65536)
        _check_range("height", self.height, 1, 65536)
        _check_range("batch", self.batch, 1, 65536)
        for name in ("max_sequence_length", "threads"):
            if getattr(self, name) is not None:
                _check_range(name, getattr(self, name), 1, 65536)
        _check("plan", self.plan, Plan)
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
        """Return the recipe as one JSON object of ASCII text, with its format number."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["plan"] = self.plan.to_dict()
        values |= {name: dict(values[name]) for name in _TEXTS}
        return json.dumps({"format": FORMAT, **values}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Return the recipe in `text`, which may come from anywhere.

        Fields that this version does not know are ignored, so that small additions stay readable.
        Raises RecipeError for text that is too long, no JSON, of a later format or with wrong values.
        """
        data = _parse(text)
        _check_range("format", data.get("format"), 1, FORMAT, hint="A later mrflow wrote it: upgrade mrflow.")
        known = {item.name for item in fields(cls)}
        values = {name: value for name, value in data.items() if name in known}
        try:
            values["plan"] = Plan.from_dict(values["plan"])
            return cls(**values)
        except KeyError as error:
            raise RecipeError(f"The recipe has no {error.args[0]!r}; it must have one.") from None
        except TypeError as error:
            raise RecipeError(f"The recipe is incomplete: {error}.") from None
        except RecipeError:
            raise
        except MrFlowError as error:
            raise RecipeError(f"The recipe's plan is not valid: {error}") from error

    def differences(self, other: Recipe) -> dict[str, tuple[object, object]]:
        """Return the fields in which `other` differs, each as (here, there); of versions and conditions each."""
        mine, theirs = (recipe._flat() for recipe in (self, other))
        names = list({**mine, **theirs})
        return {n: (mine.get(n), theirs.get(n)) for n in names if mine.get(n) != theirs.get(n)}

    def _flat(self) -> dict[str, object]:
        values = json.loads(self.to_json())
        inner = {f"{name}.{key}": text for name in _TEXTS for key, text in values[name].items()}
        return {name: value for name, value in values.items() if name not in (*_TEXTS, "format")} | inner


@cache
def library_versions() -> Mapping[str, str]:
    """Return the installed versions of mrflow and of the libraries that shape its pixels; not to be changed."""
    from mrflow import __version__

    versions = {"mrflow": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue  # vendored or built from source without metadata: nothing true can be said
    return MappingProxyType(versions)


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


def _check_range(name: str, value: object, low: int, high: int, hint: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        shown = repr(value)[:80]
        rule = f"it must be a whole number from {low} to {high}."
        raise RecipeError(f"The recipe's {name} is {shown}; {rule} {hint}".rstrip())


def _check_hash(name: str, value: object) -> None:
    if value is not None and not (isinstance(value, str) and _SHA256.fullmatch(value)):
        raise RecipeError(f"The recipe's {name} is {repr(value)[:80]}; it must be 64 hexadecimal digits.")
