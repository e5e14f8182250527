import itertools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message

from nmoe_flower import records
from nmoe_flower.client_app import app
from nmoe_flower.errors import RoundError
from nmoe_flower.records import Action

New = Callable[..., Any]
CONTROLS = {"control:fedavg", "control:local-classifier", "control:centralized"}


def rows_of(results: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["gate"], row["test"]): row for row in results["rows"]}


def test_a_whole_run_leaves_every_row(new_pipeline: New) -> None:
    pipeline = new_pipeline("whole", {"gate.top-k": 2, "data.tau": 0.25})
    results = pipeline()
    rows = rows_of(results)
    methods = {*pipeline.config.gate.methods, *CONTROLS}
    named = {m + suffix for m in methods for suffix in ("", "+prior")}
    named.remove("control:local-classifier+prior")  # it was trained under its own prior
    assert set(rows) == set(itertools.product(named, ("local", "iid")))
    for (gate, test), row in rows.items():
        fixed = {k: row[k] for k in ("extractor", "scheme", "tau", "seed", "clients", "top_k")}
        assert fixed == {
            "extractor": "fedce", "scheme": "dominant", "tau": 0.25, "seed": 0, "clients": 4,
            "top_k": 2,
        }  # fmt: skip
        for metric in ("accuracy", "balanced_accuracy", "macro_f1"):
            per_client = row["per_client"][metric]
            assert len(per_client) == 4
            assert all(0 <= value <= 1 for value in per_client)
            assert row[metric] == pytest.approx(np.mean(per_client))
        if gate.startswith(("control:fedavg", "control:local")):
            assert "local_ratio" not in row
        else:
            matrix = np.array(results["routing"][f"{gate.removesuffix('+prior')}/{test}"])
            np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-6)
            assert row["local_ratio"] == pytest.approx(np.trace(matrix) / 4)
    assert rows["local", "iid"]["local_ratio"] == 1.0
    assert rows["local", "iid"]["bytes_per_sample"] == 0.0
    assert rows["oracle", "iid"]["accuracy"] == max(
        rows[gate, "iid"]["accuracy"] for gate in ("oracle", "local")
    )
    counts = np.array(results["partition"]["train"])
    assert counts.shape == (4, 10)
    assert counts.sum(axis=1).tolist() == [60] * 4
    assert counts.argmax(axis=1).tolist() == [0, 1, 2, 3]
    assert counts.max(axis=1).tolist() == [48] * 4  # 60 / (1 + 0.25)
    stages = [line["stage"] for line in pipeline.lines]
    assert stages.count("extractor") == 5
    assert stages.count("gate/federated") == 3
    federated = [line for line in pipeline.lines if line["stage"] == "gate/federated"]
    assert [len(line["clients"]) for line in federated] == [3, 3, 3]  # round(0.7 * 4)
    assert all(line["failures"] == [] for line in pipeline.lines)


def test_experts_that_stay_home_give_the_same_answers(new_pipeline: New) -> None:
    """Latents travel to the experts instead of experts to the latents: the same numbers."""
    changes = {"run.controls": ""}
    weights = new_pipeline("weights", changes)
    latents = new_pipeline("latents", {**changes, "expert.sharing": "latents"})
    one, other = rows_of(weights()), rows_of(latents())
    assert one.keys() == other.keys()
    for key, row in one.items():
        for metric in ("accuracy", "balanced_accuracy", "macro_f1", "local_ratio"):
            assert row[metric] == pytest.approx(other[key][metric], abs=1e-5), (key, metric)
    for name, value in weights.weights.items():
        np.testing.assert_allclose(latents.weights[name], value, rtol=0, atol=1e-5, err_msg=name)


def test_experts_that_share_nothing_answer_only_themselves(new_pipeline: New) -> None:
    pipeline = new_pipeline(
        "none", {"expert.sharing": "none", "gate.methods": "local", "run.controls": ""}
    )
    rows = rows_of(pipeline())
    assert {gate for gate, _ in rows} == {"local", "local+prior"}
    assert {row["local_ratio"] for row in rows.values()} == {1.0}
    up = {line["stage"]: line["bytes_up"] for line in pipeline.lines}
    assert up["experts"] == 0


LEAN = {"gate.methods": "local", "run.controls": "", "expert.epochs": 0}


def test_averaged_momentum_equals_the_servers_in_one_step_rounds(new_pipeline: New) -> None:
    server, averaged = (
        new_pipeline(name, {**LEAN, "extractor.momentum-at": name, "extractor.rounds": 6})
        for name in ("server", "averaged")
    )
    server()
    averaged()
    names = [name for name in server.weights if name.startswith("classifier/")]
    assert names
    for name in names:
        np.testing.assert_allclose(
            averaged.weights[name], server.weights[name], rtol=0, atol=1e-5, err_msg=name
        )


def test_private_heads_never_leave(new_pipeline: New) -> None:
    changes = {"extractor.reading": "private-heads", "gate.methods": "local,federated"}
    pipeline = new_pipeline("private", changes)
    rows = rows_of(pipeline())
    assert not [name for name in pipeline.weights if name.startswith("classifier/head")]
    assert "control:fedavg" not in {gate for gate, _ in rows}
    assert len(list(pipeline.folder.glob("clients/*/head-*.safetensors"))) >= 4


# --- resume ---


@pytest.mark.parametrize(
    ("stage", "round_", "reading"),
    [
        ("extractor", 3, "private-heads"),
        ("extractor", 5, "shared-head"),
        ("gate/federated", 3, "private-heads"),
        ("gate/rolling", 5, "shared-head"),
    ],
)
def test_an_interrupted_run_ends_with_the_same_bits(
    stage: str, round_: int, reading: str, new_pipeline: New, interrupted: type[Exception]
) -> None:
    changes = {
        "gate.methods": "rolling,federated",
        "run.controls": "",
        "extractor.reading": reading,
        "extractor.ema": 0.5,
    }
    whole = new_pipeline("uninterrupted", changes)
    expected = whole()
    cut = new_pipeline("cut", changes)
    with pytest.raises(interrupted):
        cut(stop=lambda r: (r["stage"], r["round"]) == (stage, round_))
    asked = len(cut.lines)
    results = cut()
    assert len(cut.lines) > asked
    assert cut.weights.keys() == whole.weights.keys()
    for name, value in whole.weights.items():
        assert cut.weights[name].tobytes() == value.tobytes(), name
    assert rows_of(results).keys() == rows_of(expected).keys()
    for key, row in rows_of(expected).items():
        assert rows_of(results)[key]["accuracy"] == row["accuracy"], key


# --- failures ---


@pytest.mark.parametrize("system", ["networked", "aligned", "fedavg"])
def test_nodes_of_other_partitions_are_named_and_sent_nothing(
    system: str, new_pipeline: New, caplog: pytest.LogCaptureFixture
) -> None:
    asked: dict[int, set[str]] = {}

    def watched(message: Message, context: Context) -> Message:
        node = int(context.node_config["partition-id"])
        context.node_config["num-partitions"] = 4
        asked.setdefault(node, set()).add(message.metadata.message_type)
        return app(message, context)

    changes = {"run.system": system, "alignment.rounds": 2, "baseline.rounds": 2}
    straight, beside = (new_pipeline(name, changes) for name in ("straight", "beside"))
    wanted = straight()
    with caplog.at_level(logging.WARNING):
        found = beside(client_app=watched, foreign=2)
    assert asked[4] == asked[5] == {Action.IDENTITY}
    assert asked.keys() == set(range(6))
    for node in (5, 6):
        said = f"node {node} is left out: it holds partition {node - 1}; allowed: 0 to 3"
        assert caplog.text.count(said) == 1
    assert found["rows"] == wanted["rows"]
    for name, array in straight.weights.items():
        if name != "aligned/elapsed":  # by a watch
            np.testing.assert_array_equal(beside.weights[name], array, name)


def test_a_client_that_fails_once_is_asked_again_and_named(
    new_pipeline: New, failing_app: Any
) -> None:
    pipeline = new_pipeline("once", LEAN)
    pipeline(client_app=failing_app("train.expert", 2, times=1))
    (line,) = [line for line in pipeline.lines if line["stage"] == "experts"]
    assert line["clients"] == [0, 1, 2, 3]
    assert line["failures"] == [{"partition": 2, "reason": "OSError: disk full"}]


def test_a_client_that_fails_twice_in_stage_two_ends_the_run(
    new_pipeline: New, failing_app: Any
) -> None:
    pipeline = new_pipeline("twice", LEAN)
    with pytest.raises(RoundError, match=r"^experts: client 2: OSError: disk full$"):
        pipeline(client_app=failing_app("train.expert", 2, times=2))


@pytest.mark.parametrize(
    ("key", "stage"),
    [
        ("extractor.learning-rate", {}),
        ("extractor.learning-rate", {"extractor.method": "fedsc"}),
        ("head.learning-rate", {"extractor.method": "fedsc", "head.rounds": 3}),
        ("expert.learning-rate", {}),
        ("run.control-learning-rate", {"run.controls": "centralized"}),
        ("alignment.learning-rate", {"run.system": "aligned"}),
    ],
)
def test_training_that_diverged_says_which_rate_to_lower(
    new_pipeline: New, key: str, stage: dict[str, str]
) -> None:
    told = rf"clients? 0.*NaN or infinit.*; if training has diverged, lower {key} = 1e\+30$"
    with pytest.raises(RoundError, match=told):
        new_pipeline("diverged", LEAN | {"expert.epochs": 3, key: 1e30} | stage)()


def test_an_expert_of_huge_weights_says_so_before_a_gate_learns_from_it(new_pipeline: New) -> None:
    """After one such step the weights are finite, and the answers of two layers are not."""
    changes = {"expert.epochs": 1, "expert.batch-size": 1000, "expert.learning-rate": 1e30}
    told = (
        r"^experts: .*own training data with NaN or infinite.* lower expert.learning-rate = 1e\+30$"
    )
    with pytest.raises(RoundError, match=told):
        new_pipeline("diverged", changes)()


def test_a_client_that_fails_in_stage_one_is_left_out_of_that_round(
    new_pipeline: New, failing_app: Any
) -> None:
    pipeline = new_pipeline("dropped", LEAN)
    pipeline(client_app=failing_app("train.extractor", 1, times=2))
    lines = [line for line in pipeline.lines if line["stage"] == "extractor"]
    assert [line["clients"] for line in lines[:3]] == [[0, 2, 3], [0, 2, 3], [0, 1, 2, 3]]
    assert lines[0]["failures"] == [{"partition": 1, "reason": "OSError: disk full"}]


def test_who_asks_whom_is_left_out_beyond_some_clients(
    new_pipeline: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a thousand clients it has a million entries per gate; what stays at home is kept."""
    changes = {
        "gate.methods": "random,local", "gate.rounds": 1, "extractor.rounds": 1, "expert.epochs": 1,
        "run.controls": "",
    }  # fmt: skip
    whole = new_pipeline("whole", changes)()
    monkeypatch.setattr(records, "MOST_ROUTED", 3)
    small = new_pipeline("small", changes)()
    assert whole["routing"]
    assert small["routing"] == {}
    ratios = [[row["per_client"]["local_ratio"] for row in r["rows"]] for r in (whole, small)]
    assert ratios[0] == ratios[1]
