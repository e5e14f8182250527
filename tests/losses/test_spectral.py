import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.errors import ConfigError
from nmoe_flower.losses import (
    RunningCorrelation,
    correlation,
    local_spectral,
    others_mean,
    sample_spectral,
    spectral_contrastive,
    unit_ball,
)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slow_loss(z1, z2, others, share, weight, unbiased):
    """Eq. 4 pair by pair, in plain Python."""
    size = len(z1)
    views = [(i, z) for i in range(size) for z in (z1[i].tolist(), z2[i].tolist())]

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    squares = [
        dot(a, b) ** 2 for i, a in views for j, b in views if not unbiased or i != j
    ]  # fmt: skip
    cross = 0.0
    if others is not None:
        for _, a in views:
            cross += sum(
                a[r] * a[c] * float(others[r, c]) for r in range(len(a)) for c in range(len(a))
            ) / len(views)
    positive = sum(dot(a, b) for a, b in zip(z1.tolist(), z2.tolist(), strict=True)) / size
    own = sum(squares) / len(squares)
    return -positive + weight * (share / 2 * own + (1 - share) * cross)


@given(
    size=st.integers(2, 6),
    dim=st.integers(1, 5),
    share=st.floats(0.05, 1),
    weight=st.floats(0, 12),
    unbiased=st.booleans(),
    seed=st.integers(0, 999),
)
def test_losses_against_pairs_one_by_one(size, dim, share, weight, unbiased, seed):
    z1, z2, other = draw(3, 7, dim, seed=seed)
    z1, z2, others = z1[:size], z2[:size], correlation(other)
    slow = slow_loss(z1, z2, others, share, weight, unbiased)
    fast = local_spectral(z1, z2, others, share=share, weight=weight, unbiased=unbiased)
    assert fast.item() == pytest.approx(slow, rel=1e-10, abs=1e-10)
    slow = slow_loss(z1, z2, None, 1.0, weight, unbiased)
    fast = spectral_contrastive(z1, z2, weight=weight, unbiased=unbiased)
    assert fast.item() == pytest.approx(slow, rel=1e-10, abs=1e-10)


def test_by_hand():
    z1, z2 = torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [0.0]])
    # pairs of different samples: 1*1, 1*0, 1*1, 1*0 -> mean of squares 1/2; with own: views
    # 1, 1, 1, 0 -> R = 3/4, R^2 = 9/16. Positive: (1 + 0) / 2.
    assert spectral_contrastive(z1, z2).item() == pytest.approx(-0.5 + 0.25)
    assert spectral_contrastive(z1, z2, unbiased=False).item() == pytest.approx(-0.5 + 9 / 32)
    # share 1/4 of that, plus 3/4 of R * 2 = 1.5
    value = local_spectral(z1, z2, torch.tensor([[2.0]]), share=0.25, weight=2.0)
    assert value.item() == pytest.approx(-0.5 + 2 * (0.25 * 0.25 + 0.75 * 1.5))


@pytest.mark.parametrize("weight", [1.0, 12.0])
@pytest.mark.parametrize("project", [True, False])
def test_clients_gradients_add_up_to_the_global_one(weight, project):
    """At the synchronisation point, to 1e-10, for unequal clients and a nonlinear encoder."""
    sizes, dim = [3, 10, 27], 6
    x1, x2 = draw(2, sum(sizes), 8, seed=1)
    theta = draw(8, dim, seed=2).mul(0.3).requires_grad_()

    def encode(x):
        z = torch.tanh(x @ theta)
        return unit_ball(z) if project else z

    loss = spectral_contrastive(encode(x1), encode(x2), weight=weight, unbiased=False)
    (expected,) = torch.autograd.grad(loss, theta)

    shares = [n / sum(sizes) for n in sizes]
    parts = list(zip(x1.split(sizes), x2.split(sizes), strict=True))
    matrices = [correlation(encode(torch.cat(views))).detach() for views in parts]
    mean = sum(q * r for q, r in zip(shares, matrices, strict=True))
    total = torch.zeros_like(theta)
    for (one, two), q, own in zip(parts, shares, matrices, strict=True):
        others = others_mean(mean, own, share=q)
        loss = local_spectral(
            encode(one), encode(two), others, share=q, weight=weight, unbiased=False
        )
        total += q * torch.autograd.grad(loss, theta)[0]
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-10)

    ignoring = torch.zeros_like(theta)  # the check can fail: clients that ignore the others
    for (one, two), q in zip(parts, shares, strict=True):
        loss = spectral_contrastive(encode(one), encode(two), weight=weight, unbiased=False)
        ignoring += q * torch.autograd.grad(loss, theta)[0]
    assert (ignoring - expected).abs().max() > 1e-3


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("running", [True, False])
def test_gradients_against_differences(unbiased, running):
    z1, z2 = draw(2, 4, 3, seed=3).requires_grad_().unbind()
    others, past = correlation(draw(9, 3, seed=4)), correlation(draw(9, 3, seed=5))

    def loss(one, two):
        return local_spectral(
            unit_ball(one), unit_ball(two), others, share=0.3, weight=2.0, unbiased=unbiased,
            running=past if running else None,
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, (z1, z2), atol=1e-8)


def test_gradient_by_formula():
    # d/dz1_i of Eq. 3 with ||R||^2: -z2_i / B + weight * R z1_i / B  (R holds 2B rows)
    z1, z2 = draw(2, 5, 3)
    z1.requires_grad_()
    spectral_contrastive(z1, z2, weight=3.0, unbiased=False).backward()
    matrix = correlation(torch.cat([z1.detach(), z2]))
    torch.testing.assert_close(z1.grad, (-z2 + 3 * z1.detach() @ matrix) / 5)


def test_others_get_no_gradient():
    z1, z2 = draw(2, 5, 3)
    others, past = draw(3, 3, seed=1).requires_grad_(), draw(3, 3, seed=2).requires_grad_()
    loss = local_spectral(z1.requires_grad_(), z2, others, share=0.5, running=past)
    loss.backward()
    assert others.grad is None
    assert past.grad is None


def test_negatives_are_unbiased_in_small_batches():
    """The mean over all batches of two is exactly the full unbiased value; the plain one is not."""
    z1, z2 = (unit_ball(z) for z in draw(2, 6, 4))
    pairs = [torch.tensor([i, j]) for i in range(6) for j in range(i)]

    def mean_of_batches(unbiased):
        values = [spectral_contrastive(z1[p], z2[p], unbiased=unbiased) for p in pairs]
        return torch.stack(values).mean().item()

    full = spectral_contrastive(z1, z2).item()
    assert mean_of_batches(True) == pytest.approx(full, abs=1e-12)
    assert mean_of_batches(False) > full + 0.05


def test_a_running_matrix_gives_the_gradient_of_the_square_where_both_agree():
    z1, z2 = draw(2, 5, 3)
    z1.requires_grad_()
    own = correlation(torch.cat([z1, z2])).detach()
    plain = spectral_contrastive(z1, z2, unbiased=False)
    linear = local_spectral(z1, z2, None, share=1.0, running=own)
    torch.testing.assert_close(linear, plain)
    for loss in (plain, linear):
        loss.backward()
    both, z1.grad = z1.grad.clone(), None
    spectral_contrastive(z1, z2, unbiased=False).backward()
    torch.testing.assert_close(both, 2 * z1.grad)


def test_running_mean_by_hand():
    running = RunningCorrelation(0.75, initial=torch.tensor([[4.0]], dtype=torch.float64))
    assert running.value.item() == 4
    running.update(torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True))
    running.update(torch.tensor([[0.0]], dtype=torch.float64))
    # 4 * 9/16 + 4 * 3/16 + 0 * 1/4
    assert running.value.item() == pytest.approx(3.0)
    assert not running.value.requires_grad
    fresh = RunningCorrelation(0.75)
    assert fresh.value is None
    fresh.update(torch.tensor([[2.0]]))
    assert fresh.value.item() == pytest.approx(4.0)  # not pulled towards zero


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_bfloat16_and_autocast_accumulate_in_float32(share):
    z1, z2 = (unit_ball(z) for z in draw(2, 512, 32, dtype=torch.float32))
    others = correlation(draw(64, 32, seed=3, dtype=torch.float32) / 6)
    exact = local_spectral(z1.double(), z2.double(), others, share=share)
    with torch.autocast("cpu", torch.bfloat16):
        under = local_spectral(z1, z2, others, share=share)
        matrix = correlation(z1)
        assert (z1.T @ z1).dtype == torch.bfloat16  # what would have been used
        assert unit_ball(z1.bfloat16()).dtype == torch.float32
    assert under.dtype == matrix.dtype == torch.float32
    assert under.item() == pytest.approx(exact.item(), rel=1e-5)
    half1, half2 = z1.bfloat16(), z2.bfloat16()
    rounded = local_spectral(half1.double(), half2.double(), others, share=share)
    assert local_spectral(half1, half2, others, share=share).item() == pytest.approx(
        rounded.item(), rel=1e-5
    )


@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100))
def test_unit_ball_shortens_only(seed, scale):
    z = scale * draw(5, 3, seed=seed)
    ball = unit_ball(z)
    lengths, before = ball.norm(dim=1), z.norm(dim=1)
    torch.testing.assert_close(lengths, before.clamp(max=1))
    torch.testing.assert_close(ball * before[:, None], z * lengths[:, None])


def test_unit_ball_has_a_gradient_at_zero():
    z = torch.zeros(2, 3, requires_grad=True)
    unit_ball(z).sum().backward()
    torch.testing.assert_close(z.grad, torch.ones(2, 3))


@given(seed=st.integers(0, 999), size=st.integers(1, 6))
def test_correlation_is_psd_with_bounded_trace(seed, size):
    matrix = correlation(unit_ball(draw(size, 4, seed=seed)))
    assert torch.linalg.eigvalsh(matrix)[0] > -1e-12
    assert matrix.trace() <= 1 + 1e-12


Z = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: spectral_contrastive(Z[:1], Z[:1]), "a batch of one sample has no negatives"),
        (lambda: spectral_contrastive(Z, Z[:, :2]), r"\[B, D\] and alike, got \(2, 3\) and \(2, 2"),
        (lambda: spectral_contrastive(Z[:0], Z[:0]), r"\[B, D\] and alike"),
        (lambda: spectral_contrastive(Z, Z * float("nan")), "z2 must be finite: 2 of 2 rows"),
        (lambda: spectral_contrastive(Z * 1e15, Z), "the loss overflowed: project the features"),
        (lambda: local_spectral(Z, Z, torch.eye(2), share=0.5), r"others must be \(3, 3\), got"),
        (lambda: local_spectral(Z, Z, torch.full((3, 3), torch.inf), share=0.5), "others must be"),
        (lambda: local_spectral(Z, Z, None, share=0.5), "others may be None only when share is 1"),
        (lambda: local_spectral(Z, Z, torch.eye(3), share=0.0), r"share must be in \(0, 1\], got"),
        (lambda: local_spectral(Z, Z, None, share=1, running=torch.eye(2)), "running must be"),
        (lambda: spectral_contrastive(Z, Z, weight=-1.0), "weight must be a finite"),
        (lambda: sample_spectral(Z, Z, torch.eye(3), weight=torch.nan), "weight must be a finite"),
        (lambda: correlation(Z[0]), r"at least one row, got \(3,\)"),
        (lambda: others_mean(torch.eye(3), torch.eye(3), share=1.0), "share must be in"),
        (lambda: others_mean(torch.eye(3), torch.eye(2), share=0.1), "own must be"),
        (lambda: RunningCorrelation(1.0), r"decay must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_input(call, text):
    with pytest.raises(ConfigError, match=text):
        call()


def test_a_single_sample_is_enough_where_negatives_come_from_elsewhere():
    assert spectral_contrastive(Z[:1], Z[:1], unbiased=False).isfinite()
    assert local_spectral(Z[:1], Z[:1], None, share=1, running=torch.eye(3)).isfinite()


def encode(x, theta):
    return unit_ball(torch.tanh(x @ theta))


def test_the_loss_of_one_sample_by_hand():
    z1, z2 = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    mean = torch.tensor([[0.5, 0.1], [0.1, 0.25]])
    # z1: 0.5; z2: 0.36 * 0.5 + 2 * 0.48 * 0.1 + 0.64 * 0.25 = 0.436; mean 0.468; times 3; - 0.6
    assert sample_spectral(z1, z2, mean, weight=3.0).tolist() == pytest.approx([0.804])


def test_samples_in_bfloat16_and_under_autocast_are_multiplied_in_float32():
    z1, z2 = (unit_ball(z) for z in draw(2, 64, 128, dtype=torch.float32))
    mean = correlation(torch.cat([z1, z2]))
    for one, two in ((z1, z2), (z1.bfloat16(), z2.bfloat16())):
        exact = sample_spectral(one.double(), two.double(), mean)
        with torch.autocast("cpu", torch.bfloat16):
            found = sample_spectral(one, two, mean)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


def test_gradients_of_samples_add_up_to_the_global_one():
    """At the weights Rbar was taken at, for unequal clients and a nonlinear encoder."""
    sizes, dim, weight = [3, 10, 27], 6, 5.0
    x1, x2 = draw(2, sum(sizes), 8, seed=1)
    theta = draw(8, dim, seed=2).mul(0.3).requires_grad_()
    whole = spectral_contrastive(
        encode(x1, theta), encode(x2, theta), weight=weight, unbiased=False
    )
    (wanted,) = torch.autograd.grad(whole, theta)

    def features(part):
        return encode(x1[part], theta), encode(x2[part], theta)

    parts = [slice(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]
    shares = [size / sum(sizes) for size in sizes]
    mean = sum(
        share * correlation(torch.cat(features(part)))
        for share, part in zip(shares, parts, strict=True)
    )
    got = torch.zeros_like(theta)
    for share, part in zip(shares, parts, strict=True):
        loss = sample_spectral(*features(part), mean, weight=weight).mean()
        got += share * torch.autograd.grad(loss, theta)[0]
    assert float((got - wanted).abs().max()) < 1e-10
    assert float(wanted.abs().max()) > 1e-3


def test_a_sample_does_not_see_the_others_nor_its_part_of_the_mean():
    z1, z2 = draw(2, 5, 4, seed=3)
    mean = correlation(torch.cat([z1, z2])).requires_grad_()
    together = sample_spectral(z1, z2, mean)
    alone = [sample_spectral(z1[i : i + 1], z2[i : i + 1], mean).item() for i in range(5)]
    assert together.tolist() == pytest.approx(alone, rel=1e-12)
    assert not together.requires_grad


@pytest.mark.parametrize("mean", [torch.eye(3), torch.ones(2)])
def test_samples_whose_shapes_do_not_fit_are_refused(mean):
    with pytest.raises(ConfigError, match=r"the mean \[D, D\]"):
        sample_spectral(torch.ones(4, 2), torch.ones(4, 2), mean)
