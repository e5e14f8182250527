"""Three lines in Python: open, predict, read the answer."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nmoe_flower.certificates import Authority
from nmoe_flower.data import normalise
from nmoe_flower.errors import ConfigError, DataError, WireError
from nmoe_flower.inference.ask.client import Client
from nmoe_flower.inference.protocol.peers import PeerList
from nmoe_flower.inference.protocol.signing import sign_list
from nmoe_flower.models import LocalExperts, NMoE

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 2, 2, 1), np.uint8)

Make = Callable[..., Any]


@pytest.fixture
def around(neighbourhood: Make) -> Any:
    return neighbourhood(3)


@pytest.fixture
def opened(around: Any, bundle_of: Make, tmp_path: Path) -> Iterator[Make]:
    """Opens clients of a neighbourhood without certificates; all are closed at the end."""
    folder = bundle_of(around).folder
    around.list.write(tmp_path / "peers.json")
    made: list[Client] = []

    def make(**settings: Any) -> Client:
        settings = {"insecure": True, "deadline": 20.0} | settings
        made.append(Client.open(str(folder), peers=str(tmp_path / "peers.json"), **settings))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.mark.parametrize("top_k", [None, 2])
def test_the_answer_is_that_of_a_mixture_of_local_experts(
    opened: Make, around: Any, bundle_of: Make, top_k: int | None
) -> None:
    bundle = bundle_of(around)
    gate = bundle.gate()
    gate.top_k = top_k or 1
    mixture = NMoE(bundle.extractor(), gate, LocalExperts(around.experts))
    with torch.inference_mode():
        expected = mixture(normalise(IMAGES))
    answer = opened(top_k=top_k).predict(IMAGES)
    assert np.abs(answer.probabilities - expected.probabilities.numpy()).max() < 1e-6
    assert answer.classes == [
        ["ant", "bee", "cow"][i] for i in expected.probabilities.argmax(dim=1)
    ]
    assert answer.record.expert_ids.tolist() == expected.routing.expert_ids.tolist()
    assert len(np.unique(answer.record.answered_by)) > 1  # not everything is local


def test_grey_images_need_no_channel_axis(opened: Make) -> None:
    client = opened()
    flat, whole = client.predict(IMAGES[..., 0]), client.predict(IMAGES)
    assert np.array_equal(flat.probabilities, whole.probabilities)


@pytest.mark.parametrize(
    "images",
    [IMAGES.astype(np.float32), IMAGES[:, :1], IMAGES[0], IMAGES[0, 0, 0, 0], IMAGES[..., [0, 0]]],
)
def test_other_images_are_refused(opened: Make, images: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"allowed: uint8 of shape \[B, 2, 2, 1\]"):
        opened().predict(images)


def test_an_empty_batch_has_an_empty_answer(opened: Make) -> None:
    answer = opened().predict(IMAGES[:0])
    assert answer.probabilities.shape == (0, 3)
    assert answer.classes == []


def test_a_device_alone_answers_itself(opened: Make, around: Any) -> None:
    for partition in around.peers:
        around.stop(partition)
    answer = opened().predict(IMAGES)
    latents = normalise(IMAGES).flatten(1)
    with torch.inference_mode():
        expected = around.experts[0](latents).softmax(dim=1)
    assert np.abs(answer.probabilities - expected.numpy()).max() < 1e-6
    assert answer.record.answered_by.tolist() == [[0]] * 9


@pytest.mark.parametrize("top_k", [0, 5])
def test_no_more_experts_than_there_are(opened: Make, top_k: int) -> None:
    with pytest.raises(ConfigError, match="top_k must be between 1 and the number of experts, 4"):
        opened(top_k=top_k)


@pytest.mark.parametrize(
    "given",
    [
        {"insecure": False},
        {"insecure": False, "certificate": "a.pem", "key": "a.key"},
        {"insecure": True, "certificate": "a.pem", "key": "a.key", "authority": "ca.pem"},
    ],
)
def test_without_certificates_it_must_be_said(opened: Make, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="allowed: all three, or insecure"):
        opened(**given)


def test_with_certificates_a_newer_list_is_kept_in_the_file(
    neighbourhood: Make, bundle_of: Make, forest: Authority, member: Make, tmp_path: Path
) -> None:
    """So the device's own service, which watches the file, hands it on."""
    around = neighbourhood(2, {1: member("fox"), 2: member("owl")})
    now = int(time.time())
    first = PeerList((around[1].entry,), 1, now, now + 86_400)
    newer = PeerList((around[1].entry, around[2].entry), 2, now, now + 86_400)
    path, folder = tmp_path / "peers.json", bundle_of(around).folder
    forest.issue(tmp_path, "cat")
    (tmp_path / "ca.pem").write_bytes(forest.certificate_pem)
    keys = {
        "certificate": tmp_path / "cat.pem",
        "key": tmp_path / "cat.key",
        "authority": tmp_path / "ca.pem",
    }
    first.write(path)
    with pytest.raises(WireError, match="not signed"):
        Client.open(folder, peers=path, **keys)
    sign_list(first, forest).write(path)
    around[1].peer_list = sign_list(newer, forest)
    with Client.open(folder, peers=path, deadline=20.0, **keys) as client:
        assert client.experts.refresh()
        assert client.experts.peers == around[1].peer_list
    assert PeerList.load(path) == around[1].peer_list
    latest = sign_list(PeerList(newer.peers, 4, now, now + 86_400), forest)
    with Client.open(folder, peers=path, deadline=20.0, **keys) as client:
        latest.write(path)  # by another process
        around[1].peer_list = sign_list(PeerList(newer.peers, 3, now, now + 86_400), forest)
        assert client.experts.refresh()
    assert PeerList.load(path) == latest
