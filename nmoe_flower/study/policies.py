"""The policies of the second system side by side: a table in fixed columns, and two figures.

Rounds to a target, load variation and bytes are made from the rounds of every run, so what the
table says is kept as words in ``table.json``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nmoe_flower.errors import NMoEError
from nmoe_flower.report import alignment_lines, draw_alignment, load_runs, most_bytes
from nmoe_flower.study.declared import TableSpec
from nmoe_flower.study.product import selects
from nmoe_flower.study.rows import RunOutcome
from nmoe_flower.study.tables import Cell, Column, Line, StudyTable

__all__ = [
    "draw_policies",
    "finished_folders",
    "policies_from_json",
    "policies_table",
    "policies_to_json",
    "refuse_more_bytes",
]

_MOST_BYTES = 1.01


def policies_table(spec: TableSpec, outcomes: Sequence[RunOutcome]) -> StudyTable:
    """The table: one line per configuration, mean and standard deviation over its seeds.

    Args:
        spec: As the study declares it, of kind ``policies``.
        outcomes: The study's runs; those that have not finished are named below the table.
    """
    chosen = [one for one in outcomes if selects(spec.where, one.run)]
    finished = finished_folders(chosen)
    notes, header, lines = [], [""], list[list[str]]()
    if finished:
        header, lines, note = alignment_lines(load_runs(finished))
        notes.append(note)
    failed = [f"{one.run.variant} seed {one.run.seed} ({one.failed})" for one in chosen
              if one.failed]  # fmt: skip
    missing = [f"{one.run.variant} seed {one.run.seed}" for one in chosen
               if one.results is None and not one.failed]  # fmt: skip
    for word, names in (("Failed", failed), ("Missing", missing)):
        if names:
            notes.append(f"{word}: {'; '.join(names)}.")
    return _in_words(spec.name, spec.heading, header, lines, notes)


def _in_words(
    name: str,
    title: str,
    header: Sequence[str],
    lines: Sequence[Sequence[str]],
    notes: Sequence[str],
) -> StudyTable:
    return StudyTable(
        name,
        title,
        tuple(header[:1]),
        tuple(Column((head,)) for head in header[1:]),
        tuple(
            Line((line[0],), tuple(Cell("measured", words=text) for text in line[1:]))
            for line in lines
        ),
        tuple(notes),
    )


def policies_to_json(table: StudyTable) -> dict[str, Any]:
    """The table as it stands in ``table.json``."""
    return {
        "name": table.name,
        "title": table.title,
        "header": [*table.heads, *(column.labels[0] for column in table.columns)],
        "lines": [[*line.labels, *(cell.text for cell in line.cells)] for line in table.lines],
        "notes": list(table.notes),
    }


def policies_from_json(table: Mapping[str, Any]) -> StudyTable:
    """The table, read back."""
    return _in_words(*(table[key] for key in ("name", "title", "header", "lines", "notes")))


def finished_folders(outcomes: Sequence[RunOutcome]) -> list[Path]:
    """The folders of those runs that have results, in order."""
    return [one.path for one in outcomes if one.results is not None and one.path is not None]


def refuse_more_bytes(outcomes: Sequence[RunOutcome]) -> None:
    """Refuse to publish a run in which a client moved more than extractor, gate and its experts.

    Raises:
        NMoEError: A run moved more than one per cent beyond that, or does not tell.
    """
    for run in load_runs(
        [o.path for o in outcomes if o.results is not None and o.path is not None]
    ):
        if not most_bytes(run) <= _MOST_BYTES:
            raise NMoEError(
                f"{run.path}: a client got or sent {most_bytes(run):.4f} times what extractor, "
                f"gate and its experts weigh; allowed: {_MOST_BYTES}"
            )


def draw_policies(finished: Sequence[Path], folder: Path) -> list[Path]:
    """Who trained what, and accuracy against rounds, bytes and the clock; as PNG.

    Args:
        finished: Folders of finished runs of the second system.
        folder: Where ``assignments.png`` and ``alignment.png`` go.
    """
    return draw_alignment(load_runs(finished), folder) if finished else []
