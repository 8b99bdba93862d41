"""The ledger of a batch: `manifest.jsonl`, one line per picture, written only once the picture is safe.

A journal: see mrflow.journal. A line that is broken counts as not there, and its picture is made again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import Any

from mrflow.errors import PlanError
from mrflow.journal import Journal
from mrflow.plan import Plan
from mrflow.recipe import Recipe

MANIFEST, ERRORS = "manifest.jsonl", "errors.jsonl"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHAPING = ("prompt", "negative_prompt", "seed", "width", "height", "model", "revision", "upscaler")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One picture that is safe.

    path: in the output folder; of a picture in a shard "shard-000000.tar/id.png". sha256, size: of the file.
    plan, upscaler_sha256 and the like: as in the recipe that the file carries. seconds: stage to seconds, those
    of a batch divided by its pictures; "write" is encoding, writing and syncing.
    """

    id: str
    path: str
    sha256: str
    size: int
    prompt: str
    negative_prompt: str | None
    seed: int
    width: int
    height: int
    plan: Mapping[str, Any]
    model: str
    revision: str | None
    upscaler: str | None
    loras: Sequence[Mapping[str, Any]] = ()
    references: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, id: str, path: str, sha256: str, size: int, recipe: Recipe, seconds: Mapping[str, float] | None = None
    ) -> Entry:
        """Return the entry of a written picture."""
        shaping = {name: getattr(recipe, name) for name in _SHAPING}
        shaping |= {"plan": recipe.plan.to_dict(), **_lists(recipe)}
        rounded = {name: round(value, 4) for name, value in (seconds or {}).items()}
        return cls(id=id, path=path, sha256=sha256, size=size, seconds=rounded, **shaping)

    def differences(self, recipe: Recipe) -> dict[str, tuple[object, object]]:
        """Return in what the picture was to be otherwise than `recipe` now says: name to (then, now)."""
        plan = dict(self.plan)
        if None in plan.values():  # of 0.1.0, which wrote all numbers that it knew, and knew one noise
            plan.setdefault("noise", recipe.plan.noise)
        then = {name: getattr(self, name) for name in _SHAPING} | _numbers(plan)
        now = {name: getattr(recipe, name) for name in _SHAPING} | vars(recipe.plan)
        then.update(loras=list(self.loras), references=list(self.references))
        now.update(_lists(recipe))
        if self.revision is None and self.model != recipe.model and PurePath(self.model).name == recipe.model:
            then |= {"model": recipe.model, "revision": recipe.revision}  # 0.1.0 wrote a local model's path
        names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        return {name: (then.get(name), now.get(name)) for name in names}


def read_entries(journal: Journal) -> tuple[list[Entry], bool]:
    """Return the entries, the last one of each id, and whether the file holds nothing else. None for no file.

    Raises OutputError if the file is there and can't be read.
    """
    lines, whole = journal.read()
    entries = [_entry(line) for line in lines]
    kept = {entry.id: entry for entry in entries if entry is not None}
    return list(kept.values()), whole and len(kept) == len(entries)


def _lists(recipe: Recipe) -> dict[str, Any]:
    return {"loras": list(map(vars, recipe.loras)), "references": [each.sha256 for each in recipe.references]}


def _numbers(plan: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a plan as whichever version wrote it meant them; of what is no plan as they are."""
    try:
        return vars(Plan.from_dict(plan))
    except PlanError:
        return plan


def _entry(values: Any) -> Entry | None:
    """Return the entry of a line's value, or None for one that is no entry."""
    try:
        values = {"loras": [], "references": [], **values}  # which 0.1.0 did not know
        entry = Entry(**{each.name: values[each.name] for each in fields(Entry)})
    except (KeyError, TypeError):
        return None
    texts = (entry.id, entry.path, entry.sha256, entry.prompt)
    mappings = (entry.plan, entry.seconds)
    sound = all(isinstance(text, str) for text in texts) and all(isinstance(each, Mapping) for each in mappings)
    return entry if sound and _SHA256.fullmatch(entry.sha256) else None
