"""`mrflow models`: what can be run here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from mrflow import vista
from mrflow.backbones import supported
from mrflow.backbones.checkpoints import known_defaults
from mrflow.cli.options import Streams
from mrflow.cli.outputs import tell_json
from mrflow.cli.report_tables import gigabytes, print_fitting
from mrflow.cli.reporting import stdout_console
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
        "embedded": [
            {
                "name": name,
                "available": vista.available(),
                "size": f"{own.width}x{own.height}",
                "plan": own.plan.label,
            }
            for name, own in vista.DEFAULTS.items()
        ],
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
    state = "in this installation" if vista.available() else "weights missing: see training/README.md"
    console = stdout_console()
    console.print(f"[bold]Embedded models[/] of small landscapes, {state}")
    for own in known["embedded"]:
        console.print(f"  {own['name']}, {own['size']}, plan {own['plan']}")
    console.print("[bold]Models[/], as --model; memory is that of the weights, whole, in 8 and in 4 bits")
    print_fitting(_table(known["models"]), lambda: _list(known["models"]), console=console)
    console.print("[bold]Pipelines of diffusers[/], as --model with a folder or a Hugging Face id")
    for name in known["pipelines"]:
        console.print(f"  {name}")
    console.print("[bold]Upscalers[/], as --upscaler, fetched once; or the path of a file")
    for each in known["upscalers"]:
        console.print(Padding(f"{each['name']}: {each['about']} ({each['licence']})", (0, 0, 0, 2), expand=False))
    console.print("[bold]Presets[/], as --plan; any N+M works")
    for preset in known["presets"]:
        about = [Padding(escape(preset[each]), (0, 0, 0, 4), expand=False) for each in ("about", "source")]
        console.print(f"  {preset['name']}", *about, sep="\n")


def _table(models: Sequence[dict[str, Any]]) -> Table:
    table = Table("  name", "Hugging Face id", "download, GB", "memory, GB", "licence", "plan", box=None)
    for each in models:
        table.add_row(f"  {each['name']}", each["id"], *_facts(each), each["plan"])
    return table


def _list(models: Sequence[dict[str, Any]]) -> str:
    """Return the same for narrow windows, where a row would break names that are to be copied."""
    return "\n".join(
        f"  {each['name']}, plan {each['plan']}\n    {each['id']}\n"
        "    download {} GB, memory {} GB\n    {}".format(*_facts(each))
        for each in models
    )


def _facts(model: dict[str, Any]) -> tuple[str, str, str]:
    """Return its download, the memory of its weights and its licence, as they are shown."""
    memory = " / ".join(map(gigabytes, model["weights"].values()))
    return gigabytes(model["download"]), memory, escape(model["licence"] or "?") + ", gated" * model["gated"]
