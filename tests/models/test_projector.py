from copy import deepcopy

import pytest
import torch

from nmoe_flower.errors import ConfigError
from nmoe_flower.losses import correlation, local_spectral, spectral_contrastive, unit_ball
from nmoe_flower.models import Contrastive, Projector, SharedNorm, build_extractor

NORMS = ("batch", "shared", "layer", "none")


def latents(batch: int = 6, dim: int = 5) -> torch.Tensor:
    return torch.randn(batch, dim, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", NORMS)
def test_one_hidden_layer_and_no_bias_that_a_norm_would_remove(norm: str) -> None:
    projector = Projector(5, 3, hidden=4, norm=norm)
    assert projector(latents()).shape == (6, 3)
    # 5 x 4 and 4 x 3 weights; 4 biases of the layer, or 4 scales and 4 shifts of the norm
    expected = 20 + 4 + 12 if norm == "none" else 20 + 8 + 12
    assert sum(p.numel() for p in projector.parameters()) == expected


def test_without_a_norm_it_is_two_matrices_and_a_relu() -> None:
    torch.manual_seed(0)
    projector = Projector(5, 3, hidden=4, norm="none")
    state = projector.state_dict()
    first, bias, second = (tensor.double() for tensor in state.values())
    hidden = latents().double() @ first.T + bias
    expected = torch.where(hidden > 0, hidden, 0.0) @ second.T
    torch.testing.assert_close(projector(latents()).double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_only_batch_norm_mixes_samples_and_only_in_training(norm: str) -> None:
    torch.manual_seed(0)
    projector = Projector(5, 3, hidden=4, norm=norm)
    changed = latents()
    changed[0] += 10
    projector.train()
    first, second = deepcopy(projector)(latents()), deepcopy(projector)(changed)
    mixed = not torch.allclose(first[1:], second[1:], atol=1e-5)
    assert mixed == (norm == "batch")
    projector.eval()
    torch.testing.assert_close(projector(latents())[1:], projector(changed)[1:])


def moved(norm: SharedNorm) -> SharedNorm:
    """With statistics as if trained: means 1 to 5, mean squares 2 more than the means'."""
    norm.running_mean += torch.arange(1.0, 6)
    norm.running_square += torch.arange(1.0, 6).square() + 1
    return norm


def test_a_sample_is_normalised_alike_in_every_batch_in_training_and_out_of_it() -> None:
    x = latents()
    expected = (x - torch.arange(1.0, 6)) / 2**0.5
    for batch in (x, x[:1]):
        torch.testing.assert_close(moved(SharedNorm(5)).train()(batch), expected[: len(batch)])
        torch.testing.assert_close(moved(SharedNorm(5)).eval()(batch), expected[: len(batch)])


def test_the_average_of_the_clients_statistics_is_that_of_all_their_samples() -> None:
    """Of batches of one size; averaged variances would miss how far the clients' means differ."""
    x = latents(8) + torch.tensor([[4.0]] * 4 + [[-4.0]] * 4)
    clients = [SharedNorm(5) for _ in range(2)]
    for client, batch in zip(clients, x.chunk(2), strict=True):
        client.train()(batch)
    mean = sum(client.running_mean for client in clients) / 2
    square = sum(client.running_square for client in clients) / 2
    torch.testing.assert_close(mean, x.mean(dim=0))
    torch.testing.assert_close(square - mean.square(), x.var(dim=0, correction=0))


def test_batches_weigh_equally_until_the_momentum_is_reached() -> None:
    """Momentum 0.4: batches 1 and 2 count a half each, then 0.6 of that is left."""
    norm = SharedNorm(5, momentum=0.4).train()
    batches = latents(9).chunk(3)
    for batch in batches:
        norm(batch)
    first, second, third = (batch.mean(dim=0) for batch in batches)
    torch.testing.assert_close(norm.running_mean, 0.6 * (first + second) / 2 + 0.4 * third)
    assert int(norm.num_batches_tracked) == 3


def test_evaluation_leaves_the_statistics_alone() -> None:
    norm = moved(SharedNorm(5)).eval()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm(latents())
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize(("norm", "same"), [("shared", True), ("layer", True), ("batch", False)])
def test_the_clients_gradients_are_that_of_the_pooled_samples(norm: str, same: bool) -> None:
    """Eq. 4 over two clients whose samples have nothing in common; BatchNorm breaks it."""
    torch.manual_seed(0)
    projector = Projector(5, 3, hidden=4, norm=norm).double().train()
    far = torch.tensor([[2.0]] * 6 + [[-2.0]] * 6)
    z1, z2 = latents(12).double() + far, latents(12).double() * 1.1 + far

    def gradients(loss: torch.Tensor) -> torch.Tensor:
        found = torch.autograd.grad(loss, list(projector.parameters()))
        return torch.cat([gradient.flatten() for gradient in found])

    def features(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, ...]:
        one = deepcopy(projector)  # every client starts from the same statistics
        both = torch.func.functional_call(
            one, dict(projector.named_parameters()), torch.cat([first, second])
        )
        return unit_ball(both).chunk(2)

    pooled = gradients(spectral_contrastive(*features(z1, z2), weight=9.0, unbiased=False))
    parts = [features(*pair) for pair in zip(z1.chunk(2), z2.chunk(2), strict=True)]
    matrices = [correlation(torch.cat(part)).detach() for part in parts]
    losses = [
        local_spectral(*part, other, share=0.5, weight=9.0, unbiased=False)
        for part, other in zip(parts, reversed(matrices), strict=True)
    ]
    difference = float((gradients(sum(losses) / 2) - pooled).abs().max())  # type: ignore[arg-type]
    assert (difference < 1e-10) == same, difference


@pytest.mark.parametrize("widths", [(0, 3, 4), (5, 0, 4), (5, 3, -1)])
def test_widths_below_one_are_refused(widths: tuple[int, int, int]) -> None:
    latent_dim, dim, hidden = widths
    text = f"latent_dim={latent_dim}, hidden={hidden}, dim={dim}"
    with pytest.raises(ConfigError, match=text):
        Projector(latent_dim, dim, hidden=hidden)


def test_an_unknown_norm_is_named() -> None:
    with pytest.raises(
        ConfigError, match="projector norm is 'group'; allowed: batch, shared, layer"
    ):
        Projector(5, 3, hidden=4, norm="group")


def test_the_network_projects_latents_and_can_lose_its_projector() -> None:
    torch.manual_seed(0)
    extractor = build_extractor("linear", in_channels=1, image_size=4)
    network = Contrastive(extractor, Projector(extractor.latent_dim, 3, hidden=8)).eval()
    images = torch.randn(5, 1, 4, 4)
    torch.testing.assert_close(network(images), network.projector(extractor(images)))
    kinds = {name.partition(".")[0] for name in network.state_dict()}
    assert kinds <= {"extractor", "projector"}
    assert "projector" in kinds
