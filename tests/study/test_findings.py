import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from nmoe_flower import cli
from nmoe_flower.begun import begun_together, read_origin, read_settings
from nmoe_flower.data import load_images
from nmoe_flower.errors import ConfigError, NMoEError
from nmoe_flower.report import draw_figures, read_results
from nmoe_flower.results import RunFolder
from nmoe_flower.study import (
    Quantity,
    Study,
    findings_of,
    findings_to_json,
    make_plan,
    publish,
    publish_run,
    publish_study,
    read_findings,
    write_findings,
)
from nmoe_flower.study.findings import findings_from, tables_of
from nmoe_flower.study.outcomes import outcomes_of
from nmoe_flower.study.rows import RunOutcome, value_of
from tests.study.conftest import Write, finish

TEXT = """
title = "A study of 100 %"
about = "All about it."
seeds = [0, 1]
[set]
gate.methods = "federated,local"
run.controls = "fedavg"
[axes]
data.tau = [0.5, 0.2]
[labels]
federated = "FedGate"
[[tables]]
name = "main"
title = "Main table"
rows = ["gate"]
columns = ["data.tau"]
gates = ["federated", "control:fedavg"]
tests = ["iid"]
show = ["paper"]
[[tables]]
name = "numbers"
rows = ["data.tau"]
columns = ["number"]
numbers = [
  { label = "rounds", metric = "extractor.rounds" },
  { label = "FedGate, IID", gate = "federated", test = "iid", digits = 1 },
  { label = "own, local", gate = "local", test = "local" },
]
[[paper]]
gate = "federated"
test = "iid"
data.tau = 0.2
accuracy = 0.25
[[comparisons]]
name = "skew"
title = "Skew"
of = { data.tau = 0.2 }
against = { data.tau = 0.5 }
numbers = [{ label = "FedGate, IID", gate = "federated", test = "iid" }]
[[figures]]
name = "lines"
kind = "lines"
x = "data.tau"
series = ["gate"]
test = "iid"
where = { gate = ["federated", "local"] }
[[figures]]
name = "rounds"
kind = "rounds"
x = "bytes"
series = ["data.tau"]
test = "iid"
[[figures]]
name = "who"
title = "Who asks whom"
kind = "routing"
y = "macro_f1"
gate = "federated"
test = "iid"
"""


@pytest.fixture
def study(written: Write, tmp_path: Path) -> Study:
    """Four runs, all finished, in ``runs``."""
    study = written(TEXT, "of-100")
    for at in range(4):
        finish(study, at, tmp_path / "runs", shift=0.1 * (at >= 2))
    return study


def test_a_study_of_language_without_tables_gets_one_of_bits_per_byte(
    written: Write, tmp_path: Path
) -> None:
    text = (
        'title = "T"\n[set]\nrun.system = "language"\ndata.kind = "text"\n'
        'data.dataset = "./texts"\ndata.scheme = "natural"\nextractor.method = "pretrained"\n'
        'extractor.backbone = "small-lm"\nadapter.controls = []\n'
        'gate.methods = ["unigram", "local"]\n'
    )
    found = written(text)
    every = {"extractor": "pretrained", "clients": 10, "top_k": 1, "accuracy": None}
    rows = [
        {**every, "gate": gate, "test": test, "bits_per_byte": bits, "per_client": {}}
        for gate, bits in (("unigram", 1.5), ("local", 2.25))
        for test in ("iid", "local")
    ]  # fmt: skip
    finish(found, 0, tmp_path / "runs", rows=rows, routing={})
    (table,) = findings_of(found, tmp_path / "runs").tables
    assert [[cell.text for cell in line.cells] for line in table.lines] == [
        ["1.500", "1.500"], ["2.250", "2.250"],
    ]  # fmt: skip
    assert table.notes[0] == "Bits per byte."


def test_a_study_of_both_without_tables_gets_a_column_of_either(written: Write) -> None:
    text = (
        'title = "T"\n[set]\ngate.methods = "local"\n[variants.images]\n[variants.text.set]\n'
        'run.system = "language"\ndata.kind = "text"\ndata.dataset = "./texts"\n'
        'data.scheme = "natural"\nextractor.method = "pretrained"\n'
        'extractor.backbone = "small-lm"\nexpert.sharing = "none"\n'
    )
    (table,) = tables_of(written(text))
    assert (table.columns, table.metrics) == (("test", "metric"), ("accuracy", "bits_per_byte"))


def test_tables_comparisons_and_figures_come_from_the_folders(study: Study, tmp_path: Path) -> None:
    found = findings_of(study, tmp_path / "runs")
    main, numbers = found.tables
    # Seeds 0.50 and 0.51 at tau 0.5, a tenth more at tau 0.2.
    assert [[cell.text for cell in line.cells] for line in main.lines] == [
        ["0.505 ± 0.005", "0.605 ± 0.005"], ["0.505 ± 0.005", "0.605 ± 0.005"],
    ]  # fmt: skip
    assert [line.labels for line in main.lines] == [("FedGate",), ("FedAvg",)]
    assert main.lines[0].cells[1].difference_text == "+0.355"
    assert [column.labels for column in numbers.columns] == [
        ("rounds",), ("FedGate, IID",), ("own, local",),
    ]  # fmt: skip
    assert [cell.text for cell in numbers.lines[1].cells] == ["120", "0.6 ± 0.0", "0.605 ± 0.005"]
    (pair,) = found.comparisons[0].pairs
    assert (pair.labels, pair.verdict) == (
        ("FedGate, IID",), "no estimate of the noise",  # a tenth in both seeds
    )  # fmt: skip
    lines, rounds, who = found.figures
    assert [series.label for series in lines.series] == ["FedGate", "local"]
    assert [(point.x, round(point.mean, 3)) for point in lines.series[0].points] == [
        (0.2, 0.605), (0.5, 0.505),
    ]  # fmt: skip
    # A round moves 10 MB among ten clients; tests are no training.
    assert [point.x for point in rounds.series[0].points] == [1, 2, 3, 4, 5, 6]
    assert [point.mean for point in rounds.series[0].points][:2] == pytest.approx([0.1, 0.2])
    assert who.panels[0].local_ratio == 0.625
    assert who.panels[0].scores == (("macro F1", pytest.approx(0.505)),)
    assert found.provenance["minutes"] == 1.0  # of the stage 1 that all four stand on
    assert (found.provenance["runs"], found.provenance["finished"]) == (4, 4)
    assert found.absent == []


def test_table_json_says_the_same(study: Study, tmp_path: Path) -> None:
    found = findings_of(study, tmp_path / "runs")
    path = tmp_path / "table.json"
    path.write_text(findings_to_json(found), encoding="utf-8")
    again = read_findings(study, path)
    assert again.tables == found.tables
    assert again.comparisons == found.comparisons
    assert again.figures == found.figures
    assert findings_to_json(again) == path.read_text(encoding="utf-8")
    told = json.loads(path.read_text(encoding="utf-8"))
    assert {"format-version", "study", "title", "seeds", "provenance", "rows"} <= told.keys()


def test_runs_that_finished_elsewhere_count_and_are_published_beside(
    study: Study, tmp_path: Path
) -> None:
    """Three runs are published, the fourth is made later, on a machine that has no other."""
    runs, early, late, results = (tmp_path / name for name in ("runs", "early", "late", "results"))
    for at in range(3):
        finish(study, at, early, shift=0.1 * (at >= 2))
    place = publish_study(findings_of(study, early), early, results)
    before = {path: path.read_bytes() for path in place.rglob("results.json")}
    finish(study, 3, late, shift=0.1)
    whole = findings_of(study, runs)
    found = findings_of(study, late, [tmp_path / "none", results])
    assert found.tables == whole.tables
    assert found.comparisons == whole.comparisons
    assert found.figures[:2] == whole.figures[:2]
    publish_study(found, late, results)
    assert findings_of(study, results).tables == whole.tables
    assert len(begun_together(place)) == 4
    assert before.items() <= {p: p.read_bytes() for p in place.rglob("results.json")}.items()
    # What is published can be published elsewhere, and says the same there.
    found = findings_of(study, tmp_path / "none", [results])
    again = publish_study(found, tmp_path, tmp_path / "b")
    assert begun_together(again) == begun_together(place)
    assert findings_of(study, tmp_path / "b").tables == whole.tables
    # Of other settings it is another run.
    other = Study.load(study.path, ["gate.rounds=7"])
    with pytest.raises(NMoEError, match="no run of of-100 has finished"):
        findings_of(other, tmp_path / "none", [results])


def test_published_runs_say_the_same_and_are_small(study: Study, tmp_path: Path) -> None:
    runs, results = tmp_path / "runs", tmp_path / "results"
    found = findings_of(study, runs)
    place = publish_study(found, runs, results)
    assert sorted(path.name for path in place.iterdir()) == [
        "runs.json", "table.json", "tau-0.2", "tau-0.5",
    ]  # fmt: skip
    seed = place / "tau-0.2" / "seed-1"
    assert [path.name for path in seed.iterdir()] == ["results.json"]
    assert "routing" not in json.loads((seed / "results.json").read_text(encoding="utf-8"))
    kept = read_results(seed / "results.json")
    assert "per_client" not in kept["rows"][0]
    assert kept["rows"][0]["worst_client"] == 0.123457
    for path in (*place.glob("*.json"), *seed.iterdir()):
        assert str(tmp_path) not in path.read_text(encoding="utf-8"), path
    origin = read_origin(seed)
    assert origin["stage-1"]["from"] == "stage-1/some-key"
    again = findings_of(study, results)
    assert findings_to_json(again) == (place / "table.json").read_text(encoding="utf-8")
    assert again.figures == found.figures  # of rounds and routing table.json has what is drawn
    assert publish_study(again, results, results) == place


def test_a_run_published_alone_tells_what_pages_show_of_each_client(
    study: Study, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / study.runs[0].place
    rows = read_results(publish_run(run, tmp_path / "results" / "alone") / "results.json")["rows"]
    assert rows[0]["per_client"] == {"accuracy": [0.123457] * 10}


def test_figures_of_a_run_are_published_as_small_as_pages_need_them(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "PUBLISHED_DOTS", 40)
    run, place = tmp_path / "runs" / study.runs[0].place, tmp_path / "results" / "alone"
    drawn, *_ = draw_figures(run)
    kept = publish_run(run, place, figures=["accuracy"]) / "figures" / "accuracy.webp"
    with Image.open(drawn) as large, Image.open(kept) as small:
        assert small.width == pytest.approx(large.width / 5, abs=1)
    with pytest.raises(NMoEError, match="has no figure acuracy; allowed: accuracy"):
        publish_run(run, place, figures=["acuracy"])


CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CIFAR10 = {"train": dict.fromkeys(CLASSES, 5000), "test": dict.fromkeys(CLASSES, 1000)}


@pytest.mark.parametrize(
    ("samples", "called"),
    [
        (CIFAR10, "uoft-cs/cifar10"),
        ({**CIFAR10, "train": dict.fromkeys(CLASSES, 9000)}, "./lesions"),  # CINIC-10, or the like
        ({"train": {"benign": 5, "malign": 5}, "test": {"benign": 1, "malign": 1}}, "./lesions"),
        (None, "./lesions"),  # a run that has not noted what it holds
    ],
)
def test_a_folder_is_published_by_its_name_and_as_cifar10_if_it_is_that(
    written: Write, tmp_path: Path, samples: dict[str, dict[str, int]] | None, called: str
) -> None:
    study = written(EXCEPTIONS + '[set.data]\ndataset = "/data/lesions"\n')
    path = finish(study, 0, tmp_path / "runs")
    if samples is not None:
        RunFolder.resume(path).set_provenance(samples=samples)
    publish_run(path, tmp_path / "results" / "little" / "own")
    settings = read_settings(tmp_path / "results" / "little" / "own" / "seed-0")
    assert settings["data"]["dataset"] == called


def test_what_is_published_already_stays_beside_what_is_new(written: Write, tmp_path: Path) -> None:
    """A second variant and a second seed, each of other settings and of another day."""
    study, results = written(EXCEPTIONS), tmp_path / "results"
    for at in (0, 1):
        runs = tmp_path / f"runs-{at}"
        folder = finish(study, at, runs)
        origin = json.loads((folder / "provenance.json").read_text())
        (folder / "provenance.json").write_text(json.dumps({**origin, "started": f"day {at}"}))
        place = publish_study(findings_of(study, runs), runs, results)
    names = ["base/seed-0", "base/seed-1"]
    assert list(begun_together(place)) == names
    found = [read_origin(place / name) for name in names]
    assert [(one["started"], one["seed"]) for one in found] == [("day 0", 0), ("day 1", 1)]
    assert [one.results is not None for one in outcomes_of(study, results)] == [True, True]


def test_a_report_has_every_file_that_is_asked_for(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "report"
    found = findings_of(study, tmp_path / "runs")
    report = write_findings(found, out, formats=["csv", "tex"], pictures=["svg"])
    tables = [f"table-{name}.{form}" for name in ("main", "numbers", "skew")
              for form in ("csv", "tex")]  # fmt: skip
    figures = [f"figure-{name}.svg" for name in ("lines", "rounds", "who")]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*tables, *figures, "report.md", "table.json"]
    )
    text = report.read_text(encoding="utf-8")
    assert text.startswith("# A study of 100 %\n\nAll about it.\n\n4 of 4 runs; seeds 0, 1; ")
    assert "| FedGate | 0.505 ± 0.005 | 0.605 ± 0.005 | 0.250 |" in text
    assert "![Who asks whom](figure-who.svg)" in text
    assert "<svg" in (out / "figure-lines.svg").read_text(encoding="utf-8")


def test_a_report_leaves_nothing_of_an_earlier_one(written: Write, tmp_path: Path) -> None:
    """And touches nothing else."""
    study, runs, out = written(SWEPT), tmp_path / "runs", tmp_path / "out"
    finish_swept(study, runs)
    write_findings(findings_of(study, runs), out, pictures=["svg"])
    kept = ["notes.md", "table-of-mine.txt", "figure.png", "my-choice.toml", "table-2.md/of-mine"]
    for name in kept:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    assert {"choice.toml", "table-choice.md"} < {path.name for path in out.iterdir()}
    before, _, after = SWEPT.partition("[sweep]")
    renamed = before + after[after.index("[[") :].replace('name = "', 'name = "new-')
    study = written(renamed)
    write_findings(findings_of(study, runs), out, formats=["md"], pictures=["svg"])
    tables = {f"table-{table.name}.md" for table in study.tables}
    figures = {f"figure-{figure.name}.svg" for figure in study.figures}
    assert all(name.startswith(("table-new-", "figure-new-")) for name in tables | figures)
    assert {path.name for path in out.iterdir()} == {
        *tables, *figures, "report.md", "table.json", *(Path(name).parts[0] for name in kept),
    }  # fmt: skip
    assert all((out / name).read_text() == "mine" for name in kept)


def test_tables_that_are_no_earlier_reports_stay(study: Study, tmp_path: Path) -> None:
    (tmp_path / "table-mine.csv").write_text("mine")
    write_findings(
        findings_of(study, tmp_path / "runs"), tmp_path, formats=["md"], pictures=["svg"]
    )
    assert (tmp_path / "table-mine.csv").read_text() == "mine"


def test_all_of_a_report_or_nothing(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report"
    out.mkdir()
    (out / "report.md").write_text("the last one")

    def full(*args: object) -> None:
        raise NMoEError("No space left on device")

    monkeypatch.setattr("nmoe_flower.study.writing.draw_figure", full)
    with pytest.raises(NMoEError, match="No space left"):
        write_findings(findings_of(study, tmp_path / "runs"), out)
    assert [path.name for path in out.iterdir()] == ["report.md"]
    assert (out / "report.md").read_text() == "the last one"


def test_a_failed_and_a_missing_run_are_told(
    written: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the command says by its exit code that one has failed, once all is written."""
    study, runs = written(TEXT, "of-100"), tmp_path / "runs"
    finish(study, 0, runs)
    failed = runs / study.runs[1].place
    failed.mkdir(parents=True)
    (failed / "failed.json").write_text('{"error": "RoundError: no\\nclient came"}')
    found = findings_of(study, runs)
    assert found.absent == [
        "Failed: tau-0.5 seed 1 (RoundError: no client came).", "Missing: tau-0.2 seeds 0, 1.",
    ]  # fmt: skip
    texts = [cell.text for cell in found.tables[0].lines[0].cells]
    assert texts == ["0.500 (n = 1, 1 failed)", "missing"]
    words = ["study", "report", str(study.path), "--runs", str(runs), "--format", "md"]
    assert cli.main(words) == 1
    assert f"report  {runs}/{study.name}/report/report.md" in capsys.readouterr().out
    text = write_findings(found, tmp_path / "out", formats=[], pictures=[]).read_text()
    assert "1 of 4 runs" in text
    assert "**Failed: tau-0.5 seed 1 (RoundError: no client came).**" in text
    assert "**2 of 4 runs are not there yet.** Missing: tau-0.2 seeds 0, 1.\n" in text
    assert (text.count("Failed:"), text.count("Missing:")) == (1, 1)  # and beneath no table
    table = (runs / study.name / "report" / "table-main.md").read_text()
    assert found.absent[0] in table  # which stands alone
    assert found.absent[1] in table


def test_figures_name_the_runs_that_left_nothing_to_draw(written: Write, tmp_path: Path) -> None:
    study, runs = written(TEXT, "of-100"), tmp_path / "runs"
    for at in (0, 2, 3):
        finish(study, at, runs)
    failed = runs / study.runs[1].place
    failed.mkdir(parents=True)
    (failed / "failed.json").write_text('{"error": "RoundError: no client came"}')
    (runs / study.runs[3].place / "rounds.jsonl").unlink()
    _, rounds, who = findings_of(study, runs).figures
    assert rounds.notes == ("seed 0", "no rounds of tau-0.5 seed 1; tau-0.2 seed 1")
    assert who.notes == ("mean of 2 seeds: 0, 1", "no routing of tau-0.5 seed 1")
    text = write_findings(findings_of(study, runs), tmp_path / "out", pictures=[]).read_text()
    assert "Seed 0; no rounds of tau-0.5 seed 1; tau-0.2 seed 1." in text


def test_a_run_of_other_settings_is_refused_with_both_values(study: Study, tmp_path: Path) -> None:
    path = tmp_path / "runs" / study.runs[2].place / "config.toml"
    path.write_text(path.read_text().replace("rounds = 120", "rounds = 121"))
    with pytest.raises(NMoEError, match=r"tau-0\.2/seed-0 holds .*extractor\.rounds = 121.* 120"):
        findings_of(study, tmp_path / "runs")


def lay_in(dataset: str, folder: Path, fingerprint: str = "") -> None:
    """Say of a run that is there what data it was made of."""
    path = folder / "config.toml"
    path.write_text(path.read_text().replace('dataset = "digits"', f'dataset = "{dataset}"'))
    if fingerprint:
        RunFolder.resume(folder).set_provenance(data=fingerprint)


def test_where_the_data_lay_is_no_other_setting(
    study: Study, tmp_path: Path, warm_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an unknown fingerprint, or of that of the study's own data."""
    monkeypatch.setenv("NMOE_CACHE", str(warm_cache))
    own = load_images("digits").fingerprint
    places = [tmp_path / "runs" / run.place for run in study.runs]
    lay_in("/data/digits", places[1])
    lay_in("/data/digits", places[2], own)
    lay_in("somebody/digits", places[3], own)
    assert findings_of(study, tmp_path / "runs").provenance["finished"] == 4


def test_a_run_of_other_data_is_none_of_the_studys(
    study: Study, tmp_path: Path, warm_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its fingerprint, whatever they are called; without one by two names."""
    monkeypatch.setenv("NMOE_CACHE", str(warm_cache))
    own = load_images("digits").fingerprint
    places = [tmp_path / "runs" / run.place for run in study.runs]
    lay_in("uoft-cs/cifar10", places[1])
    lay_in("/data/digits", places[2], "f" * 64)
    lay_in("digits", places[3], "e" * 64)
    with pytest.raises(NMoEError) as refusal:
        findings_of(study, tmp_path / "runs")
    assert [line.partition(" holds ")[2] for line in str(refusal.value).splitlines()] == [
        f"a run of other settings ({told}): move it away, or put its settings back"
        for told in (
            "data.dataset = 'uoft-cs/cifar10', the study has 'digits'",
            f"data.dataset = '/data/digits' with the fingerprint ffffffffffff, the study has "
            f"'digits' with {own[:12]}",
            f"data.dataset = 'digits' with the fingerprint eeeeeeeeeeee, the study has 'digits' "
            f"with {own[:12]}",
        )
    ]
    plan = make_plan(study, tmp_path / "new", finished=[tmp_path / "runs"], results=tmp_path)
    assert [one.state for one in plan.runs] == ["finished", *["missing"] * 3]
    monkeypatch.setenv("NMOE_CACHE", str(tmp_path / "empty"))  # where nothing is known of the data
    plan = make_plan(study, tmp_path / "new", finished=[tmp_path / "runs"], results=tmp_path)
    assert [one.state for one in plan.runs] == ["finished", "missing", "finished", "finished"]


def test_nothing_finished_is_refused_with_the_command(written: Write, tmp_path: Path) -> None:
    study = written(TEXT, "of-100")
    with pytest.raises(NMoEError, match=r"no run of of-100 has finished in .*nmoe study run"):
        findings_of(study, tmp_path / "runs")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "no table of a study"),
        ('{"format-version": 1, "study": "of-100"}', "`nmoe study report` writes it anew"),
        ('{"format-version": 3, "study": "x"}', "is of the study 'x', not 'of-100'"),
        ('{"format-version": 3, "study": "of-100"}', "cannot be read"),
        (
            '{"format-version": 3, "study": "of-100", "columns": ["gate"], "rows": [["a"]], '
            '"provenance": {}}',
            "row 1: variant is missing",
        ),
        ("[", "is not valid JSON"),
    ],
)
def test_a_table_json_edited_by_hand_is_refused(
    written: Write, tmp_path: Path, text: str, told: str
) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(NMoEError, match=told):
        read_findings(written(TEXT, "of-100"), path)


EXCEPTIONS = """
title = "With exceptions"
seeds = [0, 1]
[set]
gate.methods = "federated,local"
run.controls = []
[[tables]]
name = "main"
rows = ["gate"]
tests = ["iid"]
[[exceptions]]
seed = 1
set = { gate.methods = ["federated"], extractor.rounds = 7 }
"""


def test_a_run_with_settings_of_its_own_counts_and_is_told(written: Write, tmp_path: Path) -> None:
    study = written(EXCEPTIONS)
    assert [run.config.extractor.rounds for run in study.runs] == [120, 7]
    for at in range(2):
        finish(study, at, tmp_path / "runs")
    found = findings_of(study, tmp_path / "runs")
    cells = {line.labels[0]: line.cells[0] for line in found.tables[0].lines}
    # Seed 1 has finished without the gate local: nothing is missing, and one seed counts.
    assert (cells["local"].text, cells["local"].note) == ("0.500 (n = 1)", "")
    assert cells["federated"].n == 2
    assert found.absent == []
    text = write_findings(found, tmp_path / "out", pictures=[]).read_text(encoding="utf-8")
    assert "own: seed 1: gate.methods = [federated], extractor.rounds = 7." in text
    path = tmp_path / "table.json"
    path.write_text(findings_to_json(found), encoding="utf-8")
    assert read_findings(study, path).tables == found.tables


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("seed = 1", "seed = 7", "exceptions 1: seed = 7 is what no run has; allowed: 0, 1"),
        ("seed = 1\n", "", "exceptions 1: names no run"),
        ("extractor.rounds = 7", "extractor.round = 7", "did you mean extractor.rounds"),
        ("[[exceptions]]", "[exceptions]", r"write \[\[exceptions\]\]"),
        ('gate.methods = ["federated"], extractor.rounds = 7', "", "names no setting"),
    ],
)
def test_exceptions_that_cannot_be_are_refused(
    written: Write, before: str, after: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        written(EXCEPTIONS.replace(before, after))


def test_a_run_that_was_given_its_extractor_has_its_trainers_stage_1(
    written: Write, tmp_path: Path
) -> None:
    text = EXCEPTIONS.split("[[tables]]")[0]
    text += "[variants.a]\n[variants.b]\nset = { extractor.rounds = 50 }\n"
    study, runs = written(text.replace("seeds = [0, 1]", "seeds = [0]")), tmp_path / "runs"
    finish(study, 0, runs, representation={"probe_accuracy": 0.25})
    path = finish(study, 1, runs) / "config.toml"
    written_down = path.read_text().replace("rounds = 50", "rounds = 120")
    path.write_text(written_down)
    with pytest.raises(NMoEError, match=r"b/seed-0 holds .*extractor\.rounds = 120.* 50"):
        findings_of(study, runs)
    trainer = runs / study.runs[0].place
    config = trainer / "config.toml"
    config.write_text(config.read_text().replace("rounds = 120", "rounds = 50"))
    path.write_text(written_down.replace('start = ""', f'start = "{trainer}"'))
    (one,) = outcomes_of(replace(study, runs=study.runs[1:]), runs)
    assert one.stage_1 is not None
    assert value_of(one, Quantity("", "", "representation.probe_accuracy")) == 0.25
    # Once published it is found by study, variant and seed, and by no other run's name.
    path.write_text(written_down.replace('start = ""', 'start = "runs/little/a/seed-0"'))
    (one,) = outcomes_of(replace(study, runs=study.runs[1:]), runs)
    assert one.stage_1 is not None
    path.write_text(written_down.replace('start = ""', 'start = "runs/other/a/seed-0"'))
    with pytest.raises(NMoEError, match="holds a run of other settings"):  # nobody knows why
        outcomes_of(replace(study, runs=study.runs[1:]), runs)


def test_the_command_writes_publishes_and_names_what_is_missing(
    written: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, runs, results = written(EXCEPTIONS), tmp_path / "runs", tmp_path / "results"
    finish(study, 0, runs)
    words = ["study", "report", str(study.path), "--runs", str(runs), "--publish", str(results)]
    assert cli.main([*words, "--format", "md"]) == 0
    told = capsys.readouterr()
    assert f"report  {runs}/little/report/report.md" in told.out
    assert told.err == "note: Missing: base seed 1.\n"
    assert (results / "little" / "base" / "seed-0" / "results.json").is_file()
    assert [path.name for path in (runs / "little" / "report").glob("table*")] != []
    with pytest.raises(SystemExit, match="2"):
        cli.main([*words, "--format", "xlsx"])
    assert "'xlsx' is given; allowed: md,csv,tex" in capsys.readouterr().err


def test_a_report_goes_beside_no_published_run_and_says_how_it_was_made(
    written: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = written(EXCEPTIONS)
    monkeypatch.chdir(tmp_path)
    finish(study, 0, tmp_path / "elsewhere")
    words = ["study", "report", "little.toml", "--format", "md"]
    more = ["--finished", "elsewhere", "--out", "here"]
    assert cli.main([*words, *more, "--publish", "results"]) == 0
    text = (tmp_path / "here" / "report.md").read_text(encoding="utf-8")
    assert "\nnmoe study run little.toml --finished elsewhere\n" in text
    assert "\nnmoe study report little.toml --finished elsewhere --out here\n" in text
    before = sorted((tmp_path / "results").rglob("*"))
    assert cli.main([*words, "--runs", "results"]) == 0
    assert sorted((tmp_path / "results").rglob("*")) == before
    text = (tmp_path / "runs" / "little" / "report" / "report.md").read_text(encoding="utf-8")
    assert "\nnmoe study run little.toml --finished results\n" in text
    assert "\nnmoe study report little.toml --runs results\n" in text
    tabulates = (
        tmp_path / "tabulates.toml"
    )  # runs of others alone: nothing is published under its name
    tabulates.write_text('title = "Tabulates"\n[[include]]\nstudy = "little.toml"\n', "utf-8")
    beside = ["study", "report", tabulates.name, "--format", "md", "--runs", "results"]
    assert cli.main(beside) == 0
    assert sorted((tmp_path / "results").rglob("*")) == before
    text = (tmp_path / "runs" / "tabulates" / "report" / "report.md").read_text(encoding="utf-8")
    assert "\nnmoe study run tabulates.toml --finished results\n" in text
    assert cli.main([*words, "--runs", "elsewhere"]) == 0
    text = (tmp_path / "elsewhere" / "little" / "report" / "report.md").read_text(encoding="utf-8")
    assert "\nnmoe study run little.toml --out elsewhere\n" in text
    assert (
        cli.main([*words, "--finished", "elsewhere", "--set", "data.dataset=/my own/images"]) == 0
    )
    text = (tmp_path / "runs" / "little" / "report" / "report.md").read_text(encoding="utf-8")
    for verb in ("run", "report"):
        assert f"\nnmoe study {verb} little.toml --set 'data.dataset=/my own/images' --fin" in text


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('label = "rounds", metric = "extractor.rounds"', 'label = "own, local", gate = "local", '
         'test = "iid"', "the label stands there twice"),
        ('metric = "extractor.rounds"', 'metric = "extractor.rounds", test = "iid"',
         "extractor.rounds is not that of a test"),
        ('metric = "extractor.rounds"', 'metric = "accuracy"', "is measured by a gate in a test"),
        ('metric = "extractor.rounds"', 'gate = "local", metric = "minutes"',
         "minutes is not that of a gate: name none"),
        ('metric = "extractor.rounds"', 'metric = "exchanges"', "is measured by gate: name one"),
        ('metric = "extractor.rounds"', 'gate = "local", test = "iid", metric = "exchanges"',
         "exchanges is not that of a test: name none"),
        ('gate = "local", test = "local"', 'gate = "oracle", test = "local"', "oracle is no gate"),
        ('columns = ["number"]', "columns = []", "number stands neither in rows nor in columns"),
        ('columns = ["number"]', 'columns = ["number"]\ngates = ["local"]', "numbers and gates"),
        ('kind = "lines"', 'kind = "bars"', "kind"),
        ("of = { data.tau = 0.2 }", "of = { data.tau = [0.2, 0.5] }", "has several values"),
        ('federated = "FedGate"', 'fedrated = "FedGate"', "labels: fedrated is no .* federated"),
        ('federated = "FedGate"', "federated = 1", "labels: federated: text is wanted"),
        ('name = "main"', 'name = "main"\nkind = "policies"', "has run.system = networked"),
    ],
)  # fmt: skip
def test_outputs_that_cannot_be_are_refused(
    written: Write, before: str, after: str, told: str
) -> None:
    assert before in TEXT
    with pytest.raises(ConfigError, match=told):
        written(TEXT.replace(before, after, 1))


def test_what_is_measured_of_text_is_that_of_a_gate_in_a_test(written: Write) -> None:
    text = """
title = "Text"
[set]
run.system = "language"
data.kind = "text"
data.dataset = "texts"
data.scheme = "natural"
text.tokenizer = "bytes"
extractor.method = "pretrained"
extractor.backbone = "small-lm"
gate.methods = "local"
[[tables]]
name = "few"
rows = ["variant"]
columns = ["number"]
numbers = [{ label = "bits", gate = "local", test = "iid", metric = "bits_per_byte" }]
"""
    study = written(text)
    results = {"rows": [{"gate": "local", "test": "iid", "bits_per_byte": 1.5}]}
    found = findings_from(study, [RunOutcome(study.runs[0], results)], Path("runs"))
    assert [cell.text for cell in found.tables[0].lines[0].cells] == ["1.500"]
    with pytest.raises(ConfigError, match="bits_per_byte is measured by a gate in a test: name"):
        written(text.replace('test = "iid", ', ""))


def test_minutes_count_a_stage_1_once_that_several_runs_share(study: Study) -> None:
    """Twice 300 s with the same 240 of stage 1, and 300 of a run that had one of its own."""
    stages = {"extractor": {"seconds": 240.0}, "experts": {"seconds": 12.5}}
    results = {"rows": [], "seconds": 300.0, "stages": stages}
    shared = {"stage-1": {"from": "stage-1/fedce-seed-0"}}
    other = results | {"stages": stages | {"experts": {"seconds": 13.0}}}
    outcomes = [
        RunOutcome(study.runs[0], results, provenance=shared),
        RunOutcome(study.runs[1], other, provenance=shared),
        RunOutcome(study.runs[2], results),
    ]
    found = findings_from(study, outcomes, Path())
    assert found.provenance["minutes"] == (300 + 60 + 300) / 60


SIDES = """
title = "Sides"
[set]
gate.methods = ["federated", "local"]
[axes]
data.tau = [0.5, 0.2]
[variants.a]
[variants.b]
set = { gate.top-k = 2 }
[variants.plain]
set = { run.system = "fedavg" }
[[comparisons]]
name = "sides"
"""


@pytest.mark.parametrize(
    ("of", "against", "told"),
    [
        (
            'variant = "a", gate = "local"',
            'variant = "b"',
            "against leaves gate open, .* federated",
        ),
        ('variant = "a"', 'variant = "b", test = "iid"', "of leaves test open, .*: name one of"),
        ('variant = "a", data.tau = 0.2', 'variant = "b"', "leaves data.tau open, .* 0.5, 0.2"),
        ("data.tau = 0.2", 'variant = "b", data.tau = 0.5', "of leaves variant open, .* a, b"),
    ],
)
def test_what_one_side_of_a_comparison_names_the_other_may_not_leave_open(
    written: Write, of: str, against: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        written(f"{SIDES}of = {{ {of} }}\nagainst = {{ {against} }}\n")


def test_what_has_one_value_only_need_not_be_named(written: Write) -> None:
    text = SIDES.replace('system = "fedavg"', 'system = "fedprox"')
    written(f'{text}of = {{ variant = "a", gate = "local" }}\nagainst = {{ variant = "plain" }}\n')


def test_a_comparison_asks_for_the_gates_that_it_names_whatever_tables_do(written: Write) -> None:
    study = written(f"""{SIDES.replace('system = "fedavg"', 'system = "fedprox"')}
of = {{ variant = "a", gate = "local" }}
against = {{ variant = "plain" }}
tests = ["iid"]
[[tables]]
name = "others"
rows = ["variant", "data.tau"]
gates = ["federated"]
tests = ["iid"]
""")
    outcomes = [
        RunOutcome(run, {"rows": [{"gate": gate, "test": "iid", "accuracy": 0.5}]})
        for run in study.runs
        if (gate := {"a": "local", "plain": "fedprox"}.get(run.named))
    ]
    (compared,) = findings_from(study, outcomes, Path("runs")).comparisons
    assert [pair.labels for pair in compared.pairs] == [("0.5",), ("0.2",)]


SWEPT = """
title = "Swept"
seeds = [0, 1]
[set]
gate.methods = "federated"
run.controls = []
data.train-per-client = 60
data.validation-per-client = 5
[axes]
extractor.learning-rate = [0.1, 0.2, 0.4]
[sweep]
over = ["extractor.learning-rate"]
gate = "federated"
[[tables]]
name = "main"
rows = ["extractor.learning-rate"]
columns = ["test"]
gates = ["federated"]
[[figures]]
name = "lines"
kind = "lines"
x = "extractor.learning-rate"
gate = "federated"
test = "iid"
[[figures]]
name = "rounds"
kind = "rounds"
test = "iid"
series = ["extractor.learning-rate"]
[[figures]]
name = "who"
kind = "routing"
gate = "federated"
test = "iid"
series = ["extractor.learning-rate"]
"""


def finish_swept(study: Study, runs: Path) -> None:
    """Finish all: by validation 0.2 wins, and whatever tests say of another value holds 0.?6875."""
    for at in range(6):
        rate = study.runs[at].values["extractor.learning-rate"]
        hidden = rate + 0.46875
        by_owner = {"federated": {"iid": {"clean": hidden}, "validation": {"clean": 0.5}}}
        shares = [[hidden, 1 - hidden], [0.5, 0.5]]
        path = finish(study, at, runs, by_owner=by_owner, routing={"federated/iid": shares},
                      representation={"knn_accuracy": hidden}) / "results.json"  # fmt: skip
        told = json.loads(path.read_text())
        for row in told["rows"]:  # by validation 0.2 wins, by the tests 0.4 would
            seen = row["test"] == "validation"
            row["accuracy"] = {0.1: 0.5, 0.2: 0.7, 0.4: 0.6}[rate] if seen else hidden
        path.write_text(json.dumps(told))


def test_no_file_tells_the_tests_of_what_was_not_chosen(written: Write, tmp_path: Path) -> None:
    study, runs, results = written(SWEPT), tmp_path / "runs", tmp_path / "results"
    finish_swept(study, runs)
    found = findings_of(study, runs)
    texts = [[cell.text for cell in line.cells] for line in found.tables[0].lines]
    assert texts[1] == ["0.669 ± 0.000", "0.669 ± 0.000", "0.700 ± 0.000"]
    assert texts[2] == ["-", "-", "0.600 ± 0.000"]
    lines, rounds, who = found.figures
    assert [[point.x for point in one.points] for one in lines.series] == [[0.2]]
    assert [one.label for one in rounds.series] == ["learning-rate = 0.2"]
    assert [panel.label for panel in who.panels] == ["learning-rate = 0.2"]
    write_findings(found, tmp_path / "out", pictures=["svg"])
    publish_study(found, runs, results)
    files = [path for folder in (tmp_path / "out", results) for path in folder.rglob("*")]
    files = [path for path in files if path.is_file()]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not any(hidden in text for hidden in ("0.56875", "0.86875", "0.569", "0.869")), path
    assert len(files) >= 19
    assert findings_of(study, results).tables == found.tables
    owners = [
        json.loads((results / run.place / "results.json").read_text())["by_owner"]["federated"]
        for run in study.runs[::2]
    ]
    assert [list(tests) for tests in owners] == [["validation"], ["iid", "validation"],
                                                 ["validation"]]  # fmt: skip


def test_a_report_has_the_choice_as_settings_once_there_is_one(
    written: Write, tmp_path: Path
) -> None:
    study, runs, out = written(SWEPT), tmp_path / "runs", tmp_path / "out"
    said = "In the words of a study's file: `choice.toml`."
    finish(study, 0, tmp_path / "some")
    some = findings_of(study, tmp_path / "some")
    report = write_findings(some, out, formats=["md"], pictures=["svg"])
    assert said not in report.read_text()
    assert not (out / "choice.toml").exists()
    finish_swept(study, runs)
    report = write_findings(findings_of(study, runs), out, formats=["md"], pictures=["svg"])
    assert said in report.read_text()
    assert (out / "choice.toml").read_text().endswith("[set]\nextractor.learning-rate = 0.2\n")


def test_the_papers_cells_stand_beside_runs_of_its_setting_alone(written: Write) -> None:
    text = TEXT.replace("[labels]", "[variants.digits]\n[variants.cifar]\nset = {data.dataset = "
                        '"uoft-cs/cifar10"}\n[labels]')  # fmt: skip
    text = text.replace('title = "A', 'paper-tables = true\ntitle = "A')
    study = written(text.split("[[tables]]")[0] + "[[tables]]\nname = 'main'\nrows = ['variant', "
                    "'gate']\ncolumns = ['data.tau']\ntests = ['iid']\n")  # fmt: skip
    rows = findings_from(study, [RunOutcome(study.runs[0], RESULTS_OF_NOBODY)], Path()).rows
    assert [row.paper for row in rows] == [None] * len(rows)
    other = next(run for run in study.runs if run.named == "cifar")
    rows = findings_from(study, [RunOutcome(other, RESULTS_OF_NOBODY)], Path()).rows
    (fedgate,) = [row for row in rows if row.gate == "federated"]
    assert fedgate.paper == 0.6998  # Table II, FedCE, FedGate, tau = 0.5


def test_a_published_systems_gate_is_no_gate_of_the_paper(written: Write) -> None:
    """FedEM has an answer called random, which is not RanGate."""
    text = 'title = "T"\npaper-tables = true\n[set]\ndata.dataset = "uoft-cs/cifar10"\n'
    study = written(f'{text}[variants.fedem]\nset = {{run.system = "fedem"}}\n[variants.ours]\n')
    results = {"rows": [{"gate": "random", "test": "iid", "accuracy": 0.5}]}
    found = findings_from(study, [RunOutcome(run, results) for run in study.runs], Path())
    told = {row.variant: row.paper for row in found.rows if row.gate == "random"}
    assert told["fedem"] is None
    assert told["ours"] is not None


RESULTS_OF_NOBODY = {"rows": [{"gate": "federated", "test": "iid", "accuracy": 0.5}]}
