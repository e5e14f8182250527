"""Studies: many runs from one file, and the tables and figures that come out of them."""

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
from nmoe_flower.study.product import Axis, Coordinates, StudyRun, Variant, same, selects

__all__ = [
    "ROW_METRICS",
    "Axis",
    "ComparisonSpec",
    "Coordinates",
    "FigureSpec",
    "Measurable",
    "PaperValue",
    "Study",
    "StudyRun",
    "SweepSpec",
    "TableSpec",
    "Variant",
    "gates_of",
    "numbers_of",
    "same",
    "selects",
    "tests_of",
]
