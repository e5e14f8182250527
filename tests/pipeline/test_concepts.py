"""Whole runs on devices that see domains or call classes by names of their own."""

from collections.abc import Callable
from typing import Any

import numpy as np

New = Callable[..., Any]

QUICK = {
    "data.scheme": "natural", "data.train-per-client": 0, "data.test-per-client": 0,
    "extractor.backbone": "linear", "extractor.rounds": 0,
    "expert.init": "scratch", "expert.hidden": "", "expert.epochs": 4, "run.controls": "",
    "expert.learning-rate": 0.03, "expert.logit-adjustment": 0.0, "gate.prior": "none",
}  # fmt: skip


def quick(**changes: Any) -> dict[str, Any]:
    return QUICK | changes


def accuracies(results: dict[str, Any], test: str) -> dict[str, float]:
    return {row["gate"]: row["accuracy"] for row in results["rows"] if row["test"] == test}


def test_client_weights_find_those_who_mean_the_same(new_pipeline: New) -> None:
    """Clients 0 and 2 call digits alike, 1 and 3 too, and no image shows it."""
    gates = "local,prototype,client-weights,domain"
    results = new_pipeline(
        "hidden", quick(**{"data.renamings": 2, "gate.methods": gates, "gate.top-k": 2})
    )()
    found = accuracies(results, "local")
    assert found["client-weights"] >= found["local"] - 0.01 > 0.8
    assert found["prototype"] < found["local"] - 0.1  # it asks both concepts
    assert found["domain"] == found["local"]  # whose image it is: one's own
    routing = np.array(results["routing"]["client-weights/local"])
    # Two of the four, half of the questions each: oneself, and who means the same.
    assert routing.tolist() == [[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]] * 2


def test_a_home_bias_keeps_everything_at_home(new_pipeline: New) -> None:
    domains = "clean,rot90,invert,blur"
    changes = {"data.domains": domains, "gate.methods": "local,prototype,client-weights,domain"}
    told = new_pipeline("told", quick(**changes))()
    assert accuracies(told, "iid")["domain"] > accuracies(told, "iid")["local"] + 0.1
    assert accuracies(told, "iid")["prototype"] > accuracies(told, "iid")["local"] + 0.1
    routing = np.array(told["routing"]["domain/iid"])
    assert np.abs(routing - 0.25).max() < 0.02  # every domain alike
    home = new_pipeline("home", quick(**changes, **{"gate.home-bias": 1e6}))()
    for gate in ("prototype", "client-weights"):
        assert np.array_equal(home["routing"][f"{gate}/iid"], np.eye(4))
    assert accuracies(home, "iid")["prototype"] == accuracies(home, "iid")["local"]


def test_accuracy_by_domain_knows_who_has_left(new_pipeline: New) -> None:
    """Clients after it move up; their domains keep their names."""
    alike = quick(**{"gate.methods": "local", "run.controls": ""})
    left = {"data.domains": "clean,rot90,blur", "data.num-clients": 2, "data.without": 0}
    found = new_pipeline("left", alike | left)()["by_owner"]["local"]
    never = {"data.domains": "rot90,blur", "data.num-clients": 2}
    wanted = new_pipeline("never", alike | never)()["by_owner"]["local"]
    for test in ("local", "iid"):
        assert [name for name in found[test] if name != "other"] == ["rot90", "blur"]
    assert list(wanted["local"]) == ["rot90", "blur"]


def test_one_large_head_for_all_and_accuracy_by_domain(new_pipeline: New) -> None:
    """The newcomer's domain has no device yet: it is asked about, as ``other``."""
    changes = {
        "data.domains": "clean,rot90,invert,blur,rot180", "gate.methods": "prototype,local,domain",
        "run.controls": "pooled-head", "run.control-epochs": 3, "run.control-learning-rate": 0.01,
        "data.validation-per-client": 20,
    }  # fmt: skip
    results = new_pipeline("pooled", quick(**changes))()
    found = accuracies(results, "iid")
    assert found["control:pooled-head"] > max(found["local"], found["prototype"])
    assert accuracies(results, "validation")["control:pooled-head"] > 0.8
    by_owner = results["by_owner"]["local"]
    names = ["clean", "rot90", "invert", "blur"]
    assert list(by_owner["local"]) == names
    assert list(by_owner["iid"]) == [*names, "other"]
    # Five domains alike: their mean is what all samples have.
    mean = np.mean(list(by_owner["iid"].values()))
    assert abs(mean - found["local"]) < 0.01
    assert results["by_owner"]["domain"]["iid"]["rot90"] > by_owner["iid"]["rot90"] + 0.2
    # 64 pixels, 10 classes, 4 experts; prototypes are 4 means and 4 offsets.
    assert results["parameters"] == {"prototype": 650 + 260, "local": 650, "domain": 650}
