"""Published systems whose trunk begins at the extractor of stage 1."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message

from nmoe_flower import records
from nmoe_flower.baselines.member import Member
from nmoe_flower.catalogue import BASELINES, found
from nmoe_flower.client_app import app
from nmoe_flower.clients.device import device_of
from nmoe_flower.files import pack_arrays, write_bytes
from nmoe_flower.pipeline.exchanges import exchanges
from nmoe_flower.records import ARRAYS, Action
from nmoe_flower.study.costs import cost_of
from tests.pipeline.conftest import InterruptedRunError

New = Callable[..., Any]
FIRST = {
    "data.num-clients": 2,
    "extractor.backbone": "mlp",
    "extractor.widths": "16",
    "extractor.rounds": 3,
    "baseline.trunk": "stage-1",
    "baseline.rounds": 2,
    "baseline.local-steps": 2,
    "baseline.batch-size": 16,
    "baseline.tuning-steps": 5,
    "baseline.evaluate-every": 1,
    "baseline.anchors": False,
    "run.checkpoint-every": 1,
}
TRAINED = [name for name, entry in BASELINES.items() if not entry.needs_given]
WHOLE = [name for name in TRAINED if BASELINES[name].several]


class Listening:
    """The real app; keeps the first weights that a client tells, and the networks it begins with.

    Attributes:
        first: What the server begins with.
        networks: What a client that trained would begin with, by the extractor's names.
    """

    def __init__(self) -> None:
        self.first: dict[str, np.ndarray] = {}
        self.networks: list[dict[str, np.ndarray]] = []

    def __call__(self, message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == Action.BASELINE_INITIAL:
            self.first = records.to_numpy(records.of_kind(reply.content, ArrayRecord)[ARRAYS])
        if message.metadata.message_type == Action.BASELINE:
            device = device_of(context)
            system = found(BASELINES[device.config.run.system].system)
            member = Member(device, system, server_round=1)
            bodies = system.bodies(member.fresh())
            self.networks = [{n: t.numpy() for n, t in b.state_dict().items()} for b in bodies]
        return reply


def settings(system: str, **changes: Any) -> dict[str, Any]:
    return {**FIRST, "run.system": system, **changes}


@pytest.mark.parametrize(
    ("system", "size"), [*((s, "head") for s in TRAINED), *((s, "net") for s in WHOLE)]
)
def test_every_network_begins_at_the_extractor_of_stage_1(
    new_pipeline: New, system: str, size: str
) -> None:
    """The trunk, of whole experts each one's, and what a client of pFedMoE has at home."""
    pipeline, listening = (
        new_pipeline("run", settings(system) | {"baseline.size": size}),
        Listening(),
    )
    results = pipeline(client_app=listening)
    trained = pipeline.run.artifacts.part("extractor.")
    assert trained
    assert len(listening.networks) == {
        ("pfedmoe", "head"): 2,
        (system, "net"): pipeline.config.baseline.experts,
    }.get((system, size), 1)
    for network in listening.networks:
        assert network.keys() == trained.keys()
        assert all(np.array_equal(network[name], trained[name]) for name in trained)
    within = "expert.0.extractor." if size == "net" else "trunk."
    told = {n.removeprefix(within): v for n, v in listening.first.items() if n.startswith(within)}
    assert told.keys() == trained.keys()
    assert all(np.array_equal(told[name], trained[name]) for name in trained)
    assert {row["gate"] for row in results["rows"]} >= set(BASELINES[system].answers or {system})


def test_every_exchange_is_counted_before_it_happens(new_pipeline: New) -> None:
    pipeline = new_pipeline("run", settings("fedavg"))
    pipeline()
    written = Counter(line["stage"] for line in pipeline.lines)
    assert {"identity": 1, **written} == exchanges(pipeline.config)


def test_stage_1_is_part_of_the_price_but_of_what_never_looked_at_it(new_pipeline: New) -> None:
    pipeline = new_pipeline("run", settings("fedavg"))
    results = pipeline()
    moved = {
        stage: (cost["bytes_up"] + cost["bytes_down"]) / 2
        for stage, cost in results["stages"].items()
    }
    stage_1 = moved["extractor"] + moved["extractor/given"]
    price = {
        who: cost_of(results, pipeline.config, who, None) for who in BASELINES["fedavg"].answers
    }
    assert price["fedavg"].bytes_per_device == moved["initial"] + stage_1 + moved["baseline"]
    assert price["own"].bytes_per_device == stage_1 > 0
    assert price["majority"].bytes_per_device == 0


@pytest.mark.parametrize("stage", ["extractor", "baseline"])
def test_a_run_killed_in_either_stage_ends_as_one_that_was_not(
    new_pipeline: New, stage: str
) -> None:
    whole, cut = (new_pipeline(name, settings("ditto")) for name in ("whole", "cut"))
    expected = whole()
    with pytest.raises(InterruptedRunError):
        cut(stop=lambda record: record["stage"] == stage and record["round"] == 2)
    results = cut()
    scores = [[row["accuracy"] for row in one["rows"]] for one in (expected, results)]
    assert scores[0] == scores[1]
    assert whole.weights.keys() == cut.weights.keys()
    assert all(np.array_equal(array, cut.weights[name]) for name, array in whole.weights.items())


def test_a_finished_extractor_can_stand_for_stage_1(new_pipeline: New, tmp_path: Path) -> None:
    """``extractor.start`` names the run it comes from; no round trains it again."""
    first = new_pipeline("first", settings("fedavg"))
    first()
    for part in ("extractor", "head"):
        packed = pack_arrays(dict(first.run.artifacts.part(f"{part}.")))
        write_bytes(tmp_path / "kept" / "weights" / f"{part}.safetensors", packed)
    start = {"extractor.start": str(tmp_path / "kept")}
    second = new_pipeline("second", settings("fedavg") | start)
    second()
    assert "extractor" not in {line["stage"] for line in second.lines}
    assert second.weights.keys() == first.weights.keys()
    for name, array in first.weights.items():
        assert np.array_equal(second.weights[name], array), name
