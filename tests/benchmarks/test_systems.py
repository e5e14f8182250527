import json

import numpy as np
import pytest

from benchmarks import systems
from nmoe_flower import client_app
from nmoe_flower.baselines import of_client
from nmoe_flower.catalogue import BASELINES, found
from nmoe_flower.engine import InProcessGrid

SHORT = ("--clients", "2", "--images", "40", "--backbone", "linear", "--steps", "2")


@pytest.mark.parametrize("system", systems.SYSTEMS)
def test_the_bare_loop_computes_what_the_system_computes(tmp_path, system):
    """Two rounds of both move the weights alike: the ratio compares equal work."""
    trunk = (
        ("--backbone", "mlp", "--steps", "8") if BASELINES[system].shares_trunk else ()
    )  # one with weights
    args = systems._parser().parse_args([system, *SHORT, *trunk])
    config = systems._config(args, system, str(tmp_path))
    bare = systems._Bare(config)
    start = {name: value.numpy().copy() for name, value in bare.weights.items()}
    system_of = found(BASELINES[system].system)
    with InProcessGrid(client_app.app, 2, run_config=config.flat()) as grid:
        run = systems._flower(config, grid)
        for server_round in (1, 2):
            bare.round(server_round)
            arrays = run(server_round)
    assert max(np.abs(arrays[name] - start[name]).max() for name in start) > 1e-3
    for client in range(2):
        ours, theirs = of_client(arrays, client), bare.held(client)
        assert ours.keys() == {name for name in theirs if system_of.travels(name)}
        for name, value in ours.items():
            np.testing.assert_allclose(value, theirs[name].numpy(), atol=1e-6, err_msg=name)


def test_what_is_measured_is_printed_and_written(tmp_path, capsys):
    file = tmp_path / "out.json"
    short = (*SHORT, "--rounds", "2", "--launches", "2", "--workers", "0")
    words = ["fedem", *short, "--json", str(file)]
    assert systems.main(words) == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("fedem")]
    assert line.split()[-3:-1] == ["<=", "1.15"]
    found = json.loads(file.read_text())["systems"]["fedem"]
    assert len(found["quotients"]) == 2  # of the block of two rounds of each launch
    assert found["x"] == pytest.approx(sum(found["quotients"]) / 2, abs=1e-3)


def test_what_has_no_loop_by_hand_is_refused(capsys):
    with pytest.raises(SystemExit) as leaving:
        systems.main(["fedjetz"])
    assert leaving.value.code == 2
    assert "'fedjetz'" in capsys.readouterr().err
