"""``nmoe peers --heat-map``: who was asked in real traffic."""

from collections.abc import Sequence
from pathlib import Path

from nmoe_flower.report import draw_traffic, read_traffic

__all__ = ["draw"]


def draw(records: Sequence[Path], out: Path) -> int:
    """Draw who was asked, from files of records.

    Raises:
        NMoEError: A file holds no records, or matplotlib is missing.
    """
    draw_traffic(read_traffic(records), out)
    print(f"drawn to {out}")
    return 0
