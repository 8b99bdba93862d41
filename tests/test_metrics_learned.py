"""Scores by networks: torchmetrics driven with tiny random ones, what is missing said at once."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from mrflow.errors import MissingExtraError, ModelError, RequestError
from mrflow.images import to_pil
from mrflow.metrics import learned

pytest.importorskip("torchmetrics")
CPU = torch.device("cpu")


def picture(seed: int) -> Image.Image:
    return to_pil(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed)))[0]


@pytest.fixture(scope="module")
def clip():
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 30, "max_position_embeddings": 8, "eos_token_id": 2, "bos_token_id": 1}
    vision = {**small, "image_size": 64, "patch_size": 32}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()


def read(text=None, images=None, **_):
    if images is not None:
        return {"pixel_values": torch.stack(list(images)).float() / 255}
    ids = torch.tensor([[1, *(3 + len(word) % 20 for word in text[0].split()[:5]), 2]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_clip_score_is_the_cosine(clip) -> None:
    score = learned.clip_score(clip, read, CPU)
    prompts = ["a red boat", "a lake at night"]
    for seed, prompt in enumerate(prompts):
        inputs = {**read(images=[learned._bytes(picture(seed))]), **read(text=[prompt])}
        with torch.no_grad():
            output = clip(**inputs)
        cosine = torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds).item()
        assert score(picture(seed), prompt, None) == pytest.approx(max(100 * cosine, 0), abs=1e-3)


def test_lpips_compares_with_the_baseline() -> None:
    from torchmetrics.functional.image.lpips import _LPIPS

    torch.manual_seed(0)
    network = _LPIPS(pretrained=False, net="squeeze", pnet_rand=True).eval()
    score = learned.lpips_score(_Direct(network), CPU)
    assert score(picture(0), "a lake", picture(0)) == pytest.approx(0, abs=1e-6)
    assert score(picture(0), "a lake", picture(1)) != pytest.approx(0, abs=1e-6)
    with pytest.raises(RequestError, match="there is one"):
        score(picture(0), "a lake", None)


class _Direct:
    """A network in place of the metric around it, which would fetch published weights."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network

    def to(self, device: torch.device) -> _Direct:
        return self

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        assert 0 <= a.min() <= a.max() <= 1
        return self.network(a, b, normalize=True).squeeze()


def test_unknown_and_missing_metrics_are_said(monkeypatch) -> None:
    with pytest.raises(RequestError, match="Known: clip, lpips, image-reward"):
        learned.choose(["beauty"])
    assert [one.name for one in learned.choose(["clip", "clip"])] == ["clip"]
    monkeypatch.setattr(learned, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'"\.\[image-reward\]"'):
        learned.choose(["image-reward"])
    assert learned.choose([]) == []


def test_weights_that_cannot_be_had_are_said() -> None:
    def offline(device: torch.device) -> learned.Score:
        raise OSError("We couldn't connect to the hub.")

    one = learned.Learned("clip", "CLIP score", "torchmetrics", "torchmetrics", "metrics", "higher", offline)
    with pytest.raises(ModelError, match=r"couldn't connect to the hub\. Leave out --metric clip"):
        learned.load(one, CPU)
