import pytest
import torch

from nmoe_flower.errors import ConfigError
from nmoe_flower.losses import correlation, local_spectral, spectral_contrastive, unit_ball
from nmoe_flower.models import Contrastive, Projector, build_extractor

NORMS = ("batch", "layer", "none")


def latents(batch: int = 6, dim: int = 5) -> torch.Tensor:
    return torch.randn(batch, dim, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", NORMS)
def test_one_hidden_layer_and_no_bias_that_a_norm_would_remove(norm: str) -> None:
    projector = Projector(5, 3, hidden=4, norm=norm)
    assert projector(latents()).shape == (6, 3)
    # 5 x 4 and 4 x 3 weights; 4 biases of the layer, or 4 scales and 4 shifts of the norm
    counts = {"batch": 20 + 8 + 12, "layer": 20 + 8 + 12, "none": 20 + 4 + 12}
    assert sum(p.numel() for p in projector.parameters()) == counts[norm]


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
    mixed = not torch.allclose(projector(latents())[1:], projector(changed)[1:], atol=1e-5)
    assert mixed == (norm == "batch")
    projector.eval()
    torch.testing.assert_close(projector(latents())[1:], projector(changed)[1:])


@pytest.mark.parametrize(("norm", "same"), [("layer", True), ("none", True), ("batch", False)])
def test_the_clients_gradients_are_that_of_the_pooled_samples(norm: str, same: bool) -> None:
    """Eq. 4 over two clients whose samples have nothing in common; BatchNorm breaks it."""
    torch.manual_seed(0)
    projector = Projector(5, 3, hidden=4, norm=norm).double().train()
    far = torch.tensor([[2.0]] * 6 + [[-2.0]] * 6)
    z1, z2 = latents(12).double() + far, latents(12).double() * 1.1 + far

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        found = torch.autograd.grad(loss, list(projector.parameters()))
        return torch.cat([part.flatten() for part in found])

    def features(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return unit_ball(projector(torch.cat([first, second]))).chunk(2)

    pooled = gradient(spectral_contrastive(*features(z1, z2), weight=9.0, unbiased=False))
    parts = [features(*pair) for pair in zip(z1.chunk(2), z2.chunk(2), strict=True)]
    matrices = [correlation(torch.cat(part)).detach() for part in parts]
    first, second = (
        gradient(local_spectral(*part, other, share=0.5, weight=9.0, unbiased=False))
        for part, other in zip(parts, reversed(matrices), strict=True)
    )
    difference = float(((first + second) / 2 - pooled).abs().max())
    assert difference < 1e-10 if same else difference > 0.01, difference


@pytest.mark.parametrize("widths", [(0, 3, 4), (5, 0, 4), (5, 3, -1)])
def test_widths_below_one_are_refused(widths: tuple[int, int, int]) -> None:
    latent_dim, dim, hidden = widths
    text = f"latent_dim={latent_dim}, hidden={hidden}, dim={dim}"
    with pytest.raises(ConfigError, match=text):
        Projector(latent_dim, dim, hidden=hidden)


def test_an_unknown_norm_is_named() -> None:
    with pytest.raises(ConfigError, match="projector norm is 'group'; allowed: batch, layer, none"):
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
