"""A study that is like another but for what it says itself."""

from pathlib import Path

import pytest

from nmoe_flower.errors import ConfigError
from nmoe_flower.study import Study

FIRST = """
title = "First"
recipe = "small.toml"
seeds = [0, 1, 2]
[set]
gate.rounds = 2
extractor.rounds = 5
extractor.learning-rate = 0.3
[axes]
data.tau = [0.5, 0.2]
[axes.length]
short = { gate.local-steps = 2 }
long = { gate.local-steps = 4 }
[variants.ce]
label = "FedCE"
[variants.sc]
set = { extractor.method = "fedsc", extractor.learning-rate = 9.0 }
[[exceptions]]
variant = "sc"
set = { gate.rounds = 9 }
[[tables]]
name = "all"
rows = ["variant", "length", "data.tau"]
gates = ["local"]
tests = ["iid"]
"""
LIKE = """
title = "Second"
like = "deeper/first"
"""
ALL_BUT = (
    LIKE
    + """
[set]
extractor.rounds = 7
[axes]
extractor.learning-rate = [0.1, 0.2]
data.tau = [0.3]
[variants.sc]
set = { extractor.batch-size = 99 }
"""
)


def load(folder: Path, second: str, first: str = FIRST) -> Study:
    (folder / "deeper").mkdir()
    (folder / "deeper" / "first.toml").write_text(first)
    (folder / "deeper" / "small.toml").write_text("expert.epochs = 3\n")
    (folder / "second.toml").write_text(second)
    return Study.load(folder / "second.toml")


def test_runs_are_those_of_the_other_and_nothing_that_is_made_of_them(tmp_path: Path) -> None:
    """Its seeds, exceptions and tables are its own affair; its recipe lies beside it."""
    study = load(tmp_path, LIKE)
    first = Study.load(tmp_path / "deeper" / "first.toml")
    theirs = {run.variant: run.config for run in first.runs if run.seed == 0}
    assert [run.variant for run in study.runs] == list(theirs)
    assert (study.seeds, study.exceptions, study.tables) == ((0,), (), ())
    for run in study.runs:
        assert run.config.expert.epochs == 3
        if run.named == "ce":
            assert run.config.gate == theirs[run.variant].gate
            assert run.config.data == theirs[run.variant].data
    assert {run.config.gate.rounds for run in study.runs} == {2}


def test_what_a_file_says_itself_goes_before(tmp_path: Path) -> None:
    """An axis sets the rate in place of ``[set]``; one of the same name takes its place."""
    study = load(tmp_path, ALL_BUT)
    assert list(study.axes) == ["data.tau", "length", "extractor.learning-rate"]
    assert study.axes["data.tau"].values == [0.3]
    assert list(study.variants) == ["ce", "sc"]
    found = {run.variant: run.config for run in study.runs}
    assert len(found) == 2 * 1 * 2 * 2
    one = found["sc-tau-0.3-short-learning-rate-0.2"]
    assert one.extractor.method == "fedce"  # the other's variant of that name is gone whole
    assert (one.extractor.batch_size, one.extractor.rounds, one.gate.rounds) == (99, 7, 2)
    assert (one.extractor.learning_rate, one.gate.local_steps) == (0.2, 2)


def test_an_axis_goes_before_what_a_variant_of_the_other_sets(tmp_path: Path) -> None:
    study = load(tmp_path, LIKE + "[axes]\nextractor.learning-rate = [0.1, 0.2]\n")
    rates = {run.config.extractor.learning_rate for run in study.runs if run.named == "sc"}
    assert rates == {0.1, 0.2}


@pytest.mark.parametrize(
    ("second", "first", "told"),
    [
        (LIKE.replace("deeper/first", ""), FIRST, "like is empty; allowed: the name of a study"),
        (LIKE.replace('"deeper/first"', "3"), FIRST, "like: text is wanted, got 3"),
        (LIKE.replace("deeper/first", "frist"), FIRST, "like frist: there is no .*'frist'"),
        (LIKE, "gate.rounds = 2\n", "like deeper/first: it has no title"),
        (LIKE, FIRST + "[unknown]\n", "like deeper/first: unknown is no key of a study"),
        (LIKE.replace("deeper/first", "second"), FIRST, "like second: the study .* is like itself"),
        (LIKE, 'title = "F"\nlike = "../second"\n', "like ../second: the study .* is like itself"),
        (LIKE + "[axes]\ndata.tau = [0.3]\n'data.tau' = [0.4]\n", FIRST, "twice, in two spellings"),
        (LIKE + "[variants.ce]\nset = { gate.rounds = 2 }\n[axes]\ngate.rounds = [1, 2]\n", FIRST,
         "variants.ce: set: gate.rounds: the axis gate.rounds sets it"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_name(
    tmp_path: Path, second: str, first: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        load(tmp_path, second, first)
