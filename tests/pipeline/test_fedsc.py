import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nmoe_flower.client_app import app
from nmoe_flower.clients.device import latents, predict
from nmoe_flower.config import Config
from nmoe_flower.records import Action

New = Callable[..., Any]
FEDSC: dict[str, Any] = {
    "extractor.method": "fedsc",
    "extractor.rounds": 6,
    "contrast.dim": 8,
    "contrast.hidden": 16,
    "contrast.probe-images": 60,
    "run.evaluate-every": 3,
}
LEAN = FEDSC | {"gate.methods": "local", "run.controls": "", "expert.epochs": 0}


def lines_of(pipeline: Any, stage: str) -> list[dict[str, Any]]:
    return [line for line in pipeline.lines if line["stage"] == stage]


def test_a_whole_run_leaves_every_row_and_watches_the_features(new_pipeline: New) -> None:
    pipeline = new_pipeline("whole", FEDSC)
    results = pipeline()
    rows = {(row["gate"], row["test"]): row for row in results["rows"]}
    controls = {"control:local-classifier", "control:centralized"}
    gates = set(Config.parse({}).gate.methods)
    named = {name + suffix for name in gates | controls for suffix in ("", "+prior")}
    named.remove("control:local-classifier+prior")
    assert set(rows) == set(itertools.product(named, ("local", "iid")))
    assert {row["extractor"] for row in rows.values()} == {"fedsc"}
    assert rows["oracle", "iid"]["accuracy"] >= rows["local", "iid"]["accuracy"]
    assert not [name for name in pipeline.weights if "projector" in name]
    trained, watched = lines_of(pipeline, "extractor"), lines_of(pipeline, "extractor-test")
    assert [line["round"] for line in trained] == [1, 2, 3, 4, 5, 6]
    assert [line["round"] for line in watched] == [3, 6]
    for metrics in (line["metrics"] for line in trained):
        assert 1 <= metrics["effective-rank"] <= 8
        assert np.isfinite(metrics["loss"])
    # Pooled probes are one client's work; the others only leave the latents of their tests.
    assert [line["clients"] for line in watched] == [[0, 1, 2, 3]] * 2
    for metrics in (line["metrics"] for line in watched):
        assert metrics["spectrum"] == sorted(metrics["spectrum"], reverse=True)
        assert len(metrics["spectrum"]) == 8
        assert sum(metrics["spectrum"]) <= 1 + 1e-6
        shares = np.array([value for value in metrics["spectrum"] if value > 0])
        shares /= shares.sum()
        rank = np.exp(-(shares * np.log(shares)).sum())
        assert metrics["effective-rank"] == pytest.approx(rank)
        assert {"alignment", "uniformity", "knn-accuracy", "probe-accuracy"} <= metrics.keys()


@pytest.mark.parametrize(
    ("refresh", "rounds"), [(1, [1, 2, 3, 4, 5, 6]), (2, [1, 3, 5]), (4, [1, 5])]
)
def test_a_matrix_travels_up_when_it_is_wanted_and_the_mean_always_down(
    refresh: int, rounds: list[int], new_pipeline: New
) -> None:
    """36 numbers of 4 bytes from each of 4 clients, plus a header that is the same."""
    pipeline = new_pipeline("bytes", LEAN | {"contrast.refresh": refresh})
    pipeline()
    lines = lines_of(pipeline, "extractor")
    up = {line["round"]: line["bytes_up"] for line in lines}
    least = min(up.values()) if refresh > 1 else up[1] - 4 * (36 * 4 + 128)
    assert {r for r, count in up.items() if count > least} == set(rounds)
    assert {count - least for r, count in up.items() if r in rounds} == {4 * (36 * 4 + 128)}
    down = {line["round"]: line["bytes_down"] for line in lines}
    assert {down[r] - down[1] for r in range(2, 7)} == {4 * (36 * 4 + 128)}


@pytest.mark.parametrize(("chosen", "first"), [({}, 4), ({"contrast.first": 2}, 2)], ids=str)
def test_a_matrix_that_takes_a_pass_waits_for_the_end_of_the_warm_up(
    chosen: dict[str, int], first: int, new_pipeline: New
) -> None:
    """Of six rounds: three to warm up."""
    passes = {"contrast.source": "pass", "extractor.warmup": 0.5, "contrast.refresh": 2}
    pipeline = new_pipeline("passes", LEAN | passes | chosen)
    pipeline()
    up = {line["round"]: line["bytes_up"] for line in lines_of(pipeline, "extractor")}
    assert {r for r, count in up.items() if count > up[1]} == set(range(first, 7, 2))


def test_two_phases_take_twice_the_exchanges_and_matrices_of_the_same_round(
    new_pipeline: New,
) -> None:
    asked = []

    def watched(message: Any, context: Any) -> Any:
        asked.append(message.metadata.message_type)
        return app(message, context)

    pipeline = new_pipeline("two-phase", LEAN | {"contrast.exchange": "two-phase"})
    pipeline(client_app=watched)
    assert asked.count(Action.CORRELATION) == asked.count(Action.FEDSC) == 4 * 6
    first = asked.index(Action.CORRELATION)
    assert asked[first : first + 8] == [Action.CORRELATION] * 4 + [Action.FEDSC] * 4


def test_every_image_passes_the_final_extractor_once(
    new_pipeline: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tests in the last round of stage 1, training images in stage 2."""
    passes = []

    def counted(device: Any, network: Any, images: np.ndarray, indices: np.ndarray) -> Any:
        passes.append(device.partition)
        return predict(device, network, images, indices)

    monkeypatch.setattr(latents, "predict", counted)
    pipeline = new_pipeline("once", LEAN)
    pipeline()
    assert sorted(passes) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("action", ["train.contrast", "query.correlation"])
def test_a_client_that_fails_is_left_out_of_that_round_and_named(
    action: str, new_pipeline: New, failing_app: Any
) -> None:
    pipeline = new_pipeline("dropped", LEAN | {"contrast.exchange": "two-phase"})
    pipeline(client_app=failing_app(action, 1, times=2))
    lines = lines_of(pipeline, "extractor")
    trains = action == "query.correlation"  # without a matrix of its own, on the others'
    some = [0, 1, 2, 3] if trains else [0, 2, 3]
    assert [line["clients"] for line in lines[:3]] == [some, some, [0, 1, 2, 3]]
    reason = "correlation: OSError: disk full" if trains else "OSError: disk full"
    assert [line["failures"] for line in lines[:3]] == [
        [{"partition": 1, "reason": reason}],
        [{"partition": 1, "reason": reason}],
        [],
    ]


def test_sharing_modes_have_different_losses_once_others_are_known(new_pipeline: New) -> None:
    """In round 1 nobody is; in the last of three the schedule has come down to 0.2, q_i is 1/4."""
    losses = []
    for share in ("samples", "schedule", "own"):
        pipeline = new_pipeline(share, LEAN | {"contrast.share": share, "extractor.rounds": 3})
        pipeline()
        losses.append([line["metrics"]["loss"] for line in lines_of(pipeline, "extractor")])
    for server_round, different in ((1, 1), (3, 3)):
        assert len({of_mode[server_round - 1] for of_mode in losses}) == different
