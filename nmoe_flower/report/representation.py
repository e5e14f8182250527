"""How good FedSC's features were over the rounds: spectrum, effective rank, probes; and privacy."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nmoe_flower.report.canvas import BLUE, ORANGE, count_rounds, light_grid, new, save
from nmoe_flower.report.runs import FinishedRun
from nmoe_flower.report.tables import grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "draw_representation",
    "has_representation",
    "privacy_lines",
    "representation_lines",
]

Rounds = Sequence[Mapping[str, Any]]
Curve = list[tuple[float, Any]]

_PROBES = {"probe-accuracy": "linear probe", "knn-accuracy": "k-NN"}
_FEW = 30  # points that are drawn as such
_NAMED = 3  # curves that are all named
_DECADES = 6  # what is smaller than that is rounding


def has_representation(rounds: Rounds) -> bool:
    """Whether the records know a spectrum of the mean R, an effective rank or a probe."""
    names = ("spectrum", "effective-rank", *_PROBES)
    return any(_curve(rounds, name) for name in names)


def draw_representation(rounds: Rounds, path: Path, *, note: str = "") -> None:
    """Spectrum of the mean R, its effective rank, and the accuracy of probes, over the rounds.

    What was not measured has no panel.

    Args:
        rounds: Records of rounds.jsonl.
        path: The PNG to write.
        note: What the figure stands for, as the seed.
    """
    spectra = _curve(rounds, "spectrum")
    ranks = _curve(rounds, "effective-rank", stage="extractor") or _curve(rounds, "effective-rank")
    probes = {name: found for name in _PROBES if (found := _curve(rounds, name))}
    panels = [bool(spectra), bool(ranks), bool(probes)].count(True)
    figure = new(2.5 * max(panels, 1), 2.5)
    axes = iter(figure.subplots(1, max(panels, 1), squeeze=False)[0])
    if spectra:
        _draw_spectra(next(axes), spectra)
    if ranks:
        _draw_ranks(next(axes), ranks)
    if probes:
        _draw_probes(next(axes), probes)
    save(figure, path, note=note)


def _curve(rounds: Rounds, name: str, *, stage: str | None = None) -> Curve:
    """Values of a metric by round; of stage 1 and its tests if none is named."""
    stages = {stage} if stage else {"extractor", "extractor-test"}
    found = {}
    for record in rounds:
        value = (record.get("metrics") or {}).get(name)
        if record.get("stage") in stages and _is_drawable(value):
            found[float(record.get("round", 0))] = value
    return sorted(found.items())


def _is_drawable(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_drawable(entry) for entry in value)
    return isinstance(value, int | float) and math.isfinite(value)


def _draw_spectra(axis: "Axes", spectra: Curve) -> None:
    """One line per test, early ones pale; eigenvalues that noise has hidden are left out.

    Of more than a few tests the first, one in the middle and the last are named.
    """
    from matplotlib import colormaps
    from matplotlib.ticker import NullFormatter

    shades = colormaps["Blues"](np.linspace(0.3, 1.0, len(spectra)))
    largest = max(max(values) for _, values in spectra)
    least = largest * 10.0**-_DECADES
    lowest, most = largest, 1
    last = len(spectra) - 1
    named = set(range(last + 1)) if last < _NAMED else {0, last // 2, last}
    for place, ((number, values), shade) in enumerate(zip(spectra, shades, strict=True)):
        shown = [value for value in values if value > least]  # they come largest first
        lowest, most = min([lowest, *shown]), max(most, len(shown))
        label = f"{number:.0f}" if place else f"round {number:.0f}"
        axis.plot(range(1, len(shown) + 1), shown, color=shade, linewidth=1.0,
                  marker="o" if len(shown) < _FEW else "", markersize=2,
                  label=label if place in named else None)  # fmt: skip
    axis.set_yscale("log")
    axis.yaxis.set_minor_formatter(NullFormatter())
    if largest > 0:
        axis.set_ylim(
            10.0 ** math.floor(math.log10(lowest)), 10.0 ** math.ceil(math.log10(largest))
        )
    axis.set_xlim(0, 1.03 * most + 0.5)
    axis.set_xlabel(f"Place of the eigenvalue, of {len(spectra[-1][1])}")
    axis.set_ylabel("Eigenvalue of the mean R")
    _legend(axis)
    light_grid(axis, which="both")


def _draw_ranks(axis: "Axes", ranks: Curve) -> None:
    x, y = np.array(ranks, dtype=float).T
    axis.plot(x, y, color=BLUE, linewidth=1.2, marker="o" if len(x) < _FEW else "", markersize=2.5)
    count_rounds(axis)
    axis.set_ylabel("Effective rank of the mean R")
    light_grid(axis, which="both")


def _draw_probes(axis: "Axes", probes: Mapping[str, Curve]) -> None:
    for (name, curve), colour in zip(probes.items(), (BLUE, ORANGE), strict=False):
        x, y = np.array(curve, dtype=float).T
        axis.plot(x, y, color=colour, linewidth=1.2, marker="o", markersize=2.5,
                  label=_PROBES[name])  # fmt: skip
    count_rounds(axis)
    axis.set_ylabel("Test accuracy")
    _legend(axis)
    light_grid(axis, which="both")


def _legend(axis: "Axes") -> None:
    """Above the panel, where no line can run."""
    axis.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=_NAMED, frameon=False,
                fontsize=6.5, handlelength=1.4, columnspacing=1.2, borderpad=0.2)  # fmt: skip


def representation_lines(runs: Sequence[FinishedRun]) -> list[str]:
    """The section of the report on features; nothing without runs that know theirs."""
    known = [
        (run, run.results["representation"]) for run in runs if run.results.get("representation")
    ]
    if not known:
        return []
    header = ("Run", "Collapse", "Seed", "Effective rank", "Of", "Linear probe", "k-NN")
    body = [
        [
            run.config.run.name.replace("|", "/"),
            found.get("collapse") or "none",
            str(run.config.run.seed),
            _number(found.get("effective_rank"), 1),
            _number(found.get("dimensions"), 0),
            _number(found.get("probe_accuracy"), 3),
            _number(found.get("knn_accuracy"), 3),
        ]
        for run, found in known
    ]
    return ["## Representation", "", *grid(header, body, words=2), ""]


def privacy_lines(runs: Sequence[FinishedRun]) -> list[str]:
    """The section of the report on privacy, in words; nothing without private runs."""
    known = [(run, found) for run in runs if (found := run.results.get("privacy"))]
    if not known:
        return []
    lines = [
        f"- **{run.config.run.name}** (seed {run.config.run.seed}): {found['statement']}"
        for run, found in known
    ]
    return ["## Privacy", "", *lines, ""]


def _number(value: Any, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
