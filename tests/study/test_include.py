"""A study that takes runs of another: in their place, under its own axes, none twice."""

from pathlib import Path

import pytest

from nmoe_flower.errors import ConfigError
from nmoe_flower.study import Study

FIRST = """
title = "First"
seeds = [0, 1]
[axes]
data.tau = [0.5, 0.2]
[axes.length]
short = { gate.rounds = 2 }
long = { gate.rounds = 4 }
[variants.ce]
label = "FedCE"
[variants.sc]
set = { extractor.method = "fedsc" }
"""
SECOND = """
title = "Second"
[[include]]
study = "first"
where = { variant = "ce", data.tau = 0.5 }
[axes]
data.tau = [0.3]
[axes.length]
long = { gate.rounds = 4 }
[variants.wide]
set = { extractor.batch-size = 99 }
[[tables]]
name = "all"
rows = ["variant", "length"]
columns = ["data.tau"]
gates = ["local"]
tests = ["iid"]
"""


def load(folder: Path, second: str = SECOND, first: str = FIRST) -> Study:
    (folder / "first.toml").write_text(first)
    (folder / "second.toml").write_text(second)
    return Study.load(folder / "second.toml")


def test_taken_runs_stay_in_their_place_and_come_first(tmp_path: Path) -> None:
    study = load(tmp_path)
    assert [run.place.as_posix() for run in study.runs] == [
        "first/ce-tau-0.5-short/seed-0",
        "first/ce-tau-0.5-short/seed-1",
        "first/ce-tau-0.5-long/seed-0",
        "first/ce-tau-0.5-long/seed-1",
        "second/wide-tau-0.3-long/seed-0",
        "second/wide-tau-0.3-long/seed-1",
    ]
    assert study.seeds == (0, 1)  # of what it takes, where it names none
    assert list(study.variants) == ["ce", "wide"]  # no run of sc is taken
    values = {name: axis.values for name, axis in study.axes.items()}
    assert values == {"data.tau": [0.5, 0.3], "length": ["short", "long"]}
    own = Study.load(tmp_path / "first.toml").runs[0]
    assert study.runs[0] == own


def test_without_runs_of_its_own(tmp_path: Path) -> None:
    study = load(tmp_path, 'title = "S"\nseeds = [1]\n[[include]]\nstudy = "first.toml"\n')
    assert len(study.runs) == 8
    assert {run.seed for run in study.runs} == {1}
    assert list(study.variants) == ["ce", "sc"]


@pytest.mark.parametrize("named", ["../first", "../first.toml", "{folder}/first"])
def test_a_study_is_taken_by_a_path(named: str, tmp_path: Path) -> None:
    """Relative to the file that takes it, or absolute; the ending may be left out."""
    (tmp_path / "first.toml").write_text(FIRST)
    (tmp_path / "below").mkdir()
    path = tmp_path / "below" / "second.toml"
    path.write_text(SECOND.replace('"first"', f'"{named.format(folder=tmp_path)}"'))
    assert Study.load(path).runs[0] == Study.load(tmp_path / "first.toml").runs[0]


def test_settings_of_the_command_line_hold_for_taken_runs_too(tmp_path: Path) -> None:
    load(tmp_path)
    study = Study.load(tmp_path / "second.toml", ["run.device=cuda"])
    assert {run.config.run.device for run in study.runs} == {"cuda"}


def test_exceptions_of_taken_runs_are_told_and_those_of_no_other(tmp_path: Path) -> None:
    first = FIRST + "[[exceptions]]\ndata.tau = 0.5\nset = { head.batch-size = 7 }\n"
    first += "[[exceptions]]\ndata.tau = 0.2\nset = { head.batch-size = 8 }\n"
    second = SECOND + "[[exceptions]]\nseed = 1\nset = { head.batch-size = 9 }\n"
    assert load(tmp_path, second, first).exceptions == (
        "first, data.tau 0.5: head.batch-size = 7",
        "seed 1: head.batch-size = 9",
    )


REFUSED = {
    "another's faults": ("", "", "study .*first.toml: seeds: ", FIRST.replace("[0, 1]", "[0, 0]")),
    "no study": ('"first"', '"frist"', "include 1: there is no .*'frist'", FIRST),
    "no name": ('study = "first"', "", "include 1: study is missing: the name of", FIRST),
    "an empty name": ('"first"', '""', "include 1: study is missing", FIRST),
    "a folder": ('"first"', '".."', "include 1: cannot read the study ..: ", FIRST),
    "a recipe": ("", "", "include 1: .*it has no title", "gate.rounds = 2\n"),
    "a key": ("where =", "were =", "include 1: were is no key .* did you mean where", FIRST),
    "nobody": ("data.tau = 0.5", "data.tau = 0.9", "include 1: data.tau = 0.9 is what no", FIRST),
    "no axes": ("[axes.length]", "[axes.width]", "include first: its axes .*length, and", FIRST),
    "no table": ("[[include]]", "[include]", "include is wanted as tables", FIRST),
    "a seed": ('title = "Second"', 'title = "S"\nseeds = [7]', "no run is taken: none .* 7", FIRST),
    "a name": ("[variants.wide]", "[variants.ce]", "ce is a variant there and here", FIRST),
    "a label": ("[variants.wide]", "[variants.wide]\nlabel = 'FedCE'", "label 'FedCE'", FIRST),
    "a value": ("{ gate.rounds = 4 }", "{ gate.rounds = 5 }", "length = long sets other", FIRST),
    "one run twice": (
        "[[include]]", "[[include]]\nstudy = 'first'\n[[include]]", "are the same", FIRST
    ),
    "itself": ('"first"', '"second"', "second.toml includes itself", FIRST),
    "itself at last": ("", "", "second.toml includes itself",
        FIRST + '[[include]]\nstudy = "second"\n'),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_taken_is_refused(fault: str, tmp_path: Path) -> None:
    old, new, told, first = REFUSED[fault]
    with pytest.raises(ConfigError, match=rf"(?s){told}"):
        load(tmp_path, SECOND.replace(old, new, 1) if old else SECOND, first)
