"""Client weights by EM: they are the likeliest, whatever the answers, and route accordingly."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nmoe_flower.config import GateConfig
from nmoe_flower.errors import ConfigError
from nmoe_flower.models import ClientWeightsGate, GateSite, mixture_weights


def likelihoods(answers: Tensor, labels: Tensor) -> Tensor:
    """p_e(y | x), [N, E]."""
    return answers.double().softmax(2).take_along_dim(labels[:, None, None], 2)[..., 0]


def log_likelihood(answers: Tensor, labels: Tensor, weights: Tensor) -> float:
    return float((likelihoods(answers, labels) @ weights).log().mean())


def drawn(seed: int, rows: int, experts: int, classes: int = 5) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    answers = 3 * torch.randn(rows, experts, classes, generator=source)
    return answers, torch.randint(classes, (rows,), generator=source)


@pytest.mark.parametrize("weights", [[0.7, 0.2, 0.1], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
def test_known_weights_are_recovered(weights: list[float]) -> None:
    """Labels drawn from a mixture of three known experts: the mixture comes back."""
    source, rows = torch.Generator().manual_seed(0), 20_000
    answers = 3 * torch.randn(rows, 3, 5, generator=source)
    chosen = torch.multinomial(torch.tensor(weights), rows, replacement=True, generator=source)
    shares = answers[torch.arange(rows), chosen].softmax(dim=1)
    labels = torch.multinomial(shares, 1, generator=source)[:, 0]
    # A weight's standard error is below 1 / sqrt(20,000 * information), about 0.01 here.
    assert mixture_weights(answers, labels).tolist() == pytest.approx(weights, abs=0.03)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999), rows=st.integers(1, 30), experts=st.integers(1, 6),
    tolerance=st.sampled_from([1e-2, 1e-3, 1e-4]),
)  # fmt: skip
def test_no_other_weights_are_likelier_by_more_than_the_tolerance(
    seed: int, rows: int, experts: int, tolerance: float
) -> None:
    answers, labels = drawn(seed, rows, experts)
    weights = mixture_weights(answers, labels, tolerance=tolerance)
    assert float(weights.sum()) == pytest.approx(1)
    assert float(weights.min()) >= 0
    found = log_likelihood(answers, labels, weights)
    others = torch.distributions.Dirichlet(torch.full((experts,), 0.5).double()).sample((50,))
    for other in (*others, *torch.eye(experts).double()):
        assert log_likelihood(answers, labels, other) <= found + tolerance + 1e-9


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), experts=st.integers(2, 5))
def test_likelihood_never_falls_with_more_steps(seed: int, experts: int) -> None:
    answers, labels = drawn(seed, 25, experts)
    tolerances = [1.0, 0.3, 0.1, 0.03, 0.01, 0.001]  # each goes on where the one before ended
    found = [
        log_likelihood(answers, labels, mixture_weights(answers, labels, tolerance=limit))
        for limit in tolerances
    ]
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(found))


def test_one_expert_weighs_1_and_equal_experts_weigh_alike() -> None:
    answers, labels = drawn(0, 10, 1)
    assert mixture_weights(answers, labels).tolist() == [1.0]
    assert mixture_weights(answers.expand(-1, 4, -1), labels).tolist() == pytest.approx([0.25] * 4)


def test_the_order_of_experts_does_not_matter() -> None:
    answers, labels = drawn(3, 40, 4)
    order = [2, 0, 3, 1]
    assert mixture_weights(answers[:, order], labels).tolist() == pytest.approx(
        mixture_weights(answers, labels)[order].tolist()
    )


def test_sure_and_wrong_experts_overflow_nothing() -> None:
    answers = torch.tensor([[[1e4, 0.0], [0.0, 1e4]]]).repeat(6, 1, 1)
    weights = mixture_weights(answers, torch.tensor([0, 0, 0, 0, 1, 1]))
    assert weights.tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-3)


def test_an_expert_that_does_not_answer_explains_nothing() -> None:
    answers, labels = drawn(1, 20, 3)
    answers[:, 1] = math.nan
    weights = mixture_weights(answers, labels)
    assert weights[1] == pytest.approx(0, abs=1e-3)
    assert torch.equal(
        mixture_weights(torch.full((4, 3, 2), math.nan), torch.zeros(4, dtype=torch.long)),
        torch.full((3,), 1 / 3, dtype=torch.float64),
    )
    nothing = mixture_weights(torch.zeros(0, 3, 2), torch.zeros(0, dtype=torch.long))
    assert nothing.tolist() == [1 / 3] * 3


@pytest.mark.parametrize(
    ("shape", "labels", "tolerance", "message"),
    [
        ((4, 3), 4, 1e-3, r"answers must be \[N, E, C\].*\(4, 3\) and \(4,\)"),
        ((4, 3, 2), 5, 1e-3, r"\(4, 3, 2\) and \(5,\)"),
        ((4, 0, 2), 4, 1e-3, r"\(4, 0, 2\)"),
        ((4, 3, 2), 4, 0.0, r"tolerance must be above 0, got 0.0"),
    ],
)
def test_what_does_not_fit_is_refused(
    shape: tuple[int, ...], labels: int, tolerance: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        mixture_weights(
            torch.zeros(shape), torch.zeros(labels, dtype=torch.long), tolerance=tolerance
        )


def test_the_gate_asks_the_likeliest_experts_for_everything() -> None:
    right, wrong = [3.0, 0.0], [0.0, 3.0]
    answers = torch.tensor([[wrong, right, right, wrong]]).repeat(10, 1, 1)
    answers[:2, 2] = torch.tensor(wrong)
    site = GateSite(
        own_id=0, num_experts=4, settings=GateConfig(top_k=2), prototypes=None, answers=answers,
        labels=torch.zeros(10), holdout_answers=answers,
        holdout_labels=torch.zeros(10, dtype=torch.long),
    )  # fmt: skip
    routing = ClientWeightsGate.at(site).route(torch.randn(5, 7))
    assert routing.expert_ids.tolist() == [[1, 2]] * 5
    assert routing.weights.sum(dim=1).tolist() == pytest.approx([1.0] * 5)
    assert float(routing.weights[0, 0]) > 0.9


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -0.1], [math.nan, 1.0], [[1.0]]])
def test_weights_that_are_none_are_refused(weights: object) -> None:
    with pytest.raises(ConfigError, match="not all 0"):
        ClientWeightsGate(torch.tensor(weights))


def test_without_a_hold_out_there_are_no_weights() -> None:
    site = GateSite(0, 2, GateConfig(), None, torch.zeros(1, 2, 2), torch.zeros(1))
    with pytest.raises(ConfigError, match="answers to a hold-out, got none"):
        ClientWeightsGate.at(site)
