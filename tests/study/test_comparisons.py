import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.errors import NMoEError
from nmoe_flower.study.comparisons import compare
from nmoe_flower.study.declared import ComparisonSpec
from nmoe_flower.study.labels import Labels
from nmoe_flower.study.rows import Row
from tests.study.conftest import Write, row

SHARING = ComparisonSpec(
    name="sharing", title="Sharing", of={"variant": ("shared",)}, against={"variant": ("own",)},
    gates=("federated", "local"), tests=("iid", "local"),
)  # fmt: skip
LABELS = Labels(variants={"own": "alone", "shared": "sharing"})


def side(variant: str, *values: float, **more: object) -> Row:
    return row(dict(enumerate(values)), variant=variant, folder=variant, **more)


def test_differences_are_paired_by_seed() -> None:
    # 0.02, 0.03, 0.01: mean 0.02, spread 0.01, error 0.01 / sqrt 3 = 0.00577; t(2) = 4.303, so
    # the interval reaches 0.0248 to either side.
    rows = [side("own", 0.5, 0.7, 0.6), side("shared", 0.52, 0.73, 0.61)]
    table = compare(SHARING, rows, LABELS)
    assert table.header == (
        "metric", "alone, mean", "sharing, mean", "seed 0", "seed 1", "seed 2", "mean difference",
        "95 % interval", "verdict",
    )  # fmt: skip
    assert table.lines == (
        ("accuracy", "0.6000", "0.6200", "+0.0200", "+0.0300", "+0.0100", "+0.0200 ± 0.0058",
         "-0.0048 to +0.0448", "within the noise"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shared", "verdict"),
    [
        ((0.52, 0.72, 0.621), "higher"),
        ((0.48, 0.68, 0.581), "lower"),
        ((0.5, 0.7, 0.6), "within the noise"),
        ((0.6, 0.65, 0.55), "within the noise"),
        ((0.75, 0.95, 0.85), "no estimate of the noise"),
    ],
)
def test_the_verdict_is_that_of_the_interval(shared: tuple[float, ...], verdict: str) -> None:
    (pair,) = compare(SHARING, [side("own", 0.5, 0.7, 0.6), side("shared", *shared)], LABELS).pairs
    assert pair.verdict == verdict


def test_one_seed_is_no_verdict() -> None:
    table = compare(SHARING, [side("own", 0.5), side("shared", 0.9)], LABELS)
    assert table.lines == (
        ("accuracy", "0.5000", "0.9000", "+0.4000", "-", "no estimate of the noise"),
    )
    assert table.notes[-1] == "Seed 0 alone: there is no estimate of the noise."


def test_seeds_that_all_differ_by_the_same_are_no_verdict() -> None:
    table = compare(SHARING, [side("own", 0.5, 0.7), side("shared", 0.6, 0.8)], LABELS)
    assert table.lines[0][-3:] == ("+0.1000 ± 0.0000", "-", "no estimate of the noise")
    told = "Where all seeds differ by the same there is no estimate of the noise."
    assert table.notes[-1] == told
    table = compare(SHARING, [side("own", 0.5, 0.7), side("shared", 0.6, 0.81)], LABELS)
    assert told not in table.notes


def test_a_seed_that_one_side_lacks_counts_on_neither_and_is_told() -> None:
    rows = [
        side("own", 0.1, 0.5, 0.6),
        row({1: 0.5, 2: 0.6}, variant="shared", folder="shared", asked=(0, 1, 2),
            failed={0: "RoundError: gone"}),
        side("own", 0.1, 0.5, 0.6, gate="local"),
        row({}, variant="shared", folder="shared", asked=(0, 1, 2), gate="local"),
    ]  # fmt: skip
    table = compare(SHARING, rows, LABELS)
    assert table.lines[0][1:4] == ("0.5500", "0.5500", "failed")
    assert table.lines[1] == ("local", "-", "-", *["missing"] * 3, "-", "-", "missing")
    assert table.notes[-2:] == (
        "Failed: shared seed 0 (RoundError: gone).", "Missing: shared seeds 0, 1, 2.",
    )  # fmt: skip


def test_a_partner_that_the_study_skips_is_no_missing_one(written: Write) -> None:
    study = written(
        'title = "T"\nseeds = [0, 1]\n[axes]\ndata.tau = [0.5, 0.2]\n[variants.own]\n'
        '[variants.shared.set]\ngate.rounds = 2\n[[skip]]\nvariant = "shared"\ndata.tau = 0.2\n'
        '[[skip]]\nvariant = "shared"\nseed = 1\n'
    )
    own = [side("own", 0.5, 0.6, values={"data.tau": tau}) for tau in (0.5, 0.2)]
    shared = side("shared", 0.7, values={"data.tau": 0.5})
    labels = Labels(LABELS.variants, {"data.tau": (0.5, 0.2)})
    table = compare(SHARING, [*own, shared], labels, runs=study.runs)
    assert table.lines == (
        (
            "0.5",
            "0.5000",
            "0.7000",
            "+0.2000",
            "skipped",
            "+0.2000",
            "-",
            "no estimate of the noise",
        ),
        ("0.2", "-", "-", "skipped", "skipped", "-", "-", "skipped"),
    )  # fmt: skip
    assert table.notes[-1] == "Skipped: the study has no such run."
    unknown = compare(SHARING, own, labels)
    assert {pair.verdict for pair in unknown.pairs} == {"missing"}
    assert compare(SHARING, own, labels, runs=study.runs).lines[0][-1] == "unmeasured"
    kept_back = compare(SHARING, own, labels, runs=study.runs, hidden=True)
    assert kept_back.lines[0][-1] == "missing"


def test_a_partner_that_has_finished_without_the_number_is_no_missing_one() -> None:
    shared = row({1: 0.5}, variant="shared", folder="shared", asked=(0, 1, 2), unmeasured=(0,))
    table = compare(SHARING, [side("own", 0.1, 0.5, 0.6), shared], LABELS)
    assert table.lines[0][3:6] == ("unmeasured", "+0.0000", "missing")
    assert "Unmeasured: the run does not measure this." in table.notes


def test_pairs_share_all_that_is_not_compared() -> None:
    rows = [
        side(variant, value, values={"data.tau": tau}, test=test)
        for variant, value in (("own", 0.5), ("shared", 0.6))
        for tau in (0.5, 0.2)
        for test in ("iid", "local", "validation")
    ]
    labels = Labels(LABELS.variants, {"data.tau": (0.5, 0.2)})
    table = compare(SHARING, rows, labels)
    assert table.heads == ("tau", "test")
    assert [pair.labels for pair in table.pairs] == [
        (tau, test) for tau in ("0.5", "0.2") for test in ("IID test", "local test")
    ]
    assert table.notes[0] == "Federated, accuracy."


def test_a_row_with_several_partners_is_refused() -> None:
    spec = SHARING.model_copy(
        update={"of": {"variant": ("shared",), "gate": ("local",)}, "gates": ()}
    )
    rows = [side("shared", 0.6, gate="local"), side("own", 0.5), side("own", 0.4, gate="local")]
    assert len(compare(spec, rows[:2], LABELS).pairs) == 1
    with pytest.raises(NMoEError, match="sharing: own and own would both be the partner at iid"):
        compare(spec, rows, LABELS)


values = st.dictionaries(st.integers(0, 5), st.floats(0, 1), min_size=1)


@given(values, values)
def test_turning_a_comparison_round_turns_its_sign(own: dict, shared: dict) -> None:  # type: ignore[type-arg]
    rows = [row(own, variant="own"), row(shared, variant="shared")]
    back = SHARING.model_copy(update={"of": SHARING.against, "against": SHARING.of})
    (one,), (other,) = (compare(c, rows, LABELS).pairs for c in (SHARING, back))
    assert {seed: -d for seed, d in other.each.items()} == one.each
    assert (one.difference is None) == (other.difference is None)
    if one.difference and other.difference:
        assert one.difference.mean == pytest.approx(-other.difference.mean)
        opposite = {"higher": "lower", "lower": "higher"}
        assert one.verdict == opposite.get(other.verdict, other.verdict)
