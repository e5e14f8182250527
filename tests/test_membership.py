"""Who leaves was never there; who comes back makes the run what it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmoe_flower import cli
from nmoe_flower.config import Config
from nmoe_flower.errors import CheckpointError, ConfigError
from nmoe_flower.files import load_arrays, save_arrays
from nmoe_flower.membership import forget, join
from nmoe_flower.running import RunResult, run

SETTINGS: dict[str, Any] = {
    "data.num-clients": 4,
    "data.train-per-client": 60,
    "data.test-per-client": 20,
    "extractor.method": "fedsc",
    "extractor.backbone": "linear",
    "extractor.rounds": 0,
    "head.method": "sums",
    "expert.hidden": "",
    "expert.epochs": 1,
    "gate.methods": "lda,federated",
    "gate.rounds": 1,
    "run.controls": "ridge",
}
Train = Callable[..., RunResult]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, warm_cache: Path) -> Train:
    out = tmp_path_factory.mktemp("runs")

    def trained(name: str, **changes: Any) -> RunResult:
        values = SETTINGS | {"data.cache-dir": str(warm_cache)} | changes
        return run(values, name=name, out=out, workers=0, progress=None, figures=False)

    return trained


@pytest.fixture(scope="module")
def whole(train: Train) -> RunResult:
    return train("whole")


def gone_on(path: Path) -> RunResult:
    return run(resume=path, workers=0, progress=None, figures=False)


def assert_alike(one: RunResult, other: RunResult) -> None:
    """Every number that a run leaves: weights, experts, sums, rows."""
    for pattern in ("weights/*", "clients/*/expert.safetensors", "sums/*"):
        names = sorted(path.relative_to(one.path) for path in one.path.glob(pattern))
        assert names == sorted(path.relative_to(other.path) for path in other.path.glob(pattern))
        assert names
        for name in names:
            found, wanted = load_arrays(one.path / name), load_arrays(other.path / name)
            assert found.keys() == wanted.keys()
            for key, array in found.items():
                np.testing.assert_allclose(array, wanted[key], rtol=0, atol=1e-6, err_msg=str(name))
    assert one.rows == other.rows


def test_who_leaves_was_never_there_and_who_comes_back_was_never_gone(
    whole: RunResult, train: Train, tmp_path: Path
) -> None:
    change = forget(whole.path, 1, tmp_path / "left")
    assert change.inexact == ()
    assert change.now == {0: 0, 2: 1, 3: 2}
    left = gone_on(change.folder.path)
    assert_alike(left, train("never", **{"data.num-clients": 3, "data.without": "1"}))
    told = json.loads((left.path / "membership.json").read_text())
    assert told["forgot"] == 1
    assert told["again"] == ["experts", "gate federated"]
    gate = load_arrays(left.path / "weights" / "gate-lda.safetensors")
    assert gate["weight"].shape[0] == 3
    assert sorted(p.name for p in (left.path / "clients").iterdir()) == ["0", "1", "2"]
    again = join(left.path, 1, tmp_path / "back")
    assert (again.client, again.now) == (1, {0: 0, 1: 2, 2: 3})
    asked = [r for r in again.folder.rounds() if r["stage"] == "sums"]
    assert [record["clients"] for record in asked] == [[1]]  # nobody else
    assert_alike(gone_on(again.folder.path), whole)


def test_shares_of_the_random_gate_go_and_the_mean_of_the_others_comes(
    train: Train, tmp_path: Path
) -> None:
    """1, 5, 3, 2 without the 5; then the mean of 1, 3 and 2."""
    drawn = train("drawn", **{"gate.methods": "random", "gate.distribution": "1,5,3,2"})
    left = forget(drawn.path, 1, tmp_path / "left")
    assert left.folder.config.gate.distribution == (1, 3, 2)
    back = join(left.folder.path, 1, tmp_path / "back")
    assert back.folder.config.gate.distribution == (1, 2, 3, 2)


def test_an_extractor_that_learned_from_the_client_is_said_to_have(
    train: Train, tmp_path: Path
) -> None:
    trained = train(
        "learned",
        **{
            "extractor.method": "fedce", "extractor.backbone": "mlp", "extractor.rounds": 1,
            "extractor.widths": "8", "gate.methods": "lda",
        },
    )  # fmt: skip
    change = forget(trained.path, 3, tmp_path / "left")
    assert change.inexact == (
        "the extractor: extractor.method = fedce trained it for 1 rounds with images of the client",
    )
    assert change.now == {0: 0, 1: 1, 2: 2}
    assert not any(line.startswith("numbers") for line in change.lines())


def test_the_command_goes_on_to_the_end_or_stops_after_the_sums(
    whole: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "left"
    said = ["forget", str(whole.path), "--client", "3", "--out", str(out)]
    assert cli.main([*said, "--solve-only"]) == 0
    told = capsys.readouterr().out
    assert "exact      standardisation, ridge head, gate lda" in told
    assert f"nmoe run --resume {out}" in told
    assert not (out / "results.json").exists()
    assert cli.main(said) == 1
    told = capsys.readouterr().err
    assert f"already holds a run: continue it with nmoe run --resume {out}, delete it" in told
    assert "delete it with nmoe run --overwrite" in told
    back = ["join", str(out), "--share", "3", "--out", str(tmp_path / "back"), "--solve-only"]
    assert cli.main(back) == 0
    assert "as client 3" in capsys.readouterr().out


def test_who_cannot_leave_or_join_is_told_why(
    whole: RunResult, train: Train, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"client 4 never joined .*; allowed: 0 to 3"):
        forget(whole.path, 4, out)
    with pytest.raises(ConfigError, match="client -1 never joined"):
        forget(whole.path, -1, out)
    with pytest.raises(ConfigError, match="share 1 of the data waits for nobody; allowed: none"):
        join(whole.path, 1, out)
    with pytest.raises(CheckpointError, match=r"nothing to forget: .*nowhere is not a folder"):
        forget(tmp_path / "nowhere", 0, out)
    with pytest.raises(ConfigError, match="already holds a run"):
        forget(whole.path, 0, whole.path)
    two = train("two", **{"data.num-clients": 2, "gate.methods": "lda", "run.controls": ""})
    with pytest.raises(ConfigError, match="has 2 clients, and a federation needs 2"):
        forget(two.path, 0, out)
    rounds = train("rounds", **{"head.method": "fedavg", "head.rounds": 1, "gate.methods": "local"})
    with pytest.raises(ConfigError, match=r"has head.method = fedavg .*; allowed: head.method"):
        forget(rounds.path, 0, out)
    copy = tmp_path / "copy"
    shutil.copytree(whole.path, copy)
    sums = load_arrays(copy / "sums" / "1.safetensors")
    save_arrays(copy / "sums" / "1.safetensors", sums | {"count": sums["count"] + 1})
    with pytest.raises(CheckpointError, match=r"1.safetensors holds no sums: count is 61"):
        forget(copy, 0, out)
    (copy / "sums" / "1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1.safetensors"):
        forget(copy, 0, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("without", "text"),
    [
        ("4", r"without = 4 is no share; allowed: 0 to 3, those of 3 clients"),
        ("-1", "without = -1 is no share"),
        ("1,1", "every name may stand there once"),
    ],
)
def test_shares_that_nobody_left_are_refused(without: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Config.parse({"data.num-clients": 3, "data.without": without})


CARRYING = {
    "head.method": "fedavg", "expert.init": "scratch", "expert.hidden": "4",
    "gate.methods": "federated,local", "gate.form": "metric", "gate.shortlist": 2,
    "expert.sharing": "latents", "run.controls": "",
}  # fmt: skip


def test_experts_come_and_go_with_their_embeddings_and_nobody_else_trains(
    train: Train, tmp_path: Path
) -> None:
    """Who stays keeps expert, embedding and projection, bit for bit; who comes back has its own."""
    whole = train("carrying", **CARRYING)
    change = forget(whole.path, 1, tmp_path / "left")
    assert (change.exact, change.again) == (("the others' embeddings",), ())
    assert change.inexact == (
        "the projection of the gate federated, which was trained for 1 rounds with latents of the "
        "client",
    )
    assert "again      nothing: trained anew" in "\n".join(change.lines())
    left = gone_on(change.folder.path)
    assert not any(record["stage"].startswith("gate/") for record in left.folder.rounds())
    assert all(record["metrics"].get("loss", 0) == 0 for record in left.folder.rounds())
    before, after = (
        load_arrays(one.path / "weights" / "gate-federated.safetensors") for one in (whole, left)
    )
    assert np.array_equal(before["projection"], after["projection"])
    # Sums over three clients and over four are added in another order: roundings of float32.
    np.testing.assert_allclose(after["embeddings"], before["embeddings"][[0, 2, 3]], rtol=1e-5)
    for old, new in {0: 0, 2: 1, 3: 2}.items():
        kept, now = (
            load_arrays(run.path / "clients" / str(client) / "expert.safetensors")
            for run, client in ((whole, old), (left, new))
        )
        assert all(np.array_equal(kept[name], now[name]) for name in kept)
    again = join(left.path, 1, tmp_path / "back")
    assert again.again == ("the expert of client 1",)
    back = gone_on(again.folder.path)
    assert_alike_experts(back, whole)
    returned = load_arrays(back.path / "weights" / "gate-federated.safetensors")
    np.testing.assert_allclose(returned["embeddings"], before["embeddings"], rtol=1e-5, atol=1e-6)
    assert {(row["gate"], row["test"]) for row in back.rows} == {
        (row["gate"], row["test"]) for row in whole.rows
    }


def assert_alike_experts(one: RunResult, other: RunResult) -> None:
    for path in other.path.glob("clients/*/expert.safetensors"):
        found, wanted = load_arrays(one.path / path.relative_to(other.path)), load_arrays(path)
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6, err_msg=str(path))


def test_a_device_with_a_new_class_joins_and_leaves(train: Train, tmp_path: Path) -> None:
    """A digit each, held by nobody else: the head knows those of who is there."""
    told = {
        "data.scheme": "pathological",
        "data.classes-per-client": 1,
        "expert.epochs": 0,
        "data.train-per-client": 0,
        "data.test-per-client": 0,
        "gate.methods": "lda",
    }
    four = train("four", **told, **{"data.num-clients": 4, "data.without": "4"})
    change = join(four.path, 4, tmp_path / "five")
    five = gone_on(change.folder.path)
    counts = [
        load_arrays(five.path / "sums" / f"{c}.safetensors")["class-counts"] for c in range(5)
    ]
    new = np.flatnonzero(counts[4])
    assert new.tolist() == [4]
    assert all(others[4] == 0 for others in counts[:4])
    for client in range(4):  # nobody else tells anything
        one, other = (
            load_arrays(path / "sums" / f"{client}.safetensors") for path in (four.path, five.path)
        )
        assert {n: a.tobytes() for n, a in one.items()} == {
            n: a.tobytes() for n, a in other.items()
        }
    before, after = (
        load_arrays(path / "weights" / "head.safetensors") for path in (four.path, five.path)
    )
    name = "layers.0.weight"
    assert (before[name][new] == 0).all()
    assert (np.abs(after[name][new]).max(axis=1) > 0).all()
    gates = [
        load_arrays(p / "weights" / "gate-lda.safetensors")["weight"]
        for p in (four.path, five.path)
    ]
    assert [len(gate) for gate in gates] == [4, 5]
    accuracy = [
        next(r["accuracy"] for r in run_.rows if (r["gate"], r["test"]) == ("lda", "iid"))
        for run_ in (four, five)
    ]
    assert accuracy[1] > accuracy[0]
    assert_alike(gone_on(forget(five.path, 4, tmp_path / "left").folder.path), four)
