"""A given extractor at the client: there is nothing to train, and only a hash to tell."""

import numpy as np

from nmoe_flower.clients.device import Device

__all__ = ["initial"]


def initial(device: Device) -> dict[str, np.ndarray]:
    """The state of the given extractor, which holds no weights: the same on every client."""
    state = device.extractor().state_dict()
    return {f"extractor.{name}": tensor.cpu().numpy() for name, tensor in state.items()}
