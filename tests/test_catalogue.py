"""What comes along by name has one row, and every row leads to something."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from nmoe_flower.alignment import Assigner, align
from nmoe_flower.catalogue import (
    ALIGNMENT_GATES,
    BACKBONES,
    BASELINES,
    CONTROLS,
    GATES,
    LANGUAGE_MODELS,
    METHODS,
    OBJECTIVES,
    POLICIES,
    SCHEMES,
    BackboneEntry,
    found,
)
from nmoe_flower.config import Config, GateConfig
from nmoe_flower.data.schemes import SharingScheme, sharing
from nmoe_flower.errors import ConfigError
from nmoe_flower.losses import objective_of
from nmoe_flower.models import GateSite, Router, Routing, build_extractor
from nmoe_flower.pipeline import exchanges, stage_1_strategy
from nmoe_flower.pipeline.networked.gate import GateTrainer
from nmoe_flower.report.tables import GATE_NAMES, gate_kind, gate_order, method_label
from nmoe_flower.strategies import GateSharing, StreamingFedAvg

SITE = GateSite(
    own_id=1,
    num_experts=3,
    settings=GateConfig(),
    prototypes=torch.eye(3, 4),
    answers=torch.eye(3).repeat(5, 1, 1),
    labels=torch.tensor([0, 1, 2, 1, 0]),
    holdout_answers=torch.eye(3).repeat(5, 1, 1),
    holdout_labels=torch.tensor([0, 1, 2, 1, 0]),
    owners=torch.tensor([0, 1, 2, -1, 0]),
)


def test_reading_the_table_loads_nothing() -> None:
    heavy = "{'torch', 'flwr', 'numpy'}"
    code = f"import sys, nmoe_flower.catalogue; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("name", GATES)
def test_every_gate_is_built_or_trained(name: str) -> None:
    gate = GATES[name]
    assert bool(gate.router) != bool(gate.trainer)
    scheme = "natural" if gate.owners else "dominant"
    counted = exchanges(Config.parse({"gate.methods": name, "data.scheme": scheme}))
    if gate.trainer:
        assert isinstance(found(gate.trainer), GateTrainer)
        assert counted[f"gate/{name}"] > 0
        return
    assert f"gate/{name}" not in counted
    router = found(gate.router).at(SITE)
    assert isinstance(router, Router)
    routing = router.route(torch.ones(5, 4), generator=torch.Generator().manual_seed(0))
    assert isinstance(routing, Routing)
    assert routing.expert_ids.shape == (5, 1)
    assert routing.weights.sum(dim=1).tolist() == [1.0] * 5


def test_the_oracle_asks_the_expert_that_knows() -> None:
    routing = found(GATES["oracle"].router).at(SITE).route(torch.zeros(5, 4))
    assert routing.expert_ids[:, 0].tolist() == SITE.labels.tolist()


def test_reports_and_configuration_go_by_the_rows() -> None:
    assert GateConfig().methods == tuple(name for name in GATES if GATES[name].usual)
    assert sorted(["global", "control:fedavg", "random+prior", "oracle", "local"], key=gate_order) \
        == ["random+prior", "local", "global", "oracle", "control:fedavg"]  # fmt: skip
    assert {name for name in GATES if gate_kind(name) == "upper bound"} == {
        "global",
        "oracle",
        "domain",
    }
    assert Config().run.controls == tuple(n for n in CONTROLS if CONTROLS[n].usual)
    (pooling,) = [note for note in Config().advice() if "pool the clients' data" in note]
    calm = Config.parse({"gate.methods": "local", "run.controls": "fedavg"})
    assert pooling not in calm.advice()


def test_a_control_that_is_unknown_is_refused_with_the_names() -> None:
    with pytest.raises(ConfigError, match="'local-classifier', 'centralized' or 'pooled-head'"):
        Config.parse({"run.controls": "none"})


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_is_built_and_reads_what_its_row_says(name: str) -> None:
    images = torch.zeros(2, 3, 32, 32)
    body = build_extractor(name)
    assert body(images).shape == (2, body.latent_dim)
    assert Config.parse({"extractor.backbone": name}).extractor.backbone == name
    table = {"extractor.backbone": name, "data.kind": "features", "data.dataset": "a.csv"}
    if "features" in BACKBONES[name].reads:
        Config.parse(table)
        rows = build_extractor(name, in_channels=7, image_size=1)
        assert rows(torch.zeros(2, 7, 1, 1)).shape == (2, rows.latent_dim)
    else:
        with pytest.raises(ConfigError, match=f"{name} reads images.* use mlp or linear"):
            Config.parse(table)


def test_a_backbone_computes_in_bfloat16_unless_its_row_says_that_it_does_not_pay() -> None:
    assert BackboneEntry("a:b").bf16
    assert {name for name, row in BACKBONES.items() if not row.bf16} == {"digits", "mlp", "linear"}


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if not row.given])
def test_every_method_of_stage_1_has_both_halves(name: str) -> None:
    config = Config.parse({"extractor.method": name, "run.controls": "", "head.rounds": 0})
    assert isinstance(stage_1_strategy(config), StreamingFedAvg)
    assert callable(found(METHODS[name].initial))
    assert method_label(name) == METHODS[name].label


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_gives_the_gate_a_gradient(name: str) -> None:
    scores = torch.zeros(5, 3, requires_grad=True)
    objective_of(GateConfig(objective=name).objective)(scores, SITE.answers, SITE.labels).backward()
    assert scores.grad is not None
    assert scores.grad.abs().sum() > 0


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_shares_and_its_key_exists(name: str) -> None:
    scheme = SCHEMES[name]
    assert isinstance(sharing(name), SharingScheme)
    assert Config.parse({"data.scheme": name}).data.scheme == name
    assert not scheme.key or scheme.key in Config().flat()


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_decides_as_its_row_says(name: str) -> None:
    row, wanted = POLICIES[name], np.array([[3.0, 1.0, 0.0], [2.0, 1.0, 0.0], [1.0, 0.5, 0.0]])
    rng = np.random.default_rng(0)
    truth = wanted if row.truth else None
    chosen = align(wanted, [1, 1, 1], policy=name, rng=rng, truth=truth)
    assert chosen.sum(axis=1).tolist() == [1, 1, 1]
    if row.covers:
        assert chosen.sum(axis=0).tolist() == [1, 1, 1]
        with pytest.raises(ConfigError, match="2 slots"):
            align(wanted, [1, 1, 0], policy=name, rng=rng, truth=truth)
    if row.bounds:
        assert align(wanted, [1, 1, 1], policy=name, rng=rng, truth=truth, lo=0, hi=3).any()
    else:
        with pytest.raises(ConfigError, match="takes no lo or hi; joint and oracle do"):
            align(wanted, [1, 1, 1], policy=name, rng=rng, lo=0, hi=3)
    assert Config.parse({"alignment.policy": name}).alignment.policy == name
    bounded = {"alignment.policy": name, "alignment.hi": 2}
    if row.bounds:
        assert Config.parse(bounded).alignment.hi == 2
    else:
        with pytest.raises(ConfigError, match="are for joint and oracle"):
            Config.parse(bounded)


def test_a_further_policy_gets_the_bounds_that_its_row_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four clients, two experts: an even share is two clients each, ``hi`` lets each have one."""
    monkeypatch.setitem(POLICIES, "further", POLICIES["joint"])
    assigner = Assigner(4, 2, policy="further", lo=0, hi=1)
    assert assigner.assign(1, [True] * 4).chosen.sum(axis=0).tolist() == [1, 1]


@pytest.mark.parametrize("name", ALIGNMENT_GATES)
def test_every_gate_of_the_alignment_system_is_made(name: str) -> None:
    row = ALIGNMENT_GATES[name]
    config = Config.parse({"alignment.gate": name, "alignment.extractor": "frozen"})
    assert isinstance(found(row.sharing)(config), GateSharing)
    if row.solved:
        with pytest.raises(ConfigError, match="needs an extractor that stays"):
            Config.parse({"alignment.gate": name, "alignment.extractor": "trained"})


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_every_language_model_is_for_text_alone(name: str) -> None:
    assert callable(found(LANGUAGE_MODELS[name]))
    with pytest.raises(ConfigError, match=f"{name} reads text: use it with run.system = language"):
        Config.parse({"extractor.backbone": name})


@pytest.mark.parametrize("name", BASELINES)
def test_every_answer_of_a_baseline_has_a_name_that_tables_call_it(name: str) -> None:
    assert GATE_NAMES[name] == BASELINES[name].label
    for answer in BASELINES[name].answers:
        assert answer in GATE_NAMES or GATES[answer].plain  # which goes by its own name
