"""The yardstick: federated averaging as one would write it by hand for one machine.

No Flower and nothing of this package's engine: worker processes of one thread that take the next
client from a shared counter, weights in shared memory, and a parent that adds up a client's weights
as soon as they are there. The arithmetic and its order are those of the strategies.
"""

import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch
import torch.multiprocessing
from torch import Tensor, nn

from benchmarks.rounds.kinds import Kind, kind_of
from benchmarks.rounds.model import batches, build_model, images_of, optimizer_for, take_steps

__all__ = ["BareLoop"]


class BareLoop:
    """Rounds of plain PyTorch in ``workers`` processes; 0 trains in this one.

    Args:
        kind: What is computed.
        seed: Seed of the weights and the images.
        workers: Processes of one thread.
    """

    def __init__(self, kind: Kind, seed: int, workers: int) -> None:
        self._kind = kind
        model = build_model(kind, seed)
        size = sum(parameter.numel() for parameter in model.parameters())
        # Row 0 is the global model, row 1 + i what client i made of it.
        self._rows = torch.zeros((1 + kind.clients, size))
        self._rows.share_memory_()  # type: ignore[no-untyped-call]
        _store(model, self._rows[0])
        self._scratch = np.empty(size, np.float32)
        self._sum = np.empty(size, np.float32)
        self._client = _Client(kind, seed, self._rows) if not workers else None
        self._connections: list[Connection[Any, Any]] = []
        context = torch.multiprocessing.get_context("spawn")
        self._counter = context.Value("q", 0)  # dropped here, it would be gone for the workers
        self._processes = []
        self._total_rounds = 0
        for _ in range(workers):
            ours, theirs = context.Pipe()
            arguments = (theirs, self._counter, kind.name, seed, self._rows)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    @property
    def weights(self) -> np.ndarray:
        """The global model, flat."""
        row: np.ndarray = self._rows[0].numpy()
        return row

    def rounds(self, count: int) -> list[float]:
        """Run rounds ``1 .. count`` on the model as it is; returns the seconds of each."""
        seconds = []
        for server_round in range(1, count + 1):
            start = time.perf_counter()
            self._average(self._answers(server_round))
            seconds.append(time.perf_counter() - start)
        return seconds

    def close(self) -> None:
        """End the workers."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join()

    def _answers(self, server_round: int) -> Iterator[int]:
        """Clients in the order in which they are done."""
        clients = self._kind.clients
        if self._client is not None:
            for partition in range(clients):
                self._client.train(partition, server_round)
                yield partition
            return
        first = self._total_rounds * clients
        self._total_rounds += 1
        for connection in self._connections:
            connection.send((first, server_round))
        for _ in range(clients):
            ready: Any = wait(self._connections)[0]
            yield ready.recv()

    def _average(self, done: Iterator[int]) -> None:
        """Add clients up in their order, whatever the order in which they are done."""
        rows = self._rows.numpy()
        weight = np.float32(self._kind.images)
        here: set[int] = set()
        added = 0
        for partition in done:
            here.add(partition)
            while added in here:
                if added == 0:
                    np.multiply(rows[1], weight, out=self._sum)
                else:
                    np.multiply(rows[1 + added], weight, out=self._scratch)
                    self._sum += self._scratch
                added += 1
        np.divide(self._sum, np.float32(weight * self._kind.clients), out=rows[0])


class _Client:
    """A model that is loaded from the global row and stored in the client's own."""

    def __init__(self, kind: Kind, seed: int, rows: Tensor) -> None:
        self._kind = kind
        self._seed = seed
        self._rows = rows
        self._model = build_model(kind, seed)
        self._optimizer = optimizer_for(self._model)

    def train(self, partition: int, server_round: int) -> None:
        _load(self._model, self._rows[0])
        steps = batches(self._kind, self._seed, partition, server_round)
        take_steps(self._model, self._optimizer, steps)
        _store(self._model, self._rows[1 + partition])


def _work(
    connection: "Connection[Any, Any]", counter: Any, name: str, seed: int, rows: Tensor
) -> None:
    torch.set_num_threads(1)
    kind = kind_of(name)
    client = _Client(kind, seed, rows)
    for partition in range(kind.clients):
        images_of(name, seed, partition)
    while True:
        try:
            first, server_round = connection.recv()
        except (EOFError, OSError):
            return
        while True:
            with counter.get_lock():
                ticket = counter.value
                if ticket >= first + kind.clients:
                    break
                counter.value = ticket + 1
            client.train(ticket - first, server_round)
            connection.send(ticket - first)


@torch.no_grad()
def _load(model: nn.Module, row: Tensor) -> None:
    start = 0
    for parameter in model.parameters():
        stop = start + parameter.numel()
        parameter.copy_(row[start:stop].view_as(parameter))
        start = stop


@torch.no_grad()
def _store(model: nn.Module, row: Tensor) -> None:
    start = 0
    for parameter in model.parameters():
        stop = start + parameter.numel()
        row[start:stop].copy_(parameter.view(-1))
        start = stop
