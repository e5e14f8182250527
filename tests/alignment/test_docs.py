"""The example of the how-to runs as printed."""

import re
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "align.md"


def test_the_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["dropped"] == {}
    assert (names["chosen"].sum(axis=1) == 2).all()
    assert np.all(names["usage"].total > 0)
