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

__all__ = ["Partitions", "cohort_size", "learn_partitions", "meet_nodes", "wait_for_nodes"]

log = logging.getLogger(__name__)


class Partitions(dict[int, int]):
    """Node id to partition id of everybody who takes part.

    Attributes:
        clients: How many clients there are: partition ids are 0 to this - 1. None: any number.
        retired: Nodes whose partition another node holds now. Flower may still list them.
        foreign: Partition id by node of nodes beyond ``clients``, which are sent nothing.
    """

    def __init__(self, *known: Mapping[int, int]) -> None:
        super().__init__(*known)
        self.clients: int | None = None
        self.retired: set[int] = set()
        self.foreign: dict[int, int] = {}

    @property
    def left_out(self) -> set[int]:
        """Nodes that Flower lists and that take no part."""
        return self.retired | self.foreign.keys()


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
    for a minute. So a newcomer that holds a known partition replaces the node that held it. A node
    with a partition that the run does not have is left out, with a warning that names it.

    Raises:
        RoundError: Two nodes not seen before claim the same partition.
    """
    aside = partitions.left_out
    unknown = [node for node in nodes if node not in partitions and node not in aside]
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
        if partitions.clients is not None and partition >= partitions.clients:
            log.warning(
                "node %d is left out: it holds partition %d; allowed: 0 to %d (data.num-clients)",
                *(node, partition, partitions.clients - 1),
            )
            partitions.foreign[node] = partition
            continue
        if partition in told:
            raise RoundError(
                f"nodes {told[partition]} and {node} both hold partition {partition}: start each "
                "with a partition-id of its own, as in --node-config 'partition-id=0 ...'"
            )
        told[partition] = node
    for partition, node in told.items():
        for old in [n for n, held in partitions.items() if held == partition]:
            log.warning("node %d replaces node %d as client %d", node, old, partition)
            del partitions[old]
            partitions.retired.add(old)
        partitions[node] = partition


def meet_nodes(grid: Grid, minimum: int, partitions: Partitions, timeout: float) -> list[int]:
    """The sorted ids of the nodes there are, once there are ``minimum`` that are not left out.

    Args:
        grid: Lists the nodes.
        minimum: How many to wait for.
        partitions: Gets the partition id of every node not seen before.
        timeout: Seconds to wait for them.

    Raises:
        RoundError: They did not come in time; or two new ones claim the same partition.
    """
    end = time.monotonic() + timeout
    while True:
        left = max(0.0, end - time.monotonic())
        try:
            nodes = wait_for_nodes(grid, minimum, left, without=partitions.left_out)
        except RoundError as error:
            if not partitions.foreign:
                raise
            odd = ", ".join(f"{node} (partition {p})" for node, p in partitions.foreign.items())
            raise RoundError(f"{error}; left out: node {odd}") from None
        before = len(partitions.foreign)
        learn_partitions(grid, nodes, partitions, timeout)
        if len(partitions.foreign) == before:
            return nodes
