"""The spectral contrastive loss of one sample, given the mean R: what DP-SGD can clip.

DP-SGD bounds what each sample adds to a gradient, so the loss must be a sum over samples. Eq. 4 is
not: its own term ``share / 2 * ||R_i||^2`` couples all samples of the batch. But at the weights
where Rbar = sum_i q_i R_i was taken,

    grad (weight / 2 * ||R||^2)  =  weight * <Rbar, grad R>  =  grad (weight * <Rbar, R>)

with Rbar a constant on the right, and R is a mean over samples x and their two views v. So

    L_x = -z_x1 . z_x2  +  weight * mean_v z_xv^T Rbar z_xv

has, averaged over all samples of all clients, the gradient of Eq. 3 in the form that counts a
sample's own terms (``unbiased=False``). Rbar keeps the client's own part in: it is a constant that
arrived with noise and is paid for, so no sample touches the loss of another.
"""

from torch import Tensor

from nmoe_flower.errors import ConfigError

__all__ = ["sample_spectral"]


def sample_spectral(z1: Tensor, z2: Tensor, mean: Tensor, *, weight: float = 1.0) -> Tensor:
    """The loss of each sample, [B], from two views [B, D] in the unit ball and Rbar [D, D].

    Raises:
        ConfigError: The shapes do not fit.

    >>> import torch
    >>> z = torch.eye(2)
    >>> sample_spectral(z, z, torch.diag(torch.tensor([0.5, 0.25])), weight=2.0)
    tensor([ 0.0000, -0.5000])
    """
    if z1.ndim != 2 or z1.shape != z2.shape or mean.shape != (z1.shape[1], z1.shape[1]):
        raise ConfigError(
            "views must be [B, D] and alike and the mean [D, D], got "
            f"{tuple(z1.shape)}, {tuple(z2.shape)} and {tuple(mean.shape)}"
        )
    constant = mean.detach().to(z1)
    attract = (z1 * z2).sum(dim=1)
    repel = ((z1 @ constant) * z1).sum(dim=1) + ((z2 @ constant) * z2).sum(dim=1)
    return weight * repel / 2 - attract
