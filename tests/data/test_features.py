"""Tables of numbers: every format reads alike, what is no number is named, scales are shared."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.config import Config
from nmoe_flower.data import (
    FeatureViews,
    configured_images,
    configured_partition,
    coverage,
    load_images,
    normalise,
    own_images,
    read_table,
)
from nmoe_flower.errors import ConfigError, DataError
from nmoe_flower.models import build_extractor

COLUMNS: dict[str, list[Any]] = {
    "speed": [1.5, 2.5, -3.0, 0.0, 8.25, 1.0, 2.0, 7.0, 1e6, 4.0],
    "level": [10, 20, 30, 40, 50, 60, 70, 80, 90, 100],
    "flat": [5.0] * 10,
    "label": [0, 1, 0, 1, 0, 1, 0, 1, 0, 1],
    "user": [0, 0, 1, 1, 2, 2, 0, 1, 2, 0],
}


def write_csv(path: Path, columns: Mapping[str, Sequence[Any]], *, start: str = "") -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(start)
        lines = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        lines.writerow(columns)
        lines.writerows(zip(*columns.values(), strict=True))


def write_npz(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    np.savez(path, **{name: np.array(values) for name, values in columns.items()})


def write_matrix(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    matrix = np.array(list(columns.values()), np.float64).T
    np.savez(path, rows=matrix, columns=np.array(list(columns)))


def write_structured(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    kinds = [(name, np.array(values).dtype) for name, values in columns.items()]
    rows = np.array(list(zip(*columns.values(), strict=True)), dtype=kinds)
    np.save(path, rows)


FORMATS: dict[str, Callable[[Path, Mapping[str, Sequence[Any]]], None]] = {
    "a.csv": write_csv,
    "b.csv": lambda path, columns: write_csv(path, columns, start="\ufeff"),
    "a.tsv": write_csv,
    "a.parquet": lambda path, columns: pq.write_table(pa.table(dict(columns)), path),
    "a.npz": write_npz,
    "b.npz": write_matrix,
    "a.npy": write_structured,
}


def load(path: Path, cache: Path, **options: Any) -> Any:
    options = {"client_column": "user", "kind": "features"} | options
    return load_images(str(path), cache_dir=cache, **options)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_reads_alike(tmp_path: Path, name: str) -> None:
    FORMATS[name](tmp_path / name, COLUMNS)
    write_csv(tmp_path / "reference.csv", COLUMNS)
    found, wanted = (load(tmp_path / one, tmp_path / "cache") for one in (name, "reference.csv"))
    assert found.fingerprint == wanted.fingerprint
    assert found.features == wanted.features
    assert found.features.names == ("speed", "level", "flat")
    assert found.class_names == ("0", "1")
    assert found.image_shape == (3, 1, 1)


def test_a_matrix_without_names_counts_its_columns(tmp_path: Path) -> None:
    matrix = np.array([COLUMNS["speed"], COLUMNS["level"], COLUMNS["label"]], np.float64).T
    np.save(tmp_path / "a.npy", matrix)
    data = load(tmp_path / "a.npy", tmp_path / "cache", label_column="2", client_column="")
    assert data.features.names == ("0", "1")
    assert data.class_names == ("0", "1")


def test_columns_are_standardised_by_the_training_rows(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", COLUMNS)
    write_csv(tmp_path / "test.csv", {name: values[:3] for name, values in COLUMNS.items()})
    data = load(tmp_path, tmp_path / "cache", feature_columns=("level", "flat"))
    # 10 to 100: mean 55, variance 100 (10^2 - 1) / 12 = 825; a constant is 0 everywhere.
    assert data.features.means == (55, 5)
    assert data.features.deviations == (pytest.approx(825**0.5), 1)
    train, test = data.train.images, data.test.images
    assert train.dtype == np.float32
    assert train.shape == (10, 1, 1, 2)
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(axis=0)[0, 0], [1, 0], atol=1e-6)
    np.testing.assert_allclose(test[:, 0, 0, 0], (np.array([10, 20, 30]) - 55) / 825**0.5)
    tensor = normalise(train)
    assert tensor.shape == (10, 2, 1, 1)
    np.testing.assert_array_equal(tensor[:, :, 0, 0], train[:, 0, 0])


def test_given_statistics_are_taken(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", COLUMNS)
    values = {
        "data.dataset": str(tmp_path / "a.csv"),
        "data.kind": "features",
        "data.feature-columns": ["level"],
        "data.feature-means": [10.0],
        "data.feature-deviations": [10.0],
        "extractor.backbone": "mlp",
        "data.cache-dir": str(tmp_path / "cache"),
    }
    for config in (Config.parse(values), Config.parse(Config.parse(values).flat())):
        data = configured_images(config)
        both = np.concatenate([data.train.images, data.test.images])[:, 0, 0, 0]
        assert sorted(both.tolist()) == list(range(10))  # (10 - 10) / 10 to (100 - 10) / 10
    own = own_images(config, str(tmp_path / "a.csv"))
    assert own.features == data.features
    del values["data.feature-means"], values["data.feature-deviations"]
    with pytest.raises(DataError, match=r"standardises its own table .* set data.feature-columns,"):
        own_images(Config.parse(values), str(tmp_path / "a.csv"))


def test_large_numbers_that_differ_little_are_told_apart(tmp_path: Path) -> None:
    """Standardised in double precision: seconds since 1970 keep their tenths."""
    times = [1.7e9 + row / 10 for row in range(10)]
    write_csv(tmp_path / "a.csv", {"time": times, "label": COLUMNS["label"]})
    data = load(tmp_path / "a.csv", tmp_path / "cache", client_column="")
    assert len(np.unique(data.train.images)) == len(data.train)


def changed(**columns: Any) -> dict[str, list[Any]]:
    return {name: columns.get(name, values) for name, values in COLUMNS.items()}


def at(row: int, value: Any, name: str) -> dict[str, list[Any]]:
    """The table with one other value."""
    values: list[Any] = list(COLUMNS[name])
    values[row] = value
    return changed(**{name: values})


BAD: list[tuple[dict[str, list[Any]], dict[str, Any], str]] = [
    (
        at(3, "nan", "speed"),
        {},
        "row 3 of a.csv has 'nan' in column 'speed'; finite numbers up to 1e.100",
    ),
    (at(4, "-inf", "level"), {}, "row 4 of a.csv has '-inf' in column 'level'"),
    (at(0, "", "level"), {}, "row 0 of a.csv has '' in column 'level'"),
    (at(9, "fast", "speed"), {}, "row 9 of a.csv has 'fast' in column 'speed'"),
    (at(9, "1e999", "speed"), {}, "row 9 of a.csv has '1e999' in column 'speed'"),
    (at(9, "1e101", "speed"), {}, "row 9 of a.csv has '1e101' in column 'speed'"),
    (at(2, "0.5", "label"), {}, "row 2 of a.csv has the label '0.5' in column 'label'; whole"),
    (at(2, "", "label"), {}, "row 2 of a.csv has no label in column 'label'"),
    (changed(), {"label_column": "kind"}, "a.csv has no column 'kind' .data.label-column.; the"),
    (changed(), {"feature_columns": ("x",)}, "no column 'x' .data.feature-columns."),
    (changed(), {"feature_columns": ("label",)}, "column 'label' is the label: leave it out"),
    (changed(), {"by_client": True, "client_column": "who"}, "no column 'who' .data.partition"),
    (changed(), {"client_column": "who"}, "no column 'who' .data.partition-column"),
    (at(5, "", "user"), {"by_client": True}, "row 5 of a.csv has '' in column 'user'"),
    ({"x": [1, 2], "y2": [0, 1]}, {}, "no label column found; set data.label-column .* x, y2"),
    ({"label": [0, 1], "user": [0, 1]}, {}, "a.csv has no feature columns beside 'label'"),
    ({"x": [1, 2, 3], "label": [7, 7, 7]}, {"client_column": ""}, "fewer than 2 classes"),
    ({"x": [], "label": []}, {}, "a.csv has no rows"),
]


@pytest.mark.parametrize(("columns", "options", "message"), BAD)
def test_bad_values_are_named(
    tmp_path: Path, columns: dict[str, list[Any]], options: dict[str, Any], message: str
) -> None:
    write_csv(tmp_path / "a.csv", columns)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a.csv", tmp_path / "cache", **options)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (at(3, None, "speed"), "row 3 of a.parquet has None in column 'speed'"),
        (at(3, float("nan"), "speed"), "row 3 of a.parquet has nan in column 'speed'"),
        (at(3, None, "label"), "row 3 of a.parquet has no label"),
        (at(3, None, "user"), "row 3 of a.parquet has None in column 'user'"),
        (changed(speed=[[1.0, 2.0]] * 10), r"row 0 of a.parquet has \[1.0, 2.0\] in column 'spe"),
        (changed(label=[0.5] * 10), "row 0 of a.parquet has the label 0.5 in column 'label'"),
    ],
)
def test_missing_values_of_parquet_are_named(
    tmp_path: Path, columns: dict[str, list[Any]], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a.parquet", tmp_path / "cache", by_client=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"x,label\n1,2,3\n", "row 0 of a.csv has 3 values for 2 columns"),
        ("a.csv", b"x,x\n1,2\n", "a.csv has the column 'x' twice"),
        ("a.csv", b"\xff\xfe\x00", "allowed: UTF-8"),
        ("a.npz", b"junk", "a.npz holds Python objects, or is no file of arrays"),
        ("a.npy", b"", "a.npy is no file of arrays"),
        ("a.parquet", b"junk", "a.parquet cannot be read"),
        ("a.txt", b"x", "a.txt is no table; allowed: .csv, .npy, .npz, .parquet, .tsv"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name)


@pytest.mark.parametrize("labels", ["0 1 0.0 1.0 00 +1", "0. 1. 0 1 0 1"])
def test_a_class_is_one_however_its_number_is_written(tmp_path: Path, labels: str) -> None:
    values = labels.split()
    write_csv(tmp_path / "a.csv", {"x": range(60), "label": values * 10})
    data = load(tmp_path / "a.csv", tmp_path / "cache", client_column="")
    assert data.class_names == ("0", "1")
    assert np.bincount(data.train.labels).tolist() == [24, 24]


def test_texts_that_only_begin_like_numbers_are_classes(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", {"x": range(60), "label": ["1.5", "1.x", "2"] * 20})
    assert load(tmp_path / "a.csv", tmp_path / "cache", client_column="").class_names == (
        "1.5", "1.x", "2",
    )  # fmt: skip


def test_lines_may_end_as_old_spreadsheets_end_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"x,label\r1,0\r2,1\r")
    assert read_table(tmp_path / "a.csv").columns == {"x": ["1", "2"], "label": ["0", "1"]}


def test_nobody_is_told_to_trust_a_file_with_objects(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npy holds Python objects, or is no file of arrays$"):
        read_table(tmp_path / "a.npy")


def test_a_column_that_no_scheme_looks_at_is_told_or_refused() -> None:
    asked = {"data.partition-column": "user", "data.dataset": "somewhere"}
    with pytest.raises(ConfigError, match=r"partition-column = user .* scheme = iid does not look"):
        Config.parse({**asked, "data.scheme": "iid"})
    Config.parse({**asked, "data.scheme": "natural"})
    table = {**asked, "data.kind": "features", "extractor.backbone": "mlp", "data.scheme": "iid"}
    assert any("partition-column = user is no feature" in n for n in Config.parse(table).advice())


def test_arrays_that_are_no_tables(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"shape \(3,\); \[rows, columns\] is needed"):
        read_table(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", x=np.zeros(3), y=np.zeros(4))
    with pytest.raises(DataError, match="differ in length: x has 3, y has 4"):
        read_table(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.zeros((3, 2)), columns=np.array(["a"]))
    with pytest.raises(DataError, match="has 2 columns and 1 different names"):
        read_table(tmp_path / "b.npz")
    with pytest.raises(DataError, match="absent' does not exist"):
        load(tmp_path / "absent", tmp_path / "cache")
    with pytest.raises(DataError, match=r"'who/knows' is no table .* allowed .*\.csv"):
        load(Path("who/knows"), tmp_path / "cache")


def test_a_folder_of_tables(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"has no table train\.csv.*; it has none"):
        load(tmp_path, tmp_path / "cache")
    for part in ("train-0", "train-1", "test"):
        write_csv(tmp_path / f"{part}.csv", COLUMNS)
    data = load(tmp_path, tmp_path / "cache")
    assert (len(data.train), len(data.test)) == (20, 10)
    swapped = dict(reversed(COLUMNS.items()))  # another order of columns is the same table
    write_csv(tmp_path / "test.csv", swapped)
    assert load(tmp_path, tmp_path / "cache").fingerprint == data.fingerprint
    write_csv(tmp_path / "test.csv", at(1, "nan", "speed"))  # a changed file is read again
    with pytest.raises(DataError, match=r"row 1 of test.csv has 'nan'"):
        load(tmp_path, tmp_path / "cache")


def test_a_table_that_nobody_asked_for_is_told(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "val", "training"):
        write_csv(tmp_path / "set" / f"{name}.csv", COLUMNS)
    (tmp_path / "set" / "codes.csv").write_text("")  # no table at all
    data = load(tmp_path / "set", tmp_path / "cache")
    assert data.beside == {"training.csv": 10, "val.csv": 10}
    assert load(tmp_path / "set" / "val.csv", tmp_path / "cache").beside == {}


def test_users_of_a_table_are_a_natural_split(tmp_path: Path) -> None:
    many = {name: values * 6 for name, values in COLUMNS.items()}
    write_csv(tmp_path / "a.csv", many)
    config = Config.parse(
        {
            "data.dataset": str(tmp_path / "a.csv"),
            "data.kind": "features",
            "data.scheme": "natural",
            "data.partition-column": "user",
            "data.num-clients": 2,
            "extractor.backbone": "mlp",
            "data.cache-dir": str(tmp_path / "cache"),
        }
    )
    data = configured_images(config)
    clients = configured_partition(config, data, num_clients=2)
    # User 0 has 24 rows, 1 and 2 have 18 each; a fifth of each is for the test.
    assert [len(client.train) for client in clients] == [19, 14]
    assert str(coverage(config, data, clients)[0]) == (
        "train: 33 of 47 samples are used; 14 are not: 2 of the 3 in the data are clients "
        "(data.num-clients), those with most training samples"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"extractor.backbone": "narrow"}, "reads images, and data.kind is features: use mlp or"),
        ({"data.size": 32}, "size = 32 is for images; kind = features has none"),
        ({"data.flip": True}, "flip = True is for images"),
        ({"data.dataset": "digits"}, "kind = features needs a table .* got the images digits"),
        (
            {"data.kind": "images", "data.feature-columns": "a"},
            "feature-columns = 'a' needs kind = features",
        ),
        ({"data.feature-means": "1"}, "got 0 names, 1 means and 0 deviations"),
        (
            {
                "data.feature-columns": "a",
                "data.feature-means": "1",
                "data.feature-deviations": "0",
            },
            "feature-deviations must be above 0, got 0.0",
        ),
        ({"contrast.view-size": 4}, "contrast.view-size = 4 is for images"),
        ({"data.feature-columns": "a,a"}, "a stands there twice"),
        (
            {"run.system": "aligned", "alignment.extractor": "filters"},
            "alignment.extractor = filters reads images",
        ),
    ],
)
def test_what_does_not_fit_a_table_is_refused(values: dict[str, Any], message: str) -> None:
    table = {"data.kind": "features", "data.dataset": "a.csv", "extractor.backbone": "mlp"}
    with pytest.raises(ConfigError, match=message):
        Config.parse(table | values)


def test_statistics_outside_the_budget_are_told() -> None:
    table = {"data.kind": "features", "data.dataset": "a.csv", "extractor.backbone": "mlp"}
    notes = [Config.parse(table | more).advice() for more in ({}, {"privacy.weights": True})]
    assert [any("no privacy budget covers" in note for note in told) for told in notes] == [
        False,
        True,
    ]


@given(st.integers(1, 6), st.floats(0, 3), st.floats(0, 0.9), st.integers(0, 99))
def test_views_touch_no_other_row(size: int, noise: float, mask: float, seed: int) -> None:
    def drawn(features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return FeatureViews(noise=noise, mask=mask)(features, torch.Generator().manual_seed(seed))

    features = torch.randn(4, size, 1, 1, generator=torch.Generator().manual_seed(1))
    before = drawn(features)
    assert all(torch.equal(*pair) for pair in zip(before, drawn(features), strict=True))
    other = features.clone()
    other[1] += 1
    for view, after in zip(before, drawn(other), strict=True):
        assert view.shape == features.shape
        assert torch.equal(view[[0, 2, 3]], after[[0, 2, 3]])


def test_views_by_hand() -> None:
    features = torch.full((2000, 5, 1, 1), 7.0)
    first, second = FeatureViews(noise=0.5, mask=0.3)(features, torch.Generator().manual_seed(0))
    seen = first[first != 0]
    # 10,000 draws: shares within 4 sqrt(0.3 0.7 / 10^4) = 0.019, deviations within 3 %.
    assert abs(seen.numel() / first.numel() - 0.7) < 0.019
    assert seen.std() == pytest.approx(0.5, rel=0.03)
    assert not torch.equal(first, second)
    for values, message in (({"noise": -1.0}, "noise is -1.0"), ({"mask": 1.0}, "mask is 1.0")):
        with pytest.raises(ConfigError, match=message):
            FeatureViews(**values)


def test_the_extractor_of_features() -> None:
    torch.manual_seed(0)
    extractor = build_extractor("mlp", in_channels=13, image_size=1, widths=(32, 16))
    latents = extractor(torch.randn(8, 13, 1, 1))
    assert latents.shape == (8, extractor.latent_dim) == (8, 16)
    assert latents.dtype == torch.float32
    rms = latents.square().mean(dim=1).sqrt()
    assert rms.detach().numpy() == pytest.approx(0.25, rel=1e-3)
    assert build_extractor("mlp", in_channels=3, image_size=(8, 12)).latent_dim == 128
    for options, message in (
        ({"widths": ()}, "widths of mlp are"),
        ({"stem": "patch"}, "mlp has no maps for stem 'patch'"),
        ({"pool": "multi"}, "mlp has no maps for pool 'multi'"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_extractor("mlp", in_channels=13, image_size=1, **options)
