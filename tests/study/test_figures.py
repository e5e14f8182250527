from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nmoe_flower.report import canvas
from nmoe_flower.study.curves import Curve
from nmoe_flower.study.declared import FigureSpec
from nmoe_flower.study.figures import Figure, Panel, Point, Series, draw_figure, fill_figure
from nmoe_flower.study.labels import Labels
from nmoe_flower.study.page_parts import figure_parts
from tests.study.conftest import row

LABELS = Labels(variants={"a": "First", "b": "Second"}, axes={"data.num-clients": (5, 10, 50)})


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures as they were finished, instead of files."""
    kept: list[Any] = []
    monkeypatch.setattr(canvas, "_write", lambda figure, path: kept.append(figure))
    return kept


def lines(**more: Any) -> FigureSpec:
    values = {"name": "f", "kind": "lines", "x": "data.num-clients", "series": ("variant",),
              "gate": "federated", "test": "iid", **more}  # fmt: skip
    return FigureSpec(**values)


def rows() -> list[Any]:
    return [
        row({0: 0.5 + size / 1000, 1: 0.52 + size / 1000}, variant=variant, folder=variant,
            values={"data.num-clients": size}, gate=gate)
        for variant in ("b", "a") for size in (50, 5, 10) for gate in ("federated", "local")
    ]  # fmt: skip


def test_a_line_is_the_means_with_their_errors_in_order() -> None:
    figure = fill_figure(lines(), rows(), LABELS)
    assert [one.label for one in figure.series] == ["First", "Second"]
    assert [point.x for point in figure.series[0].points] == [5, 10, 50]
    assert [round(point.mean, 3) for point in figure.series[0].points] == [0.515, 0.52, 0.56]
    assert {round(point.se or 0, 6) for point in figure.series[0].points} == {0.01}  # 0.02 / 2
    assert (figure.x, figure.y, figure.log) == ("num-clients", "accuracy, IID test", True)
    assert figure.notes == ("mean of 2 seeds: 0, 1", "bars: standard error")


def test_marks_of_fewer_seeds_are_told() -> None:
    *most, last = rows()
    figure = fill_figure(
        lines(gate="local"), [*most, replace(last, each={0: 0.5}, asked=(0,))], LABELS
    )
    assert figure.notes == (
        "mean of 2 seeds: 0, 1", "1 of 6 marks of fewer seeds", "bars: standard error"
    )  # fmt: skip


def test_values_that_are_no_numbers_are_categories() -> None:
    spec = lines(kind="dots", x="gate", gate="", where={"data.num-clients": (5,)})
    figure = fill_figure(spec, rows(), LABELS)
    assert figure.categories == ("federated", "local")
    assert figure.log is False


def along(axis: str, **found: tuple[str, ...]) -> list[Any]:
    return [
        row({0: 0.5}, variant=variant, folder=f"{variant}-{value}", values={axis: value})
        for variant, values in found.items() for value in values
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["lines", "dots"])
def test_categories_stand_in_the_order_of_the_file_whoever_lacks_one(
    drawn: list[Any], kind: str
) -> None:
    labels = Labels(axes={"skew": ("strong", "mild", "iid")})
    found = along("skew", a=("iid", "strong"), b=("strong", "mild", "iid"))
    figure = fill_figure(lines(kind=kind, x="skew"), found, labels)
    assert figure.categories == ("strong", "mild", "iid")
    draw_figure(figure, Path("unused.png"))
    (axis,) = drawn[0].axes
    ticks = axis.get_xticklabels() if kind == "lines" else axis.get_yticklabels()
    assert [text.get_text() for text in ticks] == ["strong", "mild", "iid"]


def test_a_value_that_is_called_infinite_is_a_category() -> None:
    labels = Labels(axes={"epsilon": ("1", "8", "inf")})
    figure = fill_figure(lines(x="epsilon"), along("epsilon", a=("1", "8", "inf")), labels)
    assert figure.categories == ("1", "8", "inf")
    assert [point.x for point in figure.series[0].points] == ["1", "8", "inf"]
    (part,) = figure_parts(figure)
    assert "inf" in str(part)


def test_a_point_that_is_missing_leaves_a_gap_and_is_told() -> None:
    found = [*rows()[:4], row({}, asked=(0, 1), variant="b", folder="b",
                              values={"data.num-clients": 10})]  # fmt: skip
    figure = fill_figure(lines(), found, LABELS)
    assert [point.x for point in figure.series[0].points] == [5, 50]
    assert figure.notes[-1] == "runs missing or failed in 1 of 1"


def test_seeds_are_a_dimension_of_marks_too() -> None:
    figure = fill_figure(lines(x="seed", where={"data.num-clients": (5,)}), rows(), LABELS)
    assert [one.label for one in figure.series] == ["First", "Second"]
    assert [(p.x, round(p.mean, 3), p.se) for p in figure.series[0].points] == [
        (0, 0.505, None), (1, 0.525, None),
    ]  # fmt: skip
    assert figure.notes == ("each seed by itself: 0, 1",)
    figure = fill_figure(lines(series=("variant", "seed"), kind="dots"), rows(), LABELS)
    assert [one.label for one in figure.series][:2] == ["First, seed = 0", "First, seed = 1"]
    figure = fill_figure(lines(where={"seed": (1,)}), rows(), LABELS)
    assert [round(point.mean, 3) for point in figure.series[0].points] == [0.525, 0.53, 0.57]
    assert figure.notes == ("seed 1",)


def curve(seed: int, *scores: float, variant: str = "a") -> Curve:
    at = tuple(map(float, range(1, len(scores) + 1)))
    return Curve(variant, {}, seed, "iid", "accuracy", at, at, at, scores)


def test_curves_of_different_lengths_say_how_far_all_seeds_go() -> None:
    spec = FigureSpec(name="f", kind="rounds", x="round", series=("variant",), test="iid")
    found = [curve(0, 0.5, 0.6, 0.7), curve(1, 0.5, 0.6), curve(0, 0.1, 0.2, 0.3, variant="b")]
    figure = fill_figure(spec, [], LABELS, curves=found)
    assert [[point.x for point in one.points] for one in figure.series] == [[1, 2], [1, 2, 3]]
    assert figure.notes[-1] == "drawn as far as all seeds go: First to round 2 of 3"


def test_what_is_drawn_is_what_was_filled(drawn: list[Any]) -> None:
    draw_figure(fill_figure(lines(), rows(), LABELS), Path("unused.png"))
    (axis,) = drawn[0].axes
    curves = [container.lines[0] for container in axis.containers]
    assert [list(curve.get_xdata()) for curve in curves] == [[5, 10, 50]] * 2
    assert axis.get_xscale() == "log"
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["First", "Second"]
    assert drawn[0].get_suptitle() == "mean of 2 seeds: 0, 1; bars: standard error"


def test_dots_have_room_for_every_colour(drawn: list[Any]) -> None:
    points = (Point("one", 0.5, 0.01, 2), Point("two", 0.6, 0.01, 2))
    for count in (1, 16):
        many = tuple(Series(f"series {number}", points) for number in range(count))
        figure = Figure("d", "", "dots", "x", "y", many, categories=("one", "two"))
        draw_figure(figure, Path("unused.png"))
    few, many_of_them = (figure.get_figheight() for figure in drawn)
    assert many_of_them > 2 * few
    heights = sorted(c.lines[0].get_ydata()[0] for c in drawn[1].axes[0].containers)
    assert heights[-1] < 0.5 < 0.5 + heights[-1] - heights[0]  # the next one begins at 0.5


def test_maps_say_what_stays_at_home(drawn: list[Any]) -> None:
    panels = tuple(
        Panel(name, ((0.75, 0.25), (0.5, 0.5)), 0.625, (("macro F1", 0.5),)) for name in "abcde"
    )
    draw_figure(Figure("m", "", "routing", panels=panels), Path("unused.png"))
    titles = [axis.get_title() for axis in drawn[0].axes if axis.get_title()]
    assert titles == [f"{name}\nLR = 62 %, macro F1 = 0.500" for name in "abcde"]


def test_figures_are_written_as_pdf_too(tmp_path: Path) -> None:
    figure = canvas.new(1, 1)
    canvas.save(figure, tmp_path / "f.pdf")
    canvas.save(figure, tmp_path / "g.pdf")
    assert (tmp_path / "f.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "f.pdf").read_bytes() == (tmp_path / "g.pdf").read_bytes()


def test_a_scatter_is_what_was_reached_at_what_it_cost(drawn: list[Any]) -> None:
    spec = FigureSpec(name="f", kind="scatter", x="bytes", series=("variant",), test="iid")
    costs = {"a": 3e6, "b": 4e7, "c": 0.0, "d": 5e5}
    found = [
        row({0: 0.5, 1: 0.6}, variant=name, folder=name, bytes_per_device=cost)
        for name, cost in costs.items()
    ]
    figure = fill_figure(spec, [*found, row({0: 0.9}, variant="untold", folder="e")], LABELS)
    assert {one.label: one.points[0].x for one in figure.series} == {
        "First": 3.0, "Second": 40.0, "c": 0.0, "d": 0.5
    }  # fmt: skip
    assert (figure.x, figure.y, figure.log) == ("MB per device", "accuracy, IID test", True)
    draw_figure(figure, Path("unused.png"))
    (axis,) = drawn[0].axes
    assert axis.get_xscale() == "log"
    assert [list(line.lines[0].get_xdata()) for line in axis.containers] == [[3.0], [40.0], [0.5]]
    across = [line for line in axis.lines if list(line.get_ydata()) == [0.55, 0.55]]
    assert len(across) == 1  # what cost nothing


def test_a_scatter_may_count_from_where_all_begin() -> None:
    """In each setting from that setting's start; what cost no more than it stands at 0."""
    costs = {("a", 1): 5e6, ("c", 1): 0.0, ("a", 2): 7e6, ("b", 1): 3e6, ("b", 2): 7e6}
    found = [
        row({0: 0.5}, variant=name, folder=f"{name}{size}", values={"size": size},
            bytes_per_device=cost)
        for (name, size), cost in costs.items()
    ]  # fmt: skip
    spec = FigureSpec(
        name="f", kind="scatter", x="bytes", since="b", series=("variant", "size"), test="iid"
    )
    figure = fill_figure(spec, found, LABELS)
    assert [one.points[0].x for one in figure.series] == [2.0, 0.0, 0.0, 0.0, 0.0]
    assert figure.x == "MB per device since Second"


def test_a_scatter_counts_exchanges_too() -> None:
    spec = FigureSpec(name="f", kind="scatter", x="exchanges", series=("variant",), test="iid")
    figure = fill_figure(spec, [row({0: 0.5}, exchanges=12)], LABELS)
    assert [(one.points[0].x, one.points[0].se) for one in figure.series] == [(12, None)]
