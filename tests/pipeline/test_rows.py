import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nmoe_flower.config import Config
from nmoe_flower.files import to_json
from nmoe_flower.pipeline import Artifacts, Holding, Run
from nmoe_flower.pipeline.rows import all_found, privacy, representation, row
from nmoe_flower.privacy import Accountant, WeightsCost
from nmoe_flower.results import worst_client

New = Callable[..., Any]


def run_with(arrays: dict[str, Any], **values: Any) -> Run:
    run = Run(object(), Config.parse({"data.num-clients": 2, **values}), print)  # type: ignore[arg-type]
    run.artifacts = Artifacts.read(arrays)
    return run


def ledger(*spent: tuple[int, float]) -> np.ndarray:
    accountant = Accountant()
    for client, noise in spent:
        accountant.spend(client, noise_multiplier=noise, num_examples=100)
    return np.frombuffer(json.dumps(accountant.state()).encode(), np.uint8)


def test_a_run_without_matrices_has_no_findings() -> None:
    run = run_with({"gate/federated/w": np.zeros(2)})
    assert privacy(run) is None
    assert representation(run, sizes=[10, 10]) is None


def test_the_client_that_sent_most_counts() -> None:
    run = run_with(
        {"findings/accountant": ledger((0, 4.0), (1, 4.0), (1, 4.0), (1, 4.0), (1, 4.0))},
        **{"privacy.delta": 1e-5, "privacy.adjacency": "add-remove"},
    )
    found = privacy(run)
    assert found is not None
    # Four releases at noise 4 are one at noise 2: mu = 1/2.
    assert found["epsilon"] == pytest.approx(1.9933, abs=1e-3)
    fixed = {key: found[key] for key in ("delta", "releases", "unit", "adjacency")}
    assert fixed == {"delta": 1e-5, "releases": 4, "unit": "sample", "adjacency": "add-remove"}
    assert "add or remove one sample" in found["statement"]
    assert "Not covered: the weights" in found["statement"]


def test_private_weights_are_counted_beside_the_matrices() -> None:
    accountant = Accountant()
    accountant.spend(0, noise_multiplier=2.0, num_examples=100)
    accountant.weights = {0: WeightsCost(40, 1.5, 3.0), 1: WeightsCost(50, 1.25, 2.5)}
    state = np.frombuffer(json.dumps(accountant.state()).encode(), np.uint8)
    values = {"privacy.delta": 1e-5, "privacy.weights-epsilon": 2.0}
    found = privacy(run_with({"findings/accountant": state}, **values))
    assert found is not None
    assert found["budget"] is None  # that of matrices, which privacy.enabled covers
    assert found["weights"] == {
        "epsilon": 1.5, "epsilon_replaced": 3.0, "steps": 50, "budget": 2.0,
    }  # fmt: skip
    # Client 0: its release (mu = 1/2, 1.993) and its weights for one sample replaced.
    assert found["together"]["epsilon"] == pytest.approx(1.9933 + 3.0, abs=1e-3)
    assert found["together"]["delta"] == pytest.approx(2e-5)
    assert "DP-SGD" in found["statement"]


def test_eigenvalues_and_the_last_probes() -> None:
    run = run_with({"findings/spectrum": np.full(4, 0.25)})
    run.latest["extractor-test"] = {"probe-accuracy": 0.5, "knn-accuracy": 0.25, "spectrum": [1.0]}
    assert representation(run, sizes=[10, 10]) == {
        "effective_rank": pytest.approx(4.0),
        "dimensions": 4,
        "noise_edge": 0.0,
        "collapse": None,
        "probe_accuracy": 0.5,
        "knn_accuracy": 0.25,
    }


def test_noise_is_not_taken_for_a_collapse() -> None:
    spectrum = np.array([0.3] + 127 * [0.0])
    plain = representation(run_with({"findings/spectrum": spectrum}), sizes=[100, 300])
    assert plain is not None
    assert plain["collapse"].startswith("collapsed to the mean")
    assert "noise" not in plain["collapse"]
    arrays = {"findings/spectrum": spectrum, "findings/accountant": ledger((0, 2.0), (1, 2.0))}
    private = representation(run_with(arrays), sizes=[100, 300])
    assert private is not None
    # Client i adds noise of 2 sqrt(2) / n_i with weight n_i / 400: both parts are 2 sqrt(2) / 400,
    # together 2 sqrt(2) sqrt(2) / 400 = 0.01; the edge is 0.01 sqrt(2 * 128) = 0.16.
    assert private["noise_edge"] == pytest.approx(0.16)
    assert private["collapse"].endswith(
        "noise hides the others: below 0.16 an eigenvalue is not seen"
    )


def test_a_run_of_fedsc_reports_them_also_when_resumed(
    new_pipeline: New, interrupted: type[Exception]
) -> None:
    values = {
        "extractor.method": "fedsc",
        "extractor.rounds": 2,
        "contrast.dim": 8,
        "contrast.hidden": 8,
        "privacy.enabled": True,
        "privacy.delta": 1e-3,
        "privacy.releases": 2,
        "gate.methods": "local",
        "run.controls": "",
        "run.checkpoint-every": 1,
    }
    whole = new_pipeline("whole", values)()
    killed = new_pipeline("killed", values)
    with pytest.raises(interrupted):
        killed(stop=lambda record: record["stage"] == "experts")
    resumed = killed()
    assert resumed["representation"] == whole["representation"]
    assert resumed["privacy"] == whole["privacy"]
    assert whole["privacy"]["releases"] == 2
    assert whole["privacy"]["epsilon"] == pytest.approx(8.0)
    found = whole["representation"]
    assert found["dimensions"] == 8
    assert {"probe_accuracy", "knn_accuracy", "alignment", "uniformity"} <= found.keys()
    assert all(math.isfinite(v) for v in found.values() if isinstance(v, float))


def test_every_client_counts_for_the_data_s_fingerprint_and_the_precision() -> None:
    """In both systems: whoever holds other data makes another run."""
    held = {
        client: Holding(4, [2, 2], [1, 1], ["a", "b"], fingerprint, precision=precision)
        for client, (fingerprint, precision) in enumerate(
            [("two", "float32"), ("one", "bf16"), ("two", "float32")]
        )
    }
    results = all_found(run_with({}), held, rows=[], routing={}, alignment={"policy": "joint"})
    assert results["fingerprint"] == "one,two"
    assert results["precision"] == "bf16,float32"
    assert results["partition"]["train"] == [[2, 2]] * 3
    assert results["alignment"] == {"policy": "joint"}


def test_a_value_that_a_client_lacks_counts_in_no_mean() -> None:
    one = row(
        run_with({}),
        extractor="fedce",
        gate="federated",
        test="iid",
        top_k=1,
        per_client={"accuracy": [0.5, 1.0], "auc": [math.nan, 0.75]},
    )
    assert (one["accuracy"], one["auc"]) == (0.75, 0.75)
    assert one["worst_client"] == 0.5
    assert math.isnan(one["per_client"]["auc"][0])
    assert one["clients"] == 2


@pytest.mark.parametrize(
    ("accuracies", "worst"),
    [([0.5, math.nan, 0.25], 0.25), ([1.0], 1.0), ([math.nan], None), (None, None)],
)
def test_the_worst_client_is_the_one_of_the_lowest_accuracy_that_has_any(
    accuracies: list[float] | None, worst: float | None
) -> None:
    per_client = {"bits_per_byte": [1.0]} if accuracies is None else {"accuracy": accuracies}
    with warnings.catch_warnings(action="ignore"):  # a mean of nothing
        one = row(run_with({}), extractor="fedce", gate="local", test="local", top_k=1,
                  per_client=per_client)  # fmt: skip
    assert one.get("worst_client") == worst
    older = {name: value for name, value in one.items() if name != "worst_client"}
    assert worst_client(json.loads(to_json(older))) == worst
