import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe_flower.errors import ConfigError
from nmoe_flower.losses import load_balance, load_balance_global, load_fractions


def gates(rows, experts, seed, sharpness=3.0):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(rows, experts, generator=generator, dtype=torch.float64)
    return (sharpness * draw).softmax(dim=1)


@pytest.mark.parametrize("experts", [1, 2, 10])
def test_balance_and_collapse(experts):
    balanced = torch.eye(experts).repeat(3, 1)
    collapsed = torch.eye(experts)[:1].repeat(7, 1)
    assert load_balance(balanced).item() == pytest.approx(1)
    assert load_balance(collapsed).item() == pytest.approx(experts)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 20), experts=st.integers(1, 6), seed=st.integers(0, 1000))
def test_against_dense_loops(rows, experts, seed):
    probs = gates(rows, experts, seed)
    total = 0.0
    for i in range(experts):
        routed = sum(int(row.index(max(row)) == i) for row in probs.tolist())
        total += (routed / rows) * (sum(row[i] for row in probs.tolist()) / rows)
    assert load_balance(probs).item() == pytest.approx(experts * total)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 20), experts=st.integers(1, 6), seed=st.integers(0, 1000))
def test_order_of_samples_and_experts_does_not_matter(rows, experts, seed):
    probs = gates(rows, experts, seed)
    generator = torch.Generator().manual_seed(seed)
    shuffled = probs[torch.randperm(rows, generator=generator)]
    shuffled = shuffled[:, torch.randperm(experts, generator=generator)]
    value = load_balance(probs).item()
    assert load_balance(shuffled).item() == pytest.approx(value)
    assert 0 < value <= experts + 1e-9


def test_one_is_not_the_minimum():
    # every argmax is expert 0 or 1, but expert 2 holds the most mass: P = (.28, .28, .44)
    probs = torch.tensor([[0.56, 0.0, 0.44], [0.0, 0.56, 0.44]])
    assert load_balance(probs).item() == pytest.approx(3 * (0.5 * 0.28 + 0.5 * 0.28))
    assert load_balance(probs).item() < 1


def test_the_fractions_carry_no_gradient():
    # d/dP_i = E f_i / B in every row
    probs = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8]], requires_grad=True)
    load_balance(probs).backward()
    expected = 2 * torch.tensor([2 / 3, 1 / 3]) / 3
    torch.testing.assert_close(probs.grad, expected.expand(3, 2))


def test_the_chosen_experts_can_be_given():
    probs = torch.tensor([[0.5, 0.3, 0.2]])
    # f = (1/2, 0, 1/2): 3 (.25 + .1)
    value = load_balance(probs, expert_ids=torch.tensor([[0, 2]]))
    assert value.item() == pytest.approx(3 * (0.25 + 0.1))


def test_global_fractions_spare_a_specialised_client():
    # this client uses expert 0 alone, and the federation is balanced: no pressure at all
    scores = torch.tensor([[4.0, 0.0, 0.0, 0.0]] * 5, requires_grad=True)
    probs = scores.softmax(dim=1)
    load_balance_global(probs, torch.full((4,), 0.25)).backward()
    torch.testing.assert_close(scores.grad, torch.zeros(5, 4), atol=1e-7, rtol=0)
    scores.grad = None
    load_balance(scores.softmax(dim=1)).backward()
    assert (scores.grad[:, 0] > 1e-3).all()  # the local form pushes it away from its expert


def test_global_form_with_the_batch_s_own_fractions_is_the_local_form():
    probs = gates(12, 5, seed=3)
    fractions = load_fractions(probs.argmax(dim=1), 5).requires_grad_()
    torch.testing.assert_close(load_balance_global(probs, fractions), load_balance(probs))
    probs.requires_grad_()
    load_balance_global(probs, fractions).backward()
    assert fractions.grad is None


def test_fractions_count_every_choice():
    ids = torch.tensor([[0, 1], [0, 3]])
    assert load_fractions(ids, 5).tolist() == [0.5, 0.25, 0.0, 0.25, 0.0]


@pytest.mark.parametrize("shape", [(0, 3), (3,)])
def test_shapes_are_checked(shape):
    for call in (
        lambda: load_balance(torch.zeros(shape)),
        lambda: load_balance_global(torch.zeros(shape), torch.ones(3)),
    ):
        with pytest.raises(ConfigError, match=r"must be \[B, E\] with at least one row"):
            call()


def test_fractions_are_one_per_expert():
    with pytest.raises(ConfigError, match=r"one number per expert, 3, got shape \(2,\)"):
        load_balance_global(torch.ones(1, 3) / 3, torch.ones(2))


@pytest.mark.parametrize(
    ("ids", "text"),
    [([], "at least one choice"), ([0, 5], r"0\.\.2, got 0 to 5"), ([-1], r"got -1 to -1")],
)
def test_choices_that_have_no_fractions_are_refused(ids, text):
    with pytest.raises(ConfigError, match=text):
        load_fractions(torch.tensor(ids, dtype=torch.int64), 3)
