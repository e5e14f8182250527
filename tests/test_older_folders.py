"""What an older version left is read, resumed, bundled and served; see fixtures/README.md."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmoe_flower.cli import main
from nmoe_flower.files import load_arrays
from nmoe_flower.inference import Bundle, Client, ExpertServer, PeerEntry, PeerList
from nmoe_flower.results import RunFolder

OLD = Path(__file__).parent / "fixtures" / "0.1.0"
KILLED = {
    "killed": {"extractor", "head", "gate-federated", "gate-rolling"},
    "killed-private": {"extractor", "head", "gate-federated"},
    "killed-aligned": {"extractor", "head", "mixture"},
}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def place(line: dict[str, Any]) -> tuple[str, int]:
    return line["stage"], line["round"]


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_run_is_resumed_to_its_end(
    name: str, warm_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NMOE_CACHE", str(warm_cache))
    folder = tmp_path / name
    shutil.copytree(OLD / name, folder)
    before = lines(folder)
    assert main(["run", "--resume", str(folder), "--workers", "0", "--no-figures"]) == 0
    after = lines(folder)
    assert after[: len(before) - 1] == before[:-1]
    rounds = [place(line) for line in after if line["rounds"] > 1]
    assert len(set(rounds)) == len(rounds)
    last = before[-1]  # the round that no checkpoint had
    again = next(line for line in after[len(before) - 1 :] if place(line) == place(last))
    assert again["metrics"]["loss"] == pytest.approx(last["metrics"]["loss"], rel=1e-2)
    results = json.loads((folder / "results.json").read_text())
    assert {row["test"] for row in results["rows"]} == {"local", "iid"}
    assert all(0 <= row["accuracy"] <= 1 for row in results["rows"])
    found = {path.stem for path in (folder / "weights").iterdir()}
    assert found == KILLED[name]
    assert RunFolder.resume(folder).provenance()["versions"]["nmoe-flower"] == "0.1.0"


def test_what_a_killed_run_had_spent_is_not_forgotten(
    warm_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spectrum and ledger lie in the checkpoint, stages after the one that wrote them."""
    monkeypatch.setenv("NMOE_CACHE", str(warm_cache))
    folder = tmp_path / "private"
    shutil.copytree(OLD / "killed-private", folder)
    assert main(["run", "--resume", str(folder), "--workers", "0", "--no-figures"]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["privacy"]["releases"] == 2
    assert 0 < results["privacy"]["epsilon"] <= results["privacy"]["budget"]
    assert results["representation"]["dimensions"] == 4


def test_a_finished_run_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "finished"
    shutil.copytree(OLD / "finished", folder)
    assert main(["report", str(folder), "--out", str(tmp_path / "report")]) == 0
    table = (tmp_path / "report" / "report.md").read_text()
    for gate in ("federated", "rolling", "local"):
        assert gate in table
    capsys.readouterr()


def test_a_finished_run_is_bundled_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "finished"
    shutil.copytree(OLD / "finished", folder)
    assert main(["bundle", str(folder), "--out", str(tmp_path / "bundles")]) == 0
    for number in range(3):
        ours = Bundle.load(tmp_path / "bundles" / str(number))
        theirs = Bundle.load(OLD / "bundles" / str(number))
        assert ours.manifest.extractor_version == theirs.manifest.extractor_version
        assert ours.manifest.gate_version == theirs.manifest.gate_version
        assert ours.manifest.expert_version == theirs.manifest.expert_version


def test_bundles_are_served_and_asked() -> None:
    with np.load(OLD / "bundles" / "answers.npz") as kept:
        images, probabilities = kept["images"], kept["probabilities"]
    bundles = [Bundle.load(OLD / "bundles" / str(number)) for number in range(3)]

    async def asked() -> np.ndarray:
        servers = [ExpertServer(bundle, None) for bundle in bundles[1:]]
        peers = [
            PeerEntry(f"peer-{number}", number, f"127.0.0.1:{await server.start()}")
            for number, server in enumerate(servers, start=1)
        ]
        try:
            with Client(bundles[0], PeerList(tuple(peers)), top_k=3, deadline=30.0) as client:
                answer = await asyncio.to_thread(client.predict, images)
        finally:
            for server in servers:
                await server.drain(1.0)
        return answer.probabilities

    assert np.allclose(asyncio.run(asked()), probabilities, atol=1e-3)
    assert np.ptp(probabilities, axis=0).max() > 0.1  # or any extractor would do


def test_checkpoints_name_what_they_hold() -> None:
    """The names that a resumed run looks for, as an older version wrote them."""
    (path,) = (OLD / "killed-private" / "checkpoints").iterdir()
    names = {name.split("/")[1] for name in load_arrays(path) if name.startswith("done/")}
    assert names == {"classifier", "findings", "gate", "head", "prototypes"}
