"""What vista's training rests on: the encoder is the linear map it should be, conventions are diffusers' own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from torch.nn.functional import avg_pool2d, pad, unfold

pytest.importorskip("numba")

from training import autoencoder, critic, guide, norms, redraw, upscaler
from training.data import to_tensor
from training.evaluate import draw, prompts
from training.flow import LOW_SIGMA, draw_sigmas, object_weights
from training.flow_model import Flow, image_ids, make_scheduler, make_transformer, pack, shift, unpack
from training.heldout import SETS, lines
from training.inspector import accuracy
from training.losses import look_loss, pixel_loss, texture_loss
from training.optim import Average, Muon, orthogonalize
from training.text import make_encoders, make_tokenizer, tokenize
from training.track import load_state, save_state
from training.world import ATTRIBUTES, MAX_TOKENS, paint, sample_scene

from mrflow.metrics.attributes import asked
from mrflow.vista import inspector


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Return painted pictures (24, 3, 128, 128) in [-1, 1]."""
    rng = np.random.default_rng(1)
    return to_tensor(paint([sample_scene(rng) for _ in range(24)], 128, 128))


@pytest.fixture(scope="module")
def flow() -> Flow:
    """Return a small flow whose every weight is random, the zero-initialised ones too."""
    torch.manual_seed(0)
    flow = Flow(*make_encoders(), make_transformer())
    for parameter in flow.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.03)
    return flow.eval().requires_grad_(False)


def test_the_stock_encoder_holds_the_linear_map(pictures: torch.Tensor) -> None:
    vae = autoencoder.build()
    rows, mean, divisor = autoencoder.fit_components([pictures])
    autoencoder.write_encoder(vae, rows, mean, divisor)
    patches = unfold(pictures, 8, stride=8).mT
    expected = ((patches - mean) @ rows.T / divisor).mT.reshape(24, autoencoder.LATENTS, 16, 16)
    with torch.no_grad():
        latents = autoencoder.encode(vae, pictures)
    assert (latents - expected).square().mean().sqrt() < 0.05 * expected.square().mean().sqrt()


def test_the_encoder_is_read_back_as_a_linear_map(pictures: torch.Tensor) -> None:
    vae = autoencoder.build()
    autoencoder.write_encoder(vae, *autoencoder.fit_components([pictures]))
    projection = autoencoder.read_projection(vae, pictures[:20])
    with torch.no_grad():
        latents = autoencoder.encode(vae, pictures[20:, :, :96])
    assert (autoencoder.project(pictures[20:, :, :96], *projection) - latents).std() < 0.03 * latents.std()


def test_components_are_the_best_linear_code(pictures: torch.Tensor) -> None:
    rows, mean, _ = autoencoder.fit_components([pictures])
    patches = unfold(pictures, 8, stride=8).mT.reshape(-1, 192) - mean
    left = (patches - patches @ rows.T @ rows).square().sum()
    smaller = torch.linalg.svdvals(patches.double())[autoencoder.LATENTS :].square().sum()
    assert left == pytest.approx(smaller.item(), rel=1e-3)


def test_gradients_are_balanced_on_the_last_kernel() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    loss = critic.balance(weight.square().sum(), 1000 * weight[0], weight, 0.5)
    loss.backward()
    assert torch.allclose(weight.grad, torch.tensor([6.0 + 5.0, 8.0]))  # |(6, 8)| = 10; half of it on the first


def test_packing_is_the_pipelines() -> None:
    latents = torch.randn(2, autoencoder.LATENTS, 6, 10)
    packed = pack(latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, *latents.shape))
    assert torch.equal(unpack(packed, 6, 10), latents)
    assert torch.equal(image_ids(3, 5), FluxPipeline._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32))


def test_the_shift_is_the_schedulers() -> None:
    scheduler: FlowMatchEulerDiscreteScheduler = make_scheduler()
    for tokens, mu in ((64, 0.5), (1024, 1.5), (544, 1.0)):
        scheduler.set_timesteps(sigmas=np.linspace(1, 0.1, 10), mu=mu)
        assert torch.allclose(scheduler.sigmas[:-1], shift(torch.linspace(1, 0.1, 10), tokens), atol=1e-6)


def test_quick_samples_are_the_pipelines(flow: Flow) -> None:
    vae, tokenizer = autoencoder.build(), make_tokenizer()
    pipe = FluxPipeline(make_scheduler(), vae, flow.clip, tokenizer, flow.t5, tokenizer, flow.transformer)
    pipe.set_progress_bar_config(disable=True)
    prompt = "a lake at sunset with a red boat on the left"
    noise = torch.randn(1, 16, 4 * autoencoder.LATENTS, generator=torch.Generator().manual_seed(3))
    theirs = pipe(
        prompt, negative_prompt="", true_cfg_scale=3.0, height=64, width=64, num_inference_steps=3,
        latents=noise, max_sequence_length=MAX_TOKENS, output_type="latent",
    ).images  # fmt: skip
    ours = draw(flow, tokenizer, [prompt], side=64, steps=3, guidance=3.0, seed=3)
    assert torch.allclose(pack(ours), theirs, atol=1e-4)


def test_timesteps_visit_the_refine_pass() -> None:
    sigmas = draw_sigmas(4000, 256, True, torch.Generator().manual_seed(0))
    assert 0.25 < (sigmas < LOW_SIGMA).float().mean() < 0.45
    assert (sigmas - 0.12).abs().lt(0.02).float().mean() > 0.02
    assert sigmas.min() > 0
    assert sigmas.max() <= 1


def test_the_loss_weighs_where_the_caption_puts_the_object() -> None:
    weights = object_weights(["a lake with a red boat on the left", "a lake at night"], 8, 8).view(2, 8, 8)
    assert weights[0, 5, 1] == 3
    assert weights[0, 5, 6] == 1
    assert weights[0, 0, 1] == 1
    assert (weights[1] == 1).all()


def test_repainting_is_the_pipelines_path(flow: Flow) -> None:
    latents, rng = torch.randn(2, autoencoder.LATENTS, 4, 6), torch.Generator().manual_seed(5)
    tokens = tokenize(make_tokenizer(), ["a lake at night", "a beach"])
    sigmas = torch.tensor([0.0, 0.3])
    made = redraw.repaint(flow, latents, tokens, sigmas, 2, rng)
    assert torch.equal(made[0], latents[0])  # nothing mixed in, nothing to take away
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))[1:]
    x, text = pack(0.7 * latents[1:] + 0.3 * noise), flow.text(tokens[1:])
    for sigma in (0.3, 0.15):
        x = x - 0.15 * flow(x, torch.tensor([sigma]), text, 2, 3)
    assert torch.allclose(made[1:], unpack(x, 4, 6), atol=1e-5)


def test_repainted_crops_lie_where_their_truth_does(pictures: torch.Tensor) -> None:
    vae, rng = autoencoder.build(), np.random.default_rng(0)
    autoencoder.write_encoder(vae, *autoencoder.fit_components([pictures]))
    projection = autoencoder.read_projection(vae, pictures[:20])
    painted = ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    latents = tuple(autoencoder.project(to_tensor(painted, half), *projection) for half in (False, True))
    images, made = autoencoder.repainted_crops(painted, latents, rng, 6, 32)
    assert (images.shape, made.shape) == ((6, 3, 32, 32), (6, autoencoder.LATENTS, 4, 4))
    assert torch.allclose(autoencoder.project(images, *projection), made, atol=1e-4)


def test_an_upscalers_repainted_inputs_lie_where_their_truth_does(monkeypatch) -> None:
    monkeypatch.setattr(upscaler, "DRAFT_SHARE", 1.0)
    painted = np.random.default_rng(0).integers(256, size=(3, 192, 192, 3), dtype=np.uint8)
    drafts = avg_pool2d(to_tensor(painted) / 2 + 0.5, 2)
    vae = autoencoder.build().requires_grad_(False)
    projection = autoencoder.read_projection(vae, to_tensor(np.zeros((16, 64, 64, 3), np.uint8)))
    rngs = np.random.default_rng(1), torch.Generator().manual_seed(1)
    small, true = upscaler.pairs(painted, drafts, vae, projection, *rngs, 6)
    assert torch.allclose(small, avg_pool2d(true, 2), atol=1e-6)


def test_prompts_fit_and_are_reproducible() -> None:
    captions, wanted = prompts(200)
    assert tokenize(make_tokenizer(), captions).shape == (200, MAX_TOKENS)
    assert (wanted.shape, captions) == ((200, len(ATTRIBUTES)), prompts(200)[0])


def test_tokenizer_reads_what_people_type() -> None:
    tokenizer = make_tokenizer()
    typed, plain = tokenizer(["A snowy lake, at Night.", "a snowy lake , at night"])["input_ids"]
    assert typed == plain
    assert tokenizer.unk_token_id in tokenizer("a dragon")["input_ids"]


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 16, 5), (2, 5, 16)])
def test_orthogonalize_pulls_singular_values_to_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices, steps=8))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_muon_learns_a_matrix() -> None:
    torch.manual_seed(0)
    target, x = torch.randn(6, 4), torch.randn(64, 4)
    layer = torch.nn.Linear(4, 6, bias=False)
    optimizer = Muon(layer.parameters(), lr=0.1)
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 150)
        loss = (layer(x) - x @ target.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1e-2  # from about 5


def test_average_and_state_survive(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    average = Average(model, 0.9)
    with torch.no_grad():
        model.weight.add_(1.0)
    for _ in range(300):
        average.update(model)
    assert torch.allclose(average.model.weight, model.weight, atol=1e-4)
    optimizer = torch.optim.AdamW(model.parameters())
    save_state(tmp_path, {"model": model}, [optimizer])
    other = torch.nn.Linear(2, 2)
    assert load_state(tmp_path, {"model": other}, [torch.optim.AdamW(other.parameters())])
    assert torch.equal(other.weight, model.weight)
    assert not load_state(tmp_path / "nothing", {}, [])


def test_texture_is_judged_by_its_strength_not_by_where_its_grains_lie() -> None:
    generator = torch.Generator().manual_seed(0)
    true, other = (0.1 * torch.randn(2, 3, 64, 64, generator=generator) for _ in range(2))
    assert float(texture_loss(true, true)) == float(pixel_loss(true, true)) == 0
    assert float(texture_loss(-true, true)) == pytest.approx(0, abs=1e-6)  # every grain the other way round
    flat = float(texture_loss(torch.zeros_like(true), true))
    assert texture_loss(other, true) < 0.2 * flat
    assert pixel_loss(other, true) > pixel_loss(torch.zeros_like(true), true)  # which is why pixels alone blur
    assert float(texture_loss(0.5 * true, true)) == pytest.approx(0.5 * flat, rel=0.1)
    left = torch.cat([true[..., :32], torch.zeros_like(true[..., 32:])], 3)
    assert texture_loss(left.flip(3), left) > 0.5 * flat  # as strong on the whole, but elsewhere


def test_the_look_tells_texture_from_noise_of_the_same_strength(pictures: torch.Tensor) -> None:
    eye, true = inspector.load(guide.FILE), pictures[:4, :, 48:112, 32:96].clone()

    def mean(images: torch.Tensor, side: int) -> torch.Tensor:
        return avg_pool2d(pad(images, (side // 2,) * 4, mode="replicate"), side, 1)

    soft, noise = mean(true, 3), torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    noise = (noise - mean(noise, 3)) * mean((true - soft).square(), 9).sqrt()
    half, noisy = (soft + true) / 2, soft + noise
    assert float(look_loss(eye, true, true)) == 0
    assert texture_loss(noisy, true) < texture_loss(half, true)
    assert look_loss(eye, noisy, true) > 3 * look_loss(eye, half, true)

    half.requires_grad_()
    look_loss(eye, half, true.requires_grad_()).backward()
    assert half.grad is not None
    assert true.grad is None


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_the_shipped_prompts_are_made_by_their_command(path: Path) -> None:
    assert path.read_text(encoding="utf-8").splitlines() == lines(*SETS[path])


def test_labels_of_full_captions_are_what_their_words_ask() -> None:
    for line in lines(64, seed=1):
        row = json.loads(line)
        for name, value in asked(row["prompt"]).items():
            assert row["labels"].get(name, "none") == value, row


@pytest.mark.skipif(not inspector.FILE.exists(), reason="the inspector is not trained")
def test_the_inspector_reads_fresh_renders() -> None:
    shares = accuracy(inspector.load(), 100, seed=77)
    assert min(shares.values()) > 0.85
    assert np.mean(list(shares.values())) > 0.95


def test_the_shipped_autoencoder_keeps_pictures(pictures: torch.Tensor) -> None:
    if not (autoencoder.FOLDER / "config.json").exists():
        pytest.skip("the autoencoder is not trained")
    vae = AutoencoderKL.from_pretrained(autoencoder.FOLDER, dtype=torch.float32)
    values = autoencoder.check(vae, vae.decoder, pictures[:8])
    assert values["psnr"] > 26
    assert 0.6 < values["edges"] < 1.2


def moved(vae: AutoencoderKL, pictures: torch.Tensor) -> tuple[float, float]:
    """Return how far the left and the right quarter of decoded pairs of pictures move when what is right of
    the middle turns grey: ten latents, which convolutions alone span, from the left quarter."""
    with torch.no_grad():
        latents = autoencoder.encode(vae, torch.cat([pictures, pictures.roll(1, 0)], 3))
        mixed = torch.cat([latents[..., :18], torch.zeros_like(latents[..., 18:])], 3)
        change = (vae.decode(mixed).sample - vae.decode(latents).sample).abs()
    return change[..., :64].max().item(), change[..., -64:].max().item()


def test_a_fresh_decoder_treats_all_pictures_alike_and_training_keeps_it_so(pictures: torch.Tensor) -> None:
    torch.manual_seed(0)
    vae = autoencoder.build()
    autoencoder.write_encoder(vae, *autoencoder.fit_components([pictures]))
    autoencoder.prepare_decoder(vae.decoder)
    near, far = moved(vae, pictures[:4])
    assert near < 1e-3 * far
    for parameter in vae.decoder.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    assert moved(vae, pictures[:4])[0] > 0.01
    norms.hold(vae.decoder)
    near, far = moved(vae, pictures[:4])
    assert near < 1e-3 * far


def test_what_the_shipped_decoder_paints_depends_on_what_is_near(pictures: torch.Tensor) -> None:
    if not (autoencoder.FOLDER / "config.json").exists():
        pytest.skip("the autoencoder is not trained")
    vae = AutoencoderKL.from_pretrained(autoencoder.FOLDER, dtype=torch.float32)
    near, far = moved(vae, pictures[:8])
    assert near < 0.05 < 0.5 < far
