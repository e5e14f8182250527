"""Training samples on which nobody trains: settings are chosen on them, never on test samples."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nmoe_flower.data.dealing import Indices, deal, largest_size, round_quotas
from nmoe_flower.data.images import ImageData
from nmoe_flower.data.indices import ClientIndices, label_counts
from nmoe_flower.errors import DataError
from nmoe_flower.plurals import how_many
from nmoe_flower.seeds import numpy_stream

__all__ = ["from_spare", "from_training"]

_KEY = "data.validation-per-client"


def from_spare(
    data: ImageData, clients: Sequence[ClientIndices], *, size: int, owned: bool, seed: int
) -> list[ClientIndices]:
    """Validation samples from what nobody holds: training and test stay what they are.

    Class shares are those of the client's training samples, by largest remainders. No two clients
    get the same sample.

    Args:
        data: What was shared out.
        clients: What each client got.
        size: Validation samples per client, at least 1.
        owned: A sample belongs to somebody: a client gets only what is its own, and where a class
            runs short, more of the others.
        seed: Seed of the draw.

    Raises:
        DataError: There are not enough; tells of which class, and what is allowed.
    """
    held = np.concatenate([client.train for client in clients])
    spare = np.setdiff1d(np.arange(len(data.train)), held)
    if owned:
        return _from_owned(data, clients, spare, size=size, seed=seed)
    labels = np.asarray(data.train.labels)
    train = label_counts(labels, [client.train for client in clients], data.num_classes)
    shares = train / train.sum(axis=1, keepdims=True)
    available = np.bincount(labels[spare], minlength=data.num_classes)
    whole = size * len(clients) <= len(spare)
    counts = round_quotas(shares * (size if whole else 0))
    lacking = counts.sum(axis=0) - available
    if not whole or lacking.max() > 0:
        most = largest_size(lambda count: shares * count, available)
        if not whole:
            told = (
                f"{len(clients)} clients cannot have {size} each of the {len(spare)} training "
                "samples that nobody trains on"
            )
        else:
            cls = int(lacking.argmax())
            told = (
                f"{len(clients)} clients need {counts[:, cls].sum()} training samples of class "
                f"{data.class_names[cls]!r} that nobody trains on, and there are {available[cls]}"
            )
        raise DataError(f"{_KEY} is {size}: {told}; {_allowed(most)}")
    dealt = deal(labels[spare], counts, numpy_stream(seed, "partition", "validation"))
    return [
        replace(client, validation=spare[chosen])
        for client, chosen in zip(clients, dealt, strict=True)
    ]


def _from_owned(
    data: ImageData, clients: Sequence[ClientIndices], spare: Indices, *, size: int, seed: int
) -> list[ClientIndices]:
    """Validation samples from what of each client's own nobody trains on."""
    assert data.train.clients is not None
    owners, labels = np.asarray(data.train.clients), np.asarray(data.train.labels)
    own = [spare[owners[spare] == owners[client.train[0]]] for client in clients]
    found = []
    for number, (client, mine) in enumerate(zip(clients, own, strict=True)):
        if len(mine) < size:
            raise DataError(
                f"{_KEY} is {size}, but client {number} has "
                f"{how_many(len(mine), 'training sample')} "
                f"beside the {len(client.train)} it trains on; {_allowed(min(map(len, own)))}"
            )
        wanted = np.bincount(labels[client.train], minlength=data.num_classes)
        there = np.bincount(labels[mine], minlength=data.num_classes)
        chosen = _drawn(labels[mine], _bounded(wanted, size, there), number, seed)
        found.append(replace(client, validation=mine[chosen]))
    return found


def from_training(
    labels: Indices,
    clients: Sequence[ClientIndices],
    *,
    size: int,
    num_classes: int,
    seed: int,
    names: Sequence[str] = (),
) -> list[ClientIndices]:
    """Validation samples that clients give up of their own training samples.

    Class shares are those of all its training samples, by largest remainders; one sample of every
    class stays to train on.

    Args:
        labels: Class of every training sample, [N].
        clients: What each client got.
        size: Validation samples per client, at least 1.
        num_classes: Number of classes C.
        seed: Seed of the draw.
        names: What errors call the clients; empty: by their numbers.

    Raises:
        DataError: A client has too few; tells which one, and what is allowed.
    """
    found = []
    counted = label_counts(labels, [client.train for client in clients], num_classes)
    spare = np.maximum(counted - 1, 0)
    for number, client in enumerate(clients):
        if size > spare[number].sum():
            who = names[number] if names else f"client {number}"
            raise DataError(
                f"{_KEY} is {size}, but {who} has "
                f"{how_many(len(client.train), 'training sample')} of "
                f"{how_many(int(np.count_nonzero(counted[number])), 'class', 'classes')}, and "
                "keeps one of each; allowed: "
                f"0 to {spare.sum(axis=1).min()}"
            )
        counts = _bounded(counted[number], size, spare[number])
        given = client.train[_drawn(labels[client.train], counts, number, seed)]
        rest = client.train[~np.isin(client.train, given)]
        found.append(replace(client, train=rest, validation=given))
    return found


def _bounded(held: Indices, size: int, available: Indices) -> Indices:
    """Counts [C] in the shares of ``held``, of the sum ``size``, none above ``available``.

    What a class lacks goes to the classes that are furthest below their quota.
    """
    quotas = held / held.sum() * size
    counts: Indices = np.minimum(round_quotas(quotas[None])[0], available)
    while counts.sum() < size:
        room = np.where(counts < available, quotas - counts, -np.inf)
        counts[room.argmax()] += 1
    return counts


def _drawn(labels: Indices, counts: Indices, client: int, seed: int) -> Indices:
    """Places in ``labels``, [n]: so many of each class, [C], at random."""
    (chosen,) = deal(labels, counts[None], numpy_stream(seed, "partition", "validation", client))
    return chosen


def _allowed(most: int) -> str:
    return (
        f"allowed: 0{f' to {most}' if most else ''}, or a smaller data.train-per-client (0: every "
        "client gives up some of its own)"
    )
