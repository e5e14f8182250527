"""Gates that score against embeddings: who joins or leaves changes nothing for the others."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError
from nmoe_flower.models import (
    MetricGate,
    MetricLearner,
    PrototypeGate,
    normalised_latents,
    trained_gate,
)
from nmoe_flower.pipeline.networked.gate import first_projection


def means_and_latents(experts: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(experts, 6, generator=generator),
        3 * torch.randn(9, 6, generator=generator) + 1,
    )


def gate_of(means: torch.Tensor, projection: np.ndarray) -> MetricGate:
    gate = MetricGate(means.shape[1], len(means), dim=len(projection))
    weight = torch.from_numpy(projection)
    gate.load_state_dict({"projection": weight, "embeddings": means @ weight.T})
    return gate


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(0, 5))
def test_it_starts_as_the_prototype_gate_of_normalised_latents(experts: int, seed: int) -> None:
    """Up to what all experts have in common: the projection moves the origin of no distance."""
    means, latents = means_and_latents(experts, seed)
    start = first_projection(means.numpy(), 6)["projection"]
    found = gate_of(means, start).scores(latents)
    wanted = PrototypeGate(means).scores(normalised_latents(latents))
    torch.testing.assert_close(found.log_softmax(1), wanted.log_softmax(1), rtol=1e-3, atol=1e-3)


def test_few_axes_are_enough_for_few_experts() -> None:
    """Three means span two directions about their own: distances to them differ by no others."""
    means, latents = means_and_latents(3)
    few, all_ = (gate_of(means, first_projection(means.numpy(), d)["projection"]) for d in (2, 6))
    centred = means - means.mean(dim=0)
    one, other = (torch.cdist(gate.embed(centred), gate.embed(centred)) for gate in (few, all_))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert few.embeddings.shape == (3, 2)
    assert few.scores(latents).shape == (9, 3)


def test_who_joins_brings_a_column_and_who_leaves_takes_it_along() -> None:
    means, latents = means_and_latents()
    projection = first_projection(means.numpy(), 4)["projection"]
    whole = gate_of(means, projection).scores(latents)
    without = gate_of(means[[0, 1, 3, 4]], projection).scores(latents)
    torch.testing.assert_close(without, whole[:, [0, 1, 3, 4]])


def test_the_learner_scores_as_the_gate_that_comes_of_it() -> None:
    means, latents = means_and_latents()
    projection = first_projection(means.numpy(), 3)["projection"]
    learner = MetricLearner(means, dim=3)
    learner.load_state_dict({"projection": torch.from_numpy(projection)})
    scores = learner(latents)
    torch.testing.assert_close(scores, gate_of(means, projection).scores(latents))
    assert torch.equal(scores, learner(normalised_latents(latents), normalised=True))
    scores.logsumexp(dim=1).mean().backward()
    assert learner.projection.grad is not None
    assert bool(learner.projection.grad.any())
    assert list(learner.state_dict()) == ["projection"]  # all that travels


def test_equal_means_are_no_reason_to_fail() -> None:
    projection = first_projection(np.ones((4, 3), np.float32), 2)["projection"]
    assert np.isfinite(projection).all()


def test_its_weights_are_known_by_their_names() -> None:
    config = Config.parse({"gate.form": "metric", "gate.embedding": 99})
    gate = trained_gate(config, 6, ["embeddings", "projection"], num_experts=7)
    assert isinstance(gate, MetricGate)
    assert (gate.dim, gate.num_experts) == (6, 7)  # no more numbers than a latent has


@pytest.mark.parametrize("dim", [0, 7])
def test_an_embedding_longer_than_a_latent_is_refused(dim: int) -> None:
    with pytest.raises(ConfigError, match=rf"of 6 numbers have 1 to 6, got {dim}"):
        MetricGate(6, 3, dim=dim)
