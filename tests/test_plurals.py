"""Sentences with numbers: the singular for 1, and one way to write it."""

import re
from pathlib import Path

import pytest

from nmoe_flower.data.coverage import Coverage
from nmoe_flower.plurals import how_many, one_or_many

PACKAGE = Path(__file__).parents[1] / "nmoe_flower"
BY_HAND = re.compile(r"""\{["'](?:s|es)?["'] if |else ["'](?:s|es)["']\}""")


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 replies"), (1, "1 reply"), (2, "2 replies"), (1000, "1,000 replies")],
)
def test_only_one_is_singular(number: int, said: str) -> None:
    assert how_many(number, "reply", "replies") == said
    assert one_or_many(number, "reply", "replies") == said.partition(" ")[2]


@pytest.mark.parametrize(
    ("used", "total", "said"),
    [
        (1, 1, "test: 1 of 1 sample is used"),
        (2, 3, "test: 2 of 3 samples are used; 1 is not: why"),
        (1, 3, "test: 1 of 3 samples are used; 2 are not: why"),
    ],
)
def test_what_is_left_out_is_told_in_the_right_number(used: int, total: int, said: str) -> None:
    assert str(Coverage("test", used, 0, total, ("why",))) == said


def test_nobody_adds_an_s_by_hand() -> None:
    assert BY_HAND.search("""f"{n} run{'s' if n > 1 else ''}" """)
    found = [path for path in PACKAGE.rglob("*.py") if BY_HAND.search(path.read_text("utf-8"))]
    assert found == []
