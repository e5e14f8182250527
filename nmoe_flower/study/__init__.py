"""Studies: many runs from one file, and the tables and figures that come out of them.

What makes tables and figures is imported on first use, so that a plan of many runs stays quick.
"""

from typing import TYPE_CHECKING, Any

from nmoe_flower.on_demand import first_used
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

# Where each name is, as the imports above say it to type checkers and editors.
_HOMES = {
    "nmoe_flower.report": ("Estimate",),
    "nmoe_flower.study.comparisons": ("Comparison", "Pair"),
    "nmoe_flower.study.curves": ("Curve", "RoutingMap"),
    "nmoe_flower.study.figures": ("Figure", "Panel", "Point", "Series"),
    "nmoe_flower.study.findings": ("Findings", "findings_of", "findings_to_json", "read_findings"),
    "nmoe_flower.study.labels": ("Labels",),
    "nmoe_flower.study.markup": (
        "FORMATS",
        "Tabular",
        "latex_text",
        "table_to_csv",
        "table_to_latex",
        "table_to_markdown",
    ),
    "nmoe_flower.study.publish": (
        "kept_rounds",
        "portable",
        "publish_run",
        "publish_study",
        "small_picture",
    ),
    "nmoe_flower.study.rows": ("Quantity", "Row", "RunOutcome"),
    "nmoe_flower.study.sweep": ("Candidate", "Choice", "SweepTable"),
    "nmoe_flower.study.tables": ("Cell", "Column", "Line", "StudyTable"),
    "nmoe_flower.study.webpage": ("write_webpage",),
    "nmoe_flower.study.writing": (
        "PICTURES",
        "default_out",
        "from_where",
        "tables_by_name",
        "write_findings",
    ),
}


def __getattr__(name: str) -> Any:
    return first_used(__name__, name, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
