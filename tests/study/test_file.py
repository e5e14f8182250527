"""A study's file: its runs in order, and every way in which it contradicts itself, refused."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.baselines.network import ExpertNetwork
from nmoe_flower.catalogue import BASELINES
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError, within
from nmoe_flower.records import Score
from nmoe_flower.report import read_results
from nmoe_flower.study import ROW_METRICS, Study, gates_of, numbers_of
from nmoe_flower.study import tests_of as asked_tests
from nmoe_flower.study.labels import Labels

pytestmark = pytest.mark.published

WHOLE = """
title = "Two methods on skewed data"
about = "Of the digits."
recipe = "small.toml"
seeds = [0, 1]
paper-tables = true
[set]
run.controls = ["fedavg"]
[axes]
data.tau = [0.5, 0.2]
[axes.length]
short = { gate.rounds = 2 }
long = { gate.rounds = 4, head.rounds = 0 }
[variants.ce]
label = "FedCE"
[variants.sc]
recipe = "contrastive.toml"
[variants.sc.set]
contrast.share = "own"
[[skip]]
variant = "sc"
data.tau = 0.5
seed = 1
[[tables]]
name = "table-1"
rows = ["variant", "gate"]
columns = ["data.tau", "metric"]
gates = ["local", "federated+prior"]
tests = ["iid"]
metrics = ["accuracy", "auc", "stages.extractor.seconds", "gate.rounds"]
show = ["paper", "difference"]
where = { length = ["long"] }
[[paper]]
variant = "ce"
length = "long"
gate = "local"
test = "iid"
data.tau = 0.5
accuracy = 0.25
[[comparisons]]
name = "methods"
of = { variant = "ce" }
against = { variant = "sc" }
gates = ["local"]
[[comparisons]]
name = "gates"
of = { gate = "federated" }
against = { gate = "local" }
[[figures]]
name = "skew"
kind = "lines"
x = "data.tau"
series = ["variant", "length"]
gate = "local"
test = "iid"
"""
OF_LINES = 'kind = "lines"\nx = "data.tau"'
FIGURE = WHOLE[WHOLE.index('kind = "lines"') :]
ROUNDS = 'kind = "rounds"\n'
SWEEP = '[sweep]\nover = ["data.tau"]\ngate = "local"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(
        "# Small\n[gate]\nmethods = ['local', 'federated']\n[run]\nname = 'x'\nseed = 9\n"
    )
    (tmp_path / "contrastive.toml").write_text(
        "# Contrastive\nextractor.method = 'fedsc'\nhead.rounds = 3\n"
        "gate.methods = ['local', 'federated']\n"
    )
    return tmp_path


def load(folder: Path, text: str = WHOLE, **options: Any) -> Study:
    path = folder / "digits.toml"
    path.write_text(text)
    return Study.load(path, **options)


def edited(old: str, new: str) -> str:
    assert WHOLE.count(old) >= 1, old
    return WHOLE.replace(old, new, 1)


# --- what it says ---


def test_runs_are_variants_then_axes_then_seeds_less_what_is_skipped(folder: Path) -> None:
    study = load(folder)
    assert [str(run.place) for run in study.runs if run.named == "sc"] == [
        "digits/sc-tau-0.5-short/seed-0",
        "digits/sc-tau-0.5-long/seed-0",
        "digits/sc-tau-0.2-short/seed-0",
        "digits/sc-tau-0.2-short/seed-1",
        "digits/sc-tau-0.2-long/seed-0",
        "digits/sc-tau-0.2-long/seed-1",
    ]
    assert len(study.runs) == 2 * 4 * 2 - 2
    first, last = study.runs[0], study.runs[-1]
    assert (first.named, first.values) == ("ce", {"data.tau": 0.5, "length": "short"})
    assert (first.at("variant"), first.at("data.tau"), first.at("seed")) == ("ce", 0.5, 0)
    assert (first.config.gate.rounds, first.config.data.tau) == (2, 0.5)
    assert (last.config.gate.rounds, last.config.data.tau, last.config.run.seed) == (4, 0.2, 1)
    assert last.config.contrast.share == "own"
    assert {run.config.run.controls for run in study.runs} == {("fedavg",)}
    assert {run.config.run.name for run in study.runs} == {"nmoe"}  # not the recipe's


def test_a_seed_more_or_less_is_a_configuration_that_parses_alike(folder: Path) -> None:
    for run in load(folder).runs:
        assert Config.parse(run.config.flat()) == run.config


def test_what_it_declares(folder: Path) -> None:
    study = load(folder)
    assert (study.name, study.title, study.seeds, study.paper_tables) == (
        "digits", "Two methods on skewed data", (0, 1), True
    )  # fmt: skip
    assert {name: variant.label for name, variant in study.variants.items()} == {
        "ce": "FedCE", "sc": "sc"
    }  # fmt: skip
    (table,), (value,) = study.tables, study.paper
    assert (table.heading, table.digits, table.where) == ("table-1", 3, {"length": ("long",)})
    assert value.values == {"accuracy": 0.25}
    assert [run.variant for run in study.runs if value.is_of(run, gate="local", test="iid")] == [
        "ce-tau-0.5-long"
    ] * 2
    methods, gates = study.comparisons
    assert (methods.gates, methods.tests) == (("local",), ("local", "iid"))
    assert gates.of == {"gate": ("federated",)}
    assert study.figures[0].series == ("variant", "length")
    assert study.sweep is None


def test_without_variants_and_axes_there_is_a_base(folder: Path) -> None:
    study = load(folder, 'title = "One"\n')
    (run,) = study.runs
    assert (run.variant, run.named, str(run.place)) == ("base", "base", "digits/base/seed-0")
    assert run.config == Config.parse({"run.seed": 0})
    (named,) = load(folder, 'title = "One"\n[axes.setting]\niid = {data.scheme = "iid"}\n').runs
    assert named.variant == "iid"


def test_a_variants_folder_tells_axes_of_one_ending_apart(folder: Path) -> None:
    text = 'title = "T"\n[axes]\ngate.rounds = [2]\nextractor.rounds = [3]\n'
    (run,) = load(folder, text).runs
    assert run.variant == "gate-rounds-2-extractor-rounds-3"


def test_settings_go_before_the_files_but_not_before_an_axis(folder: Path) -> None:
    study = load(folder, overrides=["contrast.share=samples", ("run.device", "cuda")])
    assert {run.config.contrast.share for run in study.runs} == {"samples"}
    assert {run.config.run.device for run in study.runs} == {"cuda"}
    with pytest.raises(ConfigError, match=r"--set data.tau: the axis data.tau sets it"):
        load(folder, overrides=["data.tau=0.1"])
    with pytest.raises(ConfigError, match=r"--set gate.rounds: the axis length sets it"):
        load(folder, overrides=[("gate.rounds", 1)])
    with pytest.raises(ConfigError, match=r"--set run.seed: .* name them in seeds"):
        load(folder, overrides=["run.seed=4"])


# --- what it refuses: an edit of the whole file, and what is told ---

REFUSED = {
    "no file": ("small.toml", "smal.toml", "recipe: cannot read the recipe"),
    "no recipe": ('"small.toml"', '"cifar1"', "recipe: there is no file 'cifar1' and no recipe"),
    "a study as recipe": ('"small.toml"', '"digits.toml"', "recipe: .* is a study, not a recipe"),
    "title": ('title = "Two methods on skewed data"', "title = 3", "title: text is wanted, got 3"),
    "title of lines": (
        '"Two methods on skewed data"',
        '"Two\\nlines"',
        "title has several lines; allowed: one",
    ),
    "all keys told": ("about =", "zzz =", "zzz is no key of a study; allowed: .*sweep, figures"),
    "label of nothing": (
        "[axes]",
        '[labels]\nzzz = "Z"\n[axes]',
        "labels: zzz is no .* allowed: variant, .*iid",
    ),
    "labels alike": (
        "[axes]",
        '[labels]\nlocal = "X"\nfederated = "X"\n[axes]',
        "labels: 'X' names two values of gate: local, federated",
    ),
    "policies of another system": (
        'name = "table-1"\n',
        'name = "table-1"\nkind = "policies"\n',
        "kind = policies: ce-tau-.* has run.system = networked; allowed: aligned",
    ),
    "shown twice": (
        '["paper", "difference"]',
        '["paper", "paper"]',
        "show = paper, paper; allowed",
    ),
    "seed of text": ("seed = 1\n", 'seed = "1"\n', 'skip 1: seed = "1", a text, is what no run'),
    "published nan": ("accuracy = 0.25", "accuracy = nan", "paper 1: accuracy: a number is wanted"),
    "published percent": (
        "accuracy = 0.25",
        "accuracy = 73.3",
        "accuracy: a share from 0 to 1 is wanted, got 73.3",
    ),
    "no x": ('x = "data.tau"', 'x = ""', "figures 1 .*: x is missing; allowed: variant, data.tau"),
    "no of": (
        'of = { variant = "ce" }\nagainst = { variant = "sc" }',
        "",
        "comparisons 1 .*: of: is missing; against: is missing$",
    ),
    "name of a file": (
        'name = "skew"',
        'name = "../skew"',
        "name: '../skew' is not allowed; .*first",
    ),
    "empty title": ('"Two methods on skewed data"', '" "', "title is empty"),
    "key": ("about =", "abuot =", "abuot is no key of a study; did you mean about"),
    "section": ("[set]", "[gate]\nrounds=3\n[set]", r"gate: settings .* stand in \[set\]"),
    "seeds twice": ("[0, 1]", "[0, 1, 0]", "seeds: 0 stands there twice"),
    "seeds none": ("[0, 1]", "[]", "seeds = .*; allowed: a list of whole numbers"),
    "seed true": ("[0, 1]", "[0, true]", "seeds: true is no seed"),
    "seed large": ("[0, 1]", "[4294967296]", "seeds: 4294967296 is no seed"),
    "set": ("run.controls =", "run.contrls =", "set: run.contrls is no key .* run.controls"),
    "axis key": (
        "data.tau = [",
        "data.tao = [",
        "axes: data.tao is no key .* did you mean data.tau",
    ),
    "axis section": ("data.tau = [", "dta.tau = [", r"axes: dta.tau: .*dta is no section"),
    "axis scalar": ("[0.5, 0.2]", "0.5", "axes: data.tau: a list of its values is wanted"),
    "axis empty": ("[0.5, 0.2]", "[]", "axes: data.tau is empty, and no run would be left"),
    "axis value twice": ("[0.5, 0.2]", "[0.5, 0.50]", "axes: data.tau: 0.5 stands there twice"),
    "axis text for a number": (
        "[0.5, 0.2]",
        '[0.5, "0.2"]',
        r'data.tau: "0.2" is a text; .*numbers',
    ),
    "axis text for a switch": (
        "data.tau = [",
        'gate.noisy = [true, "false"]\ndata.tau = [',
        'gate.noisy: "false" is a text; allowed: true and false',
    ),
    "axis value bad": (
        "[0.5, 0.2]",
        "[0.5, -1]",
        r"variant ce \(data.tau = -1, length = short\): ",
    ),
    "axis of a section": ("data.tau = [0.5, 0.2]", "data = 3", "axes: data is neither a conf"),
    "axis seed": ("data.tau =", "run.seed =", "run.seed is not for a study to set; name them in"),
    "axis column": ("[axes.length]", "[axes.mean]", "mean is a dimension or a column"),
    "axis dimension": ("[axes.length]", "[axes.metric]", "metric is a dimension or a column"),
    "axis value no table": ("short = {", "nothing = 3\nshort = {", "axes: length.nothing: a table"),
    "axis value key": ("gate.rounds = 2", "gate.round = 2", "length.short: gate.round is no key"),
    "axis value name": ("short =", '"a/b" =', "a value names a folder"),
    "axes of one key": ("data.tau = [", "gate.rounds = [1]\ndata.tau = [", "both set gate.rounds"),
    "axis and variant": (
        'share = "own"',
        'share = "own"\ngate.rounds = 3',
        "variants.sc: set: gate.rounds: the axis length sets it, and would undo",
    ),
    "axis and set": (
        'run.controls = ["fedavg"]',
        'run.controls = ["fedavg"]\ngate.rounds = 3',
        "set: gate.rounds: the axis length sets it in every run",
    ),
    "variant key": ('label = "FedCE"', 'lable = "FedCE"', "variants.ce: lable is no key .* label"),
    "variant name": ("[variants.ce]", '[variants."../ce"]', "a variant names a folder"),
    "variant base": ("[variants.ce]", "[variants.base]", "a variant names a folder.*not base"),
    "variant no table": (
        '[variants.ce]\nlabel = "FedCE"',
        "[variants]\nce = 3",
        "a table is wanted",
    ),
    "variant set": ('share = "own"', 'shares = "own"', "variants.sc: set: contrast.shares is no"),
    "variant value": ('share = "own"', 'share = "on"', "variant sc .*: contrast.share: "),
    "variant recipe": ('"contrastive.toml"', '"none.toml"', "variants.sc: recipe: cannot read"),
    "label twice": ('label = "FedCE"', 'label = "sc"', "the label 'sc' stands there twice"),
    "variant twice": (
        'recipe = "contrastive.toml"\n[variants.sc.set]\ncontrast.share = "own"',
        'recipe = "small.toml"',
        "ce-.* and sc-.* are the same configuration",
    ),
    "skip key": ('variant = "sc"', 'varian = "sc"', "skip 1: varian is no dimension; did you mean"),
    "skip value": ('variant = "sc"\ndata', 'variant = "sd"\ndata', "variant = sd is what no run"),
    "skip seed": ("seed = 1\n", "seed = 7\n", "skip 1: seed = 7 is what no run has; allowed: 0, 1"),
    "skip all": ('variant = "sc"\ndata.tau = 0.5\nseed = 1', "seed = [0, 1]", "every run is left"),
    "skip nothing": ("[[skip]]", "[[skip]]\n[[skip]]", "skip 1: names no dimension"),
    "table key": ("show =", "shows =", r"tables 1 \(table-1\): shows: unknown key; did you mean"),
    "table show": ('["paper", "difference"]', '["ours"]', r"tables 1 \(table-1\): show"),
    "table rows": ('["variant", "gate"]', '["variant", "gates"]', "gates is no dimension; did you"),
    "table rows none": ('["variant", "gate"]', "[]", r"tables 1 \(table-1\): rows: "),
    "table twice": (
        '["data.tau", "metric"]',
        '["gate", "metric", "data.tau"]',
        "gate stands in ro",
    ),
    "table gate": (
        '"federated+prior"',
        '"rolling"',
        "gates: rolling is no gate that a run here has",
    ),
    "table test": ('tests = ["iid"]', 'tests = ["validation"]', "tests: validation is no test"),
    "table metric": (
        '"auc"',
        '"auk"',
        "metrics: auk is no metric that a run here has; did you mean",
    ),
    "table where": (
        'where = { length = ["long"] }',
        'where = { length = ["lon"] }',
        "where: length = lon is what no run has; allowed: short, long",
    ),
    "table open": (
        'where = { length = ["long"] }',
        "",
        "length is no dimension of a cell, and there",
    ),
    "table open tests": ('tests = ["iid"]', "", r"test is no dimension of a cell.*\(local, iid\)"),
    "table digits": ("show =", "digits = -1\nshow =", "digits: "),
    "table name": ('name = "table-1"', 'name = "../table"', "name: "),
    "table no name": ('name = "table-1"', "", "tables 1: name: is missing"),
    "tables alone": ("[[tables]]", "[tables]", r"tables is wanted as tables: write \[\[tables\]\]"),
    "paper cell": (
        'variant = "ce"\nlength',
        'variant = "se"\nlength',
        r"paper 1: variant = se is wh",
    ),
    "paper gate": (
        'gate = "local"\ntest = "iid"\ndata',
        'gate = "rolling"\ntest = "iid"\ndata',
        "paper 1: gate = rolling is what no run has",
    ),
    "paper open": ("data.tau = 0.5\naccuracy", "accuracy", "data.tau is missing, and the value wo"),
    "paper test": ('test = "iid"\ndata', "data", "paper 1: test is missing; allowed: local, iid"),
    "paper empty": ("accuracy = 0.25", "", "paper 1: holds no value"),
    "paper metric": ("accuracy = 0.25", "acuracy = 0.25", "acuracy is no metric or dimension; did"),
    "paper number": ("accuracy = 0.25", 'accuracy = "a"', "accuracy: a number is wanted, got a"),
    "paper no table": ("accuracy = 0.25", "macro_f1 = 0.25", "macro_f1: no table has its cell"),
    "paper no tables": (
        WHOLE[WHOLE.index("[[tables]]") : WHOLE.index("[[paper]]")],
        "",
        r"paper 1: accuracy: no table has its cell: the study declares no \[\[tables\]\]",
    ),
    "paper numbers": (
        WHOLE[WHOLE.index('rows = ["variant", "gate"]') : WHOLE.index("[[paper]]")],
        'rows = ["variant", "data.tau"]\ncolumns = ["number"]\nwhere = { length = ["short"] }\n'
        'numbers = [{ label = "own", gate = "local", test = "iid" }]\n',
        "paper 1: accuracy: no table has its cell",
    ),
    "paper twice": (
        "[[paper]]",
        '[[paper]]\nvariant = "ce"\nlength = "long"\ngate = ["local", "federated"]\n'
        'test = "iid"\ndata.tau = [0.5, 0.2]\naccuracy = 0.75\n[[paper]]',
        "paper 2: accuracy = 0.25 of ce-tau-0.5-long, local, iid stands in paper 1 already "
        r"\(0.75\); allowed: once",
    ),
    "paper not shown": ('length = "long"\ngate', 'length = "short"\ngate', "no table has its cell"),
    "pair unknown": (
        'against = { variant = "sc" }',
        'against = { variant = "x" }',
        r"comparisons 1 \(methods\): against: variant = x is what no run has",
    ),
    "pair same": ('against = { variant = "sc" }', 'against = { variant = "ce" }', "are the same"),
    "pair none": ('against = { variant = "sc" }', "against = { }", "names no dimension"),
    "pair gate": ('gates = ["local"]', 'gates = ["oracle"]', "gates: oracle is no gate"),
    "pair both": (
        'of = { gate = "federated" }',
        'gates = ["local"]\nof = { gate = "federated" }',
        "gates and a gate in of or against: choose one",
    ),
    "pair partner": (
        'of = { variant = "ce" }\nagainst = { variant = "sc" }',
        'of = { variant = "sc", data.tau = 0.5, length = "long" }\n'
        'against = { variant = "sc", data.tau = 0.2, length = "long" }\n'
        'metrics = ["bytes"]',
        "metrics: bytes is no metric",
    ),
    "figure gate": (
        'gate = "local"\ntest = "iid"\n"""'[:-3],
        'gate = "rolling"\ntest = "iid"\n',
        "rolling is ",
    ),
    "names": ('name = "skew"', 'name = "methods"', "the name 'methods' stands in comparisons"),
    "figure kind": ('"lines"', '"bars"', "kind: input should be 'lines', 'dots', 'routing', "),
    "figure x": ('x = "data.tau"', 'x = "tau"', "figures 1 .*: x: tau is no dimension; did you"),
    "figure y": ('x = "data.tau"', 'y = "acc"\nx = "data.tau"', "y: acc is no metric that a run"),
    "figure series": ('["variant", "length"]', '["variants"]', "variants is no dimension; did you"),
    "figure open": ('["variant", "length"]', '["variant"]', "length is no dimension of a cell"),
    "figure since": (OF_LINES, f'{OF_LINES}\nsince = "ce"', "since = ce: kind = lines counts no"),
    "figure since nobody": (
        OF_LINES,
        'kind = "scatter"\nsince = "cd"',
        "since: cd is no variant; allowed: ce, sc",
    ),
    "figure no gate": (
        'series = ["variant", "length"]\ngate = "local"',
        'series = ["variant", "length"]',
        "gate is left open; allowed: one of local",
    ),
}


@pytest.mark.parametrize("fault", [name for name, (*_, told) in REFUSED.items() if told])
def test_a_fault_is_refused_with_the_file_the_key_and_what_is_allowed(
    fault: str, folder: Path
) -> None:
    old, new, told = REFUSED[fault]
    with pytest.raises(ConfigError, match=told) as caught:
        load(folder, edited(old, new))
    assert str(folder / "digits.toml") in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == [
        "contrastive.toml", "digits.toml", "small.toml"
    ]  # fmt: skip


def test_what_an_axis_sets_in_some_runs_has_a_default_in_set(folder: Path) -> None:
    text = (
        'title = "T"\n[set]\ngate.rounds = 3\n'
        "[axes.length]\nshort = { gate.rounds = 2 }\nusual = {}\n"
    )
    assert [run.config.gate.rounds for run in load(folder, text).runs] == [2, 3]


def test_two_variants_that_compute_the_same_are_told_why(folder: Path) -> None:
    """tau is nothing to IID data: three values of it would be one run three times."""
    text = (
        'title = "T"\n[axes]\ndata.tau = [0.5, 0.3]\n'
        '[axes.setting]\niid = {data.scheme = "iid"}\nskewed = {data.scheme = "dominant"}\n'
    )
    with pytest.raises(
        ConfigError,
        match=r"tau-0.5-iid and tau-0.3-iid are the same configuration \(data.tau has no effect "
        r"with data.scheme = iid\)",
    ):
        load(folder, text)
    skipped = '[[skip]]\nsetting = "iid"\ndata.tau = 0.5\n'
    assert [run.variant for run in load(folder, text + skipped).runs] == [
        "tau-0.5-skewed",
        "tau-0.3-iid",
        "tau-0.3-skewed",
    ]


def test_two_variants_of_one_folder_are_refused(folder: Path) -> None:
    text = 'title = "T"\n[axes]\ndata.dataset = ["a/b", "a:b"]\n'
    with pytest.raises(ConfigError, match="two variants would go to the folder 'dataset-a-b'"):
        load(folder, text)


def test_a_variant_may_not_take_the_folder_of_shared_work(folder: Path) -> None:
    with pytest.raises(ConfigError, match="'stage-1' is taken in a study's folder"):
        load(folder, 'title = "T"\n[variants.stage-1]\n')


@pytest.mark.parametrize(
    ("sweep", "told"),
    [
        (SWEEP, "sweep: ce-tau-0.5-short has no validation data: set data.validation-per-client"),
        (SWEEP + 'test = "iid"\n', "sweep: test = iid: a value is chosen by test images never"),
        (SWEEP.replace("data.tau", "data.alpha"), "sweep: data.alpha is no axis; did you mean"),
        (SWEEP.replace("data.tau", "variant"), "sweep: variant is no axis; allowed: data.tau"),
        (SWEEP.replace('["data.tau"]', "[]"), "sweep: over: .* is not allowed; allowed: one or"),
        (SWEEP + 'best = "most"\n', "sweep: best: input should be 'highest' or 'lowest'"),
        (SWEEP.replace("gate =", "gat ="), "sweep: gate: is missing"),
        (
            SWEEP + 'judged-by = { b = "local" }\n',
            "sweep: judged-by: b is no variant; allowed: ce, sc",
        ),
        ("[[sweep]]\nx = 1\n", "sweep: a table is wanted"),
    ],
)
def test_a_sweep_goes_by_validation_data_alone(sweep: str, told: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        load(folder, WHOLE + sweep)


def test_a_sweep_tells_of_no_test_that_nobody_runs(folder: Path) -> None:
    text = WHOLE.replace("[set]", "[set]\ndata.validation-per-client = 5")
    with pytest.raises(ConfigError, match="sweep: tests: foo is no test that a run here has; all"):
        load(folder, text + SWEEP + 'tests = ["foo"]\n')


def test_a_table_shows_the_paper_beside_a_cell_if_anything_is_published(folder: Path) -> None:
    nothing = WHOLE[: WHOLE.index("[[paper]]")].replace("paper-tables = true", "")
    with pytest.raises(
        ConfigError, match=r"tables \(table-1\): show = paper, difference, and noth"
    ):
        load(folder, nothing)
    assert load(folder, nothing.replace('show = ["paper", "difference"]', "")).tables


def test_what_nobody_can_use_is_no_setting(folder: Path) -> None:
    """A study that only takes runs of others has none of its own to set anything for."""
    load(folder)
    taken = 'title = "T"\n[[include]]\nstudy = "digits"\n'
    (folder / "others.toml").write_text(taken)
    assert Study.load(folder / "others.toml").runs
    (folder / "others.toml").write_text(f"{taken}[set]\ngate.rounds = 99\n")
    with pytest.raises(ConfigError, match="set: all runs are those of other studies, and nothing"):
        Study.load(folder / "others.toml")


def test_without_axes_nothing_is_chosen(folder: Path) -> None:
    with pytest.raises(ConfigError, match="sweep: over: there is no axis, and nothing is to be"):
        load(folder, f'title = "T"\n[variants.a]\n{SWEEP.replace("data.tau", "variant")}')


def test_the_command_line_undoes_no_exception(folder: Path) -> None:
    once = WHOLE + "[[exceptions]]\nseed = 0\nset = {head.batch-size = 7}\n"
    with pytest.raises(
        ConfigError, match=r"exceptions 1: set: head.batch-size: --set head.batch-size would undo"
    ):
        load(folder, once, overrides=["head.batch_size=9"])
    assert load(folder, once, overrides=["run.device=cuda"]).exceptions == (
        "seed 0: head.batch-size = 7",
    )


def test_a_setting_of_one_run_stands_in_one_exception(folder: Path) -> None:
    once = "[[exceptions]]\nseed = 0\nset = {head.batch-size = 7}\n"
    assert load(folder, WHOLE + once).exceptions == ("seed 0: head.batch-size = 7",)
    again = '[[exceptions]]\nvariant = "ce"\nset = {head.batch-size = 8}\n'
    with pytest.raises(
        ConfigError, match=r"exceptions 2: set: head.batch-size: exceptions 1 sets it for ce-.*0 al"
    ):
        load(folder, WHOLE + once + again)
    nothing = "[[exceptions]]\nseed = 1\nset = {run.device = 'cpu'}\n"
    assert load(folder, WHOLE + nothing).exceptions == ()


def test_the_name_of_what_a_sweep_chooses_is_taken(folder: Path) -> None:
    text = WHOLE.replace("[set]", "[set]\ndata.validation-per-client = 5")
    load(folder, text + SWEEP)
    with pytest.raises(ConfigError, match="tables: the name 'choice' stands in sweep already"):
        load(folder, text.replace('name = "table-1"', 'name = "choice"') + SWEEP)
    assert load(folder, text.replace('name = "table-1"', 'name = "choice"')).tables


def test_values_of_any_kind_have_labels(folder: Path) -> None:
    text = """
title = "T"
[axes]
data.flip = [true, false]
run.controls = [[], ["fedavg", "centralized"]]
[axes.my_start]
"a_b" = { gate.rounds = 2 }
[labels]
"data.flip.true" = "mirrored"
false = "as it is"
"run.controls.fedavg,centralized" = "both"
"my_start.a_b" = "ours"
"data.flip" = "images"
"""
    labels = Labels(own=load(folder, text).labels)
    assert labels.of_dimension("data.flip") == "images"
    assert labels.of_value("data.flip", True) == "mirrored"
    assert labels.of_value("data.flip", False) == "as it is"
    assert labels.of_value("run.controls", ("fedavg", "centralized")) == "both"
    assert labels.of_value("my_start", "a_b") == "ours"
    plain = Labels(own=load(folder, text.replace('false = "as it is"', "")).labels)
    assert plain.of_value("data.flip", False) == "false"  # as the file spells it


def test_a_list_may_be_a_value(folder: Path) -> None:
    text = (
        'title = "T"\nset.run.system = "aligned"\n[axes]\nalignment.capacity = [[1], [1, 2]]\n'
        "[[skip]]\nalignment.capacity = [1, 2]\nseed = 0\n"
    )
    (run,) = load(folder, text).runs
    assert (run.variant, run.values) == ("capacity-1", {"alignment.capacity": (1,)})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    st.sampled_from(
        [
            "title",
            "about",
            "recipe",
            "seeds",
            "paper-tables",
            "set",
            "axes",
            "variants",
            "skip",
            "include",
            "tables",
            "paper",
            "comparisons",
            "sweep",
            "figures",
        ]
    ),
)
def test_anything_in_any_place_is_a_study_or_a_config_error(value: Any, key: str) -> None:
    """No value of TOML ends in anything else, and the error says where it stands."""
    try:
        study = Study._read(Path("any.toml"), {"title": "T", key: value}, [], ())
    except ConfigError as error:
        assert key in str(error)  # noqa: PT017
    else:
        assert study.runs


# --- what is measured, known before ---


@pytest.mark.parametrize("published", ["digits/defaults", "fedsc/own", "alignment-digits/joint"])
def test_rows_are_those_of_published_runs(published: str) -> None:
    run = Path(__file__).parents[2] / "results" / published / "seed-0"
    config, results = Config.load(run), read_results(run / "results.json")
    assert {row["gate"] for row in results["rows"]} == set(gates_of(config))
    assert {row["test"] for row in results["rows"]} == set(asked_tests(config))
    known = set(numbers_of(config))
    for row in results["rows"]:
        assert set(ROW_METRICS) & row.keys() <= known
    costs = {f"stages.{stage}.{name}" for stage, of in results["stages"].items() for name in of}
    paths = {
        f"{part}.{name}"
        for part in ("representation", "privacy", "alignment")
        for name, value in results.get(part, {}).items()
        if isinstance(value, int | float)
    }
    assert paths <= known
    assert "stages.extractor.seconds" in known
    assert {cost for cost in costs if cost.startswith(("stages.head", "stages.gate"))} <= known


def test_the_metrics_of_a_row_are_those_on_the_wire() -> None:
    counted = {Score.ROUTING, Score.RIGHT_OF, Score.ASKED_OF}
    sent = {score.replace("-", "_") for score in set(Score) - counted}
    assert set(ROW_METRICS) == {*sent, "worst_client"}  # which the server takes from all of them


@pytest.mark.parametrize("name", ["systems", "systems-latents"])
def test_leagues_of_systems_are_never_in_one_table_or_figure(name: str) -> None:
    """A global system is compared on images of all classes, a personal one on the device's own."""
    study = Study.load(Path(__file__).parents[2] / "experiments" / f"{name}.toml")
    league = {
        one: BASELINES[system].league
        for run in study.runs
        for one, system in [(run.named, run.config.run.system)]
        if system in BASELINES
    }
    beside = {"fedavg", "fine-tuned", "own", "majority"}  # FedAvg's are controls of both leagues
    shown = [(table.name, table.tests, dict(table.where)) for table in study.tables]
    shown += [(figure.name, (figure.test,), dict(figure.where)) for figure in study.figures]
    names = {what for what, *_ in shown}
    assert {"global", "personal", "worst", "global-bytes", "personal-bytes"} <= names
    for what, tests, where in shown:
        if what == "costs":
            continue
        (test,) = tests
        wanted = {"iid": "global", "local": "personal"}[test]
        rivals = set(where["variant"]) & league.keys() - {"fedavg", "fedavg-home"}
        assert {league[one] for one in rivals} == {wanted}, what
        gates = where.get("gate") or next(t.gates for t in study.tables if t.name == what)
        assert {league[g] for g in gates if g in league and g not in beside} == {wanted}, what


@pytest.mark.parametrize("name", ["systems-choose", "systems-latents-choose"])
def test_a_personal_system_is_judged_by_itself(name: str) -> None:
    """A variant is judged by the first of the sweep's gates that it answers with."""
    study = Study.load(Path(__file__).parents[2] / "experiments" / f"{name}.toml")
    assert study.sweep is not None
    for run in study.runs:
        system = run.config.run.system
        answers = set(gates_of(run.config))
        judge = next(gate for gate in study.sweep.gates_of(run.variant) if gate in answers)
        if system in BASELINES and BASELINES[system].league == "personal":
            assert judge == {"pfl-moe": "pfl-mf"}.get(system, system), run.named


def test_systems_are_compared_with_whole_networks_by_one_setting() -> None:
    """As the study's file says; systems of one expert stay as they are."""
    path = Path(__file__).parents[2] / "experiments" / "systems.toml"
    runs = Study.load(path, ["baseline.size=net"]).runs
    configs = {run.config.run.system: run.config for run in runs}
    for system in configs.keys() & BASELINES:
        network = ExpertNetwork(configs[system], (3, 32, 32), 10)
        assert network.whole == BASELINES[system].several, system


def test_every_line_of_an_error_names_its_place() -> None:
    with pytest.raises(ConfigError) as raised, within("the study a.toml"), within("figures 1"):
        raise ConfigError("metric: unknown key\ntests: unknown key")
    assert str(raised.value).splitlines() == [
        "the study a.toml: figures 1: metric: unknown key",
        "the study a.toml: figures 1: tests: unknown key",
    ]
