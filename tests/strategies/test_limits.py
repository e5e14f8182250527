"""Arguments of strategies that cannot be: refused by name, before any client is asked."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from nmoe_flower import records
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import CheckpointError, ConfigError, RoundError
from nmoe_flower.strategies import AdamW, FedCE, FedGate, FedSC, RollGate, StreamingFedAvg

NAN, INF = math.nan, math.inf
FLOWERS = {
    **dict.fromkeys(("fraction_train", "fraction_evaluate"), (NAN, -0.1, 1.5, INF, "0.5", None)),
    **dict.fromkeys(
        ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), (-1, 2.5, NAN, None)
    ),
    "min_replies": (-1, 2.5, NAN),
    "connect_timeout": (NAN, -1, None),
}
STEPPED = {
    "server_learning_rate": (NAN, INF, -1),
    "server_momentum": (NAN, -0.1, 1.0),
    "local_learning_rate": (NAN, INF, -1),
    "learning_rate": (0.1,),
    "ema": (NAN, -0.1, 1),
}
OWN = {
    "dim": (0, 2.5),
    "clip": (0, NAN, INF, -1),
    "noise_multiplier": (NAN, -1, INF),
    "first": (NAN, 1.5),
    "refresh": (NAN, 1.5),
    "share": (0.5,),
}
ALL: list[tuple[type[StreamingFedAvg], dict[str, tuple[Any, ...]]]] = [
    (StreamingFedAvg, FLOWERS),
    (FedCE, FLOWERS | STEPPED),
    (FedGate, FLOWERS | STEPPED),
    (FedSC, FLOWERS | STEPPED | OWN),
    (RollGate, FLOWERS | {"tolerance": (NAN, -1)}),
]
CASES = [(kind, n, value) for kind, table in ALL for n, values in table.items() for value in values]


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_arguments_that_cannot_be_are_refused_by_name(
    kind: type[StreamingFedAvg], name: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be .*, got {value!r}"):
        kind(**{name: value})


def test_arrays_and_settings_need_names_of_their_own() -> None:
    with pytest.raises(ConfigError, match="must differ, both are 'x'"):
        StreamingFedAvg(arrayrecord_key="x", configrecord_key="x")


# --- what is known only when it starts ---


def app(change: Callable[[np.ndarray], Any]) -> ClientApp:
    own = ClientApp()

    @own.train()
    def train(message: Message, _: object) -> Message:
        arrays = records.to_numpy(message.content["arrays"])
        changed = records.from_numpy({n: np.asarray(change(v), v.dtype) for n, v in arrays.items()})
        content = {"arrays": changed, "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    return own


def start(strategy: StreamingFedAvg, initial: ArrayRecord | np.ndarray, **given: Any) -> Any:
    if isinstance(initial, np.ndarray):
        initial = ArrayRecord({"w": Array(initial)})
    with InProcessGrid(app(lambda value: value + 1), 3) as grid:
        return strategy.start(grid, initial, **{"num_rounds": 3, **given})


def plain(kind: type[Any] = FedCE, **options: Any) -> Any:
    return kind(fraction_evaluate=0.0, connect_timeout=1.0, **options)


@pytest.mark.parametrize("kind", [FedCE, FedGate, FedSC, RollGate])
@pytest.mark.parametrize(
    "array",
    [np.float32([1, NAN]), np.float64([INF]), np.complex64([1]), np.array(["a"])],
    ids=["NaN", "infinite", "complex", "text"],
)
def test_arrays_that_nothing_can_start_from_are_not_put_down_to_clients(
    kind: type[StreamingFedAvg], array: np.ndarray
) -> None:
    with pytest.raises(ConfigError, match=r"^initial_arrays: w: "):
        start(plain(kind), array)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"num_rounds": -1}, "num_rounds must be a whole number of at least 0, got -1"),
        ({"num_rounds": 1.5}, "num_rounds must be"),
        ({"timeout": NAN}, "timeout must be a number of at least 0, got nan"),
        ({"timeout": -1.0}, "timeout must be"),
    ],
)
def test_rounds_and_deadlines_that_cannot_be(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        start(plain(), np.float32([0]), **given)


@pytest.mark.parametrize("value", [NAN, -1.0, None, "fast"])
def test_a_schedule_is_asked_every_round(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^learning_rate\(1\) must be a finite number"):
        start(plain(learning_rate=lambda server_round: value), np.float32([0]))


def test_a_schedule_may_give_numbers_of_numpy() -> None:
    found = start(plain(learning_rate=lambda server_round: np.float32(0.5)), np.float32([0]))
    assert records.to_numpy(found.arrays)["w"].tolist() == [3.0]


@pytest.mark.parametrize("kind", [FedCE, RollGate])
def test_an_action_that_nobody_answers_is_told(kind: type[StreamingFedAvg]) -> None:
    with pytest.raises(RoundError, match=r"none of 3 nodes told its partition.*query\.identity"):
        start(plain(kind, action="train.mine"), np.float32([0]))


def test_replies_that_were_usable_but_too_few() -> None:
    with pytest.raises(RoundError, match=r"3 usable replies, 5 needed \(no other client was"):
        start(plain(min_replies=5), np.float32([0]))


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float16])
def test_a_cycle_of_any_dtype_is_measured(dtype: type[np.generic]) -> None:
    """Three clients add 1 to 1 each: the change is 3 of 4, as uint8 and float16 too."""
    strategy = plain(RollGate, tolerance=0.76)
    start(strategy, np.ones(300, dtype))
    assert strategy.converged
    if dtype is not np.bool_:
        strategy = plain(RollGate, tolerance=0.74)
        start(strategy, np.ones(300, dtype))
        assert not strategy.converged


# --- a state of another model ---


@pytest.mark.parametrize(
    "options", [{"server_momentum": 0.9}, {"server_optimizer": AdamW()}, {"ema": 0.9}], ids="".join
)
def test_the_state_of_another_model_is_never_broadcast(options: dict[str, Any]) -> None:
    before, after = plain(**options), plain(**options)
    start(before, np.float32([0]))
    after.load_state(before.state())
    with pytest.raises(CheckpointError, match=r"'w' (has|have) shape \(1,\).*\(3,\)"):
        start(after, np.float32([0, 0, 0]))


def test_a_state_that_is_not_finite_is_not_put_down_to_a_client() -> None:
    with pytest.raises(CheckpointError, match="'optimizer/w' is NaN"):
        plain(server_momentum=0.9).load_state({"optimizer/w": np.float32([NAN])})


def test_the_cycle_of_another_gate() -> None:
    strategy = plain(RollGate)
    state = {"start/v": np.float32([0]), "asked": np.array([0]), "usable": np.array(1)}
    strategy.load_state(state)
    strategy.sent = {"w": np.float32([0])}
    with pytest.raises(CheckpointError, match="another model's"):
        strategy.aggregate_train(1, [])
