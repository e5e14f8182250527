import math

import pytest
import torch

from nmoe_flower.errors import ConfigError
from nmoe_flower.models import Expert
from nmoe_flower.models.alignment import alignment_loss, mixed
from nmoe_flower.models.filters import FilterBank


def test_the_loss_of_one_expert_is_cross_entropy_and_the_anchor_trains_the_gate() -> None:
    """One held expert, two classes, even logits: log 2. Two even gate scores: log 2 more."""
    scores = torch.zeros(1, 2, requires_grad=True)
    logits, labels = torch.zeros(1, 1, 2), torch.tensor([1])
    plain = alignment_loss(scores, logits, labels, [0])
    assert float(plain.detach()) == pytest.approx(math.log(2))
    assert torch.autograd.grad(plain, scores)[0].abs().max() == 0
    anchored = alignment_loss(scores, logits, labels, [0], anchor=1.0)
    assert float(anchored.detach()) == pytest.approx(2 * math.log(2))
    assert torch.autograd.grad(anchored, scores)[0].tolist() == [[-0.5, 0.5]]


def test_the_loss_of_two_experts_is_that_of_their_mixture() -> None:
    """Even gate between p(y) = 0.9 and 0.1: -log 0.5."""
    logits = torch.log(torch.tensor([[[0.9, 0.1], [0.1, 0.9]]]))
    loss = alignment_loss(torch.zeros(1, 3), logits, torch.tensor([0]), [0, 2])
    assert float(loss) == pytest.approx(math.log(2))


def constant(probabilities: list[float]) -> Expert:
    """An expert that says the same to everything."""
    expert = Expert(3, 2, hidden=())
    with torch.no_grad():
        expert.layers[0].weight.zero_()
        expert.layers[0].bias.copy_(torch.log(torch.tensor(probabilities)))
    return expert


@torch.inference_mode()
def test_answers_are_mixed_by_the_best_scores() -> None:
    experts = [constant([0.9, 0.1]), constant([0.2, 0.8]), constant([0.5, 0.5])]
    rows = torch.ones(1, 3)
    first, asked = mixed(torch.tensor([[0.0, 3.0, 2.0]]), rows, experts, top_k=1)
    torch.testing.assert_close(first, torch.tensor([[0.2, 0.8]]))
    assert asked.tolist() == [[1]]
    scores = torch.tensor([[0.0, 3.0, 3.0]])
    both, _ = mixed(scores, rows, experts, top_k=2)
    torch.testing.assert_close(both, torch.tensor([[0.35, 0.65]]))
    everyone, asked = mixed(scores, rows, experts, top_k=9)
    assert asked.shape == (1, 3)
    assert float(everyone.sum()) == pytest.approx(1)


@torch.inference_mode()
def test_the_first_of_equal_scores_is_asked() -> None:
    """Of so many that a sort which is not stable asks another."""
    experts = [constant([0.5, 0.5]) for _ in range(40)]
    _, asked = mixed(torch.zeros(1, 40), torch.ones(1, 3), experts, top_k=2)
    assert asked.tolist() == [[0, 1]]


def bank(seed: int = 0, **options: int) -> FilterBank:
    return FilterBank(16, generator=torch.Generator().manual_seed(seed), **options)


def test_filters_follow_the_seed_and_have_norm_one() -> None:
    assert torch.equal(bank().bank, bank().bank)
    assert not torch.equal(bank().bank, bank(1).bank)
    torch.testing.assert_close(bank().bank.flatten(1).norm(dim=1), torch.ones(16))
    assert [name for name, _ in bank().named_parameters()] == []


def test_latents_do_not_see_brightness_or_who_else_is_in_the_batch() -> None:
    images = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    latents = bank()(images)
    assert latents.shape == (20, bank().latent_dim) == (20, 128)
    torch.testing.assert_close(bank()(images + 0.7), latents, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(bank()(images[17:18])[0], latents[17])
    assert latents.min() >= 0
    assert latents.std(dim=0).min() > 0.005


def test_grey_images_and_strides() -> None:
    grey = bank(in_channels=1, image_size=8, size=4, stride=2, grid=1)
    assert grey(torch.rand(3, 1, 8, 8)).shape == (3, 32)


@pytest.mark.parametrize("options", [{"in_channels": 2}, {"image_size": 6}])
def test_images_that_do_not_fit_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="allowed: 1 or 3"):
        bank(**options)
