import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.errors import NMoEError
from nmoe_flower.study.costs import cost_of
from nmoe_flower.study.rows import (
    Quantity,
    Row,
    RunOutcome,
    records_of,
    rows_from_json,
    rows_of,
    rows_to_json,
)
from tests.study.conftest import Write, outcome, row

LITTLE = """
title = "Little"
seeds = [0, 1, 2]
[set]
gate.methods = "federated,local"
run.controls = "fedavg"
"""
IID = Quantity("federated", "iid", "accuracy")
CELL = {("federated", "iid"): 0.5}


def record_of(one: Row) -> dict[str, Any]:
    """A row by column, as a reader of ``table.json`` finds it."""
    (record,) = records_of(json.loads(json.dumps(rows_to_json([one]))))
    return record


def test_a_row_is_a_mean_over_the_seeds_with_its_error(written: Write) -> None:
    study = written(LITTLE)
    found = [outcome(study, at, {("federated", "iid"): v}) for at, v in enumerate((0.5, 0.6, 0.7))]
    (got,) = rows_of(found, [IID])
    told = record_of(got)
    assert (told["mean"], told["n"], told["seeds"]) == (0.6, 3, [0, 1, 2])
    assert told["se"] == 0.057735  # spread 0.1, three seeds: 0.1 / sqrt(3), in six digits
    assert told["variant"] == "base"
    # The folder is called as the variant, no axis has a value, and nothing was published.
    assert not told.keys() & {"folder", "paper"}
    assert "failed" not in told
    assert "missing" not in told


def test_a_failed_and_a_missing_run_are_told_and_do_not_count(written: Write) -> None:
    study = written(LITTLE)
    runs = [outcome(study, 0, CELL), RunOutcome(study.runs[1], failed="RoundError: gone"),
            RunOutcome(study.runs[2])]  # fmt: skip
    (got,) = rows_of(runs, [IID])
    told = record_of(got)
    assert (told["mean"], told["n"], told["seeds"]) == (0.5, 1, [0])
    assert "se" not in told
    assert told["failed"] == "seed 1: RoundError: gone"
    assert told["missing"] == [2]


def test_what_nobody_measures_has_no_row_what_waits_has_one(written: Write) -> None:
    study = written(LITTLE)
    wanted = [IID, Quantity("oracle", "iid", "accuracy")]
    assert [r.gate for r in rows_of([RunOutcome(run) for run in study.runs], wanted)] == [
        "federated"
    ]
    done = [outcome(study, at, {("local", "iid"): 0.5}) for at in range(3)]
    assert rows_of(done, wanted) == []


def test_settings_paths_and_costs_are_numbers_too(written: Write) -> None:
    study = written(LITTLE)
    stages = {"extractor": {"rounds": 120, "bytes_up": 4e6, "bytes_down": 6e6, "seconds": 60.0}}
    found = [outcome(study, 0, CELL, stages=stages, seconds=90.0,
                     representation={"probe_accuracy": 0.7}, routing={"a/b.c": 3})]  # fmt: skip
    wanted = {
        "extractor.rounds": 120, "extractor.method": "fedce", "seconds": 90.0, "minutes": 1.5,
        "representation.probe_accuracy": 0.7, "stages.extractor.bytes_up": 4e6, "routing.a/b.c": 3,
    }  # fmt: skip
    got = rows_of(found, [Quantity("", "", metric) for metric in wanted])
    assert {r.metric: r.each[0] for r in got} == wanted
    assert record_of(got[1])["mean"] == "fedce"
    assert [r.metric for r in got if r.scores] == ["representation.probe_accuracy", "routing.a/b.c"]
    (cost,) = rows_of(found, [IID])
    assert (cost.bytes_per_device, cost.exchanges) == (1e6, 120)  # 10 MB among 10 clients


@pytest.mark.parametrize(
    ("gate", "stages", "before", "expected"),
    [
        (
            "federated",
            {"extractor": 3, "experts": 1, "gate/federated": 4, "gate/rolling": 9},
            {},
            8,
        ),
        ("federated+prior", {"extractor": 3, "gate/federated": 4, "evaluation": 1}, {}, 7),
        ("local", {"extractor": 3, "experts": 1, "answers": 1, "gate/federated": 4}, {}, 4),
        ("client-weights", {"sums": 1, "experts": 1, "answers": 1}, {}, 3),
        ("lda", {"sums": 1, "experts": 1, "answers": 1, "gate/federated": 4}, {}, 2),
        ("my_gates:Mine", {"extractor": 3, "experts": 1, "answers": 1}, {}, 5),
        ("control:fedavg", {"extractor": 3, "head": 2, "experts": 1}, {}, 5),
        ("control:local-classifier", {"extractor": 3}, {}, 0),
        ("control:centralized", {"extractor": 3}, {}, None),
        ("local", {"experts": 1}, {"extractor": 30, "experts": 7}, 31),
    ],
)
def test_a_gate_costs_what_its_training_took(
    written: Write, gate: str, stages: dict[str, int], before: dict[str, int], expected: Any
) -> None:
    config = written(LITTLE).runs[0].config
    told = [
        {"stages": {name: {"rounds": n, "bytes_up": 10 * n, "bytes_down": 0}
                    for name, n in of.items()}}
        for of in (stages, before)
    ]  # fmt: skip
    cost = cost_of(told[0], config, gate, told[1] if before else None)
    assert (cost.exchanges, cost.bytes_per_device) == (expected, expected)


def test_two_phases_are_two_exchanges_a_round(written: Write) -> None:
    text = LITTLE + 'extractor.method = "fedsc"\ncontrast.exchange = "two-phase"\nhead.rounds = 5\n'
    stages = {"extractor": {"rounds": 3}, "experts": {"rounds": 1}}
    assert cost_of({"stages": stages}, written(text).runs[0].config, "local", None).exchanges == 7


json_values = st.one_of(st.floats(-1e6, 1e6), st.integers(-9, 9), st.text(max_size=5))


@given(
    st.dictionaries(st.integers(0, 9), json_values, max_size=4),
    st.dictionaries(st.integers(10, 12), st.text(min_size=1, max_size=9), max_size=2),
    st.sets(st.integers(20, 22)),
)
def test_rows_come_back_from_json(
    each: dict[int, Any], failed: dict[int, str], missing: set[int]
) -> None:
    asked = tuple(sorted({*each, *failed, *missing}))
    values = {"data.tau": 0.5, "extractor.widths": (8, 16)}
    one = row(each, asked=asked, failed=failed, values=values, paper=0.5)
    plain = row({0: 0.25})
    told = json.loads(json.dumps(rows_to_json([one, plain])))
    back, also = rows_from_json(told, "table.json")
    assert (back, also) == (one, plain)
    assert set(back.missing) == missing


def test_a_row_edited_by_hand_is_told_by_its_number() -> None:
    def edited(column: str, value: Any) -> dict[str, Any]:
        told = rows_to_json([row({0: 0.5}), row({0: 0.5})])
        told["rows"][1][told["columns"].index(column)] = value
        return told

    with pytest.raises(NMoEError, match=r"table\.json, row 2: gate is missing"):
        rows_from_json(edited("gate", None), "table.json")
    with pytest.raises(NMoEError, match=r"row 2 cannot be read"):
        rows_from_json(edited("each", []), "table.json")
    told = rows_to_json([row({0: 0.5})])
    told["rows"][0].pop()
    with pytest.raises(NMoEError, match=r"table\.json cannot be read: .*shorter"):
        rows_from_json(told, "table.json")


def test_what_has_no_gate_stands_at_every_gate() -> None:
    plain: Row = row({0: 0.5}, gate="", test="")
    assert plain.stands("gate", ["local"])
    assert plain.stands("test", ["iid"])
    assert not plain.stands("variant", ["b"])


def test_the_worst_client_is_known_of_runs_that_wrote_each_client_alone(written: Write) -> None:
    study = written(LITTLE)
    wanted = Quantity("federated", "local", "worst_client")
    named = {"gate": "federated", "test": "local", "accuracy": 0.5}
    older = {**named, "per_client": {"accuracy": [0.75, None, 0.25]}}
    found = [
        RunOutcome(run, {"rows": [one]})
        for run, one in zip(
            study.runs, [older, {**named, "worst_client": 0.375}, named], strict=True
        )
    ]
    (got,) = rows_of(found, [wanted])
    assert got.each == {0: 0.25, 1: 0.375}
    assert got.unmeasured == (2,)
