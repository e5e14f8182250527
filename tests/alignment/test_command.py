"""``nmoe align``, through the command line."""

import json

import pytest

from nmoe_flower import cli

CSV = """client,capacity,cats,dogs,birds
phone,1,0.9,0.5,
laptop,2,0.8,0.2,0.1
server,3,0.7,0.6,0.5
"""
OBJECT = {
    "clients": [
        {"client": "a", "capacity": 1, "fitness": {"x": 0.9, "y": 0.8}},
        {"client": "b", "capacity": 1, "fitness": {"x": 0.9, "y": 0.1}},
    ],
    "experts": [{"expert": "x", "usage": 10}, {"expert": "y"}],
}


def write(folder, text, name="clients.csv"):
    path = folder / name
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return str(path)


def test_csv_in_csv_out(tmp_path, capsys):
    out = tmp_path / "out.csv"
    assert cli.main(["align", write(tmp_path, CSV), "--out", str(out)]) == 0
    # Six slots, two per expert; server holds all, phone may not have birds, so laptop has them.
    lines = out.read_text().splitlines()
    assert lines[0] == "client,expert"
    assert {"laptop,birds", "server,cats", "server,dogs", "server,birds"} <= set(lines)
    assert len(lines) == 7
    shown = capsys.readouterr().out
    assert "load CV 0.000" in shown
    assert "server" in shown


def test_json_in_json_out(tmp_path):
    out = tmp_path / "out.json"
    path = write(tmp_path, OBJECT, "c.json")
    assert cli.main(["align", path, "--scale", "none", "--out", str(out)]) == 0
    # a loses 0.1 without x, b would lose 0.8
    assert json.loads(out.read_text()) == {
        "policy": "joint",
        "assignment": {"a": ["y"], "b": ["x"]},
        "loads": {"x": 1, "y": 1},
    }


def test_greedy_herds(tmp_path, capsys):
    path = write(tmp_path, OBJECT, "c.json")
    assert cli.main(["align", path, "--policy", "greedy"]) == 0
    assert "load CV 1.000" in capsys.readouterr().out


def test_bounds_come_from_a_file(tmp_path, capsys):
    experts = write(tmp_path, "expert,usage,lo,hi\ncats,,1,1\nbirds,5,,\n", "experts.csv")
    assert cli.main(["align", write(tmp_path, CSV), "--experts", experts]) == 0
    loads = capsys.readouterr().out.split("expert  clients")[1].split()
    assert loads[:2] == ["cats", "1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("client,cats\na,1\n", "no column 'capacity'"),
        ("client,capacity,cats\na,-1,1\n", "client 'a': capacity is '-1'"),
        ("client,capacity,cats\na,nan,1\n", "client 'a': capacity is 'nan'"),
        ("client,capacity,cats\na,1,much\n", "fitness for cats is 'much'"),
        ("client,capacity,cats\na,1\n", "line 2: 2 cells, not 3"),
        ("client,capacity,cats\na,1,1\na,1,1\n", "client 'a' is listed twice"),
        ("client,capacity,x,y\na,1,1,1\n", "1 slots of all clients together for 2 experts"),
        ("client,capacity,cats\n", "no rows"),
        ("", "no column 'client'"),
    ],
)
def test_bad_files_are_named(text, message, tmp_path, capsys):
    assert cli.main(["align", write(tmp_path, text)]) == 1
    assert message in capsys.readouterr().err


def test_bad_json_is_named(tmp_path, capsys):
    assert cli.main(["align", write(tmp_path, "{", "c.json")]) == 1
    assert cli.main(["align", write(tmp_path, {"clients": []}, "d.json")]) == 1
    assert cli.main(["align", str(tmp_path / "absent.csv")]) == 1
    shown = capsys.readouterr().err
    assert "not JSON" in shown
    assert "KeyError 'experts'" in shown
    assert "absent.csv: cannot be read" in shown


def test_infeasible_bounds_offer_others(tmp_path, capsys):
    assert cli.main(["align", write(tmp_path, CSV), "--lo", "3"]) == 1
    shown = capsys.readouterr().err
    assert "load bounds cannot be met" in shown
    assert "nearest feasible bounds: lo=[" in shown


@pytest.mark.parametrize("more", [["--policy", "greedy", "--lo", "1"], ["--out", "x.txt"]])
def test_wrong_usage(more):
    with pytest.raises(SystemExit) as leaving:
        cli.main(["align", "clients.csv", *more])
    assert leaving.value.code == 2
