"""Image files: read with suspicion, written whole or not at all, with the recipe inside. Text written likewise.

The recipe travels as JSON: in PNG as an iTXt chunk named "mrflow", in WebP and JPEG as the EXIF image
description with the prefix "mrflow:". PNG and WebP are lossless; JPEG (quality 95) is not, so its pixels
are no longer those of the recipe's hash.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageOps, PngImagePlugin

from mrflow.errors import FileNameError, ImageError, MissingImageError, OutputError, OutputExistsError, RecipeError
from mrflow.jobs import MAX_SIDE
from mrflow.recipe import Recipe

MAX_BYTES = 256 * 2**20
MAX_PIXELS = MAX_SIDE * MAX_SIDE  # below the size at which Pillow itself warns of a decompression bomb
SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")

_READABLE = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
_CHUNK = "mrflow"
_PREFIX = "mrflow:"
_DESCRIPTION = 0x010E  # EXIF ImageDescription
_PART = re.compile(r"\..+\.[0-9a-f]{12}\.part")  # the temporary names of save_bytes
_MAX_JPEG_EXIF = 65_000  # one APP1 segment holds 65,533 bytes, headers included


def load_image(source: str | Path | IO[bytes] | Image.Image, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return an image as 8-bit RGB: turned as its EXIF says, alpha laid on white, 16-bit grey scaled down.

    source: a path, a binary file or a Pillow image. Of a JPEG with several pictures the first is taken.
    max_pixels: 8192 x 8192 at most; what has more is refused before it is decoded.
    Raises ImageError for what is no image, is broken or cut short, is animated, or has more than 256 MiB or
    `max_pixels`.
    """
    with _opened(source, max_pixels) as image:
        name = _name(source)
        if getattr(image, "is_animated", False) and image.format != "MPO":
            frames = getattr(image, "n_frames", 2)
            raise ImageError(f"{name} has {frames} frames; it must be a still image. Save one frame of it.")
        try:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image), name)
        except ImageError:
            raise
        except Exception as error:  # Pillow's decoders raise many kinds on hostile data
            raise ImageError(f"{name} is broken or cut short: {error}.") from error


def read_recipe(path: str | Path | IO[bytes]) -> Recipe:
    """Return the recipe inside a PNG, WebP or JPEG file.

    Raises ImageError if the file is no image, RecipeError if it holds no recipe or a broken one.
    """
    with _opened(path) as image:
        try:
            if image.format == "PNG":
                image.load()  # text may follow the pixels
                text = getattr(image, "text", {}).get(_CHUNK)
            else:
                text = image.getexif().get(_DESCRIPTION)
        except Exception as error:  # as above
            raise ImageError(f"{_name(path)} is broken or cut short: {error}.") from error
    if isinstance(text, str) and image.format != "PNG":
        text = text.removeprefix(_PREFIX) if text.startswith(_PREFIX) else None
    if not isinstance(text, str):
        raise RecipeError(f"{_name(path)} holds no recipe. Only pictures saved by mrflow carry one.")
    return Recipe.from_json(text)


def check_output(path: str | Path, *, overwrite: bool = False) -> None:
    """Raise OutputError unless `save_image` could write to `path` now; leaves nothing behind."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise FileNameError(f"{path} ends in {path.suffix!r}; it must be one of {', '.join(SUFFIXES)}.")
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # told below, by what stands in the way
    except (OSError, ValueError) as error:  # too long, for this file system; or not to be written in its letters
        reason = getattr(error, "strerror", None) or error
        raise FileNameError(f"{str(path)!a:.80} cannot be a file's name: {reason}. Choose another.") from None
    if os.path.isdir(path):
        raise OutputError(f"{path} is a folder; it must be a file name.")
    if not overwrite and os.path.lexists(path):
        raise OutputExistsError(f"{path} exists and is not overwritten. Choose another name or allow it.")
    if not os.path.isdir(path.parent):
        raise OutputError(f"The folder {path.parent} does not exist. Create it first.")
    try:  # the honest test: permissions, quotas and read-only mounts all show here
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"The folder {path.parent} is not writable: {error.strerror}.") from error


def save_image(
    image: Image.Image, path: str | Path, recipe: Recipe | None = None, *, overwrite: bool = False
) -> Path:
    """Write `image`, with the recipe inside, as PNG, WebP or JPEG by the path's suffix. Returns the path.

    The file appears whole under its name or not at all, also after a crash or Ctrl-C.
    Raises OutputExistsError if the file is there already and `overwrite` is false, OutputError if it cannot be
    written.
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)  # before the encoding, which takes longest
    return save_bytes(encode_image(image, path.suffix, recipe), path, overwrite=overwrite)


def encode_image(
    image: Image.Image, suffix: str, recipe: Recipe | None = None, *, quality: int | None = None
) -> bytes:
    """Return the file that `save_image` writes: PNG, WebP or JPEG by the suffix, the same bytes each time.

    quality: 0 to 100, of JPEG and of then lossy WebP; None is 95 and lossless. PNG has none.
    Raises OutputError for what the format can't hold.
    """
    file, options = BytesIO(), _save_options(suffix.lower(), recipe)
    if quality is not None and options["format"] != "PNG":
        options |= {"quality": quality, **({"lossless": False} if options["format"] == "WEBP" else {})}
    try:
        image.convert("RGB").save(file, **options)
    except (OSError, ValueError) as error:  # a format's own limits, such as WebP's 16,383 pixels a side
        raise OutputError(f"The picture cannot be written as {suffix}: {error}.") from error
    return file.getvalue()


def save_bytes(data: bytes, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a file that appears whole under its name or not at all, also after a crash. Returns the path.

    On return the data and the name are on the disk, as far as the disk is honest.
    Raises OutputExistsError if the file is there already and `overwrite` is false, OutputError if it cannot be
    written.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}.part")
    try:
        with open(draft, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _publish(draft, path, overwrite=overwrite)
        _sync_folder(path.parent)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        draft.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text, in one step, over what is there; makes the folder. Returns the path.

    Raises OutputError if it cannot be written.
    """
    make_folder(path.parent)
    return save_bytes(text.encode(), path, overwrite=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless they are there. Raises OutputError if that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {path} cannot be made: {error.strerror}.") from error


def remove_parts(folder: Path) -> int:
    """Remove what a killed `save_bytes` left in `folder`, and return how many files that were.

    Only for whoever knows that nobody is writing there.
    """
    parts = [path for path in folder.iterdir() if _PART.fullmatch(path.name)]
    for path in parts:
        path.unlink(missing_ok=True)
    return len(parts)


def _sync_folder(folder: Path) -> None:
    """Have a new name in the folder outlive a power cut. Windows, which can't open folders, sees to it itself."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _publish(draft: Path, path: Path, *, overwrite: bool) -> None:
    """Give the finished file its name, in one step, without ever replacing a file unasked."""
    if overwrite:
        os.replace(draft, path)
        return
    try:
        os.link(draft, path)
    except FileExistsError:
        raise OutputExistsError(f"{path} was written by someone else meanwhile; it is left alone.") from None
    except OSError:  # a file system without hard links: claim the name, then replace our own claim
        with open(path, "xb"):
            os.replace(draft, path)


def _save_options(suffix: str, recipe: Recipe | None) -> dict[str, Any]:
    text = recipe.to_json() if recipe is not None else None
    if suffix == ".png":
        info = PngImagePlugin.PngInfo()
        if text is not None:
            info.add_itxt(_CHUNK, text)
        return {"format": "PNG", "pnginfo": info}
    exif = Image.Exif()
    if text is not None:
        exif[_DESCRIPTION] = _PREFIX + text
    if suffix == ".webp":
        return {"format": "WEBP", "lossless": True, "exif": exif.tobytes()}
    if text is not None and len(text) > _MAX_JPEG_EXIF:
        raise OutputError(f"The recipe has {len(text)} characters; JPEG holds {_MAX_JPEG_EXIF}. Save as PNG.")
    return {"format": "JPEG", "quality": 95, "subsampling": 0, "exif": exif.tobytes()}


@contextlib.contextmanager
def _opened(source: str | Path | IO[bytes] | Image.Image, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Give the image with its header read and its size checked, its pixels not yet decoded."""
    if isinstance(source, Image.Image):
        _check_pixels(source, "The image", max_pixels)
        yield source
        return
    name = _name(source)
    if isinstance(source, (str, Path)):
        _check_file(Path(source))
    try:
        image = Image.open(source, formats=_READABLE)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} is too large: {error}") from None
    except Exception as error:  # truncated headers raise many kinds
        raise ImageError(f"{name} is no image that can be read ({', '.join(_READABLE)}).") from error
    with image:
        _check_pixels(image, name, max_pixels)
        yield image


def _check_file(path: Path) -> None:
    if not os.path.isfile(path):  # os.path, for it takes any text, however long
        if os.path.exists(path):
            raise ImageError(f"{path} is no regular file. Give the path of an image.")
        raise MissingImageError(f"{path} does not exist. Give the path of an image.")
    if path.stat().st_size > MAX_BYTES:
        raise ImageError(f"{path} has {path.stat().st_size} bytes; at most {MAX_BYTES} are read.")


def _check_pixels(image: Image.Image, name: str, most: int) -> None:
    if image.width < 1 or image.height < 1 or image.width * image.height > most:
        raise ImageError(
            f"{name} has {image.width}x{image.height} pixels; at most {most} are read. Make it smaller."
        )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        low, high = image.getextrema()
        if low < 0 or high > 65535:  # type: ignore[operator]
            raise ImageError(f"{name} has values from {low} to {high}; at most 16 bits are read.")
        # convert() would clip at 255 and give a white picture
        return image.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
    if image.mode == "F":
        raise ImageError(f"{name} holds floating-point values; 8 or 16 bits a channel are read. Convert it.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _name(source: object) -> str:
    return str(source) if isinstance(source, (str, Path)) else "The image"
