import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe_flower.errors import ConfigError
from nmoe_flower.models import choose_prior, correct, em_prior


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def world(prior, *, samples, seed=0):
    """A hidden class y from ``prior``, an observation from a known table; posteriors at uniform."""
    table = torch.tensor(
        [[0.6, 0.2, 0.1, 0.1], [0.1, 0.6, 0.2, 0.1], [0.2, 0.1, 0.1, 0.6]], dtype=torch.float64
    )  # p(observation | class)
    labels = torch.multinomial(prior, samples, replacement=True, generator=source(seed))
    seen = torch.multinomial(table[labels], 1, generator=source(seed + 1))[:, 0]
    likelihood = table[:, seen].T
    return likelihood / likelihood.sum(dim=1, keepdim=True), likelihood, labels


def test_correction_is_bayes_rule():
    prior = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    answers, likelihood, _ = world(prior, samples=20)
    joint = likelihood * prior
    torch.testing.assert_close(correct(answers, prior), joint / joint.sum(dim=1, keepdim=True))


def test_correction_from_a_skewed_reference():
    # trained at (.8, .2), used at (.2, .8): odds 1 become 1 * (.2/.8) / (.8/.2) = 1/16
    moved = correct(
        torch.tensor([[0.5, 0.5]]), torch.tensor([2.0, 8.0]), reference=torch.tensor([8.0, 2.0])
    )
    torch.testing.assert_close(moved, torch.tensor([[1 / 17, 16 / 17]]))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000))
def test_correction_there_and_back_is_nothing(seed):
    draw = torch.rand(2, 5, generator=source(seed), dtype=torch.float64) + 0.05
    answers = torch.randn(6, 5, generator=source(seed), dtype=torch.float64).softmax(dim=1)
    there = correct(answers, draw[0], reference=draw[1])
    torch.testing.assert_close(there.sum(dim=1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(correct(there, draw[1], reference=draw[0]), answers)
    torch.testing.assert_close(correct(answers, draw[0], reference=draw[0]), answers)


def test_an_impossible_row_becomes_the_prior():
    fixed = correct(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0.0, 3.0, 1.0]))
    torch.testing.assert_close(fixed, torch.tensor([[0.0, 0.75, 0.25]]))


def test_nan_stays_visible():
    assert correct(torch.tensor([[math.nan, 0.5]]), torch.ones(2)).isnan().all()


def test_the_likelier_prior_is_chosen():
    skew = torch.tensor([0.8, 0.1, 0.1], dtype=torch.float64)
    uniform = torch.full((3,), 1 / 3, dtype=torch.float64)
    at_home, likelihood, _ = world(skew, samples=500)
    choice = choose_prior(at_home, skew)
    assert torch.equal(choice.prior, skew)
    # the same gain from the densities of the observations themselves
    gain = ((likelihood @ skew) / (likelihood @ uniform)).log().mean()
    assert choice.gain == pytest.approx(float(gain))
    abroad, _, _ = world(uniform, samples=500)
    choice = choose_prior(abroad, skew)
    torch.testing.assert_close(choice.prior, uniform)
    assert choice.gain < 0


def test_the_choice_knows_the_reference():
    skew = torch.tensor([0.8, 0.1, 0.1], dtype=torch.float64)
    _, likelihood, _ = world(skew, samples=500)
    joint = likelihood * skew
    already = joint / joint.sum(dim=1, keepdim=True)
    choice = choose_prior(already, torch.ones(3), reference=skew)
    assert torch.equal(choice.prior, skew)  # the reference fits; uniform does not
    assert choice.gain < 0


def test_a_prior_that_excludes_what_is_seen_is_never_chosen():
    choice = choose_prior(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0, 1.0]))
    assert choice.gain == -math.inf
    assert choice.prior.tolist() == [0.5, 0.5]


def test_em_climbs_to_the_maximum_likelihood_prior():
    truth = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    answers, _, _ = world(truth, samples=4000)
    found = em_prior(answers, iterations=2000, tolerance=1e-10)
    assert found.sum().item() == pytest.approx(1)
    assert found.tolist() == pytest.approx(truth.tolist(), abs=0.05)

    def likelihood(prior):
        return (answers @ prior).log().mean()

    for other in torch.rand(200, 3, generator=source(9), dtype=torch.float64):
        assert likelihood(found) >= likelihood(other / other.sum()) - 1e-9


def test_em_step_by_hand():
    # posteriors at uniform (.9, .1) and (.3, .7): one step averages them, (.6, .4);
    # the second: .54/.58 and .18/.46, mean
    answers = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)
    assert em_prior(answers, iterations=1).tolist() == pytest.approx([0.6, 0.4])
    second = (0.54 / 0.58 + 0.18 / 0.46) / 2
    assert em_prior(answers, iterations=2).tolist() == pytest.approx([second, 1 - second])


def test_em_divides_the_reference_out():
    truth = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    skew = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    answers, likelihood, _ = world(truth, samples=500)
    joint = likelihood * skew
    skewed = joint / joint.sum(dim=1, keepdim=True)
    exact = {"iterations": 2000, "tolerance": 1e-12}
    torch.testing.assert_close(
        em_prior(skewed, reference=skew, **exact), em_prior(answers, **exact), atol=1e-6, rtol=0
    )


def test_em_stops_when_nothing_moves():
    answers = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    assert em_prior(answers, iterations=10**9).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("shares", [[1.0], [1.0, -0.5], [0.0, 0.0], [math.nan, 1.0]])
def test_impossible_shares_are_refused(shares):
    answers, bad = torch.tensor([[0.5, 0.5]]), torch.tensor(shares)
    for name, call in (
        ("prior", lambda: correct(answers, bad)),
        ("own_prior", lambda: choose_prior(answers, bad)),
        ("reference", lambda: em_prior(answers, reference=bad)),
    ):
        with pytest.raises(ConfigError, match=f"^{name} must hold 2 finite numbers"):
            call()


def test_a_reference_without_a_class_is_refused():
    with pytest.raises(ConfigError, match=r"reference must be positive, got \[1.0, 0.0\]"):
        correct(torch.tensor([[0.5, 0.5]]), torch.ones(2), reference=torch.tensor([1.0, 0.0]))


def test_an_empty_batch_has_no_prior():
    empty = torch.zeros(0, 2)
    for call in (lambda: choose_prior(empty, torch.ones(2)), lambda: em_prior(empty)):
        with pytest.raises(ConfigError, match="empty batch"):
            call()
    assert correct(empty, torch.ones(2)).shape == (0, 2)
