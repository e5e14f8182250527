import pytest
import torch

from nmoe_flower.errors import ConfigError
from nmoe_flower.losses import correlation, sample_spectral, spectral_contrastive, unit_ball


def draw(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def encode(x, theta):
    return unit_ball(torch.tanh(x @ theta))


def test_one_sample_by_hand():
    z1, z2 = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    mean = torch.tensor([[0.5, 0.1], [0.1, 0.25]])
    # z1: 0.5; z2: 0.36 * 0.5 + 2 * 0.48 * 0.1 + 0.64 * 0.25 = 0.436; mean 0.468; times 3; - 0.6
    assert sample_spectral(z1, z2, mean, weight=3.0).tolist() == pytest.approx([0.804])


def test_gradients_of_samples_add_up_to_the_global_one():
    """At the weights Rbar was taken at, for unequal clients and a nonlinear encoder."""
    sizes, dim, weight = [3, 10, 27], 6, 5.0
    x1, x2 = draw(2, sum(sizes), 8, seed=1)
    theta = draw(8, dim, seed=2).mul(0.3).requires_grad_()
    whole = spectral_contrastive(
        encode(x1, theta), encode(x2, theta), weight=weight, unbiased=False
    )
    (wanted,) = torch.autograd.grad(whole, theta)

    def features(part):
        return encode(x1[part], theta), encode(x2[part], theta)

    parts = [slice(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]
    shares = [size / sum(sizes) for size in sizes]
    mean = sum(
        share * correlation(torch.cat(features(part)))
        for share, part in zip(shares, parts, strict=True)
    )
    got = torch.zeros_like(theta)
    for share, part in zip(shares, parts, strict=True):
        loss = sample_spectral(*features(part), mean, weight=weight).mean()
        got += share * torch.autograd.grad(loss, theta)[0]
    assert float((got - wanted).abs().max()) < 1e-10
    assert float(wanted.abs().max()) > 1e-3


def test_a_sample_does_not_see_the_others_nor_its_part_of_the_mean():
    z1, z2 = draw(2, 5, 4, seed=3)
    mean = correlation(torch.cat([z1, z2])).requires_grad_()
    together = sample_spectral(z1, z2, mean)
    alone = [sample_spectral(z1[i : i + 1], z2[i : i + 1], mean).item() for i in range(5)]
    assert together.tolist() == pytest.approx(alone, rel=1e-12)
    assert not together.requires_grad


@pytest.mark.parametrize("mean", [torch.eye(3), torch.ones(2)])
def test_shapes_that_do_not_fit_are_refused(mean):
    with pytest.raises(ConfigError, match=r"the mean \[D, D\]"):
        sample_spectral(torch.ones(4, 2), torch.ones(4, 2), mean)
