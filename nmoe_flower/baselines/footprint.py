"""What a published system costs a client: bytes per round and numbers on the device.

Its own halves are asked, not a formula: the network tells its arrays, the strategy goes through
some rounds with clients that train nothing. What travels there has one number for each array; it
counts as many bytes as the array that it stands for.
"""

import contextlib
import math
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message

from nmoe_flower import records
from nmoe_flower.baselines.partial import PartialExperts, expert_of
from nmoe_flower.baselines.system import Baseline
from nmoe_flower.catalogue import BASELINES, found
from nmoe_flower.config import Config
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.own_code import is_own
from nmoe_flower.records import ARRAYS, NUM_EXAMPLES, Action, BaselineKey
from nmoe_flower.strategies import Partitions

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

    from nmoe_flower.baselines.network import ExpertNetwork

__all__ = ["SystemCost", "empty_network", "memory_of_server", "system_cost"]

_ROUNDS = 3  # from the second on a client may be sent what others have sent
_MEASURES = (BaselineKey.USAGE, BaselineKey.ACCURACIES)


@dataclass(frozen=True)
class SystemCost:
    """What a system costs, as one run of its strategy comes to.

    Attributes:
        clients: How many take part in a round.
        down: Bytes of arrays to all of them, by round.
        up: Bytes of arrays from all of them, by round.
        sent: Numbers that a client holds of what it was sent, of the client with the most.
        at_home: Numbers that it has beside: private ones, and what it trains for itself.
    """

    clients: int
    down: tuple[int, ...]
    up: tuple[int, ...]
    sent: int
    at_home: int


def system_cost(
    config: Config,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    rounds: int = _ROUNDS,
) -> SystemCost:
    """Go through rounds of ``run.system`` with stand-ins.

    Args:
        config: The run's configuration.
        image_shape: Channels, height, width.
        num_classes: How many classes there are, C.
        rounds: How many; the last one is how it goes on.

    Raises:
        ConfigError: The strategy refuses these settings.
    """
    system: Baseline = found(BASELINES[config.run.system].system)
    network = empty_network(system, config, image_shape, num_classes)
    shapes = {
        name: (tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in network.state_dict().items()
        if system.travels(name)
    }
    clients = config.data.num_clients
    strategy = system.strategy(
        config, action=Action.BASELINE, fraction_train=config.baseline.fraction_train
    )
    strategy.partitions = Partitions({client + 1: client for client in range(clients)})
    strategy.seed = config.run.seed
    if BASELINES[config.run.system].reads_labels:
        one_class = np.eye(num_classes, dtype=int)
        strategy.class_counts = {c: one_class[c % num_classes].tolist() for c in range(clients)}
    stand_ins = {
        name: np.zeros((1,) * len(shape), dtype) for name, (shape, dtype) in shapes.items()
    }
    one = {name: len(records.encode(value).data or b"") for name, value in stand_ins.items()}
    size = {
        name: one[name] + (math.prod(shape) - 1) * stand_ins[name].itemsize
        for name, (shape, _) in shapes.items()
    }
    told = {"down": [0] * rounds, "up": [0] * rounds}
    most = taking_part = 0
    arrays = records.from_numpy(stand_ins)
    app = cast("ClientApp", _untrained(strategy, shapes))
    with closing(InProcessGrid(app, clients)) as grid:
        for at in range(rounds):
            messages = list(strategy.configure_train(at + 1, arrays, ConfigRecord(), grid))
            taking_part = len(messages)
            for message in messages:
                names = [
                    _stands_for(name, size)
                    for name in records.of_kind(message.content, ArrayRecord)[ARRAYS]
                ]
                told["down"][at] += sum(size[name] for name in names)
                most = max(most, sum(math.prod(shapes[name][0]) for name in names))
            replies = list(grid.send_and_receive(messages))
            for reply in replies:
                told["up"][at] += sum(
                    size[name] for name in records.of_kind(reply.content, ArrayRecord)[ARRAYS]
                )
            updated, _ = strategy.aggregate_train(at + 1, replies)
            assert updated is not None
            arrays = updated
    return SystemCost(
        taking_part,
        tuple(told["down"]),
        tuple(told["up"]),
        most,
        system.at_home(network, image_shape),
    )


def memory_of_server(config: Config, image_shape: tuple[int, int, int], num_classes: int) -> int:
    """Bytes of what the server of ``run.system`` holds: arrays of the network, and its own.

    One expert is built, without numbers, however many there are to be.

    Args:
        config: The run's configuration.
        image_shape: Channels, height, width.
        num_classes: How many classes there are, C.
    """
    system: Baseline = found(BASELINES[config.run.system].system)
    one = {**config.flat(), "baseline.experts": 1, "baseline.held": 1}
    network = empty_network(system, Config.parse(one), image_shape, num_classes)
    experts, copies = system.experts(config), system.server_copies(config)
    size = system.server_extra(config)
    for name, value in network.state_dict().items():
        times = 1 if expert_of(name) is None else experts
        if system.travels(name):
            size += value.nbytes * times * (copies if name.startswith("expert.") else 1)
    return size


def empty_network(
    system: Baseline, config: Config, image_shape: tuple[int, int, int], num_classes: int
) -> "ExpertNetwork":
    """A system's network whose arrays have shapes and no numbers: nothing is allocated.

    Args:
        system: The system.
        config: The run's configuration.
        image_shape: Channels, height, width.
        num_classes: How many classes there are, C.
    """
    import torch

    from nmoe_flower.models import configured_extractor

    given = config.extractor.is_given
    latent_dim = configured_extractor(config, image_shape).latent_dim if given else 0
    # A backbone of one's own may do as it likes with its weights, so it is built as it will be.
    own = is_own(config.extractor.backbone)
    with contextlib.nullcontext() if own else torch.device("meta"):
        return system.network(config, image_shape, num_classes, latent_dim=latent_dim)


def _untrained(strategy: PartialExperts, travelling: Collection[str]) -> Callable[..., Message]:
    """A client that sends back what it was sent, but for what it was only to read."""
    measures = (*_MEASURES, BaselineKey.MASSES) if strategy.masses else _MEASURES

    def answer(message: Message, context: Context) -> Message:
        arrays = records.of_kind(message.content, ArrayRecord)[ARRAYS]
        owners = {strategy.owner(name) for name in arrays}
        held = owners - {None}
        alike = [(e in held) / max(1, len(held)) for e in range(strategy.experts)]
        return records.reply(
            message,
            metrics={NUM_EXAMPLES: 1, **dict.fromkeys(measures, alike)},
            arrays={ARRAYS: ArrayRecord({n: v for n, v in arrays.items() if n in travelling})},
        )

    return answer


def _stands_for(name: str, known: Collection[str]) -> str:
    """The array of the network that one on the way is like: ``peer.0.expert.0.bias`` is a bias."""
    while name not in known:
        _, dot, name = name.partition(".")
        assert dot
    return name
