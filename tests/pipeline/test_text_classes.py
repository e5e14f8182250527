"""Text is classified on the road of images: sums, head, experts and gates on a text backbone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message

from nmoe_flower.client_app import app
from nmoe_flower.config import Config
from nmoe_flower.data import configured_images, configured_partition
from nmoe_flower.errors import RoundError
from nmoe_flower.models import SmallLM
from nmoe_flower.records import CONFIG, Action, TextKey
from tests.labelled_text import village_settings, write_village

New = Callable[..., Any]
GATES = "lda,prototype,federated,client-weights,local,domain,oracle"


@pytest.fixture(scope="module")
def posts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    write_village(folder, documents=20)
    return folder


def settings(posts: Path, **changes: Any) -> dict[str, Any]:
    controls = {"gate.methods": GATES, "run.controls": "ridge,local-classifier"}
    return {**village_settings(posts), **controls, **changes}


def test_the_head_is_the_ridge_on_mean_states_of_all_documents(
    posts: Path, new_pipeline: New
) -> None:
    pipeline = new_pipeline("text", settings(posts))
    results = pipeline()
    rows = {(row["gate"], row["test"]): row for row in results["rows"]}
    assert {gate for gate, _ in rows} >= {*GATES.split(","), "control:ridge"}
    told = {"accuracy", "macro_f1", "auc", "balanced_accuracy"}
    assert all(0 <= row[name] <= 1 for row in rows.values() for name in told)
    assert rows["lda", "iid"]["accuracy"] > 0.65

    train = training_latents(pipeline.config, SmallLM.read(posts / "backbone"))
    x, y = np.concatenate([one for one, _ in train]), np.concatenate([one for _, one in train])
    centre, deviation = x.mean(axis=0), x.std(axis=0)
    z = (x - centre) / deviation
    covariance = z.T @ z / len(z)
    shrunk = 0.9 * covariance + 0.1 * np.trace(covariance) / z.shape[1] * np.eye(z.shape[1])
    targets = np.eye(2)[y]
    weight = 6 * np.linalg.solve(shrunk, z.T @ (targets - targets.mean(axis=0)) / len(z)).T
    np.testing.assert_allclose(
        pipeline.weights["classifier/head.layers.0.weight"], weight, atol=0.03
    )
    np.testing.assert_allclose(
        pipeline.weights["classifier/head.layers.0.bias"], 6 * targets.mean(axis=0), atol=0.01
    )


def mean_state(model: SmallLM, text: bytes) -> np.ndarray:
    """The states of one document alone, brought to norm sqrt(d), and averaged."""
    with torch.no_grad():
        hidden = model.tokens.weight[list(text)] + model.places.weight[: len(text)]
        states = model.blocks[0](hidden[None])[0].double().numpy()
    sizes = np.sqrt((states**2).sum(axis=1, keepdims=True))
    return np.asarray((states / sizes).mean(axis=0) * states.shape[1] ** 0.5)


def training_latents(config: Config, model: SmallLM) -> list[tuple[np.ndarray, np.ndarray]]:
    data = configured_images(config)
    found = []
    for client in configured_partition(config, data, num_clients=3):
        tokens = data.train.images[client.train].reshape(len(client.train), -1).astype(int)
        states = [mean_state(model, bytes(row[row >= 0].tolist())) for row in tokens]
        found.append((np.stack(states), data.train.labels[client.train]))
    return found


def test_clients_with_other_tokenizers_are_refused(posts: Path, new_pipeline: New) -> None:
    def answer(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if (
            message.metadata.message_type == Action.DESCRIBE
            and context.node_config["partition-id"] == 1
        ):
            reply.content.config_records[CONFIG][TextKey.TOKENIZER] = "ab" * 32
        return reply

    pipeline = new_pipeline("other", settings(posts, **{"gate.methods": "local"}))
    with pytest.raises(RoundError, match="tokenizer of all clients must be the same: client 1 has"):
        pipeline(client_app=answer)
