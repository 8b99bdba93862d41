"""The ComfyUI nodes' arithmetic, and the folder that they are published as, without a ComfyUI.

tests/test_comfyui_server.py tries the nodes themselves.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfyui import passes
from hypothesis import given, settings
from hypothesis import strategies as st
from tools import comfyui_pack, comfyui_workflows
from torch import Tensor

import mrflow
from mrflow import Plan
from mrflow.errors import MrFlowError, PlanError, SizeError
from mrflow.plan import ABOUT
from mrflow.sampling import add_noise, refine_sigmas


def defaults() -> dict[str, object]:
    return {name: default for name, _, default in passes.numbers()}


ACTS = {
    "steps",
    "refine_steps",
    "refine_sigma",
    "scale",
    "true_cfg_scale",
    "refine_true_cfg_scale",
    "guidance_stop",
    "noise",
    "lift",
    "color_guard",
    "tile",
}


def test_no_widget_is_only_a_widget() -> None:
    """A new number of a plan is a widget by itself: let nodes.py act on it, try that in a server, add it here."""
    assert {name for name, *_ in passes.numbers()} == ACTS
    assert set(passes.ELSEWHERE) == set(ABOUT) - ACTS


def test_a_node_as_it_is_dropped_makes_the_default_plan_without_guidance() -> None:
    target = passes.make_target(1024, 768, **defaults())
    assert target.plan == Plan(true_cfg_scale=1.0, guidance_stop=1.0)
    assert target.draft_size == (512, 384)


@pytest.mark.parametrize("name", passes.SINGLE)
def test_a_preset_sets_what_it_names_and_nothing_else(name: str) -> None:
    given_numbers = {**defaults(), "steps": 33, "refine_sigma": 0.7, "noise": "native", "true_cfg_scale": 4.5}
    plan, named = passes.make_target(1024, 1024, name, **given_numbers).plan, passes.SINGLE[name].plan
    assert (plan.steps, plan.refine_steps, plan.refine_sigma) == (
        named.steps,
        named.refine_steps,
        named.refine_sigma,
    )
    assert plan.noise == "native"
    assert plan.true_cfg_scale == (4.5 if named.true_cfg_scale is None else named.true_cfg_scale)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(SizeError, match="1024x1001"):
        passes.make_target(1024, 1001)
    with pytest.raises(PlanError, match="refine_sigma is 1"):
        passes.make_target(1024, 1024, refine_sigma=1.0)
    with pytest.raises(MrFlowError, match="no negative conditioning"):
        passes.check_guidance(4.0, None)
    passes.check_guidance(1.0, None)
    with pytest.raises(MrFlowError, match="at least twice"):
        passes.check_network(SimpleNamespace(scale=1, input_channels=3, output_channels=3))


@settings(deadline=None)
@given(st.floats(0.01, 0.99), st.integers(1, 5), st.floats(0.1, 2.0))
def test_levels_keep_the_ratio_of_signal_to_noise(sigma: float, steps: int, data: float) -> None:
    """(1 - s) x + s e is x + k e but for a factor, where x has the deviation that it has there."""
    sigmas = refine_sigmas(sigma, steps)
    ratios = passes.levels(sigmas, flow=False, data=data).double()
    assert ratios[-1] == 0
    for s, k in zip(sigmas, ratios, strict=True):
        picture, noise = torch.eye(2, dtype=torch.float64)
        ours = add_noise(picture, s, noise) if s else picture
        theirs = data * picture + k * noise
        assert torch.allclose(theirs * ours[0] / theirs[0], ours, rtol=1e-5)
    assert passes.levels(sigmas, flow=True).tolist() == pytest.approx(sigmas, rel=1e-6)


@pytest.mark.parametrize(("stop", "guided"), [(1.0, 4), (0.5, 2), (0.3, 2), (0.05, 1)])
def test_guidance_stops_where_the_plan_says(stop: float, guided: int) -> None:
    sigmas = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])
    above = passes.guided_above(sigmas, Plan(steps=9, guidance_stop=stop))
    assert [bool(sigma > above) for sigma in sigmas[:-1]] == [k < guided for k in range(4)]


def test_a_switch_divides_one_schedule_of_both_sizes() -> None:
    small, large = torch.tensor([1.0, 0.8, 0.6, 0.3, 0.0]), torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])
    assert passes.make_target(1024, 1024, "klein-3/4").plan.label == "3/4"
    plan = passes.make_target(1024, 1024, steps=3, refine_steps=1, switch=True).plan
    assert plan.label == "3/4"
    draft, refine = passes.divide(plan, small, large)
    assert torch.equal(draft, torch.tensor([1.0, 0.8, 0.6, 0.0]))
    assert refine is not None
    assert torch.equal(refine, torch.tensor([0.4, 0.0]))
    assert passes.divide(Plan(), small, large) == (small, None)
    with pytest.raises(PlanError, match="3/4 divides 4"):
        passes.divide(plan, small, large[1:])


@pytest.mark.parametrize("frames", [(), (1,)], ids=["images", "video"])
@pytest.mark.parametrize("noise", ["own", "native"])
def test_noise_is_each_seeds_own(noise: str, frames: tuple[int, ...]) -> None:
    shape, plan = (4, *frames, 6, 8), Plan(noise=noise)
    both = passes.draft_noise(plan, [7, 8], shape, (12, 16))
    assert both.shape == (2, *shape)
    assert torch.equal(both[1:], passes.draft_noise(plan, [8], shape, (12, 16)))
    refined = passes.refine_noise([7, 8], shape)
    assert torch.equal(refined[1:], passes.refine_noise([8], shape))
    assert passes.stream_seeds([7, 8])[1:] == passes.stream_seeds([8])


def test_own_noise_is_what_comfyui_draws_for_the_first_picture() -> None:
    """comfy.sample.prepare_noise, ComfyUI 0.3.75: a generator of the seed, on the CPU, in float32."""
    theirs = torch.randn((1, 4, 6, 8), generator=torch.Generator("cpu").manual_seed(7))
    assert torch.equal(passes.draft_noise(Plan(noise="own"), [7], (4, 6, 8), (12, 16)), theirs)


def test_video_latents_get_the_noise_of_images() -> None:
    images = passes.draft_noise(Plan(noise="native"), [7], (4, 6, 8), (12, 16))
    video = passes.draft_noise(Plan(noise="native"), [7], (4, 1, 6, 8), (12, 16))
    assert torch.equal(video.squeeze(2), images)


def test_widgets_stay_within_a_numbers_own_bounds() -> None:
    for name, about, default in passes.numbers():
        if about.kind is str or default is None:
            continue
        limits = passes.bounds(about)
        for value in (limits["min"], limits["max"], default):
            passes.make_plan(**{name: value})
        assert passes.tooltip(about)


class Linear:
    """A model that adds to each latent what it is told about its place; `seen` keeps the shapes it was given."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, latents: Tensor, timestep: Tensor, **told: Any) -> Tensor:
        self.seen.append(tuple(latents.shape))
        rope, control = told["transformer_options"]["rope_options"], told["control"]
        height, width = latents.shape[-2] // 2, latents.shape[-1] // 2
        rows = torch.linspace(rope["shift_y"], rope["shift_y"] + height - 1, height)
        columns = torch.linspace(rope["shift_x"], rope["shift_x"] + width - 1, width)
        tokens = control["input"][0].transpose(1, 2).unflatten(2, (height, width))
        places = tokens + rows[:, None] + 100 * columns + told["c_crossattn"].mean()
        return latents + told["c_concat"] + places.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_tiles_are_told_where_they_lie_and_get_their_part_of_the_rest() -> None:
    latents, down, across = torch.randn(2, 4, 24, 44), 12, 22
    conditions = {
        "c_concat": torch.randn(2, 4, 24, 44),
        "c_crossattn": torch.randn(2, down * across, 4),  # as many words as there are patches: no map of them
        "control": {"input": [torch.randn(2, down * across, 4)]},
        "transformer_options": {"rope_options": {"shift_x": 3.0}, "cond_or_uncond": [0, 1]},
    }
    whole, cut = Linear(), Linear()
    given = {"input": latents, "timestep": torch.ones(2), "c": conditions}
    wanted = passes.Tiles(64, 2)(whole, given)
    made = passes.Tiles(16, 2)(cut, given)
    assert torch.allclose(made, wanted, atol=1e-4)
    assert whole.seen == [(2, 4, 24, 44)]
    assert set(cut.seen) == {(2, 4, 16, 16)}
    assert wanted[0, 0, 0, 0] != wanted[0, 0, 2, 0]


def test_tiles_go_on_with_another_wrapper_and_cut_maps_of_every_level() -> None:
    latents, seen = torch.randn(1, 4, 24, 48), set()
    control = {"middle": [torch.arange(72.0).view(1, 1, 6, 12)], "output": [torch.randn(1, 1, 24, 48), None]}

    def within(apply: Any, given: dict[str, Any]) -> Tensor:
        shape, part = given["input"].shape[-2:], given["c"]["control"]
        assert part["middle"][0].shape[-2:] == tuple(side // 4 for side in shape)
        assert part["output"][0].shape[-2:] == shape
        assert part["output"][1] is None
        seen.add(float(part["middle"][0][0, 0, 0, 0]))
        return given["input"]

    assert torch.allclose(
        passes.Tiles(16, 2, within)(None, {"input": latents, "timestep": None, "c": {"control": control}}), latents
    )
    assert len(seen) > 2


@pytest.mark.parametrize("side", [16, 64, 512])
def test_latents_need_not_be_whole_patches(side: int) -> None:
    """1000x1080 pixels are 125x135 latents: ComfyUI pads them, and what a ControlNet makes of them."""
    latents = torch.randn(1, 4, 125, 135)
    control = {
        "input": [torch.randn(1, 63 * 68, 4)],
        "output": [torch.randn(1, 4, 63, 68), torch.randn(1, 4, 16, 17)],
    }
    seen = set[tuple[int, ...]]()

    def model(given: Tensor, _: Any, **told: Any) -> Tensor:
        rows, columns = given.shape[-2:]
        assert told["control"]["input"][0].shape[1] == -(-rows // 2) * -(-columns // 2)
        assert told["control"]["output"][0].shape[-2:] == (-(-rows // 2), -(-columns // 2))
        assert told["control"]["output"][1].shape[-2:] == (-(-rows // 8), -(-columns // 8))
        seen.add((rows, columns))
        return given

    given = {"input": latents, "timestep": torch.ones(1), "c": {"control": control}}
    assert torch.allclose(passes.Tiles(side, 2)(model, given), latents, atol=1e-6)
    assert ((125, 135) in seen) == (side == 512)


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        (
            {"transformer_options": {"patches": {"double_block": [SimpleNamespace(encoded_image=1)]}}},
            "model patch",
        ),
        ({"attention_mask": torch.zeros(1, 600, 600)}, "style model"),
        ({"control": {"input": [None, torch.zeros(1, 100, 8)]}}, "This ControlNet"),
    ],
)
def test_conditioning_of_the_whole_picture_is_not_given_to_tiles(conditions: dict[str, Any], words: str) -> None:
    given = {"input": torch.zeros(1, 4, 48, 48), "timestep": torch.ones(1), "c": conditions}
    with pytest.raises(MrFlowError, match=f"{words}.*Set tile to 0"):
        passes.Tiles(16, 2)(lambda *_, **__: pytest.fail("it was run"), given)


# --- the workflows ---


@pytest.mark.parametrize("name", comfyui_workflows.MODELS)
def test_workflows_are_as_they_are_written(name: str) -> None:
    written = (comfyui_workflows.PACK / "api_workflows" / f"{name}.json").read_text()
    prompt = comfyui_workflows.prompt(name)
    assert json.loads(written) == prompt
    drawn = json.loads((comfyui_workflows.PACK / "example_workflows" / f"{name}.json").read_text())
    kinds = sorted(node["type"] for node in drawn["nodes"])
    assert kinds == sorted(["MarkdownNote", *(node["class_type"] for node in prompt.values())])
    plan = next(node["inputs"] for node in prompt.values() if node["class_type"] == "MrFlowPlan")
    assert passes.make_target(**plan).plan.steps > 1


def test_the_pages_pictures_are_there() -> None:
    page = (comfyui_workflows.PACK / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page)
    assert len(links) > len(comfyui_workflows.MODELS)
    for link in links:
        assert (comfyui_workflows.PACK / link).is_file(), link


# --- the folder ---


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("custom_nodes") / "mrflow-nodes"
    comfyui_pack.write(folder)
    return folder


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("")
    with pytest.raises(SystemExit, match="something else"):
        comfyui_pack.write(tmp_path)
    assert (tmp_path / "theirs.py").exists()


def test_the_core_lies_there_as_it_is(pack: Path) -> None:
    copies = list((pack / "core" / "mrflow").iterdir())
    assert {"plan.py", "plan.toml", "sampling.py", "upscaler.py"} <= {path.name for path in copies}
    for copy in copies:
        assert copy.read_bytes() == (comfyui_pack.PACKAGE / copy.name).read_bytes()


def test_it_works_where_only_comfyuis_own_libraries_are(pack: Path) -> None:
    """In a process that has neither mrflow nor what mrflow needs beyond ComfyUI."""
    script = f"""
import importlib, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("diffusers", "transformers", "accelerate", "lazy_loader", "cyclopts", "rich"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
sys.path[:] = [place for place in sys.path if "src" not in place.split("/")]
sys.meta_path[:] = [each for each in sys.meta_path if "editable" not in str(each).lower()]
sys.path.insert(0, {str(pack.parent)!r})
passes = importlib.import_module("mrflow-nodes.passes")
import mrflow.upscaler
assert mrflow.upscaler.__file__.startswith({str(pack.parent)!r}), mrflow.upscaler.__file__
target = passes.make_target(1024, 1024, "z-image-turbo-8+1")
import torch
print(target.draft_size, mrflow.upscaler.Upscaler("lanczos").upscale(torch.rand(1, 3, 8, 8), 16, 16).shape)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={}, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "(512, 512) torch.Size([1, 3, 16, 16])"


def test_its_version_is_mrflows(pack: Path) -> None:
    project = tomllib.loads((pack / "pyproject.toml").read_text())["project"]
    assert project["version"] == mrflow.__version__
    assert project["dependencies"] == []


def test_it_takes_the_place_of_what_was_there(pack: Path) -> None:
    (pack / "core" / "mrflow" / "old.py").touch()
    comfyui_pack.write(pack)
    assert not (pack / "core" / "mrflow" / "old.py").exists()
