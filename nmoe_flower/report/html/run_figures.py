"""What can be drawn of finished runs: rounds, who asks whom, and who holds what."""

import json
from collections.abc import Sequence
from typing import Any

from nmoe_flower.plurals import how_many
from nmoe_flower.report.alignment import is_alignment
from nmoe_flower.report.figures import drawn_routing
from nmoe_flower.report.html.charts import heat_map
from nmoe_flower.report.html.lines import charts_of
from nmoe_flower.report.html.parts import Maps, PagePart, folded
from nmoe_flower.report.html.words import Groups, gate_name, test_in_sentence
from nmoe_flower.report.runs import FinishedRun, seeds_in_words
from nmoe_flower.report.tables import is_of_text

__all__ = ["partition_parts", "rounds_parts", "routing_parts"]


def rounds_parts(groups: Groups) -> list[PagePart]:
    """What was measured over rounds, bytes and seconds; nothing without rounds."""
    charts = charts_of(groups)
    return [] if charts is None else [charts]


def routing_parts(groups: Groups) -> list[PagePart]:
    """Heat maps of every configuration's first seed."""
    folds: list[tuple[str, PagePart]] = []
    about: dict[str, str] = {}
    for name, runs in groups.items():
        run = runs[0]
        maps, ratios = [], []
        if is_alignment(run):
            continue
        for gate, test in drawn_routing(run.results.get("routing") or {}):
            matrix = run.results["routing"][f"{gate}/{test}"]
            square = len(matrix) == len(matrix[0])
            ratio = sum(matrix[i][i] for i in range(len(matrix))) / len(matrix) if square else 0.0
            said = f"Local ratio {100 * ratio:.1f} %." if square else ""
            if square and test == "local":
                ratios.append(f"{gate_name(gate)} {100 * ratio:.0f} %")
            maps.append(
                heat_map(
                    matrix,
                    title=f"{gate_name(gate)}, {test_in_sentence(test)}",
                    said=said,
                    say="Client {r} asks expert {c} for {v} of its samples.",
                    row_title="Client",
                    column_title="Expert",
                    own=square and len(matrix) > 1,
                )
            )
        if maps:
            note = _of_seed(runs, "In the cells: per cent. Outlined: a client's own expert.")
            folds.append((name, Maps(maps, "Share of a client's samples", [note])))
            about[name] = f"local ratio: {', '.join(ratios)}" if ratios else ""
    return folded(folds, about)


def partition_parts(groups: Groups) -> list[PagePart]:
    """Samples per client and class, or windows of text per client and domain.

    A partition that several configurations share stands there once.
    """
    shared: dict[str, list[str]] = {}
    found: dict[str, Any] = {}
    for name, runs in groups.items():
        partition = runs[0].results.get("partition")
        if partition:
            key = json.dumps([partition[part] for part in ("train", "test", "classes")])
            shared.setdefault(key, []).append(name)
            found[key] = partition
    folds = []
    for key, names in shared.items():
        partition = found[key]
        of_text = any(map(is_of_text, groups[names[0]][0].results["rows"]))
        what, kind = ("window", "domain") if of_text else ("sample", "class")
        classes = [str(name) for name in partition["classes"]]
        maps = []
        for part, title in (("train", "Training data"), ("test", "Local test data")):
            counts = partition[part]
            sums = [sum(row) for row in counts]
            each = f"{min(sums):,}" if min(sums) == max(sums) else f"{min(sums):,} to {max(sums):,}"
            maps.append(
                heat_map(
                    counts,
                    title=title,
                    said=f"{how_many(sum(sums), what)}, {each} per client.",
                    say=f"Client {{r}} holds {{v}} {what}s of {kind} {{c}}, of {{s}} in all.",
                    row_title="Client",
                    column_title=kind.title(),
                    columns=classes,
                    share=False,
                    of_row=True,
                )
            )
        note = _of_seed(groups[names[0]], f"In the cells: {what}s; beside a row: all of it.")
        folds.append(("; ".join(names), Maps(maps, f"Share of a client's {what}s", [note])))
    return folded(folds)


def _of_seed(runs: Sequence[FinishedRun], said: str) -> str:
    """Which seed of these runs is drawn, and what else is said of it."""
    seed = seeds_in_words([run.config.run.seed for run in runs], averaged=False)
    return f"{seed[0].upper()}{seed[1:]}. {said}"
