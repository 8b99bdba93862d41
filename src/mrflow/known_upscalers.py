"""Upscalers known by a short name: where their files are published, and what bytes they must have.

A file is fetched once, on first use, into `folder()`, and its hash is checked each time it is read. Real-ESRGAN's
files are published with its releases on GitHub; a hub file is pinned by its commit.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from mrflow.errors import UpscalerError

METHODS = ("bicubic", "bilinear", "lanczos", "latent")  # interpolations, all but the last of pixels


@dataclass(frozen=True, kw_only=True)
class KnownUpscaler:
    """A published file. sha256: of its bytes, as several public lists give it; none was fetched by us."""

    name: str
    url: str
    sha256: str
    about: str
    licence: str

    @property
    def file(self) -> str:
        """The name of the file."""
        return self.url.rpartition("/")[2]


def _read() -> dict[str, KnownUpscaler]:
    tables = tomllib.loads(Path(__file__).with_name("upscalers.toml").read_text("utf-8"))
    return {name: KnownUpscaler(name=name, **table) for name, table in tables.items()}


KNOWN: Mapping[str, KnownUpscaler] = MappingProxyType(_read())


def folder() -> Path:
    """Return where fetched files lie: `$MRFLOW_CACHE/upscalers`, by default in ~/.cache/mrflow."""
    return Path(os.environ.get("MRFLOW_CACHE") or Path.home() / ".cache" / "mrflow") / "upscalers"


def fetch(known: KnownUpscaler) -> Path:
    """Return the path of the file, fetched if it is not there yet.

    Raises UpscalerError, naming the file, its source and the place where it is looked for, if it cannot be had:
    offline, no room, or other bytes than published. HF_HUB_OFFLINE is respected.
    """
    import torch.hub

    path = folder() / known.file
    if path.is_file():
        return path
    try:
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            raise OSError("HF_HUB_OFFLINE is set")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(known.url, str(path), hash_prefix=known.sha256, progress=False)
    except (OSError, RuntimeError) as error:  # RuntimeError: another hash
        raise UpscalerError(
            f"{known.name} cannot be fetched: {error}. Put {known.file} from {known.url} into {path.parent}, "
            "or give the path of any upscaler file."
        ) from error
    return path


def check(known: KnownUpscaler, sha256: str) -> None:
    """Raise UpscalerError unless `sha256` is the published one."""
    if sha256 != known.sha256:
        raise UpscalerError(
            f"{folder() / known.file} has the SHA-256 {sha256}; that of {known.name} is {known.sha256}. "
            "Delete the file, and it is fetched again."
        )
