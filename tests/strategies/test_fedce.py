from collections.abc import Mapping

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn import functional as F

from nmoe_flower import records
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.strategies import FedCE

CLIENTS = 3
Arrays = dict[str, np.ndarray]


def new_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def batch(partition: int, server_round: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(100 * server_round + partition)
    return torch.randn(8, 4, generator=source), torch.randint(3, (8,), generator=source)


def weight(partition: int) -> int:
    return 10 * (partition + 1)


def rate(server_round: int) -> float:
    return [0.1, 0.3, 0.2, 0.05, 0.25, 0.15][server_round - 1]


def one_step(module: nn.Module, optimizer: torch.optim.SGD, partition: int, rnd: int) -> None:
    images, labels = batch(partition, rnd)
    module.train()
    loss = F.cross_entropy(module(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def client_app() -> ClientApp:
    """One plain SGD step at the rate the server tells."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        settings = records.config_of(message)
        module = new_module()
        records.load_into(module.state_dict(), records.to_numpy(message.content["arrays"]))
        optimizer = torch.optim.SGD(module.parameters(), lr=settings["learning-rate"])
        partition = int(context.node_config["partition-id"])
        one_step(module, optimizer, partition, settings["server-round"])
        return records.reply(
            message,
            metrics={"num-examples": weight(partition)},
            arrays={"arrays": records.pack(module.state_dict())},
        )

    return app


def initial() -> Arrays:
    return records.to_numpy(records.pack(new_module().state_dict()))


def play(
    strategy: FedCE, rounds: range, arrays: Mapping[str, np.ndarray] | None = None
) -> list[Arrays]:
    """The global arrays after every round."""
    grid, history = InProcessGrid(client_app(), CLIENTS), []
    record = records.from_numpy(initial() if arrays is None else arrays)
    for server_round in rounds:
        messages = strategy.configure_train(server_round, record, ConfigRecord(), grid)
        updated, _ = strategy.aggregate_train(server_round, grid.send_and_receive(list(messages)))
        assert updated is not None
        record = updated
        history.append(records.to_numpy(record))
    return history


def slow_momentum_over_the_wire(momentum: float, rounds: range) -> list[Arrays]:
    """Every client keeps torch's own Nesterov momentum; weights AND buffers are averaged."""
    state, buffers, history = new_module().state_dict(), {}, []
    share = {p: weight(p) / sum(map(weight, range(CLIENTS))) for p in range(CLIENTS)}
    for server_round in rounds:
        states, all_buffers = [], []
        for partition in range(CLIENTS):
            module = new_module()
            module.load_state_dict(state)
            optimizer = torch.optim.SGD(
                module.parameters(), lr=rate(server_round), momentum=momentum, nesterov=True
            )
            for name, parameter in module.named_parameters():
                if name in buffers:
                    optimizer.state[parameter]["momentum_buffer"] = buffers[name].clone()
            one_step(module, optimizer, partition, server_round)
            states.append(module.state_dict())
            all_buffers.append(
                {n: optimizer.state[p]["momentum_buffer"] for n, p in module.named_parameters()}
            )
        state = {n: sum(share[p] * s[n].double() for p, s in enumerate(states)) for n in state}
        state = {n: value.to(new_module().state_dict()[n].dtype) for n, value in state.items()}
        buffers = {
            n: sum(share[p] * b[n] for p, b in enumerate(all_buffers)) for n in all_buffers[0]
        }
        history.append({n: value.numpy().copy() for n, value in state.items()})
    return history


def assert_close(one: Arrays, other: Arrays, tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_server_momentum_is_averaging_the_clients_momentum(momentum: float) -> None:
    rounds = range(1, 7)
    fast = play(FedCE(server_momentum=momentum, learning_rate=rate), rounds)
    slow = slow_momentum_over_the_wire(momentum, rounds)
    for one, other in zip(fast, slow, strict=True):
        assert_close(one, other, 1e-6)
    plain = play(FedCE(learning_rate=rate), rounds)
    assert np.abs(plain[-1]["0.weight"] - fast[-1]["0.weight"]).max() > 1e-2


def test_without_options_the_mean_is_taken_as_it_is() -> None:
    """One round against an average made by hand in float64."""
    (after,) = play(FedCE(learning_rate=rate), range(1, 2))
    replies = []
    for partition in range(CLIENTS):
        module = new_module()
        optimizer = torch.optim.SGD(module.parameters(), lr=rate(1))
        one_step(module, optimizer, partition, 1)
        replies.append(module.state_dict())
    for name, value in after.items():
        mean = sum(weight(p) * r[name].double().numpy() for p, r in enumerate(replies)) / 60
        np.testing.assert_allclose(value, mean, rtol=0, atol=1e-6)
    assert after["1.num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize("server_rate", [0.5, 2.0])
def test_the_server_rate_scales_the_step(server_rate: float) -> None:
    """w - s (w - mean) for weights; BatchNorm's statistics are the mean whatever s is."""
    (taken,) = play(FedCE(learning_rate=rate), range(1, 2))
    strategy = FedCE(learning_rate=rate, server_learning_rate=server_rate)
    (after,) = play(strategy, range(1, 2))
    start = initial()
    for name, value in after.items():
        if name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
            np.testing.assert_array_equal(value, taken[name])
        else:
            expected = start[name] + server_rate * (taken[name] - start[name])
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6)


def test_statistics_are_never_stepped() -> None:
    strategy = FedCE(learning_rate=rate, server_momentum=0.9, server_learning_rate=1.5)
    play(strategy, range(1, 4))
    stepped = {name.removeprefix("optimizer/") for name in strategy.state()}
    assert stepped == {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"}


def test_a_rate_of_zero_moves_nothing() -> None:
    strategy = FedCE(learning_rate=lambda _: 0.0, server_momentum=0.9)
    (after,) = play(strategy, range(1, 2))
    np.testing.assert_array_equal(after["0.weight"], initial()["0.weight"])
    assert np.isfinite(after["1.running_mean"]).all()


def test_averaged_weights_by_hand() -> None:
    """Decay min(0.5, (1 + t) / (10 + t)): round 1 takes the weights, 2 has 3/12, 3 has 4/13."""
    strategy = FedCE(learning_rate=rate, ema=0.5)
    history = [h["0.weight"] for h in play(strategy, range(1, 4))]
    expected = history[0]
    for decay, value in ((3 / 12, history[1]), (4 / 13, history[2])):
        expected = decay * expected + (1 - decay) * value
    np.testing.assert_allclose(strategy.ema_arrays["0.weight"], expected, rtol=0, atol=1e-6)
    counter = strategy.ema_arrays["1.num_batches_tracked"]
    assert (counter, counter.dtype) == (3, np.int64)


def test_the_averages_decay_never_passes_the_one_asked_for() -> None:
    strategy = FedCE(ema=0.2)
    strategy._average(1, {"w": np.float32([0])})
    strategy._average(1000, {"w": np.float32([1])})
    np.testing.assert_allclose(strategy.ema_arrays["w"], [0.8])


def test_the_average_of_half_precision_goes_on_moving() -> None:
    """A step of 2.5e-4 vanishes beside 1.0 in float16; 0.9995^2000 = .368 of the way is left."""
    strategy = FedCE(ema=0.9995)
    one, more = np.float16([1.0]), np.float16([1.5])
    strategy.sent = {"w": one}
    strategy._average(10**6, {"w": one})
    for server_round in range(2000):
        strategy._average(10**6 + server_round, {"w": more})
    (averaged,) = strategy.ema_arrays.values()
    assert averaged.dtype == np.float16
    np.testing.assert_allclose(averaged, 1.5 - 0.5 * 0.9995**2000, rtol=1e-3)
    again = FedCE(ema=0.9995)
    again.load_state(strategy.state())
    again.sent = strategy.sent
    assert again.ema_arrays["w"].tobytes() == averaged.tobytes()


def test_a_restored_state_goes_on_with_the_same_bits() -> None:
    def strategy() -> FedCE:
        return FedCE(learning_rate=rate, server_momentum=0.9, ema=0.6)

    whole = strategy()
    history = play(whole, range(1, 7))
    first, second = strategy(), strategy()
    half = play(first, range(1, 4))[-1]
    second.load_state(first.state())
    resumed = play(second, range(4, 7), half)
    for name, value in history[-1].items():
        assert resumed[-1][name].tobytes() == value.tobytes(), name
    for name, value in whole.state().items():
        assert second.state()[name].tobytes() == value.tobytes(), name
    fresh = play(strategy(), range(4, 7), half)
    assert fresh[-1]["0.weight"].tobytes() != history[-1]["0.weight"].tobytes()


def test_the_clients_are_told_the_rate_of_the_round() -> None:
    grid = InProcessGrid(client_app(), CLIENTS)
    strategy = FedCE(learning_rate=rate)
    record = records.from_numpy(initial())
    told = [
        records.config_of(next(iter(strategy.configure_train(r, record, ConfigRecord(), grid))))
        for r in (1, 2)
    ]
    assert [config["learning-rate"] for config in told] == [0.1, 0.3]
    plain = FedCE().configure_train(1, record, ConfigRecord(), grid)
    assert dict(records.config_of(next(iter(plain)))) == {"server-round": 1}
