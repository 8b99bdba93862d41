"""The refine sigma that fits a model: measured once, more for lettering, a number in every recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import make_fast, make_pipe
from mrflow import MrFlow, Plan, auto_sigma
from mrflow.auto_sigma import LETTERING, asks_for_lettering, needed_sigma
from mrflow.known_upscalers import folder
from support.families import CASES
from support.families import make_fast as make_family
from support.pictures import bytes_of

AUTO = Plan(steps=2, true_cfg_scale=1.0, refine_sigma="auto")


@pytest.fixture(autouse=True)
def nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(auto_sigma, "_known", {})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return what is measured, each time that it is."""
    seen, measure = list[float](), auto_sigma._measure

    def watch(*args: Any) -> float:
        seen.append(measure(*args))
        return seen[-1]

    monkeypatch.setattr(auto_sigma, "_measure", watch)
    return seen


@pytest.mark.parametrize("power", [0.0186, 0.25, 1.0])
@pytest.mark.parametrize("lacks", [True, False])
def test_the_noise_hides_what_is_wrong_or_missing(power: float, lacks: bool) -> None:
    """White latents of a power of which nothing came through, or an error of that power on top: closed form."""
    torch.manual_seed(0)
    white = torch.randn(8, 16, 64, 64) * power**0.5
    pair = (white, torch.zeros_like(white)) if lacks else (torch.zeros_like(white), white)
    assert needed_sigma(*pair, 2.0) == pytest.approx(power**0.5 / (1 + power**0.5), rel=0.01)


def test_what_is_wrong_at_low_frequencies_is_not_redrawn() -> None:
    true = torch.randn(2, 4, 32, 32)
    spectrum = torch.fft.fft2(torch.randn(2, 4, 32, 32))
    spectrum[..., 8:25, :] = spectrum[..., :, 8:25] = 0
    assert needed_sigma(true, true + torch.fft.ifft2(spectrum).real, 2.0) < 1e-2


def test_the_fixed_pictures_fall_with_the_cube_of_the_frequency() -> None:
    pictures = auto_sigma._pictures(256)
    assert (pictures.shape, pictures.std().item()) == ((4, 3, 256, 256), pytest.approx(0.2, abs=0.02))
    power = torch.fft.fft2(pictures.double()).abs().square().mean((0, 1))[1:65, 0]
    frequencies = torch.arange(1, 65, dtype=torch.float64)
    slope = torch.linalg.lstsq(
        torch.stack([frequencies.log(), frequencies * 0 + 1], 1), power.log()[:, None]
    ).solution
    assert slope[0].item() == pytest.approx(-3, abs=0.35)


@pytest.mark.parametrize(
    "prompt",
    [
        'a sign that says "open"',
        "a neon sign reading “Café”",
        "a cake with the words 'happy birthday' on it",
        "a poster with text",
        "lettering on a wall",
        "a shop sign that reads bakery",
        "看板「営業中」",
        "a book titled Winter",
    ],
)
def test_prompts_that_ask_for_lettering(prompt: str) -> None:
    assert asks_for_lettering(prompt)


@pytest.mark.parametrize(
    "prompt", ["a dog's and a cat's tail", "a woman reading a book", "a textured wall", 'a 12" record', "a lake"]
)
def test_prompts_that_do_not(prompt: str) -> None:
    assert not asks_for_lettering(prompt)


def test_a_batch_has_two_values_at_most_and_every_recipe_a_number(measured: list[float]) -> None:
    fast = make_fast(make_pipe())
    prompts = ["a boat", 'a boat "and"', "a lake", "a house at dusk"]
    result = fast(prompts, seed=3, plan=AUTO)
    sigmas = [recipe.plan.refine_sigma for recipe in result.recipes]
    assert sigmas == [measured[0], max(measured[0], LETTERING), measured[0], measured[0]]
    assert len(measured) == 1
    for k in (1, 2):
        alone = fast(prompts[k], seed=3 + k, plan=AUTO)
        assert alone.images[0].tobytes() == result.images[k].tobytes()
        assert bytes_of(fast.replay(result.recipes[k]).images) == [result.images[k].tobytes()]


def test_all_ways_to_a_finished_picture_take_it(fast: MrFlow, measured: list[float]) -> None:
    drafted = fast.draft("a boat", seed=3, plan=AUTO)[0]
    other = fast.draft("a boat", seed=3, plan=Plan(steps=2, true_cfg_scale=1.0))[0]
    enhanced = fast.enhance(torch.full((1, 3, 32, 32), 0.5), "a boat", plan=AUTO)
    for recipe in (drafted.recipe, fast.finish(other, refine_sigma="auto").recipes[0], enhanced.recipes[0]):
        assert recipe.plan.refine_sigma == measured[0]


def test_the_plain_pipeline_has_nothing_to_measure(fast: MrFlow, measured: list[float]) -> None:
    assert fast.native("a boat", steps=1, plan=AUTO).recipes[0].plan.refine_sigma == 0.12
    assert measured == []


def test_it_is_measured_once_for_each_autoencoder_upscaler_and_scale(measured: list[float]) -> None:
    pipe = make_pipe()
    fast, other = make_fast(pipe), make_fast(pipe, upscaler="bilinear")
    kept = folder().with_name("sigmas.json")
    for count, (model, scale) in enumerate([(fast, 2.0), (other, 2.0), (fast, 1.5)], 1):
        for _ in range(2):
            model.model.resolve_plan(AUTO)
            model.draft("a boat", seed=1, plan=Plan(refine_sigma="auto", scale=scale, steps=1))
        assert (len(measured), len(json.loads(kept.read_text()))) == (count, count)
    auto_sigma._known.clear()  # as in another process
    make_fast(make_pipe()).draft("a boat", seed=1, plan=AUTO)
    assert len(measured) == 3
    torch.nn.init.normal_(pipe.vae.encoder.conv_in.weight)
    fast.draft("a boat", seed=1, plan=AUTO)
    assert len(measured) == 4


@pytest.mark.parametrize("text", ["", "[]", '{"a": "b"}', "{" * 9000, '{"a": null}', '{"a": 7}'])
def test_a_file_that_is_none_of_ours_is_written_anew(fast: MrFlow, measured: list[float], text: str) -> None:
    kept = folder().with_name("sigmas.json")
    kept.parent.mkdir(parents=True)
    kept.write_text(text)
    fast.draft("a boat", seed=1, plan=AUTO)
    assert list(json.loads(kept.read_text()).values()) == measured


def test_a_place_that_cannot_be_written_costs_no_picture(
    fast: MrFlow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MRFLOW_CACHE", str(tmp_path / "file" / "inside"))
    assert 0 < fast("a boat", seed=1, plan=AUTO).recipes[0].plan.refine_sigma < 1


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["PRXPixelPipeline", "Flux2KleinPipeline", "QwenImagePipeline"])
def test_latents_of_all_layouts_are_measured(name: str, measured: list[float]) -> None:
    case = CASES[name]
    fast = make_family(case, case.make())
    assert fast.model.fit(Plan(refine_sigma="auto"), "a boat").refine_sigma == measured[0]
    assert 0.05 <= measured[0] <= 0.5
