"""The figure of the page that says when a mixture is worth it, from the published studies.

A line for each case: what one averaged model reaches, a device alone, the mixture, and who is told
which expert to ask. Means over the seeds of the study; bars are one standard error to either side.
Text is measured in bits per byte and has an axis of its own, on which better is right, too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from experiments.publish.published import RESULTS
from nmoe_flower.report import canvas
from nmoe_flower.study.rows import records_of

PLACE: Final = RESULTS / "when-to-use-it" / "when-to-use-it.webp"


@dataclass(frozen=True)
class Mark:
    """One mark of a line: a row of the study's ``table.json``."""

    variant: str
    gate: str


@dataclass(frozen=True)
class Case:
    """One line of the figure.

    Attributes:
        title: What is different between the devices, in words.
        study: The study whose table it is from.
        test: On which test.
        marks: By the names in `LOOKS`.
        values: By axis, the value, where the study has axes.
        metric: What is drawn.
    """

    title: str
    study: str
    test: str
    marks: Mapping[str, Mark]
    values: Mapping[str, str] = field(default_factory=dict)
    metric: str = "accuracy"


# Colour and mark of each thing, in the order of the legend.
LOOKS: Final = {
    "own expert": (canvas.GREY, "v"),
    "one averaged model": (canvas.BLUE, "o"),
    "mixture": (canvas.ORANGE, "D"),
    "told whom to ask": (canvas.INK, "|"),
}

# Label, least and most of each axis, the worse end first.
AXES: Final = {
    "accuracy": ("accuracy", (0.0, 1.0)),
    "bits_per_byte": ("bits per byte of text, fewer are better", (6.5, 3.5)),
}

CASES: Final = (
    Case(
        "See different worlds\n(domains, the same labels)",
        "vision-domains",
        "iid",
        {
            "own expert": Mark("mixture", "local"),
            "one averaged model": Mark("averaged", "control:fedavg"),
            "mixture": Mark("mixture", "lda"),
            "told whom to ask": Mark("mixture", "domain"),
        },
    ),
    Case(
        "See different worlds and\nmean different things",
        "vision-renamed",
        "iid",
        {
            "own expert": Mark("mixture", "local"),
            "one averaged model": Mark("averaged-large", "control:fedavg"),
            "mixture": Mark("mixture", "lda"),
            "told whom to ask": Mark("mixture", "domain"),
        },
    ),
    Case(
        "Mean different things,\nand no input shows it",
        "vision-hidden",
        "local",
        {
            "own expert": Mark("two", "local"),
            "one averaged model": Mark("averaged", "control:fedavg"),
            "mixture": Mark("two", "client-weights"),
        },
    ),
    Case(
        "Hold other shares of the\nsame classes (tau = 0.2)",
        "vision-skew",
        "iid",
        {
            "own expert": Mark("adjusted", "local"),
            "one averaged model": Mark("averaged", "control:fedavg"),
            "mixture": Mark("adjusted", "federated"),
        },
        {"setting": "tau-0.2"},
    ),
    Case(
        "Write different languages\n(adapters of a language model)",
        "text-domains",
        "iid",
        {
            "own expert": Mark("experts", "local"),
            "one averaged model": Mark("frozen-a", "control:fedavg-frozen-a"),  # the best of all
            "mixture": Mark("experts", "posterior"),
            "told whom to ask": Mark("experts", "domain"),
        },
        metric="bits_per_byte",
    ),
    Case(
        "The same, once an average of\ntheir adapters is the start",
        "text-domains",
        "iid",
        {
            "own expert": Mark("started", "local"),
            "one averaged model": Mark("frozen-a-twice", "control:fedavg-frozen-a"),
            "mixture": Mark("started", "posterior"),
            "told whom to ask": Mark("started", "domain"),
        },
        metric="bits_per_byte",
    ),
)


def found(case: Case) -> dict[str, dict[str, Any]]:
    """The rows of a case by mark; empty where its study is not published.

    Raises:
        KeyError: The study is published, without a row that the case names.
    """
    table = RESULTS / case.study / "table.json"
    if not table.is_file():
        return {}
    rows = {
        (row["variant"], row["gate"]): row
        for row in records_of(json.loads(table.read_text(encoding="utf-8")))
        if (row["test"], row["metric"]) == (case.test, case.metric)
        and all(row[axis] == value for axis, value in case.values.items())
    }
    return {name: rows[mark.variant, mark.gate] for name, mark in case.marks.items()}


def draw(path: Path) -> Path | None:
    """Draw the cases whose studies are published; returns the file, None if none is."""
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    for case in CASES:
        if rows := found(case):
            panels.setdefault(case.metric, {})[case.title] = rows
    if not panels:
        return None
    heights = [len(told) + 0.55 for told in panels.values()]
    figure = canvas.new(5.4, 0.35 + 0.62 * sum(heights))
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (metric, told) in zip(axes, panels.items(), strict=True):
        for at, rows in enumerate(told.values()):
            _line(axis, at, rows)
        axis.set_yticks(range(len(told)), list(told))
        axis.set_ylim(len(told) - 0.45, -0.55)
        label, ends = AXES[metric]
        axis.set_xlabel(label)
        axis.set_xlim(*ends)
        canvas.light_grid(axis, which="x")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", frameon=False, fontsize=7, ncols=4)
    seeds = {
        row["n"] for told in panels.values() for rows in told.values() for row in rows.values()
    }
    canvas.save(figure, path, note=f"means of {_words(seeds)}, bars: standard error")
    return path


def _line(axis: Any, at: int, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """One case: its marks on a bar from the worst to the best."""
    means = [row["mean"] for row in rows.values() if "mean" in row]
    axis.plot([min(means), max(means)], [at, at], color="#D9D9D9", linewidth=2, zorder=1)
    for name, row in rows.items():
        if "mean" not in row:
            continue
        colour, mark = LOOKS[name]
        axis.errorbar(row["mean"], at, xerr=row.get("se"), color=colour, marker=mark, linestyle="",
                      markersize=9 if mark == "|" else 5.5, capsize=2, elinewidth=0.9,
                      zorder=3, label=name if not at else None)  # fmt: skip
        if name in ("mixture", "one averaged model"):
            above = name == "mixture"
            axis.annotate(f"{row['mean']:.3f}", (row["mean"], at), fontsize=7, color=colour,
                          xytext=(0, 7 if above else -7), textcoords="offset points",
                          ha="center", va="bottom" if above else "top")  # fmt: skip


def _words(seeds: set[int]) -> str:
    least, most = min(seeds), max(seeds)
    return f"{least} seeds" if least == most else f"{least} to {most} seeds"
