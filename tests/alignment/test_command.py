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
        ("client,capacity,cats\na,1,1\na,1,1\n", "client 'a' is listed twice: line 2 and line 3"),
        ("client,capacity,cats,cats\na,1,1,1\n", "'cats' is listed twice: column 3 of line 1 and"),
        ("client,capacity,client,cats\na,1,a,1\n", "'client' is listed twice: column 1"),
        ("client,capacity,\na,1,1\n", "column 3 of line 1: the column is ''; allowed: a name"),
        ("client,capacity,cats\n,1,1\n", "line 2: the client is ''; allowed: a name"),
        ("client,capacity,cats\na,1e300,1\n", "capacity is '1e300'; allowed: a whole number in"),
        ("client,capacity,cats\na,1,1e300\n", "fitness for cats is '1e300'; allowed: a number"),
        ("client,capacity,cats\na,1,inf\n", "fitness for cats is 'inf'"),
        ('client,capacity,cats\na,1,"1\n', "line 2: not CSV: unexpected end of data"),
        ("client,capacity,cats\na,1," + "1" * 200_000 + "\n", "not CSV: field larger than"),
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
    assert "c.json is not valid JSON" in shown
    assert "d.json: an object with 'clients'; allowed: {" in shown
    assert "cannot read the file" in shown
    assert "absent.csv: No such file" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "expert,usage\ncats,10\ncats,99\n",
            "the expert 'cats' is listed twice: line 2 and line 3",
        ),
        ("expert,usage\ncats,10\nfish,9\n", "line 3: expert 'fish' has no fitness"),
        ("expert,usage,usage\ncats,10,9\n", "the column 'usage' is listed twice"),
        ("expert,colour\ncats,red\n", "the column 'colour'; allowed: expert, usage, lo, hi"),
        ("expert,lo\ncats,-1\n", "expert 'cats': lo is '-1'"),
        ("expert,lo,hi\ncats,3,2\n", "expert 'cats': lo=3 is above hi=2"),
        ("expert,usage\ncats,nan\n", "expert 'cats': usage is 'nan'"),
    ],
)
def test_bad_experts_are_named(text, message, tmp_path, capsys):
    experts = write(tmp_path, text, "experts.csv")
    assert cli.main(["align", write(tmp_path, CSV), "--experts", experts]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deep"),
        ("[1, 2]", "[1, 2]; allowed: {"),
        ({**OBJECT, "colour": 1}, "an object with 'clients', 'experts', 'colour'; allowed: {"),
        ({**OBJECT, "experts": {"x": 1}}, "experts is {'x': 1}; allowed: {"),
        ({**OBJECT, "experts": ["x"]}, "experts[0]: 'x'; allowed: {"),
        (
            {**OBJECT, "experts": [{"expert": "x"}, {"expert": "y"}, {"expert": "x"}]},
            "the expert 'x' is listed twice: experts[0] and experts[2]",
        ),
        (
            {**OBJECT, "clients": [*OBJECT["clients"], OBJECT["clients"][0]]},
            "the client 'a' is listed twice: clients[0] and clients[2]",
        ),
        (
            {**OBJECT, "clients": [{"client": None, "capacity": 1, "fitness": {}}]},
            "clients[0]: the client is None; allowed: a name",
        ),
        (
            {**OBJECT, "clients": [{"client": "a", "capacity": True, "fitness": {}}]},
            "client 'a': capacity is True; allowed: a whole number",
        ),
        (
            {**OBJECT, "clients": [{"client": "a", "capacity": 1, "fitness": [1]}]},
            "clients[0]: fitness is [1]",
        ),
        ('{"clients": [], "clients": []}', "the key 'clients' stands there twice"),
        ('{"clients": [NaN]}', "NaN is no number of JSON"),
    ],
)
def test_bad_objects_are_named(text, message, tmp_path, capsys):
    assert cli.main(["align", write(tmp_path, text, "c.json")]) == 1
    assert message in capsys.readouterr().err


def test_a_bound_in_the_file_frees_the_others(tmp_path, capsys):
    """One slot for two experts: an even share would give each one; a written bound is all."""
    clients = [{"client": "phone", "capacity": 1, "fitness": {"cats": 0.9, "dogs": 0.5}}]
    bounded = [{"expert": "cats", "usage": 120, "lo": 0, "hi": 3}, {"expert": "dogs"}]
    free = [{"expert": "cats", "usage": 120}, {"expert": "dogs"}]
    path = write(tmp_path, {"clients": clients, "experts": bounded}, "bounded.json")
    assert cli.main(["align", path]) == 0
    path = write(tmp_path, {"clients": clients, "experts": free}, "free.json")
    assert cli.main(["align", path]) == 1
    assert "1 slots of all clients together for 2 experts" in capsys.readouterr().err
    assert cli.main(["align", path, "--lo", "0"]) == 0


def test_infeasible_bounds_offer_others(tmp_path, capsys):
    assert cli.main(["align", write(tmp_path, CSV), "--lo", "3"]) == 1
    shown = capsys.readouterr().err
    assert "load bounds cannot be met" in shown
    assert "experts 'birds' need 3 clients together" in shown
    assert "the 2 clients that can hold them ('laptop', 'server') have 2 slots" in shown
    assert "nearest feasible bounds (lo..hi): cats 3..3, dogs 2..3, birds 1..3" in shown


@pytest.mark.parametrize("more", [["--policy", "greedy", "--lo", "1"], ["--out", "x.txt"]])
def test_wrong_usage(more):
    with pytest.raises(SystemExit) as leaving:
        cli.main(["align", "clients.csv", *more])
    assert leaving.value.code == 2
