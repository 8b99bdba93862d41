"""docs/results.md and README's table, written from the results recorded in benchmarks/.

python -m tools.write_results

What is not recorded has no figure there, but the command that records it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mrflow.bench.plots import measured
from mrflow.bench.report import scored_by
from mrflow.bench.report_tables import Column, columns_of, stage_rows, write
from mrflow.errors import OutputError

Json = dict[str, Any]
_ROOT = Path(__file__).parents[1]
PAGE = _ROOT / "docs" / "results.md"
README = _ROOT / "README.md"
README_FIGURES = "compare-vista-cpu.json"
_ROWS = {
    "native, 50 steps": "native",
    "mrflow, 12+1": "12+1",
    "mrflow, 6+1 (`fastest`)": "6+1:guidance_stop=0.5",
    "native, 6 steps with UniPC": "native:6,solver=unipc",
    "vista-turbo, mrflow, 4+1": "4+1:model=vista-turbo",
}
_TABLE_HEAD = "| | times faster | found | composite |\n|---|---|---|---|\n"

_HEAD = """\
# Results

After this page you can judge what each plan gains and costs.

Written by `python -m tools.write_results` from what is recorded in [benchmarks/](../benchmarks); a test keeps it
current. Nothing here was typed by hand: what is not recorded has no figure, only the command that records it.
[benchmarks.md](benchmarks.md) says what the [methods](benchmarks.md#methods) are and how figures come about.
"""

# file in benchmarks/: heading, and the commands that record it
_STUDENT = "native:model=vista-turbo 4+1:model=vista-turbo 3/4:model=vista-turbo"
COMPARED = {
    "compare-vista-cpu.json": (
        "Quality and speed: vista on a CPU",
        "mrflow compare native native:2,solver=unipc native:3,solver=unipc native:4,solver=unipc "
        f"native:6,solver=unipc 12+1 6+1:guidance_stop=0.5 {_STUDENT} "
        "12+1:noise=own 12+1:refine_sigma=auto 12+1:color_guard=0.0625 --dtype bfloat16 --no-equal-time "
        "--out compare-vista --show 24\n"
        "cp compare-vista/scores.json benchmarks/compare-vista-cpu.json\n"
        "cp compare-vista/tradeoff.png docs/images/tradeoff-vista-cpu.png",
    ),
    "compare-parts-vista-cpu.json": (
        "What each part gives: vista on a CPU, in float32",
        "mrflow compare native native:2,solver=unipc native:3,solver=unipc native:4,solver=unipc "
        "native:6,solver=unipc 12+1 12+1:solver=own,guidance_stop=1 6+1:guidance_stop=0.5 "
        "12+1:lift=bicubic 12+1:lift=latent 12+0 12+1:color_guard=0.0625 12+1:refine_sigma=auto "
        "12+1:noise=own 12+1:guidance_stop=0.17 native:cache=taylorseer@4 --no-equal-time --limit 112 "
        "--out compare-parts\n"
        "cp compare-parts/scores.json benchmarks/compare-parts-vista-cpu.json",
    ),
    "compare-sigma-vista-cpu.json": (
        "Sigma swept: vista on a CPU",
        "mrflow compare native:12,solver=unipc 12+1 12+1:refine_sigma=0.08 12+1:refine_sigma=auto "
        "12+1:refine_sigma=0.16 12+1:refine_sigma=0.2 8+1:guidance_stop=0.5 --dtype bfloat16 --no-equal-time "
        "--limit 64 --out compare-sigma\n"
        "cp compare-sigma/scores.json benchmarks/compare-sigma-vista-cpu.json",
    ),
    "compare-256-vista-cpu.json": (
        "Quality and speed at 256x256: vista on a CPU",
        "mrflow compare native native:4,solver=unipc native:5,solver=unipc native:6,solver=unipc 12+1 "
        f"6+1:guidance_stop=0.5 8+1:guidance_stop=0.5 {_STUDENT} --dtype bfloat16 --size 256 --limit 96 "
        "--no-equal-time --out compare-256\n"
        "cp compare-256/scores.json benchmarks/compare-256-vista-cpu.json\n"
        "cp compare-256/tradeoff.png docs/images/tradeoff-256-vista-cpu.png",
    ),
}
BENCHED = {
    "bench-vista-cpu.json": (
        "Cost: vista on a CPU",
        "mrflow bench native native:50,guidance_stop=0.33 native:12 native:6,solver=unipc native:4,solver=unipc "
        "native:3,solver=unipc native:2,solver=unipc 12+1 20+1 6+1:guidance_stop=0.5 native:model=vista-turbo "
        "4+1:model=vista-turbo 3/4:model=vista-turbo --repeats 5 --json > benchmarks/bench-vista-cpu.json",
    ),
    "bench-bf16-vista-cpu.json": (
        "Cost in bfloat16, on a processor that computes in it: vista on a CPU",
        "mrflow bench native native:6,solver=unipc 12+1 6+1:guidance_stop=0.5 native:model=vista-turbo "
        "4+1:model=vista-turbo --dtype bfloat16 --repeats 5 --json > benchmarks/bench-bf16-vista-cpu.json",
    ),
    "bench-sizes-vista-cpu.json": (
        "Cost over sizes, against few native steps: vista on a CPU",
        "mrflow bench native:4,solver=unipc 12+1 native:2,solver=unipc 4+1:model=vista-turbo "
        "--size 256,512,768,1024 --repeats 3 --json > benchmarks/bench-sizes-vista-cpu.json",
    ),
    "bench-1024-vista-cpu.json": (
        "Cost at twice its size: vista on a CPU",
        "mrflow bench native 12+1 12+1:tile=512 12+1+1 --size 1024 --repeats 3 --json "
        "> benchmarks/bench-1024-vista-cpu.json",
    ),
    "bench-2048-vista-cpu.json": (
        "Cost at four times its size: vista on a CPU",
        "mrflow bench native 12+1 12+1:tile=512 12+1+1 --size 2048 --repeats 1 --warm-up 0 --json "
        "> benchmarks/bench-2048-vista-cpu.json",
    ),
    "bench-flux-dev-cuda.json": (
        "Cost: FLUX.1-dev at full size, random weights, on a GPU",
        "mrflow bench native:50 12+1 4+1 --random-weights flux-dev --size 1024 --device cuda --json "
        "> benchmarks/bench-flux-dev-cuda.json",
    ),
    "bench-qwen-image-cuda.json": (
        "Cost: Qwen-Image at full size, random weights, on a GPU",
        "mrflow bench native:50 12+1 4+1 --random-weights qwen-image --size 1024 --device cuda --json "
        "> benchmarks/bench-qwen-image-cuda.json",
    ),
}
TUNED = {
    "tuned-vista-cpu.json": (
        "A tuned plan: vista on a CPU",
        "mrflow tune --at-least 1.3x --dtype bfloat16 --out benchmarks/tuned-vista-cpu.json --work tuning-vista",
    ),
    "tuned-published-vista-cpu.json": (
        "A tuned plan against 12+1 as published: vista on a CPU",
        "mrflow tune --at-least 1.5x --than 12+1:solver=own,guidance_stop=1 --dtype bfloat16 "
        "--out benchmarks/tuned-published-vista-cpu.json --work tuning-published-vista",
    ),
}
SCRIPTED = {
    f"plain-script-{name}-cuda.json": (
        f"Against a plain script of the same plan: {title} at full size, random weights, on a GPU",
        f"python benchmarks/plain_script.py --random-weights {name} --size 1024 --device cuda "
        f"--out benchmarks/plain-script-{name}-cuda.json",
    )
    for name, title in (("flux-dev", "FLUX.1-dev"), ("qwen-image", "Qwen-Image"))
}


def results_page(folder: Path, images: Path | None = None) -> str:
    """Return the page about the files in `folder`; images: the folder with plots, linked where they are.

    Raises OutputError for a file that is no such result.
    """
    parts = [_HEAD]
    for files, describe in SECTIONS:
        for name, (heading, command) in files.items():
            parts.append(f"## {heading}\n")
            path, shown = folder / name, "\n".join(f"    {line}" for line in command.splitlines()) + "\n"
            if not path.is_file():
                parts += ["Not recorded yet. To record it:\n", shown]
                continue
            plot = images / f"{name.removesuffix('.json').replace('compare', 'tradeoff')}.png" if images else None
            if plot is not None and plot.is_file():
                parts.append(f"![Quality against speed-up](images/{plot.name})\n")
            parts += [*describe(_read(path)), _folded("How to record it", shown)]
    return "\n".join(parts)


def readme(text: str, folder: Path) -> str:
    """Return README's text with the table and the draft's cost as they are recorded in `folder`."""
    methods = {method["name"]: method for method in _read(folder / README_FIGURES)["scores"]["methods"]}
    rows = ""
    for label, name in _ROWS.items():
        quality, speed = methods[name]["quality"], methods[name]["speed"]
        faster = "1" if name == "native" else _interval(speed["speedup"], "#.3g")
        seen = (quality["found"]["all"], quality["composite"])
        rows += f"| {label} | {faster} | {' | '.join(_interval(each, '.3f') for each in seen)} |\n"
    text = re.sub(re.escape(_TABLE_HEAD) + r"(\|.*\n)+", lambda _: _TABLE_HEAD + rows, text)
    native, staged = (methods[name]["speed"]["seconds"] for name in ("native", "12+1"))
    draft = sum(staged[stage]["median"] for stage in ("text", "draft", "decode_draft"))
    whole, plain = (_short(seconds["total"]["median"], ".2f") for seconds in (staged, native))
    cost = f"(vista's 12+1: {_short(draft, '.2f')} of {whole} s, native {plain} s)"
    return re.sub(r"\(vista's 12\+1: .* s\)", cost, text)


def _interval(estimate: Mapping[str, float], style: str) -> str:
    middle, low, high = (_short(each, style) for each in estimate.values())
    return f"{middle} ({low} to {high})"


def _short(value: float, style: str) -> str:
    """Return a number as README writes it: without a zero before the point."""
    return re.sub(r"\b0\.", ".", format(value, style))


def _read(path: Path) -> Json:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} is no recorded result: {error}.") from None
    if not isinstance(data, dict):
        raise OutputError(f"{path} is no recorded result.")
    return data


def _compared(report: Json) -> Iterator[str]:
    scores = report["scores"]
    yield f"{_place(report)}, {report['size'][0]}x{report['size'][1]}, {scores['prompts']} prompts.\n"
    (_, note, columns), *others = columns_of(scores)
    yield f"{note}\n"
    yield _figures(scores, columns)
    for heading, note, columns in others:
        yield _folded(heading, f"{note}\n\n{_figures(scores, columns)}")
    names, rows = stage_rows(scores)
    yield _folded("Seconds by stage", _table(["method", *names], rows))


def _figures(scores: Json, columns: Sequence[Column]) -> str:
    rows = [[row["name"], *(_joined(column.cell(row)) for column in columns)] for row in measured(scores)]
    return _table(["method", *(column.name for column in columns)], rows)


def _tuned(data: Json) -> Iterator[str]:
    measured_on = data["measured"]
    width, height = measured_on["size"]
    yield f"{_place(measured_on)}, {width}x{height}; all changes are against {measured_on['reference']}.\n"
    yield _table(
        ["method", "times faster", "composite", "change of composite", "prompts"],
        [
            [
                each["method"],
                _joined(write(each["times_faster"], 2)),
                _joined(write(each["composite"], 3)),
                _joined(write(each["change_of_composite"], 3, True)),
                str(each["prompts"]),
            ]
            for each in measured_on["all"]
        ],
    )


def _benched(report: Json) -> Iterator[str]:
    yield f"{_place(report)}, {_repeated(report['course']['repeats'])}.\n"
    rows = []
    for group in report["groups"]:
        for method in group["methods"]:
            if "failed" in method:
                cells = [method["failed"], ""]
            else:
                total, ratio = method["seconds"]["total"], method["speedup"]
                cells = [
                    _spread(total, 3),
                    "" if ratio is None else _spread(ratio, 2),
                ]
            rows.append([method["name"], f"{group['width']}x{group['height']}", str(group["batch"]), *cells])
    yield _table(["method", "size", "batch", "seconds", "times faster"], rows)


def _scripted(report: Json) -> Iterator[str]:
    yield f"{_place(report)}, {report['size'][0]}x{report['size'][1]}, {_repeated(report['repeats'])}.\n"
    rows = []
    for name, way in report["ways"].items():
        total, outside = way["seconds"]["total"], way["outside_transformer"]
        rows.append([name, _spread(total, 3), _spread({each: 100 * outside[each] for each in outside}, 1)])
    yield _table(["way", "seconds", "of it outside of the transformer, %"], rows)
    yield _table(
        ["speed-up", "times faster"], [[name, _spread(each, 2)] for name, each in report["speedup"].items()]
    )


def _repeated(times: int) -> str:
    return "one run of each" if times == 1 else f"median of {times} in turn"


def _spread(spread: Mapping[str, float], digits: int) -> str:
    return "{median:.{0}f} ({low:.{0}f} to {high:.{0}f})".format(digits, **spread)


def _place(report: Mapping[str, Any]) -> str:
    place, commit = report["environment"], report["environment"]["commit"] or "unknown"
    name = report["model"] if isinstance(report["model"], str) else report["model"]["name"]
    threads = f"{place['threads']} thread{'s' * (place['threads'] != 1)}"
    return (
        f"{name} on {place['device_name']} ({place['device']}, {place['dtype']}, {threads}), "
        f"torch {place['versions']['torch']}, commit {commit[:12]}"
        f"{scored_by(report, report.get('scores', {}))}"
    )


def _folded(summary: str, text: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{text}\n</details>\n"


def _joined(cell: tuple[str, str]) -> str:
    return f"{cell[0]} ({cell[1]})" if cell[1] else cell[0]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


SECTIONS = ((COMPARED, _compared), (TUNED, _tuned), (BENCHED, _benched), (SCRIPTED, _scripted))

if __name__ == "__main__":
    recorded = _ROOT / "benchmarks"
    PAGE.write_text(results_page(recorded, PAGE.parent / "images"), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8"), recorded), encoding="utf-8")
