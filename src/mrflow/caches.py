"""Feature caches: what the caller switched on for many similar steps, switched off for the refine pass.

A cache skips blocks whose output hardly changes from step to step. The refine pass has one step, at another
size; several would be too different to skip any. Known here: those of diffusers' `enable_cache` (diffusers 0.42.1:
FirstBlockCache, TaylorSeer, MagCache and more) and cache-dit (1.5.3). Both forget their state when a pipeline's
call ends, so that nothing of the draft reaches the refine pass, nor of one call the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from mrflow.backbones import Pipeline


@contextmanager
def without_caches(pipe: Pipeline) -> Iterator[None]:
    """Run the body without feature caches; afterwards, also after an error, they are as they were."""
    with ExitStack() as stack:
        for component in pipe.components.values():
            if getattr(component, "_cache_config", None) is not None:
                stack.enter_context(_without_diffusers_cache(component))
            if getattr(component, "_is_cached", False) and hasattr(component, "_original_forward"):
                stack.enter_context(_without_cache_dit(component))
        yield


@contextmanager
def _without_diffusers_cache(transformer: Any) -> Iterator[None]:
    config = transformer._cache_config
    transformer.disable_cache()
    try:
        yield
    finally:
        transformer.enable_cache(config)


@contextmanager
def _without_cache_dit(transformer: Any) -> Iterator[None]:
    """Put back the forward that cache-dit replaced, for a while.

    Its own `disable_cache` would forget the settings. An offloading hook of accelerate's, which cache-dit calls
    from its forward, is called from ours.
    """
    cached, original = transformer.forward, transformer._original_forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        hook = getattr(transformer, "_hf_hook", None)
        if hook is None:
            return original(*args, **kwargs)
        args, kwargs = hook.pre_forward(transformer, *args, **kwargs)
        return hook.post_forward(transformer, original(*args, **kwargs))

    transformer.forward = forward
    try:
        yield
    finally:
        transformer.forward = cached


def describe_cache(pipe: Pipeline) -> str | None:
    """Return the settings of the pipeline's feature cache as text, None without one."""
    for component in pipe.components.values():
        config = getattr(component, "_cache_config", None)
        if config is not None:
            return repr(config)
        if getattr(component, "_is_cached", False):
            settings: Any = (getattr(component, "_context_kwargs", None) or {}).get("cache_config")
            return f"cache-dit {settings.strify()}" if hasattr(settings, "strify") else "cache-dit"
    return None
