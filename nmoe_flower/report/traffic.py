"""Who asked whom in real traffic: the records of queries as a heat map."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import DataError
from nmoe_flower.files import parse_json, read_text
from nmoe_flower.report.canvas import few_ticks, new, save, write_shares

__all__ = ["Traffic", "draw_traffic", "read_traffic"]

_ANNOTATED = 12
_MOST_BYTES = 1 << 30
_MOST_EXPERTS = 100_000

Counts = npt.NDArray[np.int64]


class Traffic(NamedTuple):
    """How often each device asked each expert.

    Attributes:
        devices: The experts of the m devices that asked, in order.
        chosen: What their gates chose, [m, E].
        answered: Which experts' logits they got, bool [m, E].
    """

    devices: list[int]
    chosen: Counts
    answered: Counts


def read_traffic(paths: Sequence[Path]) -> Traffic:
    """Add up files of records, one JSON object per line; a cut last line is left out.

    Raises:
        DataError: A file is missing or holds a line that is no record, or there is none at all.
    """
    found: list[Mapping[str, Any]] = []
    for path in paths:
        text = read_text(path, what="the records", raises=DataError, most=_MOST_BYTES)
        lines = text.split("\n")[:-1]  # what follows the last line end was cut
        for number, line in enumerate(lines, start=1):
            try:
                found.append(_counts(parse_json(line)))
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
                raise DataError(f"{path}, line {number} is not the record of a query") from None
    if not found:
        raise DataError(f"no records in {', '.join(map(str, paths))}")
    devices = sorted({record["own"] for record in found})
    experts = 1 + max(
        max([record["own"], *record["chosen"], *record["answered"]]) for record in found
    )
    sums = {name: np.zeros((len(devices), experts), np.int64) for name in ("chosen", "answered")}
    for record in found:
        for name, counts in sums.items():
            for expert, count in record[name].items():
                counts[devices.index(record["own"]), expert] += count
    return Traffic(devices, sums["chosen"], sums["answered"])


def draw_traffic(traffic: Traffic, path: Path) -> None:
    """Two heat maps: whom the gates chose, and who answered. Rows sum to 1.

    Args:
        traffic: What `read_traffic` gave.
        path: The PNG to write.
    """
    figure = new(6.8, 3.2)
    figure.set_layout_engine("compressed")
    axes = figure.subplots(1, 2)
    titles = ("Chosen by the gate", "Answered by")
    for axis, title, counts in zip(axes, titles, traffic[1:], strict=True):
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axis.set_title(f"{title} ({counts.sum():,})", fontsize=8.5)
        axis.set_xlabel("Expert ID")
        axis.set_xticks(few_ticks(shares.shape[1]))
        rows = few_ticks(len(shares))
        axis.set_yticks(rows, labels=[str(traffic.devices[row]) for row in rows])
        if max(shares.shape) <= _ANNOTATED:
            write_shares(axis, shares)
    axes[0].set_ylabel("Device that asks")
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("Share of the device's choices")
    bar.outline.set_linewidth(0.4)
    save(figure, path)


def _counts(record: Any) -> dict[str, Any]:
    """The part of a record that is drawn, checked."""
    own = _whole(record["own"], _MOST_EXPERTS)
    parts = {
        name: {
            _whole(int(expert), _MOST_EXPERTS): _whole(count, 1 << 53)
            for expert, count in record[name].items()
        }
        for name in ("chosen", "answered")
    }
    return {"own": own, **parts}


def _whole(value: Any, end: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < end:
        raise ValueError(value)
    return value
