"""The client half of FedSC on digits, against loops over single images."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from nmoe_flower import records
from nmoe_flower.client_app import app
from nmoe_flower.clients import fedsc
from nmoe_flower.clients.device import Device, Store, device_of
from nmoe_flower.config import Config
from nmoe_flower.data import normalise
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import CheckpointError, ConfigError, DataError, RoundError
from nmoe_flower.models import Contrastive
from nmoe_flower.privacy import GaussianMechanism, sensitivity, smat, svec
from nmoe_flower.records import Action, CorrelationKey
from nmoe_flower.strategies import FedSC
from nmoe_flower.training import generator

DIM, IMAGES = 8, 40
SETTINGS: dict[str, Any] = {
    "data.train-per-client": IMAGES,
    "data.test-per-client": 20,
    "extractor.method": "fedsc",
    "extractor.backbone": "linear",
    "extractor.batch-size": 10,
    "contrast.dim": DIM,
    "contrast.hidden": 16,
    "contrast.probe-images": 40,
}
PRIVATE = {"privacy.enabled": True, "privacy.delta": 1e-3, "privacy.releases": 2}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


New = Callable[..., Context]


@pytest.fixture
def client(cache: Path, tmp_path: Path) -> New:
    """A client's context, with these keys changed; ``folder`` names its disk."""

    def make(
        changes: dict[str, Any] | None = None, *, folder: str = "runs", partition: int = 1
    ) -> Context:
        values = SETTINGS | (changes or {})
        named = {"data.cache-dir": str(cache), "run.out": str(tmp_path / folder)}
        config = Config.parse(values | named)
        node = {"partition-id": partition, "num-partitions": 3}
        return Context(1, 1, node, RecordDict(), config.flat())

    return make


def mean_matrix(seed: int = 5) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(20, DIM))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return np.asarray(z.T @ z / 20, np.float32)


def sent(
    device: Device,
    *,
    server_round: int = 1,
    mean: np.ndarray | None = None,
    kept: list[int] | None = None,
    arrays: dict[str, np.ndarray] | None = None,
    **told: Any,
) -> Message:
    settings: dict[str, Any] = {
        records.SERVER_ROUND: server_round,
        "learning-rate": 0.1,
        CorrelationKey.RELEASE: True,
        **{CorrelationKey[key]: value for key, value in told.items()},
    }
    if kept is not None:
        settings[records.KEPT_ROUNDS] = kept
    content: dict[str, Any] = {
        records.ARRAYS: records.from_numpy(arrays or fedsc.initial(device)),
        records.CONFIG: ConfigRecord(settings),
    }
    if mean is not None:
        content[records.CORRELATION] = records.from_numpy({CorrelationKey.MEAN: svec(mean)})
        settings = content[records.CONFIG]
        settings[CorrelationKey.TOTAL] = 120.0
    return Message(RecordDict(content), 1, Action.FEDSC)


def packed_of(answer: Message) -> np.ndarray | None:
    record = answer.content.get(records.CORRELATION)
    return records.to_numpy(record)["packed"] if isinstance(record, ArrayRecord) else None


def weights_of(answer: Message) -> dict[str, np.ndarray]:
    return records.to_numpy(answer.content[records.ARRAYS])


def train(context: Context, **options: Any) -> Message:
    return fedsc.train(sent(device_of(context), **options), context)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(value.tobytes() == other[name].tobytes() for name, value in one.items())


def slow_feature(network: Contrastive, view: torch.Tensor) -> np.ndarray:
    """Of one image [C, H, W], in the unit ball; the linear extractor flattens it."""
    z = network.projector(view.flatten()[None].double())[0].numpy()
    return np.asarray(z / max(1.0, float(np.sqrt(sum(v * v for v in z)))))


def slow_terms(device: Device, *, server_round: int = 1, images: np.ndarray | None = None) -> Any:
    """Each image's part of R, [n, d, d] float64: views as in the pass, then one at a time."""
    network = device.fresh_contrastive().double()
    noise = generator(device.seed("views of the pass", server_round))
    pictures = device.train_images if images is None else images
    terms = []
    with torch.no_grad():
        for start in range(0, len(pictures), fedsc.PASS_BATCH):
            batch = normalise(pictures[start : start + fedsc.PASS_BATCH])
            for pair in zip(*device.views(batch, noise), strict=True):
                term = np.zeros((DIM, DIM))
                for view in pair:
                    z = slow_feature(network, view)
                    term += np.outer(z, z) / 2
                terms.append(term)
    return np.stack(terms)


# --- the matrix of a pass over all own images ---

PASS = {"contrast.source": "pass"}


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("batch", [7, 250])
def test_a_pass_counts_every_image_once(
    norm: str, batch: int, client: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fedsc, "PASS_BATCH", batch)
    context = client(PASS | {"contrast.projector-norm": norm})
    terms = slow_terms(device_of(context), server_round=4)
    found = packed_of(train(context, server_round=4))
    assert found is not None
    assert len(terms) == IMAGES
    np.testing.assert_allclose(smat(found), terms.mean(axis=0), atol=1e-6)


def test_it_is_made_before_the_weights_are_trained(client: New) -> None:
    """So in any number of steps it is that of the received weights."""
    one, many = client(PASS), client(PASS | {"extractor.local-steps": 5})
    assert np.array_equal(packed_of(train(one)), packed_of(train(many)))
    assert not same(weights_of(train(one)), weights_of(train(many)))


def replaced(device: Device, index: int, value: int) -> Device:
    """The same client, but for one image."""
    other = Device(device.config, device.partition, device.num_clients, device.store)
    images = device.train_images.copy()
    images[index] = value if index % 2 else np.arange(64, dtype=np.uint8).reshape(8, 8, 1) * 4
    other.__dict__["train_images"] = images
    return other


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_one_image_changes_its_own_term_only_and_the_matrix_by_the_sensitivity_at_most(
    norm: str, client: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the privacy proof needs: with running statistics set as if trained, too."""
    monkeypatch.setattr(fedsc, "PASS_BATCH", 16)
    device = device_of(client(PASS | {"contrast.projector-norm": norm}))
    network = device.contrastive()
    network.load_state_dict(device.fresh_contrastive().state_dict())
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                tensor.copy_(torch.linspace(0.1, 2, len(tensor)))
            if name.endswith("layers.3.weight"):
                tensor.mul_(50)  # so that most features reach the ball's surface
    network.train()  # the pass must not depend on what mode it finds
    matrix = fedsc._pass(device, network, 1)
    assert 0.8 < float(matrix.trace()) < 1 + 1e-6
    limit = sensitivity(1.0, IMAGES)
    changes = []
    for index, value in ((0, 0), (1, 255), (17, 0), (38, 255), (39, 7)):
        other = fedsc._pass(replaced(device, index, value), network, 1)
        change = other - matrix
        changes.append(float(torch.linalg.matrix_norm(change)))
        # The difference of two terms z z^T averaged over two views: rank 4 at most.
        assert int((torch.linalg.eigvalsh(change).abs() > 1e-6).sum()) <= 4
        assert abs(float(change.trace())) <= 1 / IMAGES + 1e-6
    assert max(changes) <= limit
    assert max(changes) > 0.1 * limit


def test_in_training_mode_batch_norm_would_break_that(client: New) -> None:
    """The check above can fail: here one image changes all terms."""
    device = device_of(client(PASS))
    network = device.fresh_contrastive()
    images = [normalise(d.train_images) for d in (device, replaced(device, 1, 255))]
    with torch.no_grad():
        network.train()
        one, other = (network(batch) for batch in images)
        assert (one - other)[2:].abs().max() > 1e-4
        network.eval()
        one, other = (network(batch) for batch in images)
        assert (one - other)[2:].abs().max() < 1e-6


# --- private releases ---


def ledger(context: Context) -> dict[str, Any]:
    path = device_of(context).store.folder / "privacy.json"
    return dict(json.loads(path.read_text())["spent"]) if path.exists() else {}


def test_a_private_matrix_is_the_pass_with_the_noise_that_is_told(client: New) -> None:
    context = client(PRIVATE)
    answer = train(context)
    metrics = answer.content[records.METRICS]
    noise = metrics["noise-multiplier"]
    assert metrics["noise-std"] == pytest.approx(noise * 2**0.5 / IMAGES)
    exact = slow_terms(device_of(context)).mean(axis=0)
    kept = records.to_numpy(answer.content[records.CORRELATION])
    drawn = (kept["packed"] - svec(exact)) / metrics["noise-std"]
    assert set(kept) == {"packed"}
    assert 0.6 < drawn.std() < 1.4  # of 36 numbers: deviation 0.12
    assert ledger(context) == {"1": [[noise, 1]]}
    memory = device_of(context).store.load("correlation-000001")
    np.testing.assert_allclose(memory["exact"], svec(exact), atol=1e-6)
    np.testing.assert_array_equal(memory["released"], kept["packed"])


def test_the_ledger_is_on_the_disk_before_the_noise_is_drawn_and_the_release_before_it_leaves(
    client: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, seen = client(PRIVATE), []
    release, reply = GaussianMechanism.release, records.reply
    folder = device_of(context).store.folder

    def watched_release(self: GaussianMechanism, *arguments: Any) -> torch.Tensor:
        seen.append(("release", ledger(context)["1"][0][1]))
        return release(self, *arguments)

    def watched_reply(*arguments: Any, **named: Any) -> Message:
        seen.append(("reply", (folder / "correlation-000001.safetensors").exists()))
        return reply(*arguments, **named)

    monkeypatch.setattr(GaussianMechanism, "release", watched_release)
    monkeypatch.setattr(records, "reply", watched_reply)
    assert packed_of(train(context)) is not None
    assert seen == [("release", 1), ("reply", True)]


def test_a_spent_budget_releases_nothing_and_still_trains(client: New) -> None:
    context = client(PRIVATE)
    device = device_of(context)
    answers = [train(context, server_round=r) for r in (1, 2, 3)]
    assert [packed_of(answer) is None for answer in answers] == [False, False, True]
    assert not same(weights_of(answers[2]), fedsc.initial(device))
    assert "noise-std" not in answers[2].content[records.METRICS]
    first_phase = fedsc.correlate(sent(device, server_round=4), context)
    assert packed_of(first_phase) is None
    ((_, count),) = ledger(context)["1"]
    assert count == 2
    again = train(context, server_round=2)  # was paid for
    assert np.array_equal(packed_of(again), packed_of(answers[1]))


@pytest.mark.parametrize("secure", [False, True])
def test_the_same_round_asked_twice_sends_the_same_bits_and_spends_nothing(
    secure: bool, client: New
) -> None:
    context = client(PRIVATE | {"privacy.secure": secure})
    one, other = train(context), train(context)
    assert np.array_equal(packed_of(one), packed_of(other))
    assert dict(one.content[records.METRICS]) == dict(other.content[records.METRICS])
    moved = {name: value + 1 for name, value in fedsc.initial(device_of(context)).items()}
    elsewhere = train(context, arrays=moved)  # even if the weights were others
    assert np.array_equal(packed_of(one), packed_of(elsewhere))
    ((_, count),) = ledger(context)["1"]
    assert count == 1


@pytest.mark.parametrize("secure", [False, True])
def test_noise_repeats_on_another_disk_unless_it_is_secure(secure: bool, client: New) -> None:
    changes = PRIVATE | {"privacy.secure": secure}
    first, second = (packed_of(train(client(changes, folder=f))) for f in ("one", "two"))
    assert np.array_equal(first, second) == (not secure)
    later = packed_of(train(client(changes, folder="one"), server_round=2))
    assert not np.array_equal(first, later)


@pytest.mark.parametrize("secure", [False, True])
def test_no_noise_is_used_for_two_rounds_or_two_clients(secure: bool, client: New) -> None:
    """The same noise on two matrices would tell their difference."""
    drawn = []
    for partition in (0, 1):
        context = client(PRIVATE | {"privacy.secure": secure}, partition=partition)
        for server_round in (1, 2):
            train(context, server_round=server_round)
            kept = device_of(context).store.load(f"correlation-{server_round:06d}")
            drawn.append(kept["released"] - kept["exact"])
    likeness = np.corrcoef(drawn) - np.eye(4)
    assert np.abs(likeness).max() < 0.6  # of 36 numbers each: deviation 0.17


def test_a_private_release_waits_for_the_disk(client: New, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut could forget one that has left, and its round would be free again."""
    synced = []
    save = Store.save

    def watched(self: Store, name: str, arrays: Any, *, sync: bool = False) -> None:
        synced.append(sync)
        save(self, name, arrays, sync=sync)

    monkeypatch.setattr(Store, "save", watched)
    train(client(PRIVATE, folder="private"))
    train(client(folder="plain"))
    assert synced == [True, False]


@pytest.mark.parametrize("secure", [False, True])
def test_killed_between_paying_and_releasing_it_does_not_pay_twice(
    secure: bool, client: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = PRIVATE | {"privacy.secure": secure, "privacy.releases": 1}
    straight = packed_of(train(client(changes, folder="straight")))
    context = client(changes)
    with monkeypatch.context() as patch:

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(GaussianMechanism, "release", killed)
        with pytest.raises(KeyboardInterrupt):
            train(context)
    assert ledger(context)["1"][0][1] == 1
    released = packed_of(train(context))
    assert released is not None
    assert np.array_equal(released, straight) == (not secure)
    assert ledger(context)["1"][0][1] == 1
    assert packed_of(train(context, server_round=2)) is None


def test_a_damaged_ledger_ends_the_releases(client: New) -> None:
    context = client(PRIVATE)
    train(context)
    (device_of(context).store.folder / "privacy.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read the ledger"):
        train(context, server_round=2)


def test_a_ledger_that_was_deleted_ends_the_releases(client: New) -> None:
    context = client(PRIVATE)
    train(context)
    (device_of(context).store.folder / "privacy.json").unlink()
    with pytest.raises(CheckpointError, match="no ledger of their cost"):
        train(context, server_round=2)


def test_delta_must_be_below_one_in_the_number_of_images(client: New) -> None:
    """The configuration refuses it where it knows the number; the client always knows."""
    context = client(PRIVATE)
    config = device_of(context).config
    delta = config.privacy.model_copy(update={"delta": 1 / IMAGES})
    device = replace(device_of(context), config=config.model_copy(update={"privacy": delta}))
    with pytest.raises(ConfigError, match=r"delta.*0\.025"):
        _ = device.mechanism
    assert packed_of(train(client(PRIVATE | {"privacy.delta": 0.99 / IMAGES}))) is not None


# --- exchanges ---


@pytest.mark.parametrize(
    "changes",
    [PASS, PASS | PRIVATE, {"contrast.source": "batches"}],
    ids=["pass", "private", "batches"],
)
def test_two_phases_send_what_one_sends(changes: dict[str, Any], client: New) -> None:
    """One local step: the first batch sees the received weights in both."""
    merged = train(client(changes, folder="merged"))
    context = client(changes, folder="two-phase")
    device = device_of(context)
    first = fedsc.correlate(sent(device), context)
    found, expected = packed_of(first), packed_of(merged)
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-7)
    if "pass" in changes.values():
        assert np.array_equal(found, expected)
    second = train(context, RELEASE=False)
    assert packed_of(second) is None
    assert same(weights_of(second), weights_of(merged))
    numbers = {k: v for k, v in merged.content[records.METRICS].items() if k != "loss"}
    assert dict(first.content[records.METRICS]) == numbers


def test_the_matrix_of_several_batches_is_their_mean(client: New) -> None:
    """Rate 0, no BatchNorm: every batch sees the same weights, and the batches all images."""
    changes = {
        "contrast.source": "batches", "contrast.projector-norm": "none",
        "extractor.local-steps": 4,
    }  # fmt: skip
    context = client(changes)
    device = device_of(context)
    first = fedsc.correlate(sent(device), context)
    network = device.fresh_contrastive().double()
    total = np.zeros((DIM, DIM))
    count = 0
    with torch.no_grad():
        for pair in fedsc._batches(device, 1):
            for view in torch.cat(pair):
                z = slow_feature(network, view)
                total += np.outer(z, z)
                count += 1
    assert count == 2 * IMAGES
    np.testing.assert_allclose(smat(packed_of(first)), total / count, atol=1e-6)


def test_a_client_takes_its_own_part_out_of_the_mean(client: New) -> None:
    """R of round 1 is 40 of 120 samples: a mean that holds it and one that holds the rest, told of
    no own part but weighted alike, teach the same.
    """
    knowing, rest = client(folder="knowing"), mean_matrix()
    own = smat(packed_of(train(knowing)))
    mean = own / 3 + rest * 2 / 3
    one = train(knowing, server_round=2, mean=mean.astype(np.float32), OWN_ROUND=1)
    other = train(client(folder="new"), server_round=2, mean=rest, SHARE=1 / 3)
    for name, value in weights_of(one).items():
        np.testing.assert_allclose(value, weights_of(other)[name], atol=1e-6)


def test_a_matrix_the_server_dropped_does_not_push_out_the_one_it_has(client: New) -> None:
    context = client()
    device = device_of(context)
    own = smat(packed_of(train(context)))
    mean = (own / 3 + mean_matrix() * 2 / 3).astype(np.float32)
    for server_round in (2, 3):  # both replies are lost: the server goes on with round 1
        train(context, server_round=server_round, mean=mean, OWN_ROUND=1)
    assert device.store.has("correlation-000001")
    answer = train(context, server_round=4, mean=mean, OWN_ROUND=1)
    rest = train(client(folder="new"), server_round=4, mean=mean_matrix(), SHARE=1 / 3)
    for name, value in weights_of(answer).items():
        np.testing.assert_allclose(value, weights_of(rest)[name], atol=1e-6)
    train(context, server_round=5, mean=mean, OWN_ROUND=4)
    train(context, server_round=6, mean=mean, OWN_ROUND=5)
    assert not device.store.has("correlation-000001")


@pytest.mark.parametrize(
    ("changes", "left"),
    [({}, [2, 5, 6]), (PRIVATE | {"privacy.releases": 9}, [1, 2, 3, 4, 5, 6])],
    ids=["plain", "private"],
)
def test_matrices_are_kept_for_resumed_runs_and_private_ones_for_ever(
    changes: dict[str, Any], left: list[int], client: New
) -> None:
    """A run that may be resumed after round 2, and whose server has that of the round before."""
    context = client(changes)
    for server_round in range(1, 7):
        answer = train(
            context, server_round=server_round, kept=[2], mean=mean_matrix(),
            OWN_ROUND=server_round - 1,
        )  # fmt: skip
        assert packed_of(answer) is not None
    files = device_of(context).store.folder.glob("correlation-*.safetensors")
    assert sorted(int(path.stem[-6:]) for path in files) == left


# --- share modes ---


def test_how_much_of_the_loss_is_its_own(client: New) -> None:
    """``own`` does as if nobody else was there; samples and a schedule differ by the share."""

    def trained(mode: str, mean: np.ndarray | None, **told: Any) -> dict[str, np.ndarray]:
        context = client({"contrast.share": mode}, folder=f"{mode}-{mean is None}-{told}")
        return weights_of(train(context, mean=mean, **told))

    alone = trained("samples", None)
    assert same(trained("own", mean_matrix()), alone)
    assert same(trained("own", mean_matrix(), SHARE=0.3), alone)
    by_samples = trained("samples", mean_matrix())  # not in the mean: 40 / (120 + 40)
    assert same(trained("schedule", mean_matrix(), SHARE=0.25), by_samples)
    assert not same(trained("schedule", mean_matrix(), SHARE=0.9), by_samples)
    assert not same(by_samples, alone)
    assert same(trained("schedule", mean_matrix(), SHARE=1.0), alone)


def test_a_running_correlation_changes_what_comes_after_the_first_batch(client: New) -> None:
    for steps, equal in ((1, True), (2, False)):
        plain, running = (
            weights_of(
                train(
                    client(
                        {"extractor.local-steps": steps, "contrast.running": decay},
                        folder=f"{steps}-{decay}",
                    )
                )
            )
            for decay in (0.0, 0.5)
        )
        assert same(plain, running) == equal


# --- bad input, by name ---


def meddling(change: Callable[[Message, Context], None]) -> Callable[[Message, Context], Message]:
    """The real app, with something wrong at partition 1."""

    def call(message: Message, context: Context) -> Message:
        training = message.metadata.message_type == Action.FEDSC
        if training and context.node_config["partition-id"] == 1:
            change(message, context)
        return app(message, context)

    return call


def nan_weights(message: Message, context: Context) -> None:
    arrays = records.to_numpy(message.content[records.ARRAYS])
    broken = {n: v * np.nan if v.dtype.kind == "f" else v for n, v in arrays.items()}
    message.content[records.ARRAYS] = records.from_numpy(broken)


def batches_of_one(message: Message, context: Context) -> None:
    context.run_config = {**context.run_config, "extractor.batch-size": 1}


def a_pass(message: Message, context: Context) -> None:
    nan_weights(message, context)
    context.run_config = {**context.run_config, "contrast.source": "pass"}


def large_delta(message: Message, context: Context) -> None:
    changed = {"privacy.enabled": True, "privacy.delta": 0.5}
    context.run_config = {**context.run_config, **changed}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (nan_weights, "z1 must be finite: 10 of 10 rows hold NaN"),
        (a_pass, "features must be finite: 40 of 40 rows are not"),
        (batches_of_one, "extractor.batch-size = 1 leaves extractor.method = fedsc without"),
        (large_delta, "delta"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_and_the_client_named(
    change: Callable[[Message, Context], None], reason: str, client: New
) -> None:
    context = client()
    strategy = FedSC(
        action=Action.FEDSC, dim=DIM, learning_rate=lambda _: 0.1, min_available_nodes=3
    )
    arrays = records.from_numpy(fedsc.initial(device_of(context)))
    with InProcessGrid(meddling(change), 3, run_config=context.run_config) as grid:
        messages = list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
        updated, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert updated is not None
    (failure,) = strategy.last_exchange.failures
    assert failure["partition"] == 1
    assert reason in failure["reason"]
    assert strategy.last_exchange.clients == [0, 2]
    assert len(strategy.correlations) == 2


def test_a_round_of_nothing_else_says_who_and_why(client: New) -> None:
    context = client()
    strategy = FedSC(action=Action.FEDSC, dim=DIM, learning_rate=lambda _: 0.1)
    arrays = records.from_numpy(fedsc.initial(device_of(context)))
    alone = {**context.run_config, "extractor.batch-size": 1}
    with InProcessGrid(app, 3, run_config=alone) as grid:
        messages = list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
        with pytest.raises(RoundError, match=r"clients 0, 1, 2: .*without negatives"):
            strategy.aggregate_train(1, grid.send_and_receive(messages))


# --- how the encoder is watched ---


@pytest.mark.parametrize("probe", ["pooled", "local", "none"])
def test_what_is_watched(probe: str, client: New) -> None:
    context = client({"contrast.probe": probe}, partition=0)
    device = device_of(context)
    answer = fedsc.test(sent(device), context)
    metrics = dict(answer.content[records.METRICS])
    named = {"num-examples", "alignment", "uniformity"}
    probes = set() if probe == "none" else {"knn-accuracy", "probe-accuracy"}
    assert set(metrics) == named | probes
    assert 0 < metrics["alignment"] < 2
    assert -4.1 < metrics["uniformity"] < 0
    for name in probes:
        assert 0.2 < metrics[name] <= 1
    assert metrics == dict(fedsc.test(sent(device), context).content[records.METRICS])


@pytest.mark.parametrize("probe", ["pooled", "local", "none"])
def test_where_one_watches_for_all_the_others_measure_nothing(probe: str, client: New) -> None:
    context = client({"contrast.probe": probe}, partition=2)
    told = fedsc.test(sent(device_of(context)), context).content[records.METRICS]
    if probe == "pooled":
        assert dict(told) == {"num-examples": 0}
    else:
        assert {"num-examples", "alignment", "uniformity"} <= set(told)


@pytest.mark.parametrize("partition", [0, 2])
def test_the_last_test_keeps_latents_of_tests(client: New, partition: int) -> None:
    context = client({"extractor.rounds": 2}, partition=partition)
    device = device_of(context)
    for current, kept in ((1, False), (2, True)):
        fedsc.test(sent(device, server_round=current), context)
        assert device.store.has("test-latents") == kept
    network = device.contrastive()
    held = device.store.load("test-latents")
    for name, test in device.tests.items():
        with torch.inference_mode():
            alone = network.extractor(normalise(test.split.images[test.rows]))
        np.testing.assert_allclose(held[name], alone.numpy(), rtol=1e-5, atol=1e-6)


def test_a_device_with_images_of_its_own_cannot_watch_for_all(client: New, tmp_path: Path) -> None:
    context = client()
    own = replace(device_of(context), folder=str(tmp_path))
    with pytest.raises(DataError, match=r"only, and everybody's .* set contrast\.probe = local"):
        _ = own.everyone


def test_the_initial_weights_are_the_same_everywhere(client: New) -> None:
    one, other = (
        app(Message(RecordDict(), 1, Action.INITIAL), client(partition=p)) for p in (0, 2)
    )
    assert same(weights_of(one), weights_of(other))
    assert {name.partition(".")[0] for name in weights_of(one)} == {"projector"}
