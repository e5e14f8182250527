import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from nmoe_flower.config import Config
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import CheckpointError, ConfigError, RoundError
from nmoe_flower.files import load_arrays
from nmoe_flower.pipeline import Run
from nmoe_flower.results import RunFolder
from nmoe_flower.server_app import _folder, check_start, execute, settle

pytestmark = pytest.mark.flower

TINY = {
    "data.num-clients": 3,
    "data.train-per-client": 40,
    "data.test-per-client": 20,
    "extractor.backbone": "linear",
    "extractor.rounds": 4,
    "expert.hidden": "8",
    "expert.epochs": 1,
    "gate.methods": "federated,local",
    "gate.rounds": 2,
    "run.controls": "",
    "run.checkpoint-every": 1,
}


class Clock:
    """Time that moves only when somebody sleeps."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Arriving:
    """A grid whose nodes connect at the given seconds."""

    def __init__(self, clock: Clock, *seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def get_node_ids(self) -> list[int]:
        return [node for node, second in enumerate(self.seconds) if second <= self.clock.now]


def settled(seconds: list[float], values: Mapping[str, Any]) -> tuple[Config, list[str], float]:
    clock, told = Clock(), []  # type: ignore[var-annotated]
    grid: Any = Arriving(clock, *seconds)
    config = settle(grid, Config.parse(values), tell=told.append, clock=clock, sleep=clock.sleep)
    return config, told, clock.now


def test_all_nodes_there_means_no_waiting_and_no_words() -> None:
    config, told, seconds = settled([0] * 10, {})
    assert (config, told, seconds) == (Config(), [], 0.0)


def test_fewer_nodes_that_stay_are_taken_and_told() -> None:
    """Two at once, a third after 2 s; nothing for 3 s more: three clients after 5 s."""
    config, told, seconds = settled([0, 0, 2], {})
    assert config.data.num_clients == 3
    assert 5.0 <= seconds < 5.5
    assert told[0] == "waiting for nodes: 2 of 10 connected"
    assert "3 SuperNodes are connected but data.num-clients is 10" in told[-1]
    assert "num-supernodes=10" in told[-1]


def test_one_node_is_not_enough_and_the_wait_ends() -> None:
    with pytest.raises(RoundError, match=r"1 node connected within 7 s, data\.num-clients is 10"):
        settled([0], {"run.connect-timeout": 7})


def test_a_run_of_all_takes_no_fewer() -> None:
    """Real nodes come one by one: the second after 30 s, the third after 60 s."""
    all_of_them = {"data.num-clients": 3, "run.wait-for-all": True}
    config, _, seconds = settled([0, 30, 60], all_of_them)
    assert config.data.num_clients == 3
    assert 60.0 <= seconds < 60.5
    with pytest.raises(RoundError, match=r"2 nodes connected within 120 s.*all are needed"):
        settled([0, 30], all_of_them)


def test_what_does_not_fit_so_few_clients_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gate\.top-k is 5 but there are only 2 experts"):
        settled([0, 0], {"gate.top-k": 5})


def run(path: Path, cache: Path, on_round: Any = lambda _: None) -> RunFolder:
    config = Config.parse({**TINY, "data.cache-dir": str(cache), "run.out": str(path.parent),
                           "run.name": path.name})  # fmt: skip
    exists = (path / "config.toml").exists()
    folder = RunFolder.resume(path) if exists else RunFolder.create(path, config)
    with InProcessGrid("nmoe_flower.client_app:app", 3, run_config=config.flat()) as grid:
        execute(grid, folder, on_round=on_round)
    return folder


def test_a_run_leaves_its_folder_and_a_killed_one_ends_the_same(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", tmp_path / "cache")
    weights = {path.stem for path in whole.weights_path.iterdir()}
    assert weights == {"extractor", "head", "gate-federated"}
    results = json.loads(whole.results_path.read_text())
    assert {row["gate"] for row in results["rows"]} >= {"federated", "local", "local+prior"}

    def kill(record: Mapping[str, Any]) -> None:
        if (record["stage"], record["round"]) == ("extractor", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", tmp_path / "cache", kill)
    assert not (tmp_path / "cut" / "results.json").exists()
    cut = run(tmp_path / "cut", tmp_path / "cache")
    for name in weights:
        one, other = (load_arrays(f.weights_path / f"{name}.safetensors") for f in (whole, cut))
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    rounds = [r["round"] for r in cut.rounds() if r["stage"] == "extractor"]
    assert rounds == [1, 2, 3, 4]  # the interrupted third round is written once


# --- the folder of a run under ``flwr run`` ---


class Connected:
    """A grid whose nodes are there; virtual ones, if it pulls from the same process."""

    def __init__(self, nodes: int, *, simulated: bool) -> None:
        self.nodes = nodes
        if simulated:
            self.pull_interval = 0.1

    def get_node_ids(self) -> list[int]:
        return list(range(self.nodes))


def begun(path: Path, **values: Any) -> RunFolder:
    config = Config.parse({**TINY, **values, "run.out": str(path.parent), "run.name": path.name})
    grid: Any = Connected(config.data.num_clients, simulated=False)
    return _folder(grid, path, config)


def test_a_run_that_never_trained_is_begun_anew_and_another_is_not_gone_on_with(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run"
    assert begun(path).config.gate.rounds == 2
    folder = begun(path, **{"gate.rounds": 3})
    assert folder.config.gate.rounds == RunFolder.resume(path).config.gate.rounds == 3
    folder.append_round({"stage": "extractor", "round": 1, "clients": [0]})
    assert begun(path, **{"gate.rounds": 3}).config == folder.config
    with pytest.raises(CheckpointError, match=r"gate\.rounds: 3 in the folder, 2 asked for"):
        begun(path)


def test_a_run_that_settled_for_fewer_nodes_goes_on_with_them(tmp_path: Path) -> None:
    path = tmp_path / "run"
    begun(path).append_round({"stage": "extractor", "round": 1, "clients": [0]})
    assert begun(path, **{"data.num-clients": 10}).config.data.num_clients == 3


def test_a_run_names_what_it_reads_by_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's daemon starts the app in some folder; whoever reruns it stands in another."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    path, given = tmp_path / "run", {"data.dataset": "images"}
    config = begun(path, **given).config
    assert config.data.dataset == str(tmp_path / "images")
    RunFolder(path, config).append_round({"stage": "extractor", "round": 1, "clients": [0]})
    assert begun(path, **given).config == config  # it goes on


def test_a_simulation_is_rehearsed_before_any_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own: the server stays without torch."""
    monkeypatch.setenv("NMOE_CACHE", str(tmp_path / "cache"))
    config = Config.parse({**TINY, "data.crop-padding": 8})
    grid: Any = Connected(3, simulated=True)
    with pytest.raises(ConfigError, match=r"^data\.crop-padding is 8, the images have 8 pixels"):
        check_start(grid, config)
    train, *_ = check_start(grid, Config.parse(TINY))
    # 3 clients of 40: the rest goes to nobody, and it is told.
    assert train.startswith("train: 120 of 1,438 samples are used; 1,318 are not: data.train-per-")


def test_on_a_federation_only_the_files_of_the_server_are_looked_at(tmp_path: Path) -> None:
    grid: Any = Connected(3, simulated=False)
    check_start(grid, Config.parse({**TINY, "data.crop-padding": 8, "run.device": "cuda:7"}))
    gone = str(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"extractor\.start = .*gone: there is no"):
        check_start(grid, Config.parse({**TINY, "extractor.start": gone}))
    aligned = Config.parse({**TINY, "run.system": "aligned", "alignment.trace": gone})
    with pytest.raises(ConfigError, match=r"alignment\.trace: cannot read the trace .*gone"):
        check_start(grid, aligned)


class Interrupting(InProcessGrid):
    """Ctrl-C comes when so many replies have been read: in the middle of a round."""

    left = 10**9

    def pull_messages(
        self, message_ids: Iterable[str], *, timeout: float | None = None
    ) -> Iterable[Message]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().pull_messages(message_ids, timeout=timeout)


@pytest.mark.parametrize("reading", ["shared-head", "private-heads"])
def test_ctrl_c_saves_the_last_finished_round(tmp_path: Path, reading: str) -> None:
    """No checkpoint is due yet; after identity and description two rounds, each trains and tests
    three clients, and one reply of the third.

    The client that answered has stored the third round already, and must not have lost the second.
    """
    values = {**TINY, "extractor.reading": reading, "run.checkpoint-every": 0,
              "gate.methods": "local", "data.cache-dir": str(tmp_path / "cache")}  # fmt: skip
    saved = {}
    for name, left in (("whole", 10**9), ("cut", 3 + 3 + 2 * 6 + 1), ("cut", 10**9)):
        config = Config.parse({**values, "run.out": str(tmp_path), "run.name": name})
        path = tmp_path / name
        folder = RunFolder(path, config) if path.exists() else RunFolder.create(path, config)
        with Interrupting("nmoe_flower.client_app:app", 3, run_config=config.flat()) as grid:
            grid.left = left
            try:
                execute(grid, folder)
            except KeyboardInterrupt:
                found = folder.checkpoints.latest()
                assert found is not None
                assert (found.state["stage"], found.state["round"]) == ("extractor", 2)
        saved[name] = folder
    for weights in sorted(saved["whole"].weights_path.iterdir()):
        one, other = (load_arrays(f.weights_path / weights.name) for f in saved.values())
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    assert [r["stage"] for r in saved["cut"].rounds()] == [
        r["stage"] for r in saved["whole"].rounds()
    ]


@pytest.mark.parametrize(
    ("cost", "wait"), [(0.0, 5.0), (0.1, 5.0), (0.2, 10.0), (0.6, 30.0), (9.0, 30.0)]
)
def test_saving_takes_two_per_cent_of_the_time_at_most(
    monkeypatch: pytest.MonkeyPatch, cost: float, wait: float
) -> None:
    """50 times what the last save took, between 5 and 30 seconds."""
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    grid: Any = Connected(3, simulated=True)
    run = Run(grid, Config.parse(TINY | {"run.checkpoint-every": 0}), lambda record: None)
    run._cost, run._saved_at = cost, clock.now
    clock.now = wait - 0.01
    assert not run.save_due(7)
    clock.now = wait
    assert run.save_due(7)
