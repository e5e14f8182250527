"""The helper for other people's modules."""

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import nn

from nmoe_flower import records
from nmoe_flower.clients import Trained, answer_assigned
from nmoe_flower.engine import flower
from nmoe_flower.errors import ReplyError
from nmoe_flower.strategies.alignment_parcels import read_feedback


def module() -> nn.Module:
    found = nn.Module()
    found.gate = nn.Linear(2, 2)
    found.experts = nn.ModuleDict({"cats": nn.Linear(2, 1), "dogs": nn.Linear(2, 1)})
    return found


def message(
    arrays: dict[str, np.ndarray], weights: str = "arrays", config: str = "config"
) -> Message:
    told = ConfigRecord({"experts": ["dogs"], "expert-ids": [1], "server-round": 1})
    content = RecordDict({weights: records.from_numpy(arrays), config: told})
    sent = Message(content, 1, "train")
    flower.rewrite(sent, message_id="1")
    return sent


SENT = {
    "gate.weight": np.full((2, 2), 2, np.float32),
    "experts.dogs.weight": np.full((1, 2), 3, np.float32),
}


def test_what_came_is_loaded_trained_and_sent_back() -> None:
    mine = module()
    untouched = mine.get_parameter("experts.cats.weight").detach().clone()

    def train(names: list[str]) -> Trained:
        assert names == ["dogs"]
        with torch.no_grad():
            for parameter in (mine.gate.weight, mine.get_parameter("experts.dogs.weight")):
                assert parameter.flatten()[0] in (2, 3)
                parameter += 1
        return Trained(loss=0.5, num_examples=7, losses={"dogs": 0.25}, shares=[0.5, 0.5])

    answer = answer_assigned(message(SENT), mine, train)
    arrays = records.to_numpy(answer.content.array_records["arrays"])
    assert {name: float(value.flat[0]) for name, value in arrays.items()} == {
        "gate.weight": 3.0,
        "experts.dogs.weight": 4.0,
    }
    assert torch.equal(mine.get_parameter("experts.cats.weight"), untouched)
    metrics: Any = records.metrics_of(answer.content)
    assert (metrics["num-examples"], metrics["loss"]) == (7, 0.5)
    said = read_feedback(3, metrics, held=np.array([False, True]))
    assert (said.client, said.experts.tolist(), said.losses.tolist()) == (3, [1], [0.25])
    assert said.samples.tolist() == [7.0]
    assert said.shares.tolist() == [0.5, 0.5]
    assert said.seconds > 0


def test_records_have_the_names_that_the_app_gave_its_strategy() -> None:
    asked = message(SENT, weights="model", config="settings")
    trained = Trained(loss=0.5, num_examples=7, losses={"dogs": 0.25})
    answer = answer_assigned(asked, module(), lambda names: trained)
    assert list(answer.content.array_records) == ["model"]
    assert answer.content.array_records["model"].keys() == SENT.keys()


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"experts.dogs.weight": np.zeros((1, 3), np.float32)}, "shape"),
        ({"experts.cows.weight": np.zeros((1, 2), np.float32)}, "no place"),
    ],
)
def test_arrays_without_a_place_are_refused(arrays: dict[str, np.ndarray], reason: str) -> None:
    def train(names: list[str]) -> Trained:
        raise AssertionError("trained on what does not fit")

    with pytest.raises(ReplyError, match=reason):
        answer_assigned(message(arrays), module(), train)
