"""Stages 2 and 3 on a given extractor, with cross-fitted experts and gates under AdamW."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import erf

from nmoe_flower.errors import ConfigError
from nmoe_flower.files import load_arrays, pack_arrays, write_bytes

New = Callable[..., Any]
LEAN: dict[str, Any] = {"run.controls": "", "gate.methods": "federated,rolling,global,local"}


def save_weights(pipeline: Any, *, head: bool = True) -> Path:
    """What a finished run leaves in its folder."""
    for part in ("extractor", "head") if head else ("extractor",):
        arrays = {
            name.removeprefix(f"classifier/{part}."): value
            for name, value in pipeline.weights.items()
            if name.startswith(f"classifier/{part}.")
        }
        path = pipeline.folder / "weights" / f"{part}.safetensors"
        write_bytes(path, pack_arrays(arrays), sync=False)
    folder: Path = pipeline.folder
    return folder


def test_a_given_extractor_leads_to_the_same_results(new_pipeline: New) -> None:
    whole = new_pipeline("whole", {**LEAN, "extractor.backbone": "digits"})
    expected = whole()
    changes = {"extractor.backbone": "digits", "extractor.start": str(save_weights(whole))}
    # Validation images are none of those that stage 1 was trained on, here without any.
    given = new_pipeline("given", {**LEAN, **changes, "data.validation-per-client": 20})
    found = given()
    rows = {test: [row for row in found["rows"] if (row["test"] == "validation") == test]
            for test in (False, True)}  # fmt: skip
    assert rows[False] == expected["rows"]
    assert len(rows[True]) == len(rows[False]) / 2
    assert "extractor" not in found["stages"]
    assert [line for line in given.lines if line["stage"] == "extractor"] == []


def test_an_extractor_that_does_not_fit_is_refused(new_pipeline: New) -> None:
    whole = new_pipeline("whole", {**LEAN, "extractor.backbone": "digits"})
    whole()
    folder = save_weights(whole, head=False)
    headless = {"extractor.backbone": "digits", "extractor.start": str(folder)}
    with pytest.raises(ConfigError, match=r"extractor\.start .*missing \['head\."):
        new_pipeline("headless", {**LEAN, **headless})()
    wide = {**headless, "extractor.widths": "16,32", "extractor.method": "fedsc"}
    with pytest.raises(ConfigError, match=r"extractor\.start = .*shape"):
        new_pipeline("wide", {**LEAN, **wide})()
    with pytest.raises(ConfigError, match=r"extractor\.start = .*missing"):
        new_pipeline("nowhere", {**LEAN, **headless, "extractor.start": "/no/such/run"})()


@pytest.mark.parametrize("sharing", ["weights", "latents"])
def test_a_cross_fitted_gate_trains_on_everything(new_pipeline: New, sharing: str) -> None:
    pipeline = new_pipeline("folds", {**LEAN, "gate.folds": 3, "expert.sharing": sharing})
    pipeline()
    trained = [line for line in pipeline.lines if line["stage"] == "gate/federated"]
    assert {line["metrics"]["loss"] > 0 for line in trained} == {True}
    store = pipeline.folder / "clients" / "0"
    latents, answers = read(store / "latents"), read(store / "answers")
    np.testing.assert_array_equal(latents["holdout"], latents["train"])
    own = read(store / "out-of-fold")["logits"]
    np.testing.assert_array_equal(answers["holdout"][:, 0], own)
    assert own.shape == (60, 10)
    assert np.abs(own).sum(axis=1).min() > 0  # every image is in exactly one fold


def read(path: Path) -> dict[str, np.ndarray]:
    return load_arrays(path.with_suffix(".safetensors"))


def test_own_answers_come_from_an_expert_that_did_not_see_them(new_pipeline: New) -> None:
    """Experts that learn by heart know their own images; cross-fitted answers are no better
    than those to the hold-out of a run without folds."""
    by_heart = {
        **LEAN,
        "expert.epochs": 60,
        "expert.learning-rate": 0.01,
        "expert.init": "scratch",
        "expert.logit-adjustment": 0,
        "data.tau": 5.0,
    }
    pipeline = new_pipeline("folds", {**by_heart, "gate.folds": 2})
    pipeline()
    gaps = []
    for client in range(4):
        store = pipeline.folder / "clients" / str(client)
        latents, own = read(store / "latents"), read(store / "out-of-fold")["logits"]
        expert = read(store / "expert")
        hidden = latents["train"] @ expert["layers.0.weight"].T + expert["layers.0.bias"]
        seen = gelu(hidden) @ expert["layers.2.weight"].T + expert["layers.2.bias"]
        labels = latents["train-labels"]
        assert (seen.argmax(axis=1) == labels).mean() == 1.0
        gaps.append(1.0 - (own.argmax(axis=1) == labels).mean())
    assert np.mean(gaps) > 0.05


def gelu(x: np.ndarray) -> np.ndarray:
    return np.asarray(x * 0.5 * (1 + erf(x / np.sqrt(2))))


def test_adamw_trains_every_gate(new_pipeline: New) -> None:
    """The first AdamW step moves every weight by the rate, whatever the gradient's size."""
    changes = {
        "gate.optimizer": "adamw",
        "gate.normalise-gradient": False,
        "gate.learning-rate": 0.01,
        "gate.rounds": 1,
        "gate.local-steps": 1,
        "gate.fraction-train": 1.0,
    }
    pipeline = new_pipeline("adamw", {**LEAN, **changes})
    pipeline()
    start = {k: v for k, v in pipeline.weights.items() if k.startswith("gate/initial/")}
    for name, before in start.items():
        moved = np.abs(pipeline.weights[name.replace("initial", "federated")] - before)
        assert moved.max() == pytest.approx(0.01, rel=1e-3)
