import json
from pathlib import Path

import pytest

from benchmarks.text_peers import main


def test_each_way_to_ask_is_timed_beside_home(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "peers.json"
    sizes = ["--rank", "1", "--batch", "2", "--window", "8", "--tokens", "2", "--rounds", "1"]
    assert main([*sizes, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert len(found["ways"]) == len(found["together"]) == 6
    first, headings, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("small-lm, rank 1")
    assert "home / asked" in headings
    rows, (headings, *together) = rows[:6], rows[6:]
    assert "tokens a second" in headings
    assert [row.split()[:2] for row in together] == [
        [str(count), send] for send in ("hidden", "tokens") for count in (1, 2, 4)
    ]
    assert all(float(row.split()[2]) > 0 for row in together)
    for way in ("hidden float16", "hidden int8", "tokens"):
        assert sum(way in row for row in rows) == 2
    # Tokens take four bytes each: two windows of eight, beside some 30 of the rest.
    assert 64 <= int(rows[4].split()[-2].replace(",", "")) <= 110
