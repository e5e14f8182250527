import pickle
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe_flower import data as package
from nmoe_flower.data import (
    DominantClassPartitioner,
    ImageData,
    Split,
    dominant_share_from_tau,
    label_counts,
    load_images,
    partition_clients,
)
from nmoe_flower.errors import ConfigError, DataError

SCHEMES = ("dominant", "iid", "dirichlet", "pathological")
PARTS = ("train", "test_local", "test_iid")


def make_data(train_labels, test_labels, num_classes):
    """Image data of which only labels and fingerprint matter."""
    splits = [
        Split(np.zeros((len(labels), 1, 1, 1), np.uint8), np.asarray(labels, np.int64))
        for labels in (train_labels, test_labels)
    ]
    names = tuple(f"c{cls}" for cls in range(num_classes))
    return ImageData("made", *splits, names, f"{hash((tuple(train_labels), tuple(test_labels)))}")


def even(per_class, num_classes):
    return np.tile(np.arange(num_classes), per_class)


def as_dataset(labels, **options):
    return datasets.Dataset.from_dict({"label": labels, "row": range(len(labels))}, **options)


def rows_of(partitioner, order=None):
    ids = range(partitioner.num_partitions) if order is None else order
    return {i: list(partitioner.load_partition(i)["row"]) for i in ids}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def digits(cache):
    return load_images("digits", cache_dir=cache)


@pytest.fixture(scope="module")
def cifar_like():
    return make_data(even(5000, 10), even(1000, 10), 10)


@pytest.mark.parametrize(
    ("tau", "train_dominant", "train_other", "test_dominant", "test_other"),
    [
        # 2500 / (1 + tau) and 2500 tau / (1 + tau) / 9; the same with 1000 for the test split.
        (0.5, 1667, {92, 93}, 667, {37}),
        (0.3, 1923, {64, 65}, 769, {25, 26}),
        (0.2, 2083, {46, 47}, 833, {18, 19}),
    ],
)
def test_counts_of_the_paper(
    cifar_like, tmp_path, tau, train_dominant, train_other, test_dominant, test_other
):
    clients = partition_clients(
        cifar_like,
        scheme="dominant",
        num_clients=10,
        tau=tau,
        train_per_client=2500,
        test_per_client=1000,
        cache_dir=tmp_path,
    )
    for labels, part, dominant, other in (
        (cifar_like.train.labels, "train", train_dominant, train_other),
        (cifar_like.test.labels, "test_local", test_dominant, test_other),
    ):
        counts = label_counts(labels, [getattr(c, part) for c in clients], 10)
        assert counts.diagonal().tolist() == [dominant] * 10
        assert set(counts[~np.eye(10, dtype=bool)].tolist()) == other
        # Ten clients: every class total is equal.
        assert set(counts.sum(axis=0).tolist()) == {counts.sum() // 10}
    # The paper's local tests are the entire test set, each sample once.
    held = np.concatenate([client.test_local for client in clients])
    np.testing.assert_array_equal(np.sort(held), np.arange(10_000))


@pytest.mark.parametrize("tau", [0.0, -0.3, float("nan"), float("inf")])
def test_tau_out_of_range(tau):
    with pytest.raises(ConfigError, match=r"tau is .*allowed: a finite number above 0"):
        dominant_share_from_tau(tau)


def test_digits_defaults_leave_enough_for_every_client(digits, cache):
    clients = partition_clients(digits, scheme="dominant", num_clients=10, cache_dir=cache)
    # The rarest digit has 174 images, 139 of them for training: balanced totals allow 139 each.
    assert {len(client.train) for client in clients} == {139}
    assert {len(client.test_local) for client in clients} == {35}
    assert {len(client.test_iid) for client in clients} == {35}
    counts = label_counts(digits.train.labels, [client.train for client in clients], 10)
    assert counts.argmax(axis=1).tolist() == list(range(10))
    # 139 / 1.3 = 106.92, the largest remainder.
    assert set(counts.diagonal().tolist()) == {107}


@st.composite
def dominant_cases(draw):
    num_classes = draw(st.integers(2, 7))
    sizes = draw(st.lists(st.integers(5, 60), min_size=num_classes, max_size=num_classes))
    labels = np.repeat(np.arange(num_classes), sizes)
    order = np.random.default_rng(draw(st.integers(0, 9))).permutation(len(labels))
    clients = draw(st.integers(1, 9))
    share = draw(st.floats(1 / num_classes, 1))
    return labels[order], clients, num_classes, share, draw(st.integers(0, 5))


@settings(deadline=None, max_examples=30)
@given(dominant_cases())
def test_dominant_partitions_are_exact_disjoint_and_repeatable(case):
    labels, clients, num_classes, share, seed = case

    def build(size=None):
        partitioner = DominantClassPartitioner(clients, share, partition_size=size, seed=seed)
        partitioner.dataset = as_dataset(labels)
        return partitioner

    try:
        rows = rows_of(build())
    except DataError:
        with pytest.raises(DataError, match="allowed: at most 0 samples per client"):
            rows_of(build(1))
        return
    sizes = {len(row) for row in rows.values()}
    assert len(sizes) == 1
    size = sizes.pop()
    everything = np.concatenate(list(rows.values()))
    assert len(np.unique(everything)) == clients * size
    counts = label_counts(labels, list(rows.values()), num_classes)
    for client, row in enumerate(counts):
        others = np.delete(row, client % num_classes)
        assert abs(row[client % num_classes] - size * share) <= 0.5
        assert np.ptp(others) <= 1
    assert rows_of(build(), order=reversed(range(clients))) == rows
    # The default size is the largest: one more per client does not fit.
    with pytest.raises(DataError, match=f"allowed: at most {size} samples? per client"):
        rows_of(build(size + 1))


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 9), st.integers(1, 3), st.integers(1, 50), st.floats(0, 1))
def test_class_totals_are_level_when_every_class_has_as_many_clients(classes, rounds, size, mix):
    share = 1 / classes + mix * (1 - 1 / classes)
    clients = classes * rounds
    labels = even(rounds * size, classes)  # not one sample to spare
    partitioner = DominantClassPartitioner(clients, share, partition_size=size)
    partitioner.dataset = as_dataset(labels)
    everything = np.concatenate(list(rows_of(partitioner).values()))
    np.testing.assert_array_equal(np.sort(everything), np.arange(len(labels)))


def test_text_and_class_label_columns_split_alike():
    codes = [0, 1, 2] * 12
    text = [("ant", "bee", "cow")[code] for code in codes]
    features = datasets.Features(
        {"label": datasets.ClassLabel(names=["ant", "bee", "cow"]), "row": datasets.Value("int64")}
    )
    found = []
    for dataset in (as_dataset(codes), as_dataset(text), as_dataset(codes, features=features)):
        partitioner = DominantClassPartitioner(4, 0.5, partition_size=8)
        partitioner.dataset = dataset
        found.append(rows_of(partitioner))
    assert found[0] == found[1] == found[2]
    # 8 samples: 4 of the dominant class, 2 and 2 of the others; client 3 has class 0 again.
    counts = label_counts(codes, list(found[0].values()), 3)
    assert counts.tolist() == [[4, 2, 2], [2, 4, 2], [2, 2, 4], [4, 2, 2]]


def test_seed_changes_the_samples_but_not_the_counts():
    found = []
    for seed in (0, 1):
        partitioner = DominantClassPartitioner(3, 0.6, partition_size=10, seed=seed)
        partitioner.dataset = as_dataset(even(20, 3))
        found.append(rows_of(partitioner))
    assert found[0] != found[1]
    first, second = (label_counts(even(20, 3), list(rows.values()), 3) for rows in found)
    np.testing.assert_array_equal(first, second)


def test_partitioner_is_a_flower_partitioner_and_survives_pickling():
    from flwr_datasets.partitioner import Partitioner

    partitioner = DominantClassPartitioner(2, 0.5)
    assert isinstance(partitioner, Partitioner)
    assert type(pickle.loads(pickle.dumps(partitioner))) is DominantClassPartitioner


@pytest.mark.parametrize(
    ("arguments", "labels", "error", "message"),
    [
        ({"num_partitions": 0}, [0, 1], ConfigError, "number of clients is 0; allowed: 1 or more"),
        ({"dominant_share": 0.0}, [0, 1], ConfigError, "dominant share is 0.0; allowed"),
        ({"dominant_share": 1.2}, [0, 1], ConfigError, "dominant share is 1.2; allowed"),
        ({"dominant_share": float("nan")}, [0, 1], ConfigError, "dominant share is nan"),
        ({"dominant_share": 0.3}, [0, 1], DataError, r"0.3 is not possible with 2 .* 0.5 to 1"),
        ({"partition_size": 0}, [0, 1], ConfigError, "partition size is 0; allowed"),
        ({"partition_by": "kind"}, [0, 1], DataError, "no column 'kind'; the columns are label, r"),
        ({}, [0, 0, 0], DataError, "1 class.*at least 2"),
        ({}, [0, None, 1], DataError, "row 1 of column 'label' has no label"),
        ({"num_partitions": 4}, [0, 1, 0], DataError, "4 clients cannot share 3 samples"),
        (
            {"partition_size": 10, "dominant_share": 0.8},
            ["a"] * 9 + ["b"] * 30,
            DataError,
            # Two clients of 10 want 8 + 2 of "a"; with 9 samples each: 7 + 2.
            r"class 'a' of the data has 9 samples, but 2 clients with 10 samples each need 10; "
            r"allowed: at most 9 samples per client",
        ),
    ],
)
def test_bad_partitioner_arguments(arguments, labels, error, message):
    values = {"num_partitions": 2, "dominant_share": 0.8, **arguments}
    with pytest.raises(error, match=message):  # noqa: PT012 (either step may refuse)
        partitioner = DominantClassPartitioner(**values)
        partitioner.dataset = as_dataset(labels)
        partitioner.load_partition(0)


@pytest.mark.parametrize("partition_id", [-1, 2])
def test_unknown_partition(partition_id):
    partitioner = DominantClassPartitioner(2, 0.5)
    partitioner.dataset = as_dataset(even(4, 2))
    with pytest.raises(DataError, match=f"partition {partition_id}; allowed: 0 to 1"):
        partitioner.load_partition(partition_id)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("clients", [1, 4, 13])
def test_every_scheme_is_disjoint_and_evenly_tested(digits, cache, scheme, clients):
    found = partition_clients(digits, scheme=scheme, num_clients=clients, cache_dir=cache)
    assert len(found) == clients
    for part in PARTS:
        held = [getattr(client, part) for client in found]
        everything = np.concatenate(held)
        assert len(np.unique(everything)) == len(everything)
        assert min(len(indices) for indices in held) > 0
        assert everything.dtype == np.int64
        assert everything.max() < len(digits.train if part == "train" else digits.test)
        if part != "train":
            assert len({len(indices) for indices in held}) == 1
    balanced = label_counts(digits.test.labels, [client.test_iid for client in found], 10)
    assert np.ptp(balanced, axis=1).max() <= 1


@pytest.mark.parametrize("scheme", ["dirichlet", "pathological"])
def test_test_shares_follow_the_train_shares(digits, cache, scheme):
    found = partition_clients(digits, scheme=scheme, num_clients=8, alpha=0.4, cache_dir=cache)
    train = label_counts(digits.train.labels, [client.train for client in found], 10)
    test = label_counts(digits.test.labels, [client.test_local for client in found], 10)
    expected = train / train.sum(axis=1, keepdims=True) * test.sum(axis=1, keepdims=True)
    assert np.abs(test - expected).max() < 1


def test_pathological_clients_hold_neighbouring_classes(digits, cache):
    found = partition_clients(
        digits, scheme="pathological", num_clients=10, classes_per_client=3, cache_dir=cache
    )
    counts = label_counts(digits.train.labels, [client.train for client in found], 10)
    for client in range(10):
        held = {(client + step) % 10 for step in range(3)}
        assert set(np.flatnonzero(counts[client])) == held


def test_dirichlet_alpha_decides_the_skew(digits, cache):
    def skew(alpha):
        found = partition_clients(
            digits, scheme="dirichlet", num_clients=10, alpha=alpha, cache_dir=cache
        )
        counts = label_counts(digits.train.labels, [client.train for client in found], 10)
        return (counts.max(axis=1) / counts.sum(axis=1)).mean()

    assert skew(100.0) < 0.2 < skew(0.3)


def test_more_test_samples_than_disjoint_are_shared_but_never_twice(tmp_path):
    # Both clients hold only class 0 and 1 of 3; 20 test samples of each class.
    data = make_data(even(40, 2), even(20, 3), 3)
    data = replace(data, train=Split(data.train.images, even(40, 2)))
    found = partition_clients(
        data, scheme="pathological", num_clients=2, test_per_client=24, cache_dir=tmp_path
    )
    for client in found:
        assert len(set(client.test_local.tolist())) == 24
    # 2 x 12 wanted of each class, 20 there: 4 of each are shared.
    shared = set(found[0].test_local.tolist()) & set(found[1].test_local.tolist())
    assert len(shared) == 8


@pytest.mark.parametrize("scheme", SCHEMES)
def test_given_sizes_are_kept(digits, cache, scheme):
    found = partition_clients(
        digits,
        scheme=scheme,
        num_clients=5,
        train_per_client=40,
        test_per_client=12,
        cache_dir=cache,
    )
    assert {len(client.train) for client in found} == {40}
    assert {len(client.test_local) for client in found} == {12}
    assert {len(client.test_iid) for client in found} == {12}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_cold_and_warm_and_another_folder_agree(digits, tmp_path, scheme):
    def split(folder, seed=0):
        found = partition_clients(
            digits, scheme=scheme, num_clients=6, seed=seed, cache_dir=tmp_path / folder
        )
        return [getattr(client, part).tolist() for client in found for part in PARTS]

    cold = split("a")
    (stored,) = (tmp_path / "a" / "partitions").iterdir()
    assert split("a") == cold == split("b")
    assert split("a", seed=1) != cold
    with np.load(stored) as arrays:
        beyond = {
            name: array if name.endswith("_sizes") else array + len(digits.train)
            for name, array in arrays.items()
        }
    np.savez(stored, **beyond)
    assert split("a") == cold
    stored.write_bytes(stored.read_bytes()[:-200])
    assert split("a") == cold
    assert {path.suffix for path in stored.parent.iterdir()} == {".npz"}


@pytest.mark.parametrize("clients", [3, 7, 100])
def test_iid_is_what_flower_s_partitioner_deals(digits, clients, tmp_path):
    """Without its table per client, which takes seconds for a thousand clients."""
    from flwr_datasets.partitioner import IidPartitioner

    from nmoe_flower.seeds import numpy_stream

    size = len(digits.train.labels)
    partitioner = IidPartitioner(clients)
    order = numpy_stream(0, "partition", "iid", "train").permutation(size)
    partitioner.dataset = datasets.Dataset.from_dict({"position": order})
    dealt = partition_clients(digits, scheme="iid", num_clients=clients, cache_dir=tmp_path)
    for client in (0, 1, clients - 1):
        expected = partitioner.load_partition(client)["position"][: size // clients]
        assert dealt[client].train.tolist() == list(expected)


def test_a_warm_split_is_read_from_the_cache(digits, tmp_path, monkeypatch):
    cold = partition_clients(digits, scheme="iid", num_clients=3, cache_dir=tmp_path)
    monkeypatch.setattr(
        package.partition, "_split", lambda *arguments: pytest.fail("computed again")
    )
    warm = partition_clients(digits, scheme="iid", num_clients=3, cache_dir=tmp_path)
    for before, after in zip(cold, warm, strict=True):
        np.testing.assert_array_equal(before.train, after.train)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scheme": "random"}, ConfigError, "unknown scheme 'random'; allowed: dominant, iid, d"),
        ({"num_clients": 0}, ConfigError, "number of clients is 0"),
        ({"num_clients": 31}, DataError, "31 clients cannot share 30 samples of the test split"),
        ({"num_clients": 999}, DataError, "999 clients cannot share 90 samples of the train spl"),
        ({"tau": 0.0}, ConfigError, "tau is 0.0"),
        ({"tau": 2.5}, DataError, "0.2857 is not possible with 3 classes; .*tau .* at most 2"),
        ({"alpha": 0.0}, ConfigError, "alpha is 0.0; allowed"),
        ({"alpha": float("inf")}, ConfigError, "alpha is inf; allowed"),
        ({"classes_per_client": 0}, ConfigError, "classes_per_client is 0; allowed: 1"),
        (
            {"scheme": "pathological", "classes_per_client": 4},
            DataError,
            "classes_per_client is 4; allowed: 1 to 3",
        ),
        ({"train_per_client": -1}, ConfigError, "train_per_client is -1; allowed: 0"),
        ({"test_per_client": -1}, ConfigError, "test_per_client is -1; allowed: 0"),
        ({"train_per_client": 31}, DataError, "class 'c.' of the train split has 30 .* at most 30"),
        ({"test_per_client": 11}, DataError, "of the test split has 10 .* at most 10"),
        ({"scheme": "iid", "train_per_client": 31}, DataError, "train split each; .* at most 30"),
        ({"scheme": "iid", "test_per_client": 11}, DataError, "test split each; .* at most 10"),
        (
            {"scheme": "pathological", "test_per_client": 21},
            DataError,
            "class 'c.' of the test split has 10 samples, but client . needs 11 of its 21",
        ),
        (
            {"scheme": "dirichlet", "alpha": 1e-3, "num_clients": 20},
            DataError,
            "'dirichlet' cannot share 90 samples among 20 clients .alpha 0.001",
        ),
    ],
)
def test_bad_split_arguments(tmp_path, arguments, error, message):
    data = make_data(even(30, 3), even(10, 3), 3)
    values = {"scheme": "dominant", "num_clients": 3, **arguments}
    with pytest.raises(error, match=message):
        partition_clients(data, cache_dir=tmp_path, **values)
    assert not list(Path(tmp_path).iterdir())


def test_a_cache_that_cannot_be_written_is_named(digits, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write the data cache .*file"):
        partition_clients(digits, scheme="dominant", num_clients=3, cache_dir=tmp_path / "file")


def test_unknown_names_are_refused():
    for module in (package, package.partition):
        with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
            _ = module.Nothing
