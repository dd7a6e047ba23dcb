"""The HTML pages of runs and comparisons: Jinja2 templates as strings.

They are Python text because an app bundle of Flower carries no HTML files.
"""

_MACROS = """\
{%- macro figure(svg, title, caption) -%}
{%- if svg -%}
<figure class="card"><figcaption><strong>{{ title }}</strong><span>{{ caption }}</span></figcaption>
<div class="scroll">{{ svg }}</div></figure>
{%- endif -%}
{%- endmacro -%}

{%- macro side(table, place) -%}
{%- if not table.numeric[place] %} class="left"{% endif -%}
{%- endmacro -%}

{%- macro number_table(table, label) -%}
<div class="card dense"><div class="scroll" tabindex="0" role="region"
 aria-label="{{ label }}">
<table>
<thead><tr>{% for name in table.columns %}
<th scope="col"{{ side(table, loop.index0) }}>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for row in table.texts %}
<tr><th scope="row">{{ row[0] }}</th>
{%- for cell in row[1:] %}<td{{ side(table, loop.index) }}>{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody>
</table></div></div>
{%- endmacro -%}

{%- macro reason_table(names, rows) -%}
<div class="card"><div class="scroll" tabindex="0" role="region" aria-label="Failures">
<table class="text{{ " failures" if names|length > 2 }}">
<thead><tr>{% for name in names %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for row in rows %}
<tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:-1] %}<td>{{ cell }}</td>{% endfor -%}
<td class="wide">{{ row[-1] }}</td></tr>
{%- endfor %}
</tbody>
</table></div></div>
{%- endmacro -%}

{%- macro settings(config) -%}
<dl class="settings">
{%- for key, value in config.items() %}
<div><dt><code>{{ key }}</code></dt><dd><code>{{ setting(value) }}</code></dd></div>
{%- endfor %}
</dl>
{%- endmacro -%}
"""

_HEADING = """\
<header>
<p class="eyebrow">{{ eyebrow }}</p>
<div class="heading"><h1>{{ headline }}</h1>
<span class="status {{ status_class }}">{{ status }}</span></div>
<p class="lead">{{ lead }}</p>
</header>
"""

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{%- block head %}
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
{%- endblock %}
<title>{{ title }}</title>
<style>{{ styles }}</style>
</head>
<body>
<main>
{% block main %}
{% include "heading" %}
{% block content %}{% endblock %}
{% endblock %}
</main>
{% block script %}{% endblock %}
</body>
</html>
"""

_RUN = """\
{% extends "page" %}
{% from "macros" import figure, reason_table, settings with context %}
{% block content %}
{%- macro change(before, after, name) -%}
{%- set old = value_of(before, name) -%}{%- set new = value_of(after, name) -%}
{%- if old is none and new is none -%}
<span class="from">–</span>
{%- elif old is none -%}
{{ share(new) }}
{%- else -%}
<span class="from">{{ share(old) }}</span><span class="arrow">→</span>{{ share(new) }}
{%- endif -%}
{%- endmacro -%}

{%- macro change_table(scope) -%}
<div class="scroll" tabindex="0" role="region" aria-label="{{ scope }} facts, figures per node">
<table>
<thead><tr><th scope="col">Node</th><th scope="col">Requests</th>
{%- for name in shares %}<th scope="col">{{ words(name)|capitalize }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for name, node in nodes %}
<tr><th scope="row" title="{{ name }}">{{ name }}</th>
<td>{{ at(node, scope).count if at(node, scope) else "–" }}</td>
{%- for share_name in shares %}
<td>{{ change(at(node.before, scope), at(node, scope), share_name) }}</td>
{%- endfor %}</tr>
{%- endfor %}
</tbody>
<tfoot><tr><th scope="row">Mean</th>
<td>{{ at(summary, scope).count if at(summary, scope) else "–" }}</td>
{%- for share_name in shares %}
<td>{{ change(at(summary.before, scope), at(summary, scope), share_name) }}</td>
{%- endfor %}</tr></tfoot>
</table>
</div>
{%- endmacro -%}

{%- macro neutral_row(title, neutral) -%}
<tr><th scope="row" title="{{ title }}">{{ title }}</th>
<td>{{ "%.4f"|format(neutral.kl) }}</td><td>{{ share(neutral.top10_overlap) }}</td>
<td><span class="from">{{ share(neutral.perplexity_before) }}</span><span class="arrow">→</span>
{{- share(neutral.perplexity_after) }}</td>
<td><span class="from">{{ share(neutral.cloze_before) }}</span><span class="arrow">→</span>
{{- share(neutral.cloze_after) }}</td></tr>
{%- endmacro -%}

{%- macro slot_row(title, record) -%}
<tr><th scope="row" title="{{ title }}">{{ title }}</th>
{{- cost_cells(record) }}</tr>
{%- endmacro -%}

{%- macro cost_heads() -%}
{%- for name in counts %}<th scope="col">{{ name|replace("_", " ")|capitalize }}</th>{% endfor %}
<th scope="col">Sent up</th><th scope="col">Sent down</th>
{%- for stage in stages %}<th scope="col">{{ stage_name(stage) }}</th>{% endfor %}
{%- endmacro -%}

{%- macro cost_cells(record) -%}
{%- for name in counts %}<td>{{ "{:,}".format(at(record, name)) }}</td>{% endfor %}
<td>{{ byte_size(record.bytes_up) }}</td>
<td>{{ byte_size(record.bytes_down) }}</td>
{%- for stage in stages %}<td>{{ duration(at(record.seconds, stage)) }}</td>{% endfor %}
{%- endmacro -%}


<dl class="tiles">
{%- for label, value, detail in tiles %}
<div><dt>{{ label }}</dt><dd>{{ value }}<small>{{ detail }}</small></dd></div>
{%- endfor %}
</dl>

<h2>Before and after</h2>
{%- if nodes %}
<p class="note">Each cell shows the share before the run and after it, from 0 to 1; more is better.
A dash means that nothing was measured. Means are taken over edit requests. {{ meaning }}</p>
<div class="card"><h3>Each node's own facts</h3>
{{ change_table("own") }}</div>
{%- if has_federation %}
<div class="card"><h3>The whole federation's facts</h3>
{{ change_table("federation") }}</div>
{%- if summary.received %}
<div class="card"><h3>Facts that nodes received from others</h3>
{{ change_table("received") }}</div>
{%- endif %}
{%- else %}
<p class="note">The federation's facts were not measured separately in this run. In a real
deployment no node sees the requests of another.</p>
{%- endif %}
{%- else %}
<p>No node finished, so there is nothing to compare.</p>
{%- endif %}

{%- if further %}
<div class="card"><h3>Further measures</h3>
{%- if "portability" in further or "reversal" in further %}
<p class="note">Portability: answers that follow from an edit, as shares of their tokens. Reversal:
facts the other way round.</p>
{%- endif %}
<div class="scroll" tabindex="0" role="region" aria-label="Further measures">
<table>
<thead><tr><th scope="col">Facts</th>
{%- for heading in further.values() %}<th scope="col">{{ heading }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for scope in scopes if at(summary, scope) %}
<tr><th scope="row">{{ scope|capitalize }}</th>
{%- for name in further %}
<td>{{ change(at(summary.before, scope), at(summary, scope), name) }}</td>
{%- endfor %}</tr>
{%- endfor %}
</tbody>
</table>
</div></div>
{%- endif %}
{%- if summary.neutral %}
<div class="card"><h3>Neutral text, which no edit should change</h3>
<div class="scroll" tabindex="0" role="region" aria-label="Neutral text per node">
<table>
<thead><tr><th scope="col">Node</th><th scope="col">KL</th><th scope="col">Top-10 overlap</th>
<th scope="col">Perplexity</th><th scope="col">Cloze</th></tr></thead>
<tbody>
{%- for name, node in nodes if node.neutral %}{{ neutral_row(name, node.neutral) }}{% endfor %}
</tbody>
<tfoot>{{ neutral_row("Mean", summary.neutral) }}</tfoot>
</table>
</div></div>
{%- endif %}

{%- if plots.score or plots.change %}
<div class="plots">
{{ figure(plots.score, "Score per slot", "Thick lines: mean. Thin lines: single nodes.") }}
{{ figure(plots.facts, "Score over facts",
          "A line a node: its score as facts come in, its own and those accepted from others.") }}
{{ figure(plots.change, "Score per node", "Grey: before the run. Colour: after it.") }}
</div>
{%- endif %}

{%- if worst %}

<h2>What {{ worst.node }} says worst</h2>
<p class="note">Holds texts of the requests of {{ worst.node }}, as no report of a run does by
itself: the page is for who may read them.</p>
{{ reason_table(worst.facts.columns, worst.facts.texts) }}
{%- endif %}

{%- if plots.exchange or rejections %}

<h2>Exchange between nodes</h2>
<div class="plots">
{{ figure(plots.exchange, "Who took knowledge from whom",
          "MKVs accepted, all slots together. The stronger the colour, the more. Beside them: own "
          ~ "requests that another node's MKV fulfils, keys learned together with others, and "
          ~ "conflicts that were left.") }}
{%- if rejections %}
<div class="card"><h3>Why offered MKVs were rejected</h3>
<table class="text"><thead><tr><th scope="col">Reason</th>
<th scope="col" class="number">MKVs</th></tr></thead>
<tbody>
{%- for reason, count in rejections %}
<tr><th scope="row">{{ reason }}</th><td class="number">{{ "{:,}".format(count) }}</td></tr>
{%- endfor %}
</tbody></table></div>
{%- endif %}
</div>
{%- endif %}

<h2>Slots and costs</h2>
{%- if slots %}
<div class="plots">
{{ figure(plots.cost, "Time and traffic", "Seconds by stage, all nodes together, and bytes.") }}
</div>
<div class="card dense">
<div class="scroll" tabindex="0" role="region" aria-label="Counts and times per slot">
<table>
<thead><tr><th scope="col">Slot</th>{{ cost_heads() }}</tr></thead>
<tbody>
{%- for slot in slots %}
{{ slot_row(slot.slot, slot) }}
{%- endfor %}
</tbody>
{%- if slots|length > 1 %}
<tfoot>
{{ slot_row("All", totals) }}
</tfoot>
{%- endif %}
</table>
</div>
{%- for slot in slots %}
<details><summary>Slot {{ slot.slot }}, node by node</summary>
<div class="scroll" tabindex="0" role="region" aria-label="Slot {{ slot.slot }} per node">
<table>
<thead><tr><th scope="col">Node</th>{{ cost_heads() }}
<th scope="col">Peak memory</th><th scope="col">Own score</th><th scope="col">Received score</th>
<th scope="col">Federation score</th></tr></thead>
<tbody>
{%- for name, node in slot.nodes|dictsort %}
<tr><th scope="row" title="{{ name }}">{{ name }}</th>
{{- cost_cells(node) }}
<td>{{ byte_size(node.peak_bytes) if node.peak_bytes else "–" }}</td>
<td>{{ share(value_of(node.own, "score")) }}</td>
<td>{{ share(value_of(node.received, "score")) }}</td>
<td>{{ share(value_of(node.federation, "score")) }}</td></tr>
{%- endfor %}
</tbody>
</table>
</div>
</details>
{%- endfor %}
</div>
{%- else %}
<p>The run ended before its first slot was complete.</p>
{%- endif %}

<h2>Failures</h2>
{%- if failures %}
{{ reason_table(["Node", "Slot", "Stage", "Reason"], failures) }}
{%- else %}
<p>No node failed.</p>
{%- endif %}

<h2>Model and settings</h2>
<div class="card"><dl class="terms">
<dt>Model</dt><dd>{{ model.name }}</dd>
<dt>Fingerprint</dt><dd><code>{{ model.fingerprint }}</code></dd>
<dt>Strategy</dt><dd>{{ strategy }}</dd>
<dt>Editor</dt><dd>{{ editor }}</dd>
<dt>Time</dt><dd>{{ times }}</dd>
</dl></div>
<div class="card"><h3>Run configuration</h3>
{{ settings(config) }}</div>

<h2>How to read this page</h2>
<div class="card"><dl class="terms">
<dt>Efficacy</dt><dd>Share of edited facts that the model now prefers over the old answer.</dd>
<dt>Paraphrase</dt><dd>The same for the fact put in other words.</dd>
<dt>Neighborhood</dt><dd>Share of similar but unrelated facts that stay as they were.</dd>
<dt>Score</dt><dd>Harmonic mean of the three: high only if all of them are.</dd>
<dt>Other relations</dt><dd>Share of prompts about an edited subject, but another relation, to which
the model answers as before the edits. It takes no part in the score.</dd>
<dt>Facts that share a subject</dt><dd>Facts that begin like another one up to the subject, so that
both have to live with one key. A fact holds if its new answer is the model's most likely one.</dd>
<dt>Accuracy</dt><dd>Share of edited facts whose new answer is the model's most likely one, word by
word.</dd>
<dt>Magnitude</dt><dd>How much more probable the new answer is than the old one; on the
neighborhood, the old one than the new one.</dd>
<dt>Exact match</dt><dd>Share of edited facts that the model says when it writes on by itself.</dd>
<dt>Entropy</dt><dd>How varied the text is that the model writes freely; a model that repeats itself
has little.</dd>
<dt>KL, top-10 overlap, perplexity</dt><dd>On text that has nothing to do with the edits: how far
the model's predictions moved (0: not at all), how many of its ten likeliest words stayed, and how
surprising it finds the text.</dd>
<dt>Cloze</dt><dd>Share of simple sentences of general knowledge that the model completes rightly,
of four ends each; 0.25 by chance.</dd>
<dt>Received facts</dt><dd>Edit requests of other nodes whose MKV the node has accepted.</dd>
<dt>Own facts</dt><dd>The edit requests of the node itself.</dd>
<dt>Federation's facts</dt><dd>The edit requests of all nodes, asked of one node's model.</dd>
<dt>Slot</dt><dd>One round: every node edits its new requests, then takes in MKVs of others.</dd>
<dt>MKV</dt><dd>Mediator knowledge vector: an edit as numbers, without its text. It is all that
nodes exchange.</dd>
<dt>Optimised, warm started, reused</dt><dd>Requests whose vector was computed, of these how many
from another one as a start, or taken over from another node.</dd>
<dt>Conflict</dt><dd>Two nodes want different answers to the same question; each keeps its own.</dd>
</dl></div>
{% endblock %}
"""

_COMPARISON = """\
{% extends "page" %}
{% from "macros" import figure, number_table, reason_table, settings with context %}
{% block content %}
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
{{ number_table(methods, "All methods") }}
{%- if failures %}
<h2>Runs that failed</h2>
{{ reason_table(["Run", "Reason"], failures) }}
{%- endif %}
<h2>Runs</h2>
{{ number_table(runs, "Runs") }}
<h2>What all runs have in common</h2>
<div class="card">{{ settings(config) }}</div>
{% endblock %}
"""

_NOW = """\
{% from "macros" import figure, number_table, reason_table with context %}
{% include "heading" %}
<dl class="tiles">
{%- for label, value, detail in tiles %}
<div><dt>{{ label }}</dt><dd>{{ value }}<small>{{ detail }}</small></dd></div>
{%- endfor %}
</dl>
{%- if nodes.rows %}
<h2>Nodes</h2>
{{ number_table(nodes, "Nodes") }}
{%- endif %}
{%- if failures %}
<h2>Failures</h2>
{{ reason_table(["Node", "Slot", "Stage", "Reason"], failures) }}
{%- endif %}
{%- if slots.rows %}
<h2>Slots</h2>
{{ number_table(slots, "Slots") }}
{%- endif %}
<div class="plots">
{{ figure(plots.score, "Score per slot", "Thick lines: mean. Thin lines: single nodes.") }}
</div>
"""

_LIVE = """\
{% extends "page" %}
{% block head %}
<meta http-equiv="Content-Security-Policy" content="default-src 'none';
 style-src 'unsafe-inline'; script-src 'nonce-{{ nonce }}'; connect-src 'self'">
{% endblock %}
{% block main %}{% include "now" %}{% endblock %}
{% block script %}
<script nonce="{{ nonce }}">
const main = document.querySelector("main");
async function look() {
  let answer;
  try {
    answer = await fetch("now", {cache: "no-store"});
  } catch {
    document.querySelector(".status").textContent = "fedit watch has ended";
    return;
  }
  if (answer.status === 205) return location.reload();
  if (answer.ok) main.innerHTML = await answer.text();
  setTimeout(look, {{ milliseconds }});
}
setTimeout(look, {{ milliseconds }});
</script>
{% endblock %}
"""

TEMPLATES = {
    "macros": _MACROS,
    "heading": _HEADING,
    "page": _PAGE,
    "run": _RUN,
    "comparison": _COMPARISON,
    "now": _NOW,
    "live": _LIVE,
}
"""Name -> template."""
