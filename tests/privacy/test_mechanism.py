import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.errors import ConfigError
from nmoe_flower.privacy import ClippedCorrelation, GaussianMechanism, sensitivity, svec


def draw(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def clipped(views, clip, num_examples):
    total = ClippedCorrelation(clip, num_examples)
    total.add(*views)
    return total.result()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@given(
    clip=st.floats(0.3, 3),
    size=st.integers(1, 6),
    views=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_no_replacement_moves_the_matrix_further_than_the_sensitivity(clip, size, views, seed):
    data = draw(views, size, 3, seed=seed, scale=2.0)
    other = data.clone()
    other[:, 0] = draw(views, 3, seed=seed + 1, scale=2.0)
    moved = (clipped(data, clip, size) - clipped(other, clip, size)).norm().item()
    assert moved <= sensitivity(clip, size) * (1 + 1e-12)
    other[:, 0] = 0  # taking it away, as "add-remove" sees it
    moved = (clipped(data, clip, size) - clipped(other, clip, size)).norm().item()
    assert moved <= sensitivity(clip, size, adjacency="add-remove") * (1 + 1e-12)


@pytest.mark.parametrize("far", [1.0, 50.0])
def test_the_sensitivity_is_attained(far):
    rest = draw(4, 3)
    one, two = rest.clone(), rest.clone()
    one[0], two[0] = far * 2 * torch.eye(3)[0], far * 2 * torch.eye(3)[1]
    moved = (clipped([one], 2.0, 4) - clipped([two], 2.0, 4)).norm().item()
    assert moved == pytest.approx(sensitivity(2.0, 4)) == pytest.approx(math.sqrt(2) * 4 / 4)
    two[0] = 0
    moved = (clipped([one], 2.0, 4) - clipped([two], 2.0, 4)).norm().item()
    assert moved == pytest.approx(sensitivity(2.0, 4, adjacency="add-remove")) == pytest.approx(1)


def test_the_correlation_of_batches_is_that_of_the_whole():
    views = draw(2, 10, 4)
    total = ClippedCorrelation(1.5, 10)
    for one, two in zip(views[0].split(3), views[1].split(3), strict=True):
        total.add(one, two)
    slow = torch.zeros(4, 4, dtype=torch.float64)
    for z in views.reshape(-1, 4):
        z = z * min(1.0, 1.5 / z.norm().item())
        slow += torch.outer(z, z) / 20
    torch.testing.assert_close(total.result(), slow)


def test_features_in_bfloat16_are_multiplied_in_float32():
    z = draw(400, 8)
    with torch.autocast("cpu", torch.bfloat16):
        total = ClippedCorrelation(1.0, 400)
        total.add(z.bfloat16())
    exact = clipped([z.bfloat16().double()], 1.0, 400)
    torch.testing.assert_close(total.result(), exact, rtol=1e-5, atol=1e-7)
    assert total.result().trace() <= 1 + 1e-6


@pytest.mark.parametrize("secure", [False, True])
def test_the_noise_has_the_law_it_claims(secure, monkeypatch):
    """Independent N(0, s^2) on the packing: s^2 on the diagonal, s^2 / 2 beside it, mirrored."""
    source = np.random.default_rng(0)
    monkeypatch.setattr("os.urandom", source.bytes)
    mechanism = GaussianMechanism(3.0, 1.0, 10, secure=secure)
    matrix = torch.eye(100, dtype=torch.float64) / 100
    generator = None if secure else seeded(1)
    drawn = torch.stack([mechanism.release(matrix, generator) - matrix for _ in range(10)])
    assert torch.equal(drawn, drawn.transpose(1, 2))
    s = 3.0 * sensitivity(1.0, 10)
    assert mechanism.noise_std == pytest.approx(s)
    # 1,000 entries on the diagonal, 49,500 above it; tolerances of four deviations
    on = drawn.diagonal(dim1=1, dim2=2) / s
    above = drawn[:, *np.triu_indices(100, 1)] / s
    assert on.square().mean().item() == pytest.approx(1, abs=4 * math.sqrt(2 / 1000))
    assert above.square().mean().item() == pytest.approx(0.5, abs=4 * 0.5 * math.sqrt(2 / 49_500))
    noise = np.stack([svec(one) for one in drawn.numpy()]) / s
    assert noise.mean() == pytest.approx(0, abs=4 / math.sqrt(50_500))
    assert (noise**4).mean() == pytest.approx(3, abs=4 * math.sqrt(96 / 50_500))
    assert np.abs(np.corrcoef(noise)[~np.eye(10, dtype=bool)]).max() < 4.5 / math.sqrt(5050)
    neighbours = (noise[:, 1:] * noise[:, :-1]).mean()
    assert neighbours == pytest.approx(0, abs=4 / math.sqrt(50_490))


def test_a_seed_gives_the_same_release_and_secure_never_does():
    matrix = torch.eye(4) / 4
    mechanism = GaussianMechanism(1.0, 1.0, 10)
    assert torch.equal(mechanism.release(matrix, seeded(3)), mechanism.release(matrix, seeded(3)))
    assert mechanism.release(matrix, seeded(3)).dtype == torch.float32
    secure = GaussianMechanism(1.0, 1.0, 10, secure=True)
    assert not torch.equal(secure.release(matrix), secure.release(matrix))


def test_mechanism_hands_its_bounds_to_the_accumulator():
    mechanism = GaussianMechanism(1.0, 2.0, 3, adjacency="add-remove")
    total = mechanism.correlation()
    total.add(torch.eye(4) * 9)  # four samples over a nominal three: 4 / 3 on the diagonal
    torch.testing.assert_close(total.result(), torch.eye(4, dtype=torch.float64) * 4 / 3)
    assert mechanism.release(total.result(), seeded()).shape == (4, 4)


def test_a_batch_that_is_refused_leaves_nothing_behind():
    """Else its good views would count twice once it comes again: twice the sensitivity."""
    views = draw(2, 2, 2)
    total = ClippedCorrelation(1.0, 2)
    with pytest.raises(ConfigError, match="1 of 2 rows"):
        total.add(views[0], NAN)
    total.add(*views)
    torch.testing.assert_close(total.result(), clipped(views, 1.0, 2))
    with pytest.raises(ConfigError, match="must have 2 dimensions as before, got 1"):
        total.add(views[0, :, :1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_rounding_must_not_move_the_matrix_beyond_its_sensitivity(dtype):
    """A sample moves D^2 entries of about 1 / D by 1 / (n D), a bfloat16 by steps of 2^-8 / D.

    So each moves by a whole step or not at all, by chance. The squared distance is D^2 times
    1 / (n D) times the step, 2^-8 / n; above the sensitivity's, 2 / n^2, for n above 512.
    """
    n, z = 1 << 14, draw(1 << 14, 128)
    z = (z + 0.5) / (z + 0.5).norm(dim=1, keepdim=True)
    other = torch.cat([-z[:1].flip(1), z[1:]])
    one, two = ((v.T @ v / n).to(dtype) for v in (z, other))
    moved = (svec(one) - svec(two)).double().norm().item()
    assert moved > sensitivity(1.0, n) or dtype == torch.int64
    with pytest.raises(ConfigError, match="must be float32 or float64, got torch"):
        GaussianMechanism(1.0, 1.0, n).release(one, seeded())


def added(*views, num_examples=2):
    total = ClippedCorrelation(1.0, num_examples)
    total.add(*views)
    return total.result()


OK = torch.eye(3) / 3
NAN = torch.tensor([[1.0, math.nan], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m: sensitivity(0.0, 5), "clip must be positive and finite, got 0.0"),
        (lambda m: sensitivity(math.inf, 5), "clip must be positive and finite, got inf"),
        (lambda m: sensitivity(1.0, 0), "num_examples must be at least 1, got 0"),
        (lambda m: sensitivity(1.0, 5, adjacency="user"), "replace-one or add-remove, got 'user'"),
        (lambda m: GaussianMechanism(0.0, 1.0, 5), "noise_multiplier must be positive and finite"),
        (lambda m: GaussianMechanism(1.0, -1.0, 5), "clip must be positive"),
        (lambda m: m.release(OK), "release needs a generator, or a mechanism with secure=True"),
        (
            lambda m: GaussianMechanism(1, 1, 5, secure=True).release(OK, seeded()),
            "pass no generator",
        ),
        (lambda m: m.release(OK[:2], seeded()), r"must be \[D, D\], got \(2, 3\)"),
        (lambda m: m.release(OK * math.nan, seeded()), "must be finite"),
        (lambda m: m.release(6 * OK, seeded()), "trace at most 1, got 6: were they clipped?"),
        (lambda m: m.release(-OK, seeded()), "no eigenvalue below 0, got -0.333"),
        (lambda m: m.release(torch.ones(2, 2).triu() / 2, seeded()), "must be symmetric"),
        (lambda m: added(), r"views must be \[B, D\] and alike, got \[\]"),
        (lambda m: added(torch.ones(2, 3), torch.ones(2, 2)), "views must be"),
        (lambda m: added(NAN), "features must be finite: 1 of 2 rows are not"),
        (lambda m: added(torch.ones(2, 2049)), "1 to 2048 dimensions"),
        (lambda m: added(torch.ones(3, 2)), "of 2 samples, each added once, got 3"),
        (lambda m: ClippedCorrelation(1.0, 2).result(), "each added once, got 0"),
    ],
)
def test_bad_input(call, text):
    with pytest.raises(ConfigError, match=text):
        call(GaussianMechanism(1.0, 1.0, 5))
