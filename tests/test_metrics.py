"""Scores of pictures: each against a closed form or somebody else's code."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training.renders import write_renders

from mrflow.errors import MissingExtraError, ModelError, PromptError
from mrflow.images import to_pil
from mrflow.metrics import attributes, pixels
from mrflow.metrics.frechet import Gaussian, Reference, Renders, read_renders, renders_of
from mrflow.metrics.intervals import Estimate, difference, estimate, mean, ratio_of_medians
from mrflow.vista import inspector
from mrflow.vista.grammar import ATTRIBUTES


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = mean(values)
    wide = 1.96 * values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - wide, abs=0.05)
    assert found.high == pytest.approx(values.mean() + wide, abs=0.05)


def test_a_prompts_pictures_are_drawn_together() -> None:
    """Ten equal pictures of a prompt are one observation, not ten."""
    each = np.random.default_rng(2).normal(0, 1, 100)
    single, tenfold = mean(each), mean(np.repeat(each[:, None], 10, 1))
    assert tenfold.high - tenfold.low == pytest.approx(single.high - single.low)


def test_pairing_takes_away_what_the_prompts_do() -> None:
    rng = np.random.default_rng(3)
    prompts = rng.normal(0, 10, 300)
    a, b = prompts + 1 + rng.normal(0, 0.1, 300), prompts + rng.normal(0, 0.1, 300)
    found = difference(a, b)
    assert found.value == pytest.approx(1, abs=0.05)
    assert found.high - found.low < 0.1  # unpaired it would be about 3


def test_what_is_not_asked_counts_nowhere() -> None:
    values = np.array([[1.0, np.nan], [0.0, 1.0]] * 50)
    assert mean(values).value == pytest.approx(2 / 3)
    assert mean(np.full((4, 2), np.nan)) == Estimate(None, None, None)
    assert difference(values, np.full((100, 2), np.nan)) == Estimate(None, None, None)


def test_figures_of_sums() -> None:
    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert estimate(rows, lambda sums: sums[..., 0] / sums[..., 1]).value == pytest.approx(4 / 6)


def test_a_ratio_of_equal_times_has_no_width() -> None:
    seconds = np.random.default_rng(4).uniform(1, 2, 50)
    found = ratio_of_medians(3 * seconds, seconds)
    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))


def test_labels_and_words_ask() -> None:
    assert attributes.asked("a snowy lake at night") == {
        **{"season": "winter", "foreground": "lake", "time": "night", "object": "none"}
    }
    assert attributes.asked("a dragon") == {}
    assert attributes.asked("a dragon", {"time": "noon"}) == {"time": "noon"}
    for wrong in ({"time": "late"}, {"weather": "clear"}, {"time": None}):
        with pytest.raises(PromptError, match="known are"):
            attributes.asked("a lake", wrong)  # type: ignore[arg-type]


def test_hits_count_what_is_asked_and_nothing_else() -> None:
    class Seer:
        """Sees in every picture what its first value says."""

        def name(self, images: torch.Tensor) -> torch.Tensor:
            assert images.min() >= -1
            return torch.full((len(images), len(ATTRIBUTES)), 1)

    wanted = attributes.as_indices([{"time": "noon", "season": "summer"}, {}])
    seen = attributes.found(Seer(), torch.zeros(2, 3, 8, 8))  # type: ignore[arg-type]
    found = attributes.hits(seen, wanted)
    assert found[0, :2].tolist() == [1.0, 0.0]
    assert np.isnan(found[0, 2:]).all()
    assert np.isnan(found[1]).all()
    assert attributes.columns("thing") == [6, 7, 8]


def test_frechet_of_gaussians_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (200_000, 2)), rng.normal([3, 0], [2, 1], (200_000, 2))
    assert Reference(Gaussian.of(a)).distance(b) == pytest.approx(9 + 1, rel=0.02)  # |gap|^2 + (2 - 1)^2
    assert Reference(Gaussian.of(a)).distance(a) == pytest.approx(0, abs=1e-9)


def test_frechet_is_that_of_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    rng = np.random.default_rng(5)
    a, b = rng.normal(0, 1, (300, 6)) @ rng.normal(0, 1, (6, 6)), rng.normal(1, 2, (300, 6))
    one, other = Gaussian.of(a), Gaussian.of(b)
    tensors = [torch.from_numpy(x) for x in (one.mean, one.covariance, other.mean, other.covariance)]
    assert Reference(one).distance(b) == pytest.approx(float(fid._compute_fid(*tensors)), rel=1e-6)


def test_statistics_of_another_inspector_are_refused(tmp_path: Path) -> None:
    network, file = tmp_path / "inspector.safetensors", tmp_path / "renders.safetensors"
    network.write_bytes(b"first")
    gaussian = Gaussian.of(np.random.default_rng(0).normal(0, 1, (20, 4)))
    with pytest.raises(ModelError, match=r"training\.renders"):
        read_renders(network, file)
    patches = Gaussian(gaussian.mean + 1, 2 * gaussian.covariance, 320)
    write_renders(Renders(gaussian, patches, {"time": 0.5}), network, file)
    back = read_renders(network, file)
    assert (back.pictures.count, back.patches.count, back.accuracy) == (20, 320, {"time": 0.5})
    assert np.allclose(back.pictures.covariance, gaussian.covariance, atol=1e-6)
    assert np.allclose(back.patches.mean, gaussian.mean + 1, atol=1e-6)
    network.write_bytes(b"second")
    with pytest.raises(ModelError, match="another inspector"):
        read_renders(network, file)
    file.write_bytes(b"{}")
    with pytest.raises(ModelError, match="no statistics"):
        read_renders(network, file)


@pytest.mark.parametrize("side", [256, 512])
def test_the_shipped_statistics_are_near_a_fresh_render(side: int) -> None:
    try:
        renders = read_renders(inspector.FILE, renders_of(side))
    except ModelError as error:
        pytest.skip(str(error))
    assert renders.pictures.count >= 1000
    assert renders.patches.count == (side // 64) ** 2 * renders.pictures.count
    assert renders.pictures.mean.shape == renders.patches.mean.shape == (256,)
    assert set(renders.accuracy) == set(ATTRIBUTES)
    assert renders_of(side).stat().st_size < 2**20
    flat = attributes.features(inspector.load(), noise(64, 3, 64, 64))
    assert Reference(renders.pictures).distance(flat) > 1


def test_patches_are_looked_at_one_by_one_and_whole_ones_only() -> None:
    network, images = inspector.Inspector().eval(), noise(2, 3, 130, 200)
    rows = attributes.patch_features(network, images)
    assert rows.shape == (2, 2 * 3, 256)
    assert np.allclose(rows[1, 4], attributes.features(network, images[1:, :, 64:128, 64:128])[0], atol=1e-5)
    assert attributes.patch_features(network, noise(2, 3, 48, 200)).shape == (2, 0, 0)


@pytest.mark.parametrize("frequency", [4, 12, 25])
def test_a_wave_has_its_power_in_its_ring(frequency: int) -> None:
    """A wave of amplitude a has the variance a^2 / 2."""
    wave = 0.5 + 0.2 * torch.sin(2 * math.pi * frequency / 64 * torch.arange(64.0))
    power = pixels.radial_power(wave.expand(1, 3, 64, 64))[0]
    ring = int(frequency / 64 * 2 * pixels.BINS)
    assert power[ring - 2 : ring + 3].sum() == pytest.approx(0.2**2 / 2, rel=0.01)
    assert power.sum() == pytest.approx(0.2**2 / 2, rel=0.01)
    fine = pixels.fine_energy(wave.expand(1, 3, 64, 64)).item()
    assert fine == pytest.approx(0.2**2 / 2 if frequency > 8 else 0, abs=1e-4)


def test_white_noise_is_as_strong_everywhere() -> None:
    power = pixels.radial_power(noise(16, 1, 128, 128).expand(-1, 3, -1, -1)).mean(0)
    area = torch.tensor([math.pi * ((k + 1) ** 2 - k**2) for k in range(pixels.BINS)]) / (4 * pixels.BINS**2)
    level = torch.full((pixels.BINS - 1,), 1 / 12, dtype=torch.float64)
    assert torch.allclose((power / area)[1:], level, rtol=0.15)  # the first ring has four frequencies
    assert (power / area)[8:].mean().item() == pytest.approx(1 / 12, rel=0.03)  # the variance of uniform noise


def test_blur_takes_fine_energy_and_brightness_alone_has_none() -> None:
    image = noise(1, 3, 48, 32)
    blurred = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    assert pixels.fine_energy(blurred) < 0.5 * pixels.fine_energy(image)
    assert pixels.fine_energy(torch.full((1, 3, 32, 32), 0.7)).item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("period", [2.5, 8, 16])
@pytest.mark.parametrize("across", [False, True])
def test_stripes_along_a_side_stand_out_by_their_power(period: float, across: bool) -> None:
    """A wave among noise: its power over the median of the noise's, which is ln 2 of the mean."""
    side, amplitude, deviation = 512, 4 / 255, 0.1
    grain = torch.randn(8, 1, side, side, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wave = amplitude * torch.sin(2 * math.pi * torch.arange(side, dtype=torch.float64) / period)
    striped = 0.5 + deviation * grain + (wave if across else wave[:, None])
    energy = side * 3 / 8 * deviation**2 / side  # of noise in the profile under a Hann window
    faint = (pixels.FAINT / 255 * side / 4) ** 2
    expected = 10 * math.log10((amplitude * side / 4) ** 2 / (math.log(2) * energy + faint))
    assert pixels.stripes(striped.expand(-1, 3, -1, -1)).mean().item() == pytest.approx(expected, abs=1.5)


def test_edges_diagonals_and_flat_pictures_are_no_stripes() -> None:
    side = 256
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    diagonal = 0.5 + 0.1 * torch.sin(2 * math.pi * (rows + columns) / 8)
    half = torch.where(columns < side // 2, 0.2, 0.8)
    for image in (diagonal, half, torch.full((side, side), 0.5)):
        assert pixels.stripes((image + 0.02 * noise(1, 1, side, side)).expand(1, 3, -1, -1)) < 15
    assert pixels.stripes(torch.full((1, 3, 64, 64), 0.3)) == 0
    for sides in ((16, 8), (1, 300), (1, 1)):
        assert torch.isfinite(pixels.stripes(noise(2, 3, *sides))).tolist() == [True, True]


def test_moments_and_drift_are_in_levels() -> None:
    image = torch.zeros(3, 4, 4)
    image[0] = 0.5
    image[:, :, 2:] += 0.4
    *mean, contrast = before = pixels.moments(image)
    assert mean == pytest.approx([178.5, 51, 51])
    assert contrast == pytest.approx(51)
    after = pixels.moments(image * 0.5)
    assert np.subtract(after, before) == pytest.approx([-89.25, -25.5, -25.5, -25.5])


def test_psnr_is_the_closed_form() -> None:
    grey, lighter = (Image.new("RGB", (16, 16), (value,) * 3) for value in (100, 110))
    assert pixels.psnr(grey, lighter) == pytest.approx(10 * math.log10(255**2 / 100))
    assert pixels.psnr(grey, grey) == pixels.MAX_PSNR


def test_ssim_is_that_of_torchmetrics() -> None:
    metric = pytest.importorskip("torchmetrics.functional.image").structural_similarity_index_measure
    image = noise(1, 3, 128, 96)
    one, other = to_pil(image)[0], to_pil(0.6 * image + 0.3 * noise(1, 3, 128, 96, seed=1))[0]
    tensors = [torch.from_numpy(np.array(x)).permute(2, 0, 1)[None].double() for x in (one, other)]
    theirs = float(metric(*tensors, data_range=255.0, gaussian_kernel=True, sigma=1.5))
    assert 0.3 < theirs < 0.9
    assert pixels.ssim(one, other) == pytest.approx(theirs, abs=5e-3)  # they treat the border differently
    assert pixels.ssim(one, one) == pytest.approx(1)
    assert pixels.ssim(one.resize((8, 8)), other.resize((8, 8))) is None


def test_diversity_is_the_mean_over_pairs() -> None:
    images = [pixels.reduce(torch.full((3, 20, 90), value / 255)) for value in (0, 10, 30)]
    assert pixels.diversity(images) == pytest.approx((10 + 30 + 20) / 3)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'"\.\[bench\]"'):
        pixels.check_similarity()
