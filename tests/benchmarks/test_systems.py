import json

import numpy as np
import pytest

from benchmarks import systems
from nmoe_flower import client_app
from nmoe_flower.engine import InProcessGrid

SHORT = ("--clients", "2", "--images", "40", "--backbone", "linear", "--steps", "2")


@pytest.mark.parametrize("system", systems.SYSTEMS)
def test_the_bare_loop_computes_what_the_system_computes(tmp_path, system):
    """Two rounds of both move the weights alike: the ratio compares equal work."""
    args = systems._parser().parse_args([system, *SHORT])
    config = systems._config(args, system, str(tmp_path))
    bare = systems._Bare(config)
    start = {name: value.numpy().copy() for name, value in bare.weights.items()}
    with InProcessGrid(client_app.app, 2, run_config=config.flat()) as grid:
        run = systems._flower(config, grid)
        for server_round in (1, 2):
            bare.round(server_round)
            arrays = run(server_round)
    assert arrays.keys() == start.keys()
    assert max(np.abs(arrays[name] - start[name]).max() for name in start) > 1e-3
    for name, value in bare.weights.items():
        np.testing.assert_allclose(arrays[name], value.numpy(), atol=1e-6, err_msg=name)


def test_what_is_measured_is_printed_and_written(tmp_path, capsys):
    file = tmp_path / "out.json"
    words = ["fedem", *SHORT, "--rounds", "2", "--workers", "0", "--json", str(file)]
    assert systems.main(words) == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("fedem")]
    assert line.split()[-3:-1] == ["<=", "1.15"]
    found = json.loads(file.read_text())["systems"]["fedem"]
    assert found["x"] > 0
    assert len(found["blocks"]) == len(found["bare"]) == 1


def test_what_has_no_loop_by_hand_is_refused(capsys):
    with pytest.raises(SystemExit) as leaving:
        systems.main(["fedjetz"])
    assert leaving.value.code == 2
    assert "'fedjetz'" in capsys.readouterr().err
