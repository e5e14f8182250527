"""FedEM's E and M steps, and PFL-MoE's blend, on numbers that can be checked."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nmoe_flower import records
from nmoe_flower.baselines.fedem import FEDEM, responsibilities
from nmoe_flower.baselines.member import Member
from nmoe_flower.baselines.network import ExpertNetwork
from nmoe_flower.baselines.pfl_moe import blended
from nmoe_flower.catalogue import BASELINES
from nmoe_flower.clients.device import Device, Store
from nmoe_flower.config import Config
from nmoe_flower.data import ClientIndices, ImageData, Split

ROWS = 2000


def mixture_of(true: torch.Tensor) -> torch.Tensor:
    """Losses [n, K] of K linear models on labels that a mixture of them gave."""
    draw = torch.Generator().manual_seed(3)
    images = torch.randn(ROWS, 6, generator=draw)
    models = 2 * torch.randn(len(true), 6, 4, generator=draw)
    logs = torch.einsum("nd,kdc->nkc", images, models).log_softmax(dim=2)
    which = torch.multinomial(true, ROWS, replacement=True, generator=draw)
    labels = torch.multinomial(logs[torch.arange(ROWS), which].exp(), 1, generator=draw)[:, 0]
    return -logs[torch.arange(ROWS), :, labels]


def test_known_weights_are_found_and_the_likelihood_never_falls() -> None:
    true = torch.tensor([0.6, 0.3, 0.1])
    losses, weights, before = mixture_of(true), torch.full((3,), 1 / 3), -np.inf
    for _ in range(60):
        parts = responsibilities(losses, weights)
        torch.testing.assert_close(parts.sum(dim=1), torch.ones(ROWS))
        likelihood = float((weights.log() - losses).logsumexp(dim=1).mean())
        assert likelihood >= before - 1e-6
        weights, before = parts.mean(dim=0), likelihood
    np.testing.assert_allclose(weights.numpy(), true.numpy(), atol=0.05)


SHARES = np.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.2, 0.1, 0.7], [0.4, 0.4, 0.2]])
LINEAR: dict[str, Any] = {
    "run.system": "fedem",
    "extractor.backbone": "linear",
    "extractor.head": "linear",
    "expert.hidden": "",
    "baseline.experts": 3,
    "baseline.local-steps": 10,
    "baseline.batch-size": 128,
    "baseline.learning-rate": 1.5,
    "baseline.weight-decay": 0.0,
    "data.crop-padding": 0,
    "data.num-clients": len(SHARES),
}
EACH = 1000  # rows of a client


@pytest.fixture
def devices(tmp_path: Path) -> list[Device]:
    """Clients whose rows three linear models have labelled, in shares that are known."""
    rng = np.random.default_rng(0)
    models = 8 * rng.normal(size=(3, 6, 4))
    rows = rng.normal(size=(len(SHARES) * EACH, 6)).astype(np.float32)
    which = np.concatenate([rng.choice(3, EACH, p=share) for share in SHARES])
    logits = np.einsum("nf,nfc->nc", rows, models[which])
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)  # drawn by their softmax
    split = Split(rows[:, None, None], labels)
    data = ImageData("mixture", split, split, ("a", "b", "c", "d"), "0")
    config, found = Config.parse(LINEAR), []
    for client in range(len(SHARES)):
        device = Device(config, client, len(SHARES), Store(tmp_path / str(client)))
        own = np.arange(client * EACH, (client + 1) * EACH)
        vars(device).update(data=data, indices=ClientIndices(own, own, own))
        found.append(device)
    return found


def rounds_of(devices: list[Device], count: int, start: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The weights that each client keeps after rounds of FedEM, averaged as by a server."""
    now = start
    for server_round in range(1, count + 1):
        members = [Member(device, FEDEM, server_round) for device in devices]
        for member in members:
            records.load_into(member.network.state_dict(), now)
            FEDEM.train(member)
        states = [member.network.state_dict() for member in members]
        now = {name: np.mean([state[name].numpy() for state in states], axis=0) for name in now}
    return [Member(device, FEDEM, count + 1).kept()["weights"] for device in devices]


def test_clients_learn_experts_and_find_their_weights(devices: list[Device]) -> None:
    """Nobody tells which model labelled a row; experts may come out in any order."""
    first = Member(devices[0], FEDEM, 1).network.state_dict()
    start = {name: value.numpy().copy() for name, value in first.items()}
    found = np.stack(rounds_of(devices, 40, start))
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    errors = [
        np.abs(found[:, list(order)] - SHARES).max() for order in itertools.permutations(range(3))
    ]
    assert min(errors) < 0.05


def test_equal_experts_stay_equal_for_ever(devices: list[Device]) -> None:
    """All losses are alike, so r = 1/K whatever the data: this is why they are drawn apart."""
    first = Member(devices[0], FEDEM, 1).network.state_dict()
    same = {name: first[f"expert.0.{name.split('.', 2)[2]}"].numpy().copy() for name in first}
    for weights in rounds_of(devices, 3, same):
        np.testing.assert_allclose(weights, 1 / 3, rtol=1e-5)


@pytest.mark.parametrize("size", ["head", "net"])
@pytest.mark.parametrize("system", [name for name, one in BASELINES.items() if one.several])
def test_initial_experts_differ(system: str, size: str) -> None:
    config = Config.parse(
        {"run.system": system, "baseline.size": size, "extractor.backbone": "mlp",
         "extractor.widths": "5"}
    )  # fmt: skip
    network = ExpertNetwork(config, (1, 4, 4), 7, experts=3)
    for one, other in itertools.combinations(network.expert.values(), 2):
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        assert all(not torch.equal(a, b) for a, b in pairs if a.ndim > 1)


def test_a_weight_of_zero_stays_zero_and_is_no_nan() -> None:
    parts = responsibilities(torch.tensor([[0.1, 5.0]]), torch.tensor([0.0, 1.0]))
    np.testing.assert_allclose(parts.numpy(), [[0.0, 1.0]], atol=1e-6)


def test_a_gate_of_one_is_the_global_head_and_of_zero_the_private_one() -> None:
    shared, own = torch.randn(5, 3), torch.randn(5, 3)
    for score, head in ((200.0, shared), (-200.0, own)):
        torch.testing.assert_close(blended(torch.full((5, 1), score), shared, own), head)
