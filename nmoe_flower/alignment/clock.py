"""A clock that turns FLOPs and bytes into the seconds of a round."""

from collections.abc import Mapping

import numpy as np

from nmoe_flower.alignment.devices import Device

__all__ = ["Clock", "seconds_of"]


def seconds_of(device: Device, *, flops: float, bytes_down: float, bytes_up: float) -> float:
    """Seconds a device needs for a round: latency, download, training, upload.

    >>> board = Device(compute=1e9, memory=1e9, download=2e6, upload=1e6, latency=0.5)
    >>> seconds_of(board, flops=1e9, bytes_down=1e6, bytes_up=1e6)
    3.0
    """
    return (
        device.latency
        + bytes_down / device.download
        + flops / device.compute
        + bytes_up / device.upload
    )


class Clock:
    """Simulated time: a round lasts until its last client, or until the deadline.

    Args:
        deadline: Seconds after which the server waits no longer.
    """

    def __init__(self, deadline: float = np.inf) -> None:
        self.deadline = deadline
        self.elapsed = 0.0

    def is_late(self, seconds: float) -> bool:
        """Whether a client came after the deadline."""
        return seconds > self.deadline

    def advance(self, seconds: Mapping[int, float]) -> float:
        """End a round whose clients took ``seconds``; returns how long it lasted.

        >>> clock = Clock(deadline=10)
        >>> clock.advance({0: 3.0, 1: 12.0}), clock.elapsed
        (10, 10.0)
        """
        lasted = min(max(seconds.values(), default=0.0), self.deadline)
        self.elapsed += lasted
        return lasted
