"""Upscalers known by a short name: where their files are published, and what bytes they must have.

A file is fetched once, on first use, into `folder()`, and its hash is checked each time it is read. Real-ESRGAN's
files are published with its releases on GitHub; a hub file is pinned by its commit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from mrflow.errors import UpscalerError

_RELEASES = "https://github.com/xinntao/Real-ESRGAN/releases/download"
_HUB = "https://huggingface.co/fofr/comfyui/resolve/0cd0e3e76111f1f2e6f25091581958f381a2357e"


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


KNOWN: Mapping[str, KnownUpscaler] = MappingProxyType(
    {
        known.name: known
        for known in (
            KnownUpscaler(
                name="realesrgan-x2",
                url=f"{_RELEASES}/v0.2.1/RealESRGAN_x2plus.pth",
                sha256="49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
                about="Real-ESRGAN x2, the paper's class of network for its usual ratio",
                licence="BSD-3-Clause",
            ),
            KnownUpscaler(
                name="realesrgan-x4",
                url=f"{_RELEASES}/v0.1.0/RealESRGAN_x4plus.pth",
                sha256="4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
                about="Real-ESRGAN x4",
                licence="BSD-3-Clause",
            ),
            KnownUpscaler(
                name="realesrgan-x4-anime",
                url=f"{_RELEASES}/v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth",
                sha256="f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da",
                about="Real-ESRGAN x4 for drawings, a quarter of the size",
                licence="BSD-3-Clause",
            ),
            KnownUpscaler(
                name="realesr-general-x4",
                url=f"{_RELEASES}/v0.2.5.0/realesr-general-x4v3.pth",
                sha256="8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
                about="a compact network x4, many times faster",
                licence="BSD-3-Clause",
            ),
            KnownUpscaler(
                name="remacri-x4",
                url=f"{_HUB}/upscale_models/4x_foolhardy_Remacri.pth",
                sha256="e1a73bd89c2da1ae494774746398689048b5a892bd9653e146713f9df8bca86a",
                about="Foolhardy Remacri x4, of ESRGAN's old layout; the method's authors take it for 2048",
                licence="not for commercial use, as others report it: see its author's page",
            ),
        )
    }
)


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
