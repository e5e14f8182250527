import logging
import os

import numpy as np
import pytest

from nmoe_flower.checkpoint import Checkpoints
from nmoe_flower.errors import NMoEError

ARRAYS = {
    "extractor/stem.conv.weight": np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4),
    "stream/7 ü\n": np.arange(5, dtype=np.uint8),
    "count": np.array(3),
}
STATE = {"stage": "gate", "round": 2, "loss": 0.1 + 0.2, "nan": float("nan"), "list": [1, None]}


def steps(folder):
    return sorted(int(path.name[5:11]) for path in folder.glob("step-*.safetensors"))


def test_what_is_saved_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest() is None
    path = checkpoints.save(123, ARRAYS, STATE)
    assert path.name == "step-000123.safetensors"
    latest = checkpoints.latest()
    assert latest.step == 123
    assert latest.state.pop("nan") != 0
    assert latest.state == {key: value for key, value in STATE.items() if key != "nan"}
    assert latest.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(latest.arrays[name], array, strict=True)


def test_numbers_in_another_byte_order_come_back(tmp_path):
    """As a client's may arrive; the file has them little-endian."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"one": np.arange(3, dtype=">i4"), "two": np.array(2.5, ">f8")}, {})
    found = checkpoints.latest().arrays
    assert (found["one"].tolist(), found["two"].item()) == ([0, 1, 2], 2.5)


def test_only_the_last_ones_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (0, 5, 9, 10, 1_000_000):
        checkpoints.save(step, ARRAYS, {"step": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000009.safetensors",
        "step-000010.safetensors",
        "step-1000000.safetensors",
    ]
    assert checkpoints.latest().state == {"step": 1_000_000}


def test_steps_after_the_saved_one_are_dropped(tmp_path):
    """Step 10 is damaged, the run went on from 8: now 9 is the newest, and 8 is kept."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(8, ARRAYS, {})
    (tmp_path / "step-000010.safetensors").write_bytes(b"damaged")
    checkpoints.save(9, ARRAYS, {})
    assert steps(tmp_path) == [8, 9]


def test_the_oldest_kept_is_on_disk_before_older_ones_go(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2)
    synced = []
    inode = {}

    def fsync(handle):
        synced.extend(step for step, number in inode.items() if os.fstat(handle).st_ino == number)

    monkeypatch.setattr(os, "fsync", fsync)
    for step in range(4):
        inode[step] = checkpoints.save(step, ARRAYS, {}).stat().st_ino
    # The 1st save syncs nothing; the 2nd keeps 0 and 1 and syncs 0; the 3rd syncs 1; the 4th 2.
    assert synced == [0, 1, 2]


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9, 1.0])
def test_one_flipped_bit_anywhere_is_found(tmp_path, caplog, place):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, ARRAYS, {"step": 1})
    path = checkpoints.save(2, ARRAYS, {"step": 2})
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.latest().step == 1
    assert "step-000002.safetensors" in caplog.text


@pytest.mark.parametrize("kept", [0, 8, 100, -1])
def test_a_torn_file_is_skipped_and_named(tmp_path, caplog, kept):
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(7, ARRAYS, STATE)
    path.write_bytes(path.read_bytes()[:kept])
    with caplog.at_level(logging.WARNING):
        assert checkpoints.latest() is None
    assert "step-000007.safetensors" in caplog.text


def test_a_checkpoint_under_another_step_is_refused(tmp_path):
    path = Checkpoints(tmp_path).save(1, ARRAYS, {})
    path.rename(tmp_path / "step-000009.safetensors")
    assert Checkpoints(tmp_path).latest() is None


def test_foreign_files_are_left_alone_and_left_over_ones_removed(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step-last.safetensors").write_text("mine")
    (tmp_path / ".step-000001.safetensors.1-1.tmp").write_text("half")
    Checkpoints(tmp_path).save(1, {}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes.txt",
        "step-000001.safetensors",
        "step-last.safetensors",
    ]


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        Checkpoints(tmp_path).save(-1, {}, {})
    with pytest.raises(NMoEError, match="the state of checkpoint 3 is not JSON"):
        Checkpoints(tmp_path).save(3, {}, {"bad": {1, 2}})
