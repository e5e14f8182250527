"""One strategy over a grid in this process: a round at a time, as benchmarks time it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import Strategy

from nmoe_flower import records
from nmoe_flower.clients.device import Device, device_of
from nmoe_flower.config import Config
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import EngineError
from nmoe_flower.strategies import reason_of

__all__ = ["device_at", "rounds_of"]


def rounds_of(
    strategy: Strategy, grid: InProcessGrid, initial: str
) -> Callable[[int], dict[str, np.ndarray]]:
    """A function that takes the round of a number and gives the weights after it.

    Args:
        strategy: Which clients it asks, and what it makes of their replies.
        grid: All clients.
        initial: The action that asks a client for the weights to begin with.

    Raises:
        EngineError: The client that was asked cannot start.
    """
    nodes = sorted(grid.get_node_ids())
    (answer,) = grid.send_and_receive([Message(RecordDict(), nodes[0], initial)])
    if answer.has_error():
        raise EngineError(f"{len(nodes)} clients cannot start: {reason_of(answer)}")
    arrays: list[ArrayRecord] = [answer.content.array_records[records.ARRAYS]]

    def run(server_round: int) -> dict[str, np.ndarray]:
        messages = strategy.configure_train(server_round, arrays[0], ConfigRecord(), grid)
        updated, _ = strategy.aggregate_train(server_round, grid.send_and_receive(list(messages)))
        if updated is not None:
            arrays[0] = updated
        return records.to_numpy(arrays[0])

    return run


def device_at(config: Config, clients: int, partition: int) -> Device:
    """The device of a partition, as a client makes it from its context."""
    node: dict[str, Any] = {"partition-id": partition, "num-partitions": clients}
    return device_of(Context(1, partition, node, RecordDict(), dict(config.flat())))
