"""What a run leaves behind: results.json, metrics.jsonl, tables, plots and the HTML report.

The files are described in `docs/results.md`. Nothing here knows Flower or torch.
"""

from fedit_app.report.figures import mean_metrics, mean_neutral
from fedit_app.report.html import render_report, write_report
from fedit_app.report.results import SCHEMA, append_jsonl, load_results, write_results
from fedit_app.report.tables import runs_table, summary_table

__all__ = [
    "SCHEMA",
    "append_jsonl",
    "load_results",
    "mean_metrics",
    "mean_neutral",
    "render_report",
    "runs_table",
    "summary_table",
    "write_report",
    "write_results",
]
