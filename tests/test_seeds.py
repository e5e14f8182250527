import hashlib
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.seeds import derive_seed, numpy_stream

PATH = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=8)), max_size=4)


@given(st.integers(0, 2**63), PATH)
def test_a_seed_fits_torch_and_numpy(seed: int, path: list[int | str]) -> None:
    derived = derive_seed(seed, *path)
    assert 0 <= derived < 2**63
    assert derived == derive_seed(seed, *path)


@given(PATH, PATH)
def test_other_paths_give_other_seeds(one: list[int | str], other: list[int | str]) -> None:
    """2 ** -63 per pair: a collision in a test run would be a bug, not bad luck."""
    clean = all("\x1f" not in part for part in (*one, *other) if isinstance(part, str))
    if clean and one != other:
        assert derive_seed(0, *one) != derive_seed(0, *other)


def test_numbers_are_not_their_digits() -> None:
    paths = [("a", 1, 11), ("a", 11, 1), ("a", 111), ("a", "1", 11), ("a1", 11), ("a",), ()]
    assert len({derive_seed(0, *path) for path in paths}) == len(paths)
    assert derive_seed(1) != derive_seed(0, 1)


def test_the_value_is_pinned() -> None:
    """Old runs must stay resumable: the definition, spelt out once more."""
    digest = hashlib.sha256(b"int:7\x1fstr:batches\x1fint:3").digest()
    expected = int.from_bytes(digest[:8], "little") // 2
    assert derive_seed(7, "batches", 3) == expected


def test_the_seed_is_the_same_in_another_process() -> None:
    code = "from nmoe_flower.seeds import derive_seed; print(derive_seed(5, 'gate', 2))"
    command = [sys.executable, "-c", code]
    outputs = {
        subprocess.run(
            command, check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": hash_seed}
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert outputs == {f"{derive_seed(5, 'gate', 2)}\n"}


def test_streams_are_uniform_and_unrelated() -> None:
    """Four deviations of 4,000 uniform numbers: mean 4 / sqrt(12 n), correlation 4 / sqrt(n)."""
    one, other = (numpy_stream(0, "x", part).random(4000) for part in (0, 1))
    assert abs(one.mean() - 0.5) < 4 / np.sqrt(12 * 4000)
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(4000)
    np.testing.assert_array_equal(one, numpy_stream(0, "x", 0).random(4000))
