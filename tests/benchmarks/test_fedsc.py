import json

import numpy as np
import pytest

from benchmarks import fedsc
from benchmarks.yardstick import told
from nmoe_flower.config import Config


def arguments(*more: str) -> list[str]:
    return ["--clients", "2", "--batch", "4", "--dim", "8", "--rounds", "3", *more]


def test_every_variant_is_measured(tmp_path, capsys):
    assert fedsc.main(arguments("--json", str(tmp_path / "out.json"))) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["variants"].keys() == set(fedsc.VARIANTS)
    assert all(figures["x"] > 0 for figures in found["variants"].values())
    assert "144 bytes, 0.562 of the full one" in capsys.readouterr().out  # 4 * 36; 36 / 64


def test_the_bare_loop_computes_what_fedsc_computes(tmp_path):
    """Two rounds of both move the weights alike: the ratio compares equal work."""
    args = fedsc._parser().parse_args(arguments())
    values = fedsc._config(args, str(tmp_path)).flat()
    config = Config.parse({**values, "run.precision": "float32"})
    bare = fedsc._Bare(config, 2)
    start = {name: tensor.numpy().copy() for name, tensor in bare._weights.items()}
    run, arrays = fedsc._flower(config, 2, "merged"), None
    for server_round in (1, 2):
        bare.round(server_round)
        arrays = run(server_round)
    assert arrays is not None
    for name in ("projector.layers.0.weight", "extractor.stages.2.conv1.weight"):
        moved = bare._weights[name].numpy() - start[name]
        apart = arrays[name] - bare._weights[name].numpy()
        # Adam steps by the sign where a gradient is as small as its rounding: not bit-equal.
        assert np.linalg.norm(apart) < 0.02 * np.linalg.norm(moved), name


def test_wrong_usage():
    with pytest.raises(SystemExit) as leaving:
        fedsc.main(["--clients", "many"])
    assert leaving.value.code == 2


def test_more_clients_than_samples_are_told(capsys):
    words = ["--clients", "1000", "--batch", "2", "--rounds", "1"]
    assert told(lambda: fedsc.main(words)) == 1
    assert "1000 clients cannot start: " in capsys.readouterr().err
