"""Who takes part: waiting for nodes, learning their partitions, the size of a cohort."""

import logging
import time
from collections.abc import Callable, Collection, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from nmoe_flower import records
from nmoe_flower.cohorts import cohort_size
from nmoe_flower.engine import StreamingGrid
from nmoe_flower.errors import RoundError
from nmoe_flower.records import Action

__all__ = ["Partitions", "cohort_size", "learn_partitions", "wait_for_nodes"]

log = logging.getLogger(__name__)


class Partitions(dict[int, int]):
    """Node id to partition id of everybody who takes part.

    Attributes:
        retired: Nodes whose partition another node holds now. Flower may still list them.
    """

    def __init__(self, *known: Mapping[int, int]) -> None:
        super().__init__(*known)
        self.retired: set[int] = set()


def wait_for_nodes(
    grid: Grid,
    minimum: int,
    timeout: float,
    *,
    without: Collection[int] = (),
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[int]:
    """Return the sorted node ids, those of ``without`` left out, once there are ``minimum``.

    Raises:
        RoundError: They did not come within ``timeout`` seconds (Flower itself waits for ever).
    """
    start, told = clock(), 0.0
    while len(nodes := sorted(set(grid.get_node_ids()) - set(without))) < minimum:
        waited = clock() - start
        if waited >= timeout:
            raise RoundError(
                f"{len(nodes)} of {minimum} nodes connected within {timeout:g} s; "
                "start more nodes or lower the minimum"
            )
        if waited - told >= 2.0:
            told = waited
            log.warning("waiting for nodes: %d of %d after %.0f s", len(nodes), minimum, waited)
        sleep(0.05)
    return nodes


def learn_partitions(grid: Grid, nodes: list[int], partitions: Partitions, timeout: float) -> None:
    """Ask every node not seen before for its partition id and add it to ``partitions``.

    A device whose process was killed comes back as another node, while Flower may list the old one
    for a minute. So a newcomer that holds a known partition replaces the node that held it.

    Raises:
        RoundError: Two nodes not seen before claim the same partition.
    """
    unknown = [node for node in nodes if node not in partitions and node not in partitions.retired]
    if not unknown:
        return
    messages = [Message(RecordDict(), node, Action.IDENTITY) for node in unknown]
    told: dict[int, int] = {}
    for answer in StreamingGrid.around(grid).send_and_receive(messages, timeout=timeout):
        node = answer.metadata.src_node_id
        if answer.has_error():
            log.warning("node %d did not tell its partition: %s", node, answer.error.reason)
            continue
        partition = records.config_of(answer).get(records.PARTITION_ID)
        if not isinstance(partition, int) or partition < 0:
            log.warning("node %d told no partition id of at least 0 but %r", node, partition)
            continue
        if partition in told:
            raise RoundError(f"nodes {told[partition]} and {node} both hold partition {partition}")
        told[partition] = node
    for partition, node in told.items():
        for old in [n for n, held in partitions.items() if held == partition]:
            log.warning("node %d replaces node %d as client %d", node, old, partition)
            del partitions[old]
            partitions.retired.add(old)
        partitions[node] = partition
