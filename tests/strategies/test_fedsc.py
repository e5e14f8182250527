"""FedSC against a slow, central version: the clients' steps add up to the global one."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from nmoe_flower import records
from nmoe_flower.clients import Contrast, StateMemory
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import ConfigError, RoundError
from nmoe_flower.losses import correlation, spectral_contrastive, unit_ball
from nmoe_flower.privacy import Accountant, Budget, packed_size, svec
from nmoe_flower.strategies import FedSC

SIZES = (8, 12, 20)
DIM = 4
RATE = 0.1
WEIGHT = 3.0


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, DIM)).double().float()


def views(partition: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(partition)
    base = torch.randn(SIZES[partition], 6, generator=source) + partition
    return tuple(base + 0.1 * torch.randn(base.shape, generator=source) for _ in range(2))


Change = Callable[[Message, Message, int], Message]


def client_app(change: Change | None = None, told: list[dict[str, Any]] | None = None) -> ClientApp:
    """One SGD step on all own samples with the helper other people's apps use."""
    app = ClientApp()

    def begin(message: Message, context: Context) -> tuple[int, nn.Module, Contrast]:
        partition = int(context.node_config["partition-id"])
        module = encoder()
        names = [name for name in message.content.array_records if name != "correlation"]
        records.load_into(module.state_dict(), records.to_numpy(message.content[names[0]]))
        side = Contrast(
            message,
            StateMemory(context),
            num_examples=SIZES[partition],
            weight=WEIGHT,
            unbiased=False,
        )
        return partition, module, side

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition, module, side = begin(message, context)
        if told is not None:
            told.append(
                {
                    "partition": partition,
                    "round": side.server_round,
                    "share": side.share,
                    "others": side.others,
                    "wanted": side.wanted,
                }
            )
        optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
        loss = side.loss(*(module(view) for view in views(partition)))
        loss.backward()
        optimizer.step()
        answer = side.reply(message, module.state_dict(), {"loss": float(loss.detach())})
        return change(message, answer, partition) if change else answer

    @app.query("correlation")
    def correlate(message: Message, context: Context) -> Message:
        partition, module, side = begin(message, context)
        with torch.no_grad():
            side.see(unit_ball(torch.cat([module(view) for view in views(partition)])))
        matrix = side.matrix()
        assert matrix is not None
        answer = records.reply(
            message,
            metrics={"num-examples": SIZES[partition]},
            arrays={"correlation": side.keep(matrix)},
        )
        return change(message, answer, partition) if change else answer

    @app.query("identity")
    def identity(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        return records.reply(
            message, metrics={"num-examples": 0}, config={"partition-id": partition}
        )

    return app


def initial() -> ArrayRecord:
    return records.pack(encoder().state_dict())


def play(
    strategy: FedSC, grid: InProcessGrid, rounds: range, arrays: ArrayRecord | None = None
) -> ArrayRecord:
    record = arrays if arrays is not None else initial()
    for server_round in rounds:
        messages = list(strategy.configure_train(server_round, record, ConfigRecord(), grid))
        updated, _ = strategy.aggregate_train(server_round, grid.send_and_receive(messages))
        assert updated is not None
        record = updated
    return record


def own_matrix(module: nn.Module, partition: int) -> torch.Tensor:
    with torch.no_grad():
        return correlation(unit_ball(torch.cat([module(view) for view in views(partition)])))


def test_two_phase_rounds_are_steps_on_everybodys_samples() -> None:
    """Eq. 4's identity through the wire: unequal sizes, whole batches, R at this round's weights.

    The slow version pools all samples and takes plain steps on Eq. 3.
    """
    strategy = FedSC(exchange="two-phase", action="train")
    with_flower = records.to_numpy(play(strategy, InProcessGrid(client_app(), 3), range(1, 4)))
    module = encoder()
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    for _ in range(3):
        first, second = (torch.cat([views(p)[k] for p in range(3)]) for k in range(2))
        loss = spectral_contrastive(
            unit_ball(module(first)), unit_ball(module(second)), weight=WEIGHT, unbiased=False
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, tensor in module.state_dict().items():
        np.testing.assert_allclose(with_flower[name], tensor.numpy(), atol=2e-6)


def test_merged_rounds_use_the_matrices_of_the_round_before() -> None:
    told: list[dict[str, Any]] = []
    strategy = FedSC(action="train")
    play(strategy, InProcessGrid(client_app(told=told), 3), range(1, 3))
    first = [entry for entry in told if entry["round"] == 1]
    assert all(entry["others"] is None and entry["share"] == 1.0 for entry in first)
    module = encoder()
    matrices = [own_matrix(module, p) for p in range(3)]
    for entry in told:
        if entry["round"] == 1:
            continue
        own = entry["partition"]
        assert entry["share"] == pytest.approx(SIZES[own] / 40)
        rest = [p for p in range(3) if p != own]
        expected = sum(SIZES[p] * matrices[p] for p in rest) / sum(SIZES[p] for p in rest)
        torch.testing.assert_close(entry["others"], expected, atol=1e-6, rtol=0)


def test_without_an_action_the_helper_still_finds_its_own_matrix() -> None:
    told: list[dict[str, Any]] = []
    play(FedSC(), InProcessGrid(client_app(told=told), 3), range(1, 3))
    shares = {e["partition"]: e["share"] for e in told if e["round"] == 2}
    assert shares == pytest.approx({p: SIZES[p] / 40 for p in range(3)})


@pytest.mark.parametrize("exchange", ["merged", "two-phase"])
def test_records_may_have_the_names_that_an_app_gave_them(exchange: str) -> None:
    named = FedSC(exchange=exchange, arrayrecord_key="model", configrecord_key="settings")
    found, usual = (
        records.to_numpy(play(strategy, InProcessGrid(client_app(), 3), range(1, 4)))
        for strategy in (named, FedSC(exchange=exchange))
    )
    assert all(np.array_equal(found[name], value) for name, value in usual.items())


def test_a_client_that_never_sent_a_matrix_takes_the_mean_as_the_others() -> None:
    told: list[dict[str, Any]] = []

    def first_round_fails_for_two(message: Message, answer: Message, partition: int) -> Message:
        if partition == 2 and records.config_of(message)["server-round"] == 1:
            raise RuntimeError("battery")
        return answer

    strategy = FedSC(action="train")
    app = client_app(first_round_fails_for_two, told)
    play(strategy, InProcessGrid(app, 3), range(1, 3))
    assert len(strategy.correlations) == 3
    (late,) = [e for e in told if e["round"] == 2 and e["partition"] == 2]
    assert late["share"] == pytest.approx(20 / 40)  # its 20 beside the 8 + 12 of the mean
    module = encoder()
    expected = (8 * own_matrix(module, 0) + 12 * own_matrix(module, 1)) / 20
    torch.testing.assert_close(late["others"], expected, atol=1e-6, rtol=0)


def test_the_matrix_of_a_client_that_is_not_drawn_stays() -> None:
    strategy = FedSC(action="train", fraction_train=0.67, min_train_nodes=1, seed=3)
    grid = InProcessGrid(client_app(), 3)
    arrays = play(strategy, grid, range(1, 2))
    before = {p: strategy.correlations.round_of(p) for p in range(3)}
    for current in range(2, 6):
        arrays = play(strategy, grid, range(current, current + 1), arrays)
    after = {p: strategy.correlations.round_of(p) for p in range(3)}
    assert sorted(before.values()) == [0, 1, 1]
    assert 5 in after.values()
    assert min(after.values()) < 5


def test_matrices_are_asked_for_at_the_refresh_interval_only() -> None:
    told: list[dict[str, Any]] = []
    play(FedSC(refresh=3, action="train"), InProcessGrid(client_app(told=told), 3), range(1, 8))
    asked = {e["round"] for e in told if e["wanted"]}
    assert asked == {1, 4, 7}


def test_the_first_matrix_may_wait_until_features_are_worth_it() -> None:
    told: list[dict[str, Any]] = []
    strategy = FedSC(first=3, refresh=2, action="train")
    play(strategy, InProcessGrid(client_app(told=told), 3), range(1, 8))
    assert {e["round"] for e in told if e["wanted"]} == {3, 5, 7}


def test_a_schedule_is_told_and_used() -> None:
    told: list[dict[str, Any]] = []
    strategy = FedSC(share=lambda current: 1.0 - 0.2 * current, action="train")
    play(strategy, InProcessGrid(client_app(told=told), 3), range(1, 3))
    assert [e["share"] for e in told if e["round"] == 2] == pytest.approx([0.6] * 3)


def replace_matrix(packed: np.ndarray) -> Change:
    def change(message: Message, answer: Message, partition: int) -> Message:
        if partition == 1:
            answer.content["correlation"] = records.from_numpy({"packed": packed})
        return answer

    return change


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (np.full(packed_size(DIM), np.nan, np.float32), "NaN"),
        (np.zeros(packed_size(DIM) + 1, np.float32), "d\\(d\\+1\\)/2"),
        (np.zeros(packed_size(DIM + 1), np.float32), "dimension 4"),
        (np.zeros((2, 2), np.float32), "one-dimensional"),
        (svec(np.eye(DIM, dtype=np.float32)), "trace 4"),
        (svec(np.diag([0.9, -0.5, 0.1, 0.1]).astype(np.float32)), "eigenvalues"),
    ],
)
def test_an_impossible_matrix_costs_its_client_the_round(packed: np.ndarray, reason: str) -> None:
    strategy = FedSC(dim=DIM, action="train")
    play(strategy, InProcessGrid(client_app(replace_matrix(packed)), 3), range(1, 2))
    (failure,) = strategy.last_exchange.failures
    assert failure["partition"] == 1
    assert re.search(reason, failure["reason"]), failure["reason"]
    assert strategy.last_exchange.clients == [0, 2]
    assert len(strategy.correlations) == 2


def test_less_noise_than_agreed_is_refused() -> None:
    strategy = FedSC(noise_multiplier=2.0, action="train")
    with pytest.raises(RoundError, match="noise multiplier 0, 2 was agreed"):
        play(strategy, InProcessGrid(client_app(), 3), range(1, 2))


def loud(message: Message, answer: Message, partition: int) -> Message:
    """Claim more noise than was agreed, to make any matrix plausible."""
    metrics = answer.content.metric_records["metrics"]
    metrics["noise-multiplier"], metrics["noise-std"] = 2.0, 100.0
    return answer


def test_a_claim_of_more_noise_than_there_can_be_is_refused() -> None:
    strategy = FedSC(noise_multiplier=2.0, action="train")
    with pytest.raises(RoundError, match="said to have deviation 100"):
        play(strategy, InProcessGrid(client_app(loud), 3), range(1, 2))


def noisy(message: Message, answer: Message, partition: int) -> Message:
    """Claim the agreed noise: the server counts what it asked for."""
    metrics = answer.content.metric_records["metrics"]
    metrics["noise-multiplier"], metrics["noise-std"] = 4.0, 0.25  # at most 4 sqrt(2) / 20
    return answer


def test_no_matrix_is_asked_for_beyond_the_budget(caplog: pytest.LogCaptureFixture) -> None:
    told: list[dict[str, Any]] = []
    accountant = Accountant(Budget(epsilon=2.0, delta=1e-3))
    strategy = FedSC(noise_multiplier=4.0, accountant=accountant, action="train")
    play(strategy, InProcessGrid(client_app(noisy, told), 3), range(1, 12))
    counts = {p: sum(e["wanted"] for e in told if e["partition"] == p) for p in range(3)}
    allowed = accountant.releases(0)
    assert counts == {0: allowed, 1: allowed, 2: allowed}
    assert 1 <= allowed < 11
    assert accountant.worst(delta=1e-3) <= 2.0
    assert not accountant.affords(0, noise_multiplier=4.0)
    assert len([r for r in caplog.records if "budget" in r.message]) == 1


def test_a_run_goes_on_from_its_state_bit_by_bit() -> None:
    def strategy() -> FedSC:
        return FedSC(
            noise_multiplier=4.0,
            accountant=Accountant(Budget(2.0, 1e-3)),
            action="train",
            server_momentum=0.9,
            learning_rate=lambda _: RATE,
        )

    grid = InProcessGrid(client_app(noisy), 3)
    whole = strategy()
    expected = records.to_numpy(play(whole, grid, range(1, 7)))
    grid = InProcessGrid(client_app(noisy), 3)
    before = strategy()
    middle = play(before, grid, range(1, 4))
    after = strategy()
    after.load_state(before.state())
    found = records.to_numpy(play(after, grid, range(4, 7), middle))
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name
    assert after.accountant is not None
    assert whole.accountant is not None
    assert after.accountant.state() == whole.accountant.state()


def test_the_metrics_tell_the_effective_rank_and_the_spectrum() -> None:
    strategy = FedSC(action="train")
    grid = InProcessGrid(client_app(), 3)
    messages = list(strategy.configure_train(1, initial(), ConfigRecord(), grid))
    _, metrics = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert metrics is not None
    module = encoder()
    mean = sum(SIZES[p] * own_matrix(module, p).double() for p in range(3)) / 40
    values = np.linalg.eigvalsh(mean.numpy())
    shares = values / values.sum()
    assert metrics["effective-rank"] == pytest.approx(
        np.exp(-(shares * np.log(shares)).sum()), rel=1e-4
    )


def constant(message: Message, answer: Message, partition: int) -> Message:
    """All features are one and the same vector: R = v v^T."""
    vector = np.zeros(DIM, np.float32)
    vector[0] = 1.0
    packed = svec(np.outer(vector, vector))
    answer.content["correlation"] = records.from_numpy({"packed": packed})
    return answer


def without_matrix(message: Message, answer: Message, partition: int) -> Message:
    """As an app of one's own whose client was not changed."""
    if "correlation" in answer.content:
        del answer.content["correlation"]
    return answer


@pytest.mark.parametrize(
    ("change", "first", "times"), [(without_matrix, 1, 1), (without_matrix, 4, 0), (None, 1, 0)]
)
def test_clients_that_send_no_matrix_at_all_are_told_of_once(
    change: Change | None, first: int, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    play(FedSC(action="train", first=first), InProcessGrid(client_app(change), 3), range(1, 4))
    said = [r for r in caplog.records if "FedSC does what FedAvg does" in r.message]
    assert len(said) == times


def test_collapse_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    strategy = FedSC(action="train")
    play(strategy, InProcessGrid(client_app(constant), 3), range(1, 4))
    assert strategy.collapse is not None
    assert "collapsed to the mean" in strategy.collapse
    assert len([r for r in caplog.records if "collapsed to the mean" in r.message]) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"exchange": "three-phase"}, "merged or two-phase"),
        ({"refresh": 0}, "refresh must be a whole number of at least 1, got 0"),
        ({"first": 0}, "first must be a whole number of at least 1, got 0"),
        ({"accountant": Accountant()}, "noise_multiplier above 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: Mapping[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        FedSC(**options)


def test_a_triangle_travels_not_the_whole_matrix() -> None:
    """At most half of the matrix, plus its diagonal: d(d+1)/2 numbers of 4 bytes."""
    strategy = FedSC(action="train")
    grid = InProcessGrid(client_app(), 3)
    plain = FedSC(action="train", refresh=1000)
    arrays = initial()
    for server_round, one in ((1, strategy), (1, plain), (2, plain)):
        messages = list(one.configure_train(server_round, arrays, ConfigRecord(), grid))
        one.aggregate_train(server_round, grid.send_and_receive(messages))
    header = 128  # of a .npy array
    difference = strategy.last_exchange.bytes_up - plain.last_exchange.bytes_up
    assert difference == 3 * (4 * packed_size(DIM) + header)


def with_metrics(action: str, **changed: Any) -> Change:
    """Change client 1's metrics in answers to this kind of message; None takes one away."""

    def change(message: Message, answer: Message, partition: int) -> Message:
        if partition == 1 and message.metadata.message_type == action:
            metrics = answer.content["metrics"]
            for name, value in changed.items():
                del metrics[name.replace("_", "-")]
                if value is not None:
                    metrics[name.replace("_", "-")] = value
        return answer

    return change


@pytest.mark.parametrize("exchange", ["merged", "two-phase"])
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"num_examples": None}, "num-examples"),
        ({"num_examples": -3}, "num-examples"),
        ({"num_examples": 0}, "num-examples"),
        ({"num_examples": float("nan")}, "num-examples"),
        ({"num_examples": [1, 2]}, "num-examples"),
        ({"noise_multiplier": float("nan")}, "noise-multiplier"),
        ({"noise_multiplier": [4.0]}, "noise-multiplier"),
        ({"noise_std": -1.0}, "noise-std"),
        ({"noise_std": float("inf")}, "noise-std"),
    ],
)
def test_numbers_that_cannot_be_cost_their_client_the_matrix_and_nobody_else(
    exchange: str, changed: dict[str, Any], reason: str
) -> None:
    action = "train" if exchange == "merged" else "query.correlation"
    spoil = with_metrics(action, **changed)

    def change(message: Message, answer: Message, partition: int) -> Message:
        if "metrics" in answer.content:
            noisy(message, answer, partition)
        return spoil(message, answer, partition)

    strategy = FedSC(exchange=exchange, noise_multiplier=4.0, action="train")  # type: ignore[arg-type]
    play(strategy, InProcessGrid(client_app(change), 3), range(1, 3))
    assert [failure["partition"] for failure in strategy.last_exchange.failures] == [1]
    assert reason in strategy.last_exchange.failures[0]["reason"]
    assert [strategy.correlations.round_of(p) for p in range(3)] == [2, 0, 2]


def test_metrics_may_have_any_name_and_another_weight() -> None:
    """As FedAvg allows; the samples behind R are still those of num-examples."""

    def change(message: Message, answer: Message, partition: int) -> Message:
        metrics = answer.content["metrics"]
        metrics["weight"] = 1.0
        del answer.content["metrics"]
        answer.content["numbers"] = metrics
        return answer

    strategy = FedSC(weighted_by_key="weight", action="train")
    play(strategy, InProcessGrid(client_app(change), 3), range(1, 3))
    assert strategy.correlations.examples == sum(SIZES)
