"""Gradients of single samples, by Opacus, with convolutions of this package's own.

Opacus's sampler for ``nn.Conv2d`` reads maps in the channels-last layout, which extractors use,
with the wrong strides: wrong gradients that mix samples (1.6.0). It has none for
weight-standardised ones and would redo their forward pass sample by sample.

Loads Opacus; import it where private weights are asked for.
"""

import warnings
from typing import Any, ClassVar

import torch
from opacus import GradSampleModule
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower.errors import ConfigError
from nmoe_flower.models import GroupNorm, StandardisedConv2d, TiledConv2d

__all__ = ["SampleGradients"]

GradSamples = dict[Tensor, Tensor]
_MIXING = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


class SampleGradients(GradSampleModule):  # type: ignore[misc]
    """While in use, a backward pass through ``module`` leaves ``p.grad_sample``, [B, *p.shape].

    The loss must be the sum over samples. ``close`` leaves the module as it was.

    Raises:
        ConfigError: A layer mixes the samples of a batch.
    """

    GRAD_SAMPLERS: ClassVar[dict[type[nn.Module], Any]] = {}

    def __init__(self, module: nn.Module) -> None:
        for name, layer in module.named_modules():
            if isinstance(layer, _MIXING):
                raise ConfigError(
                    f"private weights need gradients of single samples, but {name} is a "
                    f"{type(layer).__name__}"
                )
        super().__init__(module, loss_reduction="sum", strict=False)

    def backward(self, loss: Tensor, *, views: int = 1) -> None:
        """Backpropagate; rows of a sample's ``views`` (all first ones, then all second) are added.

        Its parts of the gradient add up to the sample's own before anything is clipped.
        """
        with warnings.catch_warnings():  # images need no gradient: the hooks say so every time
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            loss.backward()  # type: ignore[no-untyped-call]
        for parameter in self.parameters():
            if views > 1 and parameter.requires_grad:
                parameter.grad_sample = parameter.grad_sample.unflatten(0, (views, -1)).sum(dim=0)

    def close(self) -> None:
        """Take away hooks and gradients."""
        module = self.to_standard_module()
        for parameter in module.parameters():
            parameter.grad = None
            if hasattr(parameter, "summed_grad"):
                del parameter.summed_grad


def _conv(layer: nn.Conv2d, activations: list[Tensor], backprops: Tensor) -> GradSamples:
    """Per sample: the maps' patches [k, P] against what came back [out, P]."""
    if layer.groups != 1 or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise ConfigError(f"private weights know no such convolution: {layer}")
    maps, (size, _, height, width) = activations[0], backprops.shape
    patches = F.unfold(maps, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    if patches.shape[2] > height * width:  # the last row and column of outputs were not computed
        patches = patches.view(size, -1, *maps.shape[2:])[..., :height, :width].flatten(2)
    back = backprops.flatten(2)
    samples = {layer.weight: (back @ patches.transpose(1, 2)).view(size, *layer.weight.shape)}
    if layer.bias is not None:
        samples[layer.bias] = back.sum(dim=2)
    return samples


def _standardised_conv(
    layer: StandardisedConv2d, activations: list[Tensor], backprops: Tensor
) -> GradSamples:
    """The same, then back through w -> (w - mean) / std / sqrt(fan-in), which no sample changes."""
    samples = _conv(layer, activations, backprops)
    rows = layer.weight.detach().flatten(1)
    centred = rows - rows.mean(dim=1, keepdim=True)
    scale = (centred.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
    unit = centred * scale
    gradient = samples[layer.weight].flatten(2)
    along = torch.einsum("nok,ok->no", gradient, unit / rows.shape[1]).unsqueeze(2)
    gradient = gradient - gradient.mean(dim=2, keepdim=True)
    gradient.addcmul_(along, unit, value=-1.0).mul_(scale * rows.shape[1] ** -0.5)
    samples[layer.weight] = gradient.view(len(gradient), *layer.weight.shape)
    return samples


SampleGradients.GRAD_SAMPLERS = {
    **GradSampleModule.GRAD_SAMPLERS,
    nn.Conv2d: _conv,
    TiledConv2d: _conv,
    StandardisedConv2d: _standardised_conv,
    GroupNorm: GradSampleModule.GRAD_SAMPLERS[nn.GroupNorm],
}
