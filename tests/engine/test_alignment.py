"""The alignment system comes to the same weights, loads and bytes on every engine."""

import json
from pathlib import Path

import pytest

from nmoe_flower import cli

SETTINGS = [
    "run.system=aligned",
    "data.num-clients=3",
    "data.train-per-client=60",
    "data.test-per-client=10",
    "data.scheme=pathological",
    "extractor.rounds=2",
    "extractor.batch-size=8",
    "extractor.widths=8,8",
    "expert.hidden=8",
    "alignment.extractor=stage-1",
    "alignment.rounds=2",
    "alignment.local-steps=2",
    "alignment.capacity=1,2",
    "alignment.gate-server-rate=0.003",
    "run.connect-timeout=600",  # Ray gives its workers little of a busy machine
    "run.round-timeout=300",
    "alignment.devices=phone,board",
]


def run(root: Path, name: str, *arguments: str) -> Path:
    options = ["--no-figures", "--format", "text", "--out", str(root), "--name", name]
    cache = f"data.cache-dir={root / 'cache'}"
    assert cli.main(["run", *options, *arguments, "--set", *SETTINGS, cache]) == 0
    return root / name


def assert_equal(folder: Path, like: Path) -> None:
    for name in ("mixture", "extractor"):
        weights = Path("weights", f"{name}.safetensors")
        assert (folder / weights).read_bytes() == (like / weights).read_bytes()
    ours, theirs = (json.loads((f / "results.json").read_text()) for f in (folder, like))
    assert ours["alignment"] == theirs["alignment"]
    assert ours["rows"] == theirs["rows"]


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clients that run in this process, one after the other."""
    return run(tmp_path_factory.mktemp("runs"), "inline", "--workers", "0")


def test_another_seed_gives_other_weights(inline: Path) -> None:
    """Else the tests below would show nothing."""
    other = run(inline.parent, "other", "--workers", "0", "--seed", "1")
    with pytest.raises(AssertionError):
        assert_equal(other, inline)


def test_worker_processes(inline: Path) -> None:
    assert_equal(run(inline.parent, "workers", "--workers", "2"), inline)


@pytest.mark.ray
def test_ray(inline: Path) -> None:
    assert_equal(run(inline.parent, "ray", "--engine", "ray", "--workers", "2"), inline)
