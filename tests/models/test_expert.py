import pytest
import torch
from torch import nn

from nmoe_flower.errors import ConfigError
from nmoe_flower.models import Expert


def test_the_default_is_the_paper_s_four_layers():
    # weights and biases of 512-512-256-128-10, added by hand in the design notes: 428k
    expert = Expert(512, 10)
    linears = [layer for layer in expert.layers if isinstance(layer, nn.Linear)]
    assert [linear.out_features for linear in linears] == [512, 256, 128, 10]
    assert sum(p.numel() for p in expert.parameters()) == (
        513 * 512 + 513 * 256 + 257 * 128 + 129 * 10
    )


def test_no_hidden_layer_is_one_linear_map():
    expert = Expert(3, 2, hidden=())
    linear = expert.layers[0]
    latents = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert len(expert.layers) == 1
    torch.testing.assert_close(expert(latents), latents @ linear.weight.T + linear.bias)
    # additive: f(a + b) + f(0) = f(a) + f(b)
    torch.testing.assert_close(
        expert(latents[:1] + latents[1:2]) + expert(torch.zeros(1, 3)),
        expert(latents[:1]) + expert(latents[1:2]),
    )


def test_attributes():
    expert = Expert(7, 4, hidden=[6, 5])
    assert (expert.latent_dim, expert.num_classes, expert.hidden) == (7, 4, (6, 5))


def test_a_fresh_expert_keeps_the_signal_and_answers_nearly_uniformly():
    torch.manual_seed(0)
    expert = Expert(64, 10)
    latents = torch.randn(256, 64)
    inner = expert.layers[:-1](latents)
    assert 0.2 < inner.pow(2).mean() < 2
    probabilities = expert(latents).softmax(dim=1)
    assert probabilities.max() < 0.2


@pytest.mark.parametrize(
    ("arguments", "hidden"), [((0, 2), ()), ((2, 0), ()), ((2, 2), (4, -1)), ((2, 2), (0,))]
)
def test_widths_below_one_are_refused(arguments, hidden):
    with pytest.raises(ConfigError, match="at least 1, got latent_dim="):
        Expert(*arguments, hidden=hidden)
