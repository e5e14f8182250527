"""Images seen in domains, classes under other names: who gets what, and what each of them shows."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nmoe_flower import cli
from nmoe_flower.catalogue import DOMAINS
from nmoe_flower.config import Config
from nmoe_flower.data import (
    ImageData,
    Split,
    configured_images,
    configured_partition,
    in_domains,
    load_images,
    names_of_clients,
    seen_in,
)
from nmoe_flower.errors import ConfigError, DataError, NMoEError

FOUR = ("clean", "rot90", "invert", "blur")
SQUARES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def digits(cache: Path) -> ImageData:
    return load_images("digits", cache_dir=cache)


def dealt(cache: Path, **values: object) -> tuple[Config, ImageData]:
    set_ = {name.replace("_", "-"): value for name, value in values.items()}
    seed = set_.pop("seed", 0)
    config = Config.parse(
        {
            "data.scheme": "natural", "data.num-clients": 4, "data.cache-dir": str(cache),
            "run.seed": seed, **{f"data.{name}": value for name, value in set_.items()},
        }
    )  # fmt: skip
    return config, configured_images(config)


# --- what a domain shows ---


def test_what_each_domain_shows() -> None:
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)

    def shown(name: str) -> list[list[int]]:
        return seen_in(name, image)[0, :, :, 0].tolist()

    assert shown("clean") == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert shown("rot90") == [[3, 7, 11, 15], [2, 6, 10, 14], [1, 5, 9, 13], [0, 4, 8, 12]]
    assert shown("rot180") == [[15, 14, 13, 12], [11, 10, 9, 8], [7, 6, 5, 4], [3, 2, 1, 0]]
    assert shown("rot270") == [[12, 8, 4, 0], [13, 9, 5, 1], [14, 10, 6, 2], [15, 11, 7, 3]]
    assert shown("invert")[0] == [255, 254, 253, 252]
    assert shown("gray") == shown("clean")
    # From the middle, 1.5, in steps of 1 / 1.6 = 0.625 pixels: the first is at 0.5625, where
    # 4 y + x is 2.8125; one step right it is 3.4375, one step down 5.3125.
    assert shown("zoom")[0] == [3, 3, 4, 5]
    assert shown("zoom")[1] == [5, 6, 7, 7]


def test_grey_is_the_luma_of_bt_601() -> None:
    image = np.array([[[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]]]], np.uint8)
    # 0.299 * 255 = 76.2, 0.587 * 255 = 149.7, 0.114 * 255 = 29.1; 2.99 + 11.74 + 3.42 = 18.15.
    assert seen_in("gray", image)[0, :, :, 0].tolist() == [[76, 150], [29, 18]]
    assert (seen_in("gray", image) == seen_in("gray", image)[..., :1]).all()


def test_blur_spreads_a_point_by_its_deviation_and_leaves_an_even_image() -> None:
    even = np.full((1, 32, 32, 3), 77, np.uint8)
    assert (seen_in("blur", even) == 77).all()
    half = np.zeros((1, 32, 32, 1), np.uint8)
    half[:, :, 16:] = 200
    row = seen_in("blur", half)[0, 0, :, 0].astype(float)
    # An edge becomes the normal distribution function with a deviation of 1.5 pixels.
    wanted = [100 * (1 + math.erf((x - 15.5) / 1.5 / math.sqrt(2))) for x in range(32)]
    assert np.abs(row - wanted).max() < 3


def test_noise_has_its_deviation_and_is_the_images_own() -> None:
    grey = np.full((4, 32, 32, 3), 128, np.uint8)
    grey[:, 0, 0, 0] = range(4)
    shown = seen_in("noise", grey)
    assert 38 < (shown.astype(float) - grey).std() < 41
    assert not np.array_equal(shown[0], shown[1])
    assert np.array_equal(seen_in("noise", grey[2:3])[0], shown[2])


def test_jpeg_keeps_means_and_loses_detail() -> None:
    shown = seen_in("jpeg5", np.full((1, 16, 16, 3), 90, np.uint8)).astype(int)
    assert np.abs(shown - 90).max() <= 20
    fine = np.random.default_rng(0).integers(118, 138, (1, 16, 16, 1), dtype=np.uint8)
    assert seen_in("jpeg5", fine).std() == 0 < fine.std()


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(DOMAINS)),
    count=st.integers(1, 4),
    side=st.integers(1, 12),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_every_domain_shows_each_image_by_itself(
    name: str, count: int, side: int, channels: int, seed: int
) -> None:
    shape = (count, side, side, channels)
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    before = images.copy()
    shown = seen_in(name, images)
    assert (shown.dtype, shown.shape) == (np.uint8, shape)
    assert np.array_equal(images, before)
    for place in range(count):
        assert np.array_equal(seen_in(name, images[place : place + 1])[0], shown[place])


def test_turns_come_round() -> None:
    for name, times in (("rot90", 4), ("rot180", 2), ("rot270", 4), ("invert", 2)):
        shown = SQUARES
        for _ in range(times):
            shown = np.ascontiguousarray(seen_in(name, shown))
        assert np.array_equal(shown, SQUARES)


# --- who gets what ---


def test_every_image_is_seen_once_in_its_clients_domain(digits: ImageData, cache: Path) -> None:
    config, data = dealt(cache, domains=FOUR)
    assert data.client_names == FOUR == tuple(names_of_clients(config, data))
    for clean, split in ((digits.train, data.train), (digits.test, data.test)):
        assert split.clients is not None
        assert np.array_equal(split.labels, clean.labels)
        for code, name in enumerate(FOUR):
            rows = np.flatnonzero(split.clients == code)
            assert np.array_equal(split.images[rows], seen_in(name, clean.images[rows]))
        held = np.zeros((4, 10), int)
        np.add.at(held, (split.clients, split.labels), 1)
        assert np.ptp(held, axis=0).max() <= 1  # every class alike
        assert np.ptp(held.sum(axis=1)) <= 1
    parts = configured_partition(config, data, num_clients=4)
    assert sorted(np.concatenate([part.train for part in parts])) == list(range(len(data.train)))


@pytest.mark.parametrize("domains", [FOUR, ("clean", "invert", "rot180"), tuple(DOMAINS)])
def test_the_iid_test_has_every_domain_and_every_class_alike(
    cache: Path, domains: tuple[str, ...]
) -> None:
    config, data = dealt(cache, domains=domains, num_clients=len(domains))
    parts = configured_partition(config, data, num_clients=len(domains))
    assert data.test.clients is not None
    for client, part in enumerate(parts):
        assert (data.test.clients[part.test_local] == client).all()
        size = len(part.test_iid)
        assert size >= 30
        for codes, kinds in ((data.test.clients, len(domains)), (data.test.labels, 10)):
            held = np.bincount(codes[part.test_iid], minlength=kinds)
            assert np.abs(held - size / kinds).max() <= 3, held
    everyone = np.concatenate([part.test_iid for part in parts])
    assert len(np.unique(everyone)) == len(everyone)


def test_domains_without_a_device_are_tested_too(cache: Path) -> None:
    config, data = dealt(cache, domains=FOUR, num_clients=2)
    assert names_of_clients(config, data) == ["clean", "rot90"]
    parts = configured_partition(config, data, num_clients=2)
    assert data.train.clients is not None
    assert data.test.clients is not None
    assert set(data.train.clients[parts[1].train]) == {1}
    assert np.bincount(data.test.clients[parts[0].test_iid]).min() >= 20


def test_another_seed_deals_anew_and_the_same_one_does_not(cache: Path) -> None:
    data = [dealt(cache, domains=FOUR, seed=seed)[1] for seed in (0, 0, 1)]
    prints = [one.fingerprint for one in data]
    assert prints[0] == prints[1] != prints[2]
    assert not np.array_equal(data[0].train.clients, data[2].train.clients)
    other = dealt(cache, domains=(*FOUR[:3], "zoom"))[1]
    assert other.fingerprint != prints[0]


def test_one_damaged_entry_is_made_anew(tmp_path: Path) -> None:
    _, before = dealt(tmp_path, domains=FOUR)
    (entry,) = (tmp_path / "images").glob("domains-*")
    (entry / "train-clients.npy").write_bytes(b"")
    _, after = dealt(tmp_path, domains=FOUR)
    assert before.fingerprint == after.fingerprint


def test_equal_shares_of_domains_do_not_shrink_a_test_of_uneven_people(tmp_path: Path) -> None:
    """Somebody's own column ``domain``: alike where they can be, else as it always was."""
    Image.new("L", (4, 4)).save(tmp_path / "one.png")
    cell = {"bytes": (tmp_path / "one.png").read_bytes(), "path": None}
    for name, few in (("even", 40), ("uneven", 5)):
        domains = ["art"] * 200 + ["photo"] * 200 + ["sketch"] * few
        labels = [row % 2 for row in range(len(domains))]
        table = {"image": [cell] * len(labels), "label": labels, "domain": domains}
        (tmp_path / name).mkdir()
        pq.write_table(pa.table(table), tmp_path / name / "train.parquet")
        config, data = dealt(
            tmp_path, dataset=str(tmp_path / name), num_clients=3, partition_column="domain"
        )
        assert names_of_clients(config, data) == ["art", "photo", "sketch"]
        parts = configured_partition(config, data, num_clients=3)
        assert data.test.clients is not None
        held = [np.bincount(data.test.clients[part.test_iid], minlength=3) for part in parts]
        if name == "uneven":  # one sketch in five is tested on: 1 of 81
            assert [len(part.test_iid) for part in parts] == [26, 26, 26]
        else:  # 8 sketches: 4 of each class, for three clients; equal shares leave 8 of 29
            assert np.array(held).sum(axis=0)[2] <= 8


# --- other names of the classes ---


def order_of(before: np.ndarray, after: np.ndarray) -> list[int]:
    """What each class, in order, is called afterwards: one name each."""
    pairs = sorted(set(zip(before.tolist(), after.tolist(), strict=True)))
    assert [cls for cls, _ in pairs] == sorted({name for _, name in pairs})
    return [name for _, name in pairs]


def test_each_client_calls_the_classes_by_its_own_permutation(
    digits: ImageData, cache: Path
) -> None:
    _, plain = dealt(cache, domains=FOUR)
    _, data = dealt(cache, domains=FOUR, renamings=3)
    assert data.train.clients is not None
    orders = []
    for client in range(4):
        rows = np.flatnonzero(data.train.clients == client)
        orders.append(order_of(plain.train.labels[rows], data.train.labels[rows]))
        assert sorted(orders[-1]) == list(range(10))
    assert orders[0] == list(range(10)) == sorted(orders[1])
    assert orders[3] == orders[0]
    assert len({*map(tuple, orders)}) == 3
    assert data.fingerprint != plain.fingerprint
    assert data.images_fingerprint == plain.fingerprint == plain.images_fingerprint
    assert np.array_equal(data.train.images, plain.train.images)


def test_hidden_concepts_share_clean_images_alike(digits: ImageData, cache: Path) -> None:
    config, data = dealt(cache, renamings=2)
    assert data.client_names == ("0", "1", "2", "3")
    assert np.array_equal(data.test.images, digits.test.images)
    assert data.images_fingerprint == digits.fingerprint
    assert data.train.clients is not None
    kept = data.train.clients % 2 == 0
    assert np.array_equal(data.train.labels[kept], digits.train.labels[kept])
    assert not np.array_equal(data.train.labels, digits.train.labels)
    parts = configured_partition(config, data, num_clients=4)
    assert {len(part.train) for part in parts} <= {359, 360}
    assert dealt(cache, renamings=2, num_clients=2)[1].fingerprint != data.fingerprint


@pytest.mark.parametrize("renamings", [2, 6])
def test_as_many_orders_as_there_are(tmp_path: Path, renamings: int) -> None:
    split = Split(np.zeros((30, 2, 2, 1), np.uint8), np.arange(30) % 3)
    data = ImageData("made", split, split, ("a", "b", "c"), "0")
    found = in_domains(
        data, domains=(), renamings=renamings, num_clients=6, cache_dir=tmp_path, seed=1
    )
    assert found.train.clients is not None
    rows = [np.flatnonzero(found.train.clients == client) for client in range(6)]
    orders = {tuple(order_of(split.labels[held], found.train.labels[held])) for held in rows}
    assert len(orders) == renamings
    with pytest.raises(DataError, match=r"is 7: 3 classes have 6 orders; allowed: 0 to 6"):
        in_domains(data, domains=(), renamings=7, num_clients=8, cache_dir=tmp_path)


# --- refusals ---


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scheme": "iid", "domains": FOUR}, r"domains = clean, .* scheme = iid does not look"),
        ({"scheme": "dominant", "renamings": 2}, r"renamings = 2 makes .* use scheme = natural"),
        ({"domains": ("clean", "upside-down")}, r"'clean', 'rot90'.*got 'upside-down'"),
        ({"domains": ("clean", "clean")}, r"clean stands there twice"),
        ({"domains": FOUR, "num_clients": 5}, r"num-clients = 5 needs as many domains, got 4"),
        ({"domains": FOUR, "partition_column": "user"}, r"partition-column = user .* and so does"),
        ({"renamings": 5}, r"renamings = 5 is more .* allowed: 0 to 4"),
        (
            {"kind": "features", "dataset": "a.csv", "domains": FOUR},
            r"domains = clean.* for images, got kind",
        ),
        ({"domains": ("clean", "no_such_module:f"), "num_clients": 2}, r"no module 'no_such_mod"),
    ],
)
def test_what_cannot_be_is_refused(cache: Path, values: dict[str, object], message: str) -> None:
    with pytest.raises(NMoEError, match=message):
        dealt(cache, **values)


def test_a_quarter_turn_of_oblong_images_is_refused(tmp_path: Path) -> None:
    for cls in ("cat", "dog"):
        (tmp_path / "set" / cls).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (6, 4), (number, 0, 0)).save(tmp_path / "set" / cls / f"{number}.png")
    values = {"dataset": str(tmp_path / "set"), "num_clients": 2}
    with pytest.raises(ConfigError, match=r"data.domains = rot90: a quarter .* got 6x4 .*size = 4"):
        dealt(tmp_path, **values, domains=("clean", "rot90"))
    _, data = dealt(tmp_path, **values, domains=("clean", "rot180"))
    assert data.image_shape == (3, 4, 6)


OWN = """
import numpy as np

def dark(images):
    return images // 2

def floats(images):
    return images / 2

def small(images):
    return images[:, ::2]

def none(images):
    return None

def broken(images):
    raise RuntimeError("no light")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of one's own with domains in it."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_light.py").write_text(OWN)


@pytest.mark.usefixtures("own")
def test_a_domain_of_ones_own(tmp_path: Path, digits: ImageData) -> None:
    _, data = dealt(tmp_path, domains=("clean", "my_light:dark"), num_clients=2)
    assert data.client_names == ("clean", "my_light:dark")
    assert data.train.clients is not None
    rows = np.flatnonzero(data.train.clients == 1)
    assert np.array_equal(data.train.images[rows], digits.train.images[rows] // 2)
    for name, told in (
        ("floats", r"came back as float64 \[\d+, 8, 8, 1\]; allowed: uint8 of the same shape"),
        ("small", r"came back as uint8 \[\d+, 4, 8, 1\]"),
        ("none", r"came back as NoneType"),
        ("broken", r"raised RuntimeError: no light"),
        ("missing", r"has no 'missing'"),
    ):
        with pytest.raises(ConfigError, match=rf"data.domains = my_light:{name}.*{told}"):
            dealt(tmp_path, domains=("clean", f"my_light:{name}"), num_clients=2)


# --- nmoe partition ---


def test_partition_shows_domains_and_draws_pictures(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_ = ["data.scheme=natural", f"data.domains={','.join(FOUR)}", "data.num-clients=4"]
    set_ += [f"data.cache-dir={cache}", "data.renamings=2"]
    drawn = tmp_path / "who.png"
    assert cli.main(["partition", "--set", *set_, "--out", str(drawn)]) == 0
    told = capsys.readouterr().out
    assert [f"{number} {name}" in told for number, name in enumerate(FOUR)] == [True] * 4
    with Image.open(drawn) as picture:
        assert picture.size[1] > 200 * 4  # the bars, 2.6 inches, and pictures below them
