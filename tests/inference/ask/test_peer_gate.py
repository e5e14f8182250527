"""Peers are routed to by the embeddings in their list: as long as they are in it, and no others."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nmoe_flower.certificates import Authority, create_authority
from nmoe_flower.cli import main
from nmoe_flower.config import Config
from nmoe_flower.errors import BundleError, WireError
from nmoe_flower.inference import Bundle, Client
from nmoe_flower.inference.ask.peer_gate import PeerGate, projection_version, with_embeddings
from nmoe_flower.inference.protocol import PeerEntry, PeerList, sign_list, verify_list
from nmoe_flower.inference.protocol.signing import canonical
from nmoe_flower.models import Expert, HomeBias, MetricGate


def gate_of(experts: int = 2, top_k: int = 1) -> MetricGate:
    """Latents are projected to their first three numbers, experts lie on the axes."""
    gate = MetricGate(4, experts, dim=3, top_k=top_k)
    gate.projection.data.copy_(torch.from_numpy(np.eye(3, 4, dtype=np.float32)))
    gate.embeddings.copy_(torch.eye(3)[:experts])
    return gate


def entry(partition: int, embedding: Any = None, version: str = "") -> PeerEntry:
    data = b"" if embedding is None else np.asarray(embedding, "<f4").tobytes()
    return PeerEntry(
        f"peer-{partition}", partition, f"10.0.0.{partition}:7001",
        embedding=data, projection_version=version,
    )  # fmt: skip


def chosen(gate: PeerGate) -> list[int]:
    """Whom latents that point along each axis are sent to."""
    return [int(one) for one in gate.route(9 * torch.eye(4)[:3]).expert_ids[:, 0]]


def test_who_joins_is_routed_to_and_who_leaves_is_not() -> None:
    gate = PeerGate(gate_of(), own=0)
    assert chosen(gate) == [0, 0, 0]  # nobody else is there
    gate.follow(PeerList((entry(1), entry(7, [0, 0, 1]))))
    assert chosen(gate) == [0, 1, 7]  # 1 as the bundle knows it, 7 as the list does
    assert gate.num_experts == 3
    gate.follow(PeerList((entry(7, [0, 0, 1]),)))
    assert chosen(gate)[2] == 7
    assert 1 not in chosen(gate)


@pytest.mark.parametrize("own", [0, 2])
@pytest.mark.parametrize("bias", [0.0, 3.0])
def test_with_fewer_peers_than_it_asks_a_device_asks_those_there_are(own: int, bias: float) -> None:
    """Its own alone, if nobody is left, whatever its number is."""
    peer_gate = PeerGate(gate_of(3, top_k=2), own=own)
    for gate in (peer_gate, HomeBias(peer_gate, own, bias)):
        peer_gate.follow(PeerList(()))
        routing = gate.route(torch.eye(4))
        assert routing.expert_ids.tolist() == [[own]] * 4
        assert routing.weights.tolist() == [[1.0]] * 4
        assert gate.route(torch.zeros(0, 4)).expert_ids.shape[0] == 0
        peer_gate.follow(PeerList((entry(7, [0, 0, 1]),)))
        assert {*gate.route(torch.eye(4)).expert_ids.ravel().tolist()} == {own, 7}
        peer_gate.follow(PeerList((entry(1), entry(7, [0, 0, 1]))))
        assert gate.route(torch.eye(4)).expert_ids.shape == (4, 2)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (entry(2), "its entry has no embedding"),
        (entry(2, [0, 0, 9, 9]), "its embedding has 4 numbers, ours 3"),
        (entry(2, [0, 0, np.nan]), "its embedding is not finite"),
        (entry(2, [0, 0, 1], "0" * 16), "its projection is 0000000000000000, ours "),
        (replace(entry(2, [0, 0, 1]), partition=1 << 20), "its expert is 1048576; routed to"),
    ],
)
def test_one_that_cannot_be_used_is_told_once_and_the_others_go_on(
    bad: PeerEntry, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = PeerGate(gate_of(), own=0)
    with caplog.at_level(logging.WARNING):
        gate.follow(PeerList((entry(1), bad, entry(3, [0, 0, 1]))))
    assert chosen(gate) == [0, 1, 3]
    (record,) = caplog.records
    assert why in str(vars(record))


def test_embeddings_travel_rest_and_are_signed(tmp_path: Path, forest: Authority) -> None:
    version = projection_version(gate_of())
    peers = PeerList((entry(1, [0, 1, 0], version),), 3, 100, 200)
    signed = sign_list(peers, forest)
    signed.write(tmp_path / "peers.json")
    held = PeerList.load(tmp_path / "peers.json")
    assert held == signed == PeerList.from_message(signed.to_message())
    verify_list(held, forest.certificate_pem, now=150)
    forged = replace(held, peers=(entry(1, [1, 0, 0], version),))
    with pytest.raises(WireError, match="not signed by the authority"):
        verify_list(forged, forest.certificate_pem, now=150)
    text = (tmp_path / "peers.json").read_text()
    (tmp_path / "cut.json").write_text(text.replace('"embedding": "', '"embedding": "?'))
    with pytest.raises(WireError, match=r"cut.json is no list of peers: its embedding is not base"):
        PeerList.load(tmp_path / "cut.json")


def test_a_list_without_embeddings_is_signed_as_ever() -> None:
    """Those who know no embeddings check the same bytes."""
    assert b"embedding" not in canonical(PeerList((entry(1),)))
    assert b"projection" not in canonical(PeerList((entry(1),)))


def test_an_embedding_of_odd_length_is_refused() -> None:
    with pytest.raises(WireError, match="the embedding of fox has 5 bytes"):
        PeerEntry("fox", 0, "h:1", embedding=b"12345")


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[[int, int], Bundle]:
    """The bundle of a device of so many: pixels of 2x2 images are the latents."""

    def make(partition: int, experts: int) -> Bundle:
        gate, expert = gate_of(experts), Expert(4, 2, hidden=())
        settings = {
            "extractor.backbone": "linear", "extractor.head": "linear", "expert.hidden": "",
            "gate.form": "metric", "gate.embedding": 3, "data.num-clients": experts,
        }  # fmt: skip
        return Bundle.write(
            tmp_path / f"bundle-{partition}",
            partition=partition,
            config=Config.parse(settings),
            classes=["ant", "bee"],
            image_shape=(1, 2, 2),
            extractor={},
            gate={name: one.numpy() for name, one in gate.state_dict().items()},
            expert={name: one.numpy() for name, one in expert.state_dict().items()},
        )

    return make


def test_a_client_routes_to_a_device_that_its_bundle_has_never_heard_of(bundle: Any) -> None:
    """The newcomer's bundle has one row more, and the same projection."""
    old, new = bundle(0, 2), bundle(2, 3)
    peers = with_embeddings(PeerList((entry(1), entry(2))), [new])
    assert peers.by_partition[2].projection_version == projection_version(old.gate())
    images = np.zeros((1, 2, 2, 1), np.uint8)
    images[0, 1, 0] = 255  # the third latent stands out
    with Client(old, peers, deadline=0.05) as client:
        assert client.predict(images).record.expert_ids.tolist() == [[2]]
    with Client(old, PeerList((entry(1),)), deadline=0.05) as client:
        assert client.predict(images).record.expert_ids.tolist() != [[2]]
    with Client(old, PeerList(()), top_k=2) as client:
        assert client.predict(images).record.expert_ids.tolist() == [[0]]


def test_a_list_is_not_made_of_bundles_of_several_runs(bundle: Any) -> None:
    """As a folder has them into which a smaller run was bundled after a larger one."""
    ours, left = bundle(0, 2), bundle(1, 2)
    left.manifest = left.manifest.model_copy(update={"extractor_version": 16 * "0"})
    with pytest.raises(BundleError, match=r"bundle-1 is on the extractor \w+, .*bundle-0 on \w+: "):
        with_embeddings(PeerList((entry(0), entry(1))), [ours, left])


def test_the_list_is_made_of_bundles_when_it_is_signed(
    bundle: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "authority"
    create_authority(folder, name="grove")
    PeerList((entry(0), entry(1))).write(tmp_path / "draft.json")
    said = ["peers", "--peers", str(tmp_path / "draft.json"), "--sign", str(folder)]
    out = ["--out", str(tmp_path / "peers.json")]
    assert main([*said, *out, "--bundles", str(bundle(1, 2).folder)]) == 0
    entries = json.loads((tmp_path / "peers.json").read_text())["peers"]
    assert ["embedding" in one for one in entries] == [False, True]
    assert main([*said, *out, "--bundles", str(bundle(2, 3).folder)]) == 1
    assert "is the bundle of expert 2, which is not in the list; it has 0, 1" in (
        capsys.readouterr().err
    )
