"""Domains: the ways in which a device may see images, each a function of the images alone.

Equal images look equal in a domain, whatever the seed, the machine or the images beside them.
"""

import io
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from nmoe_flower.catalogue import DOMAINS, found
from nmoe_flower.errors import ConfigError
from nmoe_flower.own_code import call_own, load_own

__all__ = ["Pixels", "domain_of", "seen_in"]

Pixels = npt.NDArray[np.uint8]
Weights = npt.NDArray[np.float64]

_KEY = "data.domains"
_LUMA = (299, 587, 114)  # thousandths
_BLUR = 1.5 / 32  # deviation, in shorter sides
_LEAST_BLUR = 0.5  # pixels
_NOISE = 40.0  # deviation, in grey values
_ZOOM = 1.6
_QUALITY = 5


def clean(images: Pixels) -> Pixels:
    """Images as they are."""
    return images


def rot90(images: Pixels) -> Pixels:
    """A quarter turn to the left; images must be square."""
    return _turned(images, 1)


def rot180(images: Pixels) -> Pixels:
    """Upside down, by half a turn."""
    return _turned(images, 2)


def rot270(images: Pixels) -> Pixels:
    """A quarter turn to the right; images must be square."""
    return _turned(images, 3)


def _turned(images: Pixels, quarters: int) -> Pixels:
    height, width = images.shape[1:3]
    if quarters % 2 and height != width:
        raise ConfigError(
            f"a quarter turn needs square images, got {width}x{height} pixels; "
            f"data.size = {min(width, height)} makes them square"
        )
    return np.rot90(images, quarters, axes=(1, 2))


def invert(images: Pixels) -> Pixels:
    """Negatives: black is white."""
    return 255 - images


def gray(images: Pixels) -> Pixels:
    """Without colour; grey images stay as they are."""
    if images.shape[3] == 1:
        return images
    luma = (images @ np.array(_LUMA) + 500) // 1000  # whole numbers: no machine rounds otherwise
    return np.broadcast_to(luma.astype(np.uint8)[..., None], images.shape)


def blur(images: Pixels) -> Pixels:
    """Out of focus: a Gaussian whose deviation is 1.5 of 32 pixels, at least half a pixel."""
    height, width = images.shape[1:3]
    deviation = max(_LEAST_BLUR, _BLUR * min(height, width))
    return _mapped(images, _gaussian(height, deviation), _gaussian(width, deviation))


def jpeg5(images: Pixels) -> Pixels:
    """Compressed to what JPEG calls quality 5 of 100."""
    return np.stack([_compressed(image) for image in images])


def noisy(images: Pixels) -> Pixels:
    """Gaussian noise with a deviation of 40 grey values, drawn from the image's own bytes."""
    draws = [
        np.random.default_rng(zlib.crc32(image.tobytes())).normal(0, _NOISE, image.shape)
        for image in images
    ]
    return _bytes(images + np.stack(draws))


def zoom(images: Pixels) -> Pixels:
    """The middle five eighths of each side, over the whole image."""
    height, width = images.shape[1:3]
    return _mapped(images, _enlarging(height), _enlarging(width))


def _bytes(values: Weights) -> Pixels:
    """Grey values, rounded and cut off at black and white."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _compressed(image: Pixels) -> Pixels:
    """One image [H, W, channels], there and back."""
    from PIL import Image

    mode = "L" if image.shape[2] == 1 else "RGB"
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if mode == "L" else image).save(file, "JPEG", quality=_QUALITY)
    return np.asarray(Image.open(file).convert(mode)).reshape(image.shape)


def _mapped(images: Pixels, rows: Weights, columns: Weights) -> Pixels:
    """Every new pixel is a weighted mean: weights [H, H] down the image, [W, W] along it."""
    return _bytes(np.einsum("yh,nhwc,xw->nyxc", rows, images, columns, optimize=True))


def _gaussian(size: int, deviation: float) -> Weights:
    """Weights [size, size] of a blur; beyond an edge lies the edge's own pixel."""
    reach = int(np.ceil(4 * deviation))
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / deviation) ** 2)
    return _summed(size, np.arange(size)[:, None] + offsets, np.tile(weights, (size, 1)))


def _enlarging(size: int) -> Weights:
    """Weights [size, size] that draw the middle over everything, linearly between pixels."""
    centre = (size - 1) / 2
    places = centre + (np.arange(size) - centre) / _ZOOM
    below = np.floor(places).astype(np.int64)
    share = places - below
    return _summed(size, np.stack([below, below + 1], 1), np.stack([1 - share, share], 1))


def _summed(size: int, places: npt.NDArray[np.int64], weights: Weights) -> Weights:
    """A matrix [size, size]: in each row so much weight at so many places; rows sum to 1."""
    matrix = np.zeros((size, size))
    rows = np.broadcast_to(np.arange(size)[:, None], places.shape)
    np.add.at(matrix, (rows, np.clip(places, 0, size - 1)), weights)
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True))


def domain_of(name: str) -> Callable[[Pixels], Pixels]:
    """The function of a domain: one that comes along, or ``package.module:function``.

    Raises:
        ConfigError: There is no such function.
    """
    function: Callable[[Pixels], Pixels]
    function = found(DOMAINS[name]) if name in DOMAINS else load_own(_KEY, name)
    return function


def seen_in(name: str, images: Pixels) -> Pixels:
    """Images as a domain shows them.

    Args:
        name: The domain, as in ``data.domains``.
        images: uint8 [n, H, W, channels].

    Returns:
        uint8 of the same shape.

    Raises:
        ConfigError: There is no such domain, it cannot show such images, or a function of one's own
            raises something or returns something else.

    >>> seen_in("invert", np.full((1, 2, 2, 1), 5, np.uint8)).tolist()
    [[[[250], [250]], [[250], [250]]]]
    """
    function = domain_of(name)
    try:
        shown = call_own(_KEY, name, function, images)
    except ConfigError as error:
        told = str(error)
        raise ConfigError(told if told.startswith(_KEY) else f"{_KEY} = {name}: {told}") from error
    if not isinstance(shown, np.ndarray) or (shown.dtype, shown.shape) != (np.uint8, images.shape):
        got = (
            f"{shown.dtype} {list(shown.shape)}"
            if isinstance(shown, np.ndarray)
            else type(shown).__name__
        )
        raise ConfigError(
            f"{_KEY} = {name}: images uint8 {list(images.shape)} came back as {got}; allowed: "
            "uint8 of the same shape"
        )
    return shown
