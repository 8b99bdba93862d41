"""Which figures stand in which column, and how they are written: for the page, the terminal and Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mrflow.bench.plots import measured
from mrflow.bench.records import Json
from mrflow.metrics.attributes import GROUPS
from mrflow.metrics.learned import LEARNED

Cell = tuple[str, str]
"""A figure and its interval, as texts; empty where nothing was measured."""


@dataclass(frozen=True)
class Column:
    """A column. cell: of a method's figures."""

    name: str
    cell: Callable[[Json], Cell]


def columns_of(scores: Json) -> list[tuple[str, str, list[Column]]]:
    """Return the tables: heading, a line about it, and its columns; without columns that would be empty."""
    plan = scores.get("plan")
    tables = {
        "Speed and quality": (
            "Medians of seconds; 95% bootstrap intervals over prompts. The composite is the share found, times "
            "the likeness of fine texture and of contrast to the baseline's."
            f"{f' To plan: the composite less that of {plan}, in pairs.' if plan else ''}",
            [
                _figure("times faster", 2, "speed", "speedup"),
                Column("seconds", lambda row: (f"{row['speed']['seconds']['total']['median']:.3g}", "")),
                _figure("composite", 3, "quality", "composite"),
                _figure("to plan", 3, "quality", "composite_to_plan", signed=True),
                _figure("found", 3, "quality", "found", "all"),
            ],
        ),
        "More of quality": (
            f"Changes are to the baseline{f', or to {plan}' if plan else ''}, in pairs; memory is the peak. "
            "Stripes are waves along a side through the whole picture; by chance 6 to 10 dB.",
            [
                _figure("change of composite", 3, "quality", "composite_change", signed=True),
                _figure("change of found", 3, "quality", "found_change", "all", signed=True),
                *(_figure(name, 3, "quality", name) for name in ("sharpness", "texture", "contrast")),
                _figure("stripes, dB", 1, "quality", "stripes"),
                Column("Fréchet", _frechet("frechet")),
                _figure(f"Fréchet, to {plan}", 2, "quality", "frechet", "to_plan", signed=True),
                Column("Fréchet of patches", _frechet("patch_frechet")),
                _figure(f"patches, to {plan}", 2, "quality", "patch_frechet", "to_plan", signed=True),
                Column("memory, GiB", _memory),
            ],
        ),
        "What is found": (
            f"The share of what prompts ask for that the inspector finds in the pictures. {_own(scores)}",
            [_figure(name, 3, "quality", "found", name) for name in GROUPS],
        ),
        "Likeness and colour": (
            "PSNR and SSIM to the baseline's picture of the same seed: staged pictures differ from it by design. "
            "Colour: channel means less the baseline's, in levels of 255. Diversity: over the seeds of a prompt.",
            [
                _figure("PSNR, dB", 2, "quality", "psnr"),
                _figure("SSIM", 3, "quality", "ssim"),
                *(_figure(name, 2, "quality", "color", name, signed=True) for name in ("red", "green", "blue")),
                _figure("diversity", 2, "quality", "diversity"),
                *(_figure(LEARNED[name].about, 3, "quality", "learned", name) for name in LEARNED),
            ],
        ),
        "Drift from stage to stage": (
            "How channel means and contrast move within the same picture, in levels of 255: by the upscaler, and "
            "by encoding, refining and decoding.",
            [
                _figure(f"{stage}: {channel}", 2, "drift", stage, channel, signed=True)
                for stage in ("upscale", "refine")
                for channel in ("red", "green", "blue", "contrast")
            ],
        ),
    }
    rows = measured(scores)
    filled = {
        heading: [column for column in columns if any(column.cell(row)[0] for row in rows)]
        for heading, (_, columns) in tables.items()
    }
    return [(heading, note, filled[heading]) for heading, (note, _) in tables.items() if filled[heading]]


def stage_rows(scores: Json) -> tuple[list[str], list[list[str]]]:
    """Return the stages' names, and a row for each method: its name and median seconds."""
    rows = measured(scores)
    stages = dict.fromkeys(stage for row in rows for stage in row["speed"]["seconds"])
    names = [*(name for name in stages if name != "total"), "total"]

    def cell(row: Json, name: str) -> str:
        spread = row["speed"]["seconds"].get(name)
        return f"{spread['median']:.3f}" if spread else ""

    cells = [[row["name"], *(cell(row, name) for name in names)] for row in rows]
    return [name.replace("_", " ") for name in names], cells


def write(estimate: Json | None, digits: int, signed: bool = False) -> Cell:
    """Return an estimate as texts, both empty where nothing was measured."""
    if estimate is None or estimate["value"] is None:
        return "", ""
    style = f"{'+' if signed else ''}.{digits}f"
    return format(estimate["value"], style), f"{estimate['low']:{style}} to {estimate['high']:{style}}"


def _figure(name: str, digits: int, *keys: str, signed: bool = False) -> Column:
    """Return the column of an estimate, which lies under these keys of a method's figures or is missing."""

    def cell(row: Json) -> Cell:
        found: Any = row
        for key in keys:
            found = (found or {}).get(key)
        return write(found, digits, signed)

    return Column(name, cell)


def _own(scores: Json) -> str:
    """Return how well the inspector reads fresh renders, where that is known."""
    own = scores.get("inspector") or {}
    shares = ", ".join(f"{name} {share:.3f}" for name, share in own.items())
    return f"In fresh renders it names rightly: {shares}." if shares else ""


def _memory(row: Json) -> Cell:
    peak = row["speed"]["peak_memory"]
    return ("" if peak is None else f"{peak / 2**30:.2f}"), ""


def _frechet(name: str) -> Callable[[Json], Cell]:
    """Return what writes a distance to renders, with its change from the baseline's."""

    def cell(row: Json) -> Cell:
        found = row["quality"][name]
        if found is None:
            return "", ""
        change = write(found.get("change"), 2, True)
        return f"{found['value']:.2f}", f"change {change[0]} ({change[1]})" if change[0] else ""

    return cell
