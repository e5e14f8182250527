"""Text between peers that know each other, and bundles that do not fit this device."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmoe_flower.certificates import Authority, Identity, create_authority
from nmoe_flower.data.text import train_tokenizer
from nmoe_flower.errors import BundleError, NMoEError, WireError
from nmoe_flower.files import load_arrays, save_arrays
from nmoe_flower.inference import Bundle, ExpertServer, PeerEntry, PeerList, TextClient
from nmoe_flower.inference.ask import with_embeddings
from nmoe_flower.inference.ask.loop import LoopThread
from nmoe_flower.inference.bundle import TextBackbone, TextBundle, TextExperts
from nmoe_flower.inference.protocol import sign_list
from nmoe_flower.inference.serve import RefusedError

Make = Callable[..., Any]
ACROSS = "klmklmklkmklmkmk"  # device 1's letters


def signed(forest: Authority, port: int) -> PeerList:
    now = int(time.time())
    entry = PeerEntry("owl", 1, f"127.0.0.1:{port}")
    return sign_list(PeerList((entry,), serial=1, issued_unix=now, expires_unix=now + 60), forest)


def test_members_score_and_write_over_tls_and_nobody_else_does(
    village: Make, text_loop: LoopThread, forest: Authority, member: Callable[[str], Identity],
    tmp_path: Path,
) -> None:  # fmt: skip
    made = village()
    server = ExpertServer(
        made.bundles[1],
        member("owl"),
        load_text=lambda bundle: TextExperts(bundle, made.backbone),
        deny=["wasp"],
    )
    port = text_loop.submit(server.start()).result(20)
    stranger = create_authority(tmp_path, name="forest").issue(tmp_path, "cat")
    stranger = dataclasses.replace(stranger, authority_pem=forest.certificate_pem)
    try:
        for who, reason in (
            (member("cat"), None),
            (member("wasp"), "denied"),
            (stranger, "unavailable"),  # the peer hangs up
        ):
            with TextClient(
                made.bundles[0], signed(forest, port), identity=who, experts=made.experts(0)
            ) as client:
                found = client.score(ACROSS)
                pieces = list(client.generate(ACROSS, 3))
            named = {"owl"} if reason is None else {"self"}
            assert {piece.peer for piece in pieces} == named
            assert {one for names in found.answered_by.values() for one in names} == named
            assert (found.fallback is None) is (reason is None)
            assert set(found.cost.failures) == ({f"owl: {reason}"} if reason else set())
        with pytest.raises(WireError, match="not signed"):
            TextClient(
                made.bundles[0],
                PeerList(signed(forest, port).peers),
                identity=member("cat"),
                experts=made.experts(0),
            )
    finally:
        text_loop.submit(server.drain(0)).result(20)


def test_one_caller_cannot_take_the_whole_queue_of_text(
    village: Make, text_loop: LoopThread, member: Callable[[str], Identity]
) -> None:
    bundle = village().bundles[1]

    async def made(identity: Identity | None) -> Any:
        return ExpertServer(bundle, identity, max_queue=100)._requests

    requests = text_loop.submit(made(member("owl"))).result(20)
    with requests.held("cat", requests.max_rows):
        with pytest.raises(RefusedError, match="cat fills its half"), requests.held("cat", 1):
            pass
        with requests.held("elk", requests.max_rows):
            assert sum(requests._held.values()) == 100
    nameless = text_loop.submit(made(None)).result(20)
    with nameless.held("anonymous", 50), nameless.held("anonymous", 50):
        assert nameless.max_rows == 50


def test_weights_of_another_backbone_are_told_by_their_hashes(village: Make) -> None:
    made = village()
    bundle, digest = made.bundles[0], made.backbone.digest
    other = object.__new__(TextBackbone)
    other.__dict__.update(made.backbone.__dict__, digest=bytes(32))
    said = f"backbone {digest.hex()[:12]}, and that of .* here is 000000000000: .*the same weights"
    with pytest.raises(BundleError, match=said):
        TextExperts(bundle, other)


def test_an_adapter_for_another_backbone_is_refused_before_anybody_asks(
    village: Make, tmp_path: Path
) -> None:
    made = village()
    first = made.bundles[0]
    facts = first.manifest.model_dump()
    facts = {
        name: facts[name]
        for name in ("partition", "backbone", "tokenizer", "vocab_size", "width", "gate", "holders")
    }
    adapter = first.adapters()[0]
    for wrong, said in (
        ({"backbone": 0 * adapter["backbone"]}, "adapter of device 0 is for the backbone 0000"),
        ({"bias": adapter["bias"][:-1]}, "adapter of device 0 does not fit: .*bias has shape"),
        ({"new": adapter["bias"]}, "adapter of device 0 does not fit: .*differs in new"),
    ):
        bundle = TextBundle.write(
            tmp_path / next(iter(wrong)),
            config=first.config,
            frequencies=first.frequencies(),
            adapters={0: adapter | wrong},
            shared=None,
            **facts,
        )
        with pytest.raises(BundleError, match=said):
            TextExperts(bundle, made.backbone)


def test_another_tokenizer_is_told_by_its_hash(village: Make, tmp_path: Path) -> None:
    made = village()
    path = tmp_path / "tokenizer.json"
    train_tokenizer(["abc abd abe"] * 9, vocab_size=260).save(path)
    bundle = made.bundles[0]
    changed = TextBundle(
        bundle.folder, bundle.manifest,
        type(bundle.config).parse({**bundle.config.flat(), "text.tokenizer": str(path)}),
    )  # fmt: skip
    with pytest.raises(BundleError, match=r"for the tokenizer [0-9a-f]{12}, and that of text\.tok"):
        TextClient(changed, PeerList(()), experts=made.experts(0))


@pytest.mark.parametrize("part", ["replica-2", "shared"])
def test_files_of_a_bundle_that_changed_are_refused(
    village: Make, tmp_path: Path, part: str
) -> None:
    made = village(replicas=2)
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in made.bundles[0].folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    assert TextBundle.load(folder).adapters().keys() == {0, 2}
    changed = folder / f"{part}.safetensors"
    arrays = load_arrays(changed)
    save_arrays(changed, {**arrays, "bias": arrays["bias"] + 1})
    with pytest.raises(BundleError, match=rf"{part}\.safetensors has version"):
        TextBundle.load(folder)
    changed.unlink()
    with pytest.raises(NMoEError, match=rf"{part}\.safetensors"):
        TextBundle.load(folder)


def test_a_new_version_is_served_on_the_backbone_that_is_there(
    village: Make, text_loop: LoopThread, tmp_path: Path
) -> None:
    """A text that goes on meanwhile ends as it began."""
    made = village()
    old = made.bundles[1]
    adapter = old.adapters()[1]
    names = ("partition", "backbone", "tokenizer", "vocab_size", "width", "gate", "holders")
    new = TextBundle.write(
        tmp_path / "new",
        config=old.config,
        frequencies=old.frequencies(),
        adapters={1: adapter | {"bias": np.roll(adapter["bias"], 1)}},
        shared=None,
        **{name: old.manifest.model_dump()[name] for name in names},
    )
    made.serve(1)
    server = made._servers[1]
    client = made.client(fallbacks=0)
    before = client.score(ACROSS).bits_per_byte
    pieces = []
    for piece in client.generate(ACROSS, 6):
        pieces.append(piece)
        if len(pieces) == 2:
            text_loop.submit(server.swap(new)).result(20)
    assert [piece.token for piece in pieces] == made.greedy(1, list(ACROSS.encode()), 6)
    assert server._requests.served[0].experts.backbone is made.backbone
    found = client.score(ACROSS)  # offsets of the new version are asked for
    assert found.answered_by == {"1": ["peer-1"]}
    assert found.bits_per_byte != pytest.approx(before, rel=1e-3)
    config = type(old.config).parse({**old.config.flat(), "adapter.scale": 1.0})
    assert not made.backbone.fits(TextBundle(old.folder, old.manifest, config))
    images = object.__new__(Bundle)
    images.__dict__.update(folder=tmp_path, manifest=old.manifest)
    with pytest.raises(BundleError, match="of another system than what is served"):
        text_loop.submit(server.swap(images)).result(20)


def test_a_list_takes_versions_out_of_bundles_of_text(village: Make) -> None:
    """So that devices with another backbone are not even asked."""
    made = village()
    draft = PeerList((PeerEntry("owl", 1, "127.0.0.1:1"),))
    (entry,) = with_embeddings(draft, [made.bundles[1]]).peers
    assert entry.extractor_version == made.bundles[1].extractor_version
    assert entry.expert_version == made.bundles[1].expert_version
    assert entry.embedding == b""
    other = dataclasses.replace(entry, extractor_version="0" * 16)
    with TextClient(made.bundles[0], PeerList((other,)), experts=made.experts(0)) as client:
        found = client.score(ACROSS)
    assert found.answered_by == {"0": ["self"]}
    assert (found.fallback, dict(found.cost.failures)) == ("local", {})
