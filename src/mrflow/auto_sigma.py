"""The refine sigma that fits a model, its autoencoder and its upscaler: `refine_sigma="auto"`.

Noise that is mixed in before refining hides what lies below it, and the model draws that anew. It must hide what
the way to full size got wrong or left out: where that has the power l in latents, beside the noise's of 1, sigma
is at least sqrt(l) / (1 + sqrt(l)), for then sigma^2 >= (1 - sigma)^2 l (after arXiv 2607.01642, noise injection).

l is measured on four fixed pictures, smooth noise whose power falls with the cube of the frequency: photographs'
falls with the square, that of vista's pictures with the 3.5th power. For vista it gives .13, where .08 to .13
serve alike and more serves worse (docs/log.md). A model's own pictures cost native runs, and ask for more: vista's
for .14 to .21.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrflow.backbones.family import Backbone, Pipeline, autoencoder_device
from mrflow.errors import MrFlowError
from mrflow.files import write_text
from mrflow.known_upscalers import folder
from mrflow.plan import Plan
from mrflow.upscaler import Upscaler, resize

LETTERING = 0.18
"""The sigma where a prompt asks for lettering, unless the model's is higher: the authors advise .16 to .20."""
_LETTERING = re.compile(
    r"""["\u201c\u201d\u201e\u00ab][^"\u201c\u201d\u00bb]+["\u201c\u201d\u00bb]|[\u300c\u300e].+?[\u300d\u300f]
    |(?<!\w)['\u2018][^'\u2019]+['\u2019](?!\w)
    |\b(?:text|letters?|lettering|typography|calligraphy|captions?|slogan|inscri(?:bed|ption)|written|titled)\b
    |\b(?:says|saying|(?:that|which)\s+reads?)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_PATCHES = 16  # a side of the pictures
_CONTRAST, _FALL = 0.2, 1.5  # their deviation, as of vista's pictures; how amplitudes fall with the frequency
_LOWEST, _HIGHEST = 0.05, 0.5
_VERSION = 1  # of the measure: another one makes the kept values void
_known: dict[str, float] = {}
_measuring = Lock()


def fit_sigma(pipe: Pipeline, backbone: Backbone, upscaler: Upscaler, plan: Plan, prompt: str) -> float:
    """Return the refine sigma for a prompt, from .05 to .5: the model's own, or more where it asks for lettering.

    Measured once for an autoencoder, upscaler and scale, in two decimals, and kept in ~/.cache/mrflow/sigmas.json.
    """
    key = _key(pipe, backbone, upscaler, plan)
    with _measuring:
        if key not in _known:
            _known.update(_read())
        if key not in _known:
            _known[key] = _measure(pipe, backbone, upscaler, plan)
            _keep()
    return max(_known[key], LETTERING) if asks_for_lettering(prompt) else _known[key]


def asks_for_lettering(prompt: str) -> bool:
    """Return whether a picture is to show words: those in quotation marks, or what is said to be written."""
    return _LETTERING.search(prompt) is not None


def needed_sigma(true: Tensor, lifted: Tensor, ratio: float) -> float:
    """Return the least sigma whose noise hides what lifted latents got wrong, or lack, of the true ones.

    Both (B, C, H, W). On the average of the frequencies that are not there at a size `ratio` times smaller.
    """
    rows, columns = (torch.fft.fftfreq(side, device=true.device).abs() for side in true.shape[-2:])
    high = torch.maximum(rows[:, None], columns[None]) >= 0.5 / ratio
    wanted, found, wrong = (_power(each)[..., high].mean() for each in (true, lifted, true - lifted))
    root = math.sqrt(max(float(wrong), float(wanted - found)))
    return root / (1 + root)


def _power(latents: Tensor) -> Tensor:
    """Return the power at each frequency, of which white noise of unit variance has 1."""
    power: Tensor = torch.fft.fft2(latents.float(), norm="ortho").abs().square()
    return power


@torch.no_grad()
def _measure(pipe: Pipeline, backbone: Backbone, upscaler: Upscaler, plan: Plan) -> float:
    multiple, vae = backbone.multiple(pipe), getattr(pipe, "vae", None)
    side = _PATCHES * multiple
    offloaded = hasattr(vae, "_hf_hook") or hasattr(vae, "_diffusers_hook")
    pictures = _pictures(side).to(autoencoder_device(pipe, pipe._execution_device))
    size, true = plan.draft_size(side, side, multiple), backbone.encode(pipe, pictures)
    small = resize(pictures, *size, "bicubic").clamp(0, 1)
    if upscaler.latents:
        larger = partial(upscaler.upscale_latents, before=size, after=(side, side))
        lifted = backbone.enlarge(pipe, backbone.encode(pipe, small), larger)
    else:
        lifted = backbone.encode(pipe, upscaler.upscale(small, side, side))
    if offloaded:
        pipe.maybe_free_model_hooks()
    return round(min(max(needed_sigma(true, lifted, float(plan.ratio)), _LOWEST), _HIGHEST), 2)


def _pictures(side: int) -> Tensor:
    """Return four pictures (4, 3, side, side), the same on every machine: noise, of which colour is a quarter."""
    noise = np.random.default_rng(0).standard_normal((4, 4, side, side))
    frequencies = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequencies[0, 0] = np.inf  # no mean of their own
    smooth = np.fft.ifft2(np.fft.fft2(noise) / frequencies**_FALL).real
    smooth *= _CONTRAST / smooth.std((2, 3), keepdims=True)
    pictures = 0.5 + smooth[:, :1] + smooth[:, 1:] / 4
    return torch.tensor(pictures, dtype=torch.float32).clamp(0, 1)


def _key(pipe: Pipeline, backbone: Backbone, upscaler: Upscaler, plan: Plan) -> str:
    """Return a hash of all that the measure depends on; of weights the first numbers of each stand for all."""
    vae = getattr(pipe, "vae", None)
    parts: list[Any] = [_VERSION, type(backbone).__name__, upscaler.name, upscaler.sha256, str(plan.ratio)]
    digest = hashlib.sha256(json.dumps([*parts, dict(vae.config) if vae else {}], default=str).encode())
    for name, value in vae.state_dict().items() if vae else ():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        if not value.is_meta:  # as offloaded ones are
            digest.update(value.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _read() -> dict[str, float]:
    try:
        kept = json.loads(_file().read_text("utf-8"))
        return {key: float(value) for key, value in kept.items() if 0 < float(value) < 1}
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError):
        return {}  # none yet, or what somebody else wrote


def _keep() -> None:
    try:
        write_text(_file(), json.dumps(_read() | _known, indent=1))
    except (MrFlowError, RuntimeError):  # no home, or no room: the next process measures again
        return


def _file() -> Path:
    return folder().with_name("sigmas.json")
