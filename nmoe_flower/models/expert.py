"""The personal expert, and the classifier of stage 1 whose head it may start from."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from nmoe_flower.errors import ConfigError
from nmoe_flower.models.extractor import Extractor

__all__ = ["Classifier", "Expert"]


class Expert(nn.Module):
    """An MLP from latents to logits, one hidden layer with GELU per entry of ``hidden``.

    The default has four linear layers, as in the NMoE paper (arXiv:2511.01743, section IV).
    ``hidden=()`` gives one linear layer. Hidden layers start with He's normal law, so that the
    signal keeps its size through the layers. The last layer starts small: the first answers are
    close to uniform.

    Attributes:
        latent_dim: D, the length of a latent.
        num_classes: C, the number of classes.
        hidden: The widths of the hidden layers.

    Raises:
        ConfigError: A width is below 1.

    >>> import torch
    >>> Expert(32, 10)(torch.zeros(4, 32)).shape
    torch.Size([4, 10])
    """

    def __init__(
        self, latent_dim: int, num_classes: int, *, hidden: Sequence[int] = (512, 256, 128)
    ) -> None:
        super().__init__()
        widths = (latent_dim, *hidden, num_classes)
        if min(widths) < 1:
            raise ConfigError(
                f"every width of an expert must be at least 1, got latent_dim={latent_dim}, "
                f"hidden={tuple(hidden)}, num_classes={num_classes}"
            )
        self.latent_dim = latent_dim
        self.num_classes = num_classes
        self.hidden = tuple(hidden)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.GELU()]
        self.layers = nn.Sequential(*layers[:-1])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, from torch's default generator; biases are zero."""
        linears = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        for linear in linears:
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
        nn.init.normal_(linears[-1].weight, std=0.1 * linears[-1].in_features ** -0.5)

    def forward(self, latents: Tensor) -> Tensor:
        """Answer latents [B, D] with logits [B, C]."""
        logits: Tensor = self.layers(latents)
        return logits


class Classifier(nn.Module):
    """``head(extractor(images))``: images [B, channels, H, W] to logits [B, C].

    After training it is split: the extractor is frozen and shared, the head may start the experts.
    """

    def __init__(self, extractor: Extractor, head: Expert) -> None:
        super().__init__()
        self.extractor = extractor
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Classify images."""
        logits: Tensor = self.head(self.extractor(images))
        return logits

    def parts(self, *, with_head: bool) -> Mapping[str, Tensor]:
        """The tensors that travel, by name: the whole network, or the extractor alone."""
        tensors = self.state_dict()
        if with_head:
            return tensors
        return {name: value for name, value in tensors.items() if name.startswith("extractor.")}
