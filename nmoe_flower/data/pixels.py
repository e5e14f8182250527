"""From an image file to pixels, for training and for asking alike.

One decoder: turned as EXIF says, 8 bits per channel, one picture per file; everything else is
refused in words.
"""

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, get_args

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SUFFIXES", "Fit", "fit_pixels", "has_colour", "open_picture", "to_pixels"]

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
Fit = Literal["crop", "pad", "stretch"]
Pixels = npt.NDArray[np.uint8]

_GREY_MODES = frozenset({"1", "L", "LA"})
_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})
_NEEDED = "8-bit grey or colour images are needed"
_DEEP = re.compile(r";(16[BLNS]|32|64)")  # what Pillow would cut to 8 bits without a word


def open_picture(source: Path | BinaryIO, place: str) -> "Image":
    """Decode an image file, turned as its EXIF data say.

    Args:
        source: A path, or a file opened for reading bytes.
        place: Names the image in errors: "row 3 of the train split (cat/001.png)".

    Raises:
        DataError: It cannot be read or decoded, is cut short, has more than 8 bits per channel,
            several frames, or far too many pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                _check(image, place)
                image.load()
                return ImageOps.exif_transpose(image)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{place} has far too many pixels") from None
    except FileNotFoundError:
        raise DataError(f"{place} is not there: No such file") from None
    except UnidentifiedImageError:
        raise DataError(f"{place} is not a readable image: its format is not known") from None
    except Exception as error:  # decoders raise anything on damaged bytes
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{place} is not a readable image: {reason}") from error


def _check(image: "Image", place: str) -> None:
    """Refuse what decoding would cut off in silence: bits and frames."""
    tiles = [(tile[0], tile[3]) for tile in getattr(image, "tile", ())]
    if image.mode not in _GREY_MODES | _COLOUR_MODES:
        raise DataError(f"{place} has mode {image.mode!r}; {_NEEDED}")
    deep = any(_DEEP.search(str(args)) for _, args in tiles) or any(
        codec == "ppm" and isinstance(args, tuple) and int(args[1]) > 255 for codec, args in tiles
    )
    if deep:
        raise DataError(f"{place} has more than 8 bits per channel; {_NEEDED}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a photograph and its preview
        raise DataError(f"{place} has {frames} frames; files of one image each are needed")


def has_colour(picture: "Image") -> bool:
    """Whether a picture is more than grey (palettes count as colour)."""
    return picture.mode in _COLOUR_MODES


def to_pixels(picture: "Image", mode: str, place: str) -> Pixels:
    """The pixels of a picture, uint8 [H, W, channels]; what is transparent keeps its colour.

    Args:
        picture: What ``open_picture`` gave.
        mode: Colours to keep: "L" (1 channel) or "RGB" (3).
        place: Names the image in errors.

    Raises:
        DataError: The picture's colours cannot be converted.
    """
    try:
        if picture.mode == "P" and "transparency" in picture.info:
            picture = picture.convert("RGBA")
        array = np.asarray(picture if picture.mode == mode else picture.convert(mode), np.uint8)
    except ValueError as error:
        raise DataError(f"{place} is not a readable image: {error}") from error
    return array.reshape(*array.shape[:2], -1)


def fit_pixels(pixels: Pixels, size: tuple[int, int], fit: str) -> Pixels:
    """Change the size of an image, smoothed where it shrinks (bicubic).

    Args:
        pixels: uint8 [H, W, 1 or 3].
        size: (width, height) wanted.
        fit: ``crop`` scales the image until it covers the size and cuts its centre, ``pad`` until
            it fits inside and adds black borders, ``stretch`` each side on its own.

    Raises:
        ConfigError: ``fit`` is none of the three.

    >>> fit_pixels(np.zeros((4, 6, 3), np.uint8), (2, 2), "crop").shape
    (2, 2, 3)
    """
    from PIL import Image, ImageOps

    if fit not in get_args(Fit):
        raise ConfigError(f"fit is {fit!r}; allowed: {', '.join(get_args(Fit))}")
    height, width, channels = pixels.shape
    if (width, height) == size:
        return pixels
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    how = Image.Resampling.BICUBIC
    if fit == "crop":
        picture = ImageOps.fit(picture, size, method=how)
    elif fit == "pad":
        picture = ImageOps.pad(picture, size, method=how)
    else:
        picture = picture.resize(size, how)
    return np.asarray(picture, np.uint8).reshape(size[1], size[0], channels)
