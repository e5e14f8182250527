"""A device that comes back is the same client under another node id."""

import logging

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from nmoe_flower.client_app import app
from nmoe_flower.clients.joining import tell_partition as tell
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import RoundError
from nmoe_flower.records import reply
from nmoe_flower.strategies import Partitions, learn_partitions, meet_nodes, wait_for_nodes


class Coming(InProcessGrid):
    """Nodes hold the partitions given; only ``listed`` nodes are shown, the ``dead`` are silent."""

    def __init__(self, partitions: list[int], *, listed: set[int]) -> None:
        self.asked: list[int] = []
        client = ClientApp()

        @client.query("identity")
        def identity(message: Message, context: Context) -> Message:
            self.asked.append(context.node_id)
            if context.node_id in self.dead:
                raise RuntimeError("gone")
            return tell(message, context)

        super().__init__(client, len(partitions))
        self.listed, self.dead = listed, set[int]()
        for node, partition in enumerate(partitions, start=1):
            context = self._backend._nodes.context(node, RecordDict())  # type: ignore[union-attr]
            context.node_config["partition-id"] = partition
            self._backend._contexts[node] = context  # type: ignore[union-attr]

    def get_node_ids(self) -> list[int]:
        return sorted(self.listed)


def test_a_returning_node_replaces_the_one_it_was(caplog: pytest.LogCaptureFixture) -> None:
    grid, known = Coming([0, 1, 1], listed={1, 2}), Partitions()
    learn_partitions(grid, [1, 2], known, 5.0)
    assert known == {1: 0, 2: 1}
    grid.listed = {1, 2, 3}  # Flower still lists the dead node 2
    with caplog.at_level(logging.WARNING):
        learn_partitions(grid, [1, 2, 3], known, 5.0)
    assert known == {1: 0, 3: 1}
    assert "node 3 replaces node 2 as client 1" in caplog.text
    learn_partitions(grid, [1, 2, 3], known, 5.0)
    assert known == {1: 0, 3: 1}
    assert grid.asked == [1, 2, 3]  # nobody twice, and the dead one never again


def test_the_replaced_node_is_not_counted_while_flower_lists_it() -> None:
    grid = Coming([0, 1, 1], listed={1, 2, 3})
    assert wait_for_nodes(grid, 2, 1.0, without={2}) == [1, 3]
    with pytest.raises(RoundError, match="2 of 3 nodes connected"):
        wait_for_nodes(grid, 3, 0.0, without={2})


def test_a_node_that_died_before_the_start_does_not_stand_in_the_way() -> None:
    grid, known = Coming([0, 1, 1], listed={1, 2, 3}), Partitions()
    grid.dead = {2}
    learn_partitions(grid, [1, 2, 3], known, 5.0)
    assert known == {1: 0, 3: 1}


@pytest.mark.parametrize(
    "config", [{}, {"partition-id": "one"}, {"partition-id": -1}, {"partition-id": 0.5}], ids=str
)
def test_a_node_that_tells_no_partition_is_left_out(
    config: dict[str, int | str | float], caplog: pytest.LogCaptureFixture
) -> None:
    client = ClientApp()

    @client.query("identity")
    def identity(message: Message, context: Context) -> Message:
        if context.node_id == 2:
            return reply(message, metrics={"num-examples": 0}, config=config)
        return tell(message, context)

    known = Partitions()
    learn_partitions(InProcessGrid(client, 3), [1, 2, 3], known, 5.0)
    assert known == {1: 0, 3: 2}
    assert "node 2 told no partition id of at least 0" in caplog.text


def test_two_newcomers_with_one_partition_are_a_mistake() -> None:
    grid, known = Coming([0, 1, 1], listed={1, 2, 3}), Partitions()
    told = "nodes 2 and 3 both hold partition 1: start each with a partition-id of its own"
    with pytest.raises(RoundError, match=told):
        learn_partitions(grid, [1, 2, 3], known, 5.0)


def test_a_node_of_another_partition_stands_in_for_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is asked once, named once, and not counted among those that are waited for."""
    grid, known = Coming([0, 5, 1], listed={1, 2}), Partitions()
    known.clients = 2
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(RoundError, match=r"1 of 2 nodes .* left out: node 2 \(partition 5\)"),
    ):
        meet_nodes(grid, 2, known, 0.1)
    assert "node 2 is left out: it holds partition 5; allowed: 0 to 1" in caplog.text
    grid.listed = {1, 2, 3}
    assert meet_nodes(grid, 2, known, 5.0) == [1, 3]
    assert known == {1: 0, 3: 1}
    assert grid.asked == [1, 2, 3]


def test_the_real_app_tells_its_partition_without_opening_data() -> None:
    with InProcessGrid(app, 2, run_config={"data.dataset": "no-such-set"}) as grid:
        known = Partitions()
        learn_partitions(grid, [1, 2], known, 5.0)
    assert known == {1: 0, 2: 1}
