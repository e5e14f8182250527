import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from nmoe_flower.errors import ConfigError
from nmoe_flower.models import (
    CachedExperts,
    CentralizedMoE,
    Expert,
    Gate,
    LocalExperts,
    LocalGate,
    NMoE,
    RandomGate,
    Routing,
    combine,
)

D, C, E = 6, 3, 4


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=source(seed))


def experts(hidden=(), seed=0):
    torch.manual_seed(seed)
    made = [Expert(D, C, hidden=hidden) for _ in range(E)]
    for expert in made:
        nn.init.normal_(expert.layers[-1].weight)  # answers that differ clearly
    return made


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 7), top_k=st.integers(1, E), seed=st.integers(0, 1000))
def test_grouped_answers_equal_a_loop_over_samples(rows, top_k, seed):
    made = experts(hidden=(5,))
    latents = normal(rows, D, seed=seed)
    ids = torch.randint(0, E, (rows, top_k), generator=source(seed))  # repeats allowed
    answers = LocalExperts(made)(latents, ids)
    assert answers.shape == (rows, top_k, C)
    for b in range(rows):
        for k in range(top_k):
            torch.testing.assert_close(answers[b, k], made[ids[b, k]](latents[b]))


def test_an_expert_runs_once_and_only_on_its_rows():
    calls = []

    class Counting(Expert):
        def forward(self, latents):
            calls.append(len(latents))
            return super().forward(latents)

    pool = LocalExperts([Counting(D, C, hidden=()) for _ in range(E)])
    pool(normal(5, D), torch.tensor([[3, 0], [3, 0], [0, 3], [3, 2], [3, 0]]))
    assert calls == [4, 1, 5]  # experts 0, 2, 3; expert 1 is never asked


def test_all_equals_asking_for_everyone():
    pool = LocalExperts([Expert(D, C, hidden=()), Expert(D, C, hidden=(5,)), Expert(D, C)])
    latents = normal(8, D)
    everyone = torch.arange(3).expand(8, 3)
    assert pool.all(latents).shape == (8, 3, C)
    torch.testing.assert_close(pool.all(latents), pool(latents, everyone))


def test_gradient_reaches_the_asked_expert_and_the_latents_only():
    pool = LocalExperts(experts())
    latents = normal(3, D).requires_grad_()
    pool(latents, torch.tensor([[1], [1], [1]])).sum().backward()
    touched = [any(p.grad is not None for p in expert.parameters()) for expert in pool.experts]
    assert touched == [False, True, False, False]
    weight = pool.experts[1].layers[0].weight
    torch.testing.assert_close(latents.grad, weight.detach().sum(dim=0).expand(3, D))


@pytest.mark.parametrize("bad", [-1, E])
def test_unknown_experts_are_refused(bad):
    with pytest.raises(ConfigError, match=rf"must be in 0\.\.{E - 1}, got"):
        LocalExperts(experts())(normal(2, D), torch.tensor([[0], [bad]]))


def test_a_pool_needs_experts_of_one_task():
    with pytest.raises(ConfigError, match="got 0 experts"):
        LocalExperts([])
    with pytest.raises(ConfigError, match=r"2 experts with \[3, 4\] classes"):
        LocalExperts([Expert(D, 3), Expert(D, 4)])


def test_cached_answers_equal_fresh_ones():
    pool, latents = LocalExperts(experts()), normal(9, D)
    ids = torch.randint(0, E, (9, 2), generator=source())
    cached = CachedExperts(pool.all(latents))
    torch.testing.assert_close(cached(latents, ids), pool(latents, ids))
    with pytest.raises(ConfigError, match="9 answers are cached, got 8 latents and 8 rows"):
        cached(latents[:8], ids[:8])
    with pytest.raises(ConfigError, match=r"must be \[N, E, C\], got shape \(9, 6\)"):
        CachedExperts(latents)


def test_combine_by_hand():
    # softmaxes (1/4, 3/4) and (1/2, 1/2); weights .2 and .8: (.05 + .4, .15 + .4)
    logits = torch.tensor([[[0.0, math.log(3)], [1.0, 1.0]]])
    mixed = combine(logits, torch.tensor([[0.2, 0.8]]))
    torch.testing.assert_close(mixed, torch.tensor([[0.45, 0.55]]))


def test_silent_experts_leave_their_weight_to_the_others():
    logits = torch.stack([normal(3, C)] * 4)
    logits[:, 0] = math.nan
    weights = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    mask = torch.tensor(
        [[False, True, True], [False, True, True], [False, False, True], [False, False, False]]
    )
    one, two = logits[0, 1].softmax(0), logits[0, 2].softmax(0)
    expected = torch.stack(
        [0.6 * one + 0.4 * two, 0.5 * one + 0.5 * two, two, torch.full((C,), 1 / C)]
    )
    torch.testing.assert_close(combine(logits, weights, mask=mask), expected)


def test_a_silent_expert_does_not_poison_the_gradient():
    logits = torch.tensor([[[math.nan, math.nan], [0.0, 1.0]]], requires_grad=True)
    weights = torch.tensor([[0.5, 0.5]], requires_grad=True)
    combine(logits, weights, mask=torch.tensor([[False, True]]))[0, 0].backward()
    assert logits.grad.isfinite().all()
    assert weights.grad.isfinite().all()
    assert logits.grad[0, 1].abs().sum() > 0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), masked=st.booleans())
def test_a_mixture_is_a_distribution_whatever_the_order_of_its_experts(seed, masked):
    logits, weights = 5 * normal(6, E, C, seed=seed), normal(6, E, seed=seed + 1).softmax(dim=1)
    mask = torch.rand(6, E, generator=source(seed)) < 0.5 if masked else None
    mixed = combine(logits, weights, mask=mask)
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(6))
    assert (mixed >= 0).all()
    order = torch.randperm(E, generator=source(seed))
    turned = mask[:, order] if mask is not None else None
    torch.testing.assert_close(combine(logits[:, order], weights[:, order], mask=turned), mixed)


def test_nmoe_is_equation_1():
    pool, gate = LocalExperts(experts()), Gate(D, E, top_k=2)
    nn.init.normal_(gate.head.weight, generator=source(5))
    images = normal(7, 1, 2, 3)
    prediction = NMoE(nn.Flatten(), gate, pool)(images)
    for b, latent in enumerate(images.flatten(1)):
        scores = gate(latent[None])[0]
        best = scores.topk(2).indices
        expected = sum(
            weight * pool.experts[e](latent).softmax(0)
            for weight, e in zip(scores[best].softmax(0), best, strict=True)
        )
        torch.testing.assert_close(prediction.probabilities[b], expected)
        assert prediction.routing.expert_ids[b].tolist() == best.tolist()
    assert prediction.answered.all()


def test_gate_and_pool_need_not_be_modules():
    images = normal(7, 1, 2, 3)
    logits = LocalExperts(experts()).all(images.flatten(1))
    model = NMoE(nn.Flatten(), LocalGate(2), CachedExperts(logits))
    assert not list(model.parameters())
    torch.testing.assert_close(model(images).probabilities, logits[:, 2].softmax(dim=1))
    random = NMoE(nn.Flatten(), RandomGate(E), CachedExperts(logits))
    drawn = random(images, generator=source())
    picked = logits[torch.arange(7), drawn.routing.expert_ids[:, 0]]
    torch.testing.assert_close(drawn.probabilities, picked.softmax(dim=1))


def test_nmoe_says_who_did_not_answer():
    class HalfAsleep:
        def __call__(self, latents, expert_ids):
            answers = torch.zeros(*expert_ids.shape, 2)
            answers[..., 0] = 50.0
            answers[expert_ids == 1] = math.nan
            return answers

    class Fixed:
        def route(self, latents, *, generator=None):
            return Routing(torch.tensor([[0, 1], [1, 1]]), torch.full((2, 2), 0.5))

    prediction = NMoE(nn.Identity(), Fixed(), HalfAsleep()).mixture(torch.zeros(2, D))
    assert prediction.answered.tolist() == [[True, False], [False, False]]
    expected = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    torch.testing.assert_close(prediction.probabilities, expected)


def test_a_half_broken_answer_is_not_hidden():
    logits = torch.tensor([[[math.nan, 1.0]]])
    prediction = NMoE(nn.Identity(), LocalGate(0), CachedExperts(logits)).mixture(torch.zeros(1, D))
    assert prediction.answered.all()
    assert prediction.probabilities.isnan().any()


def test_centralized_top_1_answers_with_the_chosen_expert_alone():
    made = experts()
    gate = Gate(D, E)
    nn.init.normal_(gate.head.weight, generator=source(5))
    images = normal(5, 1, 2, 3)
    mixture = CentralizedMoE(nn.Flatten(), gate, LocalExperts(made))(images)
    for b, latent in enumerate(images.flatten(1)):
        probabilities = gate(latent[None])[0].softmax(0)
        best = int(probabilities.argmax())
        expected = made[best](latent).log_softmax(0)
        torch.testing.assert_close(mixture.log_probabilities[b], expected)
        torch.testing.assert_close(mixture.gate_probabilities[b], probabilities)
        assert mixture.routing.expert_ids[b].tolist() == [best]


def test_centralized_top_1_gives_the_gate_the_relative_gradient_of_the_chosen_score():
    """z = (p / sg(p)) H and L = -log softmax(z)_y: dL/dp = sum_c (softmax_c - [c = y]) H_c / p.

    One image, two experts, scores s: dp_1/ds_1 = p_1 (1 - p_1), dp_1/ds_2 = -p_1 p_2, so
    dL/ds_1 = g (1 - p_1) and dL/ds_2 = -g p_2 with g = sum_c (softmax_c - [c = y]) H_c.
    """
    made = experts()[:2]
    gate = Gate(D, 2)
    with torch.no_grad():
        gate.head.bias.copy_(torch.tensor([1.0, 0.0]))
    image = normal(1, 1, 2, 3)
    CentralizedMoE(nn.Flatten(), gate, LocalExperts(made))(image).log_probabilities[
        0, 0
    ].neg().backward()
    logits = made[0](image.flatten(1))[0].detach()
    g = ((logits.softmax(0) - torch.eye(C)[0]) * logits).sum()
    p = torch.tensor([1.0, 0.0]).softmax(0)
    torch.testing.assert_close(gate.head.bias.grad, torch.stack([g * (1 - p[0]), -g * p[1]]))


def test_centralized_top_k_is_the_networked_mixture():
    pool, gate = LocalExperts(experts()), Gate(D, E, top_k=3)
    nn.init.normal_(gate.head.weight, generator=source(5))
    images = normal(5, 1, 2, 3)
    central = CentralizedMoE(nn.Flatten(), gate, pool)(images)
    networked = NMoE(nn.Flatten(), gate, pool)(images)
    torch.testing.assert_close(central.log_probabilities.exp(), networked.probabilities)


def test_centralized_top_k_gives_a_gradient_where_scores_lie_far_apart():
    """The softmax of -300 beside 0 is 0 in float32, and 1 / 0 would be its logarithm's slope."""
    gate = Gate(D, 2, top_k=2)
    with torch.no_grad():
        gate.head.bias.copy_(torch.tensor([0.0, -300.0]))
    model = CentralizedMoE(nn.Identity(), gate, LocalExperts(experts()[:2]))
    mixture = model(normal(3, D))
    assert mixture.log_probabilities.isfinite().all()
    mixture.log_probabilities[:, 0].sum().backward()
    assert gate.head.bias.grad.isfinite().all()


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_centralized_mixture_trains_end_to_end(top_k):
    torch.manual_seed(0)
    extractor = nn.Sequential(nn.Flatten(), nn.Linear(D, D))
    gate = Gate(D, E, top_k=top_k, noisy=True)
    model = CentralizedMoE(extractor, gate, LocalExperts(experts()))
    images = normal(64, 1, 2, 3)
    labels = images.flatten(1)[:, :C].argmax(dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    noise, losses = source(1), []
    for step in range(60):
        mixture = model(images, generator=noise)
        loss = F.nll_loss(mixture.log_probabilities, labels)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert gate.head.weight.grad.abs().sum() > 0  # labels alone move the gate
            assert gate.noise.weight.grad.abs().sum() > 0
            assert extractor[1].weight.grad.abs().sum() > 0
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_gate_must_know_every_expert():
    with pytest.raises(ConfigError, match="scores 3 experts but there are 4"):
        CentralizedMoE(nn.Flatten(), Gate(D, 3), LocalExperts(experts()))
