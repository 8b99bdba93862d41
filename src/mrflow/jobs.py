"""What a caller asks for, checked once: prompts, seeds and counts become one job per picture; sizes that fit.

Sizes are pixels, width then height. A model works in whole patches of `multiple` pixels (16 for FLUX). Finished
pictures must be of whole patches; a draft takes the nearest size that is, and the lift makes the exact one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mrflow.errors import PromptError, RequestError, SizeError
from mrflow.plan import Plan, real, shown, whole

MAX_PROMPT = 10_000  # characters; the longest text a supported model reads is 512 tokens
MAX_IMAGES = 1000  # of one call; more belong in several calls, since all results are held in memory
MAX_SEED = 2**63 - 1  # what torch.Generator.manual_seed takes without wrapping round
MAX_SIDE = 8192
MAX_LORAS = 16
MAX_LORA_NAME = 500  # characters
MAX_LORA_WEIGHT = 10.0  # either way; sliders are used at up to 5
_DRAWN_SEEDS = 2**32  # short enough to type

Size = tuple[int, int]
NO_SIZE: tuple[None, None] = (None, None)
Seeds = Any  # a number, several, torch.Generator or several, or None
Prompts = str | Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A LoRA on one picture. Checked on creation: raises RequestError.

    name: under which its file is known. weight: 1 is the file's own strength; from -10 to 10. sha256: of the
    file, None where only the name is asked for.
    """

    name: str
    weight: float = 1.0
    sha256: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= MAX_LORA_NAME:
            raise RequestError(f"A LoRA's name is {shown(self.name)}; it must be a short text.")
        weight = real(self.weight)
        if weight is None or not abs(weight) <= MAX_LORA_WEIGHT:
            rule = f"it must be a number from -{MAX_LORA_WEIGHT:g} to {MAX_LORA_WEIGHT:g}. Try 1"
            raise RequestError(f"The weight of the LoRA {shown(self.name)} is {shown(self.weight)}; {rule}.")
        object.__setattr__(self, "weight", weight)

    @classmethod
    def read(cls, given: object) -> Lora:
        """Return one of itself, of NAME or NAME:WEIGHT, or of {"name": ..., "weight": ...}."""
        if isinstance(given, str):
            name, weight = split_weight(given)
            return cls(name=name, weight=weight)
        if isinstance(given, Mapping) and {"name"} <= set(given) <= {"name", "weight"}:
            return cls(**{key: value for key, value in given.items() if value is not None})
        if not isinstance(given, cls):
            raise RequestError(f"A LoRA is {shown(given)}; it must be a name, NAME:WEIGHT or an object with both.")
        return given


@dataclass(frozen=True)
class Reference:
    """A picture that the model sees beside the one it makes. sha256: of its pixels, by which two are equal.

    source: the picture, or its path, from which it is read when it is needed; None where only a recipe names it.
    """

    sha256: str
    source: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One picture as somebody asks for it; None is the model's own. Its seed is settled, drawn if need be."""

    prompt: str
    seed: int
    negative_prompt: str | None = None
    plan: Plan | None = None
    width: int | None = None
    height: int | None = None
    max_sequence_length: int | None = None
    loras: tuple[Lora, ...] | None = None
    references: tuple[Reference, ...] = ()
    noise_width: int | None = None
    noise_height: int | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to make, with all that a caller decides settled: `Model.resolve` makes it from what is asked.

    negative_prompt: None where no classifier-free guidance runs. plan: resolved, that is with the guidance and
    solver really used. width, height: pixels of the finished picture. max_sequence_length: text tokens, None for
    the pipeline's default. loras: each with its hash. references: pictures that both passes see. noise_width,
    noise_height: the size of which a draft takes the plain pipeline's noise; None is the finished one.
    """

    prompt: str
    seed: int
    width: int
    height: int
    plan: Plan
    negative_prompt: str | None = None
    max_sequence_length: int | None = None
    loras: tuple[Lora, ...] = ()
    references: tuple[Reference, ...] = ()
    noise_width: int | None = None
    noise_height: int | None = None

    @property
    def size(self) -> Size:
        """Width and height."""
        return self.width, self.height

    @property
    def kind(self) -> Hashable:
        """What pictures must have in common to go through the model together."""
        return self.width, self.height, self.plan, self.loras, self.references


def ask(
    prompt: Prompts,
    negative_prompt: Prompts | None = None,
    seed: Seeds = None,
    num_images: int = 1,
    *,
    max_sequence_length: int | None = None,
    **more: Any,
) -> list[Asked]:
    """Return what is asked for, picture by picture, the `num_images` of each prompt side by side.

    negative_prompt: one for all, or one per prompt. seed: see `make_seeds`; a sequence of seeds for a single
    prompt makes one picture per seed. more: further fields of Asked. Raises PromptError or RequestError.
    """
    prompts = check_prompts(prompt)
    negatives = _check_negatives(negative_prompt, len(prompts))
    count = _check_count("num_images", num_images)
    if not (seed is None or isinstance(seed, int) or hasattr(seed, "initial_seed") or whole(seed) is not None):
        seed = _as_list(seed)
        count = len(seed) if len(prompts) == 1 and count == 1 else count
    total = len(prompts) * count
    if not total:
        raise RequestError("There are 0 seeds; give at least one, or none at all for drawn ones.")
    if total > MAX_IMAGES:
        raise RequestError(f"{total} pictures are asked for; one call makes at most {MAX_IMAGES}.")
    if max_sequence_length is not None:
        max_sequence_length = _check_count("max_sequence_length", max_sequence_length, 65536)
    pairs = [pair for pair in zip(prompts, negatives, strict=True) for _ in range(count)]
    return [
        Asked(prompt=text, negative_prompt=negative, seed=one, max_sequence_length=max_sequence_length, **more)
        for (text, negative), one in zip(pairs, make_seeds(seed, total), strict=True)
    ]


def read_loras(given: object) -> tuple[Lora, ...] | None:
    """Return the LoRAs of one picture: one or several, each as `Lora.read` takes it, or texts between commas.

    None says nothing, an empty list or text says none. Raises RequestError for too many, or one given twice.
    """
    if given is None:
        return None
    parts = [part for part in map(str.strip, given.split(",")) if part] if isinstance(given, str) else given
    loras = tuple(map(Lora.read, [parts] if isinstance(parts, (Mapping, Lora)) else _as_list(parts)))
    names = [lora.name for lora in loras]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RequestError(f"The LoRA {shown(twice)} is given twice; give it once, with the sum of the weights.")
    if len(loras) > MAX_LORAS:
        raise RequestError(f"{len(loras)} LoRAs are given; a picture takes at most {MAX_LORAS}.")
    return loras


def split_weight(text: str) -> tuple[str, float]:
    """Return what stands before the last colon and the number behind it; 1 where there is none."""
    name, colon, weight = text.rpartition(":")
    try:
        return (name, float(weight)) if colon and name else (text, 1.0)
    except ValueError:  # a colon of the name's own, such as that of a drive
        return text, 1.0


@contextmanager
def generators_kept(seed: Seeds) -> Iterator[None]:
    """Give torch's generators their state back if the body raises: what is refused uses up no seed."""
    given = [each for each in (seed if isinstance(seed, (list, tuple)) else [seed]) if hasattr(each, "get_state")]
    states = [each.get_state() for each in given]
    try:
        yield
    except BaseException:
        for generator, state in zip(given, states, strict=True):
            generator.set_state(state)
        raise


def check_prompts(prompt: Prompts) -> list[str]:
    """Return the prompts as a list; raises PromptError for none, blank, overlong or non-text ones."""
    prompts = [prompt] if isinstance(prompt, str) else _as_list(prompt)
    if not prompts:
        raise PromptError("There are 0 prompts; give at least one.")
    for text in prompts:
        _check_text("prompt", text)
        if not text.strip():
            raise PromptError("The prompt is empty; say what the picture should show.")
    return prompts


def make_seeds(seed: Seeds, count: int) -> list[int]:
    """Return `count` seeds: seed, seed + 1, ... of a number, the given ones of a sequence, or drawn ones of None.

    torch's generators may stand for seeds, one of all the pictures or one each. In its first state, as
    `manual_seed` leaves it, one gives that seed, and drawn ones for further pictures; in any other, drawn ones.
    Each is moved on, so that the next call makes other pictures.
    Raises RequestError unless all are whole numbers from 0 to 2**63 - 1 and a sequence has `count` of them.
    """
    if seed is None:
        return [secrets.randbelow(_DRAWN_SEEDS) for _ in range(count)]
    first = seed if type(seed) is int else whole(seed)
    given = [seed] * count if hasattr(seed, "initial_seed") else None
    given = given or (_as_list(seed) if first is None else [first + k for k in range(count)])
    if len(given) != count:
        raise RequestError(f"There are {len(given)} seeds for {count} pictures; give one number or one each.")
    seeds = []
    for value in given:
        number = value if type(value) is int else _seed_of(value)
        if number is None or not 0 <= number <= MAX_SEED:
            raise RequestError(
                f"seed is {shown(value)}; it must be a whole number from 0 to {MAX_SEED}. Without one it is drawn."
            )
        seeds.append(number)
    return seeds


def check_size(width: int, height: int, multiple: int) -> Size:
    """Return the size; raises SizeError, naming the nearest good ones, unless it is of whole patches."""
    sides = []
    for name, value in (("width", width), ("height", height)):
        side = value if type(value) is int else whole(value)
        if side is None:
            raise SizeError(f"{name} is {shown(value)}; it must be a whole number of pixels.")
        if not multiple <= side <= MAX_SIDE:
            text = f"{name} is {shown(side)}"
            raise SizeError(f"{text}; it must lie between {multiple} and {MAX_SIDE} pixels here.")
        sides.append(side)
    if any(side % multiple for side in sides):
        near = " or ".join(f"{w}x{h}" for w, h in nearest_sizes(sides[0], sides[1], multiple))
        raise SizeError(f"The size is {width}x{height}; sides must be multiples of {multiple}. Try {near}.")
    return sides[0], sides[1]


def nearest_sizes(width: int, height: int, multiple: int) -> list[Size]:
    """Return the one or two sizes next to width x height whose sides are whole patches: lower, upper."""
    lower = (max(width // multiple, 1) * multiple, max(height // multiple, 1) * multiple)
    top = MAX_SIDE // multiple
    upper = (min(-(-width // multiple), top) * multiple, min(-(-height // multiple), top) * multiple)
    return [lower] if lower == upper else [lower, upper]


def fit_size(width: int, height: int, scale: float, multiple: int) -> Size:
    """Return the largest size of whole patches within `scale` times width x height.

    Raises SizeError where that is larger than 8192 pixels. The size is never below one patch.
    """
    sides = [max(int(side * scale) // multiple, 1) * multiple for side in (width, height)]
    if max(sides) > MAX_SIDE:
        raise SizeError(
            f"{width}x{height} at scale {scale:g} is {sides[0]}x{sides[1]}; "
            f"sides may be {MAX_SIDE} pixels at most. Take a smaller image or scale."
        )
    return sides[0], sides[1]


def parse_size(text: str | None) -> Size | tuple[None, None]:
    """Return (width, height) from "256" or "320x192", or two Nones for None. Raises SizeError.

    Whether the sides fit the model's patches is for the model to say.
    """
    if text is None:
        return NO_SIZE
    match = re.fullmatch(r"(\d{1,6})(?:\s*[xX]\s*(\d{1,6}))?", text.strip(), flags=re.ASCII)
    if match is None:
        raise SizeError(f"The size is {text[:80]!r}; it must be pixels such as 256 or 320x192.")
    width = int(match[1])
    return check_size(width, int(match[2] or width), multiple=1)


def parse_bytes(given: object, name: str = "max_memory") -> int | None:
    """Return bytes from a number, or a text such as "24GB" (10^9 each) or "24GiB" (2^30 each); None for None.

    Raises RequestError for what is neither, and below a megabyte.
    """
    if given is None:
        return None
    pattern = r"(\d{1,15}(?:\.\d{1,6})?)\s*(?:([KMGT])(I?))?B?"
    match = re.fullmatch(pattern, str(given).strip().upper(), flags=re.ASCII)
    size = match and int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " "))
    if not size or size < 10**6:
        raise RequestError(f"{name} is {shown(given)}; it must be bytes, at least a megabyte. Try 24GB.")
    return size


def _seed_of(given: object) -> int | None:
    """Return a seed from a number or a generator, which is moved on; None from anything else."""
    import torch

    if not isinstance(given, torch.Generator):
        return whole(given)
    generator, seed = given, given.initial_seed()
    fresh = torch.Generator(generator.device).manual_seed(seed)
    first = torch.equal(fresh.get_state(), generator.get_state())
    drawn = int(torch.randint(_DRAWN_SEEDS, (), generator=generator, device=generator.device))
    return seed if first and 0 <= seed <= MAX_SEED else drawn


def _check_negatives(negative: Prompts | None, count: int) -> list[str | None]:
    if negative is None:
        return [None] * count
    texts = [negative] * count if isinstance(negative, str) else _as_list(negative)
    if len(texts) != count:
        raise PromptError(f"There are {len(texts)} negative prompts for {count} prompts; give one or one each.")
    for text in texts:
        if text is not None:
            _check_text("negative prompt", text)
    return list(texts)


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise PromptError(f"The {name} is {type(text).__name__}; it must be text.")
    if len(text) > MAX_PROMPT:
        raise PromptError(f"The {name} has {len(text)} characters; at most {MAX_PROMPT} are read. Shorten it.")
    if half := next((each for each in text if "\ud800" <= each <= "\udfff"), ""):
        raise PromptError(
            f"The {name} holds U+{ord(half):X}, half a character (a lone surrogate), which is no text."
        )


def _check_count(name: str, value: object, most: int = MAX_IMAGES) -> int:
    count = value if type(value) is int else whole(value)
    if count is None or not 1 <= count <= most:
        raise RequestError(f"{name} is {shown(value)}; it must be a whole number from 1 to {most}.")
    return count


def _as_list(values: object) -> list:  # type: ignore[type-arg]
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise RequestError(f"{shown(values)} is {type(values).__name__}; give one value or a list of them.")
    items = []
    for item in values:
        items.append(item)
        if len(items) > MAX_IMAGES:
            raise RequestError(f"More than {MAX_IMAGES} values are given; one call makes at most {MAX_IMAGES}.")
    return items
