"""The ways of a client's weights, plain and private, on digits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from nmoe_flower import records
from nmoe_flower.clients import fedce, fedsc
from nmoe_flower.clients.device import Device, device_of
from nmoe_flower.clients.fedsc_matrices import matrices_of
from nmoe_flower.clients.weights import (
    PlainWeights,
    PrivateWeights,
    batches,
    local_optimizer,
    local_steps,
    take_steps,
    weights_of,
)
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError
from nmoe_flower.records import Action

IMAGES = 40
SETTINGS: dict[str, Any] = {
    "data.train-per-client": IMAGES,
    "data.test-per-client": 20,
    "extractor.backbone": "linear",
    "extractor.batch-size": 10,
}
PRIVATE = {"privacy.weights": True, "privacy.delta": 1e-3}

New = Callable[..., Device]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def device(cache: Path, tmp_path: Path) -> New:
    """A client, with these keys changed."""

    def make(**changes: Any) -> Device:
        values = SETTINGS | changes
        named = {"data.cache-dir": str(cache), "run.out": str(tmp_path / "runs")}
        node = {"partition-id": 1, "num-partitions": 3}
        config = Config.parse(values | named).flat()
        return device_of(Context(1, 1, node, RecordDict(), config))

    return make


def sent(server_round: int = 2) -> Message:
    settings = {records.SERVER_ROUND: server_round, records.LEARNING_RATE: 0.1}
    content = {records.CONFIG: ConfigRecord(settings)}
    return Message(RecordDict(content), 1, Action.FEDCE)


def test_the_configuration_chooses_and_nothing_else(device: New) -> None:
    assert isinstance(weights_of(device()), PlainWeights)
    assert isinstance(weights_of(device(**PRIVATE)), PrivateWeights)


def test_a_plain_round_takes_its_part_of_the_clients_stream(device: New) -> None:
    """Two rounds are the steps of both at once, each with the augmentation of its own round."""
    one = device(**{"extractor.local-steps": 3})
    losses = []
    for take in ("rounds", "steps"):
        network = one.fresh_classifier()
        task = fedce.classifier_task(one, network)
        optimizer = local_optimizer(one, network, sent())
        for server_round in (1, 2):
            if take == "rounds":
                told = weights_of(one).train(task, optimizer, sent(server_round))
                assert set(told) == {"loss"}
                losses.append(told["loss"])
            else:
                first = 3 * (server_round - 1)
                losses.append(take_steps(one, task, optimizer, first=first, count=3).loss)
    assert losses[:2] == losses[2:]
    assert losses[0] != losses[1]


def test_what_is_drawn_is_drawn_again(device: New) -> None:
    one = device()
    task = fedce.classifier_task(one, one.classifier())
    first, second = (
        list(batches(one, task.draw, augmentation="augment", first=4, count=4)) for _ in range(2)
    )
    assert len(first) == 4
    for (images, labels), (again, same) in zip(first, second, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)
    seen = torch.cat([labels for _, labels in first])
    assert sorted(seen.tolist()) == sorted(one.train_labels.tolist())  # an epoch of 4 batches


def test_losses_of_samples_have_the_loss_of_the_batch_as_their_mean(device: New) -> None:
    one = device(**{"extractor.label-smoothing": 0.1})
    task = fedce.classifier_task(one, one.fresh_classifier())
    (batch,) = batches(one, task.draw, augmentation="augment", first=0, count=1)
    assert task.losses is not None
    losses = task.losses(batch)
    assert losses.shape == (10,)
    assert float(losses.detach().mean()) == pytest.approx(
        float(task.loss(batch).detach()), rel=1e-6
    )


def test_training_images_are_watched_only_if_their_weights_leave_anyway(device: New) -> None:
    plain, private = device(), device(**PRIVATE)
    np.testing.assert_array_equal(weights_of(plain).watched, plain.train_images)
    local = private.data.test.images[private.indices.test_local]
    np.testing.assert_array_equal(weights_of(private).watched, local)


def test_a_budget_that_cannot_be_kept_is_refused_before_a_step(device: New) -> None:
    """No noise up to the largest that is tried keeps an epsilon of 1e-5."""
    weights_of(device()).check()
    weights_of(device(**PRIVATE)).check()
    bad = device(**PRIVATE, **{"privacy.weights-epsilon": 1e-5})
    with pytest.raises(ConfigError, match="no noise keeps"):
        weights_of(bad).check()
    matrices_of(bad).check()  # is not about weights


def test_a_task_without_losses_of_samples_takes_no_private_step(device: New) -> None:
    """FedSC before there is a mean matrix."""
    one = device(
        **PRIVATE,
        **{"extractor.method": "fedsc", "contrast.projector-norm": "layer", "contrast.dim": 8},
    )
    content = {
        records.ARRAYS: records.from_numpy(fedsc.initial(one)),
        records.CONFIG: ConfigRecord({records.SERVER_ROUND: 1, records.LEARNING_RATE: 0.1}),
    }
    context = Context(
        1, 1, {"partition-id": 1, "num-partitions": 3}, RecordDict(), one.config.flat()
    )
    reply = fedsc.train(Message(RecordDict(content), 1, Action.FEDSC), context)
    trained = records.to_numpy(reply.content[records.ARRAYS])
    for name, value in fedsc.initial(one).items():
        np.testing.assert_array_equal(trained[name], value)
    assert reply.content[records.METRICS]["weights-steps"] == 0
    assert local_steps(one) == 1
