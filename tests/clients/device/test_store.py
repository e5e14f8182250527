from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe_flower.clients.device import Store, Versions
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


def filled(folder: Path, rounds: list[int], name: str = "head") -> Versions:
    versions = Versions(Store(folder), name)
    for server_round in rounds:
        versions.save(server_round, {"w": np.array([server_round])})
    return versions


def test_every_round_has_its_own_and_names_do_not_mix(tmp_path: Path) -> None:
    heads = filled(tmp_path, [3, 1, 12])
    others = filled(tmp_path, [7], name="correlation")
    assert heads.rounds() == [1, 3, 12]
    assert others.rounds() == [7]
    assert {r: int(heads.load(r)["w"][0]) for r in heads.rounds()} == {1: 1, 3: 3, 12: 12}
    assert heads.load(7) is None
    assert Versions(Store(tmp_path / "nowhere"), "head").rounds() == []


def test_a_round_that_comes_again_replaces_its_version(tmp_path: Path) -> None:
    versions = filled(tmp_path, [4])
    versions.save(4, {"w": np.array([1, 2])}, sync=True)
    assert versions.load(4)["w"].tolist() == [1, 2]
    assert versions.rounds() == [4]


def test_a_damaged_version_is_an_error_and_not_a_missing_one(tmp_path: Path) -> None:
    versions = filled(tmp_path, [1])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(CheckpointError, match="head-000001"):
        versions.load(1)


def test_pruning_keeps_what_a_resumed_run_finds(tmp_path: Path) -> None:
    """After round 9, resumable after 4 or 7: then rounds 3 and 6 were the last with a version."""
    versions = filled(tmp_path, [1, 3, 5, 6, 8, 9, 11])
    versions.prune(9, [4, 7])
    assert versions.rounds() == [3, 6, 9, 11]


@given(
    rounds=st.sets(st.integers(1, 20)),
    kept=st.lists(st.integers(0, 20), max_size=4),
    current=st.integers(1, 20),
)
@settings(max_examples=40)
def test_pruning_never_takes_what_is_needed_and_leaves_nothing_else(
    rounds: set[int], kept: list[int], current: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    versions = filled(tmp_path_factory.mktemp("versions"), sorted(rounds))

    def newest(last: int) -> int:
        return max((r for r in versions.rounds() if r <= last and r < current), default=0)

    before = [newest(last) for last in kept]
    versions.prune(current, kept)
    assert [newest(last) for last in kept] == before
    older = {r for r in versions.rounds() if r < current}
    assert older == set(before) - {0}
    assert {r for r in versions.rounds() if r >= current} == {r for r in rounds if r >= current}


def test_an_array_is_changed_once(tmp_path: Path) -> None:
    store, asked = Store(tmp_path), []

    def doubled(rows: torch.Tensor) -> torch.Tensor:
        asked.append(len(rows))
        return 2 * rows

    store.save("x", {"w": np.ones(3, np.float32)})
    for _ in range(2):
        assert store.tensor("x", "w", torch.device("cpu"), doubled).tolist() == [2.0] * 3
    assert store.tensor("x", "w", torch.device("cpu")).tolist() == [1.0] * 3
    assert asked == [3]


def test_an_array_is_made_a_tensor_once_and_shares_its_memory_on_a_cpu(tmp_path: Path) -> None:
    store = Store(tmp_path)
    half = np.array([0.5, 1.25], np.float16)
    store.save("x", {"w": np.ones((2, 3), np.float32), "half": half})
    found = store.tensor("x", "w", torch.device("cpu"))
    assert found is store.tensor("x", "w", torch.device("cpu"))
    assert found.data_ptr() == store.load("x")["w"].ctypes.data
    widened = store.tensor("x", "half", torch.device("cpu"))
    assert (widened.dtype, widened.tolist()) == (torch.float32, [0.5, 1.25])
    store.save("x", {"w": np.zeros((4, 3), np.float32)})
    assert store.tensor("x", "w", torch.device("cpu")).tolist() == [[0.0] * 3] * 4
    with pytest.raises(CheckpointError, match="this client has no 'y' in"):
        store.tensor("y", "w", torch.device("cpu"))
