"""`mrflow models`: what can be run here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mrflow import vista
from mrflow.backbones import supported
from mrflow.backbones.checkpoints import known_defaults
from mrflow.cli.options import Streams
from mrflow.cli.outputs import tell_json
from mrflow.known_models import BITS, KnownModel
from mrflow.known_models import KNOWN as KNOWN_MODELS
from mrflow.known_upscalers import KNOWN
from mrflow.plan import PRESETS

_MODEL = ("name", "id", "pipeline", "licence", "gated", "architecture", "download")
_UPSCALER = ("name", "about", "licence", "url", "sha256")


def models(streams: Streams = Streams()) -> None:
    """List the models, upscalers and presets that can be used.

    Examples:
      mrflow models
      mrflow models --json
    """
    known = _known()
    if streams.json:
        tell_json(known)
    else:
        _print(known)


def _known() -> dict[str, Any]:
    return {
        "embedded": {
            "name": "vista",
            "available": vista.available(),
            "size": f"{vista.DEFAULTS.width}x{vista.DEFAULTS.height}",
            "plan": vista.DEFAULTS.plan.label,
        },
        "models": [_model(known) for known in KNOWN_MODELS.values()],
        "pipelines": list(supported()),
        "upscalers": [{name: getattr(each, name) for name in _UPSCALER} for each in KNOWN.values()],
        "presets": [
            {"name": each.name, "about": each.about, "source": each.source, **asdict(each.plan)}
            for each in PRESETS.values()
        ],
    }


def _model(known: KnownModel) -> dict[str, Any]:
    """Return what a known model is and needs; sizes are in bytes, None where we don't know."""
    return {
        **{name: getattr(known, name) for name in _MODEL},
        "weights": {held: known.weights(held) for held in BITS},
        "plan": known_defaults(known).plan.label,
    }


def _print(known: dict[str, Any]) -> None:
    embedded = known["embedded"]
    state = "in this installation" if embedded["available"] else "weights missing: see training/README.md"
    console = Console(highlight=False, soft_wrap=True)
    console.print("[bold]Embedded model[/]")
    console.print(f"  vista, {state}; small landscapes, {embedded['size']}, plan {embedded['plan']}")
    console.print("[bold]Models[/], as --model; memory is that of the weights, whole, in 8 and in 4 bits")
    models = Table("  name", "Hugging Face id", "download", "memory, GB", "licence", "plan", box=None)
    for each in known["models"]:
        memory = " / ".join(map(_gigabytes, each["weights"].values()))
        licence = escape(each["licence"] or "?") + ", gated" * each["gated"]
        models.add_row(
            f"  {each['name']}", each["id"], _gigabytes(each["download"]), memory, licence, each["plan"]
        )
    console.print(models)
    console.print("[bold]Pipelines of diffusers[/], as --model with a folder or a Hugging Face id")
    for name in known["pipelines"]:
        console.print(f"  {name}")
    console.print("[bold]Upscalers[/], as --upscaler, fetched once; or the path of a file")
    for each in known["upscalers"]:
        console.print(f"  {each['name']}: {each['about']} ({each['licence']})")
    console.print("[bold]Presets[/], as --plan; any N+M works")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for preset in known["presets"]:
        table.add_row(f"  {preset['name']}", f"{preset['about']}\n[dim]{preset['source']}[/]")
    console.print(table)


def _gigabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e9:.1f}"
