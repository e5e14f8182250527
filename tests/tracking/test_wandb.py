"""W&B's offline files, read as its programs read them: LevelDB's log format around messages."""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nmoe_flower.results import RunFolder
from nmoe_flower.tracking import Track, Tracked, TrackedRound
from nmoe_flower.tracking.wandb import WeightsAndBiases
from tests.tracking.conftest import FINAL, finished, record
from tests.tracking.test_tracked import follow

pytest.importorskip("wandb")

BLOCK, HEADER, MARK = 32768, 7, 7  # bytes
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, message = path.read_bytes(), MARK, b""
    assert data[:4] == b":W&B"
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        message += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (WHOLE, LAST):
            yield Record.FromString(message)
            message = b""


class Part:
    """One start of a run, as its file tells it."""

    def __init__(self, path: Path) -> None:
        import json

        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.exit_code = -1
        for one in records(path):
            kind = one.WhichOneof("record_type")
            if kind == "run":
                self.run = one.run
                self.config = {i.key: json.loads(i.value_json) for i in one.run.config.update}
            elif kind == "history":
                items = one.history.item
                self.history.append(
                    {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                )
            elif kind == "summary":
                for i in one.summary.update:
                    self.summary[i.key or "/".join(i.nested_key)] = json.loads(i.value_json)
            elif kind == "exit":
                self.exit_code = one.exit.exit_code


def parts(folder: Path) -> list[Part]:
    """Every start of a run, once W&B's own process has ended, which writes the files."""
    import wandb

    wandb.teardown()
    found = sorted(
        folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime
    )
    return [Part(path) for path in found]


def test_what_was_written_reads_back_and_goes_on(
    folder: RunFolder, offline: Mapping[str, Any]
) -> None:
    first = record("extractor", 1, loss=2.0, routing=[0.5])
    more = [record("extractor", 2, loss=1.0), record("gate/rolling", 1, loss=3.0)]
    assert follow(folder, "wandb", rounds=[first, record("extractor", 2)], end=False) == ""
    assert follow(folder, "wandb", rounds=more) == ""
    one, two = parts(folder.path)
    assert one.run.run_id == two.run.run_id
    assert (two.run.project, two.run.display_name) == ("nmoe-flower", "one")
    assert one.config["data.tau"] == 0.5
    assert one.config["provenance"]["git.revision"] == "1f"
    (row,) = one.history
    assert (row["_step"], row["extractor/round"], row["extractor/loss"]) == (1, 1, 2.0)
    assert [(row["_step"], row.get("extractor/loss")) for row in two.history[:2]] == [
        (2, 1.0), (3, None),
    ]  # fmt: skip
    assert (two.history[1]["gate/rolling/round"], two.history[1]["gate/rolling/loss"]) == (1, 3.0)
    assert FINAL.items() <= two.summary.items()
    assert two.history[-1]["results/nrows"] == 2
    assert two.history[-1]["figures/accuracy/width"] == 4
    assert two.exit_code == 0


def test_a_study_s_runs_are_a_group_with_tags(
    folder: RunFolder, offline: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    track = Track.of(Track(["wandb"], "table-2", {"variant": "b" * 99}))
    with pytest.raises(KeyboardInterrupt), Tracked(track, print) as tracked:  # noqa: PT012
        tracked.begin(folder)
        raise KeyboardInterrupt
    (part,) = parts(folder.path)
    assert (part.run.project, part.run.run_group) == ("mine", "table-2")
    assert list(part.run.tags) == [f"variant:{'b' * 56}"]
    assert part.exit_code == 130


def test_a_round_is_not_held_back_until_the_next() -> None:
    """Whoever is killed would lose it, though it counts as kept."""
    logged = []

    class Run:
        def define_metric(self, *_: Any, **__: Any) -> None:
            pass

        def log(self, values: Any, *, step: int, commit: bool) -> None:
            logged.append((values, step, commit))

    tracker = WeightsAndBiases()
    tracker._run = Run()  # type: ignore[assignment]
    tracker.rounds([TrackedRound("extractor", 3, {"extractor/loss": 0.5}, 4, 0.0)])
    assert logged == [({"extractor/loss": 0.5, "extractor/round": 3}, 4, True)]


def test_online_without_a_login_asks_nobody(
    folder: RunFolder, offline: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(folder.path))
    said = follow(folder, "wandb")
    assert "WANDB_MODE is online, but nobody is logged in: wandb login" in said
    assert finished(folder)
