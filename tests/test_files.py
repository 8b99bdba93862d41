import errno
import io
import os
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mrflow import files
from mrflow.errors import ImageError, MrFlowWarning, OutputError, OutputExistsError, RecipeError
from mrflow.files import check_output, load_image, read_recipe, remove_parts, save_bytes, save_image, write_text
from support.pictures import make_recipe, noise_image


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg", ".PNG", ".jpeg"])
def test_a_saved_picture_carries_its_recipe(tmp_path: Path, suffix: str) -> None:
    image, recipe = noise_image(40, 30), make_recipe()
    path = save_image(image, tmp_path / f"picture{suffix}", recipe)
    assert read_recipe(path) == recipe
    loaded = load_image(path)
    assert loaded.size == image.size
    if suffix.lower() in (".png", ".webp"):
        assert loaded.tobytes() == image.tobytes()


def test_the_same_picture_is_the_same_bytes(tmp_path: Path) -> None:
    paths = [save_image(noise_image(9, 9), tmp_path / f"{k}.png", make_recipe()) for k in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_an_existing_file_is_never_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="exists and is not overwritten"):
        save_image(noise_image(2, 2), path)
    assert path.read_bytes() == b"mine"
    save_image(noise_image(2, 2), path, overwrite=True)
    assert load_image(path).size == (2, 2)
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_file_that_appears_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    monkeypatch.setattr(files.os, "fsync", lambda _: path.write_bytes(b"theirs"))
    with pytest.raises(OutputExistsError, match="meanwhile"):
        save_image(noise_image(2, 2), path)
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["a.png"]


def test_saving_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError("Operation not supported")

    monkeypatch.setattr(files.os, "link", no_links)
    save_image(noise_image(2, 2), tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").size == (2, 2)
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full"), RuntimeError])
def test_an_interrupted_save_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises((KeyboardInterrupt, OutputError, RuntimeError)):
        save_image(noise_image(2, 2), tmp_path / "a.png")
    assert os.listdir(tmp_path) == []


def test_check_output_finds_out_before_the_work(tmp_path: Path) -> None:
    check_output(tmp_path / "new.png")
    assert os.listdir(tmp_path) == []
    for path, words in [
        (tmp_path / "a.gif", "must be one of"),
        (tmp_path / "a", "must be one of"),
        (tmp_path / "none" / "a.png", "does not exist"),
    ]:
        with pytest.raises(OutputError, match=words):
            check_output(path)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path / "folder.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_found_out(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(OutputError, match="not writable"):
        check_output(tmp_path / "a.png")


def test_a_folder_that_takes_no_files_is_found_out() -> None:
    with pytest.raises(OutputError, match="not writable"):
        check_output("/proc/a.png")


def test_a_recipe_too_long_for_jpeg_says_so(tmp_path: Path) -> None:
    from dataclasses import replace

    recipe = replace(make_recipe(), prompt="x" * 66_000)
    with pytest.raises(OutputError, match="Save as PNG"):
        save_image(noise_image(2, 2), tmp_path / "a.jpg", recipe)
    assert read_recipe(save_image(noise_image(2, 2), tmp_path / "a.png", recipe)) == recipe


# --- reading what others wrote ---


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    noise_image(4, 2).save(tmp_path / "a.png", exif=exif)
    assert load_image(tmp_path / "a.png").size == (2, 4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK", "YCbCr", "RGBX"])
def test_every_usual_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("RGB", (3, 3), "white").convert(mode)
    loaded = load_image(image)
    assert loaded.mode == "RGB"
    assert loaded.getpixel((1, 1)) == (255, 255, 255)


def test_transparent_parts_lie_on_white() -> None:
    assert load_image(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (1, 1))
    palette.info["transparency"] = 0
    assert load_image(palette).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    loaded = load_image(tmp_path / f"a{suffix}")
    assert [loaded.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "read"),
    [
        (np.array([[0, 100, 255]], dtype=np.int32), [0, 100, 255]),
        (np.array([[0, 32768, 65535]], dtype=np.int32), [0, 128, 255]),
        (np.array([[0, 128, 255]], dtype=np.uint16), [0, 0, 1]),
        (np.array([[0, 0.5, 1]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 99.6, 255]], dtype=np.float32), [0, 100, 255]),
    ],
)
def test_numbers_are_read_by_their_range(values, read) -> None:
    loaded = load_image(Image.fromarray(values))
    assert [loaded.getpixel((x, 0))[0] for x in range(3)] == read


def test_wider_values_are_refused() -> None:
    for image in (Image.new("F", (1, 1), 256), Image.new("F", (1, 1), -1), Image.new("I", (1, 1), 70_000)):
        with pytest.raises(ImageError, match="8 or 16 bits are read"):
            load_image(image)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, colour: tuple[int, ...] = (60, 180, 75), depth: int = 8) -> io.BytesIO:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, depth, 2 if len(colour) == 3 else 6, 0, 0, 0))
    row = b"\0" + b"".join(struct.pack(">B" if depth == 8 else ">H", each) for each in colour)
    end = png_chunk(b"IDAT", zlib.compress(row)) + png_chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + end)


def gama(value: float) -> bytes:
    return png_chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


def chrm(*values: float) -> bytes:
    return png_chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in values)))


P3 = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
NARROW = (0.3457, 0.3585, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # another white
SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def profile() -> bytes:
    """Return Display P3 as an ICC profile."""
    curve = b"para" + struct.pack(">4xHxx", 3) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    colours = [(0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)]
    parts = {
        name: b"XYZ \0\0\0\0" + fixed(*xyz) for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colours, strict=True)
    }
    parts |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data, begin = struct.pack(">I", len(parts)), b"", 132 + 12 * len(parts)
    for name, part in parts.items():
        table += struct.pack(">4sII", name, begin + len(data), len(part))
        data += part
    head = struct.pack(">I4xI4s4s4s", begin + len(data), 0x04200000, b"mntr", b"RGB ", b"XYZ ").ljust(36, b"\0")
    return head + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249) + bytes(48) + table + data


def close(one, other) -> bool:
    return all(abs(a - b) <= 1 for a, b in zip(one, other, strict=True))


def test_colours_follow_an_embedded_profile(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 2), (60, 180, 75))
    image.save(tmp_path / "a.png", icc_profile=profile())
    loaded = load_image(tmp_path / "a.png")
    assert close(loaded.getpixel((0, 0)), (0, 183, 57))  # of Display P3
    assert load_image(loaded).tobytes() == loaded.tobytes()
    clear = Image.new("RGBA", (2, 2), (60, 180, 75, 0))
    clear.save(tmp_path / "b.png", icc_profile=profile())
    assert load_image(tmp_path / "b.png").getpixel((0, 0)) == (255, 255, 255)
    image.quantize(4).save(tmp_path / "c.png", icc_profile=profile())
    assert close(load_image(tmp_path / "c.png").getpixel((0, 0)), (0, 183, 57))


@pytest.mark.parametrize("data", [b"no profile", profile()[:200], b"\0" * 300])
def test_a_broken_profile_is_ignored_with_a_warning(data: bytes) -> None:
    image = Image.new("RGB", (2, 2), (60, 180, 75))
    image.info["icc_profile"] = data
    with pytest.warns(MrFlowWarning, match="colour profile"):
        assert load_image(image).getpixel((0, 0)) == (60, 180, 75)


def test_a_profile_of_another_colour_space_is_ignored_with_a_warning() -> None:
    image = Image.new("CMYK", (2, 2), (0, 0, 0, 0))
    image.info["icc_profile"] = profile()
    with pytest.warns(MrFlowWarning, match="it is of RGB, the image of CMYK"):
        assert load_image(image).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("chunks", "read"),
    [
        ([gama(0.45455)], (60, 180, 75)),
        ([gama(0.45455), chrm(*SRGB)], (60, 180, 75)),
        ([gama(1.0)], (132, 218, 147)),  # linear light
        ([chrm(*P3)], (0, 183, 57)),
        ([gama(0.45455), chrm(*P3)], (0, 183, 57)),
        ([png_chunk(b"sRGB", b"\0"), gama(1.0), chrm(*P3)], (60, 180, 75)),
    ],
)
def test_colours_follow_gama_and_chrm(chunks: list[bytes], read: tuple[int, ...]) -> None:
    assert close(load_image(png(*chunks)).getpixel((0, 0)), read)


def test_white_stays_white_and_senseless_primaries_are_ignored() -> None:
    assert close(load_image(png(chrm(*NARROW), colour=(255, 255, 255))).getpixel((0, 0)), (255, 255, 255))
    for points in ((0.3, 0.0, 0.6, 0.3, 0.3, 0.6, 0.1, 0.1), (0.3, 0.3) * 4):
        with pytest.warns(MrFlowWarning, match="colour profile"):
            assert load_image(png(chrm(*points))).getpixel((0, 0)) == (60, 180, 75)


@pytest.mark.parametrize("alpha", [(), (65535,)])
def test_16_bit_colours_are_rounded(alpha: tuple[int, ...], tmp_path: Path) -> None:
    file = png(colour=(0x40FF, 0x8000, 0xFF00, *alpha), depth=16)
    path = tmp_path / "a.png"
    path.write_bytes(file.getvalue())
    for source in (file, path):
        assert load_image(source).getpixel((0, 0)) == (65, 128, 254)
    assert load_image(path, as_before=True).getpixel((0, 0)) == (64, 128, 255)


def test_images_can_be_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(gama(1.0)).getvalue())
    assert load_image(path, as_before=True).getpixel((0, 0)) == (60, 180, 75)
    Image.fromarray(np.array([[32768]], dtype=np.uint16)).save(path)
    assert load_image(path, as_before=True).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EACCES])
def test_folders_that_cannot_be_synced_are_lived_with(tmp_path: Path, monkeypatch, code: int) -> None:
    real = os.fsync

    def sync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(files.os, "fsync", sync)
    assert save_bytes(b"x", tmp_path / "a").read_bytes() == b"x"
    code = errno.EIO
    with pytest.raises(OutputError, match="cannot be written"):
        save_bytes(b"x", tmp_path / "b")


def test_a_png_holds_its_recipe_as_ascii_text_and_older_ones_are_read(tmp_path: Path) -> None:
    recipe = make_recipe()
    assert b"tEXtmrflow\0{" in files.encode_image(noise_image(4, 4), ".png", recipe)
    info = PngImagePlugin.PngInfo()
    info.add_itxt("mrflow", recipe.to_json())
    noise_image(4, 4).save(tmp_path / "old.png", pnginfo=info)
    assert read_recipe(tmp_path / "old.png") == recipe


def test_an_animation_is_refused(tmp_path: Path) -> None:
    frames = [noise_image(4, 4, seed) for seed in range(3)]
    for name in ("a.gif", "a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(ImageError, match="3 frames"):
            load_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["png", "jpeg", "webp", "tiff", "gif", "bmp"])
def test_a_file_cut_anywhere_gives_one_clear_error(suffix: str) -> None:
    buffer = io.BytesIO()
    noise_image(30, 30).save(buffer, suffix)
    data = buffer.getvalue()
    for cut in range(0, len(data) - 40, max(len(data) // 25, 1)):
        with pytest.raises(ImageError):
            load_image(io.BytesIO(data[:cut]))


@pytest.mark.parametrize(
    "data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff", b"\0" * 999]
)
def test_what_is_no_image_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for read in (load_image, read_recipe):
        with pytest.raises(ImageError, match=r"a\.png"):
            read(path)


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 9))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8193, 9000, 12_000, 65_000])
def test_a_decompression_bomb_is_refused_from_its_header(side: int) -> None:
    for read in (load_image, read_recipe):
        with pytest.raises(ImageError):
            read(io.BytesIO(png_of_size(side, side)))


def test_text_bombs_are_refused(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("mrflow", "x" * (80 * 2**20), zip=True)
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(ImageError):
        read_recipe(tmp_path / "a.png")


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, words in [
        (tmp_path, "no regular file"),
        (tmp_path / "none.png", "does not exist"),
        ("x" * 5000, "does not exist"),
        ("/dev/zero", "no reg"),
    ]:
        with pytest.raises(ImageError, match=words):
            load_image(path)
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    save_image(noise_image(2, 2), tmp_path / "a.png")
    with pytest.raises(ImageError, match="at most 10 are read"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "webp", "jpeg"])
def test_a_picture_without_a_recipe_says_so(tmp_path: Path, suffix: str) -> None:
    noise_image(2, 2).save(tmp_path / f"a.{suffix}")
    with pytest.raises(RecipeError, match="holds no recipe"):
        read_recipe(tmp_path / f"a.{suffix}")


def test_a_hostile_recipe_is_refused(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("mrflow", "[" * 50_000)
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(RecipeError):
        read_recipe(tmp_path / "a.png")


def test_bytes_are_saved_whole_and_in_place(tmp_path: Path) -> None:
    path = save_bytes(b"one", tmp_path / "a.bin")
    with pytest.raises(OutputExistsError):
        save_bytes(b"two", path)
    assert save_bytes(b"two", path, overwrite=True).read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_what_a_killed_save_left_is_told_from_other_files(tmp_path: Path) -> None:
    for name in (".a.png.0123456789ab.part", ".a.part", "a.png.part", ".hidden"):
        (tmp_path / name).touch()
    assert remove_parts(tmp_path) == 1
    assert sorted(os.listdir(tmp_path)) == [".a.part", ".hidden", "a.png.part"]


def test_a_picture_too_large_for_its_format_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        save_image(Image.new("RGB", (16_384, 1)), tmp_path / "a.webp")
    assert os.listdir(tmp_path) == []


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write_text(tmp_path / "new" / "a.txt", "one\n")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OutputError, match="No space left"):
        write_text(path, "two\n")
    assert path.read_text() == "one\n"
    assert [each.name for each in path.parent.iterdir()] == ["a.txt"]
    with pytest.raises(OutputError, match="cannot be made"):
        write_text(path / "below" / "b.txt", "x")
