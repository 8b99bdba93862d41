"""The flow: text encoders and a FLUX-architecture transformer, trained together.

    python -m training.flow --minutes 90

Both resolutions from the start, mostly the small one (positions differ between sizes, and a small
picture costs a fifth). Goes on from runs/flow/state.pt, else from the weights shipped, else from
nothing. Every few minutes the averaged weights are written to the package, with a score.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, PreTrainedTokenizerFast, T5EncoderModel

from training import autoencoder, guide
from training.autoencoder import LATENTS
from training.data import SHARES, folder, read, to_tensor
from training.optim import Average, make_optimizers, set_lr
from training.text import TextPair, make_encoders, make_tokenizer, pretrain, tokenize
from training.track import Log, load_state, save_state
from training.world import MAX_TOKENS, parse

WEIGHTS = Path("src/mrflow/vista/weights")
RUN = Path("runs/flow")
BASE_SHIFT, MAX_SHIFT = 0.5, 1.0
SMALL_TOKENS, LARGE_TOKENS = 64, 256
"""Tokens of 128x128 and of 256x256: the two ends of the resolution-dependent shift."""
DROP_CAPTION = 0.1
LOW_SIGMA = 0.3
"""A finish refines from low sigmas, which the shifted logit-normal hardly visits: at full size
LOW_SHARE of the timesteps are uniform below LOW_SIGMA."""
LOW_SHARE = 0.4
OBJECT_WEIGHT = 3.0
"""Weight of the loss where the caption says the object is. A function of caption and place alone, so
that the optimum stays the true velocity; an object is a twentieth of the picture and most of a prompt."""
ALIGN = 0.5
"""Weight of the agreement with the guide's features (training/guide.py)."""


def make_transformer() -> FluxTransformer2DModel:
    """Return the transformer, random but for output and modulation at zero (diffusers leaves those random)."""
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4 * LATENTS, num_layers=2, num_single_layers=6, attention_head_dim=64,
        num_attention_heads=4, joint_attention_dim=128, pooled_projection_dim=128, guidance_embeds=False,
        axes_dims_rope=(8, 28, 28),
    )  # fmt: skip
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        if name == "proj_out" or ("norm" in name and name.endswith("linear")):
            nn.init.zeros_(layer.weight)
        elif "time_text_embed" in name:
            nn.init.normal_(layer.weight, std=0.02)
        else:
            nn.init.xavier_uniform_(layer.weight)
    return model


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Return the scheduler that the pipeline ships with."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=BASE_SHIFT, max_shift=MAX_SHIFT,
        base_image_seq_len=SMALL_TOKENS, max_image_seq_len=LARGE_TOKENS,
    )  # fmt: skip


def shift(sigma: Tensor, tokens: int) -> Tensor:
    """Return sigma shifted towards noise as the scheduler does it for so many image tokens."""
    mu = BASE_SHIFT + (MAX_SHIFT - BASE_SHIFT) * (tokens - SMALL_TOKENS) / (LARGE_TOKENS - SMALL_TOKENS)
    return math.exp(mu) * sigma / (1 + (math.exp(mu) - 1) * sigma)


def pack(latents: Tensor) -> Tensor:
    """Return (B, H/2 * W/2, 4 C) tokens of (B, C, H, W) latents, as FluxPipeline packs them."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return (B, C, height, width) latents of packed tokens."""
    b, c = len(tokens), tokens.shape[2] // 4
    grid = tokens.view(b, height // 2, width // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(b, c, height, width)


def image_ids(rows: int, columns: int) -> Tensor:
    """Return the positions (rows * columns, 3) of image tokens."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] += torch.arange(rows)[:, None]
    ids[..., 2] += torch.arange(columns)[None]
    return ids.reshape(-1, 3)


class Flow(nn.Module):
    """The text encoders and the transformer: everything that is trained here."""

    def __init__(self, t5: T5EncoderModel, clip: CLIPTextModel, transformer: FluxTransformer2DModel):
        super().__init__()
        self.t5, self.clip, self.transformer = t5, clip, transformer

    def text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return (T5 states (B, T, 128), CLIP's pooled (B, 128))."""
        return TextPair(self.t5, self.clip)(tokens)

    def forward(self, x: Tensor, sigma: Tensor, text: tuple[Tensor, Tensor], rows: int, columns: int) -> Tensor:
        """Return the velocity (noise - picture) at packed latents x (B, rows * columns, 4 C), sigma (B,)."""
        return self.transformer(
            hidden_states=x, encoder_hidden_states=text[0], pooled_projections=text[1], timestep=sigma,
            img_ids=image_ids(rows, columns).to(x.device), txt_ids=torch.zeros(MAX_TOKENS, 3, device=x.device),
            return_dict=False,
        )[0]  # fmt: skip

    def matrices(self) -> list[nn.Parameter]:
        """Return the weights of the transformer's blocks that multiply tokens: what Muon trains."""
        return [
            p for name, p in self.transformer.named_parameters()
            if p.ndim == 2 and "transformer_blocks" in name and "norm" not in name
        ]  # fmt: skip


def load_flow() -> tuple[Flow, bool]:
    """Return the flow from the shipped weights and True; or a fresh one and False."""
    if not (WEIGHTS / "transformer" / "config.json").exists():
        return Flow(*make_encoders(), make_transformer()), False
    parts = {
        "text_encoder_2": T5EncoderModel,
        "text_encoder": CLIPTextModel,
        "transformer": FluxTransformer2DModel,
    }
    return Flow(*(cls.from_pretrained(WEIGHTS / name).float() for name, cls in parts.items())), True


def save_pipeline(flow: Flow, vae: AutoencoderKL, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the whole pipeline to the package, in half precision and diffusers' layout."""
    half = copy.deepcopy(flow).cpu().half()
    pipeline = FluxPipeline(
        scheduler=make_scheduler(), vae=copy.deepcopy(vae).half(), transformer=half.transformer,
        text_encoder=half.clip, tokenizer=tokenizer, text_encoder_2=half.t5, tokenizer_2=tokenizer,
    )  # fmt: skip
    pipeline.save_pretrained(WEIGHTS)


@dataclass
class Bucket:
    """Pictures of one size: packed latents (N, rows * columns, 4 C) fp16, tokens, loss weights, guide."""

    latents: Tensor
    tokens: Tensor
    weights: Tensor
    maps: Tensor
    rows: int
    columns: int


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


@torch.no_grad()
def load_bucket(
    size: tuple[int, int],
    half: bool,
    projection: tuple[Tensor, Tensor],
    maps: Tensor,
    tokenizer: PreTrainedTokenizerFast,
) -> Bucket:
    """Encode the pictures of one size (once: kept beside them on disk)."""
    pictures, captions, _ = read(size)
    file = folder(size) / ("latents_half.pt" if half else "latents.pt")
    if file.exists():
        latents = torch.load(file, weights_only=True)
    else:
        latents = torch.cat(
            [pack(autoencoder.project(to_tensor(pictures[i : i + 64], half), *projection)).half()
             for i in range(0, len(pictures), 64)]
        )  # fmt: skip
        torch.save(latents, file)
    rows, columns = size[1] // (32 if half else 16), size[0] // (32 if half else 16)
    weights = object_weights(captions, rows, columns)
    return Bucket(latents, tokenize(tokenizer, captions), weights, maps, rows, columns)


def batches(
    buckets: dict[tuple[tuple[int, int], bool], Bucket],
    rng: torch.Generator,
    small: int,
    large: int,
    large_share: float,
) -> Iterator[tuple[Bucket, Tensor, bool]]:
    """Yield (bucket, indices, large?) for ever: sizes by their shares, large ones in `large_share` of steps."""
    sizes, shares = list(SHARES), torch.tensor(list(SHARES.values()))
    while True:
        size = sizes[int(torch.multinomial(shares, 1, generator=rng))]
        is_large = torch.rand((), generator=rng).item() < large_share
        bucket = buckets[size, not is_large]
        yield bucket, torch.randint(len(bucket.latents), (large if is_large else small,), generator=rng), is_large


def draw_sigmas(count: int, tokens: int, large: bool, rng: torch.Generator) -> Tensor:
    """Return training sigmas (count,): shifted logit-normal, mixed with uniform ones so that none is rare."""
    sigmas = shift(torch.sigmoid(torch.randn(count, generator=rng)), tokens)
    uniform = torch.rand(count, generator=rng) * (LOW_SIGMA if large else 1.0)
    pick = torch.rand(count, generator=rng) < (LOW_SHARE if large else 0.12)
    return torch.where(pick, uniform, sigmas).clamp(0.003, 1.0)


def main(
    minutes: Annotated[float, typer.Option(help="Training time.")] = 90,
    lr: Annotated[float, typer.Option(help="AdamW's learning rate.")] = 1.5e-3,
    matrix_lr: Annotated[float, typer.Option(help="Muon's learning rate.")] = 2.5e-3,
    small: Annotated[int, typer.Option(help="Batch of half-size pictures.")] = 32,
    large: Annotated[int, typer.Option(help="Batch of full-size pictures.")] = 8,
    large_share: Annotated[float, typer.Option(help="Share of steps with full-size pictures.")] = 0.15,
    decay: Annotated[float, typer.Option(help="Share of the time, at the end, in which the rate falls.")] = 0.35,
    save_every: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 8,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: Annotated[str, typer.Option(help="Where to train: cpu, or cuda in bfloat16.")] = "cpu",
) -> None:
    """Train the flow."""
    from training.evaluate import score

    torch.manual_seed(seed)
    place = torch.device(device)
    tokenizer = make_tokenizer()
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "vae", dtype=torch.float32)
    vae.requires_grad_(False).to(memory_format=torch.channels_last)
    projection = autoencoder.read_projection(vae, to_tensor(read((256, 256))[0][:64]))
    buckets = {
        (size, half): load_bucket(size, half, projection, maps, tokenizer)
        for size in SHARES
        for maps in (guide.read_maps(size),)
        for half in (True, False)
    }
    flow, started = load_flow()
    log = Log("flow")
    if not started:
        log.write(0, {"text": pretrain(TextPair(flow.t5, flow.clip), tokenizer)})
    RUN.mkdir(parents=True, exist_ok=True)
    flow.to(place)
    average = Average(flow, 0.998)
    alignment = guide.Alignment(flow.transformer.single_transformer_blocks[guide.LAYER])
    trained = nn.ModuleList([flow, alignment.to(place)])
    optimizers = make_optimizers(trained, flow.matrices(), lr, matrix_lr, 0.01)
    modules: dict[str, nn.Module] = {"flow": flow, "average": average.model, "alignment": alignment}
    load_state(RUN, modules, optimizers)
    rng = torch.Generator().manual_seed(seed + log.steps_before)
    nothing = tokenize(tokenizer, [""])
    start, saved, step = time.monotonic(), time.monotonic(), 0
    for bucket, chosen, is_large in batches(buckets, rng, small, large, large_share):
        progress = (time.monotonic() - start) / (minutes * 60)
        if progress >= 1:
            break
        set_lr(optimizers, step, progress, 100, decay)
        x0, maps = bucket.latents[chosen].to(place).float(), bucket.maps[chosen].to(place)
        dropped = torch.rand(len(chosen), generator=rng) < DROP_CAPTION
        tokens = torch.where(dropped[:, None], nothing, bucket.tokens[chosen])
        weights = torch.where(dropped[:, None], torch.ones(()), bucket.weights[chosen]).to(place)
        sigma = draw_sigmas(len(chosen), x0.shape[1], is_large, rng).to(place)
        noise = torch.randn(x0.shape, generator=rng).to(place)
        x = torch.lerp(x0, noise, sigma[:, None, None])
        with torch.autocast(place.type, torch.bfloat16, enabled=place.type != "cpu"):
            velocity = flow(x, sigma, flow.text(tokens.to(place)), bucket.rows, bucket.columns)
            apart = alignment(maps, bucket.rows, bucket.columns)
        error = (velocity.float() - (noise - x0)).pow(2).mean(2)
        loss = (weights * error).sum() / weights.sum() + ALIGN * apart
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average.update(flow)
        step += 1
        log.mean({"large" if is_large else "small": error.mean().item(), "apart": apart.item()})
        if step % 50 == 0:
            log.write(step, {})
        if time.monotonic() - saved > save_every * 60:
            save_pipeline(average.model, vae, tokenizer)
            save_state(RUN, modules, optimizers)
            log.write(step, score(average.model, vae, tokenizer, RUN / "samples.png"))
            saved = time.monotonic()
    save_pipeline(average.model, vae, tokenizer)
    save_state(RUN, modules, optimizers)
    log.write(step, score(average.model, vae, tokenizer, RUN / "samples.png", count=64))


if __name__ == "__main__":
    typer.run(main)
