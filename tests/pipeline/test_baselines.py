"""Published systems from data to results: what they must equal, what must stay at home."""

import re
import sys
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message

from nmoe_flower import cli, records
from nmoe_flower.baselines.member import ExpertNetwork
from nmoe_flower.catalogue import BASELINES, BaselineEntry
from nmoe_flower.client_app import app
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError
from nmoe_flower.pipeline import stages
from nmoe_flower.pipeline.exchanges import exchanges
from nmoe_flower.records import Action

New = Callable[..., Any]
SMALL = {
    "data.num-clients": 2,
    "data.train-per-client": 40,
    "run.checkpoint-every": 1,
    "data.scheme": "pathological",
    "data.classes-per-client": 3,
    "extractor.backbone": "mlp",
    "extractor.widths": "16",
    "baseline.rounds": 3,
    "baseline.local-steps": 1,
    "baseline.batch-size": 16,
    "baseline.tuning-steps": 5,
    "baseline.evaluate-every": 2,
}
BESIDE = {
    "fedavg": {"fine-tuned", "own", "majority"},
    "ditto": {"ditto-global"},
    "fedem": {"uniform", "oracle"},
    "fedmix": {"uniform", "oracle"},
}
FIRST = {"pfl-moe": {"pfl-mf", "pfl-mfe", "pfl-fb", "fedavg"}}


class Overheard:
    """The real app; keeps the names and the bytes of all arrays in every message."""

    def __init__(self) -> None:
        self.up: set[str] = set()
        self.down: set[str] = set()
        self.bytes = {"down": 0, "up": 0}

    def __call__(self, message: Message, context: Context) -> Message:
        reply = app(message, context)
        for content, names, way in (
            (message.content, self.down, "down"),
            (reply.content, self.up, "up"),
        ):
            names |= {name for record in content.array_records.values() for name in record}
            if message.metadata.message_type == Action.BASELINE:
                self.bytes[way] += records.array_bytes(content)
        return reply


def rows_of(results: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["gate"], row["test"]): row for row in results["rows"]}


def trained(pipeline: Any) -> dict[str, np.ndarray]:
    return records.part_of(pipeline.weights, "mixture/")


def first_weights(config: Config) -> dict[str, np.ndarray]:
    network = ExpertNetwork(config, (1, 8, 8), 10)
    return {name: value.numpy() for name, value in network.state_dict().items()}


def far(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    return sum(float(((one[name] - value) ** 2).sum()) for name, value in other.items())


@dataclass
class Whole:
    """A run that went through."""

    pipeline: Any
    rows: dict[tuple[str, str], dict[str, Any]]
    heard: Overheard

    @property
    def trained(self) -> dict[str, np.ndarray]:
        return trained(self.pipeline)


@pytest.fixture(scope="module")
def whole(shared_pipeline: New) -> Callable[[str], Whole]:
    """By system: its run, which happens once."""

    @cache
    def run(system: str) -> Whole:
        pipeline, heard = shared_pipeline(system, {**SMALL, "run.system": system}), Overheard()
        return Whole(pipeline, rows_of(pipeline(client_app=heard)), heard)

    return run


@pytest.mark.parametrize("system", BASELINES)
def test_every_system_runs_tells_its_bytes_and_keeps_what_is_private(
    whole: Callable[[str], Whole], system: str
) -> None:
    done = whole(system)
    pipeline, heard = done.pipeline, done.heard
    expected = FIRST.get(system, {system}) | BESIDE.get(system, set())
    assert done.rows.keys() == {(who, test) for who in expected for test in ("local", "iid")}
    for row in done.rows.values():
        assert len(row["per_client"]["accuracy"]) == 2
        assert row["accuracy"] == pytest.approx(np.mean(row["per_client"]["accuracy"]))
        assert row["extractor"] == system
    assert [line["failures"] for line in pipeline.lines] == [[] for _ in pipeline.lines]
    lines = [line for line in pipeline.lines if line["stage"] == "baseline"]
    assert sum(line["bytes_down"] for line in lines) == heard.bytes["down"] > 0
    assert sum(line["bytes_up"] for line in lines) == heard.bytes["up"] > 0
    shared = {name.partition(".")[0] for name in heard.up | heard.down}
    private_head = system in ("fedper", "fedrep")
    assert shared == ({"trunk"} if private_head else {"trunk", "expert"})
    experts = {name.split(".")[1] for name in heard.up if name.startswith("expert.")}
    assert len(experts) == (0 if private_head else 3 if BASELINES[system].several else 1)
    told = exchanges(pipeline.config)
    happened = Counter(line["stage"] for line in pipeline.lines)
    assert {stage: told[stage] for stage in happened} == happened


@pytest.mark.parametrize("system", BASELINES)
def test_a_killed_run_goes_on_bit_by_bit(
    new_pipeline: New,
    interrupted: type[Exception],
    whole: Callable[[str], Whole],
    system: str,
) -> None:
    broken = new_pipeline(system, {**SMALL, "run.system": system})
    with pytest.raises(interrupted):
        broken(stop=lambda line: line["stage"] == "baseline" and line["round"] == 2)
    assert rows_of(broken()) == whole(system).rows
    for name, value in whole(system).trained.items():
        np.testing.assert_array_equal(trained(broken)[name], value)


@pytest.mark.parametrize("system", ["fedem", "fedmix"])
@pytest.mark.parametrize("size", ["head", "net"])
def test_one_expert_is_fedavg_bit_for_bit(
    new_pipeline: New, whole: Callable[[str], Whole], system: str, size: str
) -> None:
    alone = {**SMALL, "baseline.experts": 1, "baseline.size": size, "run.system": system}
    mixture, plain = new_pipeline(system, alone), whole("fedavg")
    rows = rows_of(mixture())
    # whole networks have other names
    named = {
        name.replace("expert.0.extractor.", "trunk.").replace("expert.0.head.", "expert.0."): value
        for name, value in trained(mixture).items()
    }
    assert named.keys() == plain.trained.keys()
    for name, value in plain.trained.items():
        np.testing.assert_array_equal(named[name], value)
    for test in ("local", "iid"):
        ours, theirs = rows[system, test]["per_client"], plain.rows["fedavg", test]["per_client"]
        assert ours["accuracy"] == theirs["accuracy"]


def test_prox_without_a_pull_is_fedavg_and_a_pull_holds_it_near(
    new_pipeline: New, whole: Callable[[str], Whole]
) -> None:
    plain, begin = whole("fedavg"), first_weights(whole("fedavg").pipeline.config)
    moved = []
    for pull in (0.0, 5.0):
        changes = {**SMALL, "run.system": "fedprox", "baseline.proximal": pull}
        held = new_pipeline(f"pull-{pull:g}", {**changes, "baseline.local-steps": 3})
        held()
        moved.append(far(trained(held), begin))
    assert moved[1] < 0.9 * moved[0]
    free = new_pipeline("free", {**SMALL, "run.system": "fedprox", "baseline.proximal": 0.0})
    free()
    for name, value in plain.trained.items():
        np.testing.assert_allclose(trained(free)[name], value, atol=1e-6)


def test_whole_networks_as_experts(new_pipeline: New) -> None:
    for system in ("fedem", "fedmix"):
        pipeline = new_pipeline(system, {**SMALL, "run.system": system, "baseline.size": "net"})
        rows = rows_of(pipeline())
        assert rows["oracle", "iid"]["accuracy"] >= rows[system, "iid"]["accuracy"]
        assert not any(name.startswith("trunk.") for name in trained(pipeline))


def test_what_no_system_can_do_is_refused() -> None:
    for changes, told in (
        ({"run.system": "fedper", "baseline.size": "net"}, "several experts, got .*fedper"),
        ({"run.system": "fedavg", "extractor.start": "runs/a"}, "extractor.start = runs/a"),
        ({"run.system": "fedem", "baseline.experts": 0}, "baseline.experts"),
        (
            {"run.system": "fedem", "extractor.method": "pretrained",
             "extractor.backbone": "efficientnet-lite0"},
            "trains its trunk",
        ),
        ({"run.system": "fedjetz"}, "run.system"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            Config.parse(changes)


def test_a_reply_of_a_client_that_breaks_is_dropped_alone(
    new_pipeline: New, failing_app: type[Any]
) -> None:
    pipeline = new_pipeline("failing", {**SMALL, "run.system": "fedem"})
    pipeline(client_app=failing_app(Action.BASELINE, partition=1, times=1))
    lines = [line for line in pipeline.lines if line["stage"] == "baseline"]
    assert [f["partition"] for f in lines[0]["failures"]] == [1]
    assert lines[1]["failures"] == []


def test_the_how_to_is_followed_literally(
    new_pipeline: New, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file and its row, as printed; what stands in the table is put there for this test."""
    page = (Path(__file__).parents[2] / "docs/how-to/add-a-system.md").read_text(encoding="utf-8")
    code, row = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    module = types.ModuleType("nmoe_flower.baselines.unsure")
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys.modules["nmoe_flower.baselines"], "unsure", module, raising=False)
    name, entry = next(iter(eval(f"{{{row}}}", {"BaselineEntry": BaselineEntry}).items()))
    monkeypatch.setitem(BASELINES, name, entry)
    monkeypatch.setitem(stages.SYSTEMS, name, stages.SYSTEMS["fedavg"])
    assert cli.main(["systems"]) == 0
    assert "nobody 2026" in capsys.readouterr().out
    pipeline = new_pipeline("unsure", {**SMALL, "run.system": "fedavg"})
    monkeypatch.setitem(BASELINES, "fedavg", entry)  # the names a section allows are read once
    rows = rows_of(pipeline())
    assert rows.keys() == {("unsure", "local"), ("unsure", "iid")}
