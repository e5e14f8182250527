"""The benchmark's arithmetic and text, and that the runners it compares do the same work."""

import json
import math
import mmap
import os
import runpy
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg
from torch.nn import functional as F

from benchmarks.rounds import client, command, measure, plain, remote, runner
from benchmarks.rounds.bare import BareLoop
from benchmarks.rounds.command import other_lines, table
from benchmarks.rounds.kinds import KINDS, Kind
from benchmarks.rounds.measure import RoundFigures, medians
from benchmarks.rounds.model import LEARNING_RATE, batches, build_model
from benchmarks.rounds.remote import RUNNERS, Remote
from benchmarks.yardstick import importing, machine_line, proportional_bytes, ratio, told
from nmoe_flower import cli, records
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import EngineError
from nmoe_flower.strategies import FedCE

needs_proc = pytest.mark.skipif(not Path("/proc").exists(), reason="looks into /proc")

SOURCE = {
    "started": "2026-01-02T03:04:05+00:00",
    "seed": 7,
    "versions": {"python": "3.11.7", "torch": "2.9"},
    "machine": {"cpu": "Some CPU", "cores": 2},
}


def _by_hand(kind: Kind, seed: int, count: int) -> np.ndarray:
    """Federated averaging once more, in float64 and with no code of the runners."""
    model = build_model(kind, seed).double()
    weights = [p.detach().clone() for p in model.parameters()]
    for server_round in range(1, count + 1):
        sums = [torch.zeros_like(w) for w in weights]
        for partition in range(kind.clients):
            own = [w.clone().requires_grad_() for w in weights]
            for images, labels in batches(kind, seed, partition, server_round):
                loss = F.cross_entropy(F.linear(images.double(), own[0], own[1]), labels)
                steps = torch.autograd.grad(loss, own)
                own = [
                    (w - LEARNING_RATE * step).detach().requires_grad_()
                    for w, step in zip(own, steps, strict=True)
                ]
            sums = [s + w.detach() for s, w in zip(sums, own, strict=True)]
        weights = [s / kind.clients for s in sums]
    return np.concatenate([w.numpy().ravel() for w in weights])


def test_two_rounds_of_bare_and_inprocess_end_at_the_same_weights() -> None:
    kind = KINDS["tiny"]
    start = np.concatenate([p.detach().numpy().ravel() for p in build_model(kind, 3).parameters()])
    with closing(BareLoop(kind, 3, workers=0)) as loop:
        assert len(loop.rounds(2)) == 2
        bare = loop.weights.copy()
    strategy = FedCE(fraction_evaluate=0.0, min_train_nodes=10, min_available_nodes=10)
    with InProcessGrid(client.ours, 10, run_config={"kind": "tiny", "seed": 3}) as grid:
        initial = build_model(kind, 3).state_dict()
        result = strategy.start(grid, initial_arrays=records.pack(initial), num_rounds=2)
    flat = [value.ravel() for value in records.to_numpy(result.arrays).values()]
    expected = _by_hand(kind, 3, 2)
    assert np.abs(expected - start).max() > 1e-3
    np.testing.assert_allclose(bare, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(flat), bare, rtol=0, atol=1e-6)


def test_another_order_of_the_channels_takes_the_same_steps() -> None:
    """To the rounding of float32, whose sums come in another order."""
    kind, found = KINDS["residual"], []
    for last in (False, True):
        strategy = FedCE(fraction_evaluate=0.0, min_train_nodes=10, min_available_nodes=10)
        config: dict[str, bool | int | float | str]
        config = {"kind": kind.name, "seed": 0, "channels-last": last}
        with InProcessGrid(client.ours, 10, run_config=config) as grid:
            initial = records.pack(build_model(kind, 0).state_dict())
            arrays = strategy.start(grid, initial_arrays=initial, num_rounds=1).arrays
        found.append(np.concatenate([v.ravel() for v in records.to_numpy(arrays).values()]))
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-6)


def test_the_stock_app_does_the_same_steps() -> None:
    kind = KINDS["tiny"]
    with closing(BareLoop(kind, 0, workers=0)) as loop:
        loop.rounds(1)
        bare = loop.weights.copy()
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=10, min_available_nodes=10)
    with InProcessGrid(client.stock, 10, run_config={"kind": "tiny", "seed": 0}) as grid:
        initial = ArrayRecord(build_model(kind, 0).state_dict())
        result = strategy.start(grid, initial_arrays=initial, num_rounds=1)
    flat = np.concatenate([array.numpy().ravel() for array in result.arrays.values()])
    np.testing.assert_allclose(flat, bare, rtol=0, atol=1e-6)


def test_rounds_go_on_from_the_weights_of_the_last_call() -> None:
    strategy = FedCE(fraction_evaluate=0.0, min_train_nodes=10, min_available_nodes=10)
    sent: list[np.ndarray] = []
    with InProcessGrid(client.ours, 10, run_config={"kind": "tiny", "seed": 0}) as grid:
        run = runner.rounds_of(strategy, grid, runner._initial(strategy, grid))
        for _ in range(2):
            seconds = run(1)
            assert len(seconds) == 1
            assert seconds[0] > 0
            sent.append(strategy.sent["0.weight"].copy())
    np.testing.assert_array_equal(sent[0], build_model(KINDS["tiny"], 0)[0].weight.detach())
    assert np.abs(sent[1] - sent[0]).max() > 1e-4


@pytest.mark.parametrize(
    ("blocks", "bare", "expected"),
    [
        ([[2.0]], [[1.0]], 2.0),
        # Pairs: 3 / 2, then 50 / 40 (a slow spell hit both), then 4 / 2: the middle one is 1.5.
        ([[3.0, 3.0, 9.0], [50.0], [4.0]], [[2.0, 1.0, 2.0], [40.0], [2.0]], 1.5),
    ],
)
def test_ratio(blocks: list[list[float]], bare: list[list[float]], expected: float) -> None:
    assert ratio(blocks, bare) == expected


def test_ratio_wants_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratio([[1.0], [1.0]], [[1.0]])


class _Clock:
    """A runner whose rounds take a fixed time; it writes down who was asked."""

    asked: list[str] = []
    closed: list[str] = []

    def __init__(
        self, runner: str, kind: Kind, *, seed: int, workers: int, python: str = sys.executable
    ) -> None:
        self.runner = runner
        self.python = python
        self.start_seconds, self.used = 1.0, 0.0
        times = {"bare": 0.5, "inprocess": 0.6, "ray": 0.75, "stock": 2.0, "pfl": 1.0}
        self.seconds = times[runner]

    def __enter__(self) -> "_Clock":
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.append(self.runner)

    def ask(self, what: str, count: int) -> list[float]:
        self.asked.append(f"{what} {self.runner} {count}")
        self.used += count * self.seconds * 3
        return [0.005 if what == "echo" else self.seconds] * count

    def cpu_seconds(self) -> float:
        return self.used

    def peak_memory(self, rounds: int) -> float:
        self.asked.append(f"memory {self.runner} {self.python}")
        return 1e9 * self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[_Clock]:
    monkeypatch.setattr(_Clock, "asked", [])
    monkeypatch.setattr(_Clock, "closed", [])
    monkeypatch.setattr(measure, "Remote", _Clock)
    return _Clock


def test_runners_take_turns_in_alternating_order(clock: type[_Clock]) -> None:
    kind = KINDS["many"]
    bare, ours = measure.measure_kind(kind, ["inprocess"], rounds=5, seed=0, workers=2)
    turns = [line.split()[1] for line in clock.asked if line.startswith("rounds")]
    assert turns[:6] == ["inprocess", "bare", "bare", "inprocess", "inprocess", "bare"]
    assert len(ours.blocks) == len(ours.bare_blocks) == 5
    assert ours.ratio == pytest.approx(0.6 / 0.5)
    assert ours.cpu_ratio == pytest.approx(0.6 / 0.5)
    assert ours.cpu[0] == pytest.approx([3 * 0.6])
    assert ours.floor == 5.0
    assert (ours.memory, bare.memory) == (0.6e9, 0.5e9)
    assert (bare.ratio, bare.round_seconds) == (1.0, 0.5)
    assert clock.closed == ["inprocess", "bare"]


def test_measuring_goes_on_until_enough_time_was_measured(clock: type[_Clock]) -> None:
    _, ours = measure.measure_kind(KINDS["many"], ["inprocess"], rounds=1, seed=0, workers=2)
    assert len(ours.blocks) == 3  # 1.1 s a pair, at least 3 s


def test_table_names_goals_and_whether_they_are_met() -> None:
    lines = table(
        [
            RoundFigures("tiny", "bare", 2.0, [[0.1]]),
            RoundFigures(
                "tiny", "inprocess", 9.0, [[0.11]], [[0.1]], [[0.3]], [[0.2]], memory=1.5e9
            ),
            RoundFigures("short", "ray", 20.0, [[0.4]], [[0.25]], [[math.nan]], [[math.nan]]),
        ]
    ).splitlines()
    assert (
        " ".join(lines[0].split()) == "kind runner to round 1 per round x bare x cpu memory goals"
    )
    assert lines[1].split() == ["tiny", "bare", "2.0", "s", "0.1000", "s", "1.000", "1.000", "-"]
    assert lines[2].endswith("1.100  1.500  1.50 GB  x bare <= 1.2 met; round 1 <= 8 s missed")
    assert lines[3].endswith("1.600      -        -  x bare <= 1.5 missed")


def test_the_median_of_all_passes_is_told() -> None:
    def one(seconds: float, memory: float, runner: str = "pfl") -> RoundFigures:
        blocks, bare = [[seconds]], [[0.1]]
        return RoundFigures("tiny", runner, 10 * seconds, blocks, bare, blocks, bare, memory=memory)

    passes = [one(0.2, 1.0), one(0.9, 2.0, "stock"), one(0.5, 4.0), one(0.3, 2.5)]
    found, other = medians(passes)
    assert (found.kind, found.runner, other.runner) == ("tiny", "pfl", "stock")
    assert (found.start_seconds, found.round_seconds, found.memory) == (3.0, 0.3, 2.5)
    assert (found.ratio, found.cpu_ratio) == pytest.approx((3, 3))
    assert found.floor is None
    assert len(table(passes).splitlines()) == 3


def test_passes_are_repeated_and_pfl_has_an_interpreter_of_its_own(
    clock: type[_Clock], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    path = tmp_path / "bench.json"
    given = ["--kind", "tiny", "--runner", "pfl,stock,inprocess", "--repeat", "2", "--rounds", "1"]
    assert command.main([*given, "--pfl-python", str(python), "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    measured = [row["runner"] for row in found["rows"]]
    assert measured == ["bare", "inprocess", "stock", "pfl", "bare", "inprocess", "pfl"]
    assert [row["runner"] for row in found["medians"]] == measured[:4]
    assert found["medians"][3]["ratio"] == 2.0
    assert "not-measured" not in found
    assert f"memory pfl {python}" in clock.asked
    assert f"memory inprocess {sys.executable}" in clock.asked
    assert "1.00 GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo \"ModuleNotFoundError: No module named 'pfl'\" >&2; exit 1",
            "No module named 'pfl'",
        ),
        ("exit 3", "it ended without a word"),
        (None, "cannot be started: No such file or directory"),
    ],
)
def test_without_pfl_the_rest_is_measured_and_the_reason_told(
    script: str | None,
    reason: str,
    clock: type[_Clock],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    python = tmp_path / "python"
    if script is not None:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    path = tmp_path / "bench.json"
    given = ["--kind", "tiny", "--runner", "inprocess,pfl", "--rounds", "1", "--json", str(path)]
    assert command.main([*given, "--pfl-python", str(python)]) == 0
    said = capsys.readouterr()
    last = said.out.splitlines()[-2]
    assert last.startswith("pfl is not measured: ")
    assert last in said.err
    assert reason in last
    assert str(python) in last
    assert ("bench-pfl" in last) == (script is not None)
    found = json.loads(path.read_text())
    assert [row["runner"] for row in found["rows"]] == ["bare", "inprocess"]
    assert found["not-measured"] == {"pfl": last.partition(": ")[2]}


@needs_proc
def test_memory_is_the_most_that_all_processes_of_a_runner_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sampled while the rounds run: 60 MB that this process holds no longer at their end."""
    sampled = threading.Event()
    rest = 5e8

    def measure_one(pid: int) -> int:
        return int(rest) if pid == 1 else proportional_bytes(pid)

    class Runner(Remote):
        def __init__(self) -> None:
            self._family = [os.getpid(), 1]

        def _memory(self) -> float:
            found = super()._memory()
            sampled.set()
            return found

        def ask(self, what: str, count: int) -> list[float]:
            with mmap.mmap(-1, 60_000_000) as pages:  # new ones, whatever the heap has free
                np.frombuffer(pages, np.uint8)[:] = 1
                sampled.clear()
                assert sampled.wait(20)
                sampled.clear()
                assert sampled.wait(20)
            return [1.0] * count

    monkeypatch.setattr(remote, "proportional_bytes", measure_one)
    before = proportional_bytes(os.getpid())
    assert Runner().peak_memory(1) - rest - before > 5e7


@pytest.mark.parametrize("workers", [1, 2])
def test_the_processes_of_pfl_find_each_other(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    ended: list[int] = []

    class Process:
        def __init__(self, argv: list[str], env: dict[str, str]) -> None:
            started.append((argv, env))

        def wait(self) -> None:
            ended.append(1)

    own = {"PATH": "/bin"}
    monkeypatch.setattr(plain.os, "environ", own)
    monkeypatch.setattr(plain.subprocess, "Popen", Process)
    with plain._met(workers, ["pfl", "tiny"]):
        assert own.get("RANK") == ("0" if workers > 1 else None)
        assert not ended
    assert len(started) == len(ended) == workers - 1
    for argv, environment in started:
        assert argv[1:] == ["-m", "benchmarks.rounds.plain", "pfl", "tiny", "--follow"]
        assert (environment["RANK"], environment["WORLD_SIZE"]) == ("1", "2")
        assert environment["MASTER_PORT"] == own["MASTER_PORT"]


def test_other_lines() -> None:
    figures = [
        RoundFigures("tiny", runner, 1.0, *[[[0.1]]] * 4, floor=floor)
        for runner, floor in (("bare", None), ("inprocess", 12.0), ("ray", 99.0))
    ]
    assert other_lines(figures, {"fedavg": 5.4e9}) == [
        "exchange of 1 kB with 10 nodes, tiny inprocess: 12.0 ms (<= 10 ms missed)",
        "exchange of 1 kB with 10 nodes, tiny ray: 99.0 ms (<= 100 ms met)",
        "peak memory of the server, 100 clients x 45 MB, fedavg: 5.40 GB",
    ]


def test_machine_line() -> None:
    assert machine_line(SOURCE, 2) == (
        "Some CPU, 2 cores, 2 workers; python 3.11.7, torch 2.9; 2026-01-02T03:04:05+00:00; seed 7"
    )


def test_the_command_prints_and_writes_the_same_figures(
    clock: type[_Clock], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bench.json"
    assert (
        command.main(
            [
                "--kind",
                "short",
                "--runner",
                "inprocess,ray,stock",
                "--json",
                str(path),
                "--seed",
                "7",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    found = json.loads(path.read_text())
    measured = [name for name in RUNNERS if name not in ("pfl", "channels-last")]
    assert [row["runner"] for row in found["rows"]] == measured
    # A goal that is missed is no failure: ray is at 1.5 (met), inprocess at 1.2 (missed).
    assert [row["ratio-to-bare"] for row in found["rows"]] == pytest.approx([1, 1.2, 1.5, 4])
    for row in found["rows"]:
        assert f"{row['ratio-to-bare']:.3f}" in out
        assert row["rounds"] >= KINDS["short"].rounds
    assert found["provenance"]["seed"] == 7
    assert "x bare <= 1.07 missed" in out


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--kind", "tiny,huge"], "'tiny,huge'; allowed: names of tiny, short, residual, many"),
        (
            ["--runner", "spark"],
            "'spark'; allowed: names of bare, inprocess, channels-last, ray, stock, pfl",
        ),
        (["--workers", "0"], "'0'; allowed: a whole number from 1"),
        (["--rounds", "-3"], "'-3'; allowed: a whole number from 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(argv)
    assert left.value.code == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "parameters", "megabytes"),
    [
        ("tiny", 7850, 0.03),
        ("short", 299158, 1.2),
        ("residual", 155786, 0.62),
        ("many", 1616918, 6.5),
    ],
)
def test_model_sizes_are_those_that_are_claimed(
    name: str, parameters: int, megabytes: float
) -> None:
    count = sum(p.numel() for p in build_model(KINDS[name], 0).parameters())
    assert count == parameters
    assert 4e-6 * count == pytest.approx(megabytes, rel=0.05)


def test_nmoe_bench_says_where_the_benchmarks_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["bench", "rounds", "--kind", "tiny"])
    assert leaving.value.code == 2
    assert "in a checkout: python -m benchmarks.rounds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (EngineError("no server"), 1, "benchmarks: error: no server"),
        (ModuleNotFoundError(name="grpc_health"), 1, "error: needs grpc_health: pip install -e"),
        (KeyboardInterrupt(), 130, "benchmarks: interrupted"),
    ],
)
def test_what_goes_wrong_is_told_in_a_line(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise error

    assert told(main) == code
    told_lines = capsys.readouterr().err.splitlines()
    assert len(told_lines) == 1
    assert said in told_lines[0]


def test_a_benchmark_starts_from_any_folder_that_finds_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.rounds", "--help"],
        cwd=tmp_path, env=importing(os.environ), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: python -m benchmarks.rounds ")


@pytest.mark.parametrize("name", ["align", "fedsc", "infer", "rounds", "sizes", "sums"])
def test_every_benchmark_says_how_it_is_started(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)
    monkeypatch.setattr(sys, "argv", [f"benchmarks.{name}", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m benchmarks.{name} ")
