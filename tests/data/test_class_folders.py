"""Folders of images are read without ``datasets``, and as ``datasets`` reads them."""

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nmoe_flower.data import load_images
from nmoe_flower.data.class_folders import read_class_folders
from nmoe_flower.data.request import DataRequest
from nmoe_flower.errors import DataError

AWKWARD = (
    *("train/cat/2.png", "train/cat/10.png", "train/cat/B.PNG", "train/cat/a b.jpg"),
    *("train/cat-2/1.png", "train/cat-2/0.bmp", "train/Dog/1.png", "train/ant/x.tif"),
    *("test/cat/1.png", "test/ant/2.jpeg", "test/owl/3.png"),
)
FLAT = ("bee/1.png", "bee/2.png", "ant/1.png", "ant/2.png", "ant/3.png", "ant/4.png", "ant/5.png")


@pytest.fixture
def without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("datasets", "flwr_datasets", "pandas", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)


def request(folder: Path, *, test: str = "test", train: str = "train") -> DataRequest:
    return DataRequest(str(folder), "", "", train, test, 0)


def write(folder: Path, paths: Iterable[str], mode: str = "RGB") -> Path:
    """An image per path, each with other pixels."""
    for value, name in enumerate(paths):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(value).integers(0, 256, (8, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)
    return folder


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("paths", [AWKWARD, FLAT], ids=["splits", "flat"])
def test_a_folder_is_read_as_datasets_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: tuple[str, ...], mode: str
) -> None:
    """The same bits in the same order, so the same fingerprint."""
    folder = write(tmp_path / "own", paths, mode)
    ours = load_images(str(folder), cache_dir=tmp_path / "ours")
    monkeypatch.setattr("nmoe_flower.data.decode.read_class_folders", lambda request: None)
    theirs = load_images(str(folder), cache_dir=tmp_path / "theirs")
    assert ours.class_names == theirs.class_names
    assert ours.fingerprint == theirs.fingerprint
    assert ours.image_shape == ((3, 8, 6) if mode == "RGB" else (1, 8, 6))
    np.testing.assert_array_equal(ours.train.images, theirs.train.images)
    np.testing.assert_array_equal(ours.test.labels, theirs.test.labels)


@pytest.mark.usefixtures("without_extra")
def test_a_device_reads_its_own_images_without_the_extra(tmp_path: Path) -> None:
    data = load_images(str(write(tmp_path / "own", AWKWARD)), cache_dir=tmp_path / "cache")
    assert data.class_names == ("Dog", "ant", "cat", "cat-2", "owl")
    assert data.train.labels.tolist() == [0, 1, 3, 3, 2, 2, 2, 2]  # "cat-2/" < "cat/"
    assert data.test.labels.tolist() == [1, 2, 4]


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    folder = write(tmp_path, FLAT)
    (folder / "ant" / ".DS_Store").write_bytes(b"x")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_bytes(b"x")
    found = read_class_folders(request(folder))
    assert found is not None
    assert len(found[0][0].labels) == len(FLAT)


def test_a_turned_photograph_is_turned_back(tmp_path: Path) -> None:
    """EXIF orientation 6: the camera was turned, so width and height change places."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "ant").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "ant" / "1.jpg", exif=exif)
    found = read_class_folders(request(tmp_path))
    assert found is not None
    assert next(found[0][0].read("RGB")).shape == (8, 6, 3)


@pytest.mark.parametrize(
    "more", ["train.parquet", "ant/notes.txt", "1.png", "ant/far/1.png", "train/1.png"]
)
def test_anything_else_is_left_to_datasets(tmp_path: Path, more: str) -> None:
    folder = write(tmp_path, FLAT)
    assert read_class_folders(request(folder)) is not None
    (folder / more).parent.mkdir(exist_ok=True)
    (folder / more).write_bytes(b"x")
    assert read_class_folders(request(folder)) is None


def test_other_splits_are_left_to_datasets(tmp_path: Path) -> None:
    folder = write(tmp_path, AWKWARD)
    assert read_class_folders(request(folder, test="validation")) is None
    assert read_class_folders(request(folder, train="fit")) is None
    alone = read_class_folders(request(folder, test=""))
    assert alone is not None
    assert [split.name for split in alone[0]] == ["train"]


@pytest.mark.usefixtures("without_extra")
@pytest.mark.parametrize("name", ["own", "uoft-cs/cifar10"])
def test_what_needs_the_extra_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write(tmp_path / "own", FLAT)
    (tmp_path / "own" / "labels.csv").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"needs datasets: pip install .*\[data\]"):
        load_images(name, cache_dir=tmp_path / "cache")


@pytest.mark.usefixtures("without_extra")
def test_a_scheme_of_flower_needs_the_extra(tmp_path: Path) -> None:
    from nmoe_flower.data import partition_clients

    data = load_images("digits", cache_dir=tmp_path)
    with pytest.raises(DataError, match=r"'dirichlet' needs flwr_datasets: .*\[data\]"):
        partition_clients(data, scheme="dirichlet", num_clients=3, cache_dir=tmp_path)
    for scheme in ("dominant", "iid"):
        assert len(partition_clients(data, scheme=scheme, num_clients=3, cache_dir=tmp_path)) == 3


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "own", FLAT)
    (folder / "bee" / "1.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"row 5 of the train split \(bee/1.png\) is not a readab"):
        load_images(str(folder), cache_dir=tmp_path / "cache")
