"""Feature caches around a run: what a user could switch on instead of staged sampling, or inside it.

first-block@0.1   diffusers' FirstBlockCache: a step is skipped while the first block's output changed less
taylorseer@4      diffusers' TaylorSeer: every fourth step is computed, those between are extrapolated
cache-dit@0.1     cache-dit's DBCache, where that package is installed

In a staged run a cache works in the draft alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mrflow.errors import MissingExtraError, ModelError, PlanError

if TYPE_CHECKING:
    from mrflow.backbones.family import Pipeline

_WARM = 3  # steps computed before anything is reused: TaylorSeer's own default, taken for cache-dit too


@dataclass(frozen=True)
class Cache:
    """kind: one of CACHES. level: its threshold, or every how manyth step is computed."""

    kind: str
    level: float


def read_cache(text: str) -> Cache:
    """Return the cache of "kind@level".

    Raises PlanError for what is none, MissingExtraError for one whose package is not installed.
    """
    kind, _, level = text.partition("@")
    if kind not in CACHES:
        raise PlanError(f"There is no cache {kind[:40]!r}. Known: {', '.join(CACHES)}, as in first-block@0.1.")
    try:
        value = float(level)
    except ValueError:
        raise PlanError(
            f"The cache is {text[:60]!r}; after @ comes a number, as in {kind}@{_USUAL[kind]}."
        ) from None
    if kind == "taylorseer" and (not value.is_integer() or not 1 <= value <= 100):
        raise PlanError(f"taylorseer@{level[:20]}: it must be a whole number of steps from 1 to 100. Try 4.")
    if not 0 <= value <= 100:
        raise PlanError(f"{kind}@{level[:20]}: it must lie between 0 and 100. Try {_USUAL[kind]}.")
    if kind == "cache-dit" and find_spec("cache_dit") is None:
        raise MissingExtraError("cache-dit", "caches")
    return Cache(kind, value)


@contextmanager
def cached(pipe: Pipeline, cache: Cache | None, *, guided: bool = True) -> Iterator[None]:
    """Have the pipeline run with a cache meanwhile. guided: two branches a step, each in a run of its own.

    Raises ModelError if the pipeline's transformer takes no such cache, or has one already.
    """
    if cache is None:
        yield
        return
    release = CACHES[cache.kind](pipe, cache.level, guided)
    try:
        yield
    finally:
        release()


def _enable(pipe: Pipeline, config: Any) -> Callable[[], None]:
    transformer = pipe.transformer
    if not hasattr(transformer, "enable_cache"):
        raise ModelError(f"{type(transformer).__name__} takes none of diffusers' caches. Leave out cache=.")
    try:
        transformer.enable_cache(config)
    except ValueError as error:
        raise ModelError(f"The cache cannot be switched on: {error}") from error
    disable: Callable[[], None] = transformer.disable_cache
    return disable


def _first_block(pipe: Pipeline, level: float, guided: bool) -> Callable[[], None]:
    from diffusers import FirstBlockCacheConfig

    return _enable(pipe, FirstBlockCacheConfig(threshold=level))


def _taylorseer(pipe: Pipeline, level: float, guided: bool) -> Callable[[], None]:
    from diffusers import TaylorSeerCacheConfig

    config = TaylorSeerCacheConfig(
        cache_interval=int(level),
        disable_cache_before_step=_WARM,
        taylor_factors_dtype=pipe.transformer.dtype,
        use_lite_mode=True,  # whole blocks are skipped; else attention alone, which saves a fraction
    )
    return _enable(pipe, config)


def _cache_dit(pipe: Pipeline, level: float, guided: bool) -> Callable[[], None]:
    import cache_dit

    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        max_warmup_steps=_WARM,
        residual_diff_threshold=level,
        enable_separate_cfg=guided,
    )
    forwards = {module: module.__dict__.get("forward") for module in pipe.transformer.modules()}
    try:
        cache_dit.enable_cache(pipe, cache_config=config)
    except (ValueError, AssertionError, AttributeError) as error:
        raise ModelError(f"cache-dit does not take {type(pipe).__name__}: {error}") from error

    def release() -> None:
        # cache-dit 1.5.3 leaves the forwards that it has put into FLUX's blocks and transformer; diffusers' caches
        # fail on them, and a plain run would go through them
        cache_dit.disable_cache(pipe)
        for module, forward in forwards.items():
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.__dict__["forward"] = forward
        pipe.transformer.__dict__.pop("_is_patched", None)

    return release


CACHES: dict[str, Callable[[Any, float, bool], Callable[[], None]]] = {
    "first-block": _first_block,
    "taylorseer": _taylorseer,
    "cache-dit": _cache_dit,
}
_USUAL = {"first-block": 0.1, "taylorseer": 4, "cache-dit": 0.1}
