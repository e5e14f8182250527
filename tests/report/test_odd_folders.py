"""``nmoe report`` over folders that are no finished runs: a line by name each, no traceback."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.cli import main
from nmoe_flower.errors import NMoEError
from nmoe_flower.report import canvas, read_results, said_once, shape

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made up to the file."""
    monkeypatch.setattr(canvas, "_write", lambda figure, path: None)


def report(*folders: Path) -> int:
    return main(["report", *map(str, folders), "--out", str(folders[0].parent / "report")])


def rewrite(path: Path, change: Change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def put(*keys: str | int, value: Any) -> Change:
    """Set what these keys lead to."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def drop(*keys: str | int) -> Change:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def again(content: dict[str, Any]) -> None:
    content["rows"].append(content["rows"][0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop("rows"), "rows is missing"),
        (put("rows", value=[]), "rows = a list of 0: list should have at least 1 item"),
        (put("rows", value="many"), "rows = 'many': input should be a valid list"),
        (put("rows", 0, value=3), "rows.0 = 3: input should be a valid dictionary"),
        (drop("rows", 2, "gate"), "rows.2.gate is missing"),
        (put("rows", 2, "accuracy", value="high"), "rows.2.accuracy = 'high': input should be"),
        (put("rows", 0, "clients", value=2.5), "rows.0.clients = 2.5: input should be a valid int"),
        (put("rows", 0, "tau", value="x"), "rows.0.tau = 'x': input should be a valid number"),
        (put("rows", 0, "per_client", value=[1]), "rows.0.per_client = a list of 1: input should"),
        (put("rows", 0, "per_client", "accuracy", value=["a"]), "per_client.accuracy.0 = 'a'"),
        (again, "two rows for ('fedce', 'random', 'local', 10, 1)"),
        (put("routing", value=[]), "routing = a list of 0: input should be a valid dict"),
        (put("routing", value={"a/iid": []}), "routing.a/iid = a list of 0: list should have"),
        (put("routing", value={"a/iid": [[1], [1, 2]]}), "routing 'a/iid' has rows of different"),
        (put("routing", value={"a/iid": [["x"]]}), "routing.a/iid.0.0 = 'x': input should be"),
        (put("partition", value={}), "partition.train is missing; partition.test is missing; "),
        (put("partition", "classes", value=["a"]), "partition: train and test need a count for"),
        (put("partition", "train", 0, 0, value=-1), "partition.train.0.0 = -1: input should be gr"),
        (put("stages", value={"a": 3}), "stages.a = 3: input should be a valid dictionary"),
        (put("stages", value={"a": {"seconds": "x"}}), "stages.a.seconds = 'x': input should be"),
        (put("seconds", value="long"), "seconds = 'long': input should be a valid number"),
        (put("representation", value=3), "representation = 3: input should be a valid dict"),
        (put("privacy", value={}), "privacy.statement is missing"),
        (put("alignment", value={"policy": "joint"}), "alignment.assignments is missing; "),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(
    finished_run: Any, capsys: pytest.CaptureFixture[str], change: Change, told: str
) -> None:
    run = finished_run("one")
    rewrite(run / "results.json", change)
    assert report(run) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"nmoe: error: {run}/results.json: {told}"[:72])
    assert told in error
    assert error.count("\n") == 1


def test_a_run_that_says_once_what_its_rows_share_reads_the_same(finished_run: Any) -> None:
    path = finished_run("one") / "results.json"
    whole = read_results(path)
    path.write_text(json.dumps(said_once(whole)), encoding="utf-8")
    told = json.loads(path.read_text(encoding="utf-8"))
    assert "tau" not in told["columns"]
    assert read_results(path) == whole
    rewrite(path, lambda content: content["every-row"].update(gate=1))  # a row's own value counts
    assert read_results(path) == whole
    rewrite(path, lambda content: content["every-row"].update(top_k="two"))
    with pytest.raises(NMoEError, match=r"rows\.0\.top_k = 'two': input should be a valid integer"):
        read_results(path)


def test_rows_say_their_keys_once_and_read_the_same(finished_run: Any) -> None:
    path = finished_run("one") / "results.json"
    whole = read_results(path)
    lengths = {len(row) for row in whole["rows"]}
    assert len(lengths) > 1  # controls ask nobody: no bytes, no local ratio
    path.write_text(json.dumps(said_once(whole)), encoding="utf-8")
    told = json.loads(path.read_text("utf-8"))
    assert {len(row) for row in told["rows"]} == {n - len(told["every-row"]) for n in lengths}
    assert read_results(path) == whole
    rewrite(path, lambda content: content["rows"][1].extend(9 * ["more"]))
    with pytest.raises(NMoEError, match=rf"{path}: rows.1 = a list of .* for the \d+ columns"):
        read_results(path)


def test_costs_of_stages_are_lists_and_read_the_same(finished_run: Any) -> None:
    path = finished_run("one") / "results.json"
    costs = {"rounds": 3, "seconds": 1.5, "bytes_up": 8, "bytes_down": 9}
    rewrite(path, put("stages", value={"extractor": costs, "answers": {"rounds": 1}}))
    whole = read_results(path)
    path.write_text(json.dumps(said_once(whole)), encoding="utf-8")
    told = json.loads(path.read_text("utf-8"))
    assert told["stages"] == {"extractor": [3, 1.5, 8, 9], "answers": {"rounds": 1}}
    assert read_results(path) == whole
    rewrite(path, lambda content: content["stages"]["extractor"].append(1))
    with pytest.raises(NMoEError, match=rf"{path}: stages.extractor = a list of 5: .* 4 columns"):
        read_results(path)


def test_columns_that_few_rows_have_come_last() -> None:
    rows = [{"gate": "a", "auc": 0.5, "seed": 1}, {"gate": "b", "seed": 1}]
    assert said_once({"rows": rows, "seconds": 2}) == {
        "every-row": {"seed": 1}, "columns": ["gate", "auc"], "rows": [["a", 0.5], ["b"]],
        "seconds": 2,
    }  # fmt: skip


def test_rows_of_columns_that_no_order_ends_with_keep_their_keys() -> None:
    rows = [{"gate": "a", "auc": 0.5}, {"gate": "b", "f1": 0.5}]
    assert said_once({"rows": rows}) == {"every-row": {}, "rows": rows}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[]", "JSON object"),
        ("null", "JSON object"),
        ('"' + 90 * "x" + '"', "JSON object"),
        ("[" * 100_000, "nested"),
        ('{"rows": ' + "[" * 2000 + "]" * 2000 + "}", "nested"),
        ('{"rows": [NaN]}', "NaN is no number of JSON"),
        ('{"rows": [1], "rows": [2]}', "the key 'rows' stands there twice"),
        ("\x00", "is not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("name", ["results.json", "provenance.json"])
def test_a_file_that_is_no_object_is_named(
    finished_run: Any, capsys: pytest.CaptureFixture[str], name: str, text: str, told: str
) -> None:
    run = finished_run("one")
    (run / name).write_text(text)
    assert report(run) == 1
    error = capsys.readouterr().err
    assert f"{run}/{name}" in error
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{}", "stage is missing; round is missing"),
        ("7", "holds 7; allowed: a JSON object"),
        ("{", "is not valid JSON"),
        ('{"stage": 1, "round": 1}', "stage = 1: input should be a valid string"),
        ('{"stage": "a", "round": "x"}', "round = 'x': input should be a valid integer"),
        ('{"stage": "a", "round": 1, "metrics": 3}', "metrics = 3: input should be a valid dict"),
        ('{"stage": "a", "round": 1, "failures": [3]}', "failures.0 = 3: input should be a valid"),
        ('{"stage": "a", "round": 1, "bytes_up": null}', "bytes_up = None: input should be a val"),
        ("[" * 5000, "nested"),
    ],
)
def test_a_record_of_the_wrong_kind_is_named_with_its_line(
    finished_run: Any, capsys: pytest.CaptureFixture[str], line: str, told: str
) -> None:
    run = finished_run("one")
    good = '{"stage": "a", "round": 1}\n'
    (run / "rounds.jsonl").write_text(good + line + "\n" + good + '{"stage": "cut by a cra')
    assert report(run) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"nmoe: error: {run}/rounds.jsonl, line 2")
    assert told in error


def test_every_odd_folder_has_its_line(
    finished_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished, unfinished = finished_run("finished"), finished_run("unfinished", {"run.seed": 1})
    (unfinished / "results.json").unlink()
    damaged = finished_run("damaged", {"run.seed": 2})
    (damaged / "config.toml").write_text("[run")
    empty, file = tmp_path / "empty", tmp_path / "notes.txt"
    empty.mkdir()
    file.write_text("")
    study = tmp_path / "with-variants"
    (study / "top-1/seed-0").mkdir(parents=True)
    (study / "top-1/seed-0/config.toml").touch()
    given = finished, unfinished, damaged, empty, file, tmp_path / "gone", tmp_path, study
    assert report(*given) == 1
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "nmoe: error: 7 folders cannot be reported:"
    assert lines[0].startswith(f"  the run in {unfinished} is not finished")
    assert str(damaged / "config.toml") in lines[1]
    assert lines[2:] == [
        f"  {empty} is not a run folder: it has no config.toml",
        f"  {file} is not a folder",
        f"  {tmp_path / 'gone'} is not a folder",
        f"  {tmp_path} is not a run folder: it has no config.toml; "
        "name those in it: damaged, finished, unfinished",
        f"  {study} is not a run folder: it has no config.toml; name those in it: top-1/seed-0",
    ]
    assert not (tmp_path / "report").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_run_named_twice_counts_once_and_says_so(
    finished_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run("one")
    assert report(run, run, run / ".." / "one") == 0
    assert capsys.readouterr().err == f"note: {run} is named 3 times and counts once\n"
    text = (tmp_path / "report" / "report.md").read_text()
    assert "seed 0)" in text
    assert (
        text.count("| one |") == text.count("| one | extractor |") == 1 or "| 1-one | one |" in text
    )


@pytest.mark.usefixtures("undrawn")
def test_runs_of_two_systems_stand_in_one_report(
    finished_run: Any, alignment_run: Any, tmp_path: Path
) -> None:
    assert report(finished_run("networked"), alignment_run("joint", 0)) == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| run.system | networked | aligned |" in text
    assert "## Alignment" in text
    assert "| random |" in text
    assert "| mixture |" in text


@pytest.mark.usefixtures("undrawn")
def test_an_alignment_run_that_was_never_tested_has_dashes(
    alignment_run: Any, tmp_path: Path
) -> None:
    run = alignment_run("joint", 0)
    (run / "rounds.jsonl").write_text("")
    rewrite(run / "results.json", lambda content: content["rows"].pop(0))
    assert report(run) == 0
    (line,) = [
        line
        for line in (tmp_path / "report" / "report.md").read_text().splitlines()
        if line.startswith("| joint |")
    ]
    assert line.startswith("| joint | - | - | 0.900 | - | - | - |")


KEYS = ("rows", "routing", "stages", "partition", "alignment", "representation", "privacy")
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(KEYS), ANYTHING), ANYTHING)
def test_no_content_at_all_is_a_traceback(content: dict[str, Any], row: Any) -> None:
    content.setdefault("rows", [row])
    with pytest.raises(NMoEError) as raised:  # no row of these has a gate
        shape._fits(content, "results.json", shape._Results)
    assert str(raised.value).startswith("results.json: rows")
    assert "\n" not in str(raised.value)
