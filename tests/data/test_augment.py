from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from nmoe_flower.data.augment import Augment, normalise
from nmoe_flower.errors import ConfigError, DataError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distinct_images(batch: int, channels: int, height: int, width: int) -> Tensor:
    """Images in which every pixel has its own positive value, so each can be traced."""
    count = batch * channels * height * width
    return torch.arange(1, count + 1).float().view(batch, channels, height, width)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_normalise_takes_images_that_slicing_turned(axis: int) -> None:
    """As from BGR to RGB, which leaves a view that is read backwards."""
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    turned = normalise(np.flip(images, axis))
    assert torch.equal(turned, normalise(np.flip(images, axis).copy()))
    assert turned.is_contiguous(memory_format=torch.channels_last)


def test_normalise_of_known_bytes() -> None:
    # (0/255 - .5) / .25 = -2; (51/255 - .5) / .25 = (.2 - .5) / .25 = -1.2; 255 -> 2
    images = np.array([[[[0, 51, 255]]]], dtype=np.uint8)
    assert normalise(images).shape == (1, 3, 1, 1)
    assert normalise(images).flatten().tolist() == pytest.approx([-2.0, -1.2, 2.0])


def test_normalise_is_channels_last_float32_and_takes_tensors() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    result = normalise(images)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result, normalise(torch.from_numpy(images)))
    assert result[1, 2, 3, 4].item() == pytest.approx((images[1, 3, 4, 2] / 255 - 0.5) / 0.25)


@pytest.mark.parametrize("images", [np.zeros((2, 4, 4, 1)), np.zeros((4, 4, 1), dtype=np.uint8)])
def test_normalise_refuses_other_arrays(images: np.ndarray) -> None:
    with pytest.raises(DataError, match="uint8"):
        normalise(images)


@given(seed=st.integers(0, 10_000))
def test_zeros_change_nothing(seed: int) -> None:
    images = distinct_images(3, 2, 4, 5)
    assert torch.equal(Augment()(images, seeded(seed)), images)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    padding=st.integers(1, 3),
    channels=st.integers(1, 3),
    flip=st.booleans(),
)
def test_crop_is_one_window_of_the_padded_image(
    seed: int, padding: int, channels: int, flip: bool
) -> None:
    images = distinct_images(4, channels, 4, 5)
    result = Augment(crop_padding=padding, flip=flip)(images, seeded(seed))
    padded = F.pad(images, (padding,) * 4, mode="reflect")
    for before, after in zip(padded, result, strict=True):
        windows = [
            before[:, top : top + 4, left : left + 5]
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
        ]
        if flip:
            windows += [window.flip(2) for window in windows]
        assert any(torch.equal(after, window) for window in windows)


def test_every_shift_and_its_mirror_occurs() -> None:
    image = distinct_images(1, 1, 3, 3)
    result = Augment(crop_padding=1, flip=True)(image.expand(2000, -1, -1, -1), seeded(0))
    # 3 vertical x 3 horizontal shifts x 2 mirrors; the reflected row makes the central
    # horizontal shift the only one whose mirror differs from a shift by the other side:
    # columns (1,0,1), (0,1,2), (1,2,1) mirror to (1,0,1), (2,1,0), (1,2,1): 4 distinct of 6.
    assert len(torch.unique(result.flatten(1), dim=0)) == 3 * 4


def test_flip_alone_mirrors_whole_rows_and_undoes_itself() -> None:
    images = distinct_images(64, 2, 3, 4)
    flip = Augment(flip=True)
    once = flip(images, seeded(3))
    mirrored = torch.tensor([not torch.equal(a, b) for a, b in zip(once, images, strict=True)])
    assert torch.equal(once[mirrored], images[mirrored].flip(3))
    assert 16 < int(mirrored.sum()) < 48  # mean 32, deviation 4: a fair coin stays inside
    assert torch.equal(flip(once, seeded(3)), images)


@given(seed=st.integers(0, 10_000), side=st.integers(1, 9))
def test_cutout_zeroes_one_clipped_square(seed: int, side: int) -> None:
    images = distinct_images(5, 2, 6, 7)
    result = Augment(cutout=side)(images, seeded(seed))
    for before, after in zip(images, result, strict=True):
        expected = []
        for row in range(6):
            for column in range(7):
                top, left = row - side // 2, column - side // 2
                cut = before.clone()
                cut[:, max(top, 0) : top + side, max(left, 0) : left + side] = 0
                expected.append(cut)
        assert any(torch.equal(after, cut) for cut in expected)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_same_seed_same_result_and_the_input_stays(memory: torch.memory_format) -> None:
    images = distinct_images(8, 3, 8, 8).contiguous(memory_format=memory)
    before = images.clone()
    augment = Augment(crop_padding=2, flip=True, cutout=3)
    first, second = augment(images, seeded(1)), augment(images, seeded(1))
    assert torch.equal(first, second)
    assert not torch.equal(first, augment(images, seeded(2)))
    assert torch.equal(images, before)


def test_result_keeps_channels_last() -> None:
    images = distinct_images(8, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    result = Augment(crop_padding=2, flip=True, cutout=3)(images, seeded(1))
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("options", [{"crop_padding": -1}, {"cutout": -2}])
def test_negative_sizes_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"is -\d; allowed: 0 or more"):
        Augment(**options)  # type: ignore[arg-type]


def test_padding_as_large_as_the_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="crop-padding is 4, the images have 4 pixels"):
        Augment(crop_padding=4)(distinct_images(1, 1, 4, 4), seeded(0))
