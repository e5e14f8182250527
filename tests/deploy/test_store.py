"""A device's own disk: its images come from there, and what it serves is kept there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from PIL import Image

from nmoe_flower.cli import main
from nmoe_flower.client_app import app
from nmoe_flower.clients.device import device_of
from nmoe_flower.config import Config
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import BundleError, DataError
from nmoe_flower.inference import Bundle, TextBundle, TextClient, export_run, export_store
from nmoe_flower.results import RunFolder
from nmoe_flower.server_app import execute
from tests.domain_text import TINY_LANGUAGE, write_domains

TINY = {
    "data.num-clients": 2,
    "data.train-per-client": 40,
    "data.test-per-client": 20,
    "extractor.backbone": "linear",
    "extractor.rounds": 2,
    "expert.hidden": "8",
    "expert.epochs": 1,
    "gate.methods": "federated,local",
    "gate.rounds": 2,
    "run.controls": "",
}


class Nodes(InProcessGrid):
    """Two nodes with a store and perhaps images of their own."""

    def __init__(self, folder: Path, config: Config, **told: str) -> None:
        super().__init__(app, 2, run_config=config.flat())
        for node in (1, 2):
            context = self._backend._nodes.context(node, RecordDict())  # type: ignore[union-attr]
            context.node_config["store"] = str(folder / f"store-{node - 1}")
            context.node_config.update({key: value.format(node - 1) for key, value in told.items()})
            self._backend._contexts[node] = context  # type: ignore[union-attr]


def run(tmp_path: Path, changes: Mapping[str, Any] | None = None, **told: str) -> RunFolder:
    config = Config.parse({**TINY, "run.out": str(tmp_path / "server"), **(changes or {})})
    folder = RunFolder.create(tmp_path / "server" / "nmoe", config)
    with Nodes(tmp_path, config, **told) as grid:
        execute(grid, folder)
    return folder


def test_a_store_gives_the_bundle_that_the_server_would(tmp_path: Path) -> None:
    """The same bytes by two ways, so that extractor and gate have one version everywhere."""
    folder = run(tmp_path)
    for node in range(2):
        assert not (folder.path / "clients" / str(node)).exists()
        expert = tmp_path / f"store-{node}" / "nmoe" / "expert.safetensors"
        copy = folder.path / "clients" / str(node) / "expert.safetensors"
        copy.parent.mkdir(parents=True)
        copy.write_bytes(expert.read_bytes())
    wanted = export_run(folder.path, tmp_path / "bundles")
    for node in range(2):
        out = tmp_path / f"bundle-{node}"
        store = tmp_path / f"store-{node}" / "nmoe"
        assert main(["bundle", "--store", str(store), "--out", str(out)]) == 0
        found, bundle = Bundle.load(out).manifest, wanted[node].manifest
        assert found.model_dump(exclude={"config"}) == bundle.model_dump(exclude={"config"})
    assert Bundle.load(tmp_path / "bundle-0").expert_version != found.expert_version


def test_a_simulated_client_keeps_no_copies(tmp_path: Path) -> None:
    config = Config.parse({**TINY, "run.out": str(tmp_path)})
    folder = RunFolder.create(tmp_path / "nmoe", config)
    with InProcessGrid(app, 2, run_config=config.flat()) as grid:
        execute(grid, folder)
    assert not list(folder.path.rglob("clients/*/extractor.safetensors"))
    assert not list(folder.path.rglob("device.json"))


def test_a_store_without_a_finished_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"device\.json is missing; did stage 2 run"):
        export_store(tmp_path, tmp_path / "bundle")
    (tmp_path / "device.json").write_text("{}")
    with pytest.raises(BundleError, match=r"no gate 'federated'; did the run finish\?"):
        export_store(tmp_path, tmp_path / "bundle")
    (tmp_path / "gate-federated.safetensors").touch()
    with pytest.raises(BundleError, match="cannot be exported"):
        export_store(tmp_path, tmp_path / "bundle")
    with pytest.raises(BundleError, match="it has: federated"):
        export_store(tmp_path, tmp_path / "bundle", gate="rolling")


# --- text ---


def written(tmp_path: Path, **changes: Any) -> RunFolder:
    """A run of adapters of a tiny model, whose nodes keep what they serve."""
    texts = write_domains(tmp_path / "texts", documents=4, domains=("code", "numbers"))
    tiny = {
        **TINY_LANGUAGE,
        "run.out": str(tmp_path / "server"),
        "data.dataset": str(texts),
        "data.num-clients": 2,
        "data.train-per-client": 8,
        "data.test-per-client": 2,
        "adapter.steps": 1,
        "adapter.local-steps": 1,
        "adapter.controls": "fedavg",
        "gate.methods": "unigram,unigram-chunks,local",
    }
    config = Config.parse({**tiny, **changes})
    folder = RunFolder.create(tmp_path / "server" / "nmoe", config)
    with Nodes(tmp_path, config) as grid:
        execute(grid, folder)
    return folder


def test_a_store_of_text_gives_the_bundle_that_the_server_would(tmp_path: Path) -> None:
    """Adapter, frequencies and the adapter of all devices are the same bytes by both ways."""
    folder = written(tmp_path)
    wanted = export_run(folder.path, tmp_path / "bundles")
    for node in range(2):
        out, store = tmp_path / f"bundle-{node}", tmp_path / f"store-{node}" / "nmoe"
        assert main(["bundle", "--store", str(store), "--out", str(out)]) == 0
        bundle, server = TextBundle.load(out), wanted[node]
        found = bundle.manifest.model_dump(exclude={"config"})
        assert found == server.manifest.model_dump(exclude={"config"})
        assert (found["gate"], found["holders"]) == ("unigram-chunks", [[0], [1]])
        assert found["shared_version"]
    store, out = tmp_path / "store-0" / "nmoe", tmp_path / "plain"
    assert export_store(store, out, gate="unigram").manifest.gate == "unigram"  # type: ignore[union-attr]
    with TextClient.open(tmp_path / "bundle-0") as one, TextClient.open(wanted[0]) as other:
        assert one.score("x=1; y=2;").bits_per_byte == other.score("x=1; y=2;").bits_per_byte
    with pytest.raises(BundleError, match=r"has not the gate 'federated' that a device can ask by"):
        export_store(store, out, gate="federated")
    (store / "expert.safetensors").unlink()
    with pytest.raises(BundleError, match=r"did the run finish on this device\?"):
        export_store(store, out)
    (store / "device.json").write_text('{"kind": "text", "partition": 0}')
    with pytest.raises(BundleError, match=r"device\.json is damaged: 'config'"):
        export_store(store, out)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gate.methods": "local"}, "has not a gate that a device can ask by"),
        ({"adapter.blocks": "all"}, r"query\.send = 'tokens' in device\.json"),
    ],
)
def test_a_store_of_text_without_what_asks_says_so(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    written(tmp_path, **changes)
    with pytest.raises(BundleError, match=said):
        export_store(tmp_path / "store-1" / "nmoe", tmp_path / "bundle")


# --- a node's own images ---


def write_images(folder: Path, classes: Mapping[str, int], *, seed: int) -> None:
    """Grey squares of 8 x 8, brighter from class to class: ``split/CLASS/number.png``."""
    rng = np.random.default_rng(seed)
    for split, share in (("train", 2), ("test", 1)):
        for level, (name, count) in enumerate(classes.items()):
            for number in range(share * count):
                pixels = rng.integers(40 * level, 40 * level + 60, (8, 8), np.uint8)
                path = folder / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)


def device(folder: Path, tmp_path: Path, classes: str = "cat,dog,fox") -> Any:
    config = Config.parse({**TINY, "data.cache-dir": str(tmp_path / "cache")})
    node = {"partition-id": 0, "num-partitions": 2, "data-path": str(folder), "classes": classes}
    return device_of(Context(1, 1, node, RecordDict(), config.flat()))


def test_a_node_has_its_own_folder_and_the_classes_of_all(tmp_path: Path) -> None:
    write_images(tmp_path / "own", {"dog": 3, "fox": 5}, seed=0)
    own = device(tmp_path / "own", tmp_path)
    assert own.data.class_names == ("cat", "dog", "fox")
    assert np.bincount(own.train_labels, minlength=3).tolist() == [0, 6, 10]
    assert len(own.indices.test_local) == 8
    labels = own.data.test.labels[own.indices.test_iid]
    assert np.bincount(labels, minlength=3).tolist() == [0, 3, 3]  # the classes it has, alike
    with pytest.raises(DataError, match=r"leave .centralized. out of run\.controls"):
        _ = own.everyone


def test_a_class_that_the_federation_does_not_know_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "own", {"dog": 3, "wolf": 3}, seed=0)
    with pytest.raises(DataError, match="has the class 'wolf'; allowed: cat, dog, fox"):
        _ = device(tmp_path / "own", tmp_path).data


def test_two_nodes_with_different_classes_train_together(tmp_path: Path) -> None:
    write_images(tmp_path / "images-0", {"cat": 12, "dog": 12}, seed=0)
    write_images(tmp_path / "images-1", {"dog": 12, "fox": 12}, seed=1)
    folder = run(
        tmp_path,
        {"data.cache-dir": str(tmp_path / "cache"), "extractor.batch-size": 8},
        **{"data-path": str(tmp_path / "images-{}"), "classes": "cat,dog,fox"},
    )
    assert folder.results_path.is_file()
    bundle = export_store(tmp_path / "store-1" / "nmoe", tmp_path / "bundle")
    assert isinstance(bundle, Bundle)
    assert bundle.classes == ["cat", "dog", "fox"]


# --- a node that comes back ---


class Dying(Nodes):
    """Node 2 answers one ``experts`` exchange, is killed, and comes back as node 3."""

    def __init__(self, folder: Path, config: Config) -> None:
        super().__init__(folder, config)
        self._num_nodes = 3
        self.killed = False
        context = self._backend._nodes.context(3, RecordDict())  # type: ignore[union-attr]
        old = self._backend._contexts[2]  # type: ignore[union-attr]
        context.node_config.clear()
        context.node_config.update(old.node_config)
        self._backend._contexts[3] = context  # type: ignore[union-attr]

    def get_node_ids(self) -> list[int]:
        return [1, 2, 3] if self.killed else [1, 2]  # Flower still lists the dead one

    def push_messages(self, messages: Any) -> Any:
        messages = list(messages)
        kinds = {message.metadata.message_type for message in messages}
        if "query.answers" in kinds:
            self.killed = True
        gone = [self.killed and message.metadata.dst_node_id == 2 for message in messages]
        ids = iter(super().push_messages([m for m, g in zip(messages, gone, strict=True) if not g]))
        return ["" if g else next(ids) for g in gone]


def test_a_killed_node_goes_on_with_its_expert(tmp_path: Path) -> None:
    """It is killed after stage 2 and comes back as another node: the weights are the same."""
    undisturbed = run(tmp_path / "one")
    config = Config.parse({**TINY, "run.out": str(tmp_path / "two")})
    folder = RunFolder.create(tmp_path / "two" / "nmoe", config)
    with Dying(tmp_path / "two", config) as grid:
        execute(grid, folder)
        assert grid.killed
    for name in ("extractor", "gate-federated"):
        one, two = (f.path / "weights" / f"{name}.safetensors" for f in (undisturbed, folder))
        assert one.read_bytes() == two.read_bytes()
    for node in range(2):
        expert = Path(f"store-{node}", "nmoe", "expert.safetensors")
        assert (tmp_path / "one" / expert).read_bytes() == (tmp_path / "two" / expert).read_bytes()
    lines = [line for line in folder.rounds_path.read_text().splitlines() if '"answers"' in line]
    assert "refused: no such node 2" in lines[0]
