"""Text joins and leaves: an expert and a row of the gate come or go, nothing else changes."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmoe_flower.checkpoint import Checkpoints
from nmoe_flower.config import Config
from nmoe_flower.data.text import configured_text
from nmoe_flower.errors import CheckpointError, ConfigError
from nmoe_flower.files import load_arrays
from nmoe_flower.membership import forget, join
from nmoe_flower.pipeline import Artifacts
from nmoe_flower.records import part_of
from nmoe_flower.results import RunFolder
from nmoe_flower.running import RunResult, run

DOMAINS = ("animals", "code", "numbers", "weather")
NEWCOMER = 3
SETTINGS: dict[str, Any] = {
    "run.system": "language",
    "run.precision": "float32",
    "data.kind": "text",
    "data.scheme": "natural",
    "data.num-clients": 4,
    "data.train-per-client": 12,
    "data.test-per-client": 3,
    "text.tokenizer": "bytes",
    "text.window": 12,
    "text.prefix": 4,
    "extractor.method": "pretrained",
    "extractor.backbone": "small-lm",
    "extractor.widths": "8,8",
    "adapter.rank": 2,
    "adapter.blocks": "all",
    "adapter.steps": 4,
    "adapter.local-steps": 2,
    "adapter.learning-rates": "0.03",
    "adapter.controls": "frozen,soup,fedavg",
    "gate.methods": "unigram,lda,local,domain",
}
Train = Callable[..., RunResult]
Hashes = dict[str, str]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for domain in DOMAINS:
        (folder / domain).mkdir()
        for number in range(8):
            words = random.Random(f"{domain}{number}").choices([domain, domain[:3], "x"], k=12)
            (folder / domain / f"{number}.txt").write_text(" ".join(words))
    return folder


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Train:
    out = tmp_path_factory.mktemp("runs")

    def trained(name: str, **changes: Any) -> RunResult:
        values = SETTINGS | {"data.dataset": str(texts), "data.cache-dir": str(out / "cache")}
        return run(values | changes, name=name, out=out, workers=0, progress=None, figures=False)

    return trained


@pytest.fixture(scope="module")
def nine(train: Train) -> RunResult:
    """A federation whose last domain has nobody."""
    return train("without", **{"data.num-clients": 3, "data.without": str(NEWCOMER)})


@pytest.fixture(scope="module")
def ten(nine: RunResult, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The same after its device has joined."""
    change = join(nine.path, NEWCOMER, tmp_path_factory.mktemp("joined") / "run")
    assert (change.client, change.now) == (3, {0: 0, 1: 1, 2: 2})
    assert change.exact == ("the others' experts", "the others' histograms of tokens")
    assert change.again == ("the expert of client 3", "control fedavg", "gate lda")
    return gone_on(change.folder.path)


def gone_on(path: Path) -> RunResult:
    return run(resume=path, workers=0, progress=None, figures=False)


def rounds(done: RunResult) -> list[dict[str, Any]]:
    return RunFolder.resume(done.path).rounds()


def artifacts(path: Path) -> Artifacts:
    checkpoint = Checkpoints(path / "checkpoints").latest()
    assert checkpoint is not None
    return Artifacts.read(part_of(checkpoint.arrays, "done/"))


def hashes(path: Path) -> Hashes:
    """Every expert at the server and at home, and every row of the histograms: a hash each."""
    found, told = artifacts(path), {}
    named = {f"server/{name}": array for name, array in found.adapters.items()}
    assert found.frequencies is not None
    named |= {f"row/{client}": row for client, row in enumerate(found.frequencies)}
    for file in sorted((path / "clients").glob("*/expert.safetensors")):
        named |= {f"home/{file.parent.name}/{n}": a for n, a in load_arrays(file).items()}
    for name, array in named.items():
        said = f"{array.dtype.str}{array.shape}".encode() + array.tobytes()
        told[name] = hashlib.sha256(said).hexdigest()
    return told


def of_client(told: Hashes, client: int) -> Hashes:
    return {name: value for name, value in told.items() if name.split("/")[1] == str(client)}


def test_a_domain_that_joins_brings_an_expert_and_a_row_and_nothing_else_changes(
    nine: RunResult, ten: RunResult, train: Train
) -> None:
    before, after = hashes(nine.path), hashes(ten.path)
    newcomer = of_client(after, NEWCOMER)
    assert after == before | newcomer
    assert not of_client(before, NEWCOMER)
    parts = set(artifacts(ten.path).adapters)
    own = {name for name in parts if name.startswith(f"{NEWCOMER}/")}
    assert set(newcomer) == {f"row/{NEWCOMER}"} | {
        f"{place}/{name}" for place in ("server", "home") for name in own
    }
    (asked,) = (line for line in rounds(ten) if line["stage"] == "experts")
    assert asked["clients"] == [NEWCOMER]  # nobody else trains
    assert after == hashes(train("whole").path)  # it is the run that had it from the start


def test_who_leaves_was_never_there(nine: RunResult, ten: RunResult, tmp_path: Path) -> None:
    change = forget(ten.path, NEWCOMER, tmp_path / "left")
    assert change.inexact == ()
    left = gone_on(change.folder.path)
    assert hashes(left.path) == hashes(nine.path)
    assert not any(line["stage"] == "experts" for line in rounds(left))
    assert left.rows == nine.rows
    assert not (left.path / "clients" / str(NEWCOMER)).exists()
    told = json.loads((left.path / "membership.json").read_text())
    assert told["forgot"] == NEWCOMER


def test_one_from_the_middle_leaves_and_comes_back(ten: RunResult, tmp_path: Path) -> None:
    left = gone_on(forget(ten.path, 1, tmp_path / "left").folder.path)
    before, after = hashes(ten.path), hashes(left.path)
    for old, new in ((0, 0), (2, 1), (3, 2)):
        moved = {n.replace(f"/{old}", f"/{new}", 1): v for n, v in of_client(before, old).items()}
        assert of_client(after, new) == moved
    assert len(after) == len(before) * 3 // 4
    assert {row["gate"] for row in left.rows} == {row["gate"] for row in ten.rows}
    back = gone_on(join(left.path, 1, tmp_path / "back").folder.path)
    assert hashes(back.path) == before
    assert back.rows == ten.rows


def test_experts_that_stay_at_home_come_along_and_ranks_go_with_them(
    train: Train, tmp_path: Path
) -> None:
    told = {"expert.sharing": "none", "gate.methods": "local", "adapter.ranks": "1,2,3,1"}
    alone = train("home", **told, **{"adapter.controls": "frozen"})
    change = forget(alone.path, 1, tmp_path / "left")
    for old, new in change.now.items():
        one, other = (
            load_arrays(path / "clients" / str(client) / "expert.safetensors")
            for path, client in ((alone.path, old), (change.folder.path, new))
        )
        assert {n: a.tobytes() for n, a in one.items()} == {
            n: a.tobytes() for n, a in other.items()
        }
    assert change.folder.config.adapter.ranks == (1, 3, 1)
    back = join(gone_on(change.folder.path).path, 1, tmp_path / "back")
    assert back.folder.config.adapter.ranks == (1, 2, 3, 1)


def test_what_cannot_be_is_refused(ten: RunResult, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="share 1 of the data waits for nobody"):
        join(ten.path, 1, tmp_path / "odd")
    with pytest.raises(ConfigError, match="client 7 never joined"):
        forget(ten.path, 7, tmp_path / "odd")
    shutil.copytree(ten.path, tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone" / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint after the stage experts"):
        forget(tmp_path / "gone", 0, tmp_path / "odd")


@pytest.mark.parametrize("changes", [{}, {"data.scheme": "iid"}, {"text.mixed": 0.25}])
def test_shares_of_others_stay_as_they_are(
    texts: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    told = SETTINGS | {"data.dataset": str(texts), "data.cache-dir": str(tmp_path)} | changes
    told |= {"gate.methods": "unigram"}
    whole = configured_text(Config.parse(told))
    for gone in range(4):
        left = configured_text(
            Config.parse(told | {"data.num-clients": 3, "data.without": str(gone)})
        )
        for new, old in enumerate(n for n in range(4) if n != gone):
            for split in ("train", "test"):
                one = getattr(whole, split).of_client(old)
                other = getattr(left, split).of_client(new)
                np.testing.assert_array_equal(one.tokens, other.tokens)
                names = [whole.domain_names[code] for code in one.domains]
                assert names == [left.domain_names[code] for code in other.domains]
            assert whole.client_names[old] == left.client_names[new] or changes
