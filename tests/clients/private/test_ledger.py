import json
from pathlib import Path

import pytest

from nmoe_flower import files
from nmoe_flower.clients.private import Ledger, StepLedger
from nmoe_flower.clients.private import ledger as module
from nmoe_flower.errors import BudgetError, CheckpointError, ConfigError
from nmoe_flower.privacy import Budget, noise_multiplier_for, steps_epsilon

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


# --- steps of DP-SGD ---

STEP = {"noise_multiplier": 2.0, "sample_rate": 0.1, "steps": 3}


@pytest.fixture
def steps(tmp_path):
    def make(epsilon=8.0, adjacency="add-remove"):
        return StepLedger(tmp_path, Budget(epsilon, 1e-5), adjacency=adjacency)

    return make


def test_steps_are_on_the_disk_before_they_are_taken(steps):
    assert steps().pay(1, "a", **STEP) == 0
    again = steps()
    assert again.history == [(2.0, 0.1, 3)]
    again.pay(2, "b", **STEP)
    cost = steps().cost
    history = [(2.0, 0.1, 6)]
    assert (cost.steps, cost.epsilon) == (6, steps_epsilon(history, 1e-5))
    assert cost.replaced == steps_epsilon(history, 1e-5, adjacency="replace-one")


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
def test_beyond_the_budget_nothing_is_paid(steps, adjacency):
    """The budget is what two rounds cost, in the adjacency it is meant in."""
    budget = steps_epsilon([(2.0, 0.1, 6)], 1e-5, adjacency=adjacency)
    for server_round in (1, 2):
        steps(budget, adjacency).pay(server_round, "x", **STEP)
    with pytest.raises(BudgetError, match="6 steps have cost epsilon"):
        steps(budget, adjacency).pay(3, "x", **STEP)
    assert steps().history == [(2.0, 0.1, 6)]


def test_the_same_round_again_is_the_same_attempt_and_free(steps):
    first = steps()
    first.pay(4, "a", **STEP)
    assert steps().pay(4, "a", **STEP) == 0  # killed before it was taken
    assert first.release(4, "out")
    assert steps().pay(4, "a", **STEP) == 0  # killed after it was sent
    assert steps().release(4, "out")
    assert not steps().release(4, "other bits")
    assert steps().history == [(2.0, 0.1, 3)]


def test_other_weights_in_the_same_round_are_paid_for_and_get_other_noise(steps):
    book = steps()
    assert [book.pay(4, received, **STEP) for received in ("a", "b", "a")] == [0, 1, 2]
    assert steps().history == [(2.0, 0.1, 9)]


def test_noise_that_cannot_be_repeated_is_paid_for_once_it_has_left(steps):
    book = steps()
    assert book.pay(1, "a", **STEP, repeatable=False) == 0
    assert book.pay(1, "a", **STEP, repeatable=False) == 0  # nothing has left
    assert book.release(1, "out")
    assert book.pay(1, "a", **STEP, repeatable=False) == 1
    assert book.release(1, "other bits")
    assert steps().history == [(2.0, 0.1, 6)]


def test_rounds_that_no_resumed_run_asks_for_are_dropped(steps, tmp_path):
    book = steps()
    for server_round in (1, 2, 3, 4):
        book.pay(server_round, "a", **STEP)
        book.release(server_round, "out", kept=[2, 3] if server_round == 4 else [])
    state = json.loads((tmp_path / StepLedger.NAME).read_text())
    assert sorted(state["rounds"]) == ["3", "4"]
    assert state["steps"] == [[2.0, 0.1, 12]]


@pytest.mark.parametrize(
    "text", ["", "{}", '{"steps": [[2.0, 0.1]], "rounds": {}}', '{"steps": 3, "rounds": {}}',
             '{"steps": [[-2.0, 0.1, 3]], "rounds": {}}', '{"steps": [], "rounds": {"x": {}}}',
             '{"steps": [[2.0, 0.1, 2.5]], "rounds": {}}',
             '{"steps": [[2.0, 0.1, true]], "rounds": {}}',
             '{"steps": [], "rounds": {"1": {"received": "a", "sent": null, "attempt": 0}}}',
             *(f'{{"steps": [[2.0, 0.1, 3]], "rounds": {{"1": {entry}}}}}' for entry in (
                 "{}", "[]", '{"received": "a", "sent": null}', '{"received": "a", "attempt": 0}',
                 '{"received": "a", "sent": null, "attempt": -1}',
                 '{"received": "a", "sent": 3, "attempt": 0}'))],
)  # fmt: skip
def test_a_damaged_ledger_of_steps_pays_nothing(steps, tmp_path, text):
    (tmp_path / StepLedger.NAME).write_text(text)
    with pytest.raises(CheckpointError, match="cannot read the ledger"):
        steps()


def test_steps_of_one_kind_add_up_however_they_are_written(steps, tmp_path):
    (tmp_path / StepLedger.NAME).write_text('{"steps": [[2.0, 0.1, 5], [2, 0.1, 2]], "rounds": {}}')
    assert steps().history == [(2.0, 0.1, 7)]


# --- as they have always been written ---

MATRICES = b'{"spent": {"2": [[1.425612369421363, 2]]}, "round": 8}'
STEPS = (
    b'{"steps": [[2.0, 0.1, 6], [2.5, 0.1, 3]], "rounds": '
    b'{"1": {"received": "aaaaaaaa", "sent": "bbbbbbbb", "attempt": 0}, '
    b'"2": {"received": "eeeeeeee", "sent": null, "attempt": 1}}}'
)
"""Files of before ledgers had one module, after the calls that the test below makes again."""


def test_ledgers_of_earlier_versions_are_read_and_written_alike(tmp_path: Path) -> None:
    for folder in (tmp_path / "old", tmp_path / "new"):
        folder.mkdir()
    (tmp_path / "old" / "privacy.json").write_bytes(MATRICES)
    (tmp_path / "old" / "privacy-weights.json").write_bytes(STEPS)
    for server_round in (5, 8):
        opened(tmp_path / "new").spend(NOISE, num_examples=100, server_round=server_round)
    book = StepLedger(tmp_path / "new", Budget(8.0, 1e-5), adjacency="replace-one")
    for server_round, received, sent in ((1, "a" * 8, "b" * 8), (2, "c" * 8, "d" * 8)):
        book.pay(server_round, received, **STEP)
        book.release(server_round, sent)
    book.pay(2, "e" * 8, **{**STEP, "noise_multiplier": 2.5})
    assert (tmp_path / "new" / "privacy.json").read_bytes() == MATRICES
    assert (tmp_path / "new" / "privacy-weights.json").read_bytes() == STEPS
    old = opened(tmp_path / "old")
    assert old.affords(NOISE, server_round=9)
    old.spend(NOISE, num_examples=100, server_round=9)
    assert not opened(tmp_path / "old").affords(NOISE)
    known = StepLedger(tmp_path / "old", Budget(8.0, 1e-5), adjacency="replace-one")
    assert known.history == [(2.0, 0.1, 6), (2.5, 0.1, 3)]
    assert known.pay(1, "a" * 8, **STEP) == 0  # known, and free
    assert known.pay(2, "e" * 8, **STEP) == 1
    assert not known.release(1, "other bits")
