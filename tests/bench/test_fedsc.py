import json

import numpy as np
import pytest
import torch

from nmoe_flower.bench import fedsc
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
    """Three rounds of both leave the same weights: the ratio compares equal work."""
    args = fedsc._parser().parse_args(arguments())
    values = fedsc._config(args, str(tmp_path)).flat()
    config = Config.parse({**values, "run.precision": "float32"})
    bare = fedsc._Bare(config, 2)
    run, arrays = fedsc._flower(config, 2, "merged"), None
    for server_round in range(1, 4):
        bare.round(server_round)
        arrays = run(server_round)
    assert arrays is not None
    for name, tensor in bare._weights.items():
        assert torch.is_tensor(tensor)
        np.testing.assert_allclose(tensor.numpy(), arrays[name], atol=1e-4, err_msg=name)


def test_wrong_usage():
    with pytest.raises(SystemExit) as leaving:
        fedsc.main(["--clients", "many"])
    assert leaving.value.code == 2
