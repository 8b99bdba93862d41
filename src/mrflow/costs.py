"""What a plan will cost, before anything is fetched: operations and bytes by stage, of the true architecture.

The method itself runs, mrflow.steps over the pipeline's own loop, but its networks are hollow: they have shapes
and no weights. A call of one is made on the meta device, where torch counts its operations (FlopCounterMode) and
we the bytes that are alive at once; it is answered with ones. Calls of equal shapes are counted once, and equal
blocks, too. So each number of a plan counts as it runs, in every family, and none has to be known here.

Operations are multiplications and additions of matrix products, attention and convolutions; what else there is
costs time, but next to no operations. A ratio of them is one of seconds only as far as a device does both alike.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode

from mrflow import vista
from mrflow.architectures import assemble, make_component, make_upscaler, read_architecture, read_folder
from mrflow.backbones import get_backbone
from mrflow.backbones.checkpoints import checkpoint_defaults
from mrflow.borrowing import borrowed
from mrflow.errors import RequestError
from mrflow.jobs import Asked
from mrflow.known_models import BITS, find
from mrflow.model import VAE_TILE, Model
from mrflow.plan import Plan, get_plan, named_plan
from mrflow.progress import Progress
from mrflow.steps import Batch, Run, draft, encode_prompts, finish, native
from mrflow.tiling import Enough
from mrflow.upscaler import Upscaler

PROMPT = (
    "A lighthouse on a rocky coast at dusk, waves breaking below it, a small red boat coming home, warm light in "
    "the windows of a cottage nearby, heavy clouds with a strip of orange sky at the horizon, oil on canvas"
)
"""Of usual length, for models that read texts as long as they are."""
WORKSPACE = 3
"""Times their activations, what convolutions take on a GPU: FLUX.1-dev's autoencoder, of which we count 1.5 GiB at
1024x1024, took 4.5 to 4.7 (huggingface.co/datasets/derekl35/diffusers-quantization-benchmarks)."""
_LARGE = 0.1  # of all parameters: text encoders from this share on are quantised, as CLIP beside T5 is not
SIDES = (256, 512, 768, 1024, 1536, 2048)
"""Pixels a side of the tiles that are tried where memory is bounded."""
_HELD = (("whole", False), ("whole", True), ("8-bit", False), ("8-bit", True), ("4-bit", False), ("4-bit", True))
_BESIDE = 2 * 12  # bytes a pixel, of the two pictures that lie beside an autoencoder in tiles
_MASK = 2**14  # values, at most, of a tensor of whole numbers that may be a mask


@dataclass
class Stage:
    """One stage of a way. operations: as torch counts them. activations: the most bytes alive at once within a
    network, its inputs and outputs among them. parts: the networks that run."""

    operations: int = 0
    activations: int = 0
    parts: set[str] = field(default_factory=set)

    def working(self, device: str) -> int:
        """Return the bytes of its activations on a type of device, with the room that convolutions work in."""
        convolving = device != "cpu" and all(part.startswith(("vae", "upscaler")) for part in self.parts)
        return self.activations * (WORKSPACE if convolving else 1)


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to make a picture, native or by a plan. calls: of the transformer. tiled: whether it is cut."""

    name: str
    stages: Mapping[str, Stage]
    calls: int
    tiled: bool = False

    @property
    def operations(self) -> int:
        """Of all stages."""
        return sum(stage.operations for stage in self.stages.values())


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a picture costs, native first, then by each plan.

    parameters: of each network, those and lasting tables. linear: of these, the weights of linear layers. kept: of
    these, those that bitsandbytes leaves as they are. largest: those of its largest layer. stored: bytes of
    networks whose files hold them quantised.
    dtype: of weights and activations.
    """

    model: str
    width: int
    height: int
    dtype: torch.dtype
    parameters: Mapping[str, int]
    linear: Mapping[str, int]
    kept: Mapping[str, int]
    largest: Mapping[str, int]
    stored: Mapping[str, int]
    ways: Sequence[Way]

    @property
    def quantised(self) -> list[str]:
        """The networks of which quantising takes the linear layers: transformers and large text encoders."""
        least, sizes = _LARGE * sum(self.parameters.values()), self.parameters
        large = [part for part in sizes if part.startswith("text_encoder") and sizes[part] >= least]
        return [part for part in sizes if part.startswith("transformer") or part in large]

    def speedup(self, way: Way) -> float:
        """Return how many times fewer operations `way` takes than native: its gain at equal utilisation."""
        return self.ways[0].operations / way.operations

    def weights(self, part: str, held: str = "whole") -> int:
        """Return the bytes of a network's weights, `held` as one of BITS; 4 bits have a scale, 4 bytes, for 64."""
        if part in self.stored:
            return self.stored[part]
        linear = self.linear[part] if held != "whole" and part in self.quantised else 0
        linear -= self.kept[part] if linear and BITS[held] == 4 else 0
        scales = linear // 16 if BITS[held] == 4 else 0
        return (self.parameters[part] - linear) * self.dtype.itemsize + linear * BITS[held] // 8 + scales

    def memory(
        self, way: Way, held: str = "whole", *, offload: str = "none", tiled: bool = False, device: str = "cuda"
    ) -> dict[str, int]:
        """Return the bytes that each stage of a way needs at once: weights and activations.

        held: see `weights`. offload: with "none" all networks lie on the device throughout, with "model" those
        that the stage runs, with "group" or "sequential" one of their layers. tiled: the autoencoder in tiles.
        device: its type. What its libraries need themselves comes on top, and the pictures between the networks,
        12 bytes a pixel; those beside an autoencoder in tiles, two, count.
        """
        needed, share = {}, min(VAE_TILE**2 / (self.width * self.height), 1)
        for name, stage in way.stages.items():
            parts = self.parameters if offload == "none" else stage.parts
            sizes = {part: self.weights(part, held) for part in parts}
            if offload in ("group", "sequential"):
                sizes = {part: sizes[part] * self.largest[part] // self.parameters[part] for part in parts}
            activations = stage.working(device)
            if tiled and any(part.startswith("vae") for part in stage.parts):
                activations = round(activations * share)
            if (tiled or way.tiled) and name in ("encode", "decode"):
                activations += _BESIDE * self.width * self.height
            needed[name] = sum(sizes.values()) + activations
        return needed

    def within(self, way: Way, max_memory: int) -> tuple[str, bool] | None:
        """Return how the weights may be held (see `memory`: held, offload) so that no stage needs more than that.

        Whole before in 8 or 4 bits, without offload before with; None where none will do.
        """
        fitting = (each for each in _HELD if self.peak(way, *each) <= max_memory)
        return next(fitting, None)

    def peak(self, way: Way, held: str = "whole", offload: bool = False) -> int:
        """Return the bytes of the stage that needs most."""
        return max(self.memory(way, held, offload="model" if offload else "none").values())

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        sizes = {part: self.weights(part) for part in self.parameters}
        head = {"model": self.model, "width": self.width, "height": self.height, "weights": sizes}
        ways = []
        for way in self.ways:
            told = {"name": way.name, "operations": way.operations, "speedup": self.speedup(way)}
            stages = {}
            for name, stage in way.stages.items():
                share, weights = stage.operations / way.operations, sum(sizes[part] for part in stage.parts)
                own = {"operations": stage.operations, "share": share, "activations": stage.activations}
                stages[name] = {**own, "weights": weights}
            ways.append({**told, "transformer_calls": way.calls, "stages": stages})
        return {**head, "dtype": str(self.dtype).removeprefix("torch."), "ways": ways}


def estimate(
    name: str,
    *,
    width: int | None = None,
    height: int | None = None,
    plans: Sequence[Plan | str] | Mapping[str, Plan] = (),
    native_steps: int | None = None,
    prompt: str = PROMPT,
    upscaler: Upscaler | str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    max_memory: int | None = None,
    stored: Mapping[str, int] | None = None,
) -> Estimate:
    """Return what a picture costs natively and by each plan; nothing is fetched, no weights are read or made.

    name: a known model with an architecture, or its hub id; "vista", "vista-turbo"; or a folder in diffusers'
    layout. plans: none is the model's own; a mapping names them. native_steps, width, height: None is the model's
    own. upscaler: None is vista's own, else Real-ESRGAN x2. dtype: of weights and activations. max_memory: bytes;
    plans that say nothing of tiles take the largest with which their weights are held best within it
    (`Estimate.within`). stored: see Estimate.
    Raises RequestError for a model that is not described, ModelError for a folder that is broken, PlanError,
    SizeError, UpscalerError.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # words that a tokenizer cut off, which is not the model's own
        model, tally = hollow_model(name, upscaler, dtype)
        chosen = _named(plans or [model.defaults.plan])
        steps = native_steps or model.defaults.native_steps
        size = model.resolve_size(width, height)
        asked = Asked(prompt=prompt, seed=0, width=size[0], height=size[1])
        plain = replace(asked, plan=replace(get_plan(), steps=steps))
        ways = [tally.way(model, f"native:{steps}", plain, plain=True)]
        about: dict[str, Any] = {"model": model.name, "width": size[0], "height": size[1], "dtype": dtype}
        sizes: dict[str, Any] = {
            name: getattr(tally, name) for name in ("parameters", "linear", "kept", "largest")
        }
        found = Estimate(**about, **sizes, stored={**tally.stored, **(stored or {})}, ways=ways)
        for label, plan in chosen:
            sigma = plan.refine_sigma if plan.switches else 0.12  # auto is to be measured, and any costs the same
            planned = replace(asked, plan=replace(plan, refine_sigma=sigma))
            ways.append(tally.way(model, label, planned))
            if max_memory is not None and plan.tile is None:
                ways[-1] = _fit(found, ways[-1], partial(_cut, tally, model, label, planned), max_memory)
    return found


def _cut(tally: Tally, model: Model, label: str, asked: Asked, tile: int) -> Way:
    plan = replace(get_plan(asked.plan), tile=tile)
    return tally.way(model, f"{label}{',' if ':' in label else ':'}tile={tile}", replace(asked, plan=plan))


def _fit(found: Estimate, best: Way, cut: Callable[[int], Way], max_memory: int) -> Way:
    """Return `best`, or what `cut` gives for the largest tiles with which the weights are held better."""
    held = found.within(best, max_memory)
    for tile in reversed([side for side in SIDES if side < max(found.width, found.height)]):
        if held == _HELD[0]:
            break
        tried = cut(tile)
        better = found.within(tried, max_memory)
        if better and (held is None or _HELD.index(better) < _HELD.index(held)):
            best, held = tried, better
    return best


def largest_tile(model: Model, max_memory: int) -> int:
    """Return the most pixels a side that a loaded model's networks can be given whole within so many bytes.

    By counting, its weights where they are: on the device together, or one by one where they are offloaded.
    Raises RequestError where not even the smallest of SIDES fits.
    """
    (twin, tally), device = hollow_twin(model), model.device.type
    modules = {k: v for k, v in model.pipe.components.items() if isinstance(v, torch.nn.Module)}
    sizes = {name: sum(w.nbytes for w in (*part.parameters(), *part.buffers())) for name, part in modules.items()}
    sizes["upscaler"] = tally.parameters.get("upscaler", 0) * 4
    offloaded = any(hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook") for part in modules.values())
    need, found = 0, 0
    for side in SIDES:
        asked = Asked(prompt="a lake at dusk", seed=0, width=side, height=side, plan=Plan(steps=1, tile="whole"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of words that a model doesn't know
            stages = tally.way(twin, "", asked).stages.values()
        need = max(
            each.working(device) + sum(sizes[part] for part in (each.parts if offloaded else sizes))
            for each in stages
        )
        if need > max_memory:
            break
        found = side
    if not found:
        text = f"max_memory is {max_memory / 1e9:.3g} GB and {model.name} needs {need / 1e9:.3g} GB"
        raise RequestError(
            f"{text} for tiles of {side}. Offload it (pipe.enable_model_cpu_offload()), quantise it or allow more."
        )
    return found


def hollow_twin(model: Model) -> tuple[Model, Tally]:
    """Return a loaded model again, of hollow networks of the same shapes, and what counts their work."""
    from accelerate import init_empty_weights

    tally, parts = Tally(), dict(model.pipe.components)
    with init_empty_weights(include_buffers=True):
        for name, part in parts.items():
            if isinstance(part, torch.nn.Module):
                kind: Any = type(getattr(part, "_orig_mod", part))
                parts[name] = kind.from_config(part.config) if hasattr(kind, "from_config") else kind(part.config)
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            tally.hollow(name, part, model.dtype)
    accepted = inspect.signature(type(model.pipe).__init__).parameters
    options = {name: value for name, value in model.pipe.config.items() if name in accepted and name not in parts}
    pipe, lift = type(model.pipe)(**parts, **options), model.upscaler.ready()
    if lift.factor is not None:
        lift = Upscaler(lift.name, _Lift(copy.deepcopy(lift.network), tally, torch.float32))
    return replace(model, pipe=pipe, upscaler=lift, side=None), tally


def _named(plans: Sequence[Plan | str] | Mapping[str, Plan]) -> list[tuple[str, Plan]]:
    if isinstance(plans, Mapping):
        return list(plans.items())
    return [(each, named_plan(each)) if isinstance(each, str) else (each.label, get_plan(each)) for each in plans]


def hollow_model(name: str, upscaler: Upscaler | str | None, dtype: torch.dtype) -> tuple[Model, Tally]:
    """Return a model of hollow networks, and what counts their work."""
    known = find(name)
    if name in vista.DEFAULTS:
        spec, upscaler = read_folder(vista.folder(name)), upscaler or str(vista.upscaler())
    elif os.path.isdir(name):
        spec = read_folder(Path(name))
    else:
        spec = read_architecture(known.name if known else name)
    backbone, tally = get_backbone(spec["pipeline"]), Tally()
    parts = {part: make_component(about, "meta") for part, about in spec["components"].items()}
    for part, network in parts.items():
        if isinstance(network, torch.nn.Module):
            tally.hollow(part, network, dtype)
    tally.stored = {part: about["bytes"] for part, about in spec["components"].items() if "bytes" in about}
    pipe = assemble(spec, parts)
    if hasattr(pipe, "text_preprocessor"):  # PRX's, which wants ftfy; it hardly changes how long a text is
        pipe.text_preprocessor.clean_text = str.lower
    lift = make_upscaler(spec["upscaler"]) if upscaler is None else Upscaler.load(upscaler)
    if lift.network is not None:
        lift = Upscaler(lift.name, _Lift(lift.network, tally, torch.float32 if lift.latents else dtype))
    name = known.id if known else name
    defaults = vista.DEFAULTS.get(name) or checkpoint_defaults(pipe, name)
    return Model(pipe=pipe, backbone=backbone, upscaler=lift, defaults=defaults, name=name), tally


class Tally:
    """Counts the work of hollow networks by stage. parameters, linear, kept, largest, stored: see Estimate."""

    def __init__(self) -> None:
        self.parameters: dict[str, int] = {}
        self.linear: dict[str, int] = {}
        self.kept: dict[str, int] = {}
        self.largest: dict[str, int] = {}
        self.stored: dict[str, int] = {}
        self._stages: dict[str, Stage] = {}
        self._stage = ""
        self._calls = 0
        self._known: dict[Any, tuple[int, int, Any]] = {}
        self._counting: _Counting | None = None

    def way(self, model: Model, name: str, asked: Asked, *, plain: bool = False) -> Way:
        """Return what a picture costs that is made as asked; plain: by the plain pipeline."""
        self._stages, self._calls = {}, 0
        with borrowed(model.pipe):
            run = Run.over(model, self._told)
            batch = encode_prompts(run, Batch(model.resolve([asked], native=plain)))
            native(run, batch) if plain else finish(run, batch, *draft(run, batch))
            tiled = not plain and batch.plan.cut(*batch.size) is not None
        return Way(name=name, stages=self._stages, calls=self._calls, tiled=tiled)

    def _told(self, news: Progress) -> None:
        self._stage = news.stage

    def hollow(self, part: str, network: torch.nn.Module, dtype: torch.dtype) -> None:
        """Make a network answer calls with ones, on the CPU, and count what they would have cost."""
        torch.nn.Module.to(network, dtype)  # diffusers' own warns of parts that it would keep in float32
        network.eval().requires_grad_(False)
        self.weigh(part, network)
        for blocks in network.modules():
            if isinstance(blocks, torch.nn.modules.batchnorm._BatchNorm):  # pipelines read its statistics
                blocks.running_mean, blocks.running_var = torch.ones(2, blocks.num_features)
        self.repeat_blocks(network)
        kind, tally = type(network), self

        def counted(method: str) -> Callable[..., Any]:
            own = getattr(kind, method)
            return lambda network, *args, **kwargs: tally.run(part, own, network, *args, **kwargs)

        methods = {name: counted(name) for name in ("forward", "encode", "decode") if hasattr(kind, name)}
        device = property(lambda network: torch.device("meta" if tally._counting else "cpu"))
        same = {name: getattr(kind, name) for name in ("__module__", "__qualname__")}  # transformers asks for them
        network.__class__ = type(kind.__name__, (kind,), {**same, **methods, "device": device})

    def repeat_blocks(self, network: torch.nn.Module) -> None:
        """Have equal blocks in a network's lists run once for each shape of what they are given."""
        lists = [each for each in network.modules() if isinstance(each, torch.nn.ModuleList | torch.nn.Sequential)]
        for block in (block for blocks in lists for block in blocks if block and list(block.children())):
            shapes = tuple(each.shape for each in block.parameters())
            block.forward = partial(self._run_block, block.forward, (type(block), repr(block), shapes))

    def weigh(self, part: str, network: torch.nn.Module) -> None:
        """Count a network's parameters."""
        lasting = network.state_dict(keep_vars=True).values()
        self.parameters[part] = sum(each.numel() for each in {id(each): each for each in lasting}.values())
        layers = [(name, each) for name, each in network.named_modules() if not list(each.children())]
        linear = {
            name: each.weight.numel()
            for name, each in layers
            if isinstance(each, torch.nn.Linear) and "lm_head" not in name
        }
        self.linear[part] = sum(linear.values())
        left = getattr(network, "_keep_in_fp32_modules", None) or ()  # of T5 the last layer of each block's MLP
        self.kept[part] = sum(count for name, count in linear.items() if name.rpartition(".")[2] in left)
        self.largest[part] = max(sum(each.numel() for each in layer.state_dict().values()) for _, layer in layers)

    def run(self, part: str, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return ones where a network's `own` method would return something, and count what it costs."""
        if self._counting:
            return own(*args, **kwargs)
        lent = vars(args[0]).get(own.__name__) if part == "vae" else None  # while it works in tiles
        key = part, own, lent, _shapes((args, kwargs))
        if key not in self._known:
            self._known[key] = self._count(own, *args, **kwargs)
        operations, activations, answer = self._known[key]
        stage = self._stages.setdefault(self._stage, Stage())
        stage.operations += operations
        stage.activations = max(stage.activations, activations)
        stage.parts.add(part)
        self._calls += part.startswith("transformer")
        if isinstance(answer, Exception):
            raise _ones(answer)
        return tree_map(_ones, answer)

    def _count(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[int, int, Any]:
        self._counting = counting = _Counting()
        try:
            with counting.modes():
                args, kwargs = tree_map(lambda leaf: leaf if _is_mask(leaf) else _emptied(leaf), (args, kwargs))
                answer = own(*args, **kwargs)
        except Enough as ended:  # at the middle block of an autoencoder that works in tiles
            answer = Enough(ended.made)
        finally:
            self._counting = None
        return counting.operations, counting.peak, answer

    def _run_block(self, own: Callable[..., Any], kind: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what a block returns; of equal blocks on equal shapes only the first is really run."""
        counting, key = self._counting, (kind, _shapes((args, kwargs)))
        if counting is None:
            return own(*args, **kwargs)
        if key not in self._known:
            with counting.apart() as cost:
                answer = own(*args, **kwargs)
            leaves, spec = tree_flatten(answer)
            like = [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            self._known[key] = cost[0], cost[1], (like, spec)
            return answer
        operations, peak, (like, spec) = self._known[key]
        counting.repeat(operations, peak)
        new = (
            torch.empty(each[0], dtype=each[1], device="meta") if isinstance(each, tuple) else each
            for each in like
        )
        return tree_unflatten(new, spec)


class _Lift:
    """A network of spandrel's or of latents, hollow, as Upscaler asks for one."""

    supports_bfloat16, device, dtype = False, torch.device("cpu"), torch.float32

    def __init__(self, network: Any, tally: Tally, dtype: torch.dtype) -> None:
        known = ("scale", "size_requirements", "channels")
        vars(self).update({name: getattr(network, name) for name in known if hasattr(network, name)})
        self._network, self._tally, self._dtype = network, tally, dtype
        module = getattr(network, "model", network).to("meta", dtype)
        tally.repeat_blocks(module)
        tally.weigh("upscaler", module)

    def to(self, *_: Any) -> None:
        """Stay."""

    def __call__(self, values: Tensor, *size: int) -> Any:
        return self._tally.run("upscaler", self._network, values.to(self._dtype), *size)


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of its __init_subclass__
    """Counts operations, and the bytes that tensors on the meta device take at once; weights do not count."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.peak = self._repeated = 0
        experts = {getattr(torch.ops.aten, "_grouped_mm", None): _experts}  # which torch 2.14 leaves out
        self._flops = FlopCounterMode(display=False, custom_mapping=experts)
        self._attention = _Attention()
        self._seen: set[int] = set()

    @property
    def operations(self) -> int:
        """So far."""
        return self._flops.get_total_flops() + self._attention.operations + self._repeated

    @contextmanager
    def apart(self) -> Iterator[list[int]]:
        """Count the body by itself, too: a list that then holds its operations and the bytes it needed most."""
        operations, alive, peak, cost = self.operations, self.alive, self.peak, list[int]()
        self.peak = alive
        yield cost
        cost += [self.operations - operations, self.peak - alive]
        self.peak = max(self.peak, peak)

    def repeat(self, operations: int, peak: int) -> None:
        """Count once more what `apart` has counted."""
        self._repeated += operations
        self.peak = max(self.peak, self.alive + peak)

    def modes(self) -> ExitStack:
        """Return the context in which calls are counted."""
        stack = ExitStack()
        # which knows no meta device (torch 2.15); ERNIE-Image switches it off for its positions
        stack.enter_context(patch("torch.autocast", lambda *_, **__: nullcontext()))
        for mode in (self._flops, self, self._attention):
            stack.enter_context(mode)
        return stack

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.bincount.default:  # HiDream's router; all tokens at one expert cost the same
            return torch.tensor([args[0].numel()])
        if func is torch.ops.aten._to_copy.default and _is_mask(args[0]):
            kwargs = {**kwargs, "device": "cpu"}
        elif _on_meta((args, kwargs)):
            args, kwargs = tree_map(_emptied, (args, kwargs))
        made = func(*args, **kwargs)
        if not func.is_view:
            tree_map(self._add, made)
        return made

    def _add(self, leaf: Any) -> None:
        if not isinstance(leaf, Tensor) or leaf.device.type != "meta":
            return
        storage = leaf.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, storage: int, size: int) -> None:
        self._seen.discard(storage)
        self.alive -= size


class _Attention(TorchFunctionMode):
    """Attention as flash kernels do it: 2 n m (d + d') operations a head, no matrix of n x m in memory."""

    operations = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor:  # of numbers that networks may ask for, as HiDream's asks for its sizes
            kwargs = {**kwargs, "device": "cpu"}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
        depths = query.shape[-1] + value.shape[-1]
        self.operations += 2 * query.shape[:-1].numel() * key.shape[-2] * depths
        return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _experts(tokens: Sequence[int], weights: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(tokens) * weights[-1]


def _shapes(values: Any) -> Any:
    """Return what the cost of a call with these arguments depends on."""
    leaves, spec = tree_flatten(values)
    return tuple(map(_told, leaves)), str(spec)


def _told(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf if isinstance(leaf, int | str | None) else type(leaf)
    return leaf.shape, leaf.dtype, leaf.numpy().tobytes() if _is_mask(leaf) and leaf.numel() <= _MASK else None


def _is_mask(leaf: Any) -> bool:
    """Return whether it is a tensor of whole numbers that are known: networks ask masks what they hold."""
    return isinstance(leaf, Tensor) and leaf.device.type == "cpu" and not leaf.is_floating_point()


def _on_meta(values: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.device.type == "meta" for leaf in tree_flatten(values)[0])


def _emptied(leaf: Any) -> Any:
    return torch.empty_like(leaf, device="meta") if isinstance(leaf, Tensor) else leaf


def _ones(leaf: Any) -> Any:
    """Return a tensor of ones that takes no memory for one on the meta device, also in a posterior."""
    if isinstance(leaf, Tensor):
        return torch.ones((), dtype=leaf.dtype).expand(leaf.shape)
    if not any(isinstance(each, Tensor) for each in getattr(leaf, "__dict__", {}).values()):
        return leaf
    filled = copy.copy(leaf)
    vars(filled).update({name: _ones(value) for name, value in vars(leaf).items()})
    return filled
