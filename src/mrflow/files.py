"""Image files: read with suspicion, written whole or not at all, with the recipe inside. Text written likewise.

The recipe travels as JSON: in PNG as a tEXt chunk named "mrflow" (iTXt up to 0.1.0), in WebP
and JPEG as the EXIF image description with the prefix "mrflow:". PNG and WebP are lossless; JPEG (quality 95) is
not, so its pixels are no longer those of the recipe's hash. A draft's PNG holds its latents besides, as the bytes
of a safetensors file in a chunk of their own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from PIL import Image, ImageOps, PngImagePlugin

from mrflow.errors import (
    FileNameError,
    ImageError,
    MissingImageError,
    MrFlowWarning,
    OutputError,
    OutputExistsError,
    RecipeError,
    warn,
)
from mrflow.jobs import MAX_SIDE
from mrflow.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 256 * 2**20
MAX_LATENTS = 64 * 2**20
MAX_PIXELS = MAX_SIDE * MAX_SIDE  # below the size at which Pillow itself warns of a decompression bomb
SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")

_READABLE = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
_CHUNK = "mrflow"
_LATENTS = b"mfLA"  # a private chunk, which programs that change the picture must leave out
_PREFIX = "mrflow:"
_DESCRIPTION = 0x010E  # EXIF ImageDescription
_PART = re.compile(r"\..+\.[0-9a-f]{12}\.part")  # the temporary names of save_bytes
_CANNOT_SYNC = (errno.EINVAL, errno.EACCES, errno.EPERM, errno.EBADF, errno.ENOTSUP, errno.ENOSYS)
_SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # x, y of white, red, green, blue
_MAX_JPEG_EXIF = 65_000  # one APP1 segment holds 65,533 bytes, headers included


def load_image(
    source: str | Path | IO[bytes] | Image.Image, *, max_pixels: int = MAX_PIXELS, as_before: bool = False
) -> Image.Image:
    """Return an image as 8-bit sRGB: turned as its EXIF says, alpha laid on white, 16 bits rounded to 8.

    Colours follow the embedded profile, else a PNG's gAMA and cHRM. Values of whole-number and floating-point
    images are 8 bits, 16 bits or, where they have fractions, from 0 to 1, by their range.
    source: a path, a binary file or a Pillow image. Of a JPEG with several pictures the first is taken.
    max_pixels: 8192 x 8192 at most; what has more is refused before it is decoded. as_before: read as versions to
    0.1.0 did, without profiles and rounding.
    Raises ImageError for what is no image, is broken or cut short, is animated, or has more than 256 MiB or
    `max_pixels`.
    """
    with _opened(source, max_pixels) as image:
        name = _name(source)
        try:
            if getattr(image, "is_animated", False) and image.format != "MPO":
                frames = getattr(image, "n_frames", 2)
                raise ImageError(f"{name} has {frames} frames; it must be a still image. Save one frame of it.")
            tile = getattr(image, "tile", None) if image.format == "PNG" else None
            image.load()
            if tile and not as_before and tile[0].args in ("RGB;16B", "RGBA;16B"):
                _round_up(image, source, tile[0])
            rgb = (_to_rgb_before if as_before else _to_rgb)(ImageOps.exif_transpose(image), name)
        except ImageError:
            raise
        except Exception as error:  # Pillow's decoders raise many kinds on hostile data
            raise ImageError(f"{name} is broken or cut short: {error}.") from error
    rgb.info.clear()  # a profile that is applied must not be applied again
    return rgb


def read_latents(path: str | Path) -> Tensor | None:
    """Return the latents that a draft's PNG holds, as the pipeline gave them, on the CPU; None if there are none.

    Raises ImageError for more than 64 MiB, and for what is no tensor of finite numbers.
    """
    with _opened(path) as image:
        chunks = [data for name, data, *_ in getattr(image, "private_chunks", ()) if name == _LATENTS]
    if not chunks:
        return None
    from safetensors.torch import load

    try:
        if len(chunks[0]) > MAX_LATENTS:
            raise ValueError(f"{len(chunks[0])} bytes, at most {MAX_LATENTS} are read")
        latents: Tensor = load(chunks[0])["latents"]
        if not (latents.is_floating_point() and latents.ndim > 2 and bool(latents.float().isfinite().all())):
            raise ValueError("they are no finite numbers")
    except Exception as error:  # safetensors raises several kinds
        raise ImageError(f"The latents in {path} cannot be read: {error}. Draft it again.") from None
    return latents


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
    try:
        return Recipe.from_json(text)
    except RecipeError as error:
        raise RecipeError(f"{_name(path)}: {error}") from error


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
    image: Image.Image,
    path: str | Path,
    recipe: Recipe | None = None,
    *,
    overwrite: bool = False,
    latents: Tensor | None = None,
) -> Path:
    """Write `image`, with the recipe inside, as PNG, WebP or JPEG by the path's suffix. Returns the path.

    latents: of a draft, which a PNG holds too. The file appears whole under its name or not at all, also after a
    crash or Ctrl-C.
    Raises OutputExistsError if the file is there already and `overwrite` is false, OutputError if it cannot be
    written.
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)  # before the encoding, which takes longest
    return save_bytes(encode_image(image, path.suffix, recipe, latents=latents), path, overwrite=overwrite)


def encode_image(
    image: Image.Image,
    suffix: str,
    recipe: Recipe | None = None,
    *,
    quality: int | None = None,
    latents: Tensor | None = None,
) -> bytes:
    """Return the file that `save_image` writes: PNG, WebP or JPEG by the suffix, the same bytes each time.

    quality: 0 to 100, of JPEG and of then lossy WebP; None is 95 and lossless. PNG has none.
    Raises OutputError for what the format can't hold.
    """
    file, options = BytesIO(), _save_options(suffix.lower(), recipe)
    if latents is not None and options["format"] == "PNG":
        from safetensors.torch import save

        options["pnginfo"].add(_LATENTS, save({"latents": latents.detach().cpu().contiguous()}))
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
    except (OSError, ValueError) as error:  # the latter for what no name may hold
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"The folder {path} cannot be made: {reason}.") from error


def remove_parts(folder: Path) -> int:
    """Remove what a killed `save_bytes` left in `folder`, and return how many files that were.

    Only for whoever knows that nobody is writing there.
    """
    parts = [path for path in folder.iterdir() if _PART.fullmatch(path.name)]
    for path in parts:
        path.unlink(missing_ok=True)
    return len(parts)


def _sync_folder(folder: Path) -> None:
    """Have a new name in the folder outlive a power cut. Windows, which can't open folders, sees to it itself.

    Shares of Windows and of virtual machines can't (EINVAL, EACCES and others): the file itself is safe by then.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


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
        if recipe is not None and text is not None:
            info.add_text(_CHUNK, text)  # not iTXt, which ImageMagick drops
            info.add_text("parameters", recipe.infotext)  # for galleries
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
    except PermissionError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror}.") from error
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


def _round_up(image: Any, source: Any, tile: Any) -> None:
    """Round a PNG of 16 bits a channel, of which Pillow (12.3) keeps the upper 8; the lower are read as such."""
    import numpy as np

    if hasattr(source, "seek"):
        source.seek(0)
    with Image.open(source, formats=["PNG"]) as lower:
        lower.tile = [tile._replace(args=tile.args.replace("16B", "16L"))]
        high, low = (np.asarray(each).astype(np.int16) for each in (image, lower))
    rounded = high + (low - high > 128) - (high - low > 128)  # of (256 high + low) / 257
    image.paste(Image.fromarray(rounded.astype(np.uint8)))


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    info = image.info
    if image.mode[0] in "IF":
        low, high = cast("tuple[float, float]", image.getextrema())
        most = (
            65535 if image.mode.startswith("I;16") or high > 255 else 1 if image.mode == "F" and high <= 1 else 255
        )
        if not (low >= 0 and high <= (255 if image.mode == "F" else 65535)):
            raise ImageError(f"{name} has values from {low} to {high}; 8 or 16 bits are read. Convert it.")
        image = image.convert("F").point(lambda value: value * (255 / most) + 0.5).convert("L")
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    try:
        image = _to_srgb(image, info)
    except (ArithmeticError, ImportError, OSError, TypeError, ValueError) as error:
        warn(f"The colour profile of {name} is ignored: {error}.", MrFlowWarning)
    image = image.convert("RGB")
    return Image.composite(image, Image.new("RGB", image.size, "white"), alpha) if alpha else image


def _to_srgb(image: Image.Image, info: Mapping[Any, Any]) -> Image.Image:
    """Return the image by what it says of its colours, as it is where that is nothing or sRGB."""
    gamma, points = info.get("gamma"), info.get("chromaticity")
    if data := info.get("icc_profile"):
        return _to_srgb_by_profile(image, data)
    if gamma is None or abs(gamma - 1 / 2.2) < 0.005:  # writers mean sRGB by 0.45455
        gamma = None
    if points is None or all(abs(a - b) < 0.002 for a, b in zip(points, _SRGB, strict=True)):
        points = None
    plain = "srgb" in info or (gamma is None and points is None)
    return image if plain else _to_srgb_by_chunks(image, gamma, points)


def _to_srgb_by_profile(image: Image.Image, data: bytes) -> Image.Image:
    """Return the image by its ICC profile; raises what LittleCMS does, or ValueError."""
    from PIL import ImageCms

    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(data))
        space = profile.profile.xcolor_space.strip()
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space, "")
        if (mode == "CMYK") != (image.mode == "CMYK") or (mode == "L" and image.mode not in ("1", "L", "LA")):
            raise ValueError(f"it is of {space}, the image of {image.mode}")
        srgb = ImageCms.createProfile("sRGB")
        return cast("Image.Image", ImageCms.profileToProfile(image.convert(mode), profile, srgb, outputMode="RGB"))
    except ImageCms.PyCMSError as error:
        raise ValueError(error) from error


def _to_srgb_by_chunks(image: Image.Image, gamma: float | None, points: Sequence[float] | None) -> Image.Image:
    """Return an image by a PNG's gAMA and cHRM, None being sRGB's; white stays white."""
    import numpy as np

    def primaries(points: Sequence[float]) -> Any:
        x, y = np.reshape(points, (4, 2)).T
        white, *colours = np.stack([x / y, np.ones(4), (1 - x - y) / y], axis=1)
        return np.transpose(colours) * np.linalg.solve(np.transpose(colours), white)

    def convert(part: Any) -> Any:
        light = (linear[part] @ matrix.T).clip(0, 1)
        levels = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        return (levels * 255 + 0.5).astype(np.uint8)

    with np.errstate(all="raise", under="ignore"):
        matrix = np.linalg.inv(primaries(_SRGB)) @ primaries(points or _SRGB)
        matrix /= matrix.sum(axis=1, keepdims=True)
        value = np.arange(256) / 255
        curve = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
        linear = curve if gamma is None else value ** (1 / gamma)
        parts = np.array_split(np.asarray(image.convert("RGB")), image.height // 64 + 1)  # memory for a few rows
        return Image.fromarray(np.concatenate([convert(part) for part in parts]))


def _to_rgb_before(image: Image.Image, name: str) -> Image.Image:
    """Return what versions to 0.1.0 read, which the recipes of enhanced pictures hold the hash of."""
    if image.mode.startswith("I;16") or image.mode == "I":
        return image.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _name(source: object) -> str:
    return str(source) if isinstance(source, (str, Path)) else "The image"
