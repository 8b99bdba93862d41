"""Folders in diffusers' layout: read and checked before any weights are, told apart, and found by name."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mrflow.errors import ModelError
from mrflow.known_models import FILES

INDEX = "model_index.json"
WEIGHTS = (".safetensors", ".bin")
_HASHED = (".json", ".txt", ".model", *WEIGHTS)
_SAMPLE = 2**18  # bytes
_READ = re.compile(r"([a-z_]*config|tokenizer|vocab|added_tokens|special_tokens_map)\.json")
_COUNT = re.compile(r'"(\w*(?:layers?|blocks|depth|experts|layers_per_block))"\s*:\s*(\d{4,})')
AGAIN = "Is its download complete?"


def read_index(folder: Path) -> dict[str, Any]:
    """Return what a folder's model_index.json says. Raises ModelError unless it describes a pipeline.

    A component is a list of two texts, or of two None where there is none; other lists are options.
    """
    path = folder / INDEX
    index = read_json(path)
    kind = index.get("_class_name")
    if not isinstance(kind, str):
        raise ModelError(f"{path} names no pipeline: its _class_name is {kind!r:.80}. {AGAIN}")
    for name, value in index.items():
        texts = [isinstance(each, str) for each in value] if isinstance(value, list) else []
        named = name.isidentifier()  # for it is a folder, too, and no path
        if any(texts) and not (named and texts == [True, True]):
            raise ModelError(f"{path} has the component {name!r:.80}: {value!r:.80}, which is none. {AGAIN}")
    return index


def components(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return library and class of each component that an index (see `read_index`) has."""
    lists = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    return {name: (value[0], value[1]) for name, value in lists.items() if isinstance(value[0], str)}


def check_parts(folder: Path, given: Container[str] = ()) -> dict[str, Any]:
    """Return a folder's index; raises ModelError where a component of it is missing, or its JSON damaged.

    given: components that come from elsewhere. Weights are left to `weights.check_folder`.
    """
    index = read_index(folder)
    for name in components(index):
        if name in given:
            continue
        part = folder / name
        try:
            files = sorted(part.iterdir())
        except FileNotFoundError:
            raise ModelError(f"{folder} has no folder {name}, which its {INDEX} names. {AGAIN}") from None
        except OSError as error:
            raise ModelError(f"{part} cannot be read: {error.strerror}.") from error
        if not files:
            raise ModelError(f"{part} is empty. {AGAIN}")
        for path in files:
            found = read_json(path) if _READ.fullmatch(path.name) else {}
            if path.name == "tokenizer.json" and "model" not in found:
                raise ModelError(f"{path} is damaged: it holds no tokenizer's model. {AGAIN}")
            if path.name == "config.json" and (count := _COUNT.search(path.read_text(errors="replace"))):
                raise ModelError(f"{path} has {count[1]} {count[2]}; no network has over 999. {AGAIN}")
    return index


def check_shards(folder: Path) -> None:
    """Raise ModelError where an index of weights in several files names one outside of its own folder.

    transformers (5.24) would read it.
    """
    for path in sorted(folder.glob("*/*.index*.json")):  # variants have names such as model.index.fp16.json
        files = read_json(path).get("weight_map")
        if not isinstance(files, dict):
            raise ModelError(f"{path} is damaged: it has no weight_map. {AGAIN}")
        for name in files.values():
            if not isinstance(name, str) or name in ("", ".", "..") or set("/\\").intersection(name):
                raise ModelError(f"{path} names the file {name!r:.80}, which is not beside it. Don't trust it.")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; raises ModelError for one that cannot be read or holds none."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}. {AGAIN}") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError among them
        raise ModelError(f"{path} is damaged: it holds no JSON. {AGAIN}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} is damaged: it holds no JSON object. {AGAIN}")
    return found


def identify(source: str, revision: str | None = None) -> tuple[str, str | None]:
    """Return the name and revision that recipes hold of a model, which tell no path of this machine.

    Of a folder or file its own name and 12 digits of a hash: of its configuration, and of the sizes and samples of
    its weights. Of one in the hub's cache its id and commit, of anything else `source` and `revision`.
    """
    folder = Path(os.path.abspath(source)) if os.path.exists(source) else None
    if folder is None:
        return source, revision
    if folder.parent.name == "snapshots":
        return folder.parents[1].name.removeprefix("models--").replace("--", "/"), folder.name
    digest = hashlib.sha256()
    inside = sorted(each for each in folder.rglob("*") if each.suffix in _HASHED)
    for path in [folder] if folder.is_file() else inside:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size} ".encode())
        with path.open("rb") as file:
            for begin in (0, size // 2, max(size - _SAMPLE, 0)):
                file.seek(begin)
                digest.update(file.read(_SAMPLE))
    return folder.name, digest.hexdigest()[:12]


def is_readable(folder: Path) -> bool:
    """Return whether this is a folder in which files may be looked for; pathlib takes another for an empty one."""
    return os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK)


def find_model(name: str, revision: str | None, folders: Iterable[Path]) -> str | None:
    """Return the model of that name in one of the folders, up to two levels down; else None.

    Its folder, or its single file. revision: that it has, whatever its name then; None is any.
    """
    found = models_in(folders)
    named = [path for path in found if name in (path.name, path.stem if path.is_file() else "")]
    for each in (*named, *(found if len(revision or "") == 12 else ())):  # of `identify`: the hub's are longer
        with suppress(OSError):  # whoever may not read it has another
            if revision is None or identify(str(each))[1] == revision:
                return str(each)
    return None


def models_in(folders: Iterable[Path]) -> list[Path]:
    """Return the folders in diffusers' layout and the single files in these folders, up to two levels down."""
    places = [path for each in folders for depth in ("", "*/", "*/*/") for path in each.glob(depth + "*")]
    files = [path for path in places if path.suffix.lower() in FILES and path.is_file()]
    return [*(path.parent for path in places if path.name == INDEX), *files]
