from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

from nmoe_flower.clients.device import device_of
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError


def context(partition: int, tmp_path: Path, **values: Any) -> Context:
    config = Config.parse(
        {
            "run.out": str(tmp_path), "data.cache-dir": str(tmp_path / "cache"),
            "extractor.backbone": "linear", **values,
        }
    )  # fmt: skip
    node = {"partition-id": partition, "num-partitions": 3}
    return Context(1, 1, node, RecordDict(), config.flat())


def test_a_node_without_a_partition_is_told_how_to_get_one() -> None:
    with pytest.raises(ConfigError, match="no partition-id and num-partitions; start it with"):
        device_of(Context(1, 1, {}, RecordDict(), {}))


def test_the_nodes_decide_how_many_clients_there_are(tmp_path: Path) -> None:
    device = device_of(context(2, tmp_path))
    assert (device.partition, device.num_clients, device.config.data.num_clients) == (2, 3, 3)
    assert device.store.folder == tmp_path / "nmoe" / "clients" / "2"
    assert device_of(context(2, tmp_path)) is device


def test_clients_share_their_start_but_not_their_streams_or_images(tmp_path: Path) -> None:
    one, other = (device_of(context(partition, tmp_path)) for partition in (0, 1))
    state = torch.random.get_rng_state()
    first, second = one.fresh_classifier().state_dict(), other.fresh_classifier().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    gates = [device.fresh_gate(4).state_dict() for device in (one, other)]
    assert all(torch.equal(gates[0][name], gates[1][name]) for name in gates[0])
    assert torch.equal(state, torch.random.get_rng_state())
    assert one.seed("batches") != other.seed("batches")
    assert not np.intersect1d(one.indices.train, other.indices.train).size


def test_networks_to_load_weights_into_are_one_per_process_and_fresh_ones_are_not(
    tmp_path: Path,
) -> None:
    one, other = (device_of(context(partition, tmp_path)) for partition in (0, 1))
    for name in ("gate", "expert", "head"):
        assert getattr(one, name)(4) is getattr(other, name)(4)
    assert one.head(4, linear=True) is not one.head(4)
    assert one.gate(4, num_experts=2) is not one.gate(4)
    loaded = one.gate(4)
    for parameter in loaded.parameters():
        parameter.data.add_(1)
    fresh = other.fresh_gate(4)
    assert all(
        not torch.equal(a, b) for a, b in zip(loaded.parameters(), fresh.parameters(), strict=True)
    )
    assert one.fresh_expert(4) is not one.fresh_expert(4)


def test_another_seed_starts_elsewhere(tmp_path: Path) -> None:
    one, other = (device_of(context(0, tmp_path, **{"run.seed": seed})) for seed in (0, 1))
    first, second = one.fresh_classifier().state_dict(), other.fresh_classifier().state_dict()
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_the_prior_is_that_of_the_own_labels(tmp_path: Path) -> None:
    """Smoothed by half a sample per class."""
    device = device_of(context(1, tmp_path))
    counts = np.bincount(device.train_labels, minlength=10) + 0.5
    np.testing.assert_allclose(device.log_prior.exp(), counts / counts.sum(), rtol=1e-5)
    assert counts.argmax() == 1


def test_what_all_devices_see_is_held_once_a_process(tmp_path: Path) -> None:
    """Of N devices each had the labels of all and everybody's shares: N squared bytes."""
    values = {"data.scheme": "iid", "data.train-per-client": 5}
    first, second = (device_of(context(p, tmp_path, **values)) for p in (0, 1))
    assert first is not second
    assert first.everyone is second.everyone
    assert first.data is second.data
    other = device_of(context(0, tmp_path, **{**values, "run.seed": 1}))
    assert other.everyone is not first.everyone
    assert set(other.indices.train) != set(first.indices.train)
