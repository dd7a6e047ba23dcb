"""What runs and comparisons leave behind: JSON files, tables, plots and HTML pages.

The files are described in `docs/results.md` and `docs/compare.md`. This package imports neither
Flower nor torch.
"""

from fedit_app.report.comparison import Comparison
from fedit_app.report.html import WorstOf, render_comparison, render_report, write_report
from fedit_app.report.results import Results, load_results, write_results
from fedit_app.report.tables import methods_table, runs_table, summary_table

__all__ = [
    "Comparison",
    "Results",
    "WorstOf",
    "load_results",
    "methods_table",
    "render_comparison",
    "render_report",
    "runs_table",
    "summary_table",
    "write_report",
    "write_results",
]
