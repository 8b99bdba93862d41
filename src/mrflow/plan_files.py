"""Plans in files: what `mrflow tune` writes and every command's --plan takes.

    {"format": 1, "plan": {"steps": 8, "refine_sigma": 0.2, ...}, "measured": {...}}

Only commands read them: a name in a row of prompts or in a request is never taken for a path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrflow.errors import PlanError
from mrflow.plan import Plan, get_plan

FORMAT = 1
SUFFIX = ".json"
_MAX_BYTES = 2**20


def named_plan(name: str | None) -> Plan:
    """Return the plan of a file, if the name ends in .json, else what `get_plan` gives. Raises PlanError."""
    if name is not None and name.strip().lower().endswith(SUFFIX):
        return read_plan(Path(name.strip()))
    return get_plan(name)


def read_plan(path: Path) -> Plan:
    """Return the plan in a file; raises PlanError if it is missing, no plan or written by a later version."""
    if not os.path.isfile(path):  # os.path, for it takes any text, however long
        raise PlanError(f"There is no plan file {str(path)[:200]}. Make one with: mrflow tune")
    try:
        with open(path, "rb") as file:
            data = json.loads(file.read(_MAX_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        raise PlanError(f"{path} is no JSON that can be read. Make a plan file with: mrflow tune") from None
    if not isinstance(data, dict) or not isinstance(data.get("plan"), dict):
        raise PlanError(f'{path} holds no "plan". Make a plan file with: mrflow tune')
    version = data.get("format")
    if version != FORMAT:
        raise PlanError(f"{path} has format {version!r:.40}; known is {FORMAT}. Upgrade mrflow.")
    try:
        return Plan.from_dict(data["plan"])
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None


def plan_to_json(plan: Plan, measured: Mapping[str, Any]) -> str:
    """Return the text of a plan file. measured: on what grounds, for people to read."""
    return json.dumps({"format": FORMAT, "plan": plan.to_dict(), "measured": dict(measured)}, indent=2) + "\n"
