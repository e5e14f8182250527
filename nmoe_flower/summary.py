"""What a run says at its end, and plain tables of text."""

import json
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nmoe_flower.catalogue import VALIDATION
from nmoe_flower.errors import NMoEError
from nmoe_flower.installation import install_hint
from nmoe_flower.plurals import how_many
from nmoe_flower.progress import duration
from nmoe_flower.results import RunFolder

__all__ = ["draw", "padded", "summary_json", "summary_lines"]

# Heading, key in a row of results.json, test it is taken from.
_COLUMNS = (
    ("accuracy local", "accuracy", "local"),
    ("iid", "accuracy", "iid"),
    ("balanced local", "balanced_accuracy", "local"),
    ("iid", "balanced_accuracy", "iid"),
    ("local ratio", "local_ratio", "local"),
    ("bytes/sample", "bytes_per_sample", "local"),
)
_OF_TEXT = (
    ("bits/byte local", "bits_per_byte", "local"),
    ("worst", "worst_bits_per_byte", "local"),
    ("iid", "bits_per_byte", "iid"),
    ("perplexity local", "perplexity", "local"),
    ("local ratio", "local_ratio", "iid"),
    ("bytes/window", "bytes_per_sample", "iid"),
)
_CHOSEN_ON = ("validation", "accuracy", VALIDATION)  # only where it was tested
_MOST_FAILURES = 10
_WIDTH = 100


def padded(rows: Sequence[Sequence[str]]) -> str:
    """A table of text: the first column to the left, the others to the right.

    >>> print(padded([["gate", "accuracy"], ["local", "0.9"]]))
    gate   accuracy
    local       0.9
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def summary_lines(folder: RunFolder, figures: Sequence[Path], seconds: float) -> list[str]:
    """The results by gate, what failed, what is private, and where the files are.

    Args:
        folder: The folder of a finished run.
        figures: The figures that were drawn.
        seconds: How long the whole run took.
    """
    results = folder.results()
    lines = [*_table(results["rows"]).splitlines(), ""]
    failures = _failures(folder)
    for (who, why), times in failures[:_MOST_FAILURES]:
        lines.append(f"dropped {times} x client {who}: {why}")
    if len(failures) > _MOST_FAILURES:
        lines.append(
            f"... and {how_many(len(failures) - _MOST_FAILURES, 'more reason')} in "
            f"{folder.rounds_path}"
        )
    lines += _findings(results)
    lines.append(f"results  {folder.results_path}")
    if figures:
        lines.append(f"figures  {figures[0].parent} ({how_many(len(figures), 'file')})")
    return [*lines, f"time     {duration(seconds)}"]


def summary_json(folder: RunFolder, seconds: float) -> str:
    """The same as one JSON object, for scripts; without what each client scored."""
    results = folder.results()
    rows = [{k: v for k, v in row.items() if k != "per_client"} for row in results["rows"]]
    failures = [
        {"partition": who, "reason": why, "times": times} for (who, why), times in _failures(folder)
    ]
    end = {"finished": True, "folder": str(folder.path), "seconds": round(seconds, 3)}
    extra = {key: results[key] for key in ("privacy", "representation") if key in results}
    return json.dumps({**end, "failures": failures, **extra, "rows": rows})


def draw(folder: RunFolder, complain: Callable[[str], None]) -> list[Path]:
    """Draw a run's figures. They are a courtesy: without them it has still produced its results.

    Args:
        folder: The folder of a finished run.
        complain: Told in a line why there are none.
    """
    try:
        from nmoe_flower.report import draw_figures

        return list(draw_figures(folder.path))
    except ImportError:
        complain(f"no figures: {install_hint('report')}")
    except NMoEError as error:
        complain(f"no figures: {error}")
    return []


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per gate, then per control; ``+prior`` follows its plain gate."""
    gates = {(str(row["gate"]), str(row["test"])): row for row in rows}
    of_text = any("bits_per_byte" in row for row in rows)
    *shares_of, sent_of = _OF_TEXT if of_text else _COLUMNS
    chosen_on = [_CHOSEN_ON] if any(test == VALIDATION for _, test in gates) else []
    if of_text:
        chosen_on = [(heading, "bits_per_byte", test) for heading, _, test in chosen_on]
    columns = [*shares_of, *chosen_on, sent_of]
    lines = [["gate", *(heading for heading, _, _ in columns)]]
    for gate in sorted({gate for gate, _ in gates}, key=lambda name: (":" in name, name)):
        found = [gates.get((gate, test), {}).get(key) for _, key, test in columns]
        shares = ["-" if value is None else f"{value:.3f}" for value in found[:-1]]
        sent = "-" if found[-1] is None else f"{found[-1]:,.0f}"
        lines.append([gate, *shares, sent])
    return padded(lines)


def _findings(results: Mapping[str, Any]) -> Iterator[str]:
    """Collapsed features, answers without a row and what is private, a paragraph each."""
    collapse = (results.get("representation") or {}).get("collapse")
    paragraphs = [("WARNING", f"features: {collapse}" if collapse else "")]
    paragraphs += [("WARNING", f"{w}: {why}") for w, why in results.get("diverged", {}).items()]
    paragraphs += [("privacy", (results.get("privacy") or {}).get("statement") or "")]
    for name, text in paragraphs:
        if text:
            yield textwrap.fill(
                text, _WIDTH, initial_indent=f"{name:<9}", subsequent_indent=9 * " "
            )


def _failures(folder: RunFolder) -> list[tuple[tuple[Any, str], int]]:
    """Who was dropped for what and how often, the most frequent first."""
    return Counter(
        (failure.get("partition"), str(failure.get("reason")))
        for record in folder.rounds()
        for failure in record.get("failures") or ()
    ).most_common()
