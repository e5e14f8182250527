"""FedEM's E and M steps, and PFL-MoE's blend, on numbers that can be checked."""

import numpy as np
import torch

from nmoe_flower.baselines.fedem import responsibilities
from nmoe_flower.baselines.pfl_moe import blended

ROWS = 2000


def mixture_of(true: torch.Tensor) -> torch.Tensor:
    """Losses [n, K] of K linear models on labels that a mixture of them gave."""
    draw = torch.Generator().manual_seed(3)
    images = torch.randn(ROWS, 6, generator=draw)
    models = 2 * torch.randn(len(true), 6, 4, generator=draw)
    logs = torch.einsum("nd,kdc->nkc", images, models).log_softmax(dim=2)
    which = torch.multinomial(true, ROWS, replacement=True, generator=draw)
    labels = torch.multinomial(logs[torch.arange(ROWS), which].exp(), 1, generator=draw)[:, 0]
    return -logs[torch.arange(ROWS), :, labels]


def test_known_weights_are_found_and_the_likelihood_never_falls() -> None:
    true = torch.tensor([0.6, 0.3, 0.1])
    losses, weights, before = mixture_of(true), torch.full((3,), 1 / 3), -np.inf
    for _ in range(60):
        parts = responsibilities(losses, weights)
        torch.testing.assert_close(parts.sum(dim=1), torch.ones(ROWS))
        likelihood = float((weights.log() - losses).logsumexp(dim=1).mean())
        assert likelihood >= before - 1e-6
        weights, before = parts.mean(dim=0), likelihood
    np.testing.assert_allclose(weights.numpy(), true.numpy(), atol=0.05)


def test_a_weight_of_zero_stays_zero_and_is_no_nan() -> None:
    parts = responsibilities(torch.tensor([[0.1, 5.0]]), torch.tensor([0.0, 1.0]))
    np.testing.assert_allclose(parts.numpy(), [[0.0, 1.0]], atol=1e-6)


def test_a_gate_of_one_is_the_global_head_and_of_zero_the_private_one() -> None:
    shared, own = torch.randn(5, 3), torch.randn(5, 3)
    for score, head in ((200.0, shared), (-200.0, own)):
        torch.testing.assert_close(blended(torch.full((5, 1), score), shared, own), head)
