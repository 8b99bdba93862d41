"""pi-Flow through a stand-in for LakonLab: the draft is its own call, the refine pass one policy."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from conftest import make_pipe
from mrflow import Defaults, MrFlow, Plan
from mrflow.backbones import get_backbone
from mrflow.backbones.piflow import load_piflow
from mrflow.errors import ModelError, RequestError
from mrflow.progress import Progress
from mrflow.sampling import add_noise, make_noise, refine_generators
from support.lakonlab_stand_in import FlowMapSDEScheduler, PiFluxPipeline
from support.pipelines import own_call


def make_pi_pipe() -> PiFluxPipeline:
    theirs = make_pipe(guidance_embeds=True).components
    parts = {name: part for name, part in theirs.items() if part is not None}
    parts["scheduler"] = FlowMapSDEScheduler(shift=3.2, final_step_size_scale=0.5)
    pipe = PiFluxPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_both_passes_follow_the_policy() -> None:
    pipe = make_pi_pipe()
    assert MrFlow(pipe, "bicubic").model.defaults.plan.label == "4+1"
    fast = MrFlow(pipe, "bicubic", defaults=Defaults(max_sequence_length=16))
    by_hand = own_call(pipe, width=64, steps=4, total_substeps=8, guidance_scale=3.5)
    seen: list[tuple[float, torch.Tensor, torch.Tensor]] = []
    pipe.transformer.register_forward_hook(
        lambda _m, _a, given, out: seen.append((float(given["timestep"][0]), given["hidden_states"], out[0])),
        with_kwargs=True,
    )
    news: list[Progress] = []
    own = pipe.scheduler
    result = fast(
        "a red boat",
        width=128,
        height=64,
        seed=7,
        plan=Plan(steps=4, refine_sigma=0.2, noise="own"),
        total_substeps=8,
        callback=news.append,
    )
    assert torch.equal(result.drafts[0].pixels, by_hand)
    assert pipe.scheduler is own
    assert [n.step for n in news if n.stage == "draft"] == [0, 1, 2, 3, 4]
    assert seen[0][0] == 1.0
    assert len(seen) == 5

    sigma, hidden, velocity = seen[-1]
    assert sigma == pytest.approx(0.2, abs=1e-7)
    upscaled, refined = (
        next(n.pixels for n in news if n.stage == s and n.step == 1) for s in ("upscale", "decode")
    )
    backbone = get_backbone("PiFluxPipeline")
    with torch.no_grad():
        latents = backbone.encode(pipe, upscaled)
        noised = add_noise(latents, 0.2, make_noise(latents.shape[1:], refine_generators([7])))
        assert torch.equal(hidden, backbone.pack(pipe, noised))
        expected = backbone.decode(pipe, hidden - 0.2 * velocity, 128, 64)
    assert (refined - expected).abs().max() < 1e-5
    assert result.recipes[0].conditions == {"argument.total_substeps": "8", "scheduler": "FlowMapSDEScheduler"}
    with pytest.raises(RequestError, match="no argument 'negative'"):
        fast("a boat", negative=3)


def test_without_lakonlab_the_error_says_how_to_install_it() -> None:
    with pytest.raises(ModelError, match=r"LakonLab is not installed .*git clone .*Lakonik/LakonLab"):
        load_piflow("Qwen/Qwen-Image", "Lakonik/pi-Qwen-Image", "gmqwen_k8_piid_4step")
    with pytest.raises(ModelError, match="no adapter for 'stabilityai/sdxl'"):
        load_piflow("stabilityai/sdxl", "x", "y")


@pytest.mark.parametrize(
    ("subfolder", "policy"), [("gmflux_k8_piid_4step", "GMFlow"), ("dxflux_n10_piid_4step", "DX")]
)
def test_an_adapter_is_loaded_as_its_authors_do(
    subfolder: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_pretrained(model: str, policy_type: str = "GMFlow", policy_kwargs: Any = None, **_: Any) -> Any:
        pipe = make_pi_pipe()
        pipe.policy = (policy_type, policy_kwargs)
        pipe.scheduler = FlowMapSDEScheduler()
        return pipe

    for name, content in {
        "lakonlab.pipelines.pipeline_piflux": {"PiFluxPipeline": PiFluxPipeline},
        "lakonlab.models.diffusions.schedulers": {"FlowMapSDEScheduler": FlowMapSDEScheduler},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(PiFluxPipeline, "from_pretrained", from_pretrained)
    pipe = load_piflow("black-forest-labs/FLUX.1-dev", "Lakonik/pi-FLUX.1", subfolder)
    assert pipe.adapter == ("Lakonik/pi-FLUX.1", subfolder)
    assert pipe.policy[0] == policy
    assert policy == "GMFlow" or pipe.policy[1]["segment_size"] == pytest.approx(1 / 3.5)
    assert (pipe.scheduler.config.shift, pipe.scheduler.config.final_step_size_scale) == (3.2, 0.5)
