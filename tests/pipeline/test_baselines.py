"""Published systems from data to results: what they must equal, what must stay at home."""

import re
import sys
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message

from nmoe_flower import cli, records
from nmoe_flower.catalogue import BASELINES, BaselineEntry
from nmoe_flower.client_app import app
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError
from nmoe_flower.pipeline import stages
from nmoe_flower.pipeline.exchanges import exchanges
from nmoe_flower.records import Action

New = Callable[..., Any]
SMALL = {
    "data.scheme": "pathological",
    "data.classes-per-client": 3,
    "extractor.backbone": "mlp",
    "extractor.widths": "16",
    "baseline.rounds": 3,
    "baseline.local-steps": 2,
    "baseline.batch-size": 16,
    "baseline.tuning-steps": 20,
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


@pytest.mark.parametrize("system", BASELINES)
def test_every_system_runs_tells_its_bytes_and_keeps_what_is_private(
    new_pipeline: New, system: str
) -> None:
    pipeline, heard = new_pipeline(system, {**SMALL, "run.system": system}), Overheard()
    results = pipeline(client_app=heard)
    rows = rows_of(results)
    expected = FIRST.get(system, {system}) | BESIDE.get(system, set())
    assert rows.keys() == {(who, test) for who in expected for test in ("local", "iid")}
    for row in rows.values():
        assert len(row["per_client"]["accuracy"]) == 4
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
    new_pipeline: New, interrupted: type[Exception], system: str
) -> None:
    changes = {**SMALL, "run.system": system, "baseline.rounds": 5}
    whole = new_pipeline(f"{system}-whole", changes)
    results = whole()
    broken = new_pipeline(f"{system}-broken", changes)
    with pytest.raises(interrupted):
        broken(stop=lambda line: line["stage"] == "baseline" and line["round"] == 4)
    assert rows_of(broken()) == rows_of(results)
    for name, value in trained(whole).items():
        np.testing.assert_array_equal(trained(broken)[name], value)


@pytest.mark.parametrize("system", ["fedem", "fedmix"])
@pytest.mark.parametrize("size", ["head", "net"])
def test_one_expert_is_fedavg_bit_for_bit(new_pipeline: New, system: str, size: str) -> None:
    alone = {**SMALL, "baseline.experts": 1, "baseline.evaluate-every": 0}
    plain = new_pipeline("plain", {**alone, "run.system": "fedavg"})
    mixture = new_pipeline(system, {**alone, "run.system": system, "baseline.size": size})
    first, second = rows_of(plain()), rows_of(mixture())
    # whole networks have other names
    named = {
        name.replace("expert.0.extractor.", "trunk.").replace("expert.0.head.", "expert.0."): value
        for name, value in trained(mixture).items()
    }
    assert named.keys() == trained(plain).keys()
    for name, value in trained(plain).items():
        np.testing.assert_array_equal(named[name], value)
    for test in ("local", "iid"):
        ours, theirs = second[system, test]["per_client"], first["fedavg", test]["per_client"]
        assert ours["accuracy"] == theirs["accuracy"]


def test_prox_and_ditto_without_a_pull_are_fedavg_and_local_training(new_pipeline: New) -> None:
    free = {**SMALL, "baseline.proximal": 0.0}
    plain, prox = (new_pipeline(s, {**free, "run.system": s}) for s in ("fedavg", "fedprox"))
    plain()
    prox()
    for name, value in trained(plain).items():
        np.testing.assert_allclose(trained(prox)[name], value, atol=1e-6)
    held = new_pipeline("held", {**SMALL, "run.system": "fedprox", "baseline.proximal": 5.0})
    held()
    start = new_pipeline("start", {**SMALL, "run.system": "fedavg", "baseline.learning-rate": 1e-9})
    start()
    begin = trained(start)
    moved = [
        sum(float(((value - begin[name]) ** 2).sum()) for name, value in trained(one).items())
        for one in (held, plain)
    ]
    assert moved[0] < 0.9 * moved[1]


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
