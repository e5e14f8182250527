"""Validation samples: nobody trains on them, they are skewed alike, and nothing else changes."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nmoe_flower.clients.device import Device, Store
from nmoe_flower.config import Config
from nmoe_flower.data import (
    ClientIndices,
    ImageData,
    Split,
    configured_images,
    configured_partition,
    coverage,
    label_counts,
    partition_clients,
)
from nmoe_flower.errors import ConfigError, DataError

OWN = f"{__name__}:thirds"
SCHEMES = ("dominant", "iid", "dirichlet", "pathological", "natural", OWN)
PARTS = ("train", "test_local", "test_iid")


def thirds(
    labels: npt.NDArray[np.int64], num_clients: int, rng: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """Own code that leaves a third to nobody."""
    return np.array_split(rng.permutation(len(labels))[: 2 * len(labels) // 3], num_clients)


def made(size: int, classes: int, users: int, seed: int) -> ImageData:
    """Samples of which only label and owner matter, some classes scarcer than others."""
    rng = np.random.default_rng(seed)
    shares = rng.uniform(0.5, 1.5, classes)
    splits = []
    for count in (size, size // 2):
        labels = rng.permutation(
            np.concatenate(
                [np.arange(classes), rng.choice(classes, count, p=shares / shares.sum())]
            )
        )
        owners = rng.integers(users, size=len(labels))
        splits.append(Split(np.zeros((len(labels), 1, 1, 1), np.uint8), labels, owners))
    names = tuple(f"c{cls}" for cls in range(classes))
    users_named = tuple(f"u{user}" for user in range(users))
    key = f"{size}-{classes}-{users}-{seed}"
    return ImageData("made", *splits, names, key, users_named)


def attempt(data: ImageData, asked: dict[str, Any]) -> list[ClientIndices] | DataError:
    try:
        return partition_clients(data, **asked)
    except DataError as error:
        return error


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=10)
@given(
    seed=st.integers(0, 99),
    clients=st.integers(2, 5),
    limit=st.sampled_from([0, 12, 20]),
    wanted=st.integers(1, 15),
)
def test_nobody_trains_on_them_and_nothing_else_changes(
    folder: Path, scheme: str, seed: int, clients: int, limit: int, wanted: int
) -> None:
    data = made(240, 4, 5, seed)
    asked: dict[str, Any] = {"scheme": scheme, "num_clients": clients, "tau": 0.5, "seed": seed,
             "train_per_client": limit, "cache_dir": folder}  # fmt: skip
    plain, found = attempt(data, asked), attempt(data, asked | {"validation_per_client": wanted})
    assume(not isinstance(plain, DataError))  # too skewed for the sizes, with the key or without
    if isinstance(found, DataError):
        assert f"data.validation-per-client is {wanted}" in str(found)
        _allowed_is_allowed(data, str(found), asked)
        return
    aside = np.concatenate([client.validation for client in found])
    assert [len(client.validation) for client in found] == [wanted] * clients
    assert len(np.unique(aside)) == len(aside)
    assert not np.isin(aside, np.concatenate([client.train for client in found])).any()
    for before, after in zip(plain, found, strict=True):
        for part in PARTS[0 if limit else 1 :]:
            assert np.array_equal(getattr(before, part), getattr(after, part))
        if not limit:  # given up: what is left keeps its order
            whole = before.train
            assert np.array_equal(whole[~np.isin(whole, after.validation)], after.train)
            assert np.isin(after.validation, whole).all()
        if scheme == "natural":
            assert data.train.clients is not None
            owners = data.train.clients[np.concatenate([before.train, after.validation])]
            assert len(set(owners.tolist())) == 1
    if scheme != "natural" or not limit:
        _skewed_alike(data, plain, found)


def _skewed_alike(data: ImageData, plain: list[ClientIndices], found: list[ClientIndices]) -> None:
    """Class shares by largest remainders: no count is a whole sample off its quota.

    A class whose last training sample would go keeps it, and another class gives two at most.
    """
    labels, classes = data.train.labels, data.num_classes
    held = label_counts(labels, [client.train for client in plain], classes)
    given_up = label_counts(labels, [client.validation for client in found], classes)
    quotas = held / held.sum(axis=1, keepdims=True) * given_up.sum(axis=1, keepdims=True)
    kept = label_counts(labels, [client.train for client in found], classes)
    assert ((kept > 0) == (held > 0)).all()
    tight = (held - given_up <= 1) & (held > 0)
    slack = 1 + tight.sum(axis=1, keepdims=True)
    assert (np.abs(given_up - quotas) < slack + 1e-9).all()


def _allowed_is_allowed(data: ImageData, told: str, asked: dict[str, Any]) -> None:
    """The most that an error names works, and one more does not."""
    _, _, tail = told.partition("allowed: 0 to ")
    most = int(tail.split(",")[0]) if tail else 0
    for wanted, fails in ((most, False), (most + 1, True)):
        found = attempt(data, asked | {"validation_per_client": wanted})
        assert isinstance(found, DataError) == fails


def test_what_a_limit_leaves_over_is_shared_out_like_the_training_part(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(10), 5000)
    images = np.zeros((len(labels), 1, 1, 1), np.uint8)
    data = ImageData("made", Split(images, labels), Split(images[::5], labels[::5]),
                     tuple("abcdefghij"), "cifar-like")  # fmt: skip
    clients = partition_clients(
        data, scheme="dominant", num_clients=10, tau=0.3, train_per_client=2500,
        validation_per_client=500, cache_dir=tmp_path,
    )  # fmt: skip
    counts = label_counts(labels, [client.validation for client in clients], 10)
    # 1923 of 2500 are of the dominant class, 64 or 65 of each other one: a fifth of that.
    assert set(np.diag(counts)) <= {384, 385}
    assert set(counts[~np.eye(10, dtype=bool)]) <= {12, 13}


def test_a_class_keeps_a_sample_to_train_on(tmp_path: Path) -> None:
    labels = np.array([0] * 12 + [1] * 2 + [2] * 2)
    images = np.zeros((len(labels), 1, 1, 1), np.uint8)
    data = ImageData("made", Split(images, labels), Split(images, labels), tuple("abc"), "rare")
    asked: dict[str, Any] = {"scheme": OWN, "num_clients": 1, "cache_dir": tmp_path}
    (plain,) = partition_clients(data, **asked)
    most = len(plain.train) - len(np.unique(labels[plain.train]))
    (found,) = partition_clients(data, validation_per_client=most, **asked)
    assert np.bincount(labels[found.train]).tolist() == [1, 1, 1]
    with pytest.raises(DataError, match=f"keeps one of each; allowed: 0 to {most}"):
        partition_clients(data, validation_per_client=most + 1, **asked)


def test_numbers_below_zero_and_beyond_all_data_are_refused(tmp_path: Path) -> None:
    data = made(120, 3, 3, 0)
    asked: dict[str, Any] = {
        "scheme": "dominant",
        "num_clients": 3,
        "tau": 1.0,
        "cache_dir": tmp_path,
    }
    with pytest.raises(ConfigError, match="validation_per_client is -1"):
        partition_clients(data, validation_per_client=-1, **asked)
    for limit in (0, 10):
        with pytest.raises(DataError, match=f"data.validation-per-client is {10**30}"):
            partition_clients(data, validation_per_client=10**30, train_per_client=limit, **asked)


def test_where_nothing_is_left_none_are_allowed(tmp_path: Path) -> None:
    data = made(92, 4, 3, 1)  # 96 samples, 32 each
    with pytest.raises(
        DataError, match=r"the 0 training samples that .*; allowed: 0, or a smaller"
    ):
        partition_clients(
            data, scheme="iid", num_clients=3, train_per_client=32, validation_per_client=1,
            cache_dir=tmp_path,
        )  # fmt: skip


def test_what_is_given_up_is_the_only_reason_where_nothing_else_is_left(tmp_path: Path) -> None:
    data = made(92, 4, 3, 1)
    config = Config.parse(
        {"data.num-clients": 3, "data.scheme": "iid", "data.validation-per-client": 5,
         "data.cache-dir": str(tmp_path)}
    )  # fmt: skip
    train, *_ = coverage(config, data, configured_partition(config, data, num_clients=3))
    assert str(train) == (
        "train: 81 of 96 samples are used; 15 are not: 15 are for validation "
        "(data.validation-per-client)"
    )


def test_what_is_left_out_for_validation_is_told(warm_cache: Path) -> None:
    config = Config.parse(
        {"data.num-clients": 4, "data.train-per-client": 60, "data.validation-per-client": 25,
         "data.cache-dir": str(warm_cache)}
    )  # fmt: skip
    data = configured_images(config)
    train, *_ = coverage(config, data, configured_partition(config, data, num_clients=4))
    assert "100 are for validation (data.validation-per-client)" in str(train)
    assert (train.used, train.total) == (240, len(data.train))


def test_a_device_takes_them_from_its_own_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = ["size,weight,label", *(f"{n},{n * 2},{'cat' if n % 3 else 'dog'}" for n in range(60))]
    (folder / "train.csv").write_text("\n".join(rows))
    (folder / "test.csv").write_text("\n".join(rows[:31]))
    told = {
        "data.kind": "features", "data.dataset": str(folder), "data.num-clients": 2,
        "data.feature-columns": "size,weight", "data.feature-means": "0,0",
        "data.feature-deviations": "1,1", "data.validation-per-client": 12,
        "data.cache-dir": str(tmp_path / "cache"), "extractor.backbone": "mlp",
    }  # fmt: skip

    def device(**changes: object) -> Device:
        config = Config.parse({**told, **changes})
        return Device(config, 1, 2, Store(tmp_path / "kept"), folder=str(folder))

    own = device()
    indices = own.indices
    assert (len(indices.train), len(indices.validation)) == (48, 12)
    assert not np.intersect1d(indices.train, indices.validation).size
    # A third are dogs, and a third of what was given up.
    dog = own.data.class_names.index("dog")
    assert np.count_nonzero(own.tests["validation"].labels == dog) == 4
    assert list(own.tests) == ["local", "iid", "validation"]
    assert list(device(**{"data.validation-per-client": 0}).tests) == ["local", "iid"]
    with pytest.raises(DataError, match=r"the folder .*mine.* has 60 .*allowed: 0 to 58"):
        _ = device(**{"data.validation-per-client": 59}).indices
