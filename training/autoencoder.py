"""The autoencoder: an analytic encoder and a learned decoder, both inside a stock `AutoencoderKL`.

    python -m training.autoencoder --minutes 10

The encoder is fixed from the first minute: principal components of 8x8 patches, written into the
convolutions of a diffusers `Encoder`. Latents therefore never change, so that the flow can be trained
before the decoder is any good, and a better decoder later costs no retraining of the flow. A learned
encoder of this size was 8 dB behind after the same minutes of CPU (docs/log.md).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.functional import unfold

from mrflow.vista import inspector
from training import guide, norms
from training.critic import Contest
from training.data import crops, read, to_tensor
from training.latents import LATENTS, encode, project, read_projection
from training.losses import edge_energy, look_loss, pixel_loss, strengths, texture_loss
from training.optim import Average, make_optimizers, set_lr
from training.redraw import DRAFTED, REFINED, repaint_all
from training.track import Log, by_side, load_state, save_state

CHANNELS = 32
WHITENING = 0.6
"""A component of spread d is divided by d**WHITENING: 1 would make fine texture as loud as the layout."""
LATENT_NOISE = 0.15
"""The most noise on the latents while the decoder trains, so that it forgives the flow's errors."""
OFFSET = 12.0
"""Signals pass the encoder's one activation at +12, where it is the identity for all but freak values."""
MEANS = 3
"""The first components that have a mean in most pictures (brightness and two colours)."""
FOLDER = Path("src/mrflow/vista/weights/vae")
RUN = Path("runs/autoencoder")
SIZES = ((256, 256), (512, 512))
"""Of the pictures that crops are taken from, in turn."""
KEPT = 32
"""Pictures of each size, the last ones, that are not trained on."""


def build() -> AutoencoderKL:
    """Return the autoencoder's architecture, with stock random weights: f8, 24 latent channels."""
    return AutoencoderKL(
        block_out_channels=(CHANNELS,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=0,  # the decoder still has one residual block a level, the encoder none: it is linear
        latent_channels=LATENTS,
        act_fn="relu",  # some 3% faster than SiLU; for the encoder's signals either is the identity
        norm_num_groups=1,  # small groups shift colours, since each is normalised by its own mean
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
        sample_size=256,
    )


def fit_components(images: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the encoder's rows (LATENTS, 192), the patch mean (192,) and each latent's divisor (LATENTS,).

    images: batches (N, 3, H, W) in [-1, 1]. A latent is row @ (patch - mean) / divisor.
    """
    patches = torch.cat([unfold(x, 8, stride=8).mT.reshape(-1, 192) for x in images])
    mean = patches.mean(0)
    variances, vectors = torch.linalg.eigh(torch.cov((patches - mean).T.double()))
    rows = vectors.flip(1)[:, :LATENTS].T.float()
    spread = variances.flip(0)[:LATENTS].sqrt().float()
    divisor = spread**WHITENING
    return rows, mean, divisor * ((spread / divisor) ** 2).mean().sqrt()


def zero(*layers: nn.Module) -> None:
    """Set weights and biases to zero."""
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


@torch.no_grad()
def write_encoder(vae: AutoencoderKL, rows: Tensor, mean: Tensor, divisor: Tensor) -> None:
    """Write the linear map of 8x8 patches into the convolutions of the stock encoder.

    Three strided convolutions gather 2x2, 4x4 and 8x8 pixels. 4x4 patches have 48 numbers and the
    encoder CHANNELS = 32 channels: they are kept in the 32 directions that matter most to the rows.
    The last normalisation divides by the spread of all channels; large constants in the spare channels
    hold that spread still, and copies of the opposite sign hold the mean at zero.
    """
    encoder = vae.encoder
    for block in encoder.mid_block.resnets:
        zero(block.conv2)
    zero(encoder.conv_in, encoder.conv_out, *(block.downsamplers[0].conv for block in encoder.down_blocks[:3]))
    for color in range(3):
        encoder.conv_in.weight[color, color, 1, 1] = 1
    gather = encoder.down_blocks[0].downsamplers[0].conv  # 2x2 pixels: channel = (y, x, color)
    for y in range(2):
        for x in range(2):
            for color in range(3):
                gather.weight[(y * 2 + x) * 3 + color, color, y, x] = 1

    # rows as (latent, quarter y, quarter x, 48), the 48 in the order in which the next layer sees them
    filters = (rows / divisor[:, None]).view(LATENTS, 3, 2, 2, 2, 2, 2, 2)  # color, y4, y2, y1, x4, x2, x1
    quarters = filters.permute(0, 2, 5, 3, 6, 4, 7, 1).reshape(LATENTS, 2, 2, 48)
    _, _, directions = torch.linalg.svd(quarters.reshape(-1, 48), full_matrices=False)
    basis = directions[:CHANNELS]  # (CHANNELS, 48)
    layer4 = encoder.down_blocks[1].downsamplers[0].conv
    layer4.weight[:, :12, :2, :2] = basis.view(CHANNELS, 2, 2, 12).permute(0, 3, 1, 2)
    projected = torch.einsum("lyxk,ck->lcyx", quarters, basis)
    bias = -(rows @ mean) / divisor
    layer8 = encoder.down_blocks[2].downsamplers[0].conv
    layer8.weight[:LATENTS, :, :2, :2] = projected
    layer8.bias[:LATENTS] = bias + OFFSET
    layer8.weight[LATENTS : LATENTS + MEANS, :, :2, :2] = -projected[:MEANS]
    layer8.bias[LATENTS : LATENTS + MEANS] = OFFSET - bias[:MEANS]
    constant = -OFFSET * (LATENTS + MEANS) / (CHANNELS - LATENTS - MEANS)
    layer8.bias[LATENTS + MEANS :] = constant

    constants = (LATENTS + MEANS) * OFFSET**2 + (CHANNELS - LATENTS - MEANS) * constant**2
    signals = LATENTS + 3 * MEANS  # mean squares: about one, of the copies about three
    spread = ((constants + signals) / CHANNELS) ** 0.5
    encoder.conv_norm_out.weight.fill_(spread)
    encoder.conv_norm_out.bias.zero_()
    for k in range(LATENTS):
        encoder.conv_out.weight[k, k, 1, 1] = 1
        encoder.conv_out.bias[k] = -OFFSET
    encoder.conv_out.bias[LATENTS:] = -20.0  # log variance: the posterior is its mean


def prepare_decoder(decoder: nn.Module) -> None:
    """Start the decoder as a well-conditioned linear map: residual branches at zero, orthogonal kernels."""
    for name, layer in decoder.named_modules():
        if name.endswith("conv2"):
            zero(layer)
        elif isinstance(layer, nn.Conv2d) and ("upsamplers" in name or name == "conv_in"):
            nn.init.orthogonal_(layer.weight)
    norms.begin(decoder)


def repainted_crops(
    pictures: np.ndarray, latents: tuple[Tensor, Tensor], rng: np.random.Generator, count: int, side: int
) -> tuple[Tensor, Tensor]:
    """Return `count` random crops (count, 3, side, side) in [-1, 1] and what the flow made of them as latents.

    latents: of the first pictures, repainted at full and at half size; crops are from either, in turn.
    """
    true, made = [], []
    for k in range(count):
        half = k % 2 == 1
        index = rng.integers(len(latents[half]))
        across, pixels = side // 8, 16 if half else 8  # latents of a crop, pixels of a latent
        y, x = (rng.integers(length - across + 1) for length in latents[half].shape[2:])
        made.append(latents[half][index, :, y : y + across, x : x + across])
        rows, columns = (slice(at * pixels, (at + across) * pixels) for at in (y, x))
        true.append(to_tensor(pictures[index][None, rows, columns], half))
    return torch.cat(true), torch.stack(made)


@torch.no_grad()
def check(vae: AutoencoderKL, decoder: nn.Module, images: Tensor) -> dict[str, float]:
    """Return PSNR in dB and edge energy relative to the originals, images (B, 3, H, W) in [-1, 1]."""
    decoded = decoder(encode(vae, images)).clamp(-1, 1)
    psnr = (-10 * torch.log10(((decoded - images) / 2).pow(2).mean((1, 2, 3)))).mean().item()
    grain = strengths(decoded)[0].mean().item() / strengths(images)[0].mean().item()
    return {"psnr": psnr, "edges": edge_energy(decoded) / edge_energy(images), "grain": grain}


def main(
    minutes: Annotated[float, typer.Option(help="Time for the decoder.")] = 10,
    gan: Annotated[float, typer.Option(help="Share of the time, at the end, with the critic.")] = 0.0,
    batch: Annotated[int, typer.Option(help="Crops of 64x64 a step.")] = 16,
    lr: Annotated[float, typer.Option(help="Muon's learning rate.")] = 6e-3,
    gan_weight: Annotated[float, typer.Option(help="The critic's gradient, as a share of the loss's.")] = 0.5,
    texture: Annotated[float, typer.Option(help="Weight of the texture's strength.")] = 2.0,
    look: Annotated[float, typer.Option(help="Weight of the look to the guide.")] = 0.4,
    repaint: Annotated[int, typer.Option(help="Pictures that the flow repaints for half of the crops.")] = 0,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Fit the encoder if there is none, then train the decoder, going on from the weights in FOLDER.

    repaint: once there is a flow, the decoder can learn to make good its flaws, too.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    painted = [read(size)[0] for size in SIZES]
    pictures, captions, _ = read(SIZES[0])
    if (FOLDER / "config.json").exists():
        vae = AutoencoderKL.from_pretrained(FOLDER, dtype=torch.float32)
    else:
        vae = build()
        write_encoder(vae, *fit_components([to_tensor(pictures[:400], half=True), to_tensor(pictures[400:550])]))
        prepare_decoder(vae.decoder)
    vae.to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    decoder = vae.decoder
    kernels = [p for name, p in decoder.named_parameters() if p.ndim == 4 and not name.startswith("conv_out")]
    optimizers = make_optimizers(decoder, kernels, 1e-3, lr)
    contest = Contest(gan_weight, 1 - gan)
    average = Average(decoder, 0.998)
    load_state(RUN, {"critic": contest.critic}, [contest.optimizer])
    eye = inspector.load(guide.FILE)
    held_out = {size[0]: to_tensor(each[-KEPT:]) for size, each in zip(SIZES, painted, strict=True)}
    projection = read_projection(vae, held_out[SIZES[0][0]])
    repainted = None
    if repaint:
        first = pictures[: min(repaint, len(pictures) - KEPT)]
        repainted = (
            repaint_all(first, captions, projection, False, REFINED, seed),
            repaint_all(first, captions, projection, True, DRAFTED, seed),
        )
    log = Log("autoencoder")
    start, step = time.monotonic(), 0
    while (progress := (time.monotonic() - start) / (minutes * 60)) < 1:
        set_lr(optimizers, step, progress, 50, 0.5)
        images = crops(painted[step % len(SIZES)], rng, batch // 2 if repainted else batch, 64, KEPT)
        with torch.no_grad():
            latents = project(images, *projection)
            latents = latents + LATENT_NOISE * torch.rand(len(images), 1, 1, 1) * torch.randn_like(latents)
        if repainted:
            more = repainted_crops(pictures, repainted, rng, batch - len(images), 64)
            images, latents = (torch.cat(pair) for pair in zip((images, latents), more, strict=True))
        images = images.contiguous(memory_format=torch.channels_last)
        decoded = decoder(latents)
        pixels, grain = pixel_loss(decoded, images), texture_loss(decoded, images)
        seen = look_loss(eye, decoded, images)
        loss = pixels + texture * grain + look * seen
        values = {"pixels": pixels.item(), "texture": grain.item(), "look": seen.item()}
        if contest.begun(progress):
            loss, values["fooled"] = contest.against(loss, decoded, decoder.conv_out.weight, progress)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        norms.hold(decoder)
        average.update(decoder)
        if contest.begun(progress):
            values["critic"] = contest.learn(images, decoded)
        step += 1
        log.mean(values)
        if step % 100 == 0:
            log.write(step, by_side(lambda images: check(vae, average.model, images), held_out))
    log.write(step, by_side(lambda images: check(vae, average.model, images), held_out))
    vae.decoder = average.model
    vae.to(torch.float16).save_pretrained(FOLDER)
    save_state(RUN, {"critic": contest.critic}, [contest.optimizer])


if __name__ == "__main__":
    typer.run(main)
