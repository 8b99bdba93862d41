"""What the steps hold every network to: pixels, latents and embeddings that are finite."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from conftest import make_fast, make_pipe
from mrflow import MrFlow, Plan, Upscaler
from mrflow.backbones.family import autoencoder_device, to_unit
from mrflow.batches import BatchSizes, Work
from mrflow.borrowing import borrowed
from mrflow.errors import NonFiniteError
from mrflow.jobs import Asked
from mrflow.schedulers import draft_scheduler
from support.families import CASES
from support.families import make_fast as make_family

BROKEN = [
    ("text_encoder_2.encoder.final_layer_norm", "encode the prompt", "text encoder"),
    ("transformer.proj_out", "draft", "transformer"),
    ("vae.decoder.conv_out", "decode the draft", "autoencoder"),
    ("vae.encoder.conv_out", "encode", "autoencoder"),
]


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize(("layer", "stage", "part"), BROKEN)
def test_a_network_that_gives_no_numbers_is_named_with_its_stage(
    fast: MrFlow, layer: str, stage: str, part: str, value: str
) -> None:
    torch.nn.init.constant_(_weight(fast, layer), float(value))
    with pytest.raises(NonFiniteError, match=f"The {part} .* stage '{stage}'.*(seed 5|'a boat')") as caught:
        fast("a boat", seed=5)
    assert "float32" in str(caught.value)


def _weight(fast: MrFlow, layer: str) -> Any:
    name, _, inner = layer.partition(".")
    return getattr(fast.pipe, name).get_submodule(inner).weight


def test_an_upscaler_that_gives_no_numbers_is_named(network_file: Any) -> None:
    fast = make_fast(make_pipe(), upscaler=Upscaler.load(network_file))
    for value in ("nan", "inf"):
        torch.nn.init.constant_(next(fast.model.upscaler._network.model.parameters()), float(value))
        with pytest.raises(NonFiniteError, match=r"The upscaler .* stage 'upscale', for seed 3"):
            fast("a boat", seed=3)


def test_infinite_pixels_do_not_become_white() -> None:
    pixels = to_unit(torch.tensor([float("inf"), float("-inf"), float("nan"), -3.0, 0.0, 3.0]))
    assert pixels.isfinite().tolist() == [False] * 3 + [True] * 3
    assert pixels[3:].tolist() == [0.0, 0.5, 1.0]


def test_the_refine_pass_is_held_to_it_too(fast: MrFlow) -> None:
    drafts = fast.draft("a boat", seed=3)
    torch.nn.init.constant_(fast.pipe.transformer.proj_out.weight, float("nan"))
    with pytest.raises(
        NonFiniteError, match=r"transformer .* stage 'refine', for seed 3.* in bfloat16 or float32"
    ):
        fast.finish(drafts)


def _blind_to_blue(fast: MrFlow) -> None:
    """Make the transformer give nan for one prompt alone."""
    (row,) = fast.model.backbone.encode_prompts(fast.pipe, ["a blue house"], None, 16)

    def spoil(_module: Any, _args: Any, kwargs: Any, output: Any) -> Any:
        bad = [
            torch.allclose(text, row["prompt_embeds"][0], atol=1e-4) for text in kwargs["encoder_hidden_states"]
        ]
        output[0][bad] = float("nan")
        return output

    fast.pipe.transformer.register_forward_hook(spoil, with_kwargs=True)


def test_the_picture_that_fails_is_named_by_its_seed(fast: MrFlow) -> None:
    _blind_to_blue(fast)
    fast = MrFlow(fast.pipe, "bicubic", defaults=fast.model.defaults, batch_size=4)
    with pytest.raises(NonFiniteError, match="for seed 8, 9\\."):
        fast(["a boat", "a blue house", "a blue house", "a lake"], seed=7)


def test_in_a_batch_the_bad_picture_fails_alone(fast: MrFlow) -> None:
    _blind_to_blue(fast)
    prompts = ("a boat", "a blue house", "a lake")
    jobs = fast.model.resolve([Asked(prompt=prompt, seed=7) for prompt in prompts])
    failed: dict[str, Exception] = {}

    class Item:
        def __init__(self, job: Any) -> None:
            self.job = job

    work = Work(
        model=fast.model,
        sizes=BatchSizes(4),
        failed=lambda item, error: failed.update({item.job.prompt: error}),
    )
    with borrowed(fast.pipe):
        made = [item.job.prompt for done in work.draft(work.read_all(map(Item, jobs))) for item, *_ in done.each()]
    assert made == ["a boat", "a lake"]
    assert list(failed) == ["a blue house"]
    assert isinstance(failed["a blue house"], NonFiniteError)


# --- an autoencoder on a device of its own ---


def test_the_autoencoder_is_given_what_it_works_on_where_it_is(fast: MrFlow) -> None:
    pipe, elsewhere = fast.pipe, torch.device("meta")
    assert autoencoder_device(pipe, elsewhere) == torch.device("cpu")  # by its weights, as after a device_map
    pipe.vae._hf_hook = SimpleNamespace(execution_device=torch.device("cuda", 1))
    assert autoencoder_device(pipe, elsewhere) == torch.device("cuda", 1)  # by its hook, as with offloading
    del pipe.vae._hf_hook
    pipe.vae._diffusers_hook = object()
    assert autoencoder_device(pipe, elsewhere) == elsewhere  # groups that are offloaded follow the pipeline


# --- schedules of one step ---


@pytest.mark.parametrize("solver", ["own", "unipc", "dpm++2m"])
def test_one_step_goes_from_noise_to_picture(solver: str) -> None:
    case = CASES["QwenImagePipeline"]
    fast = make_family(case, case.make(shift_terminal=0.02))
    for verb in (fast, fast.native):
        image = verb("a red boat", seed=7, plan=Plan(steps=1, solver=solver, **case.plan), output_type="pt").images
        assert image.isfinite().all()


@pytest.mark.parametrize(
    "kind", ["FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "UniPCMultistepScheduler"]
)
@pytest.mark.parametrize("first", [1.0, 0.9])
def test_a_schedule_of_one_step_ends_at_the_picture(kind: str, first: float) -> None:
    flow = {} if kind.startswith("Flow") else {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    options = {"use_dynamic_shifting": True, "shift_terminal": 0.02, **flow}
    scheduler = draft_scheduler(SimpleNamespace(scheduler=getattr(diffusers, kind)(**options)))
    scheduler.set_timesteps(sigmas=np.array([first]), mu=0.5)
    assert len(scheduler.sigmas) == 2
    assert scheduler.sigmas[0] > first - 1e-3
    assert scheduler.sigmas[1] == 0
