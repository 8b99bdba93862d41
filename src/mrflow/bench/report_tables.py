"""Which figures stand in which column, and how they are written: for the page, the terminal and Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    rows = measured(scores)
    plan = scores.get("plan")
    tables = [
        (
            "Speed and quality",
            "Figures with their 95% bootstrap intervals over prompts; changes are to the baseline"
            f"{f', or to {plan}' if plan else ''}, in pairs. The "
            "composite is the share found, times the likeness of fine texture and of contrast to the baseline's.",
            [
                Column("times faster", lambda row: write(row["speed"]["speedup"], 2)),
                Column("seconds, median", lambda row: (f"{row['speed']['seconds']['total']['median']:.3g}", "")),
                Column("peak memory, GiB", _memory),
                Column("composite", lambda row: write(row["quality"]["composite"], 3)),
                Column("change of composite", lambda row: write(row["quality"]["composite_change"], 3, True)),
                Column(f"composite, to {plan}", _composite_to_plan),
                Column("found", lambda row: write(row["quality"]["found"].get("all"), 3)),
                Column("change of found", lambda row: write(row["quality"]["found_change"].get("all"), 3, True)),
                Column("sharpness", lambda row: write(row["quality"]["sharpness"], 3)),
                Column("texture", lambda row: write(row["quality"]["texture"], 3)),
                Column("contrast", lambda row: write(row["quality"]["contrast"], 3)),
                Column("Fréchet", _frechet("frechet")),
                Column(f"Fréchet, to {plan}", _frechet_to_plan("frechet")),
                Column("Fréchet of patches", _frechet("patch_frechet")),
                Column(f"patches, to {plan}", _frechet_to_plan("patch_frechet")),
            ],
        ),
        (
            "What is found",
            f"The share of what prompts ask for that the inspector finds in the pictures. {_own(scores)}",
            [Column(name, _of("found", name, 3)) for name in GROUPS],
        ),
        (
            "Likeness and colour",
            "PSNR and SSIM to the baseline's picture of the same seed: staged pictures differ from it by design. "
            "Colour: channel means less the baseline's, in levels of 255. Diversity: over the seeds of a prompt.",
            [
                Column("PSNR, dB", lambda row: write(row["quality"]["psnr"], 2)),
                Column("SSIM", lambda row: write(row["quality"]["ssim"], 3)),
                *(Column(name, _of("color", name, 2, True)) for name in ("red", "green", "blue")),
                Column("diversity", lambda row: write(row["quality"]["diversity"], 2)),
                *(Column(LEARNED[name].about, _of("learned", name, 3)) for name in LEARNED),
            ],
        ),
        (
            "Drift from stage to stage",
            "How channel means and contrast move within the same picture, in levels of 255: by the upscaler, and "
            "by encoding, refining and decoding.",
            [
                Column(f"{stage}: {channel}", _moved(stage, channel))
                for stage in ("upscale", "refine")
                for channel in ("red", "green", "blue", "contrast")
            ],
        ),
    ]
    kept = [
        (heading, note, [column for column in columns if any(column.cell(row)[0] for row in rows)])
        for heading, note, columns in tables
    ]
    return [table for table in kept if table[2]]


def stage_rows(scores: Json) -> tuple[list[str], list[list[str]]]:
    """Return the stages' names, and a row for each method: its name and median seconds."""
    rows = measured(scores)
    names = list(dict.fromkeys(stage for row in rows for stage in row["speed"]["seconds"]))
    names = [*(name for name in names if name != "total"), "total"]
    return [name.replace("_", " ") for name in names], [
        [
            row["name"],
            *(
                f"{row['speed']['seconds'][name]['median']:.3f}" if name in row["speed"]["seconds"] else ""
                for name in names
            ),
        ]
        for row in rows
    ]


def write(estimate: Json | None, digits: int, signed: bool = False) -> Cell:
    """Return an estimate as texts, both empty where nothing was measured."""
    if estimate is None or estimate["value"] is None:
        return "", ""
    style = f"{'+' if signed else ''}.{digits}f"
    return format(estimate["value"], style), f"{estimate['low']:{style}} to {estimate['high']:{style}}"


def _own(scores: Json) -> str:
    """Return how well the inspector reads fresh renders, where that is known."""
    own = scores.get("inspector") or {}
    shares = ", ".join(f"{name} {share:.3f}" for name, share in own.items())
    return f"In fresh renders it names rightly: {shares}." if shares else ""


def _memory(row: Json) -> Cell:
    peak = row["speed"]["peak_memory"]
    return ("" if peak is None else f"{peak / 2**30:.2f}"), ""


def _composite_to_plan(row: Json) -> Cell:
    return write(row["quality"].get("composite_to_plan"), 3, True)


def _frechet(name: str) -> Callable[[Json], Cell]:
    """Return what writes a distance to renders, with its change from the baseline's."""

    def cell(row: Json) -> Cell:
        found = row["quality"][name]
        if found is None:
            return "", ""
        change = write(found.get("change"), 2, True)
        return f"{found['value']:.2f}", f"change {change[0]} ({change[1]})" if change[0] else ""

    return cell


def _frechet_to_plan(name: str) -> Callable[[Json], Cell]:
    """Return what writes how much farther from renders a method is than the first plan."""
    return lambda row: write((row["quality"][name] or {}).get("to_plan"), 2, True)


def _of(table: str, name: str, digits: int, signed: bool = False) -> Callable[[Json], Cell]:
    """Return what writes one of the quality figures that have a name of their own."""
    return lambda row: write(row["quality"][table].get(name), digits, signed)


def _moved(stage: str, channel: str) -> Callable[[Json], Cell]:
    return lambda row: write(row["drift"].get(stage, {}).get(channel), 2, True)
