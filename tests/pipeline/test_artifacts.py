"""What stages leave for each other, and its names in checkpoints, which never change."""

from dataclasses import fields
from typing import Any

import numpy as np

from nmoe_flower.pipeline import Artifacts

ONE, TWO = np.ones(2, np.float32), np.full(3, 2.0)


def full() -> Artifacts:
    return Artifacts(
        classifier={"extractor.w": ONE, "head.w": TWO},
        initial_gate={"head.weight": ONE},
        initial_head={"layers.0.weight": TWO},
        gates={"rolling": {"head.weight": ONE}, "federated": {"head.weight": TWO}},
        prototypes=np.ones((2, 3)),
        normal_means=np.ones((2, 4)),
        carried=np.array([1]),
        shortlists={"experts": TWO},
        centralized={"probabilities": ONE, "expert-ids": TWO},
        pooled_head={"probabilities": TWO},
        spectrum=TWO,
        accountant={"spent": {"0": [[4.0, 2]]}},
        expert_parameters=7,
        ridge={"w": ONE},
        discriminants={"bias": ONE},
        mixture={"gate.w": ONE},
        alignment={"assigner/times": ONE, "elapsed": TWO},
        text_standard={"standard-mean": ONE},
        adapters={"0/layer.A": ONE},
        frequencies=np.ones((2, 3), np.float16),
        shared_adapters={"fedavg": {"layer.A": TWO}},
        chosen_rates={"fedavg": 0.5},
        tried_adapters={"fedavg-exact@0.25": {"layer.A": ONE}},
        tried_bits={"fedavg-exact@0.25": 2.5},
    )


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def test_a_checkpoint_holds_all_of_it_under_the_names_of_old() -> None:
    artifacts = full()
    assert all(getattr(artifacts, part.name) for part in fields(Artifacts) if part.name not in
               {"prototypes", "normal_means", "carried", "spectrum", "frequencies"})  # fmt: skip
    named = artifacts.named()
    assert sorted(named) == [
        "adapters/0/layer.A", "aligned/assigner/times", "aligned/elapsed",
        "at-rates/fedavg-exact@0.25/layer.A", "carried/clients",
        "centralized/expert-ids", "centralized/probabilities", "classifier/extractor.w",
        "classifier/head.w", "discriminants/bias", "findings/accountant",
        "findings/at-rates", "findings/rates", "findings/spectrum",
        "frequencies/text", "gate/federated/head.weight", "gate/initial/head.weight",
        "gate/rolling/head.weight", "head/initial/layers.0.weight", "mixture/gate.w",
        "normal-means",
        "parameters/expert", "pooled-head/probabilities", "prototypes", "ridge/w",
        "shared/fedavg/layer.A", "shortlists/experts", "text-standard/standard-mean",
    ]  # fmt: skip
    again = Artifacts.read(named)
    for part in fields(Artifacts):
        assert plain(getattr(again, part.name)) == plain(getattr(artifacts, part.name)), part.name


def test_nothing_is_named_before_a_stage_has_left_it() -> None:
    assert Artifacts().named() == {}
    assert Artifacts.read({}) == Artifacts()


def test_weights_are_the_networks_a_run_is_made_for() -> None:
    assert list(full().weights()) == [
        "mixture", "adapter-0", "gate-unigram", "adapter-fedavg", "extractor", "head",
        "gate-federated", "gate-rolling",
    ]  # fmt: skip
    assert full().weights()["head"] == {"w": TWO}
    assert Artifacts().weights() == {"extractor": {}}  # a backbone may have none
    assert list(Artifacts(mixture={"w": ONE}).weights()) == ["mixture"]
