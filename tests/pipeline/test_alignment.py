"""The alignment system from data to results, interrupted and resumed, with every kind of gate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmoe_flower.errors import ConfigError
from nmoe_flower.files import save_arrays

New = Callable[..., Any]
SMALL = {
    "run.system": "aligned",
    "data.scheme": "pathological",
    "data.classes-per-client": 3,
    "expert.hidden": "8",
    "alignment.rounds": 4,
    "alignment.local-steps": 3,
    "alignment.batch-size": 16,
    "alignment.evaluate-every": 2,
}
CLOSED = {
    **SMALL,
    "alignment.extractor": "filters",
    "alignment.filters": 8,
    "alignment.filter-size": 3,
    "alignment.gate": "closed-form",
}


FIRST = {
    **SMALL,
    "data.classes-per-client": 1,
    "extractor.rounds": 3,
    "alignment.extractor": "stage-1",
    "alignment.gate-learning-rate": 0.01,
    "alignment.gate-server-rate": 0.01,
}


def rows_of(results: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["gate"], row["test"]): row for row in results["rows"]}


@pytest.mark.parametrize("gate", ["averaged", "local", "travelling"])
def test_every_gate_leaves_rows_loads_and_an_audit(new_pipeline: New, gate: str) -> None:
    pipeline = new_pipeline(gate, {**SMALL, "alignment.gate": gate, "alignment.balance": 0.1})
    results = pipeline()
    rows = rows_of(results)
    assert set(rows) == {(g, t) for g in ("mixture", "placed") for t in ("local", "iid")}
    for row in rows.values():
        assert row["accuracy"] == pytest.approx(np.mean(row["per_client"]["accuracy"]))
    alignment = results["alignment"]
    assert np.sum(alignment["assignments"]) == 4 * 4
    assert np.sum(alignment["placed"], axis=1).tolist() == [1] * 4
    assert alignment["load_variation"] == 0.0
    lines = [line for line in pipeline.lines if line["stage"] == "alignment"]
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line["failures"] == []
        assert [len(c["experts"]) for c in line["audit"]["clients"]] == [1] * 4
    tests = [line for line in pipeline.lines if line["stage"] == "alignment-test"]
    assert [line["round"] for line in tests] == [2, 4]
    assert 0 <= tests[-1]["metrics"]["accuracy-iid"] <= 1
    np.testing.assert_allclose(np.sum(results["routing"]["mixture/iid"], axis=1), 1)
    trained = np.abs(pipeline.weights["mixture/gate.head.weight"]).max() > 0
    assert trained == (gate != "local")


def test_one_class_each_is_learned_in_closed_form(new_pipeline: New) -> None:
    """Four one-class clients: the gate names the class, each expert knows its own."""
    pipeline = new_pipeline("closed", {**CLOSED, "data.classes-per-client": 1})
    rows = rows_of(pipeline())
    assert rows["mixture", "local"]["accuracy"] > 0.9
    assert rows["placed", "local"]["accuracy"] > 0.9


def test_rounds_after_stage_1_move_gate_and_experts_only(new_pipeline: New, tmp_path: Path) -> None:
    """Bytes per client: gate and one expert, and one per cent; the extractor was given before."""
    pipeline = new_pipeline("first", {**FIRST, "expert.hidden": "64"})
    results = pipeline()
    mixture = {n: v for n, v in pipeline.weights.items() if n.startswith("mixture/")}
    assert not any(name.startswith("mixture/extractor.") for name in mixture)
    mine = ("mixture/gate.", "mixture/experts.0.")
    own = sum(v.nbytes for n, v in mixture.items() if n.startswith(mine))
    lines = [line for line in pipeline.lines if line["stage"] == "alignment"]
    for line in lines:
        assert 1 <= line["metrics"]["bytes-to-part"] <= 1.06  # npy headers, of so few weights
        for client in line["audit"]["clients"]:
            assert own <= max(client["bytes-down"], client["bytes-up"]) <= 1.06 * own
    (given,) = [line for line in pipeline.lines if line["stage"] == "extractor/given"]
    body = {n: v for n, v in pipeline.weights.items() if n.startswith("classifier/extractor.")}
    assert given["bytes_down"] >= 4 * sum(v.nbytes for v in body.values())
    assert rows_of(results)["mixture", "local"]["extractor"] == "stage-1"

    for part in ("extractor", "head"):
        arrays = pipeline.run.artifacts.part(f"{part}.")
        save_arrays(tmp_path / "done" / "weights" / f"{part}.safetensors", arrays)
    start = {"expert.hidden": "64", "extractor.start": str(tmp_path / "done")}
    again = new_pipeline("again", {**FIRST, **start})
    again()
    assert all(again.weights[n].tobytes() == v.tobytes() for n, v in mixture.items())


@pytest.mark.parametrize(
    "changes",
    [
        CLOSED,
        FIRST,
        {**SMALL, "alignment.capacity": "1,2", "alignment.devices": "phone,board"},
        {**SMALL, "alignment.gate": "local", "alignment.capacity": 2},
    ],
)
@pytest.mark.parametrize("last", [1, 2, 3])
def test_interrupted_and_resumed_it_ends_the_same(
    new_pipeline: New, interrupted: type[Exception], changes: dict[str, Any], last: int
) -> None:
    changes = {**changes, "run.checkpoint-every": 1}
    straight, broken = new_pipeline("straight", changes), new_pipeline("broken", changes)
    straight()
    with pytest.raises(interrupted):
        broken(stop=lambda r: r["stage"] == "alignment" and r["round"] == last)
    broken()
    ours, theirs = straight.weights, broken.weights
    names = [name for name in ours if name != "aligned/elapsed" or "alignment.devices" in changes]
    assert ours.keys() == theirs.keys()
    assert len(names) > 10
    for name in names:
        assert ours[name].tobytes() == theirs[name].tobytes(), name
    if changes.get("alignment.gate") == "local":
        gates = [
            {f.relative_to(p.folder): f.read_bytes() for f in p.folder.rglob("aligned-gate-*4.*")}
            for p in (straight, broken)
        ]
        assert len(gates[0]) == 4
        assert gates[0] == gates[1]


def test_estimated_capacity_keeps_weak_devices_out(
    new_pipeline: New, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    trace = tmp_path / "trace.json"
    weak = '{"client": 2, "profile": "sensor", "memory": 10}'
    others = ",".join(f'{{"client": {i}, "profile": "server"}}' for i in (0, 1, 3))
    trace.write_text(f'{{"devices": [{others}, {weak}]}}')
    pipeline = new_pipeline(
        "weak",
        {
            **SMALL,
            "alignment.trace": "~/trace.json",
            "alignment.estimate-capacity": "true",
            "alignment.capacity": "2",
            "alignment.deadline": 10.0,
        },
    )
    results = pipeline()
    times = np.array(results["alignment"]["assignments"])
    assert times[2].sum() == 0
    assert (times[[0, 1, 3]].sum(axis=1) == 8).all()
    assert results["alignment"]["bytes_down"][2] == 0
    assert 0 < results["alignment"]["simulated_seconds"] < 40
    assert len(rows_of(results)["placed", "iid"]["per_client"]["accuracy"]) == 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"alignment.gate": "closed-form"}, "needs an extractor that stays"),
        (
            {"alignment.gate": "travelling", "alignment.gate-server-rate": 0.1},
            "is for alignment.gate = averaged, not travelling",
        ),
        ({"alignment.policy": "best"}, "alignment.policy"),
        ({"alignment.capacity": "-1"}, "numbers of at least 0"),
        ({"alignment.lo": 3, "alignment.hi": 2}, "above alignment.hi"),
        ({"alignment.lo": 1, "alignment.policy": "greedy"}, "for joint and oracle"),
        ({"alignment.estimate-capacity": "true"}, "needs alignment.devices"),
    ],
)
def test_bad_settings_are_refused(new_pipeline: New, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        new_pipeline("bad", {**SMALL, **changes})


def test_few_slots_and_sums_of_latents_are_pointed_out(new_pipeline: New) -> None:
    few = new_pipeline("few", {**CLOSED, "alignment.capacity": "1,0"}).config.advice()
    assert any("2 slots a round for 4 experts" in note for note in few)
    assert any("statistics of the clients' data" in note for note in few)
    enough = new_pipeline("enough", {**SMALL, "gate.methods": "local"}).config.advice()
    assert not any("slots" in note for note in enough)
