"""Devices that classify text ask each other: documents in, classes out, over loopback."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from nmoe_flower.cli import main
from nmoe_flower.client_app import app
from nmoe_flower.config import Config
from nmoe_flower.data import configured_images
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import BundleError, ConfigError, DataError
from nmoe_flower.inference import Bundle, Client, ExpertServer, export_run, export_store
from nmoe_flower.inference.ask.loop import LoopThread
from nmoe_flower.results import RunFolder
from nmoe_flower.server_app import execute
from tests.labelled_text import STYLES, TOPICS, text_of, village_settings, write_village


class Federation(NamedTuple):
    """A finished run, the bundles of its devices, and where two of them listen."""

    folder: Path
    bundles: list[Bundle]
    peers: Path


@pytest.fixture(scope="module")
def federation(
    tmp_path_factory: pytest.TempPathFactory, text_loop: LoopThread
) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("documents")
    write_village(folder, documents=10)
    told = {
        "run.out": str(folder),
        "data.cache-dir": str(folder / "cache"),
        "gate.methods": "lda",
        "run.controls": "",
    }
    config = Config.parse({**village_settings(folder), **told})
    run = RunFolder.create(folder / "run", config)
    with InProcessGrid(app, 3, run_config=config.flat()) as grid:
        for node in (1, 2, 3):
            context = grid._backend._nodes.context(node, RecordDict())  # type: ignore[union-attr]
            context.node_config["store"] = str(folder / f"store-{node - 1}")
            grid._backend._contexts[node] = context  # type: ignore[union-attr]
        execute(grid, run)
    for device in range(3):
        there = run.path / "clients" / str(device) / "expert.safetensors"
        there.parent.mkdir(parents=True)
        kept = folder / f"store-{device}" / "nmoe" / "expert.safetensors"
        there.write_bytes(kept.read_bytes())
    bundles = export_run(run.path, folder / "bundles")
    images = [bundle for bundle in bundles if isinstance(bundle, Bundle)]

    async def start(bundle: Bundle) -> ExpertServer:
        server = ExpertServer(bundle, None)
        await server.start()
        return server

    servers = [text_loop.submit(start(bundle)).result(20) for bundle in images[1:]]
    peers = folder / "peers.json"
    told = [
        {"name": f"peer-{at}", "partition": at, "address": f"127.0.0.1:{server.port}"}
        for at, server in enumerate(servers, start=1)
    ]
    peers.write_text(json.dumps({"peers": told}))
    yield Federation(folder, images, peers)
    for server in servers:
        text_loop.submit(server.drain(0)).result(20)


def test_documents_are_classified_by_the_devices_that_know_them(
    federation: Federation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each style is asked at its device; probabilities are those of its own expert there."""
    bundle, options = str(federation.bundles[0].folder), ["--peers", str(federation.peers)]
    options += ["--insecure"]
    files = [str(federation.folder / "posts" / style / "weather") for style in STYLES]
    assert main(["infer", bundle, *files, *options]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["document"] for line in lines] == [
        f"{folder}/{number:02}.txt" for folder in files for number in range(10)
    ]
    asked = {peer for line in lines for peer in line["peers"]}
    assert asked == {"self", "peer-1", "peer-2"}
    assert all(line["experts"] == line["answered_by"] for line in lines)
    right = sum(line["class"] == "weather" for line in lines)
    assert right > 20

    typed = next(line for line in lines if line["peers"] != ["self"])
    text = Path(typed["document"]).read_text()
    assert main(["infer", bundle, "--text", text, *options]) == 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["infer", bundle, "--text", "-", *options]) == 0
    for name, line in zip(("--text", "-"), capsys.readouterr().out.splitlines(), strict=True):
        found = json.loads(line)
        assert (found["document"], found["class"]) == (name, typed["class"])
        assert found["probability"] == pytest.approx(typed["probability"], abs=1e-5)
    asks = federation.bundles[typed["experts"][0]]
    with Client.open(asks.folder) as there, torch.inference_mode():
        rows = torch.from_numpy(there.row(text)[None]).permute(0, 3, 1, 2)
        logits = asks.expert()(asks.extractor()(rows))
        assert float(logits.softmax(1).max()) == pytest.approx(typed["probability"], abs=1e-5)


def test_a_document_becomes_the_row_that_was_trained_on(federation: Federation) -> None:
    bundle = federation.bundles[1]
    data = configured_images(bundle.config)
    known = {row.tobytes() for split in (data.train, data.test) for row in np.asarray(split.images)}
    with Client.open(bundle) as client:
        texts = [text_of(style, topic, 7) for style in STYLES for topic in TOPICS]
        made = {client.row(text).tobytes() for text in texts}
        assert made <= known
        several = client.predict([text_of("notes", "animals", 3), "rain" * 50])
        assert several.probabilities.shape == (2, 2)
        for wrong in (["cat", " "], []):
            with pytest.raises(DataError, match=r"document 1 has no text|documents are float64"):
                client.predict(wrong)


def test_a_device_makes_the_same_bundle_of_what_it_kept(federation: Federation) -> None:
    out = federation.folder / "own"
    found = export_store(federation.folder / "store-2" / "nmoe", out).manifest
    wanted = federation.bundles[2].manifest
    assert found.model_dump(exclude={"config"}) == wanted.model_dump(exclude={"config"})
    assert len(found.tokenizer) == 64  # type: ignore[union-attr]


def test_another_tokenizer_or_other_weights_are_refused(
    federation: Federation, tmp_path: Path
) -> None:
    bundle = federation.bundles[0]
    moved = bundle.with_weights(str(federation.folder / "backbone"))
    assert Client.open(moved).predict(["cat"]).classes
    with pytest.raises(ConfigError, match=r"/nowhere/config\.json is missing"):
        Client.open(bundle.with_weights("/nowhere"))
    other = bundle.manifest.model_copy(update={"tokenizer": "0" * 64})
    with pytest.raises(BundleError, match="is for the tokenizer 000000000000, and that of"):
        Client.open(Bundle(bundle.folder, other, bundle.config))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--text", "cat", "--generate", "3"], "--generate is of a language model, and"),
        (["--text", "cat", "--prefix", "3"], "--prefix is of a language model, and"),
        (["--text", "cat", "--send", "tokens"], "--send is of a language model, and"),
        (["--text", "  "], '"error":"the document has no text"'),
        (["{folder}/peers.json", "{folder}/none.txt"], "cannot read the document"),
        (["{folder}/rows.csv"], "it is a table"),
        (["{folder}/latin.txt"], "not UTF-8"),
        (["{folder}/empty"], "the folder has no file"),
    ],
)
def test_what_cannot_be_classified_is_said(
    federation: Federation, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    (federation.folder / "latin.txt").write_bytes(b"caf\xe9")
    (federation.folder / "empty").mkdir(exist_ok=True)
    told = [option.format(folder=federation.folder) for option in options]
    assert main(["infer", str(federation.bundles[0].folder), *told]) == 1
    found = "".join(capsys.readouterr()).replace('": "', '":"')
    assert said in found
    assert "Traceback" not in found
