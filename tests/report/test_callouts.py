"""Names beside marks: near, inside, none upon another."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe_flower.report import Mark, canvas, write_names

PLACES = st.tuples(st.floats(1, 10), st.floats(0, 1))


def written(marks: list[Mark]) -> tuple[dict[str, tuple[float, float, float, float]], np.ndarray]:
    """By name: where its text is, in pixels; and the corners of the axis."""
    figure = canvas.new(5.6, 3.6)
    axis = figure.subplots()
    axis.set(xlim=(0, 11), ylim=(-0.1, 1.1))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    write_names(axis, marks)
    boxes = {text.get_text(): text.get_window_extent().extents for text in axis.texts}
    return {
        name: tuple(box) for name, box in boxes.items() if name
    }, axis.get_window_extent().extents


def apart(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[2] <= other[0] + 0.5 or other[2] <= one[0] + 0.5 or (
        one[3] <= other[1] + 0.5 or other[3] <= one[1] + 0.5
    )  # fmt: skip


@settings(max_examples=5, deadline=None)
@given(st.lists(PLACES, min_size=1, max_size=12), st.booleans())
def test_names_lie_inside_and_apart(places: list[tuple[float, float]], line: bool) -> None:
    marks = [Mark(f"System {at}, gate", x, y, 0.02) for at, (x, y) in enumerate(places)]
    marks += [Mark("for nothing", None, 0.5)] if line else []
    found, inside = written(marks)
    assert found.keys() == {mark.name for mark in marks}
    for box in found.values():
        assert inside[0] - 1 <= box[0] <= box[2] <= inside[2] + 1
        assert inside[1] - 1 <= box[1] <= box[3] <= inside[3] + 1
    for one, other in combinations(found.values(), 2):
        assert apart(one, other)


@pytest.mark.parametrize("count", [2, 8])
def test_marks_upon_each_other_have_their_names_around_them(count: int) -> None:
    found, _ = written([Mark(f"system {at}", 5.0, 0.5) for at in range(count)])
    assert len(found) == count
    assert all(apart(one, other) for one, other in combinations(found.values(), 2))
