import json
import os
import subprocess
import sys

import pytest

from benchmarks.precision import main
from benchmarks.yardstick import importing
from nmoe_flower.engine.spawn import WORKER_ENVIRONMENT


def test_precisions_and_tiles_are_timed_in_training_and_without(tmp_path, capsys):
    path = tmp_path / "precision.json"
    words = ["--network", "feed-forward", "--steps", "1", "--turns", "1"]
    assert main([*words, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    paces = found["paces"]
    assert [(one["network"], one["training"]) for one in paces] == [
        ("feed-forward", True), ("feed-forward", False),
    ]  # fmt: skip
    for one in paces:
        assert one["gain"] == pytest.approx(one["float32"] / one["bf16"], 1e-4)
        assert one["tiles_gain"] == pytest.approx(one["direct"] / one["float32"], 1e-4)
    assert f"run.precision = auto computes in {found['auto']} here" in capsys.readouterr().out


def test_a_command_begins_again_as_workers_begin():
    code = (
        "from benchmarks.yardstick import start_as_workers; start_as_workers();"
        "import os, sys; print(os.environ['MALLOC_TOP_PAD_'], sys.argv[1])"
    )
    environment = {k: v for k, v in os.environ.items() if k not in WORKER_ENVIRONMENT}
    words = [sys.executable, "-c", code, "two words"]
    found = subprocess.run(words, env=importing(environment), capture_output=True, text=True)
    assert found.stdout == f"{WORKER_ENVIRONMENT['MALLOC_TOP_PAD_']} two words\n", found.stderr
