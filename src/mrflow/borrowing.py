"""The user's pipeline, lent for one call: held by one caller at a time, described, changed for a pass, given back.

What is changed is kept first and given back by value, also after an error or Ctrl-C: settings, the weight of LoRAs
in the text encoders, feature caches. Nothing is undone by arithmetic, nothing of ours stays behind.

A feature cache skips blocks whose output hardly changes from step to step. The refine pass has one step, at
another size; several would be too different to skip any. Known here: those of diffusers' `enable_cache` (diffusers
0.42.1: FirstBlockCache, TaylorSeer, MagCache and more) and cache-dit (1.5.3). Both forget their state when a
pipeline's call ends, so that nothing of the draft reaches the refine pass, nor of one call the next.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from mrflow.backbones.family import Pipeline
from mrflow.errors import BusyError, StoppedError
from mrflow.schedulers import check_scheduler

_locks: WeakKeyDictionary[Any, threading.Lock] = WeakKeyDictionary()
_locks_guard = threading.Lock()
_hashes: WeakIdKeyDictionary = WeakIdKeyDictionary()
_STOPPED = "The pipeline was told to stop (_interrupt), so no picture was finished. Call again."
_MAX_TEXT = 2000  # characters of one entry in a recipe
_USUAL_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
_PLAIN_WEIGHTS = ("Parameter", "Tensor")


@contextmanager
def borrowed(pipe: Pipeline) -> Iterator[None]:
    """Hold the pipeline for one call, its bar silent; afterwards, also after an error or Ctrl-C, it is as it was.

    Raises BusyError at once, rather than waiting, if another call holds it: a thread that waits for itself
    (a callback that calls back) would hang, and whoever wants a queue knows best what belongs in it.
    Raises RequestError for a scheduler that follows another law than flow matching.
    """
    check_scheduler(pipe)
    with _locks_guard:
        lock = _locks.setdefault(pipe, threading.Lock())
    if not lock.acquire(blocking=False):
        raise BusyError("The pipeline is in the middle of another call. Wait for it, or load a second pipeline.")
    bar = getattr(pipe, "_progress_bar_config", None)
    try:
        pipe.set_progress_bar_config(**{**(bar or {}), "disable": True})
        with torch.no_grad():
            yield
    finally:
        if bar is not None:
            pipe._progress_bar_config = bar
        elif hasattr(pipe, "_progress_bar_config"):
            del pipe._progress_bar_config
        try:
            pipe.maybe_free_model_hooks()  # as the plain pipeline's call ends: offloaded modules leave the device
        finally:
            lock.release()


def run_pipeline(
    pipe: Pipeline,
    lent: Mapping[str, Any],
    arguments: Mapping[str, Any],
    on_step: Callable[[int], None],
    *,
    before: int = 0,
    cached: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return what one run of the pipeline's own loop gives as latents, and what it held after the last step.

    lent: attributes of the pipeline meanwhile, above all its scheduler. arguments: of its call; a
    `callback_on_step_end` among them is called too. on_step: called with the number of steps done after each; what
    it raises ends the run. A step of a second-order scheduler is two calls of the transformer. before: steps that
    an earlier run has done, from which both callbacks count on. cached: with its feature caches.
    Raises StoppedError where somebody has set the pipeline's stop signal, `_interrupt`.
    """
    arguments, scheduler, held = dict(arguments), lent["scheduler"], list[Tensor]()
    theirs = arguments.pop("callback_on_step_end", None)

    def after_step(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if before and _is_one_of(scheduler.sigmas, index, timestep):  # CogView4Pipeline (0.42.1) gives a sigma
            timestep = scheduler.sigmas[index + before]
        latents, index = tensors["latents"], index + before * scheduler.order
        changed = (theirs(pipeline, index, timestep, tensors) if theirs is not None else None) or {}
        held[:] = [changed.get("latents", latents)]
        on_step(index // scheduler.order + 1)
        if getattr(pipe, "_interrupt", False):
            raise StoppedError(_STOPPED)
        return changed

    with lora_scales_kept(pipe), settings(pipe, lent), nullcontext() if cached else without_caches(pipe):
        result = pipe(**arguments, output_type="latent", callback_on_step_end=after_step)
    if getattr(pipe, "_interrupt", False):  # by another thread: the loop then leaves out what is left
        raise StoppedError(_STOPPED)
    return result.images, held[0] if held else result.images


@contextmanager
def settings(thing: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Give attributes of a pipeline, or of a part, these values for one pass; afterwards they are as they were."""
    own = {name: vars(thing)[name] for name in values if name in vars(thing)}
    try:
        for name, value in values.items():
            setattr(thing, name, value)
        yield
    finally:
        for name in values:
            if name in own:
                setattr(thing, name, own[name])
            else:  # its class has it
                vars(thing).pop(name, None)


@contextmanager
def lora_scales_kept(pipe: Pipeline, text_scale: float | None = None) -> Iterator[None]:
    """Give LoRAs their weights back afterwards; diffusers (0.42.1) leaves 1 behind where a call scales them by 0.

    text_scale: weighs those of the text encoders meanwhile, as the pipeline's call would, which encodes no text
    for us (pipeline_flux.py, encode_prompt).
    """
    with ExitStack() as stack:
        for name, part in pipe.components.items():
            for layer in part.modules() if hasattr(part, "peft_config") else ():
                if hasattr(layer, "lora_alpha"):
                    stack.callback(layer.scaling.update, dict(layer.scaling))
                    if text_scale is not None and name.startswith("text_encoder"):
                        layer.scale_layer(text_scale)
        yield


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


def describe(pipe: Pipeline) -> dict[str, str]:
    """Return what shapes a picture besides checkpoint, plan and prompt, name to short text; usually nothing.

    lora.NAME: its weight, or weights where layers differ, behind its kind where that is another, such as loha.
    lora.NAME.sha256: of its tensors, for diffusers (0.42.1) keeps no file's name.
    lora: those fused into the weights. scheduler, cache, weights (the transformer's), weights.NAME (a text
    encoder's): where they are not the usual ones. cast: parts whose weights are stored in a smaller type.
    compiled: parts that torch.compile runs. vae: "tiled". Making a picture again needs the same; nothing here can
    put it back.
    """
    adapters = _adapters(pipe)
    found = {f"lora.{name}": weight for name, weight in adapters.items()}
    found |= {f"lora.{name}.sha256": _hash_adapter(pipe, name) for name in adapters}
    if fused := sorted(getattr(pipe, "fused_loras", ())):
        found["lora"] = "fused " + ", ".join(fused)
    if type(pipe.scheduler).__name__ != _USUAL_SCHEDULER:
        found["scheduler"] = type(pipe.scheduler).__name__
    if cache := describe_cache(pipe):
        found["cache"] = cache
    casts, compiled = dict[str, str](), set[str]()
    for name, layer in _layers(pipe):
        hooks = getattr(layer, "_diffusers_hook", None)
        if cast := hooks and hooks.get_hook("layerwise_casting"):
            casts[name] = f"{name} {str(cast.storage_dtype).removeprefix('torch.')}"
        if hasattr(layer, "_orig_mod") or getattr(layer, "_compiled_call_impl", None) is not None:
            compiled.add(name)
    found |= {"cast": ", ".join(casts.values())} if casts else {}
    found |= {"compiled": ", ".join(sorted(compiled))} if compiled else {}
    for name in ("transformer", *(part for part in pipe.components if part.startswith("text_encoder"))):
        weights: Iterable[Any] = getattr(getattr(pipe, name), "parameters", tuple)()
        if quantised := sorted({type(each).__name__ for each in weights}.difference(_PLAIN_WEIGHTS)):
            found["weights" if name == "transformer" else f"weights.{name}"] = ", ".join(quantised)
    if getattr(getattr(pipe, "vae", None), "use_tiling", False):
        found["vae"] = "tiled"
    return {name: text[:_MAX_TEXT] for name, text in found.items()}


def describe_cache(pipe: Pipeline) -> str | None:
    """Return the settings of the pipeline's feature cache as text, None without one."""
    for component in pipe.components.values():
        config = getattr(component, "_cache_config", None)
        if config is not None:
            return repr(config)
        if getattr(component, "_is_cached", False):
            known: Any = (getattr(component, "_context_kwargs", None) or {}).get("cache_config")
            return f"cache-dit {known.strify()}" if hasattr(known, "strify") else "cache-dit"
    return None


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


def _layers(pipe: Pipeline) -> Iterator[tuple[str, Any]]:
    """Yield each module of the pipeline with the name of its component."""
    for name, part in pipe.components.items():
        yield from ((name, layer) for layer in part.modules()) if isinstance(part, torch.nn.Module) else ()


def _adapters(pipe: Pipeline) -> dict[str, str]:
    """Return peft's active adapters and their weights, 1 being the file's own; several where layers differ."""
    found: dict[tuple[str, str], set[float]] = {}
    for _, layer in _layers(pipe):
        kind = type(layer).__module__.removeprefix("peft.tuners.").split(".")[0]
        for name in layer.active_adapters if hasattr(layer, "adapter_layer_names") else ():
            holders = (getattr(layer, held, ()) for held in layer.adapter_layer_names)
            if any(name in holder for holder in holders) and not layer.disable_adapters:
                found.setdefault((name, kind), set()).add(_weight(layer, name))
    texts = {key: ", ".join(f"{weight:g}" for weight in sorted(weights)) for key, weights in sorted(found.items())}
    return {name: text if kind == "lora" else f"{kind} {text}" for (name, kind), text in texts.items()}


def _hash_adapter(pipe: Pipeline, name: str) -> str:
    """Return the SHA-256 of an adapter's tensors, layer by layer; of those on no device (meta) the shapes."""
    whole = hashlib.sha256()
    for _, layer in _layers(pipe):
        for held in getattr(layer, "adapter_layer_names", ()):
            part = dict(getattr(layer, held).items()).get(name)
            for tensor in (
                part.parameters() if isinstance(part, torch.nn.Module) else filter(torch.is_tensor, [part])
            ):
                whole.update(_hash(tensor))
    return whole.hexdigest()


def _hash(tensor: Tensor) -> bytes:
    """Return the SHA-256 of a tensor's values, reckoned once for as long as they are the same."""
    if tensor not in _hashes or _hashes[tensor][0] != tensor._version:
        data = repr(tensor.shape).encode() if tensor.is_meta else tensor.detach().cpu().float().numpy().tobytes()
        _hashes[tensor] = tensor._version, hashlib.sha256(data).digest()
    digest: bytes = _hashes[tensor][1]
    return digest


def _weight(layer: Any, name: str) -> float:
    alpha = getattr(layer, "lora_alpha", getattr(layer, "alpha", {}))
    if name not in alpha:
        return 1.0  # kinds without one, such as OFT
    rank = layer.r[name] ** 0.5 if getattr(layer, "use_rslora", {}).get(name) else layer.r[name]
    return round(float(layer.scaling[name] * rank / alpha[name]), 6)


def _is_one_of(sigmas: Tensor, index: int, value: Any) -> bool:
    """Return whether `value` is `sigmas[index]` itself, not merely equal to it."""
    return isinstance(value, Tensor) and value.data_ptr() == sigmas[index].data_ptr()
