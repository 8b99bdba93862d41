"""The flow: text encoders and a FLUX-architecture transformer, trained together.

    python -m training.flow --minutes 90

Sizes are mixed from the start, each step of one size and of as many pictures as make --tokens image tokens
(a picture of half the side costs a quarter). In bfloat16 where this machine multiplies it faster, and with
compiled blocks where there is a compiler. Goes on from runs/flow/state.pt, else from the weights shipped, else
from nothing. Every few minutes the state is written, with a score; at the end, or at a SIGTERM, the averaged
weights as well. A rate that stays (--decay 0) can go on another day; --decay 1 brings it down from the first step.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from training import guide
from training.data import DATA, SHARES, folder, read, to_tensor
from training.evaluate import score
from training.flow_model import SMALL_TOKENS, WEIGHTS, Flow, load_flow, pack, save_pipeline, shift
from training.latents import project, read_projection
from training.optim import Average, make_optimizers, set_lr
from training.precision import compile_blocks, faster_dtype, products_in
from training.text import TextPair, make_tokenizer, pretrain, tokenize
from training.track import Log, load_state, save_state
from training.world import parse

RUN = Path("runs/flow")
DROP_CAPTION = 0.1
LOW_SIGMA = 0.3
"""A finish refines from low sigmas, which the shifted logit-normal hardly visits: above SMALL sizes
LOW_SHARE of the timesteps are uniform below LOW_SIGMA."""
LOW_SHARE = 0.4
SMALL, MIDDLE = 80, 256
"""Most tokens of a small and of a middle size: 128x128 and 256x256 with their neighbours."""
OBJECT_WEIGHT = 3.0
"""Weight of the loss where the caption says the object is. A function of caption and place alone, so
that the optimum stays the true velocity; an object is a twentieth of the picture and most of a prompt."""
CHANCES = {
    "object": {"house": 1.6, "balloon": 1.4, "boat": 1.2},
    "time": {"night": 1.3},
    "mountains": {"peaks": 1.2},
    "trees": {"pines": 1.2, "round": 1.4},
}
"""How much more often pictures of what is hard are shown. Chosen by caption alone: what a caption means stays."""
ALIGN = 0.5
"""Weight of the agreement with the guide's features (training/guide.py)."""


@dataclass
class Bucket:
    """Pictures of one size: packed latents (N, rows * columns, 4 C) fp16, tokens, loss weights, guide, chances."""

    latents: Tensor
    tokens: Tensor
    weights: Tensor
    maps: Tensor
    chances: Tensor
    rows: int
    columns: int

    @property
    def area(self) -> int:
        """Return the image tokens of a picture."""
        return self.rows * self.columns


def object_weights(captions: list[str], rows: int, columns: int) -> Tensor:
    """Return loss weights (N, rows * columns), raised where each caption puts its object; mean about one."""
    weights = torch.ones(len(captions), rows, columns)
    bands = {"balloon": (0.0, 0.6), "boat": (0.3, 0.9), "house": (0.25, 0.85)}
    for k, caption in enumerate(captions):
        asked = parse(caption)
        if asked.get("object", "none") in bands:
            top, bottom = bands[asked["object"]]
            left = 0.5 if asked.get("side") == "right" else 0.0
            right = 0.5 if asked.get("side") == "left" else 1.0
            area = (
                slice(int(top * rows), math.ceil(bottom * rows)),
                slice(int(left * columns), math.ceil(right * columns)),
            )
            weights[k, area[0], area[1]] = OBJECT_WEIGHT
    return weights.flatten(1)


def chances(captions: list[str]) -> Tensor:
    """Return how likely each caption's picture is drawn (N,), relative to the others."""
    asked = [parse(caption) for caption in captions]
    return torch.tensor([math.prod(CHANCES[name].get(of.get(name, ""), 1.0) for name in CHANCES) for of in asked])


@torch.no_grad()
def load_bucket(
    size: tuple[int, int],
    half: bool,
    projection: tuple[Tensor, Tensor],
    maps: Tensor,
    tokenizer: PreTrainedTokenizerFast,
    root: Path = DATA,
) -> Bucket:
    """Encode the pictures of one size (once: kept beside them on disk)."""
    pictures, captions, _ = read(size, root)
    file = folder(size, root) / ("latents_half.pt" if half else "latents.pt")
    if file.exists():
        latents = torch.load(file, weights_only=True)
    else:
        latents = torch.cat(
            [pack(project(to_tensor(pictures[i : i + 64], half), *projection)).half()
             for i in range(0, len(pictures), 64)]
        )  # fmt: skip
        torch.save(latents, file)
    rows, columns = size[1] // (32 if half else 16), size[0] // (32 if half else 16)
    weights = object_weights(captions, rows, columns)
    return Bucket(latents, tokenize(tokenizer, captions), weights, maps, chances(captions), rows, columns)


def load_buckets(vae: AutoencoderKL, tokenizer: PreTrainedTokenizerFast, root: Path) -> dict[Any, Bucket]:
    """Return the pictures of every painted size, whole and halved, by ((width, height), half)."""
    projection = read_projection(vae, to_tensor(read((256, 256), root)[0][:64]))
    painted = [size for size in SHARES if folder(size, root).exists()]
    return {
        (size, half): load_bucket(size, half, projection, maps, tokenizer, root)
        for size in painted
        for maps in (guide.read_maps(size, root),)
        for half in (True, False)
    }


def size_class(tokens: int) -> int:
    """Return 0 for a small size, 1 for a middle one, 2 for a large one."""
    return 0 if tokens <= SMALL else 1 if tokens <= MIDDLE else 2


def step_shares(buckets: dict[Any, Bucket], shares: tuple[float, float, float]) -> Tensor:
    """Return the share of the steps of each bucket: of its class by `shares`, within it by its pictures'."""
    classes = torch.tensor([size_class(bucket.area) for bucket in buckets.values()])
    pictures = torch.tensor([SHARES[size] for size, _ in buckets])
    sums = torch.zeros(3).index_add(0, classes, pictures)
    return torch.tensor(shares)[classes] * pictures / sums[classes]


def batches(
    buckets: dict[Any, Bucket], rng: torch.Generator, tokens: int, shares: tuple[float, float, float]
) -> Iterator[tuple[Bucket, Tensor]]:
    """Yield (bucket, indices) for ever: as many pictures of one size as have `tokens` image tokens."""
    found, odds = list(buckets.values()), step_shares(buckets, shares)
    while True:
        bucket = found[int(torch.multinomial(odds, 1, generator=rng))]
        count = max(1, tokens // bucket.area)
        yield bucket, torch.multinomial(bucket.chances, count, replacement=True, generator=rng)


def draw_sigmas(count: int, tokens: int, large: bool, rng: torch.Generator) -> Tensor:
    """Return training sigmas (count,): shifted logit-normal, mixed with uniform ones so that none is rare."""
    sigmas = shift(torch.sigmoid(torch.randn(count, generator=rng)), tokens)
    uniform = torch.rand(count, generator=rng) * (LOW_SIGMA if large else 1.0)
    pick = torch.rand(count, generator=rng) < (LOW_SHARE if large else 0.12)
    return torch.where(pick, uniform, sigmas).clamp(0.003, 1.0)


class Trainer:
    """One flow in training: its averaged weights, the head that agrees with the guide, optimisers, precision."""

    def __init__(self, flow: Flow, place: torch.device, dtype: torch.dtype, lr: float, matrix_lr: float):
        self.flow, self.place, self.dtype = flow.to(place), place, dtype
        self.average = Average(flow, 0.998)
        self.alignment = guide.Alignment(flow.transformer.single_transformer_blocks[guide.LAYER]).to(place)
        self.trained = nn.ModuleList([flow, self.alignment])
        self.optimizers = make_optimizers(self.trained, flow.matrices(), lr, matrix_lr, 0.01, dtype)
        self.modules = {"flow": flow, "average": self.average.model, "alignment": self.alignment}

    def load(self, folder: Path) -> None:
        """Go on from a folder's state, if there is one, with an average that remembers."""
        if load_state(folder, self.modules, self.optimizers):
            self.average.updates = 10**6

    def velocity(self, x: Tensor, sigma: Tensor, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """Return the flow's velocity at x, in float32, computed in this training's precision."""
        with products_in(self.dtype, self.place):
            found: Tensor = self.flow(x, sigma, self.flow.text(tokens), rows, columns)
        return found.float()

    def errors(
        self, bucket: Bucket, chosen: Tensor, nothing: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss on the chosen pictures; and what it is made of, the velocity's error and the guide's."""
        x0, maps = bucket.latents[chosen].to(self.place).float(), bucket.maps[chosen].to(self.place)
        dropped = torch.rand(len(chosen), generator=rng) < DROP_CAPTION
        tokens = torch.where(dropped[:, None], nothing, bucket.tokens[chosen]).to(self.place)
        weights = torch.where(dropped[:, None], torch.ones(()), bucket.weights[chosen]).to(self.place)
        sigma = draw_sigmas(len(chosen), bucket.area, bucket.area > SMALL, rng).to(self.place)
        noise = torch.randn(x0.shape, generator=rng).to(self.place)
        x = torch.lerp(x0, noise, sigma[:, None, None])
        velocity = self.velocity(x, sigma, tokens, bucket.rows, bucket.columns)
        apart = self.alignment(maps, bucket.rows, bucket.columns)
        error = (velocity - (noise - x0)).pow(2).mean(2)
        return (weights * error).sum() / weights.sum() + ALIGN * apart, error.mean(), apart

    def step(self, bucket: Bucket, chosen: Tensor, nothing: Tensor, rng: torch.Generator) -> dict[str, float]:
        """Learn from the chosen pictures; returns the errors by name, that of the velocity by the size's class."""
        loss, error, apart = self.errors(bucket, chosen, nothing, rng)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update(self.flow)
        name = ("small", "large", "largest")[size_class(bucket.area)]
        return {name: error.item(), "apart": apart.item()}


def example(trainer: Trainer) -> Tensor:
    """Return what the flow makes of some noise: to see whether compiling changes it."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, SMALL_TOKENS, trainer.flow.transformer.config.in_channels, generator=rng)
    tokens = tokenize(make_tokenizer(), ["a lake at night", "a beach"])
    with torch.no_grad():
        found = trainer.velocity(
            x.to(trainer.place), torch.tensor([0.3, 0.9]).to(trainer.place), tokens.to(trainer.place), 8, 8
        )
    trainer.alignment.forget()
    return found


def main(
    minutes: Annotated[float, typer.Option(help="Training time; pauses do not count.")] = 90,
    lr: Annotated[float, typer.Option(help="AdamW's learning rate.")] = 1.5e-3,
    matrix_lr: Annotated[float, typer.Option(help="Muon's learning rate.")] = 2.5e-3,
    tokens: Annotated[int, typer.Option(help="Image tokens a step: 8192 are 128 pictures of 128x128.")] = 8192,
    shares: Annotated[
        tuple[float, float, float], typer.Option(help="Shares of the steps at some 128x128, 256x256 and above.")
    ] = (0.1, 0.6, 0.3),
    decay: Annotated[float, typer.Option(help="Share of the time, at the end, in which the rate falls.")] = 0.35,
    save_every: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 10,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: Annotated[str, typer.Option(help="Where to train: cpu, or cuda.")] = "cpu",
    compiled: Annotated[bool, typer.Option(help="Compile the transformer's blocks.")] = True,
    data: Annotated[Path, typer.Option(help="The pictures of training.data.")] = DATA,
    run: Annotated[Path, typer.Option(help="Where the state is kept.")] = RUN,
    out: Annotated[Path, typer.Option(help="Where the pipeline is written at the end.")] = WEIGHTS,
) -> None:
    """Train the flow."""
    torch.manual_seed(seed)
    place = torch.device(device)
    tokenizer = make_tokenizer()
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "vae", dtype=torch.float32)
    vae.requires_grad_(False).to(memory_format=torch.channels_last)
    flow, started = load_flow()
    log = Log("flow")
    if not started:
        log.write(0, {"text": pretrain(TextPair(flow.t5, flow.clip), tokenizer)})
    trainer = Trainer(flow, place, faster_dtype(place), lr, matrix_lr)
    trainer.load(run)
    if compiled:
        compile_blocks(flow.transformer, lambda: example(trainer))
    buckets = load_buckets(vae, tokenizer, data)
    rng = torch.Generator().manual_seed(seed + log.steps_before)
    nothing = tokenize(tokenizer, [""])
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))
    saved, step = 0.0, 0
    for bucket, chosen in batches(buckets, rng, tokens, shares):
        progress = log.clock.seconds / (minutes * 60) if minutes else 1.0
        if progress >= 1 or told:
            break
        set_lr(trainer.optimizers, step, progress, 100, decay)
        log.mean(trainer.step(bucket, chosen, nothing, rng))
        step += 1
        if step % 50 == 0:
            log.write(step, {})
        if log.clock.seconds - saved > save_every * 60:
            save_state(run, trainer.modules, trainer.optimizers)
            log.write(step, score(trainer.average.model, vae, tokenizer, run / "samples.png"))
            saved = log.clock.seconds
    if step:
        save_state(run, trainer.modules, trainer.optimizers)
    save_pipeline(trainer.average.model, vae, tokenizer, out)
    log.write(step, score(trainer.average.model, vae, tokenizer, run / "samples.png", count=64))


if __name__ == "__main__":
    typer.run(main)
