"""Reports as HTML: one page each, which loads nothing from elsewhere."""

from nmoe_flower.report.html.of_runs import write_page

__all__ = ["write_page"]
