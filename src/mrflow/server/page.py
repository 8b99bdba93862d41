"""The page at `/`: HTML over our own API, its fields those of requests. Style and script are in `static/`."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from mrflow import vista
from mrflow.jobs import MAX_LORA_WEIGHT
from mrflow.plan import ABOUT, PRESETS, About
from mrflow.server.information import render
from mrflow.server.requests import QUALITY, steps_of
from mrflow.server.service import Service
from mrflow.server.settings import MAX_DRAFTS
from mrflow.vista.grammar import ATTRIBUTES

STATIC = Path(str(files("mrflow.server") / "static"))

_LABELS = {
    "num_inference_steps": "Draft steps",
    "refine_sigma": "Noise before refining",
    "guidance_scale": "Guidance",
    "true_cfg_scale": "Guidance",
    "guidance_stop": "Guided share of the draft",
}
_SHAPES = {"Square": 1.0, "Wide": 4 / 3, "Wider": 5 / 3, "Tall": 3 / 4, "Taller": 3 / 5}  # width over height
_CARE = {"low": "Quick", "auto": "Usual", "high": "Careful", "xhigh": "Patient"}


def page_routes(service: Service) -> APIRouter:
    """Return the page's route; what it loads is in STATIC."""
    router = APIRouter(include_in_schema=False)
    page = _page(service)

    @router.get("/")
    async def root() -> Response:
        return HTMLResponse(page)

    return router


def _page(service: Service) -> str:
    model, settings = service.scheduler.model, service.settings
    own = model.defaults
    words = {name: [each for each in values if each != "none"] for name, values in ATTRIBUTES.items()}
    return render(
        "page.html",
        model=model.name,
        device=str(model.device),
        plan=own.plan.label,
        native_steps=own.native_steps,
        max_prompt=settings.max_prompt,
        max_drafts=MAX_DRAFTS,
        presets=list(PRESETS),
        numbers=_numbers(service),
        loras=[(name, model.loras.usual_weight(name)) for name in model.loras.files],
        max_weight=MAX_LORA_WEIGHT,
        sizes=_sizes(service),
        speeds=[
            (name, label, f"{steps_of(own, name if name in QUALITY else 'medium')} steps")
            for name, label in _CARE.items()
            if name == "auto" or not own.learned_steps
        ],
        words=words if model.name in vista.DEFAULTS else {},
    )


def _numbers(service: Service) -> list[tuple[str, str, str, About]]:
    """Return name in requests, label, field of Plan and what is known of each number that the page asks for.

    Of two kinds of guidance that of the model.
    """
    model = service.scheduler.model
    other = {"guidance_scale", "true_cfg_scale"} - {model.backbone.guidance_field(model.pipe)}
    asked = [(about.http, name, about) for name, about in ABOUT.items() if about.http and name not in other]
    labels = {http: _LABELS.get(http, http.replace("_", " ").capitalize()) for http, _, _ in asked}
    return [(http, labels[http], name, about) for http, name, about in asked]


def _sizes(service: Service) -> list[tuple[str, int, int]]:
    """Return shapes of the model's own area, whose halves are whole patches, as far as the server makes them."""
    own, unit = service.scheduler.model.defaults, 2 * service.patch

    def side(pixels: float) -> int:
        return max(round(pixels / unit), 1) * unit

    sizes: dict[Any, str] = {(own.width, own.height): "Own"} if own.width != own.height else {}
    for name, ratio in _SHAPES.items():
        area = own.width * own.height
        sizes.setdefault((side(math.sqrt(area * ratio)), side(math.sqrt(area / ratio))), name)
    most = service.settings.max_pixels
    return [(name, width, height) for (width, height), name in sizes.items() if width * height <= most]
