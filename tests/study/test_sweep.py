from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError
from nmoe_flower.study.as_settings import choices_to_toml
from nmoe_flower.study.declared import SweepSpec
from nmoe_flower.study.labels import Labels
from nmoe_flower.study.markup import table_to_markdown
from nmoe_flower.study.rows import Row
from nmoe_flower.study.sweep import choose, hide_the_others, sweep_table
from tests.study.conftest import Write, row

RATE = SweepSpec(over=("extractor.learning-rate",), gate=("federated",))
LABELS = Labels(axes={"extractor.learning-rate": (0.1, 0.2, 0.4)})


def at(rate: float, test: str, *scores: float, **more: Any) -> Row:
    return row(dict(enumerate(scores)), **{"test": test, "folder": f"rate-{rate}",
               "values": {"extractor.learning-rate": rate}, **more})  # fmt: skip


# The test would choose 0.4: whoever looks at it would be told 0.9.
ROWS = [
    at(0.1, "validation", 0.60, 0.62), at(0.1, "iid", 0.5, 0.5),
    at(0.2, "validation", 0.64, 0.66), at(0.2, "iid", 0.7, 0.8),
    at(0.4, "validation", 0.62, 0.62), at(0.4, "iid", 0.9, 0.9),
]  # fmt: skip


def test_validation_chooses_and_only_the_choice_is_tested() -> None:
    (choice,) = choose(RATE, ROWS)
    assert choice.winner is not None
    assert choice.winner.values == {"extractor.learning-rate": 0.2}
    assert [round(e.mean, 6) for e in choice.tests.values()] == [0.75]
    table = sweep_table(RATE, [choice], LABELS)
    assert table.header == ("learning-rate", "accuracy, validation", "chosen", "accuracy, IID test")
    assert table.lines == (
        ("0.1", "0.610 ± 0.010", "", ""),
        ("0.2", "0.650 ± 0.010", "yes", "0.750 ± 0.050"),
        ("0.4", "0.620 ± 0.000", "", ""),
    )
    kept = hide_the_others(RATE, ROWS, [choice])
    assert [(r.folder, r.test) for r in kept if r.test != "validation"] == [("rate-0.2", "iid")]
    assert len([r for r in kept if r.test == "validation"]) == 3


def test_the_lowest_wins_where_that_is_best() -> None:
    (choice,) = choose(RATE.model_copy(update={"best": "lowest"}), ROWS)
    assert choice.winner is not None
    assert choice.winner.values == {"extractor.learning-rate": 0.1}


@pytest.mark.parametrize("metric", ["bits_per_byte", "perplexity", "worst_bits_per_byte"])
def test_of_text_the_lowest_wins_unless_said(metric: str) -> None:
    sweep = RATE.model_copy(update={"metric": metric})
    rows = [
        at(rate, "validation", *scores, metric=metric)
        for rate, scores in {0.1: (7.0, 7.1), 0.2: (6.0, 6.2), 0.4: (8.0, 8.0)}.items()
    ]
    (choice,) = choose(sweep, rows)
    assert choice.winner is not None
    assert choice.winner.values == {"extractor.learning-rate": 0.2}
    assert "on validation text, which" in sweep_table(sweep, [choice], LABELS).notes[-1]
    (choice,) = choose(sweep.model_copy(update={"best": "highest"}), rows)
    assert choice.winner is not None
    assert choice.winner.values == {"extractor.learning-rate": 0.4}


def test_nothing_wins_as_long_as_one_that_might_is_missing() -> None:
    rows = [*ROWS[:4], at(0.4, "validation", 0.9, asked=(0, 1))]
    (choice,) = choose(RATE, rows)
    assert (choice.winner, choice.tests) == (None, {})
    assert choice.note == "no choice yet: learning-rate = 0.4: seed 1 is missing"
    assert all(r.test == "validation" for r in hide_the_others(RATE, rows, [choice]))


def test_a_value_that_always_fails_does_not_hold_up_the_others() -> None:
    gone = at(0.4, "validation", asked=(0, 1), failed={0: "RoundError: a", 1: "RoundError: b"})
    (choice,) = choose(RATE, [*ROWS[:4], gone])
    assert choice.winner is not None
    table = sweep_table(RATE, [choice], LABELS)
    assert table.lines[-1] == ("0.4", "failed", "", "")
    assert "learning-rate = 0.4: seed 0 failed (RoundError: a), seed 1 failed" in table.notes[0]
    (choice,) = choose(RATE, [gone])
    assert choice.note == "no choice: every value has failed"


def test_what_lies_within_one_error_of_the_choice_is_told() -> None:
    rows = [at(0.1, "validation", 0.6, 0.62), at(0.2, "validation", 0.605, 0.613)]
    (choice,) = choose(RATE, rows)
    assert [one.values["extractor.learning-rate"] for one in choice.close] == [0.2]
    assert "within one standard error of the choice: learning-rate = 0.2." in (
        sweep_table(RATE, [choice], LABELS).notes
    )


def test_each_variant_and_each_value_of_the_other_axes_chooses_for_itself() -> None:
    rows = [
        row({0: score}, variant=variant, test="validation",
            values={"data.tau": tau, "extractor.learning-rate": rate})
        for variant, tau, rate, score in (
            ("a", 0.5, 0.1, 0.6), ("a", 0.5, 0.2, 0.5), ("a", 0.2, 0.1, 0.3), ("a", 0.2, 0.2, 0.4),
            ("b", 0.5, 0.1, 0.1), ("b", 0.5, 0.2, 0.2),
        )
    ]  # fmt: skip
    found = {
        (c.rest["variant"], c.rest["data.tau"]): c.winner.values["extractor.learning-rate"]
        for c in choose(RATE, rows)
        if c.winner
    }
    assert found == {("a", 0.5): 0.1, ("a", 0.2): 0.2, ("b", 0.5): 0.2}


def test_where_no_test_is_told_each_choice_is_one_line() -> None:
    sweep = RATE.model_copy(update={"tests": ()})
    rows = [
        row({0: score}, variant=variant, test=test, values={"extractor.learning-rate": rate})
        for variant, rate, score in (("a", 0.1, 0.6), ("a", 0.2, 0.5), ("b", 0.2, 0.7))
        for test in ("validation", "iid")
    ]
    table = sweep_table(sweep, choose(sweep, rows), LABELS)
    assert table.header == ("variant", "0.1", "0.2")
    assert table.lines == (("a", "0.600 *", "0.500"), ("b", "-", "0.700 *"))
    assert table_to_markdown(table).splitlines()[:3] == [
        "| variant | 0.1 | 0.2 |",
        "| :--- | ---: | ---: |",
        "| a | 0.600 * | 0.500 |",
    ]
    assert table.notes[-1].startswith("*: chosen, the highest accuracy of federated on validation")
    one = choose(RATE.model_copy(update={"tests": ("local",)}), ROWS)
    assert [choice.tests for choice in one] == [{}]  # its test on `iid` is not asked for


scores = st.lists(st.floats(0, 1), min_size=2, max_size=2)


@given(
    st.dictionaries(st.sampled_from([0.1, 0.2, 0.4, 0.8]), st.tuples(scores, scores), min_size=1)
)
def test_the_tests_have_no_say(found: dict[float, tuple[list[float], list[float]]]) -> None:
    """Whatever the test images say, the same value wins."""
    rows = [at(rate, "validation", *seen) for rate, (seen, _) in found.items()]
    tested = [at(rate, "iid", *hidden) for rate, (_, hidden) in found.items()]
    with_tests, without = choose(RATE, [*rows, *tested]), choose(RATE, rows)
    assert [c.winner for c in with_tests] == [c.winner for c in without]
    best = max(sum(seen) / 2 for seen, _ in found.values())
    winner = with_tests[0].winner
    assert winner is not None
    assert winner.score is not None
    assert winner.score.mean == pytest.approx(best)


def test_a_choice_by_test_images_is_refused(written: Write) -> None:
    text = """
title = "Sweep"
[set]
gate.methods = "federated"
[axes]
extractor.learning-rate = [0.1, 0.2]
[sweep]
over = ["extractor.learning-rate"]
gate = "federated"
test = "iid"
"""
    with pytest.raises(ConfigError, match=r"sweep.*test = iid.*validation"):
        written(text)


def test_each_variant_is_judged_by_the_first_of_several_gates_that_it_has() -> None:
    sweep = RATE.model_copy(update={"gate": ("fedem", "fedavg")})
    rows = [
        at(rate, "validation", score, variant=variant, gate=gate, folder=f"{variant}-{rate}")
        for variant, gate, scores in (
            ("one", "fedavg", (0.3, 0.2, 0.1)),
            ("two", "fedavg", (0.3, 0.2, 0.1)),
            ("two", "fedem", (0.1, 0.2, 0.3)),
        )
        for rate, score in zip((0.1, 0.2, 0.4), scores, strict=True)
    ]
    chosen = {c.rest["variant"]: c.winner.values for c in choose(sweep, rows) if c.winner}
    rate = "extractor.learning-rate"
    assert chosen == {"one": {rate: 0.1}, "two": {rate: 0.4}}
    table = sweep_table(sweep, choose(sweep, rows), LABELS)
    assert "accuracy of FedEM, FedAvg on validation images" in table.notes[-1]
    sweep = sweep.model_copy(update={"judged_by": {"two": "fedavg"}})
    chosen = {c.rest["variant"]: c.winner.values for c in choose(sweep, rows) if c.winner}
    assert chosen == {"one": {rate: 0.1}, "two": {rate: 0.1}}
    table = sweep_table(sweep, choose(sweep, rows), LABELS)
    assert table.notes[-1].endswith("which nobody trains on; two: of FedAvg.")


def test_an_axis_may_decide_which_gates_there_are() -> None:
    sweep = RATE.model_copy(update={"gate": ("federated", "fedavg")})
    rows = [
        at(rate, "validation", *scores, gate=gate, folder=f"{system}-{rate}", asked=(0,),
           values={"system": system, "extractor.learning-rate": rate})
        for system, gate in (("ours", "federated"), ("theirs", "fedavg"))
        for rate, scores in ((0.1, (0.6,)), (0.2, ()) if system == "theirs" else (0.2, (0.5,)))
    ]  # fmt: skip
    ours, theirs = choose(sweep, rows)
    assert ours.winner is not None
    assert (ours.rest["system"], theirs.rest["system"]) == ("ours", "theirs")
    # What has not run yet is awaited at the gate that it will have.
    assert theirs.note == "no choice yet: learning-rate = 0.2: seed 0 is missing"


RATES = """
[axes.rate]
low = { extractor.learning-rate = 0.1, expert.hidden = [16, 8] }
high = { extractor.learning-rate = 0.2, expert.hidden = [] }
"""
SETTINGS = """
[axes.setting]
skewed = { data.tau = 0.2 }
even = { data.tau = 2.0 }
[variants.a]
[variants.b]
set = { gate.rounds = 3 }
[variants.c]
set = { gate.rounds = 4 }
"""


def test_a_choice_can_be_read_back_as_a_studys_settings(written: Write) -> None:
    """Variants that chose alike share an exception; a value may set several keys, or be a list."""
    study = written(f'title = "Rates"{RATES}{SETTINGS}')
    best = {
        ("a", "skewed"): "high", ("b", "skewed"): "low", ("c", "skewed"): "high",
        ("a", "even"): "low", ("b", "even"): "low",
    }  # fmt: skip
    rows = [
        row({0: 0.5 + (best[variant, setting] == rate)}, variant=variant, test="validation",
            values={"rate": rate, "setting": setting})
        for variant, setting in best for rate in ("low", "high")
    ]  # fmt: skip
    sweep = SweepSpec(over=("rate",), gate=("federated",))
    told = choices_to_toml("rates", study.axes, choose(sweep, rows))
    assert told.startswith("# Chosen on validation data by rates.\n\n[[exceptions]]\n")
    assert 'variant = ["a", "c"]\nsetting = "skewed"\n' in told
    assert "set = { extractor.learning-rate = 0.1, expert.hidden = [16, 8] }" in told
    after = written(f'title = "Chosen"{SETTINGS}{told}', "chosen")
    found = {(run.named, run.values["setting"]): run.config for run in after.runs}
    for place, rate in best.items():
        assert found[place].extractor.learning_rate == {"low": 0.1, "high": 0.2}[rate]
        assert found[place].expert.hidden == {"low": (16, 8), "high": ()}[rate]
    assert found["c", "even"].extractor.learning_rate == Config().extractor.learning_rate


def test_a_choice_with_nothing_to_tell_apart_is_for_all_runs(written: Write) -> None:
    study = written('title = "R"\n[axes]\nextractor.learning-rate = [0.1, 0.2, 0.4]\n')
    rows = [
        row({0: rate == 0.2}, variant="base", test="validation",
            values={"extractor.learning-rate": rate})
        for rate in (0.1, 0.2, 0.4)
    ]  # fmt: skip
    told = choices_to_toml("rates", study.axes, choose(RATE, rows))
    assert told == (
        "# Chosen on validation data by rates.\n\n[set]\nextractor.learning-rate = 0.2\n"
    )


def test_a_choice_that_sets_nothing_is_left_out(written: Write) -> None:
    axes = "[axes.rate]\nusual = {}\nhigh = { extractor.learning-rate = 0.2 }\n"
    study = written(f'title = "R"\n{axes}[variants.a]\n[variants.b]\nset.gate.rounds = 3\n')
    rows = [
        row({0: 0.5 + (best == rate)}, variant=variant, test="validation", values={"rate": rate})
        for variant, best in (("a", "usual"), ("b", "high")) for rate in ("usual", "high")
    ]  # fmt: skip
    sweep = SweepSpec(over=("rate",), gate=("federated",))
    assert choices_to_toml("rates", study.axes, choose(sweep, rows)) == (
        "# Chosen on validation data by rates.\n\n[[exceptions]]\n"
        'variant = ["b"]\nset = { extractor.learning-rate = 0.2 }\n'
    )
