"""Studies: many runs from one file, and the tables and figures that come out of them.

What makes tables and figures is imported on first use, so that a plan of many runs stays quick.
"""

from typing import TYPE_CHECKING, Any

from nmoe_flower.on_demand import first_used
from nmoe_flower.study.file import Study
from nmoe_flower.study.measured import ROW_METRICS, gates_of, numbers_of, tests_of
from nmoe_flower.study.one import StudyTask, carry_out, track_of
from nmoe_flower.study.plan import chosen, make_plan
from nmoe_flower.study.product import Axis, StudyRun, Variant
from nmoe_flower.study.run import StudyOutcome, StudyView, run_study

if TYPE_CHECKING:
    from nmoe_flower.study.findings import Findings, findings_of, findings_to_json, read_findings
    from nmoe_flower.study.markup import FORMATS, Tabular, table_to_markdown
    from nmoe_flower.study.publish import (
        PUBLISHED_DOTS,
        kept_rounds,
        publish_run,
        publish_study,
        small_figures,
        small_picture,
    )
    from nmoe_flower.study.rows import Quantity
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
    "PUBLISHED_DOTS",
    "ROW_METRICS",
    "Axis",
    "Findings",
    "Quantity",
    "Study",
    "StudyOutcome",
    "StudyRun",
    "StudyTask",
    "StudyView",
    "Tabular",
    "Variant",
    "carry_out",
    "chosen",
    "default_out",
    "findings_of",
    "findings_to_json",
    "from_where",
    "gates_of",
    "kept_rounds",
    "make_plan",
    "numbers_of",
    "publish_run",
    "publish_study",
    "read_findings",
    "run_study",
    "small_figures",
    "small_picture",
    "table_to_markdown",
    "tables_by_name",
    "tests_of",
    "track_of",
    "write_findings",
    "write_webpage",
]

# Where each name is, as the imports above say it to type checkers and editors.
_HOMES = {
    "nmoe_flower.study.findings": ("Findings", "findings_of", "findings_to_json", "read_findings"),
    "nmoe_flower.study.markup": (
        "FORMATS",
        "Tabular",
        "table_to_markdown",
    ),
    "nmoe_flower.study.publish": (
        "PUBLISHED_DOTS",
        "kept_rounds",
        "publish_run",
        "publish_study",
        "small_figures",
        "small_picture",
    ),
    "nmoe_flower.study.rows": ("Quantity",),
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
