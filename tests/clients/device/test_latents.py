from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from torch import Tensor

from nmoe_flower.clients.device import Device, device_of, latents, latents_of, predict
from nmoe_flower.config import Config


def device(folder: Path, **values: Any) -> Device:
    config = Config.parse(
        {
            "run.out": str(folder), "data.cache-dir": str(folder / "cache"),
            "extractor.backbone": "digits", **values,
        }
    )  # fmt: skip
    node = {"partition-id": 1, "num-partitions": 3}
    return device_of(Context(1, 1, node, RecordDict(), config.flat()))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images of every pass over images so far."""
    counted: list[int] = []

    def count(device: Device, network: Any, images: np.ndarray, indices: np.ndarray) -> Tensor:
        counted.append(len(indices))
        return predict(device, network, images, indices)

    monkeypatch.setattr(latents, "predict", count)
    return counted


def test_they_are_computed_once_for_an_extractor(tmp_path: Path, passes: list[int]) -> None:
    one = device(tmp_path)
    network = one.fresh_classifier()
    first = latents_of(one, network.extractor)
    images = [len(i) for i in (one.indices.train, one.indices.test_local, one.indices.test_iid)]
    assert passes == images
    again = latents_of(one, one.fresh_classifier().extractor)
    assert passes == images
    assert first.keys() == again.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(again[name], value)


def test_another_extractor_has_others(tmp_path: Path, passes: list[int]) -> None:
    one = device(tmp_path)
    network = one.fresh_classifier()
    before = latents_of(one, network.extractor)["train"]
    for parameter in network.extractor.parameters():
        parameter.data.mul_(2)
    after = latents_of(one, network.extractor)["train"]
    assert len(passes) == 6
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(one.store.load("latents")["train"], after)


def test_another_split_of_the_same_images_has_others(tmp_path: Path, passes: list[int]) -> None:
    """A store may outlive a run's settings: with folds nothing is held out."""
    held, folded = device(tmp_path), device(tmp_path, **{"gate.folds": 2})
    assert held.store.folder == folded.store.folder
    network = held.fresh_classifier()
    some = latents_of(held, network.extractor)["holdout"]
    every = latents_of(folded, network.extractor)["holdout"]
    assert len(passes) == 6
    assert len(some) < len(every) == len(folded.indices.train)


def test_a_damaged_file_is_computed_again(tmp_path: Path, passes: list[int]) -> None:
    one = device(tmp_path)
    network = one.fresh_classifier()
    first = latents_of(one, network.extractor)["train"]
    (one.store.folder / "latents.safetensors").write_bytes(b"cut")
    np.testing.assert_array_equal(latents_of(one, network.extractor)["train"], first)
    assert len(passes) == 6


def test_those_of_a_last_test_in_stage_1_are_not_computed_again(
    tmp_path: Path, passes: list[int]
) -> None:
    one = device(tmp_path)
    network = one.fresh_classifier()
    tested = latents.latents_of_tests(one, network.extractor)
    sizes = [len(rows) for rows in (one.indices.test_local, one.indices.test_iid)]
    assert passes == sizes
    found = latents_of(one, network.extractor)
    assert passes == [*sizes, len(one.indices.train)]
    for name in ("local", "iid"):
        np.testing.assert_array_equal(found[name], tested[name])
    assert not one.store.has("test-latents")


def test_those_of_a_test_before_the_last_round_are_of_no_use(
    tmp_path: Path, passes: list[int]
) -> None:
    one = device(tmp_path)
    network = one.fresh_classifier()
    tested = latents.latents_of_tests(one, network.extractor)
    for parameter in network.extractor.parameters():
        parameter.data.mul_(2)
    found = latents_of(one, network.extractor)
    assert len(passes) == 5
    assert not np.array_equal(found["local"], tested["local"])


def test_what_is_said_to_latents_is_the_whole_network_of_the_images(tmp_path: Path) -> None:
    one = device(tmp_path)
    network = one.fresh_classifier()
    seen = latents.latents_of_tests(one, network.extractor)["iid"]
    whole = predict(one, network, one.data.test.images, one.indices.test_iid)
    apart = latents.said_to(one, network.head, seen)
    np.testing.assert_allclose(apart.numpy(), whole.numpy(), rtol=1e-5, atol=1e-6)
