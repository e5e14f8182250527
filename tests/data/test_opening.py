import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from nmoe_flower.data import load_images
from nmoe_flower.errors import DataError


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="png")
    return buffer.getvalue()


def pixels(count, shape=(6, 5, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_parquet(folder, split, images, labels, *, image="img", label="label"):
    """A parquet file of PNG bytes; label None leaves the label column out."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": item if isinstance(item, bytes) else png(item)} for item in images]
    columns = {image: cells, "weight": [0.5] * len(cells)}
    if label:
        columns[label] = list(labels)
    pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_digits_are_the_images_of_scikit_learn(cache):
    data = load_images("digits", cache_dir=cache)
    source = load_digits()
    assert data.image_shape == (1, 8, 8)
    assert data.class_names == tuple("0123456789")
    assert len(data.train) + len(data.test) == 1797
    # 16 greys become 255: every decoded pixel leads back to its source.
    both = np.concatenate([data.train.images, data.test.images])[..., 0].astype(float)
    labels = np.concatenate([data.train.labels, data.test.labels])

    def rows(images, targets):
        joined = np.column_stack([images.reshape(1797, 64), targets])
        return joined[np.lexsort(joined.T)]

    np.testing.assert_array_equal(
        rows(np.rint(both * 16 / 255), labels), rows(source.images, source.target)
    )


def test_test_split_is_a_fifth_of_every_class(cache):
    data = load_images("digits", cache_dir=cache)
    whole = np.bincount(load_digits().target)
    expected = [round(0.2 * count) for count in whole.tolist()]
    assert np.bincount(data.test.labels).tolist() == expected
    assert np.bincount(data.train.labels).tolist() == (whole - expected).tolist()


def test_images_are_mapped_read_only(cache):
    data = load_images("digits", cache_dir=cache)
    assert isinstance(data.train.images, np.memmap)
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        data.train.images[0] = 0


def test_parquet_folder_keeps_rows_in_order(tmp_path, cache):
    train, test = pixels(7), pixels(4, seed=1)
    write_parquet(tmp_path / "set", "train", train, [0, 2, 1, 0, 1, 2, 0])
    write_parquet(tmp_path / "set", "test", test, [2, 1, 0, 0])
    data = load_images(str(tmp_path / "set"), cache_dir=cache)
    np.testing.assert_array_equal(data.train.images, train)
    np.testing.assert_array_equal(data.test.images, test)
    assert data.train.labels.tolist() == [0, 2, 1, 0, 1, 2, 0]
    assert data.test.labels.tolist() == [2, 1, 0, 0]
    assert data.image_shape == (3, 6, 5)
    assert data.num_classes == 3


@pytest.mark.parametrize(
    ("labels", "names", "codes"),
    [
        (["b", "a", "b", "c"], ("a", "b", "c"), [1, 0, 1, 2]),
        ([-1, 1, 1, -1], ("-1", "1"), [0, 1, 1, 0]),
        ([30, 10, 200, 10], ("10", "30", "200"), [1, 0, 2, 0]),
        ([True, False, True, True], ("False", "True"), [1, 0, 1, 1]),
    ],
)
def test_labels_become_codes_of_sorted_names(tmp_path, cache, labels, names, codes):
    for split in ("train", "test"):
        write_parquet(tmp_path / "set", split, pixels(4), labels)
    data = load_images(str(tmp_path / "set"), cache_dir=cache)
    assert data.class_names == names
    assert data.train.labels.tolist() == data.test.labels.tolist() == codes


def image_folder(root, splits=("train", "test"), per_class=5):
    for split in splits:
        for cls, name in enumerate(("ant", "bee")):
            (root / split / name).mkdir(parents=True)
            for row in range(per_class):
                value = np.full((4, 4, 3), 100 * cls + row, np.uint8)
                Image.fromarray(value).save(root / split / name / f"{row}.png")


def test_image_folder(tmp_path, cache):
    image_folder(tmp_path / "set")
    data = load_images(str(tmp_path / "set"), cache_dir=cache)
    assert data.class_names == ("ant", "bee")
    assert len(data.train) == len(data.test) == 10
    # The files of class c hold the values 100 c to 100 c + 4.
    np.testing.assert_array_equal(data.train.images[:, 0, 0, 0] // 100, data.train.labels)


def test_saved_to_disk_equals_its_source(tmp_path, cache):
    import datasets

    image_folder(tmp_path / "set")
    source = load_images(str(tmp_path / "set"), cache_dir=cache)
    loaded = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "arrow"))
    datasets.disable_progress_bars()
    loaded.save_to_disk(str(tmp_path / "saved"))
    saved = load_images(str(tmp_path / "saved"), cache_dir=cache)
    assert saved.fingerprint == source.fingerprint
    loaded["train"].save_to_disk(str(tmp_path / "single"))
    single = load_images(str(tmp_path / "single"), cache_dir=cache)
    assert (len(single.train), len(single.test)) == (8, 2)


def test_grey_and_colour_become_colour(tmp_path, cache):
    grey, colour = pixels(3, (6, 5)), pixels(1)
    write_parquet(tmp_path / "set", "train", list(grey), [0, 1, 0])
    write_parquet(tmp_path / "set", "test", colour, [1])
    data = load_images(str(tmp_path / "set"), cache_dir=cache)
    np.testing.assert_array_equal(data.train.images, np.repeat(grey[..., None], 3, axis=-1))
    np.testing.assert_array_equal(data.test.images, colour)


def test_grey_stays_one_channel(tmp_path, cache):
    grey = pixels(4, (6, 5))
    for split in ("train", "test"):
        write_parquet(tmp_path / "set", split, grey, [0, 1, 0, 1])
    data = load_images(str(tmp_path / "set"), cache_dir=cache)
    np.testing.assert_array_equal(data.train.images[..., 0], grey)
    assert data.image_shape == (1, 6, 5)


def test_configured_columns_and_splits(tmp_path, cache):
    write_parquet(tmp_path / "set", "train", pixels(4), [0, 1, 2, 3], image="a", label="b")
    write_parquet(tmp_path / "set", "validation", pixels(2), [3, 1], image="a", label="b")
    data = load_images(
        str(tmp_path / "set"),
        cache_dir=cache,
        image_column="a",
        label_column="b",
        test_split="validation",
    )
    assert data.test.labels.tolist() == [3, 1]


def test_split_seed_changes_the_test_images_only_when_asked(tmp_path, cache):
    first = load_images("digits", cache_dir=cache)
    again = load_images("digits", cache_dir=tmp_path / "other")
    other = load_images("digits", cache_dir=cache, seed=1)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_progress_reaches_the_total(cache):
    seen = []
    load_images("digits", cache_dir=cache, progress=lambda *step: seen.append(step))
    assert seen == [(512, 1797), (1024, 1797), (1536, 1797), (1797, 1797)]
    load_images("digits", cache_dir=cache, progress=lambda *step: pytest.fail("decoded again"))


def test_cache_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("NMOE_CACHE", str(tmp_path / "elsewhere"))
    data = load_images("digits")
    assert Path(data.train.images.filename).is_relative_to(tmp_path / "elsewhere")


def test_a_changed_file_is_decoded_again(tmp_path, cache):
    for split in ("train", "test"):
        write_parquet(tmp_path / "set", split, pixels(4), [0, 1, 0, 1])
    before = load_images(str(tmp_path / "set"), cache_dir=cache)
    write_parquet(tmp_path / "set", "train", pixels(6, seed=3), [0, 1, 0, 1, 1, 1])
    after = load_images(str(tmp_path / "set"), cache_dir=cache)
    assert (len(before.train), len(after.train)) == (4, 6)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def change_shape(path):
    meta = json.loads(path.read_text())
    meta["shapes"]["train"][0] += 1
    path.write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("meta.json", Path.unlink),
        ("meta.json", truncate),
        ("meta.json", change_shape),
        ("meta.json", lambda path: path.write_text("[]")),
        ("train-images.npy", truncate),
        ("train-images.npy", Path.unlink),
        ("test-labels.npy", truncate),
        ("test-labels.npy", lambda path: np.save(path, np.zeros(3, np.int64))),
        ("train-labels.npy", lambda path: path.write_bytes(b"")),
        ("test-labels.npy", lambda path: np.save(path, np.full_like(np.load(path), 10))),
        ("test-labels.npy", lambda path: np.save(path, np.full_like(np.load(path), -1))),
    ],
)
def test_a_damaged_entry_is_rebuilt(cache, name, damage):
    good = load_images("digits", cache_dir=cache)
    labels = np.array(good.test.labels)
    entry = Path(good.train.images.filename).parent
    del good
    damage(entry / name)
    steps = []
    again = load_images("digits", cache_dir=cache, progress=lambda *step: steps.append(step))
    assert steps
    np.testing.assert_array_equal(again.test.labels, labels)
    assert list((cache / "images").iterdir()) == [entry]


def test_remains_of_a_killed_process_go_after_a_day(cache):
    for name, hours in (("old", 25), ("young", 23)):
        folder = cache / "images" / f".building-{name}"
        folder.mkdir(parents=True)
        (folder / "train-images.npy").write_bytes(b"half")
        then = time.time() - 3600 * hours
        os.utime(folder, (then, then))
    load_images("digits", cache_dir=cache)
    assert [path.name for path in (cache / "images").glob(".*")] == [".building-young"]


def test_the_loser_of_a_race_uses_the_winners_entry(cache):
    """All threads are past the look into the empty cache before any may finish."""
    barrier = threading.Barrier(3, timeout=60)
    found, errors = [], []

    def load():
        waited = []

        def wait_once(done, total):
            if not waited:
                waited.append(barrier.wait())

        try:
            found.append(load_images("digits", cache_dir=cache, progress=wait_once))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=load, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not errors
    assert len({data.train.images.filename for data in found}) == 1
    assert len(list((cache / "images").iterdir())) == 1


def test_a_warm_cache_needs_no_heavy_import(cache):
    load_images("digits", cache_dir=cache)
    code = (
        "import sys; from nmoe_flower.data import load_images\n"
        f"load_images('digits', cache_dir={str(cache)!r})\n"
        "print([m for m in ('torch', 'datasets', 'sklearn', 'PIL', 'flwr') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def no_folder(root):
    return str(root / "absent")


def empty_folder(root):
    (root / "void").mkdir()
    return str(root / "void")


def a_file(root):
    (root / "file").write_text("x")
    return str(root / "file")


def no_data(root):
    (root / "set").mkdir()
    (root / "set" / "notes.bin").write_bytes(b"x")
    return str(root / "set")


def corrupt(root):
    write_parquet(root / "set", "train", pixels(4), [0, 1, 0, 1])
    truncate(root / "set" / "train-00000-of-00001.parquet")
    return str(root / "set")


def parquet(**options):
    def build(root):
        images = options.get("images", pixels(4))
        labels = options.get("labels", [0, 1, 0, 1])
        for split in options.get("splits", ("train", "test")):
            names = {key: options[key] for key in ("image", "label") if key in options}
            write_parquet(root / "set", split, images, labels, **names)
        return str(root / "set")

    return build


WIDE = [*pixels(2), *pixels(2, (6, 9, 3))]
DEEP = [*pixels(3), np.zeros((6, 5), np.uint16)]


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (no_folder, {}, r"data folder '.*absent' does not exist"),
        (empty_folder, {}, r"data folder '.*void' is empty"),
        (a_file, {}, r"data set '.*file' is a file; a folder that holds it is needed \(a table"),
        (no_data, {}, r"data folder '.*set' cannot be read: "),
        (corrupt, {}, r"data folder '.*set' cannot be read: .*[Pp]arquet"),
        (parquet(label=None), {}, "no label column found; .* one of img, weight"),
        (parquet(image="data"), {}, "no image column found; .* one of data, weight, label"),
        (parquet(), {"label_column": "kind"}, "no label column 'kind'; .* img, weight, label"),
        (parquet(), {"image_column": "photo"}, "no image column 'photo'; .* img, weight, label"),
        (parquet(), {"image_column": "weight"}, "image column 'weight' holds .*not images"),
        (parquet(), {"label_column": "weight"}, "row 0 .* has the label 0.5 of type float; whole"),
        (parquet(), {"train_split": "fit"}, "no split 'fit'; it has train, test"),
        (parquet(), {"test_split": "val"}, "no split 'val'; it has train, test"),
        (parquet(images=WIDE), {}, "differ in size: 5x6 in row 0 .* 9x6 in row 2 of the train"),
        (parquet(images=DEEP), {}, "row 3 of the train split has mode 'I;16'"),
        (
            parquet(images=[*pixels(2), b"junk", *pixels(1)]),
            {},
            "row 2 of the train split is not a readable image",
        ),
        (
            parquet(images=[*pixels(3), png(pixels(1)[0])[:60]]),
            {},
            "row 3 of the train split is not a readable image",
        ),
        (parquet(labels=[0, None, 0, 1]), {}, "row 1 of the train split has no label"),
        (parquet(labels=[4, 4, 4, 4]), {}, "fewer than 2 classes"),
        (parquet(images=[], labels=[]), {}, "data folder '.*set' cannot be read: "),
        (parquet(splits=("train",)), {}, "4 samples are too few"),
        (lambda root: "nobody/knows-this", {}, "'nobody/knows-this' is not a local folder and"),
        (lambda root: "", {}, "the data set has no name"),
    ],
)
def test_bad_data_is_refused_with_one_clear_message(
    tmp_path, cache, monkeypatch, capfd, build, options, message
):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = build(tmp_path)
    capfd.readouterr()
    with pytest.raises(DataError, match=message):
        load_images(folder, cache_dir=cache, **options)
    assert capfd.readouterr() == ("", "")
    assert not cache.exists() or not list((cache / "images").iterdir())


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write the data cache .*file.*NMOE_CACHE"):
        load_images("digits", cache_dir=tmp_path / "file")
