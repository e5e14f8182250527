import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.errors import ConfigError
from nmoe_flower.privacy import MAX_DIM, packed_dim, packed_size, smat, svec


def symmetric(dim, seed):
    matrix = np.random.default_rng(seed).standard_normal((dim, dim))
    return matrix + matrix.T


@given(dim=st.integers(1, 9), seed=st.integers(0, 999))
def test_packing_is_an_isometry_and_invertible(dim, seed):
    one, two = symmetric(dim, seed), symmetric(dim, seed + 1)
    assert svec(one).shape == (dim * (dim + 1) // 2,) == (packed_size(dim),)
    assert np.linalg.norm(svec(one)) == pytest.approx(np.linalg.norm(one), rel=1e-12)
    assert svec(one) @ svec(two) == pytest.approx((one * two).sum(), abs=1e-10)
    np.testing.assert_allclose(smat(svec(one), dim=dim), one, rtol=1e-14)
    assert packed_dim(packed_size(dim)) == dim


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_packs_as_numpy_does(dtype):
    matrix = torch.from_numpy(symmetric(5, 0)).to(dtype)
    vector = svec(matrix)
    assert vector.dtype == dtype
    assert svec(matrix.numpy()).dtype == matrix.numpy().dtype
    np.testing.assert_array_equal(vector.numpy(), svec(matrix.numpy()))
    back = smat(vector)
    assert back.dtype == dtype
    assert torch.equal(back, back.T)
    np.testing.assert_array_equal(back.numpy(), smat(vector.numpy()))


def test_order_is_the_upper_triangle_by_rows():
    root = np.sqrt(2)
    np.testing.assert_allclose(
        svec(np.array([[1.0, 2, 3], [2, 4, 5], [3, 5, 6]])),
        [1, 2 * root, 3 * root, 4, 5 * root, 6],
    )


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: smat(np.zeros(4)), r"d\(d\+1\)/2 numbers for some d in 1..2048, got 4"),
        (lambda: smat(np.zeros(0)), "got 0"),
        (lambda: smat(np.zeros(6), dim=4), r"dimension 4 has 10 numbers, got 6 \(dimension 3\)"),
        (lambda: smat(np.zeros((3, 3))), r"one-dimensional, got \(3, 3\)"),
        (lambda: packed_size(MAX_DIM + 1), "1 to 2048 dimensions to be packed, got 2049"),
        (lambda: packed_dim((MAX_DIM + 1) * (MAX_DIM + 2) // 2), "1..2048"),
        (lambda: svec(np.zeros((2, 3))), r"square, got shape \(2, 3\)"),
        (lambda: svec(np.triu(np.ones((2, 2)))), "must be symmetric"),
    ],
)
def test_bad_input(call, text):
    with pytest.raises(ConfigError, match=text):
        call()


def test_servers_load_no_torch_for_it():
    code = "import sys, nmoe_flower.privacy; print('torch' in sys.modules, 'opacus' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
