"""``nmoe privacy``: the numbers of the library, in a table and in words."""

import json
import math

import pytest

from nmoe_flower import cli
from nmoe_flower.cli.privacy import noise_plan as plan
from nmoe_flower.errors import ConfigError
from nmoe_flower.privacy import MAX_DIM, epsilon_spent


def nmoe(line):
    return cli.main(line.split())


def test_numbers_of_a_plan():
    one = plan(2.0, 20, 128, delta=1e-5, examples=2500, clients=10, classes=10)
    assert epsilon_spent(one.noise_multiplier, 20, 1e-5) == pytest.approx(2.0)
    # s = multiplier sqrt(2) / n; the mean of 10 has 1 / sqrt(10) of it; the edge is s sqrt(2 d).
    assert one.noise_std == pytest.approx(one.noise_multiplier * math.sqrt(2) / 2500)
    assert one.mean_noise_std == pytest.approx(one.noise_std / math.sqrt(10))
    assert one.mean_noise_edge == pytest.approx(16 * one.mean_noise_std)
    assert one.smallest_useful == 0.1
    assert one.kilobytes == pytest.approx(4 * 128 * 129 / 2 / 1000)


@pytest.mark.parametrize(
    ("dim", "verdict"), [(26, "clear"), (27, "tight"), (106, "tight"), (107, "hidden")]
)
def test_the_verdict_and_the_widest_features(dim, verdict):
    """140 samples: 1/C = 0.1 is the edge at d = (0.1 / s)^2 / 2 = 106.2, twice the edge at 26.6.

    s = 2.1471 sqrt(2) / 140 / sqrt(10) = 0.0068588.
    """
    one = plan(8.0, 20, dim, delta=1e-3, examples=140)
    assert one.largest_dim == 106
    assert one.verdict == verdict


def test_wider_features_than_can_be_packed_are_not_promised():
    assert plan(8.0, 1, 128).largest_dim == 2048


def test_words(capsys):
    command = [
        "privacy",
        "--epsilon",
        "8",
        "--delta",
        "1e-3",
        "--releases",
        "20",
        "--dim",
        "128",
        "--examples",
        "140",
    ]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "noise edge        0.11 with d = 128: eigenvalues of the mean below it are hidden" in out
    assert "Noise hides them" in out
    assert "up to 106 dimensions" in out
    assert "The weights are not covered" in out
    assert nmoe("privacy --dim 64") == 0
    assert "the budget is enough" in capsys.readouterr().out


def test_a_row_for_every_combination(capsys):
    assert (
        cli.main(
            [
                "privacy",
                "--epsilon",
                "1",
                "8",
                "--dim",
                "64",
                "128",
                "512",
                "--releases",
                "20",
                "50",
            ]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * 3 * 2
    assert lines[0].split()[0] == "epsilon"
    assert lines[1].split()[:3] == ["1", "20", "64"]


def test_json(capsys):
    assert nmoe("privacy --epsilon 8 --adjacency add-remove --format json") == 0
    said = json.loads(capsys.readouterr().out)
    (one,) = said["plans"]
    assert said["adjacency"] == "add-remove"
    assert one["noise_std"] == pytest.approx(one["noise_multiplier"] / 2500)
    assert one["verdict"] == "clear"


def test_a_delta_of_whole_samples_is_refused(capsys):
    assert nmoe("privacy --delta 1e-3") == 1
    assert "delta must be below 1/2500" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    ["--epsilon 0", "--delta 0", "--delta 1", "--releases 0", "--dim 0", f"--dim {MAX_DIM + 1}",
     "--clients 0", "--classes 0", "--examples 0"],
)  # fmt: skip
def test_bad_numbers_are_refused(arguments, capsys):
    option, value = arguments.split()
    with pytest.raises(SystemExit) as left:
        nmoe(f"privacy {arguments}")
    assert left.value.code == 2
    assert f"argument {option}: '{value}'; allowed: a " in capsys.readouterr().err


def test_the_widest_matrix_that_is_packed_has_a_plan():
    assert nmoe(f"privacy --dim {MAX_DIM}") == 0


def test_a_plan_is_refused_without_clients():
    with pytest.raises(ConfigError, match="clients must be at least 1, got -1"):
        plan(8.0, 20, 128, clients=-1)
