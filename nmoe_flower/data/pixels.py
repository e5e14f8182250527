"""From an image file or cell to pixels: 8-bit grey, or RGB for anything with colour."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nmoe_flower.data.sources import ColourFoundError
from nmoe_flower.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["read_pixels"]

_GREY_MODES = frozenset({"1", "L", "LA"})
_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})


def read_pixels(open_image: Callable[[], "Image"], mode: str, place: str) -> npt.NDArray[np.uint8]:
    """Decode one image to [H, W, channels].

    Args:
        open_image: Called once; may raise anything on damaged bytes.
        mode: "L" (1 channel) or "RGB" (3).
        place: Names the image in errors.

    Raises:
        DataError: It cannot be decoded, or has more than 8 bits per channel.
        ColourFoundError: It has colour and ``mode`` is "L".
    """
    try:
        image = open_image()
        found = image.mode
        array = np.asarray(image if found == mode else image.convert(mode), np.uint8)
    except Exception as error:  # decoders raise anything on damaged bytes
        raise DataError(f"{place} is not a readable image: {error}") from error
    if found not in _GREY_MODES | _COLOUR_MODES:
        raise DataError(f"{place} has mode {found!r}; 8-bit grey or colour images are needed")
    if mode == "L" and found in _COLOUR_MODES:
        raise ColourFoundError
    return array.reshape(*array.shape[:2], -1)
