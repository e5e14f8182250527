"""What holds of the server half of every published system: bad replies, bad numbers, too much."""

import re
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe_flower import records
from nmoe_flower.baselines import Baseline, PartialExperts, memory_of_server
from nmoe_flower.baselines.fedjets import ChosenExperts
from nmoe_flower.baselines.fedmoe import UsedExperts
from nmoe_flower.baselines.fedmoe_da import MixedExperts
from nmoe_flower.baselines.flex_moe import FlexExperts
from nmoe_flower.baselines.network import ExpertNetwork
from nmoe_flower.baselines.pfedmoap import PooledHeads
from nmoe_flower.catalogue import BASELINES, found
from nmoe_flower.config import Config
from nmoe_flower.data import configured_images, configured_partition
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import ConfigError
from nmoe_flower.models import configured_extractor
from nmoe_flower.records import ARRAYS, NUM_EXAMPLES, BaselineKey
from nmoe_flower.rehearsal import rehearse
from nmoe_flower.strategies import Partitions, Usable

EXPERTS = 3
SMALL = {
    "data.num-clients": 3,
    "extractor.backbone": "mlp",
    "extractor.widths": "4",
    "expert.hidden": "",
    "baseline.experts": EXPERTS,
    "baseline.anchors": False,
}
NEEDS = {
    "fedmoe": [BaselineKey.USAGE],
    "fedjets": [BaselineKey.USAGE],
    "fedmix": [BaselineKey.MASSES],
    "flex-moe": [BaselineKey.MASSES, BaselineKey.ACCURACIES],
}
Arrays = dict[str, np.ndarray]
Answer = tuple[Arrays, dict[str, Any]]


def config_of(system: str, **more: Any) -> Config:
    given = {"extractor.method": "pretrained", "extractor.backbone": "tests.given_backbone:Tiny",
             "extractor.cut": "low:2, high:1", "extractor.widths": ""}  # fmt: skip
    needed = given if BASELINES[system].needs_given else {}
    return Config.parse({**SMALL, **needed, "run.system": system, **more})


def first_arrays(config: Config) -> Arrays:
    system = found(BASELINES[config.run.system].system)
    shape, given = (1, 4, 4), config.extractor.is_given
    latent_dim = configured_extractor(config, shape).latent_dim if given else 0
    state = system.network(config, shape, 2, latent_dim=latent_dim).state_dict()
    return {name: value.numpy() for name, value in state.items() if system.travels(name)}


def good(system: str, strategy: PartialExperts, arrays: Arrays, client: int) -> Answer:
    """What a client sends that has moved a little."""
    owners = {strategy.owner(name) for name in arrays}
    held = np.array([float(expert in owners) for expert in range(strategy.experts)])
    shares = held / max(held.sum(), 1)
    measures = {
        BaselineKey.USAGE: shares,
        BaselineKey.MASSES: (1 + client) * shares,
        BaselineKey.ACCURACIES: held,
    }
    moved = {name: value + np.float32(1 + client) / 8 for name, value in arrays.items()}
    told = {key: measures[key].tolist() for key in NEEDS.get(system, ())}
    return moved, {NUM_EXAMPLES: 1 + client, **told}


def play(
    system: str, spoil: Callable[[Arrays, dict[str, Any]], Answer], rounds: int = 2
) -> tuple[PartialExperts, Arrays]:
    """Rounds of three clients, of which client 2 sends something else."""
    config = config_of(system)
    arrays = first_arrays(config)
    strategy = found(BASELINES[system].system).strategy(config)
    strategy.partitions = Partitions({1: 0, 2: 1, 3: 2})
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        sent = records.to_numpy(message.content.array_records[ARRAYS])
        mine = {name: value for name, value in sent.items() if name in arrays}
        answer = good(system, strategy, mine, client)
        given, metrics = spoil(*answer) if client == 2 else answer
        return records.reply(message, metrics=metrics, arrays={ARRAYS: records.from_numpy(given)})

    now: ArrayRecord = records.from_numpy(arrays)
    with InProcessGrid(app, 3) as grid:
        for server_round in range(1, rounds + 1):
            sent = list(strategy.configure_train(server_round, now, ConfigRecord(), grid))
            replies = sorted(grid.send_and_receive(sent), key=lambda r: r.metadata.src_node_id)
            updated, _ = strategy.aggregate_train(server_round, replies)
            assert updated is not None
            now = updated
    return strategy, records.to_numpy(now)


def raising(arrays: Arrays, metrics: dict[str, Any]) -> Answer:
    raise OSError("disk full")


def wider(arrays: Arrays, metrics: dict[str, Any]) -> Answer:
    return {name: np.repeat(value, 2, axis=0) for name, value in arrays.items()}, metrics


def deeper(arrays: Arrays, metrics: dict[str, Any]) -> Answer:
    return arrays | {"trunk.another.weight": np.zeros((2, 2), np.float32)}, metrics


def foreign(arrays: Arrays, metrics: dict[str, Any]) -> Answer:
    return arrays | {"expert.77.weight": np.zeros((2, 2), np.float32)}, metrics


def not_finite(arrays: Arrays, metrics: dict[str, Any]) -> Answer:
    first = next(iter(arrays))
    return arrays | {first: np.full_like(arrays[first], np.inf)}, metrics


BAD = [
    (raising, "disk full"),
    (wider, r"shape \("),
    (deeper, "'trunk.another.weight' was not assigned"),
    (foreign, "'expert.77.weight' was not assigned"),
    (not_finite, "NaN|infinite|finite"),
]


@pytest.mark.parametrize("system", BASELINES)
@pytest.mark.parametrize(("spoil", "told"), BAD, ids=lambda one: getattr(one, "__name__", ""))
def test_a_client_that_changes_what_it_was_sent_is_dropped_and_teaches_nothing(
    system: str, spoil: Callable[[Arrays, dict[str, Any]], Answer], told: str
) -> None:
    strategy, arrays = play(system, spoil)
    (failure,) = strategy.last_exchange.failures
    assert failure["partition"] == 2
    assert re.search(told, failure["reason"])
    without, wanted = play(system, raising)
    assert arrays.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(arrays[name], value)
    state, clean = strategy.state(), without.state()
    assert state.keys() == clean.keys()
    for name, value in clean.items():
        np.testing.assert_array_equal(state[name], value)


@pytest.mark.parametrize(
    "value", [[np.nan] * EXPERTS, [-1.0] * EXPERTS, [0.5], [], None, [np.inf] * EXPERTS]
)
@pytest.mark.parametrize(("system", "key"), [(s, k) for s, keys in NEEDS.items() for k in keys])
def test_a_measure_that_is_no_measure_is_dropped_by_name(
    system: str, key: str, value: list[float] | None
) -> None:
    def spoil(arrays: Arrays, metrics: dict[str, Any]) -> Answer:
        rest = {name: told for name, told in metrics.items() if name != key}
        return arrays, rest if value is None else {**rest, key: value}

    (failure,) = play(system, spoil, rounds=1)[0].last_exchange.failures
    assert failure["partition"] == 2
    assert key in failure["reason"]


@pytest.mark.parametrize(
    "system", [name for name in BASELINES if BaselineKey.MASSES not in NEEDS.get(name, ())]
)
def test_masses_that_nobody_asked_for_are_refused(system: str) -> None:
    """Or a client could weigh its part as it likes, where all others are weighed by samples."""
    heavy = {BaselineKey.MASSES: [1e9] * (EXPERTS if BASELINES[system].several else 1)}
    strategy, _ = play(system, lambda arrays, metrics: (arrays, {**metrics, **heavy}), rounds=1)
    (failure,) = strategy.last_exchange.failures
    assert failure == {"partition": 2, "reason": "metric 'masses' was not asked for"}


def test_mixed_experts_need_all_that_was_sent() -> None:
    """Of a client without its router rows nobody knows which experts are like its own."""
    strategy, _ = play(
        "fedmoe-da",
        lambda arrays, metrics: ({n: v for n, v in arrays.items() if "gate" not in n}, metrics),
    )
    (failure,) = strategy.last_exchange.failures
    assert failure["partition"] == 2
    assert "'gate.0.bias' is missing" in failure["reason"]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: PartialExperts(0), "experts must be a whole number of at least 1, got 0"),
        (lambda: PartialExperts(True), "experts must be a whole number"),
        (lambda: UsedExperts(3, 0), "held must be a whole number of at least 1, got 0"),
        (lambda: FlexExperts(3, 4), "held is 4, above experts = 3"),
        (lambda: ChosenExperts(3, -1, anchors=False), "held must be"),
        (lambda: UsedExperts(4, 1), "held = 1 leaves the gate nothing.*allowed: 2 to 4"),
        (lambda: ChosenExperts(4, 1, anchors=False), "held = 1 leaves the gate nothing"),
        (lambda: ChosenExperts(2, 2, anchors="no"), "anchors must be True or False, got 'no'"),
        (lambda: FlexExperts(3, 2, hi=0), "hi must be a whole number of at least 1, got 0"),
        (lambda: FlexExperts(3, 2, hi=[0, 0, 0]), r"hi is \[0, 0, 0\]; allowed: .* at least 1"),
        (lambda: FlexExperts(3, 2, hi=[1, 1]), r"hi is \[1, 1\]; allowed: .* each of 3 experts"),
        (lambda: FlexExperts(3, 2, lo=[1, 1.5, 1]), "lo of expert 1 must be .* got 1.5"),
        (lambda: FlexExperts(3, 2, lo=-1), "lo must be a whole number of at least 0, got -1"),
        (lambda: FlexExperts(3, 2, lo=2, hi=[3, 1, 3]), r"lo is 2, above hi = \[3, 1, 3\]"),
        (lambda: MixedExperts(0), "experts must be"),
        (lambda: MixedExperts(3, -1), "neighbours must be"),
        (lambda: MixedExperts(3, temperature=0.0), "temperature must be"),
        (lambda: MixedExperts(3, refresh=0), "refresh must be"),
        (lambda: PooledHeads(-1), "neighbours must be"),
        (lambda: config_of("fedem", **{"baseline.experts": 0}), r"baseline\.experts"),
        (lambda: config_of("fedmoe", **{"baseline.held": 0}), r"baseline\.held"),
        (lambda: config_of("fedmoe", **{"baseline.held": 4}), r"held = 4 is above .*experts = 3"),
    ],
)
def test_no_experts_and_more_than_there_are_are_refused(
    make: Callable[[], object], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        make()


@pytest.mark.parametrize("system", ["fedem", "fedmoe-da"])
def test_more_experts_than_memory_are_refused_before_anything_is_built(system: str) -> None:
    config = config_of(
        system,
        **{"extractor.widths": "300000,300000", "baseline.size": "net", "baseline.experts": 1024,
           "data.train-per-client": 40},
    )  # fmt: skip
    data = configured_images(config)
    shares = configured_partition(config, data, num_clients=3)
    with pytest.raises(ConfigError, match=r"baseline.experts = 1024: the server would hold") as got:
        rehearse(config, data, shares)
    size = memory_of_server(config, (1, 8, 8), 10)
    one = 64 * 300000 + 300000 + 300000**2 + 300000 + 300000 * 10 + 10
    gate = (64 + 1) * 1024 if system == "fedmoe-da" else 0
    copies = 3 if system == "fedmoe-da" else 1
    pairs = 3 * (3 * 1024) ** 2 if system == "fedmoe-da" else 0  # of all clients' experts
    assert size == 4 * (copies * 1024 * one + gate) + 8 * pairs
    assert f"({size:,} bytes); allowed: what fits into the" in str(got.value)


def test_a_rehearsal_allocates_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a network which hardly fits is not there twice before the run begins."""
    built: list[ExpertNetwork] = []
    real = Baseline.network

    def network(self: Baseline, *given: Any, **more: Any) -> ExpertNetwork:
        built.append(real(self, *given, **more))
        return built[-1]

    monkeypatch.setattr(Baseline, "network", network)
    config = config_of("fedem", **{"data.train-per-client": 40})
    data = configured_images(config)
    rehearse(config, data, configured_partition(config, data, num_clients=3))
    assert len(built) > 1
    assert {p.device.type for one in built for p in one.parameters()} == {"meta"}


def test_a_backbone_that_cannot_read_the_images_is_refused_before_anything_runs() -> None:
    """LeNet-5's two valid convolutions leave nothing of 8 x 8 pixels."""
    config = config_of(
        "fedavg",
        **{"extractor.backbone": "nmoe_flower.models.lenet:LeNet5", "extractor.widths": "",
           "data.train-per-client": 40},
    )  # fmt: skip
    data = configured_images(config)
    shares = configured_partition(config, data, num_clients=3)
    with pytest.raises(ConfigError, match=r"extractor.backbone = .*LeNet5: .*[Kk]ernel size"):
        rehearse(config, data, shares)


@pytest.mark.parametrize("system", BASELINES)
def test_a_server_holds_the_arrays_of_the_network(system: str) -> None:
    config = config_of(system)
    copies = {"fedmoe-da": 3, "pfedmoap": 9}.get(system, 1)  # of the experts of three clients
    wanted = sum(
        value.nbytes * (copies if name.startswith("expert.") else 1)
        for name, value in first_arrays(config).items()
    )
    experts = config.baseline.experts * config.data.num_clients
    wanted += 3 * 8 * experts**2 if system == "fedmoe-da" else 0  # their weights in one another
    assert memory_of_server(config, (1, 4, 4), 2) == wanted


@pytest.mark.parametrize("system", [name for name in BASELINES if name != "pfedmoap"])
def test_rounds_take_no_more_arrays_for_more_clients(system: str) -> None:
    """From the first message to the new arrays, twice; replies are made one at a time.

    There is a message for each client, whose arrays are one and the same for all who are sent them.
    So of each client there are its message, names and numbers, of 4 to 7 kB, less than any weights
    here. FedMoE-DA has experts of each client, before, after and while they are mixed: six times
    what they take, and nobody's trunk. pFedMoAP has a head of each, and in a message the nearest.
    """
    config = config_of(system, **{"extractor.widths": "4000", "baseline.hi": -1})
    few, many = 4, 40
    peaks = []
    for clients in (few, many):
        arrays = first_arrays(config)
        strategy = found(BASELINES[system].system).strategy(config)
        strategy.partitions = Partitions({node: node - 1 for node in range(1, clients + 1)})

        def replies(sent: list[Message], strategy: PartialExperts = strategy) -> Iterator[Message]:
            for message in sent:
                got = records.to_numpy(message.content.array_records[ARRAYS])
                moved, metrics = good(system, strategy, got, message.metadata.dst_node_id - 1)
                packed = {ARRAYS: records.from_numpy(moved)}
                del got, moved
                yield records.reply(message, metrics=metrics, arrays=packed)

        now = records.from_numpy(arrays)
        with InProcessGrid(ClientApp(), clients) as grid:
            tracemalloc.start()
            try:
                for server_round in (1, 2):
                    sent = list(strategy.configure_train(server_round, now, ConfigRecord(), grid))
                    updated, _ = strategy.aggregate_train(server_round, replies(sent))
                    assert updated is not None
                    assert len(strategy.last_exchange.clients) == clients
                    now = updated
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
    of_each = (peaks[1] - peaks[0]) / (many - few)
    if system == "fedmoe-da":
        own = sum(value.nbytes for name, value in arrays.items() if name.startswith("expert."))
        assert of_each < 7 * own
    else:
        least = min(value.nbytes for name, value in arrays.items() if name.endswith("weight"))
        assert of_each < 12_000 < least


def known_to(system: str, ids: list[int], draws: np.random.Generator) -> PartialExperts:
    """A server that has met six clients, no two alike; the draws are by their places in ``ids``."""
    scores = dict(zip(ids, draws.random((len(ids), 4)), strict=True))
    strategy: PartialExperts
    if system == "flex-moe":
        strategy = FlexExperts(4, 2)
        strategy.scores = scores
    elif system == "fedmoe":  # warmed up, and each holds what it uses most
        strategy, clients = UsedExperts(4, 2), sorted(ids)
        used = np.array([scores[client] for client in clients])
        held = np.sort(np.argsort(-used, axis=1)[:, :2], axis=1)
        state = {"clients": np.array(clients), "used": used, "rounds": np.full(6, 3), "held": held}
        strategy.load_state(state)
    else:
        strategy = ChosenExperts(4, 2, anchors=system.endswith("anchors"))
        strategy.scores = scores
        counts = draws.integers(1, 10**6, (len(ids), 5)).tolist()
        strategy.class_counts = dict(zip(ids, counts, strict=True))
    return strategy


def held_in_rounds(
    strategy: PartialExperts, ids: list[int], draws: np.random.Generator
) -> list[list[list[int]]]:
    """By round and place in ``ids``: the experts of a client, whose measures are drawn."""
    rounds: list[list[list[int]]] = []
    for server_round in range(1, 9):
        chosen = strategy.assign(sorted(ids), server_round)
        rounds.append([list(chosen[client]) for client in ids])
        for client, measures in zip(ids, draws.random((len(ids), 4)), strict=True):
            if not isinstance(strategy, ChosenExperts):  # whose gate knows all experts
                measures = np.where(np.isin(range(4), chosen[client]), measures, 0.0)
            measures = measures / measures.sum()
            strategy._masses = measures  # as `read` would have found them
            metrics = MetricRecord(dict.fromkeys(chain(*NEEDS.values()), measures.tolist()))
            strategy.accept(client, RecordDict(), Usable(metrics, 1.0, {}, 0))
        strategy.learn()
    return rounds


@pytest.mark.parametrize("system", ["flex-moe", "fedmoe", "fedjets", "fedjets with anchors"])
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    others=st.lists(st.integers(0, 99), min_size=6, max_size=6, unique=True),
)
def test_who_trains_what_does_not_depend_on_how_clients_are_called(
    system: str, seed: int, others: list[int]
) -> None:
    """Of clients met before, without ties. A newcomer's experts, and ties, go by its id."""
    found_by = []
    for ids in (list(range(6)), others):
        draws = np.random.default_rng(seed)
        found_by.append(held_in_rounds(known_to(system, ids, draws), ids, draws))
    assert found_by[0] == found_by[1]


@pytest.mark.parametrize("system", [name for name, one in BASELINES.items() if one.shares_trunk])
def test_a_trunk_without_weights_leaves_nothing_to_share(system: str) -> None:
    settings = {"extractor.backbone": "linear", "extractor.widths": "", "data.train-per-client": 40}
    config = config_of(system, **settings)
    data = configured_images(config)
    shares = configured_partition(config, data, num_clients=3)
    with pytest.raises(ConfigError, match=r"shares nothing but the trunk, and .*linear has no wei"):
        rehearse(config, data, shares)
