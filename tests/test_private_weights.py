"""Runs whose extractor is trained with DP-SGD: what they send, say, refuse and remember."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmoe_flower import files
from nmoe_flower.config import Config
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import ConfigError
from nmoe_flower.results import RunFolder
from nmoe_flower.server_app import execute
from tests.forks import Nmoe

CLIENTS = 3
TINY: dict[str, Any] = {
    "data.num-clients": CLIENTS,
    "data.train-per-client": 60,
    "data.test-per-client": 10,
    "extractor.rounds": 5,
    "extractor.batch-size": 12,
    "extractor.widths": "8,8",
    "expert.hidden": "8",
    "expert.epochs": 1,
    "gate.methods": "local",
    "run.controls": "",
    "run.checkpoint-every": 2,
    "run.evaluate-every": 5,
    "privacy.weights": True,
    "privacy.delta": 1e-3,
}
FEDSC: dict[str, Any] = {
    "extractor.method": "fedsc",
    "extractor.server-optimizer": "adamw",
    "contrast.dim": 8,
    "contrast.hidden": 16,
    "contrast.projector-norm": "layer",
    "contrast.probe": "none",
    "privacy.enabled": True,
    "privacy.releases": 5,
}


class Stop(BaseException):
    """Stands in for the moment of death."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


Going = Callable[..., Path]


@pytest.fixture
def go(tmp_path: Path, cache: Path) -> Going:
    """Begin or resume a run; die after the record of round ``stop`` of stage 1."""

    def make(name: str, *, stop: int = 0, **changed: Any) -> Path:
        path = tmp_path / name
        named = {"run.out": str(tmp_path), "run.name": name, "data.cache-dir": str(cache)}
        config = Config.parse(TINY | changed | named)
        folder = (RunFolder.resume if path.exists() else lambda p: RunFolder.create(p, config))(
            path
        )

        def on_round(record: Mapping[str, Any]) -> None:
            if (record["stage"], record["round"]) == ("extractor", stop):
                raise Stop

        app = "nmoe_flower.client_app:app"
        with InProcessGrid(app, CLIENTS, run_config=config.flat()) as grid:
            execute(grid, folder, on_round=on_round)
        return path

    return make


def rounds(folder: Path, stage: str = "extractor") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == stage]


def privacy(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "results.json").read_text())["privacy"])


def weights(folder: Path) -> dict[str, np.ndarray]:
    return files.load_arrays(folder / "weights" / "extractor.safetensors")


def ledgers(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("clients/*/privacy-weights.json"))
    return [json.loads(path.read_text()) for path in paths]


def test_fedce_trains_within_its_budget_and_keeps_its_losses_at_home(go: Going) -> None:
    folder = go("ce", **{"privacy.adjacency": "add-remove"})
    lines = rounds(folder)
    assert [line["metrics"]["weights-steps"] for line in lines] == [1, 2, 3, 4, 5]
    for line in lines:
        assert "loss" not in line["metrics"]
        assert line["metrics"]["weights-epsilon"] < line["metrics"]["weights-epsilon-replaced"]
    epsilons = [line["metrics"]["weights-epsilon"] for line in lines]
    assert epsilons == sorted(epsilons)
    assert 0.9 * 8 < epsilons[-1] <= 8  # planned for five rounds
    (_, rate, steps) = ledgers(folder)[0]["steps"][0]
    assert (rate, steps) == (12 / 60, 5)
    said = privacy(folder)["statement"]
    assert f"In this adjacency: epsilon {epsilons[-1]:.4g} at delta 0.001" in said
    assert "Correlation matrices" not in said
    assert "end to end, but its number of samples" in said


def test_the_budget_is_meant_in_the_adjacency_of_the_run(go: Going) -> None:
    folder = go("ce")
    last = rounds(folder)[-1]["metrics"]
    assert 0.9 * 8 < last["weights-epsilon-replaced"] <= 8
    assert f"epsilon {last['weights-epsilon-replaced']:.4g} at" in privacy(folder)["statement"]


def test_fedsc_is_private_end_to_end_with_matrices_and_weights(go: Going) -> None:
    folder = go("sc", **FEDSC)
    lines = rounds(folder)
    # round 1 has no mean matrix yet: no step, and nothing to pay
    assert [line["metrics"]["weights-steps"] for line in lines] == [0, 1, 2, 3, 4]
    assert not any("loss" in line["metrics"] for line in lines)
    said = privacy(folder)
    total = said["epsilon"] + lines[-1]["metrics"]["weights-epsilon-replaced"]
    assert "by basic composition" in said["statement"]
    assert f"epsilon {total:.4g} at delta 0.002" in said["statement"]
    assert "end to end, but its number of samples" in said["statement"]
    (tested,) = rounds(folder, "extractor-test")
    assert not {"probe-accuracy", "knn-accuracy"} & tested["metrics"].keys()


@pytest.mark.parametrize(
    ("changed", "leak"),
    [
        ({"privacy.enabled": False}, "correlation matrices"),
        ({"contrast.probe": "local", "contrast.probe-images": 40}, "accuracies of probes"),
    ],
)
def test_what_leaves_without_noise_is_named(go: Going, changed: dict[str, Any], leak: str) -> None:
    said = privacy(go("sc", **(FEDSC | {"extractor.rounds": 2} | changed)))["statement"]
    assert leak in said
    assert "not private end to end" in said


def test_a_spent_budget_stops_the_steps_and_not_the_run(
    go: Going, caplog: pytest.LogCaptureFixture
) -> None:
    """At noise 0.8 the five rounds would cost about 15."""
    folder = go("spent", **{"privacy.weights-noise": 0.8, "privacy.weights-epsilon": 10.0})
    lines = [line["metrics"] for line in rounds(folder)]
    paid = lines[-1]["weights-steps"]
    assert 1 <= paid < 5
    assert [line["weights-spent"] for line in lines] == [0.0] * int(paid) + [1.0] * int(5 - paid)
    assert lines[-1]["weights-epsilon-replaced"] <= 10
    assert "has spent the privacy budget of its weights" in caplog.text
    assert caplog.text.count("has spent") == 1


def test_weights_stay_as_they_are_when_nothing_is_paid_for(go: Going) -> None:
    tight = {"privacy.weights-noise": 0.5, "privacy.weights-epsilon": 0.1}
    untrained = go("untrained", **{"extractor.rounds": 0})
    refused = go("refused", **tight, **{"extractor.momentum": 0.0})
    for name, array in weights(untrained).items():  # but for the rounding of a mean
        assert np.allclose(array, weights(refused)[name], rtol=1e-5, atol=1e-7), name


def test_seeds_decide_noise_unless_it_is_secure(go: Going) -> None:
    def same(first: Path, second: Path) -> bool:
        return all(np.array_equal(a, weights(second)[n]) for n, a in weights(first).items())

    one, two = go("one"), go("two")
    assert same(one, two)
    assert not same(one, go("three", **{"run.seed": 1}))
    secure = {"privacy.secure": True}
    assert not same(go("four", **secure), go("five", **secure))


@pytest.mark.parametrize("changed", [{}, FEDSC, {"extractor.reading": "private-heads"},
                                     {"extractor.momentum-at": "averaged"}], ids=str)  # fmt: skip
def test_a_stopped_run_ends_bit_equal_and_pays_once(go: Going, changed: dict[str, Any]) -> None:
    straight = go("straight", **changed)
    with pytest.raises(Stop):
        go("stopped", stop=4, **changed)  # round 3 was not saved, nor was round 4
    assert [ledger["steps"][0][2] for ledger in ledgers(straight)] in ([5] * 3, [4] * 3)
    stopped = go("stopped", **changed)
    for name, array in weights(straight).items():
        assert array.tobytes() == weights(stopped)[name].tobytes(), name
    assert [book["steps"] for book in ledgers(stopped)] == [
        book["steps"] for book in ledgers(straight)
    ]
    assert privacy(stopped) == privacy(straight)


def test_what_cannot_be_repeated_is_paid_for_again(go: Going) -> None:
    """Noise of the operating system; round 3 was saved when it stopped: 4 is two releases."""
    roomy = {"privacy.secure": True, "privacy.weights-noise": 5.0, "privacy.weights-epsilon": 50.0}
    with pytest.raises(Stop):
        go("stopped", stop=4, **roomy)
    folder = go("stopped", **roomy)
    assert [book["steps"][0][2] for book in ledgers(folder)] == [6] * CLIENTS
    assert rounds(folder)[-1]["metrics"]["weights-steps"] == 6


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_outright_it_forgets_no_step(tmp_path: Path, cache: Path, go: Going) -> None:
    changed = {"extractor.rounds": 12, "privacy.weights-epsilon": 20.0}
    straight = go("straight", **changed)
    named = {"run.out": str(tmp_path), "run.name": "killed", "data.cache-dir": str(cache)}
    recipe = [f"{key}={value}" for key, value in (TINY | changed | named).items()]
    killed = tmp_path / "killed"
    command = ("run", "--no-figures", "--workers", "0")
    new = ("--out", str(tmp_path), "--name", "killed", "--set", *recipe)
    with Nmoe(tmp_path, *command, *new) as process:
        process.kill_once(killed / "rounds.jsonl", b'"stage": "extractor", "round": 5,')
    paid = [book["steps"][0][2] for book in ledgers(killed)]
    assert all(5 <= count < 12 for count in paid)
    with Nmoe(tmp_path, *command, "--resume", str(killed)) as process:
        process.finish()
    assert [book["steps"] for book in ledgers(killed)] == [
        book["steps"] for book in ledgers(straight)
    ]
    for name, array in weights(straight).items():
        assert array.tobytes() == weights(killed)[name].tobytes(), name


# --- bad values -----------------------------------------------------------------------------------

SC = {"extractor.method": "fedsc", "contrast.projector-norm": "layer"}


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"extractor.norm": "batch"}, "extractor.norm = batch mixes the samples"),
        ({"extractor.max-grad-norm": 3.0}, "extractor.max-grad-norm must be 0, got 3"),
        ({"extractor.logit-adjustment": 1.0}, "logit-adjustment must be 0, got 1"),
        ({"extractor.method": "fedsc"}, "contrast.projector-norm = batch mixes the samples"),
        (SC | {"contrast.source": "batches"}, "contrast.source = pass or auto, got batches"),
        (SC | {"contrast.share": "own"}, "contrast.share must be samples, got own"),
        (SC | {"contrast.running": 0.5}, "contrast.running must be 0, got 0.5"),
        ({"privacy.weights-clip": 0}, "privacy.weights-clip"),
        ({"privacy.weights-epsilon": -1}, "privacy.weights-epsilon"),
        ({"privacy.weights-noise": -1}, "privacy.weights-noise"),
        ({"privacy.weights-noise": float("inf")}, "privacy.weights-noise"),
    ],
)
def test_settings_that_break_the_promise_are_refused(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Config.parse({"privacy.weights": True} | changed)


def test_settings_that_mix_samples_are_fine_without_private_weights() -> None:
    Config.parse({"extractor.norm": "batch", "extractor.logit-adjustment": 1.0})


def test_noise_from_a_seed_is_pointed_out() -> None:
    seeded = "\n".join(Config.parse({"privacy.weights": True}).advice())
    assert "privacy.secure = false" in seeded
    secure = Config.parse({"privacy.weights": True, "privacy.secure": True}).advice()
    assert "privacy.secure" not in "\n".join(secure)


def test_a_delta_of_one_over_n_is_refused(go: Going) -> None:
    with pytest.raises(Exception, match=r"delta must be below 1 */ *"):
        go("delta", **{"privacy.delta": 0.02})
