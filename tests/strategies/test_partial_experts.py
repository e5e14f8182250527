"""FedAvg of partial experts: who sends what counts, and nothing else moves."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe_flower import records
from nmoe_flower.baselines import PartialExperts
from nmoe_flower.baselines.network import ExpertNetwork
from nmoe_flower.baselines.submixture import mixed_logits
from nmoe_flower.config import Config
from nmoe_flower.engine import InProcessGrid, StreamingGrid
from nmoe_flower.errors import ConfigError, RoundError
from nmoe_flower.records import NUM_EXAMPLES, BaselineKey
from nmoe_flower.strategies import StreamingFedAvg

NAMES = ("trunk.w", "expert.0.w", "expert.1.w", "expert.2.w", "gate.w")
INITIAL = {name: np.full(3, at, np.float32) for at, name in enumerate(NAMES)}


class Assigned(PartialExperts):
    def __init__(self, held: list[list[int]]) -> None:
        super().__init__(3)
        self.held = held

    def assigned(self, client: int, server_round: int) -> list[int]:
        return self.held[client - 1]  # no partitions are asked for: by node id


def round_of(
    strategy: StreamingFedAvg,
    clients: int,
    answers: dict[int, tuple[dict[str, Any], dict]],
    before: Mapping[str, np.ndarray] = INITIAL,
    record: str = "arrays",
) -> dict[str, np.ndarray]:
    """One round in which client i answers with these arrays and metrics."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays, metrics = answers[int(context.node_config["partition-id"])]
        packed = {record: records.from_numpy(arrays)}
        return records.reply(message, metrics=metrics, arrays=packed)

    with InProcessGrid(app, clients) as grid:
        initial = records.from_numpy(before)
        sent = list(strategy.configure_train(1, initial, ConfigRecord(), grid))
        replies = sorted(
            StreamingGrid.around(grid).send_and_receive(sent),
            key=lambda reply: reply.metadata.src_node_id,
        )
        updated, _ = strategy.aggregate_train(1, replies)
    assert updated is not None
    return records.to_numpy(updated)


def value(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=3).astype(np.float32)


def test_an_array_is_encoded_once_whoever_it_is_sent_to(monkeypatch: pytest.MonkeyPatch) -> None:
    given = records.from_numpy(INITIAL)
    monkeypatch.setattr(records, "encode", lambda _: pytest.fail("encoded again"))
    with InProcessGrid(ClientApp(), 3) as grid:
        sent = Assigned([[0, 1], [1], [0, 1]]).configure_train(1, given, ConfigRecord(), grid)
        parts = [message.content.array_records["arrays"] for message in sent]
    assert [sorted(part) for part in parts[:2]] == [
        ["expert.0.w", "expert.1.w", "gate.w", "trunk.w"],
        ["expert.1.w", "gate.w", "trunk.w"],
    ]
    assert parts[2] is parts[0], "an engine would write it twice"
    assert all(part[name].data is given[name].data for part in parts for name in part)


def test_each_part_is_the_mean_of_those_who_sent_it() -> None:
    a, b, c = value(1), value(2), value(3)
    strategy = Assigned([[0, 1], [1]])
    found = round_of(
        strategy,
        2,
        {
            0: ({"trunk.w": a, "expert.0.w": b, "expert.1.w": c}, {NUM_EXAMPLES: 1}),
            1: ({"trunk.w": b, "expert.1.w": a}, {NUM_EXAMPLES: 3}),
        },
    )
    np.testing.assert_allclose(found["trunk.w"], (a + 3 * b) / 4, rtol=1e-6)
    np.testing.assert_allclose(found["expert.1.w"], (c + 3 * a) / 4, rtol=1e-6)
    np.testing.assert_array_equal(found["expert.0.w"], b)
    for untouched in ("expert.2.w", "gate.w"):
        np.testing.assert_array_equal(found[untouched], INITIAL[untouched])
    assert list(found) == list(INITIAL)
    one = records.array_bytes(RecordDict({"a": records.from_numpy({"w": a})}))
    assert strategy.last_exchange.bytes_down == one * (4 + 3)  # each got two shared arrays more
    assert strategy.last_exchange.bytes_up == one * (3 + 2)


class SharedRows(Assigned):
    rows_are_shared = True


@pytest.mark.parametrize("kind", [Assigned, SharedRows])
def test_rows_of_a_gate_are_their_experts_unless_all_share_them(kind: type[Assigned]) -> None:
    """Where they are shared, who trains only expert 0 is sent the row of expert 1, too."""
    before = {name: value(0) for name in ("expert.0.w", "expert.1.w", "gate.0.w", "gate.1.w")}
    a, b = value(1), value(2)
    one = {"expert.0.w": a, "gate.0.w": a}
    other = {"expert.1.w": b, "gate.1.w": b}
    if kind.rows_are_shared:
        one, other = {**one, "gate.1.w": a}, {**other, "gate.0.w": b}
    answers = {0: (one, {NUM_EXAMPLES: 1}), 1: (other, {NUM_EXAMPLES: 1})}
    found = round_of(kind([[0], [1]]), 2, answers, before)
    np.testing.assert_array_equal(found["expert.0.w"], a)
    for name, own in (("gate.0.w", a), ("gate.1.w", b)):
        wanted = (a + b) / 2 if kind.rows_are_shared else own
        np.testing.assert_allclose(found[name], wanted, rtol=1e-6)


def test_masses_weigh_experts_and_examples_the_rest() -> None:
    a, b = value(1), value(2)
    both = {name: value(9) for name in INITIAL}
    found = round_of(
        PartialExperts(3),
        2,
        {
            0: (both | {"trunk.w": a, "expert.0.w": a},
                {NUM_EXAMPLES: 4, BaselineKey.MASSES: [3.0, 0.0, 1.0]}),
            1: (both | {"trunk.w": b, "expert.0.w": b, "expert.1.w": b},
                {NUM_EXAMPLES: 4, BaselineKey.MASSES: [1.0, 0.0, 1.0]}),
        },
    )  # fmt: skip
    np.testing.assert_allclose(found["trunk.w"], (a + b) / 2, rtol=1e-6)
    np.testing.assert_allclose(found["expert.0.w"], (3 * a + b) / 4, rtol=1e-6)
    np.testing.assert_array_equal(found["expert.1.w"], INITIAL["expert.1.w"])  # nobody's mass


@pytest.mark.parametrize(
    ("masses", "refused"),
    [
        (True, {2: "metric 'masses' is missing"}),
        (False, {1: "metric 'masses' was not asked for"}),
        (None, {}),
    ],
)
def test_masses_are_wanted_refused_or_as_a_client_likes(
    masses: bool | None, refused: dict[int, str]
) -> None:
    """Two clients of three samples each; the first says that each expert has one of them."""
    strategy = PartialExperts(3, masses=masses)
    answers = {
        0: (dict.fromkeys(INITIAL, value(1)), {NUM_EXAMPLES: 3, BaselineKey.MASSES: [1.0] * 3}),
        1: (dict.fromkeys(INITIAL, value(2)), {NUM_EXAMPLES: 3}),
    }
    found = round_of(strategy, 2, answers)
    failures = {one["partition"]: one["reason"] for one in strategy.last_exchange.failures}
    assert failures == refused
    weights = [weight * (client not in refused) for client, weight in ((1, 1.0), (2, 3.0))]
    mean = np.average([value(1), value(2)], axis=0, weights=weights)
    np.testing.assert_allclose(found["expert.0.w"], mean, rtol=1e-6)


@pytest.mark.parametrize("masses", [[3.0, 0.004, 0.0], [0.0, 1e9, 0.0]])
def test_who_claims_more_mass_than_it_has_examples_is_dropped(masses: list[float]) -> None:
    """Of two clients of three samples one cheats; what float32 rounds off is no cheating."""
    strategy = PartialExperts(3, masses=True)
    honest, cheating = [1.5, 1.502, 0.0], {NUM_EXAMPLES: 3, BaselineKey.MASSES: masses}
    answers = {
        0: (dict.fromkeys(INITIAL, value(1)), {NUM_EXAMPLES: 3, BaselineKey.MASSES: honest}),
        1: (dict.fromkeys(INITIAL, value(2)), cheating),
    }
    found = round_of(strategy, 2, answers)
    (failure,) = strategy.last_exchange.failures
    assert failure["partition"] == 2
    assert f"masses are {masses}, in sum" in failure["reason"]
    assert "allowed: at most 'num-examples', 3" in failure["reason"]
    for name in ("trunk.w", "expert.0.w", "expert.1.w"):
        np.testing.assert_allclose(found[name], value(1), rtol=1e-6)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=5), st.randoms())
def test_all_experts_by_everybody_is_fedavg_bit_for_bit(weights: list[int], draw: Any) -> None:
    answers = {
        i: ({name: value(100 * i + k) for k, name in enumerate(INITIAL)}, {NUM_EXAMPLES: n})
        for i, n in enumerate(weights)
    }
    ours = round_of(PartialExperts(3), len(weights), answers)
    theirs = round_of(StreamingFedAvg(), len(weights), answers)
    order = list(range(len(weights)))
    draw.shuffle(order)
    other = round_of(PartialExperts(3), len(weights), {i: answers[j] for i, j in enumerate(order)})
    for name in INITIAL:
        np.testing.assert_array_equal(ours[name], theirs[name])
        np.testing.assert_allclose(other[name], ours[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({1: [0, 3], 2: [1]}, "gives client 1 expert 3; allowed: 0 to 2"),
        ({1: [0]}, "says nothing of client 2"),
    ],
)
def test_an_assignment_that_cannot_be_is_refused_by_name(held: dict, told: str) -> None:
    class Odd(Assigned):
        def assign(self, clients: Any, server_round: int) -> dict[int, list[int]]:
            return held

    with pytest.raises(ConfigError, match=f"Odd.assign {told}"):
        round_of(Odd([]), 2, {})


@pytest.mark.parametrize(
    ("arrays", "metrics", "told"),
    [
        ({"expert.2.w": value(1)}, {}, "'expert.2.w' was not assigned"),
        ({"private.w": value(1)}, {}, "'private.w' was not assigned"),
        ({"trunk.w": np.zeros(4, np.float32)}, {}, r"shape \(4,\), wanted \(3,\)"),
        ({"trunk.w": np.full(3, np.nan, np.float32)}, {}, "NaN"),
        ({"trunk.w": value(1)}, {BaselineKey.MASSES: [1.0, float("nan"), 0.0]}, "masses"),
        ({"trunk.w": value(1)}, {BaselineKey.MASSES: [1.0, -1.0, 0.0]}, "masses"),
        ({"trunk.w": value(1)}, {BaselineKey.MASSES: [1.0]}, "3 finite numbers"),
        ({"trunk.w": value(1)}, {BaselineKey.MASSES: [1.0, 0.0, 2.0]}, "a mass for expert 2"),
        ({"trunk.w": value(1)}, {BaselineKey.MASSES: [1.0, 0.5, 0.0]}, "in sum 1.5"),
        ({"trunk.w": value(1)}, {NUM_EXAMPLES: -1}, "negative"),
    ],
)
def test_a_bad_reply_is_named_and_harms_nobody(
    arrays: dict[str, np.ndarray], metrics: dict[str, Any], told: str
) -> None:
    a = value(5)
    strategy = Assigned([[0, 1], [0, 1]])
    good = ({"trunk.w": a}, {NUM_EXAMPLES: 2})
    found = round_of(strategy, 2, {0: (arrays, {NUM_EXAMPLES: 1, **metrics}), 1: good})
    np.testing.assert_array_equal(found["trunk.w"], a)
    (failure,) = strategy.last_exchange.failures
    assert failure["partition"] == 1
    assert re.search(told, failure["reason"])
    with pytest.raises(RoundError, match="0 usable replies"):
        round_of(
            Assigned([[0, 1]] * 2), 2, dict.fromkeys((0, 1), (arrays, {NUM_EXAMPLES: 1, **metrics}))
        )


@pytest.mark.parametrize("record", ["arrays", "weights"])
def test_what_was_not_sent_is_refused_whatever_a_client_calls_its_record(record: str) -> None:
    """A plain client may name its one ArrayRecord as it likes; it is checked all the same."""
    a, good = value(5), {NUM_EXAMPLES: 2}
    strategy = Assigned([[0], [0], [0]])
    odd = {"expert.1.w": np.full((7, 7), 9, np.float32)}
    longer = {"trunk.w": np.zeros(4, np.float32)}
    answers = {0: ({"trunk.w": a}, good), 1: (odd, good), 2: (longer, good)}
    found = round_of(strategy, 3, answers, record=record)
    assert list(found) == list(INITIAL)
    np.testing.assert_array_equal(found["trunk.w"], a)
    np.testing.assert_array_equal(found["expert.1.w"], INITIAL["expert.1.w"])
    assert [failure["partition"] for failure in strategy.last_exchange.failures] == [2, 3]


ORDER = (2, 0, 1)  # expert k is called ORDER[k] in the other network


def renamed(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Experts, and the rows of the gate with them, under their other ids."""
    return {
        re.sub(r"^(expert|gate)\.(\d)", lambda m: f"{m[1]}.{ORDER[int(m[2])]}", name): value
        for name, value in arrays.items()
    }


def test_experts_and_their_ids_may_be_permuted_together() -> None:
    """Also weighed by masses, which are named by the ids, too."""
    names = [f"{part}.{k}.w" for part in ("expert", "gate") for k in range(3)]
    first = {name: value(90 + at) for at, name in enumerate(["trunk.w", *names])}
    masses = [[3.0, 0.5, 1.0], [1.0, 2.0, 0.0]]
    answers = {i: ({n: value(10 * i + k) for k, n in enumerate(first)},
                   {NUM_EXAMPLES: 5 + i, BaselineKey.MASSES: masses[i]})
               for i in range(2)}  # fmt: skip
    moved = [[one[ORDER.index(k)] for k in range(3)] for one in masses]
    swapped = {i: (renamed(arrays), {**metrics, BaselineKey.MASSES: moved[i]})
               for i, (arrays, metrics) in answers.items()}  # fmt: skip
    one = round_of(PartialExperts(3), 2, answers, first)
    two = round_of(PartialExperts(3), 2, swapped, renamed(first))
    assert renamed(one).keys() == two.keys()
    for name, wanted in renamed(one).items():
        np.testing.assert_array_equal(two[name], wanted)
    for part in ("expert", "gate"):  # one's mass alone
        np.testing.assert_array_equal(two[f"{part}.1.w"], answers[0][0][f"{part}.2.w"])


@pytest.mark.parametrize("size", ["head", "net"])
def test_a_network_whose_experts_and_rows_are_permuted_answers_alike(size: str) -> None:
    config = Config.parse(
        {"run.system": "fedjets", "extractor.backbone": "mlp", "extractor.widths": "5",
         "baseline.size": size}
    )  # fmt: skip
    torch.manual_seed(0)
    one, two = (ExpertNetwork(config, (1, 4, 4), 7, experts=3, gated=True) for _ in range(2))
    for weights in one.parameters():
        weights.data.normal_(std=0.3)
    two.load_state_dict(renamed(one.state_dict()))
    images = torch.randn(20, 1, 4, 4)
    answers, chosen = [], []
    for network in (one, two):
        latents, logits = network.both(images)
        scores = network.scores(latents)
        answers.append(mixed_logits(scores, logits))
        chosen.append(logits[torch.arange(20), scores.argmax(dim=1)])
    torch.testing.assert_close(answers[1], answers[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(chosen[1], chosen[0], atol=0, rtol=0)
    assert len(set(one.scores(one.both(images)[0]).argmax(dim=1).tolist())) > 1
