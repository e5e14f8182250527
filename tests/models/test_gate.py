import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe_flower.config import GateConfig
from nmoe_flower.errors import ConfigError
from nmoe_flower.models import (
    ClientWeightsGate,
    DiscriminantGate,
    DomainGate,
    Gate,
    GateSite,
    HomeBias,
    LocalGate,
    PrototypeGate,
    RandomGate,
    Router,
    Routing,
    ScoringRouter,
    normalised_latents,
    route_top_k,
    with_home_bias,
)
from nmoe_flower.sums import discriminants


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def trained(gate, seed=0):
    """Weights away from zero."""
    generator = source(seed)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return gate


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_top_k_agrees_with_a_loop_over_sorted_rows(data):
    experts = data.draw(st.integers(1, 6))
    rows = data.draw(st.integers(0, 4))
    top_k = data.draw(st.integers(1, experts))
    # few different values, so ties are common
    table = [[data.draw(st.integers(-2, 2)) for _ in range(experts)] for _ in range(rows)]
    routing = route_top_k(torch.tensor(table).reshape(rows, experts).double(), top_k)
    assert routing.expert_ids.dtype == torch.int64
    assert routing.weights.shape == (rows, top_k)
    for i, row in enumerate(table):
        best = sorted(range(experts), key=lambda e: (-row[e], e))[:top_k]
        powers = [math.exp(row[e]) for e in best]
        assert routing.expert_ids[i].tolist() == best
        assert routing.weights[i].tolist() == pytest.approx([p / sum(powers) for p in powers])


def test_ties_among_many_experts_go_to_the_lower_ids():
    # an unstable sort mixes up equal values once there are more than a few
    assert route_top_k(torch.zeros(2, 200), 200).expert_ids.tolist() == [list(range(200))] * 2


@pytest.mark.parametrize("top_k", [0, 4, -1])
def test_top_k_out_of_range_is_refused_everywhere(top_k):
    message = f"between 1 and the number of experts, 3, got {top_k}"
    for make in (
        lambda: Gate(2, 3, top_k=top_k),
        lambda: RandomGate(3, top_k=top_k),
        lambda: PrototypeGate(torch.eye(3), top_k=top_k),
        lambda: route_top_k(torch.zeros(1, 3), top_k),
    ):
        with pytest.raises(ConfigError, match=message):
            make()


@pytest.mark.parametrize("sizes", [(0, 3, 0), (2, 0, 0), (2, 3, -1)])
def test_a_gate_refuses_impossible_sizes(sizes):
    latent_dim, num_experts, hidden = sizes
    with pytest.raises(ConfigError, match=f"num_experts={num_experts}, hidden={hidden}"):
        Gate(latent_dim, num_experts, hidden=hidden)


@pytest.mark.parametrize("hidden", [0, 5])
def test_a_fresh_gate_is_uniform_and_can_learn(hidden):
    gate = Gate(4, 3, hidden=hidden)
    latents = torch.randn(6, 4, generator=source())
    scores = gate(latents)
    assert torch.equal(scores, torch.zeros(6, 3))
    scores[:, 0].sum().backward()
    assert gate.head.weight.grad.abs().sum() > 0


def test_scores_do_not_depend_on_scale_or_offset_of_the_latent():
    gate = trained(Gate(8, 3))
    latents = torch.randn(6, 8, generator=source(1))
    torch.testing.assert_close(gate(50 * latents + 3), gate(latents), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("options", [{}, {"hidden": 5}, {"noisy": True}])
def test_latents_that_were_normalised_once_are_scored_as_those_that_were_not(options):
    gate = trained(Gate(8, 3, **options))
    latents = torch.randn(6, 8, generator=source(1))
    once = gate(normalised_latents(latents), generator=source(2), normalised=True)
    assert torch.equal(once, gate(latents, generator=source(2)))


def test_the_linear_gate_by_hand():
    # (1, 3) normalises to (-1, 1); head weight rows (1, 0) and (0, 2), bias (0, 1): (-1, 3)
    gate = Gate(2, 2)
    with torch.no_grad():
        gate.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        gate.head.bias.copy_(torch.tensor([0.0, 1.0]))
    scores = gate(torch.tensor([[1.0, 3.0]]))
    torch.testing.assert_close(scores, torch.tensor([[-1.0, 3.0]]), atol=1e-4, rtol=0)
    assert gate.route(torch.tensor([[1.0, 3.0]])).expert_ids.tolist() == [[1]]


def test_one_expert_carries_no_gradient_and_two_do():
    latents = torch.randn(6, 4, generator=source())
    one, two = trained(Gate(4, 3)), trained(Gate(4, 3, top_k=2))
    one.route(latents).weights[:, 0].sum().backward()
    two.route(latents).weights[:, 0].sum().backward()
    assert one.head.weight.grad.abs().max() == 0
    assert two.head.weight.grad.abs().max() > 0


def test_noise_is_for_training_only_and_comes_from_the_generator():
    gate = Gate(4, 3, noisy=True)
    latents = torch.randn(2000, 4, generator=source())
    first = gate(latents, generator=source(1))
    assert torch.equal(first, gate(latents, generator=source(1)))
    assert not torch.equal(first, gate(latents, generator=source(2)))
    # W_n = 0: the standard deviation is softplus(0) = ln 2; 6000 draws give it to about 1 %
    assert first.std().item() == pytest.approx(math.log(2), rel=0.05)
    with pytest.raises(ConfigError, match="needs a torch generator"):
        gate.route(latents)
    gate.eval()
    assert torch.equal(gate(latents), torch.zeros(2000, 3))
    assert not gate.route(latents).expert_ids.any()


def test_the_size_of_the_noise_is_learned():
    gate = Gate(4, 3, noisy=True)
    latents = torch.randn(6, 4, generator=source())
    gate(latents, generator=source(1)).pow(2).sum().backward()
    assert gate.noise.weight.grad.abs().sum() > 0


def test_random_gate_follows_its_distribution():
    shares = [0.5, 0.0, 0.3, 0.2]
    gate = RandomGate(4, distribution=[5, 0, 3, 2])  # shares need not sum to 1
    ids, weights = gate.route(torch.zeros(20_000, 2), generator=source())
    seen = ids.flatten().bincount(minlength=4) / 20_000
    # standard deviation of a share is at most sqrt(.25 / 20000) = .0035
    assert seen.tolist() == pytest.approx(shares, abs=0.015)
    assert seen[1] == 0
    assert torch.equal(weights, torch.ones(20_000, 1))


def test_random_gate_draws_without_replacement():
    gate = RandomGate(5, top_k=3)
    ids, weights = gate.route(torch.zeros(500, 2), generator=source())
    assert all(len(set(row)) == 3 for row in ids.tolist())
    torch.testing.assert_close(weights, torch.full((500, 3), 1 / 3))
    assert ids.flatten().bincount().min() > 200  # 300 expected of each


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 6), st.integers(1, 9), st.data())
def test_a_random_gate_that_scales_draws_different_experts(rows, experts, data):
    top_k = data.draw(st.integers(1, experts))
    gate = RandomGate(experts, top_k=top_k, scales=True)
    ids, weights = gate.route(torch.zeros(rows, 2), generator=source())
    assert ids.shape == weights.shape == (rows, top_k)
    assert all(len(set(row)) == top_k and set(row) <= set(range(experts)) for row in ids.tolist())


def test_a_random_gate_that_scales_draws_all_ordered_pairs_alike():
    """Of 4 experts 2: 12 ordered pairs, in 12,000 draws each 1000 +- 30 times."""
    gate = RandomGate(4, top_k=2, scales=True)
    ids, _ = gate.route(torch.zeros(12_000, 2), generator=source())
    counts = (4 * ids[:, 0] + ids[:, 1]).bincount(minlength=16).reshape(4, 4)
    assert counts.diagonal().tolist() == [0] * 4
    off = counts[~torch.eye(4, dtype=torch.bool)]
    assert (off - 1000).abs().max() < 5 * 31


def test_a_random_gate_that_scales_holds_nothing_per_expert():
    """A table of 10^12 experts would not fit."""
    ids, _ = RandomGate(10**12, scales=True).route(torch.zeros(9, 2), generator=source())
    assert ids.max() > 10**10


def test_random_gate_repeats_with_its_seed_and_needs_one():
    gate, latents = RandomGate(5), torch.zeros(50, 2)
    first = gate.route(latents, generator=source(3)).expert_ids
    assert torch.equal(first, gate.route(latents, generator=source(3)).expert_ids)
    with pytest.raises(ConfigError, match="a random gate draws numbers"):
        gate.route(latents)


@pytest.mark.parametrize(
    ("distribution", "top_k"),
    [
        ([1, 1], 1),
        ([1, -1, 1], 1),
        ([1, math.nan, 1], 1),
        ([1, math.inf, 1], 1),
        ([0, 0, 0], 1),
        ([1, 0, 0], 2),
    ],
)
def test_impossible_distributions_are_refused(distribution, top_k):
    with pytest.raises(ConfigError, match="distribution must hold 3 finite numbers"):
        RandomGate(3, distribution=distribution, top_k=top_k)


def test_local_gate_stays_at_home():
    routing = LocalGate(7).route(torch.zeros(3, 2))
    assert routing.expert_ids.tolist() == [[7]] * 3
    assert routing.weights.tolist() == [[1.0]] * 3
    with pytest.raises(ConfigError, match="at least 0, got -1"):
        LocalGate(-1)


@pytest.mark.parametrize("variance", [None, 0.7, torch.tensor([0.5, 1.0, 4.0])])
def test_prototype_scores_are_the_posterior_of_normal_clients(variance):
    means = torch.randn(4, 3, generator=source(), dtype=torch.float64)
    latents = torch.randn(9, 3, generator=source(1), dtype=torch.float64)
    gate = PrototypeGate(means, variance=variance, top_k=2)
    spread = means.var(dim=0, correction=0).mean() if variance is None else variance
    spread = torch.as_tensor(spread, dtype=torch.float64)
    density = torch.stack(
        [
            torch.distributions.Normal(mean, spread.sqrt()).log_prob(latents).sum(dim=1).exp()
            for mean in means
        ],
        dim=1,
    )
    posterior = density / density.sum(dim=1, keepdim=True)
    torch.testing.assert_close(gate.scores(latents).softmax(dim=1), posterior)
    best = posterior.argsort(dim=1, descending=True)[:, :2]
    assert torch.equal(gate.route(latents).expert_ids, best)


def test_prototype_gate_picks_the_nearest_mean():
    means = torch.randn(6, 5, generator=source())
    latents = torch.randn(40, 5, generator=source(1))
    nearest = torch.cdist(latents, means).argmin(dim=1)
    for variance in (None, 0.01, 100.0):
        gate = PrototypeGate(means, variance=variance)
        assert torch.equal(gate.route(latents).expert_ids[:, 0], nearest)


def test_equal_prototypes_do_not_divide_by_zero():
    routing = PrototypeGate(torch.ones(3, 2), top_k=3).route(torch.zeros(1, 2))
    assert routing.weights[0].tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("means", "variance", "message"),
    [
        (torch.zeros(3), None, r"means must be finite and \[E, D\]"),
        (torch.zeros(0, 2), None, r"means must be finite and \[E, D\]"),
        (torch.full((2, 2), math.nan), None, r"means must be finite and \[E, D\]"),
        (torch.eye(2), 0.0, "one positive number or 2 of them, got 0.0"),
        (torch.eye(2), torch.ones(3), "one positive number or 2 of them"),
        (torch.eye(2), math.inf, "one positive number or 2 of them, got inf"),
    ],
)
def test_impossible_prototypes_are_refused(means, variance, message):
    with pytest.raises(ConfigError, match=message):
        PrototypeGate(means, variance=variance)


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize(
    ("gate", "top_k"),
    [
        (Gate(4, 3, top_k=2), 2),
        (Gate(4, 3, hidden=6, noisy=True), 1),
        (RandomGate(3, top_k=2), 2),
        (LocalGate(2), 1),
        (PrototypeGate(torch.eye(3, 4), top_k=3), 3),
    ],
    ids=["linear", "noisy-mlp", "random", "local", "prototype"],
)
def test_every_gate_is_a_router(gate, top_k, rows):
    assert isinstance(gate, Router)
    routing = gate.route(torch.zeros(rows, 4), generator=source())
    assert isinstance(routing, Routing)
    assert routing.expert_ids.dtype == torch.int64
    assert routing.weights.dtype == torch.float32
    assert routing.expert_ids.shape == routing.weights.shape == (rows, top_k)
    torch.testing.assert_close(routing.weights.sum(dim=1), torch.ones(rows))


def test_home_bias_is_added_to_the_own_score_alone():
    gate = trained(Gate(4, 3, top_k=2))
    latents = torch.randn(6, 4, generator=source(1))
    plain, home = gate.scores(latents), HomeBias(gate, own_id=1, bias=2.0).scores(latents)
    assert (home - plain).tolist() == [[0, pytest.approx(2.0), 0]] * 6
    routing = with_home_bias(gate, 1, 1e3).route(latents)
    assert routing.expert_ids[:, 0].tolist() == [1] * 6
    assert routing.expert_ids.shape == (6, 2)


@pytest.mark.parametrize(
    "gate",
    [
        Gate(2, 3),
        PrototypeGate(torch.eye(3, 2)),
        ClientWeightsGate(torch.tensor([0.2, 0.3, 0.5])),
    ],
)
def test_whatever_has_scores_can_lean_home(gate):
    assert with_home_bias(gate, 0, 0.0) is gate
    biased = with_home_bias(gate, 2, 50.0)
    assert isinstance(biased, ScoringRouter)
    assert biased.route(torch.ones(4, 2)).expert_ids.tolist() == [[2]] * 4


@pytest.mark.parametrize(
    "gate", [LocalGate(1), RandomGate(3), DomainGate(torch.zeros(4).long(), 0)]
)
def test_a_gate_without_scores_stays_what_it_is(gate):
    assert with_home_bias(gate, 2, 50.0) is gate


def test_the_domain_gate_asks_whose_sample_it_is_and_itself_where_it_is_nobodys():
    routing = DomainGate(torch.tensor([2, 0, -1, 1]), own_id=3).route(torch.zeros(4, 5))
    assert routing.expert_ids.tolist() == [[2], [0], [3], [1]]
    assert routing.weights.tolist() == [[1.0]] * 4


def test_the_domain_gate_must_be_told():
    site = GateSite(0, 2, GateConfig(), None, torch.zeros(1, 2, 2), torch.zeros(1))
    with pytest.raises(ConfigError, match="must be told whose each sample is"):
        DomainGate.at(site)


def test_the_gate_lda_weighs_experts_by_the_densities_of_their_clients():
    generator = np.random.default_rng(0)
    means, spread = generator.normal(size=(3, 20)), generator.normal(size=(20, 40))
    covariance = spread @ spread.T / 10
    found = discriminants(means, covariance, shrinkage=0.0)
    gate = DiscriminantGate(20, 3, top_k=2)
    gate.load_state_dict(
        {"weight": torch.from_numpy(found.weight), "bias": torch.from_numpy(found.bias)}
    )
    latents = torch.from_numpy(generator.normal(size=(5, 20))).float()
    law = torch.distributions.MultivariateNormal(
        torch.from_numpy(means), torch.from_numpy(covariance)
    )
    densities = law.log_prob(latents.double()[:, None])  # [5, 3]
    best = densities.sort(dim=1, descending=True)
    routing = gate.route(latents)
    assert torch.equal(routing.expert_ids, best.indices[:, :2])
    torch.testing.assert_close(
        routing.weights.double(), best.values[:, :2].softmax(dim=1), rtol=1e-4, atol=1e-6
    )
