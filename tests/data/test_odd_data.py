"""Every scheme on every odd data set: all samples are used or it is said why not, or it is refused.

What a test looks for is the same for all: no sample twice in training, no client with nothing, no
sample of a class that nobody learns in a test, and `coverage` that adds up to all there are.
"""

import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nmoe_flower.catalogue import SCHEMES
from nmoe_flower.config import Config
from nmoe_flower.data import (
    ClientIndices,
    DominantClassPartitioner,
    ImageData,
    Split,
    configured_images,
    configured_partition,
    coverage,
    load_images,
    names_of_clients,
    partition_clients,
)
from nmoe_flower.errors import DataError, NMoEError
from nmoe_flower.plurals import how_many


def made(
    train: Sequence[int], test: Sequence[int], names: int, owners: int = 4, seed: int = 0
) -> ImageData:
    """Data of which only labels and owners matter; owners in turn."""
    rng = np.random.default_rng(seed)
    splits = []
    for labels in (train, test):
        order = rng.permutation(len(labels))
        codes = np.asarray(labels, np.int64)[order]
        splits.append(
            Split(np.zeros((len(labels), 1, 1, 1), np.uint8), codes, np.arange(len(codes)) % owners)
        )
    return ImageData(
        "made",
        *splits,
        class_names=tuple(f"c{code}" for code in range(names)),
        fingerprint=repr((train, test, names, owners, seed)),
        client_names=tuple(f"user-{owner}" for owner in range(owners)),
    )


def rows(*counts: int) -> list[int]:
    """``rows(2, 0, 1)`` is two rows of class 0 and one of class 2."""
    return [code for code, count in enumerate(counts) for _ in range(count)]


ODD = {
    "plain": made(rows(24, 24, 24), rows(8, 8, 8), 3),
    "a class in the test split only": made(rows(24, 24, 24), rows(8, 8, 8, 1), 4),
    "a class that is declared only": made(rows(24, 24, 24), rows(8, 8, 8), 5),
    "declared first, never there": made(rows(0, 24, 24, 24), rows(0, 8, 8, 8), 4),
    "a class in the train split only": made(rows(24, 24, 24, 9), rows(8, 8, 8), 4),
    "one sample of a class to train on": made(rows(24, 24, 1), rows(8, 8, 8), 3),
    "one sample of a class to test on": made(rows(24, 24, 24), rows(8, 8, 1), 3),
    "a class ten times as large": made(rows(240, 24, 24), rows(80, 8, 8), 3),
    "two classes": made(rows(30, 31), rows(10, 11), 2),
    "fewer classes than clients": made(rows(40, 41), rows(21, 22), 2, owners=7),
    "barely enough": made(rows(4, 4, 4), rows(4, 4, 4), 3),
    "owners of different size": made(rows(30, 20, 11), rows(11, 9, 8), 3, owners=9),
}


def check(config: Config, data: ImageData, clients: Sequence[ClientIndices]) -> None:
    """What must hold for whatever a scheme gives."""
    known = set(data.train.labels.tolist())
    held = np.concatenate([client.train for client in clients])
    assert len(np.unique(held)) == len(held)  # disjoint
    for client in clients:
        assert len(client.train)
        assert len(client.test_local)
        for test in (client.test_local, client.test_iid):
            assert len(np.unique(test)) == len(test)
            assert set(data.test.labels[test].tolist()) <= known
    parts = coverage(config, data, clients)
    assert [part.part for part in parts] == ["train", "local test", "IID test"]
    for part, split, name in zip(
        parts, (data.train, data.test, data.test), ("train", "test_local", "test_iid"), strict=True
    ):
        union = np.unique(np.concatenate([getattr(client, name) for client in clients]))
        assert (part.used, part.total) == (len(union), len(split))
        total = how_many(part.total, "sample is", "samples are")
        assert f"{part.used:,} of {total} used" in str(part)
        if part.used < part.total:
            assert part.reasons
            rest = how_many(part.total - part.used, "is", "are")
            assert f"{rest} not: " in str(part)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("odd", ODD)
def test_all_is_used_or_it_is_said_why_not(tmp_path: Path, odd: str, scheme: str) -> None:
    data = ODD[odd]
    config = Config.parse(
        {"data.scheme": scheme, "data.num-clients": 3, "data.cache-dir": str(tmp_path)}
    )
    try:
        clients = configured_partition(config, data, num_clients=3)
    except DataError as error:
        refusal = str(error)
    else:
        refusal = ""
        check(config, data, clients)
    assert not refusal or any(word in refusal for word in ("class ", "samples", "clients"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_class_nobody_can_learn_costs_the_others_nothing(tmp_path: Path, scheme: str) -> None:
    """The same data with and without it give every client the same number of samples."""
    plain = ODD["plain"]
    for odd in ("a class in the test split only", "a class that is declared only"):
        sizes = []
        for data in (plain, ODD[odd]):
            clients = partition_clients(
                data,
                scheme=scheme,  # type: ignore[arg-type]
                num_clients=4 if scheme == "natural" else 3,
                classes_per_client=1,
                cache_dir=tmp_path,
            )
            sizes.append(sum(len(client.train) for client in clients))
        assert sizes[0] == sizes[1] == len(plain.train)


def test_the_reasons_are_in_words(tmp_path: Path) -> None:
    def told(odd: str, **values: object) -> list[str]:
        config = Config.parse(
            {"data.num-clients": 3, "data.cache-dir": str(tmp_path)}
            | {f"data.{key.replace('_', '-')}": value for key, value in values.items()}
        )
        clients = configured_partition(config, ODD[odd], num_clients=3)
        return [str(part) for part in coverage(config, ODD[odd], clients)]

    train, local, iid = told("a class ten times as large")
    # 24 of the small classes allow 24 for each client: 72 of 288.
    assert train == (
        "train: 72 of 288 samples are used; 216 are not: every client holds equally many, 24; "
        "all 24 of class 'c1' are used"
    )
    assert "local test: 24 of 96 samples are used; 72 are not: every client" in local
    assert iid == "IID test: 24 of 96 samples are used; 72 are not: every class alike, 8 per client"
    train, local, _ = told("a class in the test split only")
    assert train == "train: 72 of 72 samples are used"
    assert local.endswith("1 is not: 1 is of class 'c3', with none to train on; every client "
                          "holds equally many, 8, skewed like its training samples; "
                          "all 8 of class 'c0' are used")  # fmt: skip
    (train, *_) = told("plain", scheme="pathological", classes_per_client=1, train_per_client=5)
    assert train == "train: 15 of 72 samples are used; 57 are not: data.train-per-client is 5"
    (train, *_) = told("plain", scheme="natural")
    assert train == (
        "train: 54 of 72 samples are used; 18 are not: 3 of the 4 in the data are clients "
        "(data.num-clients), those with most training samples"
    )


def test_a_class_that_cannot_be_tested_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"class 'c3' has samples to train on and none in the test"):
        partition_clients(
            ODD["a class in the train split only"], scheme="dominant", num_clients=3,
            cache_dir=tmp_path,
        )  # fmt: skip


@st.composite
def odd_data(draw: st.DrawFn) -> ImageData:
    classes = draw(st.integers(2, 5))
    count = st.lists(st.integers(0, 30), min_size=classes, max_size=classes)
    train = draw(count.filter(lambda found: sum(value > 0 for value in found) > 1))
    test = draw(count.filter(lambda found: sum(found) > 3))
    return made(
        rows(*train), rows(*test), classes, draw(st.integers(1, 8)), draw(st.integers(0, 3))
    )


@settings(max_examples=60)
@given(
    odd_data(),
    st.sampled_from(tuple(SCHEMES)),
    st.integers(2, 6),
    st.sampled_from([0, 0, 3]),
    st.sampled_from([0, 0, 2]),
)
def test_whatever_the_labels(
    tmp_path_factory: pytest.TempPathFactory,
    data: ImageData,
    scheme: str,
    num_clients: int,
    train_size: int,
    test_size: int,
) -> None:
    config = Config.parse(
        {
            "data.scheme": scheme,
            "data.num-clients": num_clients,
            "data.train-per-client": train_size,
            "data.test-per-client": test_size,
            "data.cache-dir": str(tmp_path_factory.getbasetemp() / "odd"),
        }
    )
    try:
        clients = configured_partition(config, data, num_clients=num_clients)
    except NMoEError:
        return
    check(config, data, clients)


# --- natural ---


def photos(folder: Path, owners: dict[str, dict[str, int]], layout: str) -> Path:
    """``owners``: images per class; ``layout`` has {split}, {client} and {cls}."""
    number = itertools.count()
    for split, share in (("train", 1), ("test", 2)) if "{split}" in layout else (("", 1),):
        for client, classes in owners.items():
            for cls, count in classes.items():
                path = folder / layout.format(split=split, client=client, cls=cls)
                path.mkdir(parents=True, exist_ok=True)
                for _ in range(count // share):
                    pixels = np.full((4, 4), next(number) % 256, np.uint8)
                    Image.fromarray(pixels).save(path / f"{next(number)}.png")
    return folder


OWNERS = {
    "ann": {"cat": 6, "dog": 4},
    "bob": {"cat": 12},
    "eve": {"cat": 5, "dog": 5},
    "kim": {"dog": 2},
}


@pytest.mark.parametrize(
    "layout", ["{client}/{cls}", "{split}/{client}/{cls}", "{client}/{split}/{cls}"]
)
def test_a_folder_per_client_is_a_natural_split(tmp_path: Path, layout: str) -> None:
    folder = photos(tmp_path / "photos", OWNERS, layout)
    config = Config.parse(
        {
            "data.dataset": str(folder),
            "data.scheme": "natural",
            "data.num-clients": 3,
            "data.cache-dir": str(tmp_path / "cache"),
        }
    )
    data = configured_images(config)
    assert data.client_names == ("ann", "bob", "eve", "kim")
    assert data.class_names == ("cat", "dog")
    clients = configured_partition(config, data, num_clients=3)
    assert names_of_clients(config, data) == ["ann", "bob", "eve"]
    for client, name in enumerate(("ann", "bob", "eve")):  # kim has fewest
        for split, held in ((data.train, "train"), (data.test, "test_local")):
            chosen = getattr(clients[client], held)
            assert split.clients is not None
            assert {data.client_names[code] for code in split.clients[chosen]} == {name}
    # All that they have, a fifth of it in the test split if there is none.
    total = [10, 12, 10] if "{split}" in layout else [8, 10, 8]
    assert [len(client.train) for client in clients] == total
    check(config, data, clients)
    assert "kim" not in str(coverage(config, data, clients)[0])
    assert "3 of the 4 in the data are clients" in str(coverage(config, data, clients)[0])


def column_data(folder: Path, users: Sequence[object], labels: Sequence[object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4)).save(folder.parent / "one.png")
    cell = {"bytes": (folder.parent / "one.png").read_bytes(), "path": None}
    table = pa.table({"image": [cell] * len(labels), "label": list(labels), "user": list(users)})
    pq.write_table(table, folder / "train.parquet")
    return folder


@pytest.mark.parametrize("kind", [str, int])
def test_a_column_is_a_natural_split(tmp_path: Path, kind: Callable[[int], object]) -> None:
    users = [kind(row % 3) for row in range(60)]
    folder = column_data(tmp_path / "set", users, [row % 2 for row in range(60)])
    config = Config.parse(
        {
            "data.dataset": str(folder), "data.scheme": "natural", "data.num-clients": 3,
            "data.partition-column": "user", "data.cache-dir": str(tmp_path / "cache"),
        }
    )  # fmt: skip
    data = configured_images(config)
    clients = configured_partition(config, data, num_clients=3)
    assert [len(client.train) for client in clients] == [16, 16, 16]
    assert [len(client.test_local) for client in clients] == [4, 4, 4]
    check(config, data, clients)


@pytest.mark.parametrize(
    ("users", "values", "message"),
    [
        (["a", None, "b"], {}, "row 1 of the train split has None in column 'user'"),
        (["a", "b", ""], {}, "row 2 of the train split has '' in column 'user'"),
        (["a", "a", "a"], {}, "2 clients are wanted, but .* belong to 1; 2 are needed"),
        ([0.5, 1.5, 0.5], {}, "row 0 of the train split has 0.5 in column 'user'"),
        (
            ["a", "a", "b"],
            {"data.partition-column": "who"},
            "no column 'who' .* image, label, user",
        ),
        (["a", "a", "b"], {"data.partition-column": ""}, "does not say who its images belong to"),
        (["a", "a", "b"], {"data.num-clients": 5}, "5 clients are wanted, but .* belong to 2"),
    ],
)
def test_whose_it_is_must_be_known(
    tmp_path: Path, users: list[object], values: dict[str, object], message: str
) -> None:
    folder = column_data(tmp_path / "set", users * 10, [0, 1, 0, 1, 1, 0] * 5)
    config = Config.parse(
        {
            "data.dataset": str(folder), "data.scheme": "natural", "data.num-clients": 2,
            "data.partition-column": "user", "data.cache-dir": str(tmp_path / "cache"), **values,
        }
    )  # fmt: skip
    with pytest.raises(DataError, match=message):
        configured_partition(config, configured_images(config), num_clients=config.data.num_clients)


@pytest.mark.parametrize("dataset", ["digits", "photos"])
def test_data_without_owners_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", {"": {"cat": 6, "dog": 4}}, "{split}/{cls}")
    with pytest.raises(DataError, match=r"does not say who its images belong to: set data\.par"):
        load_images(dataset, cache_dir=tmp_path / "cache", by_client=True)


# --- labels ---


def labelled(folder: Path, labels: Sequence[object], names: Sequence[str] | None) -> Path:
    """A parquet file whose label column may be declared as a ClassLabel."""
    from datasets import ClassLabel, Features
    from datasets import Image as ImageFeature

    column_data(folder, ["a"] * len(labels), labels)
    table = pq.read_table(folder / "train.parquet").drop_columns(["user"])
    if names is not None:
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(names))})
        about = {b"huggingface": json.dumps({"info": {"features": features.to_dict()}}).encode()}
        table = table.replace_schema_metadata(about)
    pq.write_table(table, folder / "train.parquet")
    return folder


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (
            [0, 1, 2],
            "ab",
            r"row 2 .* has the label 2, but there are 2 class names \(0 to 1: a, b\)",
        ),
        ([0, 1, -2], "ab", "row 2 of the train split has the label -2, but there are 2 class"),
        ([0, 1, -1], "ab", "row 2 of the train split has no label in column 'label'"),
        ([0, 1, None], "ab", "row 2 of the train split has no label in column 'label'"),
        ([0, None, 1], None, "row 1 of the train split has no label in column 'label'"),
        ([0.0, float("nan"), 1.0], None, "row 0 of the train split has the label 0.0 of type flo"),
        ([[0], [1], [0]], None, r"row 0 of the train split has the label \[0\] of type list"),
        ([b"a", b"b", b"a"], None, "row 0 of the train split has the label b'a' of type bytes"),
    ],
)
def test_a_label_that_cannot_be_is_named(
    tmp_path: Path, labels: list[object], names: str | None, message: str
) -> None:
    folder = labelled(tmp_path / "set", labels * 10, names)
    with pytest.raises(DataError, match=message):
        load_images(str(folder), cache_dir=tmp_path / "cache")


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "set", [0, 1] * 10, "ab")
    table = pq.read_table(folder / "train.parquet")
    cells = table.column("image").to_pylist()
    cells[3] = None
    about = table.schema.metadata
    changed = pa.table({"image": cells, "label": table.column("label")})
    pq.write_table(changed.replace_schema_metadata(about), folder / "train.parquet")
    with pytest.raises(DataError, match="row 3 of the train split has no image"):
        load_images(str(folder), cache_dir=tmp_path / "cache")


def test_a_partitioner_names_a_label_out_of_range() -> None:
    import datasets

    features = datasets.Features({"label": datasets.ClassLabel(names=["a", "b", "c"])})
    table = pa.table({"label": [0, 1, 3, 1]})
    dataset = datasets.Dataset(table).cast(datasets.Features({"label": datasets.Value("int64")}))
    dataset.info.features = features
    partitioner = DominantClassPartitioner(2, 0.6)
    partitioner.dataset = dataset
    with pytest.raises(DataError, match="row 2 of column 'label' has the label 3, but there are 3"):
        partitioner.load_partition(0)


def test_a_partitioner_deals_the_classes_that_occur() -> None:
    import datasets

    features = datasets.Features({"label": datasets.ClassLabel(names=["none", "a", "b"])})
    partitioner = DominantClassPartitioner(2, 0.5)
    partitioner.dataset = datasets.Dataset.from_dict({"label": [1, 2] * 10}, features=features)
    assert [sorted(partitioner.load_partition(i)["label"]) for i in range(2)] == [
        [1] * 5 + [2] * 5
    ] * 2


# --- folders and links ---


def plain_photos(folder: Path, count: int = 6) -> Path:
    for split, label in itertools.product(("train", "test"), "ab"):
        (folder / split / label).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((8, 8), 20 * number, np.uint8)
            Image.fromarray(pixels).save(folder / split / label / f"{number}.png")
    return folder


def change_in_place(path: Path) -> None:
    """Another picture of the same size in bytes, with the old time put back."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(path)
    changed = path.read_bytes()
    path.write_bytes(changed.ljust(len(content), b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_file(path: Path) -> None:
    """The same by another file that takes the place."""
    before = path.stat()
    other = path.with_name("other.png")
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(other)
    other.write_bytes(other.read_bytes().ljust(before.st_size, b"\0"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("linked", ["nothing", "split", "class", "file", "root"])
@pytest.mark.parametrize("change", [Path.unlink, change_in_place, replace_file])
def test_the_cache_notices_what_changes_behind_a_link(
    tmp_path: Path, linked: str, change: Callable[[Path], None]
) -> None:
    store = plain_photos(tmp_path / "store")
    folder = tmp_path / "photos"
    if linked == "nothing":
        folder = store
    elif linked == "root":
        folder.symlink_to(store)
    else:
        plain_photos(folder)
        place = {"split": "train", "class": "train/a", "file": "train/a/3.png"}[linked]
        (folder / place).rename(tmp_path / "away")
        (folder / place).symlink_to(store / place)
    before = load_images(str(folder), cache_dir=tmp_path / "cache")
    change(store / "train" / "a" / "3.png")
    if linked == "file" and change is Path.unlink:
        with pytest.raises(DataError, match=r"cannot read .*train/a/3.png: No such file"):
            load_images(str(folder), cache_dir=tmp_path / "cache")
        return
    after = load_images(str(folder), cache_dir=tmp_path / "cache")
    assert len(before.train) == 12
    assert len(after.train) == (11 if change is Path.unlink else 12)
    assert after.fingerprint != before.fingerprint


def test_a_link_to_a_folder_above_is_refused(tmp_path: Path) -> None:
    folder = plain_photos(tmp_path / "photos")
    (folder / "train" / "a" / "all").symlink_to(folder)
    with pytest.raises(DataError, match="train/a/all is a link to a folder that it lies in"):
        load_images(str(folder), cache_dir=tmp_path / "cache")


def test_a_folder_that_cannot_be_listed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = plain_photos(tmp_path / "photos")
    listed = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("train/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"cannot read .*train/b: Permission denied"):
        load_images(str(folder), cache_dir=tmp_path / "cache")


def test_what_datasets_would_not_follow_is_refused(tmp_path: Path) -> None:
    folder = column_data(tmp_path / "set", ["a"] * 20, [0, 1] * 10)
    column_data(tmp_path / "more", ["a"] * 20, [0, 1] * 10)
    (folder / "more").symlink_to(tmp_path / "more")
    with pytest.raises(DataError, match="set/more is a link to a folder, which `datasets` does n"):
        load_images(str(folder), cache_dir=tmp_path / "cache")


def pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("L", (8, 8), number).save(folder / f"{number}.png")


@pytest.mark.parametrize("test", [True, False])
def test_a_split_that_nobody_asked_for_is_told(tmp_path: Path, test: bool) -> None:
    for split in ("train", "val", "test")[: 2 + test]:
        for name in ("cat", "dog"):
            pictures(tmp_path / "set" / split / name, 10)
    config = Config.parse(
        {
            "data.dataset": str(tmp_path / "set"), "data.cache-dir": str(tmp_path / "cache"),
            "data.num-clients": 2, "data.scheme": "iid",
        }
    )  # fmt: skip
    for _ in ("decoded", "from the cache"):
        data = configured_images(config)
        told = coverage(config, data, configured_partition(config, data, num_clients=2))
        assert [str(part) for part in told[3:]] == [
            "split validation: 0 of 20 samples are used; 20 are not: data.train-split is train, "
            "and data.test-split is test"
        ]


@pytest.mark.parametrize("place", ["train/0.png", "train/cat/more/0.png"])
def test_an_image_outside_the_class_folders_is_told_as_that(tmp_path: Path, place: str) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            pictures(tmp_path / "set" / split / name, 4)
    odd = tmp_path / "set" / place
    odd.parent.mkdir(exist_ok=True)
    Image.new("L", (8, 8)).save(odd)
    with pytest.raises(DataError, match=r"images and no labels; .* train/CLASS"):
        load_images(str(tmp_path / "set"), cache_dir=tmp_path / "cache")
