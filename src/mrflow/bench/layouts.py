"""Which files the scorers of other people's benchmarks expect, from the user's copy of the prompt files.

Each reader turns prompt files into items: one prompt, and where its pictures go, relative to the folder of all
runs. What a prompt file says never leads out of that folder: a name is either checked or a number.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

from mrflow.errors import PromptError, RequestError
from mrflow.prompt_rows import check_prompt, read_lines, read_object, read_table, read_text

GRID_COUNTS = (1, 4)  # one picture, or 2 x 2 of them on one sheet
_MAX_NAME = 255  # bytes of a file name, on every common file system
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One prompt of a benchmark and the files that answer it.

    pictures: one path per picture, none where only the sheet counts. grid: the sheet with all pictures, two
    columns. note: a text file beside them and what it says.
    """

    prompt: str
    pictures: tuple[Path, ...] = ()
    grid: Path | None = None
    note: tuple[Path, str] | None = None

    @property
    def files(self) -> list[Path]:
        """All files of the item."""
        beside = [self.grid] if self.grid is not None else []
        return [*self.pictures, *beside, *([self.note[0]] if self.note else [])]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one benchmark wants its pictures.

    prompts: what to give as prompt files. num_images: pictures per prompt, as its authors ask for. on_grid: a
    scorer cuts a sheet, so that there are 1 or 4. square: it cuts squares. read: gives the items of a prompt
    file for a run's name and number of pictures. folder: what the scorer is given, of the run's {name} and the
    {prompts} file's. source: where all this is from.
    """

    name: str
    prompts: str
    num_images: int
    read: Callable[[Path, str, int], Iterator[Item]]
    source: str
    folder: str = "{name}"
    on_grid: bool = False
    square: bool = False


def get_layout(name: str) -> Layout:
    """Return the layout of a benchmark; raises RequestError, naming those known."""
    if name not in LAYOUTS:
        raise RequestError(f"There is no benchmark {name[:80]!r}. Known: {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]


def scored_folder(layout: Layout, prompts: Path, name: str) -> Path:
    """Return what the scorer is given, relative to the folder of all runs; raises PromptError for an odd stem."""
    stem = _check_stem(prompts) if "{prompts}" in layout.folder else ""
    return Path(layout.folder.format(name=name, prompts=stem))


def read_items(layout: Layout, prompts: Path, name: str, num_images: int) -> list[Item]:
    """Return the items of the prompt files, all prompts and names checked.

    name: of the run, a folder's. Raises PromptError for prompt files that are not as the benchmark has them,
    RequestError for a name or number that does not fit.
    """
    if not _NAME.fullmatch(name):
        raise RequestError(f"The name is {name[:80]!r}; it may hold letters, digits and . _ + - only.")
    if layout.on_grid and num_images not in GRID_COUNTS:
        raise RequestError(f"num_images is {num_images}; {layout.name} takes 1, or 4 as 2 x 2 on one sheet.")
    if not 1 <= num_images <= 1000:
        raise RequestError(f"num_images is {num_images}; it must lie between 1 and 1000.")
    items = list(layout.read(prompts, name, num_images))
    if not items:
        raise PromptError(f"{prompts} holds no prompts. Give {layout.prompts}.")
    for path in (path for item in items for path in item.files):
        if path.is_absolute() or ".." in path.parts:  # no reader lets this happen; the last line of defence
            raise PromptError(f"{path} leads out of the folder.")
    return items


def _oneig(prompts: Path, name: str, count: int) -> Iterator[Item]:
    ids: dict[str, list[str]] = {}
    for line, row in read_table(prompts, "category"):
        category, number = (str(row.get(column, "")) for column in ("category", "id"))
        if category not in _ONEIG_FOLDERS:
            known = ", ".join(_ONEIG_FOLDERS)
            raise PromptError(f"{line}: the category is {category[:80]!r}; it must be one of {known}.")
        if not _ID.fullmatch(number):
            raise PromptError(f"{line}: the id is {number[:80]!r}; it may hold letters, digits, _ and - only.")
        ids.setdefault(category, []).append(number)
        text = row.get("prompt_en", row.get("prompt_cn", ""))
        path = Path(_ONEIG_FOLDERS[category], name, f"{number}.webp")
        yield Item(prompt=check_prompt(text, line), grid=path)
    for one, following in chain.from_iterable(pairwise(sorted(numbers)) for numbers in ids.values()):
        if following.startswith(one):  # the scorer looks for `id*` and wants one file
            raise PromptError(f"{prompts}: the id {following!r} begins with the id {one!r} of the same category.")


def _geneval(prompts: Path, name: str, count: int) -> Iterator[Item]:
    for number, (where, line) in enumerate(read_lines(prompts)):
        folder = Path(name, f"{number:05}")
        yield Item(
            prompt=read_object(line, where)["prompt"],
            pictures=tuple(folder / "samples" / f"{k:04}.png" for k in range(count)),
            grid=folder / "grid.png",
            note=(folder / "metadata.jsonl", f"{line}\n"),
        )


def _dpg(prompts: Path, name: str, count: int) -> Iterator[Item]:
    if not prompts.is_dir():
        raise PromptError(f"{prompts} is no folder. Give the folder with one text file per prompt.")
    for path in sorted(prompts.glob("*.txt")):
        stem = _check_stem(path)  # the scorer takes what stands before the first dot
        yield Item(prompt=check_prompt(read_text(path).strip(), str(path)), grid=Path(name, f"{stem}.png"))


def _compbench(prompts: Path, name: str, count: int) -> Iterator[Item]:
    folder = scored_folder(LAYOUTS["t2i-compbench"], prompts, name) / "samples"
    for number, (where, line) in enumerate(read_lines(prompts)):
        prompt = check_prompt(line.split("\t")[0], where)  # _train files have further columns
        names = [f"{prompt}_{number * count + k:06}.png" for k in range(count)]
        if re.search(r"[/\\\x00-\x1f\x7f]", prompt):
            raise PromptError(f"{where} holds a slash or a control character, and scorers want it as a file name.")
        if len(names[-1].encode()) > _MAX_NAME:
            raise PromptError(f"{where} is too long for a file name; at most {_MAX_NAME - 11} bytes fit.")
        yield Item(prompt=prompt, pictures=tuple(folder / each for each in names))


def _check_stem(path: Path) -> str:
    if not _ID.fullmatch(path.stem):
        raise PromptError(f"{path}: its name may hold letters, digits, _ and - only.")
    return path.stem


_READERS = {"oneig": _oneig, "geneval": _geneval, "dpg": _dpg, "t2i-compbench": _compbench}
_TABLES = tomllib.loads(Path(__file__).with_name("layouts.toml").read_text("utf-8"))
_ONEIG_FOLDERS = _TABLES["oneig"].pop("folders")

LAYOUTS = {name: Layout(name=name, read=_READERS[name], **table) for name, table in _TABLES.items()}
