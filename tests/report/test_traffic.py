"""The heat map of real traffic, from records."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nmoe_flower.errors import DataError
from nmoe_flower.report import Traffic, draw_traffic, read_traffic


def line(own: int, chosen: dict[str, Any], answered: dict[str, Any]) -> str:
    return json.dumps({"own": own, "rows": 1, "chosen": chosen, "answered": answered}) + "\n"


def test_records_of_all_devices_are_added_up(tmp_path: Path) -> None:
    one, two = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_text(line(0, {"1": 3}, {"1": 2, "0": 1}) + line(0, {"0": 1, "2": 1}, {"0": 2}))
    two.write_text(line(3, {"1": 4}, {"1": 4}) + '{"own": 3, "chos')  # cut while it was written
    traffic = read_traffic([one, two])
    assert traffic.devices == [0, 3]
    assert traffic.chosen.tolist() == [[1, 3, 1, 0], [0, 4, 0, 0]]
    assert traffic.answered.tolist() == [[3, 2, 0, 0], [0, 4, 0, 0]]


@pytest.mark.parametrize(
    "text",
    [
        "not json\n",
        "[]\n",
        "{}\n",
        line(-1, {}, {}),
        line(0, {"x": 1}, {}),
        line(0, {"1": -1}, {}),
        line(0, {"1": True}, {}),
        line(0, {"1000000000": 1}, {}),
        line(0, {"1": 1.5}, {}),
        '{"own": 0, "chosen": [], "answered": []}\n',
    ],
)
def test_other_lines_are_refused_with_their_number(tmp_path: Path, text: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(line(0, {"0": 1}, {"0": 1}) + text)
    with pytest.raises(DataError, match=r"records\.jsonl, line 2 is not the record"):
        read_traffic([path])


def test_no_records_are_no_picture(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no records in"):
        read_traffic([tmp_path / "empty.jsonl"])
    with pytest.raises(DataError, match="cannot read"):
        read_traffic([tmp_path / "gone.jsonl"])


@pytest.mark.parametrize(("devices", "experts"), [(1, 3), (2, 30), (14, 14)])
def test_it_is_drawn(tmp_path: Path, devices: int, experts: int) -> None:
    counts = np.random.default_rng(0).integers(0, 9, (devices, experts))
    counts[0] = 0  # a device whose choices were all lost
    path = tmp_path / "traffic.png"
    draw_traffic(Traffic(list(range(devices)), counts, counts[:, ::-1]), path)
    with Image.open(path) as image:
        assert np.asarray(image.convert("L")).std() > 5
