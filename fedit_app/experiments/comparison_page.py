"""The HTML page of a comparison: one file that opens offline, without scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fedit_app.experiments.comparison_plots import axis_plot, method_plot, slots_plot
from fedit_app.experiments.comparison_tables import METRICS, methods_table
from fedit_app.experiments.summary import Record
from fedit_app.report.styles import STYLES
from fedit_app.report.template import FIGURE
from fedit_app.support.formats import duration, plural, printable

_MORE_STYLES = """
:root { --plot-1: #0072b2; --plot-2: #b34a00; --plot-3: #007a5a; --plot-4: #a3527f;
  --plot-5: #8a6d00; --plot-6: #3a8ebd; --plot-7: #59636e; }
@media screen and (prefers-color-scheme: dark) {
  :root { --plot-1: #56b4e9; --plot-2: #f0a04b; --plot-3: #4fc79f; --plot-4: #d895bb;
    --plot-5: #e3c34f; --plot-6: #8fc7ec; --plot-7: #9aa5b1; }
}
"""

_PAGE = (
    FIGURE
    + """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>FedEdit comparison: {{ model }}</title>
<style>{{ styles }}</style>
</head>
<body>
<main>
<header>
<p class="eyebrow">FedEdit comparison · {{ model }} · {{ data }}</p>
<div class="heading"><h1>{{ headline }}</h1>
<span class="status {{ status_class }}">{{ status }}</span></div>
<p class="lead">{{ lead }}</p>
</header>
<div class="plots">
{{ figure(plots.axis, "Score over " ~ axis, "Mean over seeds; bars: sample standard deviation.") }}
{{ figure(plots.method, "Score by method" ~ at_last,
          "On the federation's facts; mean over seeds, bars: sample standard deviation.") }}
{{ figure(plots.slots, "Score over slots" ~ at_last,
          "On the federation's facts so far, mean over seeds.") }}
</div>
<h2>All methods</h2>
<p class="note">Mean ± sample standard deviation over n seeds; shares from 0 to 1, on the
federation's facts unless the column says own. Of central: the score as a share of that of the
central run with the same editor and seed. x FedAvg: as a multiple of that of fedavg. v* computed:
optimisations that a run did itself; it found the others in the comparison's work-cache, or reused
an MKV.</p>
<div class="card dense"><div class="scroll" tabindex="0" role="region" aria-label="All methods">
<table>
<thead><tr>{% for name in headings %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for row in rows %}
<tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody>
</table></div></div>
{%- if failed %}
<h2>Runs that failed</h2>
<div class="card"><table class="text"><thead><tr><th scope="col">Run</th>
<th scope="col">Reason</th></tr></thead>
<tbody>
{%- for run in failed %}
<tr><th scope="row">{{ run.name }}</th><td class="wide">{{ run.reason }}</td></tr>
{%- endfor %}
</tbody></table></div>
{%- endif %}
<h2>Runs</h2>
<div class="card dense"><div class="scroll" tabindex="0" role="region" aria-label="Runs">
<table><thead><tr><th scope="col">Run</th><th scope="col">State</th><th scope="col">Time</th>
<th scope="col">Requests</th><th scope="col">Optimised</th><th scope="col">of them cached</th>
<th scope="col">Reused</th><th scope="col">Nodes failed</th></tr></thead>
<tbody>
{%- for run in runs %}
<tr><th scope="row">{{ run.name }}</th><td>{{ run.status }}</td>
{%- if run.costs %}<td>{{ duration(run.costs.seconds) }}</td><td>{{ run.costs.requests }}</td>
<td>{{ run.costs.optimised }}</td><td>{{ run.costs.cached }}</td><td>{{ run.costs.reused }}</td>
<td>{{ run.failed_nodes }}</td>
{%- else %}<td>–</td><td>–</td><td>–</td><td>–</td><td>–</td><td>–</td>{% endif %}</tr>
{%- endfor %}
</tbody></table></div></div>
<h2>What all runs have in common</h2>
<div class="card"><dl class="settings">
{%- for key, value in config %}
<div><dt><code>{{ key }}</code></dt><dd><code>{{ value }}</code></dd></div>
{%- endfor %}
</dl></div>
</main>
</body>
</html>
"""
)


def render_comparison(comparison: Record, metrics: Sequence[str] = METRICS) -> str:
    """A comparison as one HTML page; the same comparison gives the same text.

    Args:
        comparison: what `summarise` returns.
        metrics: columns of the table, see `methods_table`.

    Returns:
        A complete HTML document. It forbids scripts and loads nothing.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.globals.update(duration=duration)
    table = methods_table(comparison, metrics)
    config, axis, runs = comparison["config"], comparison["axis"], comparison["runs"]
    done = sum(run["status"] == "completed" for run in runs)
    failed = [run for run in runs if run["status"] == "failed"]
    plots = {"axis": axis_plot, "method": method_plot, "slots": slots_plot}
    return environment.from_string(_PAGE).render(
        styles=Markup(STYLES + _MORE_STYLES),
        model=config["model"],
        data=f"{config['dataset']}, partition {config['partition']}",
        headline=_headline(comparison),
        status="Complete" if done == len(runs) else f"{done} of {plural(len(runs), 'run')}",
        status_class="bad" if failed else "good" if done == len(runs) else "mixed",
        lead=_lead(comparison),
        headings=table.columns,
        rows=table.texts,
        axis=axis["key"] if axis else "",
        at_last=f", {axis['key']} = {axis['values'][-1]}" if axis else "",
        runs=runs,
        failed=[{**run, "reason": printable(run["reason"])} for run in failed],
        config=[(key, _setting(value)) for key, value in sorted(config.items())],
        # The drawings escape their own text; everything else is escaped here.
        plots={name: Markup(plot(comparison)) for name, plot in plots.items()},
    )


def _headline(comparison: Record) -> str:
    axis = comparison["axis"]
    methods = len(comparison["strategies"]) * len(comparison["editors"])
    if axis:
        return f"{plural(methods, 'method')} over {axis['key']}"
    return plural(methods, "method")


def _lead(comparison: Record) -> str:
    config, seeds = comparison["config"], comparison["seeds"]
    nodes = comparison["nodes"]
    who = plural(nodes, "node") if nodes else "Nodes"
    requests = config["requests-per-slot"]
    each = plural(requests, "request") if requests else "their requests"
    return (
        f"{who} edit {each} a slot in {plural(config['num-slots'], 'slot')}, with "
        f"{plural(len(seeds), 'seed')} ({', '.join(map(str, seeds))})."
    )


def _setting(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
