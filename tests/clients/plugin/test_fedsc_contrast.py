"""The helper other people's apps use; strategies/test_fedsc.py has it in whole rounds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import Tensor

from nmoe_flower import records
from nmoe_flower.clients import Contrast, MatrixRelease, StateMemory
from nmoe_flower.errors import ConfigError, ReplyError
from nmoe_flower.privacy import (
    Budget,
    GaussianMechanism,
    noise_multiplier_for,
    packed_size,
    smat,
    svec,
)
from nmoe_flower.records import CorrelationKey

DIM = 4


def node() -> Context:
    return Context(1, 1, {}, RecordDict(), {})


def random_matrix(seed: int) -> Tensor:
    z = features(6, seed)
    return z.T @ z / 6


def features(batch: int, seed: int, length: float = 0.9) -> Tensor:
    z = torch.randn(batch, DIM, generator=torch.Generator().manual_seed(seed))
    return length * z / z.norm(dim=1, keepdim=True)


def sent(mean: Tensor | None = None, server_round: int = 3, **told: Any) -> Message:
    """What a FedSC server sends; keys of ``told`` are those of CorrelationKey."""
    settings = {CorrelationKey[key]: value for key, value in told.items()}
    content: dict[str, Any] = {
        records.ARRAYS: ArrayRecord(),
        records.CONFIG: ConfigRecord({records.SERVER_ROUND: server_round, **settings}),
    }
    if mean is not None:
        packed = svec(mean).numpy()
        content[records.CORRELATION] = records.from_numpy({CorrelationKey.MEAN: packed})
    return Message(RecordDict(content), 1, "train")


def slow_loss(z1: Tensor, z2: Tensor, others: Tensor, *, share: float, weight: float) -> float:
    """Eq. 4 from sums over pairs of samples, negatives without a pair's own terms, float64.

    ||R||^2 / 2 is half the mean of squared products over pairs of different samples, any views.
    """
    one, two = z1.double(), z2.double()
    batch = len(one)
    negative = 0.0
    for i in range(batch):
        for j in range(batch):
            if i != j:
                for a in (one[i], two[i]):
                    for b in (one[j], two[j]):
                        negative += float(a @ b) ** 2 / (4 * batch * (batch - 1)) / 2
    cross = 0.0
    for view in (*one, *two):
        cross += float(view @ others.double() @ view) / (2 * batch)
    positive = sum(float(one[i] @ two[i]) for i in range(batch)) / batch
    return weight * (share * negative + (1 - share) * cross) - positive


# --- what the others' mean is ---


def test_a_client_takes_its_own_part_out() -> None:
    """30 of 120 samples are its own: (R - R_own / 4) / (3 / 4), here from three other clients."""
    matrices, sizes = [random_matrix(k) for k in range(4)], [30, 40, 10, 40]
    mean = sum(n * m for n, m in zip(sizes, matrices, strict=True)) / 120
    context = node()
    first = Contrast(sent(), StateMemory(context), num_examples=30)
    first.keep(matrices[0])
    message = sent(mean, server_round=4, TOTAL=120.0, OWN_ROUND=3)
    side = Contrast(message, StateMemory(context), num_examples=30)
    expected = sum(n * m for n, m in zip(sizes[1:], matrices[1:], strict=True)) / 90
    torch.testing.assert_close(side.others, expected, atol=1e-6, rtol=0)
    assert side.share == 30 / 120


def test_a_client_that_is_not_in_the_mean_adds_itself() -> None:
    for told in ({}, {"OWN_ROUND": 0}, {"OWN_ROUND": 2}):  # 2 was sent by an earlier life
        message = sent(random_matrix(0), TOTAL=90.0, **told)
        side = Contrast(message, StateMemory(node()), num_examples=30)
        torch.testing.assert_close(side.others, random_matrix(0))
        assert side.share == 30 / 120


def test_without_a_mean_or_without_others_the_loss_is_its_own() -> None:
    alone, context = sent(random_matrix(0), server_round=4, TOTAL=30.0, OWN_ROUND=3), node()
    Contrast(sent(), StateMemory(context), num_examples=30).keep(random_matrix(0))
    for message in (sent(SHARE=0.2), alone):
        side = Contrast(message, StateMemory(context), num_examples=30)
        assert side.others is None
        assert side.share == 1.0
        loss = side.loss(features(5, 1), features(5, 2))
        expected = slow_loss(
            features(5, 1), features(5, 2), torch.zeros(DIM, DIM), share=1.0, weight=1.0
        )
        assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_a_client_that_stays_alone_has_no_others_but_goes_on_from_its_own_matrix() -> None:
    context = node()
    Contrast(sent(), StateMemory(context), num_examples=30).keep(random_matrix(0))
    message = sent(random_matrix(1), server_round=4, TOTAL=90.0, SHARE=0.7, OWN_ROUND=3)
    side = Contrast(message, StateMemory(context), num_examples=30, alone=True, running=0.5)
    assert side.others is None
    assert side.share == 1.0
    batch = features(5, 1), features(5, 2)
    fresh = Contrast(sent(SHARE=0.7), StateMemory(node()), num_examples=30, running=0.5)
    assert float(side.loss(*batch)) != float(fresh.loss(*batch))  # whose past is empty


def test_what_the_server_says_goes_before_the_share_of_samples() -> None:
    side = Contrast(
        sent(random_matrix(0), TOTAL=90.0, SHARE=0.7), StateMemory(node()), num_examples=30
    )
    assert side.share == 0.7


def test_the_noise_in_ones_own_part_is_taken_out_unless_the_server_removed_it() -> None:
    exact, noisy, rest = random_matrix(0), random_matrix(0) + 0.3 * torch.eye(DIM), random_matrix(1)
    for shrunk, own in ((False, noisy), (True, exact)):
        context = node()
        Contrast(sent(), StateMemory(context), num_examples=10).keep(noisy, exact)
        mean = 0.25 * own + 0.75 * rest
        message = sent(mean, server_round=4, TOTAL=40.0, OWN_ROUND=3, SHRUNK=shrunk)
        side = Contrast(message, StateMemory(context), num_examples=10)
        torch.testing.assert_close(side.others, rest, atol=1e-6, rtol=0)


def test_a_mean_of_another_width_is_named() -> None:
    side = Contrast(sent(torch.eye(3), TOTAL=9.0), StateMemory(node()), num_examples=3)
    with pytest.raises(ConfigError, match=r"others must be \(4, 4\), got \(3, 3\)"):
        side.loss(features(5, 1), features(5, 2))


# --- the loss ---


@pytest.mark.parametrize(("share", "weight"), [(0.1, 1.0), (0.5, 12.0), (1.0, 3.0)])
def test_the_loss_against_sums_over_pairs(share: float, weight: float) -> None:
    mean, z1, z2 = random_matrix(0), features(6, 1), features(6, 2)
    message = sent(mean, TOTAL=90.0, SHARE=share)
    side = Contrast(message, StateMemory(node()), num_examples=30, weight=weight)
    expected = slow_loss(z1, z2, mean, share=share, weight=weight)
    assert float(side.loss(z1, z2)) == pytest.approx(expected, abs=1e-5)


def test_features_outside_of_the_ball_are_brought_back() -> None:
    mean, z1, z2 = random_matrix(0), features(6, 1, length=1.0), features(6, 2, length=1.0)
    side, far = (
        Contrast(sent(mean, TOTAL=90.0, RELEASE=True), StateMemory(node()), num_examples=30)
        for _ in range(2)
    )
    assert float(far.loss(7 * z1, 2 * z2)) == pytest.approx(float(side.loss(z1, z2)), abs=1e-6)
    matrix = far.matrix()
    assert matrix is not None
    assert float(matrix.trace()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(matrix, side.matrix(), atol=1e-6, rtol=0)


def test_a_running_mean_is_that_of_the_batches_before() -> None:
    """Own term <R_B, P> - ||P||^2 / 2 with P = (d^2 R_1 + d R_2 + R_3) / (1 + d + d^2) in batch 4.

    Batch 1 has no past, so it is that of no running mean.
    """
    decay, share, weight, mean = 0.6, 0.3, 2.0, random_matrix(9)
    message = sent(mean, TOTAL=90.0, SHARE=share)
    side = Contrast(message, StateMemory(node()), num_examples=30, weight=weight, running=decay)
    past: list[np.ndarray] = []
    for step in range(4):
        z1, z2 = features(5, 2 * step), features(5, 2 * step + 1)
        found = float(side.loss(z1, z2))
        both = torch.cat([z1, z2]).double().numpy()
        matrix = sum(np.outer(z, z) for z in both) / 10
        if not past:
            expected = slow_loss(z1, z2, mean, share=share, weight=weight)
        else:
            powers = [decay ** (len(past) - 1 - k) for k in range(len(past))]
            mixed = sum(p * m for p, m in zip(powers, past, strict=True)) / sum(powers)
            own = (matrix * mixed).sum() - (mixed**2).sum() / 2
            cross = (matrix * mean.double().numpy()).sum()
            positive = float((z1.double() * z2.double()).sum()) / 5
            expected = weight * (share * own + (1 - share) * cross) - positive
        assert found == pytest.approx(expected, abs=1e-5)
        past.append(matrix)


def test_a_running_mean_goes_on_in_the_next_round() -> None:
    """One batch per round: P is R_1 in round 2, d R_1 + (1 - d) R_2 in round 3."""
    decay, weight, mean, memory = 0.6, 2.0, random_matrix(9), StateMemory(node())
    matrices: list[np.ndarray] = []
    for number in (1, 2, 3):
        told = {"OWN_ROUND": number - 1} if number > 1 else {}
        message = sent(mean, number, TOTAL=90.0, SHARE=1.0, RELEASE=True, **told)
        side = Contrast(message, memory, num_examples=30, weight=weight, running=decay)
        z1, z2 = features(5, 2 * number), features(5, 2 * number + 1)
        found = float(side.loss(z1, z2))
        matrix = side.matrix()
        assert matrix is not None
        side.keep(matrix)
        past = {
            2: lambda: matrices[0],
            3: lambda: decay * matrices[0] + (1 - decay) * matrices[1],
        }.get(number)
        matrices.append(matrix.double().numpy())
        if past is not None:
            own = (matrices[-1] * past()).sum() - (past() ** 2).sum() / 2
            positive = float((z1.double() * z2.double()).sum()) / 5
            assert found == pytest.approx(weight * own - positive, abs=1e-5)


def test_a_running_mean_gets_no_gradient_from_the_past() -> None:
    side = Contrast(sent(), StateMemory(node()), num_examples=30, running=0.9)
    first = features(5, 1).requires_grad_()
    side.loss(first, features(5, 2))
    second = features(5, 3).requires_grad_()
    side.loss(second, features(5, 4)).backward()
    assert first.grad is None
    assert second.grad is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    side = Contrast(sent(RELEASE=True), StateMemory(node()), num_examples=30)
    bad = features(5, 1)
    bad[3, 0] = value
    with pytest.raises(ConfigError, match="z1 must be finite: 1 of 5 rows"):
        side.loss(bad, features(5, 2))
    assert side.matrix() is None


@pytest.mark.parametrize("running", [0.0, 0.5])
def test_a_batch_of_one_is_refused_where_it_has_no_negatives(running: float) -> None:
    side = Contrast(sent(), StateMemory(node()), num_examples=30, running=running)
    with pytest.raises(ConfigError, match="a batch of one sample has no negatives"):
        side.loss(features(1, 1), features(1, 2))


# --- the own matrix and the answer ---


def test_the_own_matrix_is_the_mean_over_the_batches_seen() -> None:
    side = Contrast(sent(RELEASE=True), StateMemory(node()), num_examples=30)
    total = np.zeros((DIM, DIM))
    for step in range(3):
        z1, z2 = features(5, 2 * step), features(5, 2 * step + 1)
        side.loss(z1, z2)
        for row in torch.cat([z1, z2]).double().numpy():
            total += np.outer(row, row) / 30
    matrix = side.matrix()
    assert matrix is not None
    np.testing.assert_allclose(matrix.numpy(), total, atol=1e-6)
    assert not matrix.requires_grad


def test_nothing_is_added_up_or_sent_when_it_is_not_wanted() -> None:
    message = sent(RELEASE=False)
    side = Contrast(message, StateMemory(node()), num_examples=30)
    side.loss(features(5, 1), features(5, 2))
    assert side.matrix() is None
    answer = side.reply(message, {"w": torch.ones(2)}, {"loss": 0.5})
    assert records.CORRELATION not in answer.content
    assert dict(answer.content[records.METRICS]) == {"num-examples": 30, "loss": 0.5}
    assert records.to_numpy(answer.content[records.ARRAYS])["w"].tolist() == [1, 1]


def test_the_answer_holds_half_of_the_matrix_and_the_memory_the_same() -> None:
    message, context = sent(RELEASE=True), node()
    side = Contrast(message, StateMemory(context), num_examples=30)
    side.loss(features(5, 1), features(5, 2))
    answer = side.reply(message, {})
    packed = records.to_numpy(answer.content[records.CORRELATION])["packed"]
    assert (packed.shape, packed.dtype) == ((packed_size(DIM),), np.float32)
    np.testing.assert_allclose(smat(packed), side.matrix(), atol=1e-7)
    kept = StateMemory(context).load(3)
    assert kept is not None
    np.testing.assert_array_equal(kept["released"], packed)


def test_a_matrix_that_is_wanted_and_was_never_seen_is_an_error() -> None:
    message = sent(RELEASE=True)
    side = Contrast(message, StateMemory(node()), num_examples=30)
    with pytest.raises(ReplyError, match="wanted, but no batch was seen"):
        side.reply(message, {})


@pytest.mark.parametrize("had_samples", [False, True])
def test_a_client_without_samples_has_no_matrix_and_no_weight(had_samples: bool) -> None:
    context = node()
    if had_samples:
        StateMemory(context).save(2, packed(1.0))
    message = sent(random_matrix(1), RELEASE=True, TOTAL=40, OWN_ROUND=2)
    answer = Contrast(message, StateMemory(context), num_examples=0).reply(message, {})
    assert answer.content.keys() == {"arrays", "metrics"}
    assert dict(records.metrics_of(answer.content)) == {"num-examples": 0}


# --- the memory ---


def packed(value: float) -> dict[str, np.ndarray]:
    return {"released": np.full(3, value, np.float32)}


def test_the_last_matrix_is_kept_and_no_other() -> None:
    context = node()
    for server_round in (1, 2, 3):
        StateMemory(context).save(server_round, packed(server_round))
    memory = StateMemory(context)
    assert [memory.load(r) is None for r in (1, 2)] == [True, True]
    assert memory.load(3)["released"].tolist() == [3, 3, 3]
    assert len(context.state) == 1


def test_a_matrix_the_server_never_got_does_not_push_out_the_one_it_has() -> None:
    """Round 1 arrives; the replies of rounds 2 and 3 are lost; round 4 is told of round 1."""
    context = node()
    StateMemory(context).save(1, packed(1))
    for server_round in (2, 3):
        memory = StateMemory(context)
        assert memory.load(1) is not None
        memory.save(server_round, packed(server_round))
    assert StateMemory(context).load(1)["released"].tolist() == [1, 1, 1]
    assert len(context.state) == 2


def test_other_records_of_the_node_stay() -> None:
    context = node()
    context.state["mine"] = ConfigRecord({"a": 1})
    for server_round in (1, 2):
        StateMemory(context).save(server_round, packed(server_round))
    assert "mine" in context.state


# --- private releases ---


def released(
    context: Context, folder: Path, server_round: int, **options: Any
) -> tuple[Contrast, ArrayRecord | None]:
    """One round of a client whose budget is for two releases."""
    mechanism = GaussianMechanism(
        noise_multiplier_for(8.0, 1e-3, releases=2), 1.0, num_examples=50, secure=True
    )
    way_out = MatrixRelease(folder, 0, Budget(8.0, 1e-3), mechanism)
    message = sent(server_round=server_round, RELEASE=True)
    side = Contrast(message, StateMemory(context), num_examples=50)
    return side, side.release(way_out, lambda: random_matrix(server_round).double(), **options)


def bits(record: ArrayRecord | None) -> bytes:
    assert record is not None
    return records.to_numpy(record)[CorrelationKey.PACKED].tobytes()


def test_a_private_round_asked_again_sends_the_same_bits_and_what_left_is_remembered(
    tmp_path: Path,
) -> None:
    context = node()
    one, other = (released(context, tmp_path, 1)[1] for _ in range(2))
    assert bits(one) == bits(other)
    kept = StateMemory(context).load(1)
    assert kept is not None
    np.testing.assert_array_equal(kept["released"].tobytes(), bits(one))
    np.testing.assert_allclose(kept["exact"], svec(random_matrix(1)), atol=1e-6)
    assert (tmp_path / "privacy.json").read_text().endswith(', 1]]}, "round": 0}')


def test_a_memory_that_a_crash_forgets_makes_no_round_free(tmp_path: Path) -> None:
    """Else the same round would be released twice with other noise, for the price of one."""
    lost = [bits(released(node(), tmp_path, 1)[1]) for _ in range(2)]
    assert lost[0] != lost[1]
    assert released(node(), tmp_path, 1)[1] is None
    for _ in range(3):  # if the memory were on the disk, it would be paid for once
        assert released(node(), tmp_path / "disk", 1, on_disk=True)[1] is not None


def test_when_the_budget_is_spent_no_matrix_is_made_and_none_leaves(tmp_path: Path) -> None:
    for server_round in (1, 2):
        assert released(node(), tmp_path, server_round)[1] is not None
    side, nothing = released(node(), tmp_path, 3)
    assert nothing is None
    side.loss(features(5, 0), features(5, 1))  # the batch is not summed up in its place
    reply = side.reply(sent(), {"w": torch.zeros(1)}, correlation=nothing)
    assert records.CORRELATION not in reply.content


def test_a_release_does_not_push_out_the_matrix_the_server_has(tmp_path: Path) -> None:
    context = node()
    StateMemory(context).save(4, packed(4.0))
    side = Contrast(sent(server_round=7, OWN_ROUND=4), StateMemory(context), num_examples=50)
    assert side.sent_before() is None
    side.keep(random_matrix(7))
    assert StateMemory(context).load(4) is not None
