import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe_flower.catalogue import OBJECTIVES
from nmoe_flower.errors import ConfigError
from nmoe_flower.losses import (
    dense_mixture,
    objective_of,
    oracle_distillation,
    pseudo_client_targets,
    shortlisted_targets,
    straight_through,
    switch_top1,
)

B, E, C = 8, 4, 3


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(seed=0, rows=B):
    generator = source(seed)
    scores = torch.randn(rows, E, generator=generator, dtype=torch.float64)
    logits = 2 * torch.randn(rows, E, C, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, C, (rows,), generator=generator)
    return scores.requires_grad_(), logits, labels


def likelihoods(logits, labels):
    """Probability of the true class, [B, E], by loops."""
    return torch.tensor(
        [[float(logits[b, e].softmax(0)[labels[b]]) for e in range(E)] for b in range(len(labels))],
        dtype=torch.float64,
    )


def test_dense_mixture_value_and_em_gradient():
    scores, logits, labels = problem()
    loss = dense_mixture(scores, logits, labels)
    loss.backward()
    gates, right = scores.detach().softmax(dim=1), likelihoods(logits, labels)
    mixture = (gates * right).sum(dim=1, keepdim=True)
    assert loss.item() == pytest.approx(-mixture.log().mean().item())
    torch.testing.assert_close(scores.grad, (gates - gates * right / mixture) / B)


def test_dense_mixture_survives_certain_and_wrong_experts():
    # both experts give the true class e^-2000, which is 0 as a float; the loss is 2000
    scores = torch.zeros(1, 2, requires_grad=True)
    loss = dense_mixture(scores, torch.tensor([[[2000.0, 0.0]] * 2]), torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(2000)
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_distillation_value_and_gradient(temperature):
    scores, logits, labels = problem()
    loss = oracle_distillation(scores, logits, labels, temperature=temperature)
    loss.backward()
    targets = likelihoods(logits, labels) ** (1 / temperature)
    targets /= targets.sum(dim=1, keepdim=True)
    gates = scores.detach().softmax(dim=1)
    expected = (targets * (targets / gates).log()).sum(dim=1).mean()
    assert loss.item() == pytest.approx(expected.item())
    torch.testing.assert_close(scores.grad, (gates - targets) / B)


def test_distillation_is_zero_at_its_targets():
    _, logits, labels = problem()
    loss = oracle_distillation(likelihoods(logits, labels).log(), logits, labels)
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_switch_scales_the_chosen_logits():
    scores, logits, labels = problem()
    expected = 0.0
    for b in range(B):
        gates = scores[b].detach().softmax(0)
        best = int(gates.argmax())
        expected -= (gates[best] * logits[b, best]).log_softmax(0)[labels[b]].item() / B
    assert switch_top1(scores, logits, labels).item() == pytest.approx(expected)


def test_switch_rewards_a_right_choice_and_punishes_a_wrong_one():
    for right, sign in ((0, -1), (1, 1)):
        scores = torch.tensor([[1.0, 0.0]], requires_grad=True)
        logits = torch.tensor([[[3.0, 0.0], [0.0, 0.0]]])  # expert 0 is chosen, votes class 0
        switch_top1(scores, logits, torch.tensor([right])).backward()
        assert scores.grad[0, 0].sign().item() == sign


@pytest.mark.parametrize("top_k", [1, 2, E])
def test_straight_through_is_hard_forward_and_soft_backward(top_k):
    scores, logits, labels = problem()
    loss = straight_through(scores, logits, labels, top_k=top_k, floor=1e-12)
    loss.backward()
    right, gates = likelihoods(logits, labels), scores.detach().softmax(dim=1)
    expected, gradient = 0.0, torch.zeros(B, E, dtype=torch.float64)
    for b in range(B):
        best = sorted(range(E), key=lambda e: -scores[b, e].item())[:top_k]
        kept = sum(math.exp(scores[b, e].item()) for e in best)
        hard = sum(math.exp(scores[b, e].item()) / kept * right[b, e].item() for e in best)
        expected -= math.log(hard) / B
        # d(-log hard)/dp_i = -q_i / hard, then through the Jacobian of the full softmax
        mean = (gates[b] * right[b]).sum()
        gradient[b] = -gates[b] * (right[b] - mean) / hard / B
    assert loss.item() == pytest.approx(expected)
    torch.testing.assert_close(scores.grad, gradient)


def test_straight_through_gradient_is_bounded_by_the_floor():
    # chosen expert: e^-200 on the true class, the other: 1. Unbounded, the gradient overflows.
    scores = torch.tensor([[1.0, 0.0]], requires_grad=True)
    logits = torch.tensor([[[200.0, 0.0], [0.0, 200.0]]])
    straight_through(scores, logits, torch.tensor([1]), floor=1e-3).backward()
    assert 0 < scores.grad[0, 0] <= 0.25 / 1e-3
    assert scores.grad[0, 1] == pytest.approx(-scores.grad[0, 0])


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_teaches_a_gate_where_the_good_expert_is(name):
    # expert i is right on samples of kind i and wrong on the others
    kinds = torch.arange(B) % E
    labels = kinds % C
    wrong = (labels + 1) % C
    votes = torch.where(kinds[:, None] == torch.arange(E), labels[:, None], wrong[:, None])
    logits = 3 * torch.nn.functional.one_hot(votes, C).float()
    table = torch.zeros(E, E, requires_grad=True)  # scores per kind of sample
    optimizer = torch.optim.SGD([table], lr=2.0)
    for _ in range(200):
        optimizer.zero_grad()
        objective_of(name)(table[kinds], logits, labels).backward()
        optimizer.step()
    assert table.argmax(dim=1).tolist() == list(range(E))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), name=st.sampled_from(sorted(OBJECTIVES)))
def test_order_of_samples_experts_and_a_shift_of_scores_do_not_matter(seed, name):
    scores, logits, labels = problem(seed)
    objective = objective_of(name)
    value = objective(scores, logits, labels).item()
    assert value >= -1e-12
    rows = torch.randperm(B, generator=source(seed))
    columns = torch.randperm(E, generator=source(seed + 1))
    moved = objective(scores[rows][:, columns] + 5, logits[rows][:, columns], labels[rows]).item()
    assert moved == pytest.approx(value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda *p: oracle_distillation(*p, temperature=0.0), "temperature must be positive"),
        (lambda *p: straight_through(*p, top_k=0), "experts, 4, got 0"),
        (lambda *p: straight_through(*p, top_k=5), "experts, 4, got 5"),
        (lambda *p: straight_through(*p, floor=0.0), "floor must be between 0 and 1, got 0.0"),
    ],
)
def test_impossible_settings_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call(*problem())


@settings(max_examples=50, deadline=None)
@given(
    num=st.integers(0, 40),
    clients=st.integers(2, 6),
    keep=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_pseudo_targets_keep_an_exact_share(num, clients, keep, seed):
    own = seed % clients
    ids = pseudo_client_targets(num, own, clients, keep=keep, generator=source(seed))
    assert ids.shape == (num,)
    assert ids.dtype == torch.int64
    assert int((ids == own).sum()) == round(keep * num)
    assert set(ids.tolist()) <= set(range(clients))


def test_pseudo_targets_spread_the_rest_evenly_and_at_random_places():
    ids = pseudo_client_targets(40_000, 2, 5, keep=0.7, generator=source())
    counts = ids.bincount(minlength=5).tolist()
    assert counts[2] == 28_000
    # 12,000 over four others: 3,000 each, standard deviation sqrt(12000 * 3/16) = 47
    assert all(abs(counts[i] - 3000) < 240 for i in (0, 1, 3, 4))
    first_half = int((ids[:20_000] == 2).sum())
    assert abs(first_half - 14_000) < 300  # standard deviation about 46
    again = pseudo_client_targets(40_000, 2, 5, keep=0.7, generator=source())
    assert torch.equal(ids, again)


def test_targets_of_shortlists_are_as_likely_as_those_of_all():
    """Over all lists of client 0, every other of 6 is named as often: its share is .3 / 5.

    Client 1 is on each list and weighs 1; of the 4 others 2 are, with weight 2. So a target away is
    1 with 1 / (1 + 2 + 2), and each of the 4 with 2 / 5 on half of the lists.
    """
    named = torch.zeros(6, dtype=torch.int64)
    weights = torch.tensor([1.0, 1.0, 2.0, 2.0]).log()
    for turn, pair in enumerate(itertools.combinations(range(2, 6), 2)):
        ids = shortlisted_targets(10_000, weights, keep=0.7, generator=source(turn))
        assert int((ids == 0).sum()) == 7000
        named += torch.tensor([0, 1, *pair])[ids].bincount(minlength=6)
    # 18,000 over five others: 3,600 each, standard deviation below sqrt(18000 / 5) = 60
    assert all(abs(count - 3600) < 300 for count in named[1:].tolist())


def test_a_list_of_oneself_keeps_everything():
    assert shortlisted_targets(4, torch.zeros(1), generator=source()).tolist() == [0] * 4


def test_a_client_alone_keeps_everything():
    assert pseudo_client_targets(5, 0, 1, generator=source()).tolist() == [0] * 5


@pytest.mark.parametrize(
    ("own", "keep", "message"),
    [(3, 0.7, r"0\.\.2, got 3"), (-1, 0.7, r"0\.\.2, got -1"), (0, 1.1, "0 and 1, got 1.1")],
)
def test_impossible_targets_are_refused(own, keep, message):
    with pytest.raises(ConfigError, match=message):
        pseudo_client_targets(5, own, 3, keep=keep, generator=source())


def on_shortlists(objective, drawn, *, corrected=True, **options):
    """How far the mean over all equally likely shortlists is from all 10 experts' objective.

    Experts 0 and 1, better than the others as one's own and a near one are, stand on each list;
    ``drawn`` more are drawn from the other 8. Returns the errors of the value and of its gradient
    on all scores, relative to the largest entry of that.
    """
    generator = source(3)
    scores = torch.randn(B, 10, generator=generator, dtype=torch.float64).requires_grad_()
    logits = torch.randn(B, 10, C, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, C, (B,), generator=generator)
    logits[torch.arange(B), :2, labels] += 2.0
    full = objective(scores, logits, labels, **options)
    wanted = torch.autograd.grad(full, scores)[0]
    weights = torch.tensor([0.0, 0.0] + [math.log(8 / drawn)] * drawn, dtype=torch.float64)
    lists = [[0, 1, *rest] for rest in itertools.combinations(range(2, 10), drawn)]
    told = {**options, "log_weights": weights} if corrected else options
    mean = torch.stack(
        [objective(scores[:, one], logits[:, one], labels, **told) for one in lists]
    ).mean()
    error = torch.autograd.grad(mean, scores)[0] - wanted
    return abs(mean.item() - full.item()), (error.abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize(
    ("objective", "options", "bound"),
    [(dense_mixture, {}, 0.3), (oracle_distillation, {"temperature": 0.7}, 0.8)],
)
def test_a_shortlist_stands_for_all_experts_in_expectation(objective, options, bound):
    """What is left is the bias of the logarithms: it falls with every expert drawn, to nothing.

    Without the weights the value is that of a gate which hardly ever sends anything away.
    """
    errors = [on_shortlists(objective, drawn, **options) for drawn in (2, 3, 4, 5, 6, 7, 8)]
    for one, more in itertools.pairwise(errors):
        assert more[0] < one[0]
        assert more[1] < one[1]
    assert errors[-1] == pytest.approx((0, 0), abs=1e-12)
    for drawn, (value, _) in zip((2, 3, 4, 5, 6, 7), errors[:-1], strict=True):
        assert value < bound * on_shortlists(objective, drawn, corrected=False, **options)[0]


@pytest.mark.parametrize(("own_score", "own_logit", "sign"), [(0.0, 99.0, 1), (40.0, -99.0, -1)])
def test_both_sums_over_a_shortlist_are_unbiased(own_score, own_logit, sign):
    """exp(loss) = Z / A of sums Z over e^s and A over e^s l; one of them is the own expert's alone.

    If only that gives the true class, A is known on any list and the mean of Z / A must be exact;
    if its score is above all, Z is, and the mean of A / Z must be.
    """
    generator = source(2)
    scores = torch.randn(1, 8, generator=generator, dtype=torch.float64)
    logits = torch.zeros(1, 8, 2, dtype=torch.float64)
    logits[..., 0] = torch.randn(1, 8, generator=generator) if sign < 0 else -99.0
    scores[0, 0], logits[0, 0, 0] = own_score, own_logit
    labels = torch.tensor([0])
    weights = torch.tensor([0.0] + [math.log(7 / 3)] * 3, dtype=torch.float64)
    lists = [[0, *rest] for rest in itertools.combinations(range(1, 8), 3)]
    sums = [
        (sign * dense_mixture(scores[:, one], logits[:, one], labels, log_weights=weights)).exp()
        for one in lists
    ]
    wanted = (sign * dense_mixture(scores, logits, labels)).exp()
    assert torch.stack(sums).mean().item() == pytest.approx(wanted.item(), rel=1e-9)


def test_experts_that_agree_make_the_same_loss_on_any_shortlist():
    """All give the true class e / (e + 2): so does any mixture of them, whatever the weights."""
    scores = torch.randn(B, E, generator=source(), dtype=torch.float64)
    logits = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).expand(B, E, C)
    labels = torch.zeros(B, dtype=torch.int64)
    weights = torch.tensor([0.0, 0.0, 1.3, 1.3], dtype=torch.float64)
    loss = dense_mixture(scores, logits, labels, log_weights=weights)
    assert loss.item() == pytest.approx(math.log(math.e + 2) - 1)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_list_of_all_experts_changes_nothing(name):
    objective, (scores, logits, labels) = objective_of(name), problem()
    plain = objective(scores, logits, labels)
    listed = objective(scores, logits, labels, log_weights=torch.zeros(E, dtype=torch.float64))
    assert listed.item() == pytest.approx(plain.item(), rel=1e-14)
    one, other = (torch.autograd.grad(loss, scores)[0] for loss in (plain, listed))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("objective", [switch_top1, straight_through])
def test_shares_on_a_shortlist_are_those_among_all(objective):
    """An expert drawn with probability 1/2 counts for two: as if its twin were there as well."""
    generator = source(1)
    scores = torch.randn(B, 3, generator=generator, dtype=torch.float64)
    logits = torch.randn(B, 3, C, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, C, (B,), generator=generator)
    twins = [0, 1, 2, 2]
    everyone = objective(scores[:, twins], logits[:, twins], labels)
    weights = torch.tensor([0.0, 0.0, math.log(2)], dtype=torch.float64)
    assert objective(scores, logits, labels, log_weights=weights).item() == pytest.approx(
        everyone.item()
    )
