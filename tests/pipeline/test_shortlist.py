"""Some experts answer for all: the same choices, the same results, at a cost that does not grow."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError, RoundError
from nmoe_flower.records import Action

New = Callable[..., Any]
UNTRAINED = ("local", "prototype")
FEW: dict[str, Any] = {
    "gate.methods": "random,local,prototype,federated,oracle,client-weights,global",
    "gate.top-k": 2,
    "gate.rounds": 1,
    "extractor.rounds": 1,
    "expert.epochs": 1,
    "run.controls": "",
}


def rows_of(results: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["gate"], row["test"]): row for row in results["rows"]}


def numbers(row: dict[str, Any]) -> dict[str, list[float]]:
    """What each client measured; an AUC may be missing, and is NaN then."""
    return dict(row["per_client"])


@pytest.mark.parametrize("sharing", ["weights", "latents"])
def test_who_chooses_first_and_asks_then_gets_the_same_answers(
    new_pipeline: New, sharing: str
) -> None:
    """Gates that are not trained choose alike; the trained one has all its rows, as before."""
    changes = {**FEW, "expert.sharing": sharing, "gate.folds": 2}
    some = new_pipeline("some", {**changes, "gate.shortlist": 3})
    every = new_pipeline("every", {**changes, "gate.shortlist": 0})
    found, wanted = some(), every()
    one, other = rows_of(found), rows_of(wanted)
    assert one.keys() == other.keys()
    for (gate, test), row in one.items():
        if gate.removesuffix("+prior") in UNTRAINED:
            for name, values in numbers(other[gate, test]).items():
                np.testing.assert_allclose(
                    numbers(row)[name], values, rtol=0, atol=1e-5, err_msg=f"{gate} {test} {name}"
                )
        if gate == "oracle":  # of those who were asked: no better than of all
            assert row["accuracy"] <= other[gate, test]["accuracy"]
            assert row["accuracy"] >= one["local", test]["accuracy"]
    for key in ("prototype/iid", "prototype/local"):
        np.testing.assert_allclose(found["routing"][key], wanted["routing"][key], atol=1e-6)
    assert some.weights["gate/federated/head.weight"].shape[0] == 4
    assert some.weights["shortlists/experts"].shape == (4, 3)
    assert "shortlists/experts" not in every.weights
    by_stage = {line["stage"]: line for line in some.lines}
    whole = {line["stage"]: line for line in every.lines}
    assert by_stage["answers"]["bytes_down"] < 0.8 * whole["answers"]["bytes_down"]
    assert by_stage["gate/federated"]["bytes_up"] < 0.81 * whole["gate/federated"]["bytes_up"]


@pytest.mark.parametrize("rolling", ["cyclic", "federated"])
def test_rolling_gates_hand_on_rows_of_lists(new_pipeline: New, rolling: str) -> None:
    """A client is sent 3 of 4 rows; a fresh gate is uniform among 4, so its loss is log 4."""
    changes = {
        **FEW, "gate.methods": "rolling", "gate.rolling": rolling, "gate.cycles": 1,
        "gate.learning-rate": 1e-6, "gate.local-steps": 1,
    }  # fmt: skip
    some = new_pipeline("some", {**changes, "gate.shortlist": 3})
    every = new_pipeline("every", {**changes, "gate.shortlist": 0})
    some()
    every()
    lines, whole = (
        [line for line in one.lines if line["stage"] == "gate/rolling"] for one in (some, every)
    )
    assert len(lines) == len(whole) == {"cyclic": 4, "federated": 1}[rolling]
    for line, other in zip(lines, whole, strict=True):
        assert line["metrics"]["loss"] == pytest.approx(np.log(4), abs=1e-3)
        assert line["bytes_up"] < 0.81 * other["bytes_up"]
        assert line["bytes_down"] < 0.81 * other["bytes_down"]
    assert some.weights["gate/rolling/head.weight"].shape[0] == 4


def test_who_asks_nobody_else_is_answered_at_home(new_pipeline: New) -> None:
    changes = {**FEW, "gate.methods": "local"}
    some = rows_of(new_pipeline("some", {**changes, "gate.shortlist": 3})())
    every = rows_of(new_pipeline("every", {**changes, "gate.shortlist": 0})())
    assert {key: numbers(row) for key, row in some.items()} == {
        key: numbers(row) for key, row in every.items()
    }


def test_a_list_of_all_is_no_list(new_pipeline: New) -> None:
    changes = {**FEW, "gate.methods": "federated"}
    longer = new_pipeline("longer", {**changes, "gate.shortlist": 9})
    every = new_pipeline("every", {**changes, "gate.shortlist": 0})
    assert longer()["rows"] == every()["rows"]
    assert longer.weights.keys() == every.weights.keys()
    for name, value in every.weights.items():
        assert np.array_equal(longer.weights[name], value), name


def test_a_run_that_ends_between_stages_goes_on_with_its_lists(
    new_pipeline: New, interrupted: type[Exception]
) -> None:
    changes = {**FEW, "gate.methods": "federated", "gate.shortlist": 3}
    whole = new_pipeline("whole", changes)
    results = whole()
    parted = new_pipeline("parted", changes)
    with pytest.raises(interrupted):
        parted(stop=lambda line: line["stage"] == "choices")
    assert parted()["rows"] == results["rows"]


def test_an_expert_that_cannot_answer_is_named(
    new_pipeline: New, failing_app: type[Callable[..., Any]]
) -> None:
    pipeline = new_pipeline(
        "failing",
        {**FEW, "gate.methods": "random", "gate.shortlist": 2, "expert.sharing": "latents"},
    )
    with pytest.raises(RoundError, match=r"answer: client 2: .*disk full"):
        pipeline(client_app=failing_app(Action.ANSWER, 2, 2))


def test_a_gate_cannot_ask_more_than_it_learns_from() -> None:
    with pytest.raises(ConfigError, match=r"gate.top-k is 3 and gate.shortlist only 2.*0 \(all\)"):
        Config.parse({"gate.top-k": 3, "gate.shortlist": 2})
    assert not Config.parse({"gate.top-k": 3, "gate.shortlist": 10}).has_shortlists


@pytest.mark.parametrize(
    "changes", [{"gate.shortlist": 3, "expert.sharing": "latents"}, {"gate.shortlist": 0}]
)
def test_embeddings_are_made_of_the_means_and_nothing_else_travels(
    new_pipeline: New, changes: dict[str, Any]
) -> None:
    few = {**FEW, "gate.methods": "federated,global", "gate.form": "metric", "gate.embedding": 8}
    pipeline = new_pipeline("metric", {**few, **changes})
    rows = rows_of(pipeline())
    assert {gate for gate, _ in rows if "+" not in gate} == {"federated", "global"}
    weights = pipeline.weights
    for gate in ("federated", "global"):
        projection = weights[f"gate/{gate}/projection"]
        assert projection.shape[0] == 8
        np.testing.assert_allclose(
            weights[f"gate/{gate}/embeddings"], weights["normal-means"] @ projection.T, rtol=1e-5
        )
    trained = next(line for line in pipeline.lines if line["stage"] == "gate/federated")
    assert trained["bytes_up"] == 3 * (weights["gate/federated/projection"].nbytes + 128)
