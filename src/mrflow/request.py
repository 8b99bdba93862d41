"""What a caller asks for, checked once: prompts, negative prompts, seeds and counts become one job per picture."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mrflow.errors import PromptError, RequestError
from mrflow.recipe import MAX_SEED

MAX_PROMPT = 10_000  # characters; the longest text a supported model reads is 512 tokens
MAX_IMAGES = 1000  # of one call; more belong in several calls, since all results are held in memory
_DRAWN_SEEDS = 2**32  # short enough to type

Seeds = int | Iterable[int] | None


@dataclass(frozen=True)
class Job:
    """One picture to make. negative_prompt: None takes the model's default where one is needed."""

    prompt: str
    negative_prompt: str | None
    seed: int


def make_jobs(
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None = None,
    seed: Seeds = None,
    num_images: int = 1,
) -> list[Job]:
    """Return one job per picture, the `num_images` of each prompt side by side.

    negative_prompt: one for all, or one per prompt. seed: see `make_seeds`; a sequence of seeds for a single
    prompt makes one picture per seed.
    Raises PromptError or RequestError.
    """
    prompts = check_prompts(prompt)
    negatives = _check_negatives(negative_prompt, len(prompts))
    _check_count(num_images)
    seeds = seed if seed is None or _is_int(seed) else _as_list(seed)
    if isinstance(seeds, list) and len(prompts) == 1 and num_images == 1:
        num_images = len(seeds)
    total = len(prompts) * num_images
    if total > MAX_IMAGES:
        raise RequestError(f"{total} pictures are asked for; one call makes at most {MAX_IMAGES}.")
    pairs = [pair for pair in zip(prompts, negatives, strict=True) for _ in range(num_images)]
    return [Job(*pair, s) for pair, s in zip(pairs, make_seeds(seeds, total), strict=True)]


def check_prompts(prompt: str | Sequence[str]) -> list[str]:
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
    """Return `count` seeds: seed, seed + 1, ... of an int, the given ones of a sequence, or drawn ones of None.

    Raises RequestError unless all are whole numbers from 0 to 2**63 - 1 and a sequence has `count` of them.
    """
    if seed is None:
        return [secrets.randbelow(_DRAWN_SEEDS) for _ in range(count)]
    seeds = [seed + k for k in range(count)] if isinstance(seed, int) and _is_int(seed) else _as_list(seed)
    if len(seeds) != count:
        raise RequestError(f"There are {len(seeds)} seeds for {count} pictures; give one number or one each.")
    for value in seeds:
        if not _is_int(value) or not 0 <= value <= MAX_SEED:
            raise RequestError(f"seed is {value!r:.80}; it must be a whole number from 0 to {MAX_SEED}.")
    return seeds


def _check_negatives(negative: str | Sequence[str] | None, count: int) -> list[str | None]:
    if negative is None:
        return [None] * count
    texts = [negative] * count if isinstance(negative, str) else _as_list(negative)
    if len(texts) != count:
        raise PromptError(f"There are {len(texts)} negative prompts for {count} prompts; give one or one each.")
    for text in texts:
        _check_text("negative prompt", text)
    return list(texts)


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise PromptError(f"The {name} is {type(text).__name__}; it must be text.")
    if len(text) > MAX_PROMPT:
        raise PromptError(f"The {name} has {len(text)} characters; at most {MAX_PROMPT} are read. Shorten it.")


def _check_count(num_images: object) -> None:
    if not _is_int(num_images) or not 1 <= num_images <= MAX_IMAGES:  # type: ignore[operator]
        raise RequestError(f"num_images is {num_images!r:.80}; it must be a whole number from 1 to {MAX_IMAGES}.")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _as_list(values: object) -> list:  # type: ignore[type-arg]
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise RequestError(f"{values!r:.80} is {type(values).__name__}; give one value or a list of them.")
    items = []
    for item in values:
        items.append(item)
        if len(items) > MAX_IMAGES:
            raise RequestError(f"More than {MAX_IMAGES} values are given; one call makes at most {MAX_IMAGES}.")
    return items
