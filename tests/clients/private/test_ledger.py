import json
from pathlib import Path

import pytest

from nmoe_flower import files
from nmoe_flower.clients.private import ledger as module
from nmoe_flower.clients.private.ledger import Ledger
from nmoe_flower.errors import BudgetError, CheckpointError, ConfigError
from nmoe_flower.privacy import Budget, noise_multiplier_for

BUDGET = Budget(epsilon=4.0, delta=1e-3)
NOISE = noise_multiplier_for(4.0, 1e-3, releases=3)


def opened(folder: Path, client: int = 2) -> Ledger:
    return Ledger(folder, client, BUDGET)


def spent(folder: Path) -> dict[str, list[list[float]]]:
    state: dict[str, dict[str, list[list[float]]]] = json.loads(
        (folder / "privacy.json").read_text(encoding="utf-8")
    )
    return state["spent"]


def test_every_release_is_on_the_disk_and_the_budget_outlives_the_process(tmp_path: Path) -> None:
    for release in (1, 2, 3):
        ledger = opened(tmp_path)  # as after a restart
        assert ledger.affords(NOISE)
        ledger.spend(NOISE, num_examples=100)
        assert spent(tmp_path) == {"2": [[NOISE, release]]}
    for again in (ledger, opened(tmp_path)):
        assert not again.affords(NOISE)
        with pytest.raises(BudgetError, match=r"client 2 has made 3 releases at epsilon 4[ ;.,]"):
            again.spend(NOISE, num_examples=100)
    assert spent(tmp_path) == {"2": [[NOISE, 3]]}


def test_releases_with_other_noise_add_up(tmp_path: Path) -> None:
    """Costs are 1 / noise^2: 3 of the budget's 3 units are gone after 1 and 4 halves."""
    opened(tmp_path).spend(NOISE, num_examples=100)
    for _ in range(4):
        opened(tmp_path).spend(NOISE * 2**0.5 * (1 + 1e-9), num_examples=100)
    assert not opened(tmp_path).affords(NOISE * 10)


def test_a_round_is_paid_for_once(tmp_path: Path) -> None:
    """Killed between paying and releasing: the round comes again, and costs nothing."""
    for _ in range(2):
        opened(tmp_path).spend(NOISE, num_examples=100, server_round=5)
    assert spent(tmp_path) == {"2": [[NOISE, 1]]}
    for server_round in (8, 9):
        opened(tmp_path).spend(NOISE, num_examples=100, server_round=server_round)
    assert spent(tmp_path) == {"2": [[NOISE, 3]]}
    assert opened(tmp_path).affords(NOISE, server_round=9)
    opened(tmp_path).spend(NOISE, num_examples=100, server_round=9)
    assert not opened(tmp_path).affords(NOISE, server_round=10)
    assert not opened(tmp_path).affords(NOISE)
    with pytest.raises(BudgetError):
        opened(tmp_path).spend(NOISE, num_examples=100, server_round=5)


def test_releases_outside_of_rounds_are_never_free(tmp_path: Path) -> None:
    for _ in range(3):
        opened(tmp_path).spend(NOISE, num_examples=100)
    assert not opened(tmp_path).affords(NOISE)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"3",
        b"{}",
        b'{"spent": []}',
        b'{"spent": {"2": 3}}',
        b'{"spent": {"two": [[2.0, 1]]}}',
        b'{"spent": {"2": [[0.0, 1]]}}',
        b'{"spent": {"2": [[2.0, -1]]}}',
        b'{"spent": {"2": [[NaN, 1]]}}',
        b'{"spent": {"2": [[2.0, 1e999]]}}',
        b'{"spent": {"2": [[2.0, 1]]}, "round": "x"}',
        b'{"spent": {"2": [[2.0, 1]]}, "round": null}',
        b'{"spent": {"2": [[2.0, 1.5]]}}',  # would be 1
        b'{"spent": {"2": [[2.0, true]]}}',
        b'{"spent": {"2": [[2.0, 1e30]]}}',
        b'{"spent": {"2": [[2.0, 1]]}, "round": -1}',
        b'{"spent": {"2": [[2.0, 1]]}, "round": 1e300}',
    ],
)
def test_a_damaged_ledger_is_refused_and_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "privacy.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot read the ledger .*privacy\.json: "):
        opened(tmp_path)
    assert path.read_bytes() == content


def test_a_ledger_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "privacy.json").mkdir()
    with pytest.raises(CheckpointError, match="cannot read the ledger"):
        opened(tmp_path)


def test_delta_must_be_below_one_in_the_number_of_samples(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="delta"):
        opened(tmp_path).spend(NOISE, num_examples=1000)
    assert not (tmp_path / "privacy.json").exists()
    opened(tmp_path).spend(NOISE, num_examples=999)


def test_it_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without, a power cut could forget a release that has left."""
    synced = []

    def write_bytes(path: Path, data: bytes, *, sync: bool = False) -> None:
        synced.append(sync)
        files.write_bytes(path, data, sync=sync)

    monkeypatch.setattr(module, "write_bytes", write_bytes)
    opened(tmp_path).spend(NOISE, num_examples=100)
    assert synced == [True]


@pytest.mark.parametrize("holders", ['{"3": [[2.0, 1]]}', '{"-1": [[2.0, 1]]}', "{}"])
def test_the_ledger_of_another_client_is_refused(holders: str, tmp_path: Path) -> None:
    """Else a device that is given another partition would have spent nothing."""
    (tmp_path / "privacy.json").write_text(f'{{"spent": {holders}, "round": 1}}')
    with pytest.raises(CheckpointError, match=r"that of client (3|-1|nobody), this is client 2"):
        opened(tmp_path)


def test_releases_of_one_noise_add_up_however_they_are_written(tmp_path: Path) -> None:
    for spent in ("[[2.0, 3]]", "[[2.0, 1], [2.0, 2]]", "[[2, 2], [2.0, 1]]"):
        (tmp_path / "privacy.json").write_text(f'{{"spent": {{"2": {spent}}}}}')
        opened(tmp_path).spend(4.0, num_examples=100)
        assert '"2": [[2.0, 3], [4.0, 1]]' in (tmp_path / "privacy.json").read_text()


def test_noise_may_be_as_large_as_floats_are(tmp_path: Path) -> None:
    """A release under noise of 1e300 costs 1e-600 of a mu: nothing."""
    (tmp_path / "privacy.json").write_text('{"spent": {"2": [[1e300, 1]]}}')
    assert opened(tmp_path).affords(NOISE)
