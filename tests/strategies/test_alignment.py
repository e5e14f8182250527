"""ExpertAlignment over an in-process grid: who gets what, what becomes of it, who is dropped."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from nmoe_flower import records
from nmoe_flower.alignment import Assigner, Capacity, Clock, DeviceProfile, Event, ExpertCost, World
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import CheckpointError, ConfigError, RoundError
from nmoe_flower.records import Action
from nmoe_flower.strategies import (
    AdamW,
    AveragedGate,
    ExpertAlignment,
    TravellingGate,
    UnsharedGate,
)

EXPERTS = 3
START = {
    "extractor.w": np.zeros(4, np.float32),
    "gate.head.weight": np.zeros((EXPERTS, 2), np.float32),
    **{f"experts.{e}.w": np.full(100, 10.0 * e, np.float32) for e in range(EXPERTS)},
}
DEVICE = DeviceProfile(compute=1e6, memory=1e6, download=1e6, upload=1e6)
Change = Callable[[RecordDict], None]


def app_of(changes: dict[int, Change] | None = None, seen: list[Any] | None = None) -> ClientApp:
    """Client i adds i + 1 to all it gets; it has i + 1 samples and loss 0.1 (i + 1)."""
    app = ClientApp()

    @app.train()
    @app.train("aligned")
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        arrays = records.to_numpy(message.content.array_records["arrays"])
        told = records.config_of(message)
        if seen is not None:
            seen.append((partition, set(arrays), dict(told)))
        held = list(told["expert-ids"])
        answer = records.reply(
            message,
            metrics={
                "num-examples": partition + 1,
                "loss": 1.0,
                "expert-ids": held,
                "expert-losses": [0.1 * (partition + 1)] * len(held),
                "expert-samples": [float(partition + 1)] * len(held),
                "expert-shares": [1 / EXPERTS] * EXPERTS,
                "seconds": 2.0,
            },
            arrays={
                "arrays": records.from_numpy({n: v + partition + 1 for n, v in arrays.items()})
            },
        )
        if changes and partition in changes:
            changes[partition](answer.content)
        return answer

    @app.query("probe")
    def probe(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        if seen is not None:
            arrays = message.content.array_records["arrays"]
            seen.append((partition, set(arrays), "probe"))
        shares = {"num-examples": 1, "expert-shares": [0.0, 0.0, 1.0]}
        answer = records.reply(message, metrics=shares)
        if changes and partition in changes:
            changes[partition](answer.content)
        return answer

    @app.query("identity")
    def identity(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        return records.reply(
            message, metrics={"num-examples": 0}, config={"partition-id": partition}
        )

    return app


def strategy_of(clients: int = 3, assigner: dict[str, Any] | None = None, **options: Any) -> Any:
    knowing = Assigner(clients, EXPERTS, **(assigner or {}))
    return ExpertAlignment(
        knowing, action=Action.ALIGNMENT, min_available_nodes=1, connect_timeout=5.0, **options
    )


def play(
    strategy: Any, grid: InProcessGrid, server_round: int, arrays: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    record = records.from_numpy(arrays)
    messages = list(strategy.configure_train(server_round, record, ConfigRecord(), grid))
    updated, metrics = strategy.aggregate_train(server_round, grid.send_and_receive(messages))
    assert metrics is not None
    strategy.metrics = dict(metrics)
    return records.to_numpy(updated)


def test_every_client_gets_only_its_experts() -> None:
    seen: list[Any] = []
    with InProcessGrid(app_of(seen=seen), 3) as grid:
        strategy = strategy_of()
        play(strategy, grid, 1, START)
    assert len(seen) == 3
    for partition, names, told in seen:
        (held,) = np.flatnonzero(strategy.decision.chosen[partition])
        assert names == {"extractor.w", "gate.head.weight", f"experts.{held}.w"}
        assert list(told["expert-ids"]) == [held]
        assert list(told["experts"]) == [str(held)]


def test_bytes_per_client_are_those_of_its_part() -> None:
    """At most extractor + gate + k experts, and one per cent."""
    with InProcessGrid(app_of(), 3) as grid:
        strategy = strategy_of(assigner={"capacity": [1, 2, 0]})
        play(strategy, grid, 1, START)
    wire = {n: len(records.encode(value).data) for n, value in START.items()}
    shared = wire["extractor.w"] + wire["gate.head.weight"]
    for client, count in enumerate((1, 2, 0)):
        allowed = 1.01 * (shared + count * wire["experts.0.w"]) if count else 0
        assert strategy.traffic.total[client, 0] <= allowed
        assert strategy.traffic.total[client, 1] <= allowed
    # 40 bytes are shared, 400 an expert's; the first client's part is more by the headers
    wanted = strategy.traffic.total[:2].max(axis=1) / np.array([440, 840])
    assert strategy.metrics["bytes-to-part"] == pytest.approx(wanted.max())
    assert strategy.last_exchange.bytes_down == strategy.traffic.total[:, 0].sum()
    assert strategy.last_exchange.bytes_up == strategy.traffic.total[:, 1].sum()


def test_experts_are_means_over_their_holders_and_the_untouched_stay() -> None:
    """All three prefer expert 0. Client i adds i + 1 with weight i + 1: (1 + 4 + 9) / 6 = 7 / 3."""
    with InProcessGrid(app_of(), 3) as grid:
        strategy = strategy_of(assigner={"policy": "greedy"})
        strategy.assigner.fitness.values[:, 0] = 0.9
        updated = play(strategy, grid, 1, START)
    np.testing.assert_allclose(updated["experts.0.w"], 7 / 3, rtol=1e-6)
    np.testing.assert_allclose(updated["extractor.w"], 7 / 3, rtol=1e-6)
    np.testing.assert_allclose(updated["gate.head.weight"], 7 / 3, rtol=1e-6)
    for expert in (1, 2):
        assert updated[f"experts.{expert}.w"].tolist() == START[f"experts.{expert}.w"].tolist()
    assert strategy.assigner.usage.total.tolist() == [6.0, 0.0, 0.0]


def test_rows_of_the_gate_travel_with_their_experts() -> None:
    """As they do: clients 0 and 2 hold expert 0, so row 0 becomes (1 x 1 + 3 x 3) / 4 = 2.5."""
    with InProcessGrid(app_of(), 3) as grid:
        strategy = strategy_of(assigner={"policy": "greedy"}, gate=TravellingGate())
        strategy.assigner.fitness.values[[0, 2], 0] = 0.9
        strategy.assigner.fitness.values[1, 1] = 0.9
        updated = play(strategy, grid, 1, START)
    assert updated["gate.head.weight"].tolist() == [[2.5, 2.5], [2, 2], [0, 0]]
    assert updated["experts.0.w"][0] == 2.5


def test_a_client_without_examples_moves_no_row_of_the_gate() -> None:
    def empty(content: RecordDict) -> None:
        content.metric_records["metrics"]["num-examples"] = 0

    with InProcessGrid(app_of({2: empty}), 3) as grid:
        strategy = strategy_of(assigner={"policy": "greedy"}, gate=TravellingGate())
        strategy.assigner.fitness.values[[0, 2], 0] = 0.9
        strategy.assigner.fitness.values[1, 1] = 0.9
        updated = play(strategy, grid, 1, START)
    assert updated["gate.head.weight"].tolist() == [[1, 1], [2, 2], [0, 0]]


def test_the_server_steps_along_the_mean_change_of_the_gate() -> None:
    """Clients add 1, 2, 3 with these weights: the change is 7 / 3. AdamW's first step is its sign
    times the rate, its second the same (equal changes); experts and extractor are just means."""
    with InProcessGrid(app_of(), 3) as grid:
        strategy = strategy_of(gate=AveragedGate(AdamW(), rate=0.25))
        first = play(strategy, grid, 1, START)
        second = play(strategy, grid, 2, first)
    np.testing.assert_allclose(first["gate.head.weight"], 0.25, rtol=1e-5)
    np.testing.assert_allclose(second["gate.head.weight"], 0.5, rtol=1e-5)
    np.testing.assert_allclose(first["extractor.w"], 7 / 3, rtol=1e-6)


def test_a_local_gate_is_never_sent() -> None:
    seen: list[Any] = []
    with InProcessGrid(app_of(seen=seen), 3) as grid:
        updated = play(strategy_of(gate=UnsharedGate()), grid, 1, START)
    assert all("gate.head.weight" not in names for _, names, _ in seen)
    assert not updated["gate.head.weight"].any()


def spoil(name: str, value: Any) -> Change:
    def change(content: RecordDict) -> None:
        content.metric_records["metrics"][name] = value

    return change


def no_gate(content: RecordDict) -> None:
    arrays = content.array_records["arrays"]
    content["arrays"] = ArrayRecord({n: a for n, a in arrays.items() if n[0] != "g"})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (spoil("expert-ids", [2]), "feedback for expert 2, which it was not assigned"),
        (spoil("expert-ids", [7]), "feedback for expert 7; there are 3"),
        (spoil("expert-losses", [float("nan")]), "the feedback 'expert-losses' is [nan]"),
        (spoil("expert-samples", [-1.0]), "allowed: 0 or more"),
        (spoil("expert-shares", [1.0, 1.0, 1.0]), "allowed: 3 parts of 1"),
        (spoil("seconds", 1e-12), "is impossible; allowed: up to 1e+16 FLOP/s"),
        (spoil("seconds", 0.0), "is impossible"),
        (no_gate, "array names differ: missing ['gate.head.weight']"),
    ],
)
def test_unusable_feedback_drops_the_client_by_name(change: Change, reason: str) -> None:
    """The other two are averaged, and nothing learns from the bad one."""
    with InProcessGrid(app_of({1: change}), 3) as grid:
        strategy = strategy_of(assigner={"policy": "greedy"}, flops=1e6)
        strategy.assigner.fitness.values[:, 0] = 0.9
        before = strategy.assigner.fitness.values[1].copy()
        updated = play(strategy, grid, 1, START)
    (failure,) = strategy.last_exchange.failures
    assert failure["partition"] == 1
    assert reason in failure["reason"]
    np.testing.assert_allclose(updated["experts.0.w"], 10 / 4, rtol=1e-6)  # (1 + 9) / (1 + 3)
    assert strategy.assigner.times[1].sum() == 0
    assert strategy.assigner.usage.total.tolist() == [4.0, 0.0, 0.0]
    decayed = 0.5 + 0.98 * (before - 0.5)
    np.testing.assert_allclose(strategy.assigner.fitness.values[1], decayed, rtol=1e-12)


def test_capacity_zero_is_not_selected_and_says_so() -> None:
    seen: list[Any] = []
    with InProcessGrid(app_of(seen=seen), 3) as grid:
        strategy = strategy_of(assigner={"capacity": [2, 0, 1]})
        play(strategy, grid, 1, START)
    assert {partition for partition, _, _ in seen} == {0, 2}
    lines = {line["client"]: line for line in strategy.audit["clients"]}
    idle = {"client": 1, "experts": [], "capacity": 0, "why": "capacity 0"}
    assert lines[1] == {**idle, "bytes-down": 0, "bytes-up": 0}
    for row in (0, 2):
        sizes = lines[row]["bytes-down"], lines[row]["bytes-up"]
        assert sizes == tuple(strategy.traffic.total[row].tolist())
    assert len(lines[0]["experts"]) == len(lines[0]["fitness"]) == len(lines[0]["usage"]) == 2
    assert {"deficit", "desirability", "seconds", "passed-over"} <= lines[0].keys()


def test_nobody_can_hold_anything() -> None:
    with InProcessGrid(app_of(), 2) as grid, pytest.raises(ConfigError, match="hold any expert"):
        play(strategy_of(2, assigner={"capacity": 0}), grid, 1, START)


def test_other_numbers_of_experts_are_refused() -> None:
    with InProcessGrid(app_of(), 2) as grid:
        strategy = ExpertAlignment(Assigner(2, 5), action=Action.ALIGNMENT)
        with pytest.raises(RoundError, match="3 experts sent, 5 assigned"):
            play(strategy, grid, 1, START)
        with pytest.raises(RoundError, match="no experts"):
            play(strategy_of(2), grid, 1, {"w": np.zeros(1)})


def test_fewer_slots_than_experts_take_turns() -> None:
    """Two clients, three experts, one each: the deficit brings every expert its turn."""
    with InProcessGrid(app_of(), 2) as grid:
        strategy, arrays = strategy_of(2), START
        for server_round in range(1, 10):
            arrays = play(strategy, grid, server_round, arrays)
    assert (strategy.assigner.times.sum(axis=0) >= 3).all()


@pytest.mark.parametrize("gate", [None, TravellingGate, lambda: AveragedGate(AdamW(), rate=0.1)])
def test_resumed_from_state_it_goes_on_bit_by_bit(gate: Any) -> None:
    def fresh() -> Any:
        world = World([DEVICE] * 3, events=[Event(2, 0, {}, online=False)], seed=3)
        return strategy_of(
            assigner={"policy": "sequential", "seed": 5},
            world=world,
            gate=gate() if gate else None,
        )

    with InProcessGrid(app_of(), 3) as grid:
        straight, arrays = fresh(), START
        for server_round in (1, 2, 3, 4):
            arrays = play(straight, grid, server_round, arrays)
            if server_round == 2:
                saved, kept = {k: v.copy() for k, v in straight.state().items()}, arrays
        resumed = fresh()
        resumed.load_state(saved)
        for server_round in (3, 4):
            kept = play(resumed, grid, server_round, kept)
    assert {n: v.tobytes() for n, v in kept.items()} == {n: v.tobytes() for n, v in arrays.items()}
    first, second = straight.state(), resumed.state()
    assert {k: v.tobytes() for k, v in first.items()} == {k: v.tobytes() for k, v in second.items()}
    assert straight.audit == resumed.audit


def test_the_state_of_another_federation_is_refused() -> None:
    strategy = strategy_of()
    other = ExpertAlignment(Assigner(3, 4)).state()
    with pytest.raises(CheckpointError, match="does not fit"):
        strategy.load_state(other)


def test_offline_clients_are_not_asked_and_come_back() -> None:
    events = [Event(2, 1, {}, online=False), Event(3, 1, {}, online=True)]
    with InProcessGrid(app_of(), 3) as grid:
        strategy, arrays = strategy_of(world=World([DEVICE] * 3, events=events)), START
        clients = []
        for server_round in (1, 2, 3):
            arrays = play(strategy, grid, server_round, arrays)
            clients.append(strategy.last_exchange.clients)
            if server_round == 2:
                assert [line["client"] for line in strategy.audit["clients"]] == [0, 2]
                assert strategy.audit["of"] == 3
    assert clients == [[0, 1, 2], [0, 2], [0, 1, 2]]


def test_a_device_that_is_offline_at_first_is_not_taken_for_the_next() -> None:
    """A plain app's clients are the world's devices in the order they are met, there or not."""
    events = [Event(1, 1, {}, online=False), Event(2, 1, {}, online=True)]
    with InProcessGrid(app_of(), 3) as grid:
        world, nodes = World([DEVICE] * 3, events=events), list(grid.get_node_ids())
        strategy = ExpertAlignment(Assigner(3, EXPERTS), world=world, min_available_nodes=1)
        arrays = play(strategy, grid, 1, START)
        assert strategy.last_exchange.clients == [nodes[0], nodes[2]]
        play(strategy, grid, 2, arrays)
        assert strategy.last_exchange.clients == nodes


def test_a_round_in_which_nobody_is_online_says_so() -> None:
    events = [Event(2, client, {}, online=False) for client in range(3)]
    with InProcessGrid(app_of(), 3) as grid:
        strategy = strategy_of(world=World([DEVICE] * 3, events=events))
        arrays = play(strategy, grid, 1, START)
        with pytest.raises(RoundError, match="round 2: none of 3 clients is online"):
            play(strategy, grid, 2, arrays)


def test_the_audit_is_as_long_as_the_cohort_however_many_clients_there_are() -> None:
    """3 of 1,000 clients are drawn: three lines, and nothing of the others."""
    sizes = []
    for known in (3, 1000):
        with InProcessGrid(app_of(), 3) as grid:
            strategy = strategy_of(assigner={"capacity": 1}, clients=known)
            play(strategy, grid, 1, START)
        assert [line["client"] for line in strategy.audit["clients"]] == [0, 1, 2]
        sizes.append(len(json.dumps(strategy.audit)))
    assert sizes[1] <= sizes[0] + 100


def test_who_is_late_is_dropped_and_the_clock_stops_at_the_deadline() -> None:
    """1e6 FLOP/s and 1 FLOP/sample would do; device 2 has 1 byte/s and needs 500 s and more."""
    slow = DeviceProfile(compute=1e6, memory=1e6, download=1.0, upload=1.0)
    with InProcessGrid(app_of(), 3) as grid:
        strategy = strategy_of(world=World([DEVICE, DEVICE, slow]), clock=Clock(deadline=5.0))
        play(strategy, grid, 1, START)
    (failure,) = strategy.last_exchange.failures
    assert failure["partition"] == 2
    assert "the deadline is 5 s" in failure["reason"]
    assert strategy.clock.elapsed == 5.0


def test_a_client_that_shows_less_speed_than_it_claims_gets_fewer_experts() -> None:
    """It claims 1e6 FLOP/s and shows the seconds of a hundredth of that."""
    cost = ExpertCost(size=1.0, memory=1.0, flops=1e5)
    capacity = Capacity(3, cost, deadline=10.0, most=3)
    claim = {"compute": 1e6, "memory": 1e6, "download": 1e6, "upload": 1e6, "latency": 0.0}
    capacity.report([0, 1, 2], **{key: [value] * 3 for key, value in claim.items()})
    real = DeviceProfile(compute=1e4, memory=1e6, download=1e6, upload=1e6)
    with InProcessGrid(app_of(), 3) as grid:
        strategy = strategy_of(
            assigner={"capacity": capacity, "samples": 3.0},
            world=World([DEVICE, DEVICE, real]),
            flops=1e5,
        )
        assert strategy.assigner.capacities().tolist() == [3, 3, 3]
        arrays = play(strategy, grid, 1, START)
        # 3 experts x 3 samples x 1e5 / 1e4 = 90 s where 0.9 s were promised: 10 s are for none
        assert strategy.assigner.capacities().tolist()[2] == 0
        play(strategy, grid, 2, arrays)
    assert strategy.last_exchange.clients == [0, 1]


def test_who_is_late_is_asked_for_less_from_then_on() -> None:
    """That it was late is what its claim is corrected by; else it would be late for ever."""
    cost = ExpertCost(size=1.0, memory=1.0, flops=1e5)
    capacity = Capacity(3, cost, deadline=10.0, most=3)
    claim = {"compute": 1e6, "memory": 1e6, "download": 1e6, "upload": 1e6, "latency": 0.0}
    capacity.report([0, 1, 2], **{key: [value] * 3 for key, value in claim.items()})
    slow = DeviceProfile(compute=6e4, memory=1e6, download=1e6, upload=1e6)  # 5 s an expert
    with InProcessGrid(app_of(), 3) as grid:
        strategy = strategy_of(
            assigner={"capacity": capacity, "samples": 3.0},
            world=World([DEVICE, DEVICE, slow]),
            clock=Clock(deadline=10.0),
            flops=1e5,
        )
        arrays = play(strategy, grid, 1, START)
        (failure,) = strategy.last_exchange.failures  # 3 experts x 5 s
        assert failure["partition"] == 2
        assert "late: 15 s, the deadline is 10 s" in failure["reason"]
        assert strategy.assigner.fitness.values[2].tolist() == [0.5] * 3  # as it began
        assert strategy.assigner.capacities().tolist() == [3, 3, 1]
        play(strategy, grid, 2, arrays)
    assert strategy.last_exchange.clients == [0, 1, 2]


def test_newcomers_are_probed_without_experts() -> None:
    """It joins in round 2; its gate shares say expert 2, so that is what it gets."""
    seen: list[Any] = []
    with InProcessGrid(app_of(seen=seen), 3) as grid:
        strategy, present = strategy_of(1, assigner={"policy": "greedy"}, min_train_nodes=1), [1]
        ids = grid.get_node_ids
        grid.get_node_ids = lambda: [n for n in ids() if n in present]  # type: ignore[method-assign]
        arrays = play(strategy, grid, 1, START)
        assert not any(told == "probe" for _, _, told in seen)
        present.append(3)
        seen.clear()
        play(strategy, grid, 2, arrays)
    assert (2, {"extractor.w", "gate.head.weight"}, "probe") in seen
    assert strategy.decision.chosen[2].tolist() == [False, False, True]
    assert strategy.traffic.total.shape == (3, 2)


@pytest.mark.parametrize(
    ("shares", "reason"),
    [([1.0], "client 2: probed rewards"), ([float("nan")] * 3, "rewards [nan, nan, nan] are not")],
)
def test_a_probe_that_cannot_be_used_is_named_and_changes_nothing(
    shares: list[float], reason: str
) -> None:
    world = World(
        [DEVICE] * 3, events=[Event(1, 2, {}, online=False), Event(2, 2, {}, online=True)]
    )
    with InProcessGrid(app_of({2: spoil("expert-shares", shares)}), 3) as grid:
        strategy = strategy_of(world=world)
        arrays = play(strategy, grid, 1, START)
        before = strategy.assigner.fitness.values[2].copy()
        list(strategy.configure_train(2, records.from_numpy(arrays), ConfigRecord(), grid))
    (failure,) = strategy.last_exchange.failures
    assert failure["partition"] == 2
    assert reason in failure["reason"]
    assert strategy.assigner.fitness.values[2].tolist() == before.tolist()


def test_it_runs_in_an_app_with_plain_messages() -> None:
    with InProcessGrid(app_of(), 4) as grid:
        strategy = ExpertAlignment(Assigner(4, EXPERTS, capacity=2), fraction_evaluate=0.0)
        result = strategy.start(
            grid, initial_arrays=records.from_numpy(START), num_rounds=3, timeout=30
        )
    assert set(result.arrays) == set(START)
    assert strategy.assigner.times.sum() == 4 * 2 * 3


def test_the_audit_is_the_same_whatever_the_order_of_replies() -> None:
    with InProcessGrid(app_of(), 3) as grid:
        forward, backward = strategy_of(), strategy_of()
        for strategy, step in ((forward, 1), (backward, -1)):
            record = records.from_numpy(START)
            messages = list(strategy.configure_train(1, record, ConfigRecord(), grid))
            replies = list(grid.send_and_receive(messages))[::step]
            strategy.aggregate_train(1, replies)
    assert forward.audit == backward.audit
    states = [s.assigner.state() for s in (forward, backward)]
    assert all(states[0][k].tobytes() == states[1][k].tobytes() for k in states[0])
