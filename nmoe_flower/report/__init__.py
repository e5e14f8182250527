"""Tables and figures from finished runs."""

from nmoe_flower.report.alignment import (
    alignment_lines,
    alignment_table,
    draw_alignment,
    most_bytes,
)
from nmoe_flower.report.by_stage import rounds_by_stage
from nmoe_flower.report.callouts import Mark, write_names
from nmoe_flower.report.document import draw_figures, write_report
from nmoe_flower.report.estimates import Estimate, differences, estimate
from nmoe_flower.report.figures import (
    draw_accuracy,
    draw_bits_per_byte,
    draw_partition,
    draw_rounds,
    draw_routing,
)
from nmoe_flower.report.paper import is_papers_setting, paper_cell, paper_table, paper_to_markdown
from nmoe_flower.report.representation import draw_representation
from nmoe_flower.report.runs import FinishedRun, load_runs, seeds_in_words
from nmoe_flower.report.shape import (
    BY_SETTINGS,
    read_provenance,
    read_results,
    read_rounds,
    said_once,
)
from nmoe_flower.report.tables import (
    GATE_NAMES,
    gate_kind,
    gate_order,
    grid,
    place_of_test,
    results_table,
    test_label,
    to_csv,
    to_markdown,
)
from nmoe_flower.report.traffic import Traffic, draw_traffic, read_traffic

__all__ = [
    "BY_SETTINGS",
    "GATE_NAMES",
    "Estimate",
    "FinishedRun",
    "Mark",
    "Traffic",
    "alignment_lines",
    "alignment_table",
    "differences",
    "draw_accuracy",
    "draw_alignment",
    "draw_bits_per_byte",
    "draw_figures",
    "draw_partition",
    "draw_representation",
    "draw_rounds",
    "draw_routing",
    "draw_traffic",
    "estimate",
    "gate_kind",
    "gate_order",
    "grid",
    "is_papers_setting",
    "load_runs",
    "most_bytes",
    "paper_cell",
    "paper_table",
    "paper_to_markdown",
    "place_of_test",
    "read_provenance",
    "read_results",
    "read_rounds",
    "read_traffic",
    "results_table",
    "rounds_by_stage",
    "said_once",
    "seeds_in_words",
    "test_label",
    "to_csv",
    "to_markdown",
    "write_names",
    "write_report",
]
