"""One decoder: what training refuses, asking refuses in the same words, and the pixels agree."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nmoe_flower.cli.images import read_images
from nmoe_flower.data import fit_pixels, load_images
from nmoe_flower.errors import ConfigError, DataError

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
COLOUR = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)

Save = Callable[[Path], None]


def saved(image: Image.Image, **options: object) -> Save:
    return lambda path: image.save(path, **options)  # type: ignore[arg-type]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(colour_type: int, channels: int) -> Save:
    """16 bits per channel, which Pillow cannot write for colour."""
    rows = b"".join(b"\0" + bytes(range(8 * channels * 2)) for _ in range(6))
    header = struct.pack(">IIBBBBB", 8, 6, 16, colour_type, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    content += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return lambda path: path.write_bytes(content) and None


def cut(image: Image.Image, kind: str, keep: float) -> Save:
    stream = io.BytesIO()
    image.save(stream, kind)
    content = stream.getvalue()
    return lambda path: path.write_bytes(content[: int(keep * len(content))]) and None


def turned(orientation: int) -> Save:
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = Image.fromarray(COLOUR if orientation < 5 else COLOUR.transpose(1, 0, 2))
    return saved(source, exif=exif)


def transparent_palette() -> Save:
    palette = Image.fromarray(COLOUR).quantize(4)
    return saved(palette, transparency=bytes([0, 128, 255, 255]))


grey, colour = Image.fromarray(GREY), Image.fromarray(COLOUR)
with_alpha = np.dstack([GREY, 255 - GREY])

USED: dict[str, tuple[str, Save]] = {
    "grey": ("a.png", saved(grey)),
    "bilevel": ("a.png", saved(grey.convert("1"))),
    "grey with alpha": ("a.png", saved(Image.fromarray(with_alpha))),
    "colour": ("a.png", saved(colour)),
    "colour with alpha": ("a.png", saved(colour.convert("RGBA"))),
    "palette": ("a.png", saved(colour.quantize(16))),
    "palette with one transparent colour": ("a.gif", saved(colour.quantize(16), transparency=3)),
    "palette with many transparent colours": ("a.png", transparent_palette()),
    "CMYK": ("a.jpg", saved(colour.convert("CMYK"))),
    "CMYK in a TIFF": ("a.tif", saved(colour.convert("CMYK"))),
    "YCbCr": ("a.jpg", saved(colour.convert("YCbCr"))),
    "GIF of one frame": ("a.gif", saved(colour)),
    "WebP": ("a.webp", saved(colour, lossless=True)),
    "portable": ("a.ppm", saved(colour)),
    **{f"EXIF orientation {place}": ("a.jpg", turned(place)) for place in range(1, 9)},
}

many = {"save_all": True, "append_images": [Image.fromarray(255 - COLOUR)]}
REFUSED: dict[str, tuple[str, Save, str]] = {
    "16-bit grey": ("a.png", saved(Image.fromarray(GREY.astype(np.uint16))), "has mode 'I;16'"),
    "16-bit TIFF": ("a.tif", saved(Image.fromarray(GREY.astype(np.uint16))), "has mode 'I;16'"),
    "32-bit": ("a.tif", saved(Image.fromarray(GREY.astype(np.int32))), "has mode 'I'"),
    "floats": ("a.tif", saved(Image.fromarray(GREY.astype(np.float32))), "has mode 'F'"),
    "16-bit colour": ("a.png", deep_png(2, 3), "more than 8 bits per channel"),
    "16-bit grey with alpha": ("a.png", deep_png(4, 2), "more than 8 bits per channel"),
    "16-bit colour with alpha": ("a.png", deep_png(6, 4), "more than 8 bits per channel"),
    "16-bit portable": (
        "a.ppm",
        lambda path: path.write_bytes(b"P6 8 6 65535\n" + bytes(288)) and None,
        "more than 8 bits per channel",
    ),
    "animated GIF": ("a.gif", saved(colour, **many), "has 2 frames"),
    "TIFF of two pages": ("a.tif", saved(colour, **many), "has 2 frames"),
    "animated PNG": ("a.png", saved(colour, **many), "has 2 frames"),
    "animated WebP": ("a.webp", saved(colour, **many), "has 2 frames"),
    "truncated PNG": ("a.png", cut(colour, "PNG", 0.6), "is not a readable image: "),
    "truncated JPEG": ("a.jpg", cut(colour, "JPEG", 0.9), "is not a readable image: "),
    "no image": ("a.png", lambda path: path.write_text("x") and None, "its format is not known"),
    "empty": ("a.png", lambda path: path.write_bytes(b"") and None, "its format is not known"),
}


def folder_of(tmp_path: Path, name: str, save: Save) -> Path:
    """A class folder with the image, and enough others to make a data set."""
    (tmp_path / "photos" / "train" / "odd").mkdir(parents=True)
    save(tmp_path / "photos" / "train" / "odd" / name)
    for split in ("train", "test"):
        (tmp_path / "photos" / split / "plain").mkdir(parents=True)
        colour.save(tmp_path / "photos" / split / "plain" / "1.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("case", USED)
def test_training_and_asking_see_the_same_pixels(tmp_path: Path, case: str) -> None:
    name, save = USED[case]
    folder = folder_of(tmp_path, name, save)
    data = load_images(str(folder), cache_dir=tmp_path / "cache")
    path = str(folder / "train" / "odd" / name)
    (asked,) = read_images([path], data.image_shape, stdin=io.BytesIO())
    assert asked.pixels is not None, asked.error
    np.testing.assert_array_equal(asked.pixels, data.train.images[0])
    assert len(np.unique(asked.pixels)) > 1


@pytest.mark.parametrize("case", REFUSED)
def test_training_and_asking_refuse_the_same_in_the_same_words(tmp_path: Path, case: str) -> None:
    name, save, message = REFUSED[case]
    folder = folder_of(tmp_path, name, save)
    with pytest.raises(DataError) as refused:
        load_images(str(folder), cache_dir=tmp_path / "cache")
    place = f"row 0 of the train split (train/odd/{name})"
    assert str(refused.value).startswith(place)
    assert message in str(refused.value)
    (asked,) = read_images([str(folder / "train" / "odd" / name)], (3, 6, 8), stdin=io.BytesIO())
    assert asked.error == str(refused.value).replace(place, "it")


def test_datasets_gets_the_same_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, "a.png", deep_png(2, 3))
    monkeypatch.setattr("nmoe_flower.data.decode.read_class_folders", lambda request: None)
    with pytest.raises(DataError, match="row 0 of the train split has more than 8 bits per"):
        load_images(str(folder), cache_dir=tmp_path / "cache")


def test_a_huge_picture_is_refused_in_training_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, "a.png", saved(colour))
    for most in (40, 10):  # of 48 pixels: a warning of Pillow's, and an error of Pillow's
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(DataError, match=r"row 0 .*\(train/odd/a.png\) has far too many pixels"):
            load_images(str(folder), cache_dir=tmp_path / "cache")


def test_every_orientation_is_turned_back(tmp_path: Path) -> None:
    """A wide picture that the camera stored upright is wide again, and its size is asked after."""
    for place in range(1, 9):
        turned(place)(tmp_path / f"{place}.jpg")
        (asked,) = read_images([str(tmp_path / f"{place}.jpg")], (3, 6, 8), stdin=io.BytesIO())
        assert asked.pixels is not None, asked.error


HALVES = np.repeat([0, 200], 8).astype(np.uint8) * np.ones((4, 1), np.uint8)  # 16 x 4


@pytest.mark.parametrize(
    ("fit", "columns"),
    [
        ("crop", [0, 0, 200, 200]),  # the centre 4 x 4 of 16 x 4
        ("stretch", [0, 0, 200, 200]),  # every column stands for four
        ("pad", [0, 0, 200, 200]),  # one row of 4, between black borders
    ],
)
def test_fitting_by_hand(fit: str, columns: list[int]) -> None:
    found = fit_pixels(HALVES[..., None], (4, 4), fit)[..., 0]
    assert found.shape == (4, 4)
    rows = found[1:3] if fit == "pad" else found
    assert np.abs(rows.max(axis=0).astype(int) - columns).max() <= 16  # bicubic overshoots
    if fit == "pad":
        assert (found[[0, 3]] == 0).all()


def test_fitting_leaves_what_fits_alone_and_knows_its_words() -> None:
    pixels = COLOUR.copy()
    assert fit_pixels(pixels, (8, 6), "crop") is pixels
    with pytest.raises(ConfigError, match="fit is 'squeeze'; allowed: crop, pad, stretch"):
        fit_pixels(pixels, (4, 4), "squeeze")


def write(folder: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        value = sum(map(ord, name)) % 200
        Image.new("RGB", size, (value, 0, 255 - value)).save(folder / name)
    return folder


SIZES = {
    "cat/1.png": (8, 6), "cat/2.png": (6, 8), "cat/3.png": (9, 9), "cat/4.png": (20, 5),
    "dog/1.png": (7, 7), "dog/2.png": (5, 12), "dog/3.png": (30, 30), "dog/4.png": (1, 1),
}  # fmt: skip


def test_images_of_many_sizes_name_the_file_and_the_key(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos", SIZES)
    message = (
        r"differ in size: 8x6 in row 0 of the train split \(cat/1.png\), 6x8 in row 1 of the "
        r"train split \(cat/2.png\); data.size = 8x6 \(width x height\) brings all to one"
    )
    with pytest.raises(DataError, match=message):
        load_images(str(folder), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_images_of_many_sizes_are_brought_to_one(tmp_path: Path, fit: str) -> None:
    folder = write(tmp_path / "photos", SIZES)
    data = load_images(str(folder), cache_dir=tmp_path / "cache", size=(6, 4), fit=fit)  # type: ignore[arg-type]
    assert data.image_shape == (3, 4, 6)
    assert len(data.train) + len(data.test) == len(SIZES)
    every = {images.tobytes() for images in (*data.train.images, *data.test.images)}
    asked = read_images(
        [str(folder / name) for name in SIZES],
        (3, 4, 6),
        stdin=io.BytesIO(),
        fit=fit,  # type: ignore[arg-type]
    )
    assert {one.pixels.tobytes() for one in asked if one.pixels is not None} == every


def test_the_digits_may_be_brought_to_another_size(tmp_path: Path) -> None:
    data = load_images("digits", cache_dir=tmp_path, size=(12, 10))
    assert data.image_shape == (1, 10, 12)
