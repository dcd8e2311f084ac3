"""Preprocessing against values worked out by hand, Pillow's resampling and the limits of odd proportions."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vision_zoo.transforms import Preprocessing, normalise, resize_and_crop


def test_whitening_takes_each_images_own_mean_and_deviation() -> None:
    images = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    images[0, :, 0] = 255  # half ones, half zeros: mean 1/2, deviation 1/2
    images[1] = 77  # flat: mean 77/255, deviation 0, so the floor divides nothing
    x = normalise(images, Preprocessing(size=2))
    assert x.dtype == torch.float32
    assert torch.allclose(x[0, :, 0], torch.ones(3, 2)) and torch.allclose(x[0, :, 1], -torch.ones(3, 2))
    assert torch.allclose(x[1], torch.zeros(3, 2, 2), atol=1e-6)


def test_whitening_of_a_nearly_flat_image_stops_at_the_floor() -> None:
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    images[0, 0, 0, 0] = 255
    x = normalise(images, Preprocessing())
    mean, deviation = 1 / 3072, (1 / 3072 - 1 / 3072**2) ** 0.5
    assert deviation < 3072**-0.5
    assert x[0, 0, 0, 0].item() == pytest.approx((1 - mean) * 3072**0.5, rel=1e-5)


def test_mean_and_std_are_of_pixels_between_zero_and_one() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    x = normalise(images, Preprocessing(normalisation="mean-std", mean=(0.5, 0.2, 0.5), std=(0.5, 0.1, 0.25)))
    assert torch.allclose(x.flatten(), torch.tensor([-1.0, 0.0, 2.0]), atol=1e-6)


def test_normalise_keeps_channels_last() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8).to(memory_format=torch.channels_last)
    for normalisation in ("whitening", "mean-std"):
        x = normalise(images, Preprocessing(normalisation=normalisation))
        assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (20, 20)])
def test_exact_resize_agrees_with_pillow(interpolation: str, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    ours = resize_and_crop(image, Preprocessing(size=32, interpolation=interpolation))
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    theirs = torch.from_numpy(np.array(Image.fromarray(pixels).resize((32, 32), method))).permute(2, 0, 1)
    assert ours.dtype == torch.uint8
    assert (ours.int() - theirs.int()).abs().max() <= 2  # both round to 8 bits between the two axes


def test_an_image_of_the_right_size_is_untouched() -> None:
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    for resize in ("exact", "shorter-side"):
        assert torch.equal(resize_and_crop(image, Preprocessing(size=32, resize=resize)), image)


def test_shorter_side_keeps_the_middle_and_the_proportions() -> None:
    image = torch.zeros(3, 8, 24, dtype=torch.uint8)
    image[:, :, 8:16] = 200  # the centre square
    out = resize_and_crop(image, Preprocessing(size=4, resize="shorter-side"))
    assert out.shape == (3, 4, 4) and (out == 200).all()


def test_crop_keeps_its_share_of_the_shorter_side() -> None:
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    image[:, 4:12, 4:12] = 200
    out = resize_and_crop(image, Preprocessing(size=8, resize="shorter-side", crop=0.5))
    assert torch.equal(out, image[:, 4:12, 4:12])


@pytest.mark.parametrize("shape", [(1, 50_000), (50_000, 1)])
@pytest.mark.parametrize("resize", ["exact", "shorter-side"])
def test_extreme_proportions_are_legal(shape: tuple[int, int], resize: str) -> None:
    image = torch.full((3, *shape), 9, dtype=torch.uint8)
    out = resize_and_crop(image, Preprocessing(size=32, resize=resize))
    assert out.shape == (3, 32, 32) and (out == 9).all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"resize": "stretch"}, "resize 'stretch' is unknown; choose from .*exact"),
        ({"interpolation": "cubic"}, "interpolation 'cubic' is unknown"),
        ({"normalisation": "none"}, "normalisation 'none' is unknown"),
        ({"size": 0}, "size 0 must be 1 to 4096"),
        ({"crop": 1.5}, "crop 1.5 must be above 0"),
        ({"std": (1.0, 0.0, 1.0)}, "every std above 0"),
    ],
)
def test_wrong_settings_name_the_rule(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(Preprocessing(), **change)
