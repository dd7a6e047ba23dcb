"""The HTML report's page: a Jinja2 template as a string, its styles and its layout.

It is Python text because an app bundle of Flower carries no .j2 files.
"""

STYLES = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1c2128; --muted: #57606a; --line: #d9dee4;
  --shade: #1c212833;
  --good: #0b6b3a; --good-soft: #dff3e6; --bad: #a3261b; --bad-soft: #fde7e4;
  --mixed: #7a4b00; --mixed-soft: #fdf0d5;
  --plot-ink: var(--ink); --plot-muted: var(--muted); --plot-grid: var(--line);
  --plot-own: #0072b2; --plot-federation: #b34a00; --plot-heat: #56b4e9; --plot-before: #aeb7c1;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #0f1318; --card: #171c23; --ink: #e4e9ef; --muted: #9aa5b1; --line: #2d353f;
    --shade: #000000b0;
    --good: #6fd39a; --good-soft: #12301f; --bad: #ff9a8d; --bad-soft: #3a1b18;
    --mixed: #f2bd62; --mixed-soft: #33260f;
    --plot-own: #56b4e9; --plot-federation: #f0a04b; --plot-heat: #0f6fae; --plot-before: #5b6672;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 72rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -.015em; margin: 0; text-wrap: balance; }
h2 { font-size: 1.2rem; letter-spacing: -.005em; margin: 3rem 0 .35rem; }
h3 { font-size: 1rem; margin: 0 0 .6rem; }
p { margin: 0 0 .9rem; max-width: 46rem; text-wrap: pretty; }
.eyebrow { color: var(--muted); font-size: .9rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
.heading { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem 1rem; }
.status { font-size: .85rem; font-weight: 600; border: 1px solid currentColor;
  border-radius: 99px; padding: .1rem .7rem; }
.status.good { color: var(--good); background: var(--good-soft); }
.status.mixed { color: var(--mixed); background: var(--mixed-soft); }
.status.bad { color: var(--bad); background: var(--bad-soft); }
.lead { font-size: 1.08rem; margin: 1.1rem 0 1.6rem; max-width: 48rem; overflow-wrap: anywhere; }
.note { color: var(--muted); font-size: .92rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 1.1rem 1.25rem; margin: 1rem 0; }
.tiles { display: grid; gap: 1px; grid-template-columns: repeat(3, 1fr);
  background: var(--line); border: 1px solid var(--line); border-radius: 12px; overflow: hidden;
  margin: 0; }
.tiles div { background: var(--card); padding: 1rem 1.25rem; }
.tiles dt { color: var(--muted); font-size: .88rem; }
.tiles dd { margin: .1rem 0 0; font-size: 1.65rem; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; letter-spacing: -.01em; }
.tiles dd small { display: block; font-size: .85rem; font-weight: 400; color: var(--muted);
  letter-spacing: 0; }
/* A shadow on the right edge while there is more to scroll to; the first gradient covers it. */
.scroll { overflow-x: auto; background:
  linear-gradient(to left, var(--card) 40%, transparent) right / 2.5rem 100% no-repeat local,
  linear-gradient(to left, var(--shade), transparent) right / .9rem 100% no-repeat scroll; }
.dense table { font-size: .87rem; }
.dense thead th { font-size: .82rem; }
.dense th, .dense td { padding-left: .3rem; padding-right: .3rem; }
.scroll:focus-visible { outline: 2px solid var(--plot-own); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .93rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); font-weight: 500; font-size: .86rem; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
tbody th { font-weight: 550; }
tbody tr:last-child > *, tfoot tr:last-child > * { border-bottom: 0; }
tfoot th, tfoot td { border-top: 2px solid var(--line); font-weight: 650; }
tbody + tfoot tr:first-child > * { border-top: 2px solid var(--line); }
.scroll th:first-child { position: sticky; left: 0; background: var(--card); }
.from { color: var(--muted); font-weight: 400; }
.arrow { color: var(--muted); padding: 0 .3em; font-weight: 400; }
.text td, .text th { text-align: left; white-space: normal; vertical-align: top; }
.text .wide, .text tbody th { overflow-wrap: anywhere; }
.text tbody th { min-width: 8rem; }
.text .wide { min-width: 15rem; width: 60%; }
.text .number { text-align: right; width: 4rem; }
.plots { display: grid; gap: 1rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(27rem, 100%), 1fr)); align-items: start; }
.plots > .card { margin: 0; min-width: 0; }
figcaption { margin-bottom: .6rem; }
figcaption strong { display: block; }
figcaption span { color: var(--muted); font-size: .9rem; }
svg { display: block; height: auto; }
details { border-top: 1px solid var(--line); padding: .6rem 0; }
details:first-of-type { margin-top: .8rem; }
summary { cursor: pointer; font-weight: 550; }
details .scroll { margin: .5rem 0; }
dl.terms { display: grid; grid-template-columns: max-content 1fr; gap: .5rem 1.25rem; margin: 0;
  font-size: .95rem; }
dl.terms dt { font-weight: 550; }
dl.terms dd { margin: 0; color: var(--muted); overflow-wrap: anywhere; }
code { font: .88em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
.settings { columns: 2 20rem; column-gap: 2.5rem; margin: 0; }
.settings div { display: flex; gap: 1rem; justify-content: space-between; break-inside: avoid;
  border-bottom: 1px solid var(--line); padding: .3rem 0; }
.settings dt { white-space: nowrap; color: var(--muted); }
.settings dd { margin: 0; text-align: right; }
@media (max-width: 40rem) {
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.55rem; }
  h2 { margin-top: 2.25rem; }
  .card { padding: 1rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tiles div { padding: .8rem 1rem; }
  .tiles dd { font-size: 1.3rem; }
  dl.terms { grid-template-columns: 1fr; gap: 0; }
  dl.terms dd { margin-bottom: .6rem; }
  th, td { padding: .4rem .5rem; }
  .failures tr { display: grid; grid-template-columns: 1fr 3rem 5rem;
    border-bottom: 1px solid var(--line); }
  .failures tbody tr:last-child { border-bottom: 0; }
  .failures tr > * { border-bottom: 0; }
  .failures tr > :last-child { grid-column: 1 / -1; width: auto; min-width: 0; padding-left: 0;
    padding-top: 0; }
  .scroll th:first-child { max-width: 8.5rem; overflow: hidden; text-overflow: ellipsis; }
}
@media print {
  :root { color-scheme: light; }
  body { background: none; font-size: 10pt; }
  main { max-width: none; padding: 0; }
  .card, tr, figure { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""

PAGE = """\
{%- macro change(before, after, name) -%}
{%- set old = value_of(before, name) -%}{%- set new = value_of(after, name) -%}
{%- if old is none and new is none -%}
<span class="from">–</span>
{%- else -%}
<span class="from">{{ share(old) }}</span><span class="arrow">→</span>{{ share(new) }}
{%- endif -%}
{%- endmacro -%}

{%- macro change_table(scope) -%}
<div class="scroll" tabindex="0" role="region" aria-label="{{ scope }} facts, figures per node">
<table>
<thead><tr><th scope="col">Node</th><th scope="col">Requests</th>
{%- for name in shares %}<th scope="col">{{ name|capitalize }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for name, node in nodes %}
<tr><th scope="row" title="{{ name }}">{{ name }}</th>
<td>{{ node[scope].count if node[scope] else "–" }}</td>
{%- for share_name in shares %}<td>{{ change(node.before[scope], node[scope], share_name) }}</td>
{%- endfor %}</tr>
{%- endfor %}
</tbody>
<tfoot><tr><th scope="row">Mean</th>
<td>{{ summary[scope].count if summary[scope] else "–" }}</td>
{%- for share_name in shares %}
<td>{{ change(summary.before[scope], summary[scope], share_name) }}</td>
{%- endfor %}</tr></tfoot>
</table>
</div>
{%- endmacro -%}

{%- macro slot_row(title, record, seconds) -%}
<tr><th scope="row" title="{{ title }}">{{ title }}</th>
{%- for name in counts %}<td>{{ "{:,}".format(record[name]) }}</td>{% endfor %}
<td>{{ byte_size(record.bytes_up) }}</td><td>{{ byte_size(record.bytes_down) }}</td>
{%- for stage in stages %}<td>{{ duration(seconds[stage]) }}</td>{% endfor %}</tr>
{%- endmacro -%}

{%- macro figure(svg, title, caption) -%}
{%- if svg -%}
<figure class="card"><figcaption><strong>{{ title }}</strong><span>{{ caption }}</span></figcaption>
<div class="scroll">{{ svg }}</div></figure>
{%- endif -%}
{%- endmacro -%}

<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>FedEdit run: {{ strategy }} on {{ model.name }}</title>
<style>{{ styles }}</style>
</head>
<body>
<main>
<header>
<p class="eyebrow">FedEdit run report · {{ strategy }} · {{ editor }} · {{ model.name }}</p>
<div class="heading"><h1>{{ headline }}</h1>
<span class="status {{ status_class }}">{{ status_text }}</span></div>
<p class="lead">{{ lead }}</p>
</header>

<dl class="tiles">
{%- for tile in tiles %}
<div><dt>{{ tile.label }}</dt><dd>{{ tile.value }}<small>{{ tile.detail }}</small></dd></div>
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
{%- else %}
<p class="note">The federation's facts were not measured separately in this run. In a real
deployment no node sees the requests of another.</p>
{%- endif %}
{%- else %}
<p>No node finished, so there is nothing to compare.</p>
{%- endif %}

{%- if plots.score or plots.change %}
<div class="plots">
{{ figure(plots.score, "Score per slot", "Thick lines: mean. Thin lines: single nodes.") }}
{{ figure(plots.change, "Score per node", "Grey: before the run. Colour: after it.") }}
</div>
{%- endif %}

{%- if plots.exchange or rejections %}

<h2>Exchange between nodes</h2>
<div class="plots">
{{ figure(plots.exchange, "Who took knowledge from whom",
          "MKVs accepted, all slots together. The stronger the colour, the more.") }}
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

{%- if privacy %}

<h2>Privacy</h2>
<div class="card"><p>With the noise in its uploads (&delta; = {{ privacy.delta }}) one MKV is
{{ "{:.4g}".format(privacy.epsilon_per_mkv) }}-differentially private. All of a node's together:</p>
<table class="text"><thead><tr><th scope="col">Node</th>
<th scope="col" class="number">&epsilon;</th></tr></thead>
<tbody>
{%- for node, value in privacy.epsilon.items() %}
<tr><th scope="row">{{ node }}</th><td class="number">{{ "{:.4g}".format(value) }}</td></tr>
{%- endfor %}
</tbody></table></div>
{%- endif %}

<h2>Slots</h2>
{%- if slots %}
<div class="card dense">
<div class="scroll" tabindex="0" role="region" aria-label="Counts and times per slot">
<table>
<thead><tr><th scope="col">Slot</th>
{%- for name in counts %}<th scope="col">{{ name|capitalize }}</th>{% endfor %}
<th scope="col">Sent up</th><th scope="col">Sent down</th>
<th scope="col">Edit</th><th scope="col">Re-edit</th><th scope="col">Evaluate</th></tr></thead>
<tbody>
{%- for slot in slots %}
{{ slot_row(slot.slot, slot, slot.seconds) }}
{%- endfor %}
</tbody>
{%- if slots|length > 1 %}
<tfoot>
{{ slot_row("All", totals, totals.seconds) }}
</tfoot>
{%- endif %}
</table>
</div>
{%- for slot in slots %}
<details><summary>Slot {{ slot.slot }}, node by node</summary>
<div class="scroll" tabindex="0" role="region" aria-label="Slot {{ slot.slot }} per node">
<table>
<thead><tr><th scope="col">Node</th>
{%- for name in counts %}<th scope="col">{{ name|capitalize }}</th>{% endfor %}
<th scope="col">Own score</th><th scope="col">Federation score</th></tr></thead>
<tbody>
{%- for name, node in slot.nodes|dictsort %}
<tr><th scope="row" title="{{ name }}">{{ name }}</th>
{%- for count in counts %}<td>{{ "{:,}".format(node[count]) }}</td>{% endfor %}
<td>{{ share(value_of(node.own, "score")) }}</td>
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
{%- if failed_nodes %}
<div class="card"><div class="scroll" tabindex="0" role="region" aria-label="Failed nodes">
<table class="text failures">
<thead><tr><th scope="col">Node</th><th scope="col">Slot</th><th scope="col">Stage</th>
<th scope="col">Reason</th></tr></thead>
<tbody>
{%- for failure in failed_nodes %}
<tr><th scope="row">{{ failure.node }}</th><td>{{ failure.slot or "–" }}</td>
<td>{{ failure.stage }}</td><td class="wide">{{ failure.reason }}</td></tr>
{%- endfor %}
</tbody>
</table></div></div>
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
<dl class="settings">
{%- for key, value in config %}
<div><dt><code>{{ key }}</code></dt><dd><code>{{ value }}</code></dd></div>
{%- endfor %}
</dl></div>

<h2>How to read this page</h2>
<div class="card"><dl class="terms">
<dt>Efficacy</dt><dd>Share of edited facts that the model now prefers over the old answer.</dd>
<dt>Paraphrase</dt><dd>The same for the fact put in other words.</dd>
<dt>Neighborhood</dt><dd>Share of similar but unrelated facts that stay as they were.</dd>
<dt>Score</dt><dd>Harmonic mean of the three: high only if all of them are.</dd>
<dt>Accuracy</dt><dd>Share of edited facts whose new answer is the model's most likely one, word by
word.</dd>
<dt>Own facts</dt><dd>The edit requests of the node itself.</dd>
<dt>Federation's facts</dt><dd>The edit requests of all nodes, asked of one node's model.</dd>
<dt>Slot</dt><dd>One round: every node edits its new requests, then takes in MKVs of others.</dd>
<dt>MKV</dt><dd>Mediator knowledge vector: an edit as numbers, without its text. It is all that
nodes exchange.</dd>
<dt>Optimised, reused</dt><dd>Requests whose vector was computed, or taken over from another
node.</dd>
<dt>Conflict</dt><dd>Two nodes want different answers to the same question; each keeps its own.</dd>
</dl></div>
</main>
</body>
</html>
"""
