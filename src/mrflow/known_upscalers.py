"""Upscalers known by a short name: where their files are published, and what bytes they must have.

A file is fetched once, on first use, into `folder()`, and its hash is checked each time it is read; those of an
installed package are read where they are. Real-ESRGAN's files are published with its releases on GitHub; a hub
file is pinned by its commit.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from mrflow.errors import UpscalerError, install_command

METHODS = ("bicubic", "bilinear", "lanczos", "latent")  # interpolations, all but the last of pixels


@dataclass(frozen=True, kw_only=True)
class KnownUpscaler:
    """A published file. sha256: of its bytes, as several public lists give it; none was fetched by us.

    package: that holds the file, in which `url` is a path, or "" for one to be fetched.
    """

    name: str
    url: str
    sha256: str
    about: str
    licence: str
    package: str = ""

    @property
    def file(self) -> str:
        """The name of the file."""
        return self.url.rpartition("/")[2]

    @property
    def path(self) -> Path:
        """Where the file is, or would be."""
        if not self.package:
            return folder() / self.file
        found = find_spec(self.package)
        return Path(found.origin if found and found.origin else self.package).parent / self.url


def _read() -> dict[str, KnownUpscaler]:
    tables = tomllib.loads(Path(__file__).with_name("upscalers.toml").read_text("utf-8"))
    return {name: KnownUpscaler(name=name, **table) for name, table in tables.items()}


KNOWN: Mapping[str, KnownUpscaler] = MappingProxyType(_read())
USUAL = ("realesrgan-x2", "realesrgan-x4-ncnn")  # the method's own, and what stands in for it


def usual() -> KnownUpscaler:
    """Return the method's upscaler: Real-ESRGAN x2 if it is here, else the extra's x4, else x2, to be fetched."""
    return next((KNOWN[name] for name in USUAL if KNOWN[name].path.is_file()), KNOWN[USUAL[0]])


def folder() -> Path:
    """Return where fetched files lie: `$MRFLOW_CACHE/upscalers`, by default in ~/.cache/mrflow."""
    return Path(os.environ.get("MRFLOW_CACHE") or Path.home() / ".cache" / "mrflow") / "upscalers"


def fetch(known: KnownUpscaler) -> Path:
    """Return the path of the file, fetched if it is not there yet.

    Raises UpscalerError, naming the file, its source and the place where it is looked for, if it cannot be had:
    offline, no room, or other bytes than published. HF_HUB_OFFLINE is respected.
    """
    import torch.hub

    path = known.path
    if path.is_file():
        return path
    if known.package:
        raise UpscalerError(f"{known.name} is not installed. Install it with: {install_command('upscalers')}")
    try:
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            raise OSError("HF_HUB_OFFLINE is set")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(known.url, str(path), hash_prefix=known.sha256)
    except (OSError, RuntimeError) as error:  # RuntimeError: another hash
        here = KNOWN[USUAL[1]].path.is_file()
        other = USUAL[1] if here else f"Real-ESRGAN x4 by {install_command('upscalers')}"
        raise UpscalerError(
            f"{known.name} cannot be fetched: {error}. Put {known.file} from {known.url} into {path.parent}, "
            f"or take {other}, or give the path of any upscaler file, "
            "or 'bicubic' to be content with softer pictures."
        ) from error
    return path


def check(known: KnownUpscaler, sha256: str) -> None:
    """Raise UpscalerError unless `sha256` is the published one."""
    if sha256 != known.sha256:
        raise UpscalerError(
            f"{known.path} has the SHA-256 {sha256}; that of {known.name} is {known.sha256}. "
            "Delete the file, and it is fetched again."
        )
