"""Studies: many runs from one file, and the tables and figures that come out of them.

What makes tables and figures is imported on first use, so that a plan of many runs stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nmoe_flower.study.declared import (
    ComparisonSpec,
    FigureSpec,
    Measurable,
    PaperValue,
    SweepSpec,
    TableSpec,
)
from nmoe_flower.study.file import Study
from nmoe_flower.study.measured import ROW_METRICS, gates_of, numbers_of, tests_of
from nmoe_flower.study.one import StudyTask, carry_out, track_of
from nmoe_flower.study.plan import PlannedRun, SharedStage, StudyPlan, chosen, find_state, make_plan
from nmoe_flower.study.product import Axis, Coordinates, StudyRun, Variant, same, selects
from nmoe_flower.study.run import StudyOutcome, StudyView, run_study

if TYPE_CHECKING:
    from nmoe_flower.report import Estimate
    from nmoe_flower.study.comparisons import Comparison, Pair
    from nmoe_flower.study.curves import Curve, RoutingMap
    from nmoe_flower.study.figures import Figure, Panel, Point, Series
    from nmoe_flower.study.findings import Findings, findings_of, findings_to_json, read_findings
    from nmoe_flower.study.labels import Labels
    from nmoe_flower.study.markup import (
        FORMATS,
        Tabular,
        latex_text,
        table_to_csv,
        table_to_latex,
        table_to_markdown,
    )
    from nmoe_flower.study.publish import (
        kept_rounds,
        portable,
        publish_run,
        publish_study,
        small_picture,
    )
    from nmoe_flower.study.rows import Quantity, Row, RunOutcome
    from nmoe_flower.study.sweep import Candidate, Choice, SweepTable
    from nmoe_flower.study.tables import Cell, Column, Line, StudyTable
    from nmoe_flower.study.webpage import write_webpage
    from nmoe_flower.study.writing import (
        PICTURES,
        default_out,
        from_where,
        tables_by_name,
        write_findings,
    )

__all__ = [
    "FORMATS",
    "PICTURES",
    "ROW_METRICS",
    "Axis",
    "Candidate",
    "Cell",
    "Choice",
    "Column",
    "Comparison",
    "ComparisonSpec",
    "Coordinates",
    "Curve",
    "Estimate",
    "Figure",
    "FigureSpec",
    "Findings",
    "Labels",
    "Line",
    "Measurable",
    "Pair",
    "Panel",
    "PaperValue",
    "PlannedRun",
    "Point",
    "Quantity",
    "RoutingMap",
    "Row",
    "RunOutcome",
    "Series",
    "SharedStage",
    "Study",
    "StudyOutcome",
    "StudyPlan",
    "StudyRun",
    "StudyTable",
    "StudyTask",
    "StudyView",
    "SweepSpec",
    "SweepTable",
    "TableSpec",
    "Tabular",
    "Variant",
    "carry_out",
    "chosen",
    "default_out",
    "find_state",
    "findings_of",
    "findings_to_json",
    "from_where",
    "gates_of",
    "kept_rounds",
    "latex_text",
    "make_plan",
    "numbers_of",
    "portable",
    "publish_run",
    "publish_study",
    "read_findings",
    "run_study",
    "same",
    "selects",
    "small_picture",
    "table_to_csv",
    "table_to_latex",
    "table_to_markdown",
    "tables_by_name",
    "tests_of",
    "track_of",
    "write_findings",
    "write_webpage",
]

_OF_REPORTS = {
    "report": ("Estimate",),
    "study.comparisons": ("Comparison", "Pair"),
    "study.curves": ("Curve", "RoutingMap"),
    "study.figures": ("Figure", "Panel", "Point", "Series"),
    "study.findings": ("Findings", "findings_of", "findings_to_json", "read_findings"),
    "study.labels": ("Labels",),
    "study.markup": (
        "FORMATS",
        "Tabular",
        "latex_text",
        "table_to_csv",
        "table_to_latex",
        "table_to_markdown",
    ),
    "study.publish": ("kept_rounds", "portable", "publish_run", "publish_study", "small_picture"),
    "study.rows": ("Quantity", "Row", "RunOutcome"),
    "study.sweep": ("Candidate", "Choice", "SweepTable"),
    "study.tables": ("Cell", "Column", "Line", "StudyTable"),
    "study.webpage": ("write_webpage",),
    "study.writing": (
        "PICTURES",
        "default_out",
        "from_where",
        "tables_by_name",
        "write_findings",
    ),
}


def __getattr__(name: str) -> Any:
    for module, names in _OF_REPORTS.items():
        if name in names:
            return getattr(import_module(f"nmoe_flower.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
