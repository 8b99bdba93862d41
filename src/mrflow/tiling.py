"""Networks made to work in tiles for one call, so that a picture's memory is that of one tile.

A transformer's answers are blended at each call, so that any solver and any guidance steps over one whole picture.
It sees a part of the latents, all of the text, and where positions are given from outside those of the whole.

diffusers' own tiling of autoencoders gives each tile its own normalisation and attention, which shifts colours
from tile to tile. Here all at the latents' size, the middle block with its attention, is computed whole; what lies
beyond it, the large part, in tiles, with the group norms' statistics those of the whole picture. These are found
in passes over all tiles: how far a tile's own are from the whole's is known from the pass before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from mrflow.borrowing import settings
from mrflow.tiles import Span, cores, in_tiles, spans

OVERLAP = 16
"""Latents, at least, that neighbouring tiles share: FLUX.1's decoder sees 12 to each side, most of it 4."""
_SETTLED = 1e-3  # change of a statistic from pass to pass, in deviations: a tenth of a level of 255
_PASSES = 6  # vista's are settled in 2; random networks, which amplify every difference, may need more


_TOKENS = {  # where the arguments of transformers that take tokens have the picture's: dimension, and whether last
    "hidden_states": (1, False),
    "img_ids": (-2, False),
    "controlnet_block_samples": (1, False),
    "controlnet_single_block_samples": (1, False),
    "position_ids": (-2, True),  # Krea 2's, behind the text's
    "attention_mask": (-1, True),  # Chroma's and Bria FIBO's, behind the text's
}


@contextmanager
def transformer_in_tiles(transformer: Any, width: int, height: int, patch: int, tile: int) -> Iterator[None]:
    """Let a transformer answer for a picture of width x height pixels in tiles of `tile` pixels a side meanwhile.

    patch: pixels a side of what tiles are cut to. What is wrapped around it (hooks of offloading, compiled code)
    is called for each tile.
    """
    kind = type(transformer)
    cut = _Cut(height // patch, width // patch, tile // patch)

    def call(self: Any, *args: Any, **kwargs: Any) -> tuple[Any]:
        with _of_class(self, kind):  # which compiled code is made for
            return cut.call(self, *args, **kwargs)

    same = {name: getattr(kind, name) for name in ("__module__", "__qualname__")}
    with _of_class(transformer, type(kind.__name__, (kind,), {**same, "__call__": call})):
        yield


@contextmanager
def _of_class(thing: Any, kind: type[Any]) -> Iterator[None]:
    own = type(thing)
    object.__setattr__(thing, "__class__", kind)  # compiled modules pass their own assignments on
    try:
        yield
    finally:
        object.__setattr__(thing, "__class__", own)


class _Cut:
    """A picture of rows x columns patches, cut into tiles of `side`."""

    def __init__(self, rows: int, columns: int, side: int) -> None:
        self.rows, self.columns, self.side = rows, columns, side

    def call(self, transformer: Any, *args: Any, **kwargs: Any) -> tuple[Any]:
        """Return what the transformer answers, as a tuple of one."""
        given = dict(zip(("hidden_states",), args, strict=False)) | kwargs
        tokens = getattr(given["hidden_states"], "ndim", 4) == 3

        def part(y: slice, x: slice) -> Tensor:
            taken = {name: self._take(name, value, y, x, tokens=tokens) for name, value in given.items()}
            first = [taken.pop("hidden_states")] if args else []
            with self._positions(transformer, kwargs, y, x):
                made = transformer(*first, *args[1:], **taken)[0]
            made = torch.stack(made) if isinstance(made, list) else made
            height, width = y.stop - y.start, x.stop - x.start
            return made[:, : height * width].transpose(1, 2).unflatten(2, (height, width)) if tokens else made

        made = in_tiles(part, self.rows, self.columns, self.side, max(self.side // 4, 2))
        if isinstance(given["hidden_states"], list):
            return (list(made.unbind()),)
        return (made.flatten(2).transpose(1, 2) if tokens else made,)

    def _take(self, name: str, value: Any, y: slice, x: slice, *, tokens: bool) -> Any:
        """Return what of an argument is a tile's."""
        if isinstance(value, dict):
            return {key: self._take(key, each, y, x, tokens=tokens) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._take(name, each, y, x, tokens=tokens) for each in value)
        if not isinstance(value, Tensor):
            return value
        if tokens:
            return self._pick(value, *_TOKENS[name], y, x) if name in _TOKENS else value
        if name == "image_rotary_emb":  # Lumina-Next's table of all positions
            return value[y.start :, x.start :]
        factor = value.shape[-1] // self.columns if name == "hidden_states" else 0
        rows, columns = (slice(each.start * factor, each.stop * factor) for each in (y, x))
        return value[..., rows, columns] if factor else value

    def _pick(self, value: Tensor, dim: int, last: bool, y: slice, x: slice) -> Tensor:
        """Return a tile's of the picture's tokens along a dimension, with all others beside them."""
        count, length = self.rows * self.columns, value.shape[dim]
        before = length - count if last else 0
        ours = value.narrow(dim, before, count).index_select(dim, self._places(y, x).to(value.device))
        others = value.narrow(dim, 0, before), value.narrow(dim, before + count, length - count - before)
        return torch.cat([others[0], ours, others[1]], dim)

    def _places(self, y: slice, x: slice) -> Tensor:
        return torch.arange(self.rows * self.columns).view(self.rows, self.columns)[y, x].flatten()

    def _positions(self, transformer: Any, given: Any, y: slice, x: slice) -> AbstractContextManager[None]:
        """Let Qwen-Image and NucleusMoE, which are told sizes, take a tile's positions from the whole's."""
        if "img_shapes" not in given:
            return nullcontext()
        own = transformer.pos_embed.forward

        def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            picture, text = own(*args, **kwargs)
            return picture[self._places(y, x).to(picture.device)], text

        return settings(transformer.pos_embed, {"forward": forward})


class Enough(Exception):
    """Ends a network's run at its middle block. made: what that was given or has given."""

    def __init__(self, made: Tensor) -> None:
        self.made = made


@contextmanager
def autoencoder_in_tiles(vae: Any, tile: int) -> Iterator[None]:
    """Let an autoencoder encode and decode pictures in tiles of `tile` pixels a side meanwhile.

    One without a middle block (DC, Tiny), or none, works as it does.
    """
    if not all(hasattr(getattr(vae, half, None), "mid_block") for half in ("encoder", "decoder")):
        yield
        return
    lent = {
        name: partial(run, vae, getattr(vae, name), tile)
        for name, run in (("encode", _encode), ("decode", _decode))
    }
    with settings(vae, lent | ({"use_tiling": False} if hasattr(vae, "use_tiling") else {})):
        yield


def _decode(vae: Any, decode: Callable[..., Any], tile: int, latents: Tensor) -> Any:
    """Return what `decode` gives for latents (B, C, [1,] h, w), whose middle block is computed whole."""
    middle, answers = vae.decoder.mid_block, list[Any]()

    def end(*args: Any, **kwargs: Any) -> NoReturn:
        raise Enough(own(*args, **kwargs))

    def part(rows: slice, columns: slice) -> Tensor:
        with settings(middle, {"forward": lambda *_, **__: whole[..., rows, columns]}):
            answers[:] = [decode(latents[..., rows, columns])]
        made: Tensor = answers[0].sample
        return made

    own = middle.forward
    with settings(middle, {"forward": end}):
        whole = _until_enough(decode, latents)
    ratio = decode(latents[..., :2, :2]).sample.shape[-1] // 2
    pixels = _shared(vae.decoder, part, latents.shape[-2], latents.shape[-1], tile // ratio)
    answers[0].sample = pixels
    return answers[0]


def _encode(vae: Any, encode: Callable[..., Any], tile: int, pixels: Tensor) -> Any:
    """Return what `encode` gives for pixels (B, 3, [1,] h, w), whose middle block is computed whole."""
    middle = vae.encoder.mid_block

    def end(hidden: Tensor, *_: Any, **__: Any) -> NoReturn:
        raise Enough(hidden)

    def part(rows: slice, columns: slice) -> Tensor:
        y, x = (slice(each.start * ratio, each.stop * ratio) for each in (rows, columns))
        return _until_enough(encode, pixels[..., y, x])

    own, little = middle.forward, pixels[..., :64, :64]
    with settings(middle, {"forward": end}):
        ratio = little.shape[-1] // _until_enough(encode, little).shape[-1]
        whole = _shared(vae.encoder, part, pixels.shape[-2] // ratio, pixels.shape[-1] // ratio, tile // ratio)
    with settings(middle, {"forward": lambda _, *args, **kwargs: own(whole, *args, **kwargs)}):
        return encode(little[..., :32, :])  # of another shape, for whoever counts calls by their shapes


def _until_enough(run: Callable[[Tensor], Any], given: Tensor) -> Tensor:
    try:
        run(given)
    except Enough as enough:
        return enough.made
    raise AssertionError("the middle block was not run")


def _shared(half: Any, work: Callable[[slice, slice], Tensor], height: int, width: int, side: int) -> Tensor:
    """Return what `work` gives in tiles of `side` latents, a half's group norms sharing their statistics."""
    side = max(side, 2 * OVERLAP)
    overlap = max(side // 4, OVERLAP)
    norms, inside = _Norms(height, width, side, overlap), set(half.mid_block.modules())

    def at(rows: slice, columns: slice) -> Tensor:
        norms.place = (rows.start, rows.stop), (columns.start, columns.stop)
        return work(rows, columns)

    with ExitStack() as stack:
        for layer in half.modules():
            if isinstance(layer, torch.nn.GroupNorm) and layer not in inside:
                stack.enter_context(settings(layer, {"forward": partial(norms.normalise, layer)}))
        for _ in range(_PASSES):
            made = torch.empty(0)  # what the pass before has made takes no room
            made = in_tiles(at, height, width, side, overlap, shrink=True)
            if norms.settle() < _SETTLED:
                break
    return made


class _Norms:
    """Group norms whose statistics are those of all tiles. place: the rows and columns of the tile at work."""

    def __init__(self, height: int, width: int, side: int, overlap: int) -> None:
        self.place: tuple[Span, Span] = (0, 0), (0, 0)
        self._cores = [cores(spans(length, side, overlap, shrink=True)) for length in (height, width)]
        self._now: dict[Any, dict[Any, tuple[int, Tensor, Tensor]]] = {}
        self._before: dict[Any, dict[Any, tuple[int, Tensor, Tensor]]] = {}
        self._whole: dict[Any, tuple[Tensor, Tensor]] = {}

    def normalise(self, layer: torch.nn.GroupNorm, hidden: Tensor) -> Tensor:
        """Return hidden states (B, C, h, w) normalised, as native kernels do it: in float32, then rounded."""
        batch, channels, height, width = hidden.shape
        factor = width // (self.place[1][1] - self.place[1][0])
        y, x = (
            slice(*((edge - span[0]) * factor for edge in known[span]))
            for known, span in zip(self._cores, self.place, strict=True)
        )
        inner = hidden.view(batch, layer.num_groups, -1, height, width)[..., y, x]
        var, mean = (each.float() for each in torch.var_mean(inner, (2, 3, 4), correction=0))
        self._now.setdefault(layer, {})[self.place] = inner[0, 0].numel(), mean, var
        if known := self._before.get(layer, {}).get(self.place):
            wanted, (_, own_mean, own_var) = self._whole[layer], known
            ratio = (var + layer.eps) / (own_var + layer.eps)
            mean = mean + (wanted[0] - own_mean) * ratio.sqrt()
            var = (wanted[1] + layer.eps) * ratio - layer.eps
        means, variances = (
            each.repeat_interleave(channels // layer.num_groups, 1).flatten() for each in (mean, var)
        )
        weight, bias = (each.float().repeat(batch) for each in (layer.weight, layer.bias))
        rows = hidden.reshape(1, batch * channels, height, width)
        return F.batch_norm(rows, means, variances, weight, bias, eps=layer.eps).view_as(hidden)

    def settle(self) -> float:
        """Take the statistics of the whole from those of a pass; return how far they have moved, in deviations."""
        moved = 0.0
        for layer, tiles in self._now.items():
            count = sum(each[0] for each in tiles.values())
            mean = torch.stack([n * m for n, m, _ in tiles.values()]).sum(0) / count
            var = torch.stack([n * (v + (m - mean) ** 2) for n, m, v in tiles.values()]).sum(0) / count
            if old := self._whole.get(layer):
                deviation = (var + layer.eps).sqrt()
                steps = (mean - old[0]).abs() / deviation, ((old[1] + layer.eps).sqrt() / deviation - 1).abs()
                moved = max(moved, *(0.0 if mean.is_meta else float(step.max()) for step in steps))
            else:
                moved = torch.inf
            self._whole[layer] = mean, var
        self._before, self._now = self._now, {}
        return moved
