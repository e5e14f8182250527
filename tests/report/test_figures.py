import math
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nmoe_flower.errors import NMoEError
from nmoe_flower.report import (
    canvas,
    draw_accuracy,
    draw_bits_per_byte,
    draw_partition,
    draw_representation,
    draw_rounds,
    draw_routing,
    figures,
)
from nmoe_flower.report.alignment import draw_assignments, draw_progress


def size_of(path):
    """Width and height of a PNG: two big-endian integers after signature and chunk header."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def row(gate, value, test="local", clients=()):
    return {"gate": gate, "test": test, "accuracy": value, "per_client": {"accuracy": [*clients]}}


def texts(axis):
    return [text.get_text() for text in axis.texts]


def points_of(axis):
    return [tuple(float(x) for x in line.get_xdata()) for line in axis.lines]


def test_accuracy_is_a_wide_file(tmp_path):
    rows = [row("random", 0.5, test, (0.4, 0.6)) for test in ("local", "iid")]
    draw_accuracy([{"rows": rows}], tmp_path / "new" / "accuracy.png")
    # 7.2 inches of 200 dots; 0.9 inches and 0.27 for the only gate.
    assert size_of(tmp_path / "new" / "accuracy.png") == (1440, 234)


def test_rows_without_clients_leave_the_layout_whole(tmp_path):
    rows = [row(gate, 0.9, test) for gate in ("random", "oracle") for test in ("local", "iid")]
    draw_accuracy([{"rows": rows}], tmp_path / "a.png")  # a collapsed layout warns
    assert size_of(tmp_path / "a.png")[0] == 1440


def test_accuracy_of_one_seed_shows_its_clients(drawn, tmp_path):
    rows = [row("random", 0.5, clients=(0.4, None, 0.6)), row("random+prior", 0.75)]
    draw_accuracy([{"rows": rows}], tmp_path / "a.png")
    (axis,) = drawn[0].axes
    assert axis.get_title() == "Local test"
    assert points_of(axis) == [(0.4, 0.6), (0.5,), (0.75,)]
    assert texts(axis) == ["0.500", "0.750"]
    assert "one client" in [text.get_text() for text in drawn[0].legends[0].texts]


def test_accuracy_over_seeds_shows_their_spread(drawn, tmp_path):
    seeds = [{"rows": [row("random", value, clients=(0.1,))]} for value in (0.5, 0.6, 0.7)]
    draw_accuracy(seeds, tmp_path / "a.png")
    (axis,) = drawn[0].axes
    assert texts(axis) == ["0.600"]
    assert points_of(axis)[0] == (0.5, 0.6, 0.7)
    (bar,) = axis.containers
    (ends,) = bar.lines[2][0].get_segments()
    assert ends[:, 0] == pytest.approx([0.5, 0.7])  # 0.6 plus and minus a deviation of 0.1
    labels = [text.get_text() for text in drawn[0].legends[0].texts]
    assert labels[-2:] == ["one seed", "standard deviation"]


@pytest.mark.parametrize(
    ("lowest", "start", "label"),
    [
        (0.55, 0.5, "Accuracy (axis starts at 0.5)"),
        (0.51, 0.4, "Accuracy (axis starts at 0.4)"),
        (0.05, 0.0, "Accuracy"),
        (0.0, 0.0, "Accuracy"),
    ],
)
def test_a_cut_axis_says_so_and_cuts_no_point(drawn, tmp_path, lowest, start, label):
    draw_accuracy([{"rows": [row("random", 0.9, clients=(lowest, 1.0))]}], tmp_path / "a.png")
    (axis,) = drawn[0].axes
    assert axis.get_xlim() == (start, 1.0)
    assert axis.get_xlabel() == label


def test_bits_per_byte_have_an_axis_of_their_own(drawn, tmp_path):
    rows = [
        {"gate": gate, "test": "iid", "accuracy": None, "bits_per_byte": bits,
         "per_client": {"bits_per_byte": [bits - 0.5, bits + 0.5]}}
        for gate, bits in (("domain", 3.5), ("unigram", 4.0))
    ]  # fmt: skip
    draw_bits_per_byte([{"rows": rows}], tmp_path / "a.png")
    (axis,) = drawn[0].axes
    assert points_of(axis) == [(3.5, 4.5), (4.0,), (3.0, 4.0), (3.5,)]
    assert axis.get_xlim() == (2.5, 5.0)
    assert axis.get_xlabel() == "Bits per byte (axis starts at 2.5)"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["unigram", "domain"]


def test_gates_bounds_and_controls_stand_in_order(drawn, tmp_path):
    rows = [row(gate, 0.5) for gate in ("control:fedavg", "oracle", "federated", "random", "odd")]
    draw_accuracy([{"rows": [*rows, row("lost", None)]}], tmp_path / "a.png")
    (axis,) = drawn[0].axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels[:2] == ["random", "federated"]
    assert sorted(labels) == ["FedAvg", "federated", "odd", "oracle", "random"]
    fills = {
        label: line.get_markerfacecolor() for label, line in zip(labels, axis.lines, strict=True)
    }
    assert [label for label, fill in fills.items() if fill == "white"] == ["oracle"]


def test_routing_is_titled_with_the_local_ratio_in_per_cent(drawn, tmp_path):
    # The diagonal's mean is (0.5 + 0.25 + 0) / 3 = 0.25.
    matrix = [[0.5, 0.5, 0], [0.25, 0.25, 0.5], [1, 0, 0]]
    draw_routing(matrix, tmp_path / "r.png", title="federated, IID test")
    draw_routing(matrix, tmp_path / "r.png")
    titled, untitled = (figure.axes[0] for figure in drawn)
    assert titled.get_title() == "federated, IID test, LR = 25 %"
    assert untitled.get_title() == "LR = 25 %"
    assert texts(titled) == [".50", ".50", "0", ".25", ".25", ".50", "1.00", "0", "0"]
    assert (titled.get_xlabel(), titled.get_ylabel()) == ("Expert ID", "Client ID")


@pytest.mark.parametrize("clients", [1, 2, 10, 100])
def test_routing_of_any_size_is_drawn(tmp_path, clients):
    draw_routing(np.full((clients, clients), 1 / clients).tolist(), tmp_path / "r.png")
    assert size_of(tmp_path / "r.png") == (720, 640)


def test_many_experts_are_not_annotated(drawn, tmp_path):
    draw_routing(np.eye(13).tolist(), tmp_path / "r.png")
    assert texts(drawn[0].axes[0]) == []
    assert list(drawn[0].axes[0].get_xticks()) == [0, 2, 4, 6, 8, 10, 12]


def test_partition_bars_end_at_the_clients_totals(drawn, tmp_path):
    draw_partition([[1, 2, 3], [4, 0, 1]], [[0, 0, 2], [1, 1, 0]], "abc", tmp_path / "p.png")
    train, test = drawn[0].axes
    assert (train.get_title(), test.get_title()) == ("Training data", "Local test data")
    for axis, totals in ((train, [6, 5]), (test, [2, 2])):
        tops = [0.0, 0.0]
        for bar in axis.patches:
            client = round(bar.get_x() + bar.get_width() / 2)
            assert bar.get_y() == tops[client]  # on top of the one before, of which there is no gap
            tops[client] += bar.get_height()
        assert tops == totals
    assert [text.get_text() for text in drawn[0].legends[0].texts] == ["c", "b", "a"]


def test_validation_data_has_a_panel_of_its_own(drawn, tmp_path):
    counts = [[1, 2], [2, 1]]
    draw_partition(counts, counts, "ab", tmp_path / "p.png", counts_validation=[[4, 0], [0, 4]])
    assert [axis.get_title() for axis in drawn[0].axes][2:] == ["Validation data"]
    assert [bar.get_height() for bar in drawn[0].axes[2].patches] == [4, 4]


@pytest.mark.parametrize(
    ("tests", "titles"),
    [
        (("validation", "iid", "local"), ["Local test", "IID test"]),
        (("validation",), ["Validation"]),
    ],
)
def test_validation_is_drawn_where_it_is_alone(drawn, tmp_path, tests, titles):
    rows = [{"gate": "federated", "test": test, "accuracy": 0.5} for test in tests]
    draw_accuracy([{"rows": rows}], tmp_path / "a.png")
    assert [axis.get_title() for axis in drawn[0].axes] == titles


@pytest.mark.parametrize(("classes", "legends"), [(10, 1), (20, 1), (100, 0)])
def test_many_classes_have_colours_but_no_legend(drawn, tmp_path, classes, legends):
    counts = np.ones((2, classes), dtype=int).tolist()
    draw_partition(counts, counts, [str(c) for c in range(classes)], tmp_path / "p.png")
    assert len(drawn[0].legends) == legends
    bars = {bar[0].get_facecolor() for bar in drawn[0].axes[0].containers}
    assert len(bars) == classes


def test_names_are_names_and_no_formulas(drawn, tmp_path):
    names = ["$\\frac$", "_left_out", "n" * 300, "a\nb", "none of it"]
    draw_partition([[1, 2, 3, 1, 0]], [[3, 4, 1, 1, 0]], names, tmp_path / "p.png", note="$\\q$")
    shown = [text.get_text() for text in drawn[0].legends[0].texts]
    assert shown == ["none of it", "a b", "n" * 19 + "…", " _left_out", "$\\frac$"]
    drawn[0].draw_without_rendering()  # a formula would be refused here


def test_only_bars_that_are_there_are_drawn(drawn, tmp_path):
    counts = np.eye(60, dtype=int).tolist()
    draw_partition(counts, counts, [str(c) for c in range(60)], tmp_path / "p.png")
    assert [len(axis.patches) for axis in drawn[0].axes] == [60, 60]


def test_partition_is_a_file(tmp_path):
    draw_partition([[1, 2]], [[3, 4]], ["cat", "dog"], tmp_path / "p.png")
    assert size_of(tmp_path / "p.png") == (1440, 520)


def records(stage, count, **metrics):
    return [
        {"stage": stage, "round": n, "metrics": {k: v(n) for k, v in metrics.items()}}
        for n in range(1, count + 1)
    ]


def test_test_accuracy_stands_beside_the_loss(drawn, tmp_path):
    told = records("extractor", 3, loss=lambda n: 1 / n)
    told += [
        {"stage": "extractor-test", "round": 2, "metrics": {"accuracy-iid": 0.4,
         "accuracy-local": 0.5, "accuracy-validation": 0.6, "balanced-accuracy-iid": 0.1}},
        {"stage": "experts", "round": 1, "metrics": {}},
    ]  # fmt: skip
    told += records("gate/federated", 2, loss=lambda n: n)
    draw_rounds(told, tmp_path / "r.png")
    shown = [(axis.get_title("left"), axis.get_ylabel()) for axis in drawn[0].axes if axis.axison]
    assert shown == [
        ("extractor", "Training loss"),
        ("extractor", "Test accuracy\n(axis starts at 0.4)"),  # of 0.4 to 0.6
        ("gate/federated", "Training loss\n(axis starts at 1)"),  # of 1 and 2
    ]
    loss, tested = drawn[0].axes[:2]
    assert loss.lines[0].get_xydata().tolist() == [[1, 1], [2, 0.5], [3, 1 / 3]]
    assert [(line.get_label(), *line.get_xydata().tolist()) for line in tested.lines] == [
        ("validation", [2, 0.6]),
        ("local test", [2, 0.5]),
        ("IID test", [2, 0.4]),
    ]


@pytest.mark.parametrize("stage", ["extractor", "gate/federated"])
@pytest.mark.parametrize(("count", "smooth"), [(29, False), (30, True), (400, True)])
def test_long_losses_are_smoothed(drawn, tmp_path, stage, count, smooth):
    draw_rounds(records(stage, count, loss=lambda n: n % 2), tmp_path / "r.png")
    axis = drawn[0].axes[0]
    assert len(axis.lines) == 1 + smooth
    raw = axis.lines[0].get_ydata()
    assert (raw.min(), raw.max()) == (0, 1)
    if smooth:
        mean = axis.lines[1].get_ydata()
        assert len(mean) == count
        width = {30: 11, 400: 21}[count]
        assert np.abs(mean[width // 2 :] - 0.5).max() < 0.1
        assert axis.lines[1].get_label() == f"mean of {width} rounds"


def test_rounds_without_numbers_make_an_empty_figure(tmp_path):
    odd = [{}, {"stage": "x", "metrics": None}, {"stage": "x", "metrics": {"loss": None}}]
    odd.append({"stage": "x", "round": 1, "metrics": {"loss": math.nan, "note": "loss"}})
    draw_rounds(odd, tmp_path / "r.png")
    assert size_of(tmp_path / "r.png") == (720, 420)


def test_records_out_of_order_make_one_curve(drawn, tmp_path):
    told = records("gate/rolling", 5, loss=lambda n: n)
    draw_rounds(told[::-1], tmp_path / "r.png")
    assert drawn[0].axes[0].lines[0].get_xdata().tolist() == [1, 2, 3, 4, 5]


@given(
    arrays.arrays(np.float64, st.integers(1, 60), elements=st.floats(-10, 10)),
    st.integers(0, 20).map(lambda reach: 2 * reach + 1),
)
def test_moving_mean_is_the_mean_of_the_neighbours(values, width):
    """At the start of as many before as after; at the end of those there are."""
    slow = []
    for place in range(len(values)):
        reach = min(width // 2, place)
        near = values[place - reach : place + reach + 1] if reach else values[place : place + 1]
        slow.append(sum(near) / len(near))
    assert figures.moving_mean(values, width) == pytest.approx(slow, abs=1e-9)


def test_the_strong_line_begins_where_training_began(drawn, tmp_path):
    """A loss that falls by a sixth per round, from 1.54; the first eleven have a mean of 0.73."""
    told = records("extractor", 400, loss=lambda n: 1.54 * (5 / 6) ** (n - 1))
    draw_rounds(told, tmp_path / "r.png")
    each, mean = drawn[0].axes[0].lines
    assert mean.get_ydata()[0] == each.get_ydata()[0] == 1.54
    assert mean.get_ydata()[1] == pytest.approx(1.54 * (1 + 5 / 6 + 25 / 36) / 3)
    # The last one is the mean of the last eleven: no single round is what training reached.
    assert mean.get_ydata()[-1] == pytest.approx(each.get_ydata()[-11:].mean())


def test_rounds_are_whole_numbers(drawn, tmp_path):
    draw_rounds(records("extractor", 3, loss=lambda n: n), tmp_path / "r.png")
    drawn[0].canvas.draw()
    assert [tick for tick in drawn[0].axes[0].get_xticks() if tick % 1] == []


CURVE = {
    name: np.array([1.0, 2.0, 3.0])
    for name in ("round", "accuracy", "megabytes", "seconds", "variation", "variation-total")
}
HIGH = [0.8, 0.85, 0.9]
COUNTS = [[3, 4], [5, 6]]
PEAKS = (9, 30, 1, 2, 3)


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: draw_accuracy([{"rows": [row("random", 0.9, clients=HIGH)]}], path),
        lambda path: draw_partition(COUNTS, COUNTS, ["a", "b"], path),
        lambda path: draw_rounds(records("a", 3, loss=lambda n: 5 + 0.1 * n), path),
        lambda path: draw_rounds(records("a", 3, loss=lambda n: n - 9), path),
        lambda path: draw_rounds(records("a", 40, loss=lambda n: 1 + 1 / n), path),
        lambda path: draw_rounds(records("a", 3, **{"accuracy-iid": lambda n: HIGH[n - 1]}), path),
        lambda path: draw_rounds(records("a", 1, loss=lambda n: 0.5), path),
        lambda path: draw_representation(
            records(
                "extractor", 3, spectrum=lambda n: [0.5, 0.1], **{"effective-rank": lambda n: 9 + n,
                "probe-accuracy": lambda n: HIGH[n - 1]}
            ), path,
        ),
        lambda path: draw_progress({"joint": [{**CURVE, "accuracy": np.array(HIGH)}]}, path),
    ],
)  # fmt: skip
def test_an_axis_starts_at_zero_or_says_where(drawn, tmp_path, draw):
    draw(tmp_path / "a.png")
    told = 0
    for axis in drawn[0].axes:
        for line in (axis.xaxis, axis.yaxis):
            low = min(line.get_view_interval())
            label = line.get_label_text().replace("\n", " ")
            if line.get_scale() == "log":
                assert label.endswith("(log scale)")
            elif label and not label.endswith(" ID") and low:
                assert label.endswith(f"(axis starts at {low:g})")
                told += 1
    assert told <= len(drawn[0].axes)


def test_marks_that_do_not_occur_are_not_in_the_legend(drawn, tmp_path):
    plain = [row("random", 0.5), row("control:fedavg", 0.5)]
    for rows in (
        plain,
        [*plain, row("random+prior", 0.6)],
        [row("random+prior", 0.6)],
        [row("oracle", 0.9, clients=(0.9,))],
    ):
        draw_accuracy([{"rows": rows}], tmp_path / "a.png")
    told = [[text.get_text() for box in f.legends for text in box.texts] for f in drawn]
    assert told == [
        [],
        ["without prior correction", "with prior correction"],
        ["with prior correction"],
        ["upper bound", "one client"],
    ]


@pytest.mark.parametrize("clients", [2, 10, 60])
def test_equal_clients_are_piled_within_their_line(drawn, tmp_path, clients):
    rows = [row("random", 0.8, clients=[0.8] * clients)]
    draw_accuracy([{"rows": rows}], tmp_path / "a.png")
    dots = drawn[0].axes[0].lines[0].get_ydata()
    assert len(set(dots)) == clients
    assert np.ptp(dots) <= 0.24 + 1e-9  # two lines of a gate are 0.34 apart


def test_what_a_figure_stands_for_is_written_above_it(drawn, tmp_path):
    note, told = "mean of 2 seeds: 0, 1", records("extractor", 3, loss=lambda n: n)
    draw_accuracy([{"rows": [row("random", 0.5)]}] * 2, tmp_path / "x.png", note=note)
    draw_partition(COUNTS, COUNTS, ["a", "b"], tmp_path / "x.png", note=note)
    draw_routing([[1.0]], tmp_path / "x.png", note=note)
    draw_rounds(told, tmp_path / "x.png", note=note)
    draw_assignments({"joint": COUNTS}, tmp_path / "x.png", note=note)
    assert [figure.get_suptitle() for figure in drawn] == [note] * 5


def test_curves_of_seeds_are_a_mean_with_a_band(drawn, tmp_path):
    """Means of 0.1 and 0.3, 0.2 and 0.4; the seed that went further counts as far as both."""
    seeds = [
        {**CURVE, "accuracy": np.array([0.1, 0.2, 0.9])},
        {name: values[:2] for name, values in CURVE.items()} | {"accuracy": np.array([0.3, 0.4])},
    ]
    draw_progress({"joint": seeds}, tmp_path / "p.png", note="mean of 2 seeds: 0, 1")
    axis = drawn[0].axes[0]
    assert axis.lines[0].get_ydata() == pytest.approx([0.2, 0.3])
    (band,) = axis.collections
    corners = {tuple(round(float(v), 3) for v in point) for point in band.get_paths()[0].vertices}
    assert corners == {(1, 0.1), (1, 0.3), (2, 0.2), (2, 0.4)}
    assert drawn[0].get_suptitle() == "mean of 2 seeds: 0, 1; bands: least to most"


def test_maps_of_counts_share_their_shades_and_have_a_scale(drawn, tmp_path):
    times = {name: (np.eye(3) * most).tolist() for name, most in zip("abcde", PEAKS, strict=True)}
    draw_assignments(times, tmp_path / "a.png")
    shown = [axis for axis in drawn[0].axes if axis.images]
    assert [axis.get_title() for axis in shown] == list("abcde")
    assert {axis.images[0].get_clim() for axis in shown} == {(0, 30)}
    assert [a.get_ylabel() for a in drawn[0].axes if a.get_label() == "<colorbar>"] == [
        "Rounds in which the client\ntrained the expert"
    ]


def test_lines_are_seen_on_white():
    """At least 2 to 1 in luminance, by the formula of WCAG: yellow has 1.3."""

    def contrast(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        lit = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 1.05 / (0.2126 * lit[0] + 0.7152 * lit[1] + 0.0722 * lit[2] + 0.05)

    lines = canvas.line_colours(9)
    assert len(set(lines)) == 9
    assert min(map(contrast, lines)) > 2


def test_figures_leave_the_global_state_alone(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw_routing([[1.0]], tmp_path / "r.png")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: draw_accuracy([{"rows": []}], path),
        lambda path: draw_partition([[1]], [[1]], ["a"], path),
        lambda path: draw_rounds([], path),
        lambda path: draw_routing([[1.0]], path),
    ],
)
def test_missing_matplotlib_names_the_extra(monkeypatch, tmp_path, draw):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(NMoEError, match=r"need matplotlib: pip install -e .*\[report\]"):
        draw(tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("tests", "named"), [(1, ["round 1"]), (2, ["round 1", "2"]), (3, ["round 1", "2", "3"]),
                         (4, ["round 1", "2", "4"]), (9, ["round 1", "5", "9"])]
)  # fmt: skip
def test_spectra_are_named_all_or_first_middle_and_last(drawn, tmp_path, tests, named):
    draw_representation(
        records("extractor", tests, spectrum=lambda n: [n, 0.1]), tmp_path / "a.png"
    )
    assert [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()] == named


def test_a_figure_has_as_many_dots_as_are_asked_for_in_this_thread(tmp_path):
    def drawn(path):
        canvas.save(canvas.new(2, 1), path)
        return size_of(path)

    sizes = {}
    with canvas.resolution(50), ThreadPoolExecutor(1) as other:
        sizes["asked"] = drawn(tmp_path / "asked.png")
        sizes["other thread"] = other.submit(drawn, tmp_path / "other.png").result()
    sizes["afterwards"] = drawn(tmp_path / "afterwards.png")
    assert sizes == {"asked": (100, 50), "other thread": (400, 200), "afterwards": (400, 200)}
