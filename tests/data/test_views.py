import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from nmoe_flower.data import Views
from nmoe_flower.errors import ConfigError

LUMA = (0.299, 0.587, 0.114)
PLAIN = {"smallest": 1.0, "flip": False, "jitter": 0.0, "hue": 0.0, "grey": 0.0}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(batch: int, channels: int, height: int, width: int, spread: float = 0.5) -> Tensor:
    """Pixels between 0.5 - spread and 0.5 + spread, normalised: (p - 0.5) / 0.25."""
    pixels = torch.rand(batch, channels, height, width, generator=seeded(7))
    return (2 * pixels - 1) * spread / 0.25


def pixels_of(images: Tensor) -> np.ndarray:
    """Back to [0, 1], float64, [B, H, W, C]."""
    return (images.double() * 0.25 + 0.5).permute(0, 2, 3, 1).numpy()


def luma(pixel: np.ndarray) -> float:
    return sum(weight * float(value) for weight, value in zip(LUMA, pixel, strict=True))


# --- shapes, ranges, randomness ---


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(2, 9), st.integers(2, 9)),
    size=st.integers(0, 12),
    smallest=st.sampled_from([0.001, 0.2, 1.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40)
def test_two_views_of_the_asked_shape_within_black_and_white(
    shape: tuple[int, int, int, int], size: int, smallest: float, seed: int
) -> None:
    images = noise(*shape)
    before = images.clone()
    first, second = Views(size=size, smallest=smallest)(images, seeded(seed))
    scale = size / min(shape[2:]) if size else 1  # the shorter side has the size asked for
    expected = (*shape[:2], round(shape[2] * scale), round(shape[3] * scale))
    for view in (first, second):
        assert view.shape == expected
        assert view.dtype == torch.float32
        assert float(view.min()) >= -2
        assert float(view.max()) <= 2
    assert torch.equal(images, before)
    again = Views(size=size, smallest=smallest)(images, seeded(seed))
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])


def test_views_differ_from_each_other_from_call_to_call_and_from_seed_to_seed() -> None:
    images = noise(4, 3, 8, 8)
    source = seeded(0)
    drawn = [*Views()(images, source), *Views()(images, source), *Views()(images, seeded(1))]
    for index, one in enumerate(drawn):
        for other in drawn[index + 1 :]:
            assert all(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_view_of_an_image_does_not_depend_on_the_others() -> None:
    images = noise(6, 3, 8, 8)
    changed = images.clone()
    changed[2] = 2.0
    for view, other in zip(Views()(images, seeded(3)), Views()(changed, seeded(3)), strict=True):
        same = [torch.equal(a, b) for a, b in zip(view, other, strict=True)]
        assert same == [True, True, False, True, True, True]


def test_views_are_channels_last() -> None:
    for view in Views()(noise(4, 3, 8, 8), seeded(0)):
        assert view.is_contiguous(memory_format=torch.channels_last)


# --- crops ---


@pytest.mark.parametrize("shape", [(5, 7), (8, 8)])
def test_without_a_crop_and_colours_a_view_is_the_image_or_its_mirror(
    shape: tuple[int, int],
) -> None:
    images = noise(64, 2, *shape)
    views = torch.cat(Views(**(PLAIN | {"flip": True}))(images, seeded(0)))
    both = torch.cat([images, images])
    kept = [torch.allclose(a, b, atol=1e-5) for a, b in zip(views, both, strict=True)]
    mirrored = [torch.allclose(a, b.flip(2), atol=1e-5) for a, b in zip(views, both, strict=True)]
    assert all(a != b for a, b in zip(kept, mirrored, strict=True))
    assert 40 < sum(kept) < 88  # of 128: mean 64, deviation 5.7
    for view in Views(**PLAIN)(images, seeded(0)):
        torch.testing.assert_close(view, images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [4, 6, 16])
def test_without_a_crop_another_size_is_a_plain_resize(size: int) -> None:
    images = noise(3, 2, 8, 8)
    expected = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    for view in Views(**(PLAIN | {"size": size}))(images, seeded(0)):
        torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


def test_crops_are_rectangles_inside_the_image_of_the_allowed_area_and_shape() -> None:
    """Each pixel of the image tells where it is, so each view tells what it was cut from.

    Sampled at width w and left edge l, pixel j of S is at x = l + w (j + 1/2) / S - 1/2.
    """
    side, batch, smallest = 32, 300, 0.2
    ramp = torch.arange(side).float()
    image = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side)])
    views = Views(**(PLAIN | {"smallest": smallest, "flip": True}))
    drawn = torch.cat(views(image.expand(batch, -1, -1, -1), seeded(0))).double()
    middle = slice(8, 24)  # nearer to the edge reflection bends the ramp
    areas, aspects, mirrored = [], [], 0
    for view in drawn:
        spans = []
        for position in (view[0, 16, middle], view[1, middle, 16]):
            step = float(position[-1] - position[0]) / 15
            fitted = float(position[0]) + step * torch.arange(16)
            torch.testing.assert_close(position, fitted.double(), atol=1e-3, rtol=0)
            edge = float(position[0]) + 0.5 - step * 8.5  # where pixel 0 begins
            spans.append((edge, edge + step * side))
        mirrored += spans[0][0] > spans[0][1]
        width, height = (abs(b - a) for a, b in spans)
        for a, b in spans:
            assert min(a, b) >= -1e-2
            assert max(a, b) <= side + 1e-2
        areas.append(width * height / side**2)
        cut_off = max(width, height) > side - 1e-2  # at the image's size
        aspects += [] if cut_off else [width / height]
    assert smallest - 1e-3 <= min(areas) < smallest + 0.05
    assert max(areas) <= 1 + 1e-3
    assert 3 / 4 - 1e-3 <= min(aspects) < 0.8
    assert 1.25 < max(aspects) <= 4 / 3 + 1e-3
    assert 250 < mirrored < 350  # of 600: mean 300, deviation 12


# --- colours: the factors are found from the result, then every pixel must agree ---


def jitter_of(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Brightness, contrast and saturation that turn one image [H, W, 3] into the other.

    after = b (m + c (q - m)) with q = s p + (1 - s) luma(p) and m the mean of q. Luma is linear and
    keeps greys, so luma(after) has slope b c in luma(p), and the chroma p - luma(p) is scaled by
    b c s. Pixels are taken one by one.
    """
    flat, result = before.reshape(-1, 3), after.reshape(-1, 3)
    lumas, luma_after = [luma(p) for p in flat], [luma(p) for p in result]
    low, high = int(np.argmin(lumas)), int(np.argmax(lumas))
    bc = (luma_after[high] - luma_after[low]) / (lumas[high] - lumas[low])
    vivid = max(range(len(flat)), key=lambda i: abs(flat[i][0] - lumas[i]))
    bcs = (result[vivid][0] - luma_after[vivid]) / (flat[vivid][0] - lumas[vivid])
    s = bcs / bc
    mean = sum(
        s * float(v) + (1 - s) * lumas[i] for i, p in enumerate(flat) for v in p
    ) / flat.size  # fmt: skip
    b = (luma_after[low] - bc * lumas[low] + bc * mean) / mean
    c = bc / b
    for i, pixel in enumerate(flat):
        for value, found in zip(pixel, result[i], strict=True):
            mixed = s * float(value) + (1 - s) * lumas[i]
            assert b * (mean + c * (mixed - mean)) == pytest.approx(found, abs=2e-5)
    return b, c, s


def test_brightness_contrast_and_saturation() -> None:
    jitter, images = 0.3, noise(60, 3, 4, 4, spread=0.1)  # so mild that nothing is cut
    views = Views(**(PLAIN | {"jitter": jitter}))(images, seeded(0))
    factors = np.array(
        [
            jitter_of(before, after)
            for view in views
            for before, after in zip(pixels_of(images), pixels_of(view), strict=True)
        ]
    )
    unchanged = np.abs(factors - 1).max(axis=1) < 1e-4
    assert 10 < unchanged.sum() < 40  # of 120, one in five: mean 24, deviation 4.4
    changed = factors[~unchanged]
    assert changed.min() >= 1 - jitter - 1e-3
    assert changed.max() <= 1 + jitter + 1e-3
    for factor in changed.T:  # each covers its range, and none follows another
        assert factor.min() < 1 - 0.8 * jitter
        assert factor.max() > 1 + 0.8 * jitter
    assert np.abs(np.corrcoef(changed.T) - np.eye(3)).max() < 0.35


def to_yiq(pixel: np.ndarray) -> tuple[float, float, float]:
    """NTSC: I = 0.5959 R - 0.2746 G - 0.3213 B, Q = 0.2115 R - 0.5227 G + 0.3112 B."""
    red, green, blue = (float(value) for value in pixel)
    return (
        luma(pixel),
        0.5959 * red - 0.2746 * green - 0.3213 * blue,
        0.2115 * red - 0.5227 * green + 0.3112 * blue,
    )


def test_hue_turns_every_pixel_by_the_same_angle_and_keeps_its_luma() -> None:
    hue, images = 0.1, noise(40, 3, 3, 3, spread=0.1)
    angles = []
    for view in Views(**(PLAIN | {"hue": hue}))(images, seeded(0)):
        for before, after in zip(pixels_of(images), pixels_of(view), strict=True):
            turns = []
            for pixel, result in zip(before.reshape(-1, 3), after.reshape(-1, 3), strict=True):
                (y, i, q), (y2, i2, q2) = to_yiq(pixel), to_yiq(result)
                assert y2 == pytest.approx(y, abs=1e-5)
                assert math.hypot(i2, q2) == pytest.approx(math.hypot(i, q), abs=1e-5)
                if math.hypot(i, q) > 0.02:
                    turn = math.atan2(q2, i2) - math.atan2(q, i)
                    turns.append((turn + math.pi) % (2 * math.pi) - math.pi)
            assert max(turns) - min(turns) < 2e-3
            angles.append(turns[0] / (2 * math.pi))
    largest = np.abs(angles)
    assert 0.09 < largest.max() <= hue + 1e-3
    assert 5 < (largest < 1e-4).sum() < 30  # of 80, one in five
    assert min(angles) < -0.05
    assert max(angles) > 0.05


def test_grey_views_have_no_colour_and_the_images_luma() -> None:
    images = noise(100, 3, 4, 4)
    views = np.concatenate(
        [pixels_of(v) for v in Views(**(PLAIN | {"grey": 0.3}))(images, seeded(0))]
    )
    both = np.concatenate([pixels_of(images)] * 2)
    grey = 0
    for before, after in zip(both, views, strict=True):
        if np.allclose(after, before, atol=1e-5):
            continue
        grey += 1
        for pixel, result in zip(before.reshape(-1, 3), after.reshape(-1, 3), strict=True):
            assert list(result) == pytest.approx([luma(pixel)] * 3, abs=1e-5)
    assert 35 < grey < 85  # of 200: mean 60, deviation 6.5


def test_strong_colours_are_cut_at_black_and_white() -> None:
    views = torch.cat(Views(**(PLAIN | {"jitter": 1.0}))(noise(50, 3, 4, 4), seeded(0)))
    assert float(views.min()) == pytest.approx(-2)
    assert float(views.max()) == pytest.approx(2)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels_change_in_brightness_and_contrast_only(channels: int) -> None:
    """after = b (m + c (p - m)): one line for all pixels and channels of an image."""
    images = noise(40, channels, 4, 4, spread=0.1)
    jitter = 0.3
    options = PLAIN | {"jitter": jitter, "hue": 0.5, "grey": 1.0}
    factors = []
    for view in Views(**options)(images, seeded(0)):
        for before, after in zip(pixels_of(images), pixels_of(view), strict=True):
            slope, start = np.polyfit(before.ravel(), after.ravel(), 1)
            np.testing.assert_allclose(after, slope * before + start, atol=2e-5)
            bright = start / before.mean() + slope
            factors.append((bright, slope / bright))
    assert np.min(factors) >= 1 - jitter - 1e-3
    assert np.max(factors) <= 1 + jitter + 1e-3
    assert np.std(factors, axis=0).min() > 0.05


# --- bad numbers ---


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": -1}, "view size is -1; allowed: 0 to inf"),
        ({"smallest": 0.0}, "view smallest is 0.0; allowed: 0.001 to 1"),
        ({"smallest": 1.5}, "view smallest is 1.5"),
        ({"smallest": math.nan}, "view smallest is nan"),
        ({"jitter": -0.1}, "view jitter is -0.1; allowed: 0 to 1"),
        ({"jitter": 2}, "view jitter is 2"),
        ({"hue": 0.6}, "view hue is 0.6; allowed: 0 to 0.5"),
        ({"grey": 1.01}, "view grey is 1.01; allowed: 0 to 1"),
    ],
)
def test_bad_numbers_are_named(options: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Views(**options)  # type: ignore[arg-type]
