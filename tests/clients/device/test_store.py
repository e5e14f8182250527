from pathlib import Path

import numpy as np
import pytest

from nmoe_flower.clients.device.store import Store
from nmoe_flower.errors import CheckpointError, NMoEError


def test_what_is_saved_is_found_by_another_process(tmp_path: Path) -> None:
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)
    Store(tmp_path / "a").save("expert", {"w": wide[:, ::2], "n": np.array(3)})
    found = Store(tmp_path / "a").load("expert")
    np.testing.assert_array_equal(found["w"], wide[:, ::2])
    assert (found["n"], found["n"].dtype, found["n"].shape) == (3, np.int64, ())
    assert Store(tmp_path / "a").has("expert")
    assert not Store(tmp_path / "b").has("expert")


def test_a_replaced_group_is_read_anew(tmp_path: Path) -> None:
    """Reads are cached by time and size; the second file is larger."""
    store = Store(tmp_path)
    store.save("x", {"w": np.zeros(1)})
    assert store.load("x")["w"].tolist() == [0.0]
    store.save("x", {"w": np.ones(2)})
    assert store.load("x")["w"].tolist() == [1.0, 1.0]


def test_a_dropped_group_is_gone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save("x", {"w": np.zeros(1)})
    store.drop("x")
    store.drop("x")
    with pytest.raises(CheckpointError, match="this client has no 'x' in"):
        store.load("x")


def test_names_stay_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(NMoEError, match="leads out of the folder"):
        Store(tmp_path / "a").save("../x", {"w": np.zeros(1)})


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(CheckpointError, match=r"x\.safetensors is not a readable"):
        Store(tmp_path).load("x")
