"""The x2 upscaler: a small GAN of an architecture that spandrel reads (Compact).

    python -m training.upscaler --minutes 10

It learns from what it will meet: drafts. Half of its inputs are half-size pictures that the flow has repainted
(training/redraw.py), half are such pictures after the autoencoder, with noise on their latents and some blur.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from spandrel.architectures.Compact import Compact
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pad

from mrflow.vista import inspector
from training import guide
from training.autoencoder import FOLDER as VAE
from training.autoencoder import KEPT, SIZES
from training.critic import Contest
from training.data import read, to_tensor
from training.latents import project, read_projection
from training.losses import edge_energy, look_loss, pixel_loss, spreads, strengths, texture_loss
from training.optim import Average, make_optimizers, set_lr
from training.redraw import DRAFTED, repaint_all
from training.track import Log, by_side, load_state, save_state

FILE = Path("src/mrflow/vista/upscaler/vista-x2.safetensors")
RUN = Path("runs/upscaler")
WIDTH, LAYERS = 32, 8
SIDE = 64
"""Side of the half-size crops."""
DRAFT_SHARE = 0.5
"""Share of the inputs that the flow has repainted."""
LATENT_SHARE = 0.3
"""Weight, beside the pixels' texture, of what the encoder keeps of it: the rest does not reach the refine step."""
LATENT_GAIN = 1.05
"""How much more of that than the truth has: real drafts give the upscaler less to go by than these inputs, and the
refine step takes a little more away. 1.15 was too much for drafts by UniPC."""


def build() -> Compact:
    """Return the network with random weights; its last layers start so that it is nearest-neighbour upscaling."""
    network = Compact(num_feat=WIDTH, num_conv=LAYERS, upscale=2)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
    nn.init.zeros_(network.body[-1].weight)
    return network


def load_or_build() -> Compact:
    """Return the shipped upscaler to train on, or a fresh one."""
    network = build()
    if FILE.exists():
        network.load_state_dict({k: v.float() for k, v in load_file(FILE).items()})
    return network


@torch.no_grad()
def degrade(vae: AutoencoderKL, projection: tuple[Tensor, Tensor], half: Tensor, rng: torch.Generator) -> Tensor:
    """Return half-size pictures (B, 3, H, W) in [0, 1] as drafts are: decoded, with latent noise, blurred."""
    latents = project(half * 2 - 1, *projection)
    level = torch.rand(len(half), 1, 1, 1, generator=rng) * 0.15
    decoded = vae.decode(latents + level * torch.randn(latents.shape, generator=rng)).sample.clamp(-1, 1) / 2 + 0.5
    keep = (torch.rand(len(half), 1, 1, 1, generator=rng) < 0.15).float()
    images = keep * half + (1 - keep) * decoded
    soft = avg_pool2d(pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    blur = torch.rand(len(half), 1, 1, 1, generator=rng) * 0.5
    return (1 - blur) * images + blur * soft


def pairs(
    pictures: np.ndarray,
    drafts: Tensor | None,
    vae: AutoencoderKL,
    projection: tuple[Tensor, Tensor],
    rng: np.random.Generator,
    noise: torch.Generator,
    count: int,
) -> tuple[Tensor, Tensor]:
    """Return draft-like crops (count, 3, SIDE, SIDE) and the truth (count, 3, 2 SIDE, 2 SIDE), in [0, 1].

    drafts: the first pictures repainted at half size, (N, 3, H/2, W/2) in [0, 1]; None imitates all.
    """
    true, repainted = [], {}
    for k in range(count):
        real = drafts is not None and rng.random() < DRAFT_SHARE
        index = rng.integers(len(drafts if real else pictures))
        image = pictures[index]
        y, x = 8 * rng.integers((image.shape[0] - 2 * SIDE) // 8 + 1, size=2)
        crop = to_tensor(image[None, y : y + 2 * SIDE, x : x + 2 * SIDE]) / 2 + 0.5
        turn = [-1] if rng.random() < 0.5 else []
        true.append(crop.flip(turn))
        if real:
            repainted[k] = drafts[index, :, y // 2 : y // 2 + SIDE, x // 2 : x // 2 + SIDE].flip(turn)
    images = torch.cat(true)
    small = degrade(vae, projection, avg_pool2d(images, 2), noise)
    for k, draft in repainted.items():
        small[k] = draft
    return small, images


@torch.no_grad()
def check(network: nn.Module, small: Tensor, true: Tensor) -> dict[str, float]:
    """Return PSNR in dB and edge energy relative to the truth, for the network and for bicubic."""
    values = {}
    for name, images in (
        ("net", network(small).clamp(0, 1)),
        ("bicubic", interpolate(small, scale_factor=2, mode="bicubic", antialias=True).clamp(0, 1)),
    ):
        values[f"{name}_psnr"] = (-10 * torch.log10((images - true).pow(2).mean((1, 2, 3)))).mean().item()
        values[f"{name}_edges"] = edge_energy(images) / edge_energy(true)
        values[f"{name}_grain"] = strengths(images)[0].mean().item() / strengths(true)[0].mean().item()
    return values


def main(
    minutes: Annotated[float, typer.Option(help="Training time; 0 only says how good the shipped one is.")] = 10,
    gan: Annotated[float, typer.Option(help="Share of the time, at the end, with the critic.")] = 0.6,
    gan_weight: Annotated[float, typer.Option(help="The critic's gradient, as a share of the loss's.")] = 0.5,
    texture: Annotated[float, typer.Option(help="Weight of the texture's strength.")] = 2.0,
    look: Annotated[float, typer.Option(help="Weight of the look to the guide.")] = 0.3,
    blend: Annotated[float, typer.Option(help="Share of the new weights beside those it began with.")] = 1.0,
    drafts: Annotated[int, typer.Option(help="Pictures that the flow repaints, for inputs; 0 for none.")] = 1024,
    batch: Annotated[int, typer.Option(help="Crops a step.")] = 8,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Train the upscaler, going on from the shipped one.

    blend: mixed weights are a network between the two (Wang et al., ESRGAN, arXiv 1809.00219).
    """
    torch.manual_seed(seed)
    rng, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    painted = [read(size)[:2] for size in SIZES]
    pictures = painted[0][0]
    vae = AutoencoderKL.from_pretrained(VAE, dtype=torch.float32).requires_grad_(False)
    vae.to(memory_format=torch.channels_last)
    projection = read_projection(vae, to_tensor(pictures[:64]))
    network = load_or_build().to(memory_format=torch.channels_last)
    begun = {name: value.clone() for name, value in network.state_dict().items()}
    kernels = [layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d)][1:-1]
    optimizers = make_optimizers(network, kernels, 1e-3, 3e-3)
    contest = Contest(gan_weight, 1 - gan)
    average = Average(network, 0.995)
    load_state(RUN, {"critic": contest.critic}, [contest.optimizer])
    eye = inspector.load(guide.FILE)
    held_out = {
        size[0]: pairs(
            each[-KEPT:], None, vae, projection, np.random.default_rng(1), torch.Generator().manual_seed(1), KEPT
        )
        for size, (each, _) in zip(SIZES, painted, strict=True)
    }
    if not minutes:
        found = by_side(lambda pair: check(network, *pair), held_out)
        print(json.dumps({name: round(value, 4) for name, value in found.items()}))
        return
    learned: list[tuple[np.ndarray, Tensor | None]] = []
    for each, captions in painted:
        count, repainted = min(drafts, len(each) - KEPT), None
        if count:
            latents = repaint_all(each[:count], captions[:count], projection, True, DRAFTED, seed)
            with torch.no_grad():
                decoded = [vae.decode(part).sample.clamp(-1, 1) / 2 + 0.5 for part in latents.split(16)]
            repainted = torch.cat(decoded)
        learned.append((each[:-KEPT], repainted))
    log = Log("upscaler")
    start, step = time.monotonic(), 0
    while (progress := (time.monotonic() - start) / (minutes * 60)) < 1:
        set_lr(optimizers, step, progress, 50, 0.5)
        small, true = (
            x.contiguous(memory_format=torch.channels_last)
            for x in pairs(*learned[step % len(SIZES)], vae, projection, rng, noise, batch)
        )
        images = network(small)
        pixels, grain = pixel_loss(images, true), texture_loss(images, true)
        seen = look_loss(eye, images * 2 - 1, true * 2 - 1)
        kept, wanted = (spreads(project(x * 2 - 1, *projection)) for x in (images, true))
        loss = pixels + texture * (grain + LATENT_SHARE * (kept - LATENT_GAIN * wanted).abs().mean()) + look * seen
        values = {"pixels": pixels.item(), "texture": grain.item(), "look": seen.item()}
        values["kept"] = (kept.mean() / wanted.mean()).item()
        if contest.begun(progress):
            loss, values["fooled"] = contest.against(loss, images * 2 - 1, network.body[-1].weight, progress)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average.update(network)
        if contest.begun(progress):
            values["critic"] = contest.learn(true * 2 - 1, images * 2 - 1)
        step += 1
        log.mean(values)
        if step % 100 == 0:
            log.write(step, by_side(lambda pair: check(average.model, *pair), held_out))
    log.write(step, by_side(lambda pair: check(average.model, *pair), held_out))
    FILE.parent.mkdir(parents=True, exist_ok=True)
    ended = average.model.state_dict()
    save_file({k: v.lerp(ended[k], blend).half().contiguous() for k, v in begun.items()}, FILE)
    save_state(RUN, {"critic": contest.critic}, [contest.optimizer])


if __name__ == "__main__":
    typer.run(main)
