"""What the page of runs says and holds, read without a browser."""

import html
import json
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from nmoe_flower import cli
from nmoe_flower.begun import run_folders
from nmoe_flower.config import Config
from nmoe_flower.report import load_runs
from nmoe_flower.report.html import write_page
from nmoe_flower.report.html.command import command_of
from nmoe_flower.report.html.of_runs import page_of_runs
from nmoe_flower.report.html.page import to_html
from nmoe_flower.report.html.parts import number_cell

pytestmark = pytest.mark.published

ROOT = Path(__file__).parents[3]
ATTACK = "</script><img src=x onerror=alert(1)>"
CIFAR = {"data.dataset": "uoft-cs/cifar10", "data.tau": 0.2}


def words(text):
    """The page as it is read, without marks."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def headings(text):
    return re.findall(r"<h2[^>]*>(.*?)</h2>", text)


def changed(run, **values):
    """The run with other results."""
    path = run / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values))
    return run


def page_of(*runs):
    return to_html(page_of_runs(load_runs(runs)))


# --- what is in it ---


def test_a_page_of_one_run_has_every_section(finished_run, tmp_path):
    path = write_page([finished_run("one", CIFAR)], tmp_path / "deep" / "page.html")
    text = path.read_text(encoding="utf-8")
    assert headings(text) == [
        "Results", "Beside the paper", "Rounds, bytes and seconds", "Who asks whom",
        "Who holds what", "Privacy", "Cost of the stages", "Provenance", "Run it again",
    ]  # fmt: skip
    assert "One run: FedCE and one expert per client, top-1; on cifar10" in words(text)
    assert "No privacy mechanism was on." in words(text)
    assert len(text.encode()) < 500_000


def test_the_same_results_give_the_same_bytes(finished_run):
    runs = [finished_run("one"), finished_run("two", {"run.seed": 1})]
    assert page_of(*runs) == page_of(*runs)


def test_nothing_is_loaded_from_elsewhere(finished_run):
    text = page_of(finished_run("one"))
    assert re.findall(r"""\s(?:src|href|action|poster|data)=(?!["']#)[^>]*""", text) == []
    assert re.findall(r"@import|url\(|https?:|//\w+\.", text) == []
    assert "default-src 'none'" in text


def test_configurations_stand_side_by_side(finished_run):
    runs = [
        finished_run("mild-0", CIFAR | {"data.tau": 0.5}),
        finished_run("mild-1", CIFAR | {"data.tau": 0.5, "run.seed": 1}),
        finished_run("hard", CIFAR),
    ]
    text = page_of(*runs)
    told = words(text)
    assert "3 runs of 2 configurations" in told
    assert "Where the configurations differ" in told
    assert "0.25" in told
    assert re.search(r"mild\s+random", told)  # both seeds under one name
    assert "seed 0; others by --seed 1" in told
    assert "± is the standard deviation over 2 seeds" in told


def test_names_that_would_be_equal_keep_what_tells_them_apart(finished_run):
    runs = [
        finished_run("a-0", {"data.tau": 0.5}),
        finished_run("a-1", {"data.tau": 0.5, "run.seed": 1}),
        finished_run("a", {"data.tau": 0.2}),
    ]
    assert "a-0" in words(page_of(*runs))


def test_a_run_of_the_alignment_system(alignment_run):
    runs = [alignment_run("joint", 0), alignment_run("joint", 1), alignment_run("greedy", 0)]
    runs.append(alignment_run("greedy", 0, experts=1))
    text = page_of(*runs)
    told = words(text)
    assert "experts aligned with clients by the policies greedy and joint" in told or (
        "policies joint and greedy" in told
    )
    assert "a single model trained by the same clients" in told
    assert "Policies side by side" in headings(text)
    assert "Client {r} trained expert {c} in {v} rounds." in text
    assert "Who asks whom" not in headings(text)


def test_privacy_is_told_as_it_was_recorded(finished_run):
    run = changed(finished_run("one"), privacy={"statement": "epsilon 8 at delta 1e-05 <b>"})
    assert "one (seed 0). epsilon 8 at delta 1e-05 <b>" in words(page_of(run))


def test_collapsed_features_are_told_at_the_head(finished_run):
    found = {"collapse": "all features point one way", "effective_rank": 1.2, "dimensions": 128}
    text = page_of(changed(finished_run("one"), representation=found))
    assert 'class="warning">the features collapsed (seed 0): all features point one way' in re.sub(
        r"\s+", " ", text
    ).replace("The features", "the features")
    assert "Features" in headings(text)


def test_an_answer_without_a_row_is_told_at_the_head(finished_run):
    text = page_of(changed(finished_run("one"), diverged={"own": "not finite: lower a rate"}))
    assert "own has no row (seed 0): not finite: lower a rate" in words(text)


# --- who wins ---


SYSTEM, AVERAGED = ({"run.system": name, "expert.hidden": ""} for name in ("fedem", "fedavg"))


def told_of(finished_run, rows, name="one", **more):
    run = finished_run(name, {"data.num-clients": 4, **more})
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    row = results["rows"][0]
    results["rows"] = [
        {**row, "gate": gate, "test": "local", "accuracy": float(np.mean(values)),
         "per_client": {"accuracy": values}}
        for gate, values in rows.items()
    ]  # fmt: skip
    (run / "results.json").write_text(json.dumps(results))
    return run


def test_a_plain_baseline_that_wins_is_said_first(finished_run):
    gate, own = [0.5, 0.6, 0.7, 0.8], [0.7, 0.8, 0.9, 0.98]
    told = words(page_of(told_of(finished_run, {"federated": gate, "local": own})))
    first = told.index("On the local test a plain baseline wins.")
    assert first < told.index("Results")
    assert "local (every client's own expert alone), 0.845" in told
    # Differences of -0.2, -0.2, -0.2 and -0.18: mean -0.195, error 0.01 / 2, times t(3) = 3.182.
    assert "\N{MINUS SIGN}0.195 ± 0.016 over the 4 clients of one seed" in told


def test_a_difference_within_the_noise_is_said_to_be_none(finished_run):
    # Differences 0.1 and -0.1 in turn: mean 0, so no gate beats a baseline.
    rows = {"federated": [0.6, 0.5, 0.6, 0.5], "local": [0.5, 0.6, 0.5, 0.6]}
    told = words(page_of(told_of(finished_run, rows)))
    assert "On the local test no gate beats a plain baseline beyond the noise." in told


def test_a_gate_that_wins_is_said_to_win(finished_run):
    rows = {"federated": [0.9, 0.91, 0.92, 0.93], "control:fedavg": [0.5, 0.52, 0.53, 0.55]}
    told = words(page_of(told_of(finished_run, rows)))
    assert "On the local test the best gate beats a plain baseline." in told
    assert "FedAvg (one averaged model), 0.525" in told


def test_a_published_system_is_held_against_what_is_plain_beside_it(finished_run):
    system = told_of(finished_run, {"fedem": [0.8] * 4, "oracle": [0.9] * 4}, **SYSTEM)
    rows = {"fedavg": [0.6] * 4, "own": [0.81, 0.83, 0.82, 0.84], "majority": [0.7] * 4}
    told = words(page_of(system, told_of(finished_run, rows, "two", **AVERAGED)))
    assert "On the local test a plain baseline wins." in told
    assert "The best system, FedEM of one, reaches 0.800" in told
    assert "the best plain baseline, own training alone of two, 0.825" in told
    told = words(page_of(told_of(finished_run, {"fedavg": [0.6] * 4}, "three", **AVERAGED)))
    assert "Best on the local test: FedAvg, 0.600." in told


def test_seeds_are_paired_where_there_are_some(finished_run):
    rows = {"federated": [0.6] * 4, "local": [0.5] * 4}
    runs = [
        told_of(finished_run, rows, "a"),
        told_of(
            finished_run, {"federated": [0.7] * 4, "local": [0.602] * 4}, "b", **{"run.seed": 1}
        ),
    ]
    told = words(page_of(*runs))
    assert "+0.099 ± 0.013 over 2 seeds" in told


def test_seeds_that_all_say_the_same_tell_no_noise(finished_run):
    runs = [
        told_of(finished_run, {"federated": [0.625 + at] * 4, "local": [0.5 + at] * 4}, str(at),
                **{"run.seed": int(8 * at)})
        for at in (0, 0.125)
    ]  # fmt: skip
    told = words(page_of(*runs))
    sure = "the best gate beats a plain baseline, as far as numbers that all say the same can tell."
    assert sure in told
    assert "+0.125 over 2 seeds" in told


def test_upper_bounds_and_pooled_data_win_nothing(finished_run):
    rows = {"oracle": [0.99] * 4, "control:centralized": [0.98] * 4, "federated": [0.6] * 4}
    told = words(page_of(told_of(finished_run, rows)))
    assert "Best on the local test: federated, 0.600." in told


# --- whatever a run may hold ---


def test_names_are_text_wherever_they_come_from(finished_run):
    run = finished_run("one", {"data.num-clients": 2})
    counts = [[3, 1], [0, 4]]
    changed(
        run,
        partition={"train": counts, "test": counts, "classes": [ATTACK, "\"'&{v}`"]},
        privacy={"statement": ATTACK},
        routing={f"{ATTACK}/iid": [[0.5, 0.5], [0.0, 1.0]]},
        stages={ATTACK: {"seconds": 1.0}},
    )
    provenance = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    provenance |= {"started": ATTACK, "machine": {"cpu": ATTACK}, "versions": {ATTACK: ATTACK}}
    (run / "provenance.json").write_text(json.dumps(provenance))
    text = page_of(run)
    assert "<img" not in text
    assert text.count("</script>") == 1
    assert text.count("<script>") == 1
    seen = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            seen.append(tag)
            assert not any(name.startswith("on") for name, _ in attributes)

    Reader().feed(text)
    assert "img" not in seen


def test_the_sum_of_stages_says_whether_tests_and_controls_are_in_it(finished_run):
    """Runs that are published have no stages of tests: their sum is less than their minutes."""
    runs = [finished_run(name, {"run.seed": seed}) for seed, name in enumerate("ab")]
    stages = {"extractor": {"seconds": 2.0}, "evaluation": {"seconds": 1.0}}
    for run in runs:
        changed(run, stages=stages)
    assert "all clients together, tests and controls too." in words(page_of(*runs))
    changed(runs[0], stages={"extractor": {"seconds": 2.0}})
    assert "all clients together, without tests and controls." in words(page_of(*runs))


def test_missing_and_odd_numbers_are_a_dash(finished_run):
    run = finished_run("one", rows=[("federated", "local", 0.5), ("local", "local", 0.6)])
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    results["rows"][0] |= {"accuracy": None, "auc": None, "macro_f1": None}
    changed(run, rows=results["rows"], seconds=None, stages=None, partition=None, routing=None)
    (run / "rounds.jsonl").unlink()
    text = page_of(run)
    assert headings(text) == ["Results", "Privacy", "Provenance", "Run it again"]
    assert "NaN" not in words(text)
    assert "None" not in words(text)
    assert number_cell(math.nan).text == number_cell(None).text == "\N{EN DASH}"


def test_rounds_that_hold_no_number_are_left_out(finished_run):
    run = finished_run("one")
    metrics = {"accuracy-iid": None, "loss": "much", "accuracy-local": True}
    lines = [{"stage": "extractor-test", "round": 1, "metrics": metrics}]
    lines.append({"stage": "extractor", "round": 1, "metrics": {"loss": None}})
    (run / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Accuracy of the classifier" not in page_of(run)


@pytest.mark.parametrize(("clients", "classes"), [(1, 1), (2, 100), (50, 10), (50, 100)])
def test_pages_of_any_size_stay_small(finished_run, clients, classes):
    run = finished_run("one", {"data.num-clients": max(clients, 2)})
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(clients, 0.3), clients)
    counts = rng.poisson(3, (clients, classes)).tolist()
    gates = ("rolling", "federated", "prototype", "global")
    changed(
        run,
        routing={f"{gate}/{test}": shares.tolist() for gate in gates for test in ("local", "iid")},
        partition={"train": counts, "test": counts, "classes": [f"c{i}" for i in range(classes)]},
    )
    text = page_of(run)
    assert len(text.encode()) < 500_000
    values = re.findall(r'data-values="([\d ]+)"', text)
    assert [len(v.split()) for v in values] == [clients**2] * 8 + [clients * classes] * 2
    assert [int(v) for v in values[0].split()] == [round(10_000 * v) for v in shares.flat]


# --- the command ---


PUBLISHED = run_folders(ROOT / "results")


@pytest.mark.parametrize("path", PUBLISHED[:: max(1, len(PUBLISHED) // 12)], ids=str)
def test_the_printed_command_gives_the_same_configuration(path):
    config = Config.load(path)
    typed = shlex.split(command_of(config).replace("\\\n", " "))
    assert typed[0] == "nmoe"
    parsed = cli._parser().parse_args(typed[1:])
    again = Config.load(parsed.recipe, parsed.overrides)
    found, wanted = again.flat(), config.flat()
    free = {"run.name", "run.seed", "run.out", "data.cache-dir"}
    assert {k: v for k, v in found.items() if k not in free} == {
        k: v for k, v in wanted.items() if k not in free
    }
    assert parsed.seed == config.run.seed
    assert (parsed.name or "nmoe") == config.run.name


@pytest.mark.parametrize(
    "value", ["2024", "true", "a b", "it's", '"quoted"', "x=y", "back\\slash", "ü", "[1]", "$HOME"]
)
def test_texts_of_any_kind_come_through_a_shell(value):
    config = Config.parse({"data.label-column": value})
    typed = shlex.split(command_of(config).replace("\\\n", " "))
    parsed = cli._parser().parse_args(typed[1:])
    assert Config.load(None, parsed.overrides).data.label_column == value


# --- the command line ---


def test_html_alone_writes_one_file(finished_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = finished_run("one")
    assert cli.main(["report", str(run), "--html", "page.html"]) == 0
    assert capsys.readouterr().out == "report  page.html\n"
    assert {path.name for path in tmp_path.iterdir()} == {"one", "page.html"}


def test_a_page_that_cannot_be_written_is_one_message(finished_run, tmp_path, capsys):
    run = finished_run("one")
    assert cli.main(["report", str(run), "--html", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("nmoe: error: ")
    assert str(tmp_path) in error


def test_text_is_told_by_domain_and_client(text_runs):
    page = page_of(*text_runs)
    for words in ("IID test, by domain", "IID test, by client", "Perplexity", "less is better"):
        assert words in page
    assert "Balanced accuracy" not in page
    assert ("Bits per byte, IID test" in page, "Accuracy, IID test" in page) == (True, False)
    assert "best plain baseline: 2.000" in page  # FedAvg, whose seeds need 1.5 and 2.5
    assert "In the cells: windows" in page


def test_of_text_fewer_bits_win(text_runs):
    """By seed: unigram 2 and 3, FedAvg 1.5 and 2.5, own expert 2.75 and 3.75; the oracle is out."""
    told = words(page_of(*text_runs))
    assert "On the IID test a plain baseline wins" in told
    assert (
        "The best gate, unigram, reaches 2.500 bits per byte, the best plain baseline, FedAvg "
        "(one averaged model), 2.000: +0.500 over 2 seeds."
    ) in told


def test_words_and_chart_name_the_same_best_baseline_of_text(text_runs):
    for run in text_runs:
        path = run / "results.json"
        path.write_text(path.read_text().replace("control:fedavg", "control:soup"))
    page = page_of(*text_runs)
    assert "the best plain baseline, mean of the experts, 2.000: +0.500 over 2 seeds." in words(
        page
    )
    assert "best plain baseline: 2.000" in page


def test_runs_of_other_domains_stand_in_one_table(text_runs):
    """A device joins with a domain of its own: the run before has none of it."""
    path = text_runs[1] / "results.json"
    results = json.loads(path.read_text())
    for row in results["rows"]:
        row["domains"]["verse"] = 7.5
        row["per_client"]["bits_per_byte"].append(7.5)
    path.write_text(json.dumps(results))
    settings = (text_runs[1] / "config.toml").read_text()
    (text_runs[1] / "config.toml").write_text(settings.replace("top-k = 1", "top-k = 2"))
    page = page_of(*text_runs)
    assert "verse" in page
    assert "7.500" in page
