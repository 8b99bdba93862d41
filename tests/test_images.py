import pytest
import torch
from PIL import Image

from mrflow.errors import ImageError
from mrflow.images import crop_to_aspect, make_grid, pixels_sha256, to_pil, to_tensor
from support.pictures import noise_image


def test_images_become_tensors_and_come_back_exactly() -> None:
    images = [noise_image(5, 3, seed) for seed in range(2)]
    pixels = to_tensor(images)
    assert pixels.shape == (2, 3, 3, 5)
    assert pixels.dtype == torch.float32
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    assert [i.tobytes() for i in to_pil(pixels)] == [i.tobytes() for i in images]


def test_pixels_outside_are_clamped_and_rounded_not_cut() -> None:
    pixels = torch.tensor([-1.0, 0.9999, 2.0]).reshape(1, 3, 1, 1)
    assert to_pil(pixels)[0].getpixel((0, 0)) == (0, 255, 255)


def test_one_batch_has_one_size() -> None:
    with pytest.raises(ImageError, match="2x2, 3x2"):
        to_tensor([noise_image(2, 2), noise_image(3, 2)])
    with pytest.raises(ImageError):
        to_tensor([])


def test_crop_keeps_the_middle() -> None:
    pixels = torch.arange(6.0).expand(1, 3, 2, 6)
    assert crop_to_aspect(pixels, 100, 100)[0, 0, 0].tolist() == [2.0, 3.0]
    assert crop_to_aspect(pixels, 30, 10).shape == (1, 3, 2, 6)
    assert crop_to_aspect(pixels, 1000, 1).shape == (1, 3, 1, 6)


def test_a_grid_holds_every_image() -> None:
    colours = ["red", "green", "blue"]
    grid = make_grid([Image.new("RGB", (4, 3), colour) for colour in colours], columns=2, gap=1)
    assert grid.size == (9, 7)
    assert [grid.getpixel(p) for p in ((0, 0), (5, 0), (0, 4), (5, 4))] == [
        (255, 0, 0),
        (0, 128, 0),
        (0, 0, 255),
        (255, 255, 255),
    ]
    with pytest.raises(ImageError):
        make_grid([])


def test_the_hash_tells_sizes_and_values_apart() -> None:
    flat, tall = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    assert pixels_sha256(flat) != pixels_sha256(tall)
    assert pixels_sha256(flat) == pixels_sha256(flat.convert("RGBA"))
