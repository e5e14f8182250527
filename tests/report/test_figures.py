import math
import struct
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nmoe_flower.errors import NMoEError
from nmoe_flower.report import (
    accuracy,
    draw_accuracy,
    draw_partition,
    draw_rounds,
    draw_routing,
    figures,
    rounds,
)


def size_of(path):
    """Width and height of a PNG: two big-endian integers after signature and chunk header."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


@pytest.fixture
def drawn(monkeypatch):
    """The figures, as they are before they become files."""
    kept = []
    for module in (accuracy, figures, rounds):
        monkeypatch.setattr(module, "save", lambda figure, path: kept.append(figure))
    return kept


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


def test_gates_bounds_and_controls_stand_in_order(drawn, tmp_path):
    rows = [row(gate, 0.5) for gate in ("control:fedavg", "oracle", "federated", "random", "own")]
    draw_accuracy([{"rows": [*rows, row("lost", None)]}], tmp_path / "a.png")
    (axis,) = drawn[0].axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels[:2] == ["random", "federated"]
    assert sorted(labels) == ["FedAvg", "federated", "oracle", "own", "random"]
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
        tops = [bar.get_y() + bar.get_height() for bar in axis.containers[-1]]
        assert tops == totals
    assert [text.get_text() for text in drawn[0].legends[0].texts] == ["c", "b", "a"]


@pytest.mark.parametrize(("classes", "legends"), [(10, 1), (20, 1), (100, 0)])
def test_many_classes_have_colours_but_no_legend(drawn, tmp_path, classes, legends):
    counts = np.ones((2, classes), dtype=int).tolist()
    draw_partition(counts, counts, [str(c) for c in range(classes)], tmp_path / "p.png")
    assert len(drawn[0].legends) == legends
    bars = {bar[0].get_facecolor() for bar in drawn[0].axes[0].containers}
    assert len(bars) == classes


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
         "accuracy-local": 0.5, "balanced-accuracy-iid": 0.1}},
        {"stage": "experts", "round": 1, "metrics": {}},
    ]  # fmt: skip
    told += records("gate/federated", 2, loss=lambda n: n)
    draw_rounds(told, tmp_path / "r.png")
    shown = [(axis.get_title("left"), axis.get_ylabel()) for axis in drawn[0].axes if axis.axison]
    assert shown == [
        ("extractor", "Training loss"),
        ("extractor", "Test accuracy"),
        ("gate/federated", "Training loss"),
    ]
    loss, tested = drawn[0].axes[:2]
    assert loss.lines[0].get_xydata().tolist() == [[1, 1], [2, 0.5], [3, 1 / 3]]
    assert [(line.get_label(), *line.get_xydata().tolist()) for line in tested.lines] == [
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
        assert np.abs(mean - 0.5).max() < 0.1
        width = {30: 11, 400: 21}[count]
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
    reach = width // 2
    slow = [
        sum(values[max(place - reach, 0) : place + reach + 1])
        / len(values[max(place - reach, 0) : place + reach + 1])
        for place in range(len(values))
    ]
    assert rounds.moving_mean(values, width) == pytest.approx(slow, abs=1e-9)


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
    with pytest.raises(NMoEError, match=r"pip install 'nmoe-flower\[report\]'"):
        draw(tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
