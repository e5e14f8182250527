"""The same seed gives the same weights on every engine."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmoe_flower import cli, files
from nmoe_flower.engine import processes

SETTINGS = [
    "data.num-clients=3",
    "data.train-per-client=60",
    "data.test-per-client=10",
    "extractor.rounds=3",
    "extractor.batch-size=8",
    "extractor.widths=8,8",
    "expert.hidden=8",
    "expert.epochs=1",
    "gate.methods=federated,rolling,local",
    "gate.rounds=2",
    "gate.cycles=1",
    "gate.local-steps=2",
    "run.controls=fedavg",
    "run.connect-timeout=600",  # Ray gives its workers little of a busy machine
    "run.round-timeout=300",
]
TOLERANCE = 1e-6


def run(root: Path, name: str, *arguments: str) -> Path:
    options = ["--no-figures", "--format", "text", "--out", str(root), "--name", name]
    cache = f"data.cache-dir={root / 'cache'}"
    assert cli.main(["run", *options, *arguments, "--set", *SETTINGS, cache]) == 0
    return root / name


def rows(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "results.json").read_text())["rows"])


def assert_equal(folder: Path, like: Path) -> None:
    paths = sorted((like / "weights").iterdir())
    assert len(paths) == 4  # extractor, head, two gates
    for path in paths:
        ours = files.load_arrays(folder / "weights" / path.name)
        theirs = files.load_arrays(path)
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            assert array.shape == theirs[name].shape
            difference = float(np.abs(array - theirs[name]).max())
            assert difference <= TOLERANCE, f"{path.stem}: {name} differs by {difference}"
    assert [(row["gate"], row["test"]) for row in rows(folder)] == [
        (row["gate"], row["test"]) for row in rows(like)
    ]


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clients that run in this process, one after the other."""
    return run(tmp_path_factory.mktemp("runs"), "inline", "--workers", "0")


def test_another_seed_gives_other_weights(inline: Path) -> None:
    """Else the tests below would show nothing."""
    other = run(inline.parent, "other", "--workers", "0", "--seed", "1")
    with pytest.raises(AssertionError, match="differs by"):
        assert_equal(other, inline)


def test_worker_processes(inline: Path) -> None:
    assert_equal(run(inline.parent, "workers", "--workers", "2"), inline)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files of this process and its children; short, for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="eq-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.mark.ray
def test_ray(inline: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NMOE_TEST_MARK", str(inline))  # which every process it starts inherits
    assert_equal(run(inline.parent, "ray", "--engine", "ray", "--workers", "2"), inline)
    assert processes.family(f"NMOE_TEST_MARK={inline}") == set()
    assert list(temporary.iterdir()) == []
