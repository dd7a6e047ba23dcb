"""The styles of the HTML pages."""

STYLES = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1c2128; --muted: #57606a; --line: #d9dee4;
  --shade: #1c212833;
  --good: #0b6b3a; --good-soft: #dff3e6; --bad: #a3261b; --bad-soft: #fde7e4;
  --mixed: #7a4b00; --mixed-soft: #fdf0d5;
  --plot-ink: var(--ink); --plot-muted: var(--muted); --plot-grid: var(--line);
  --plot-own: #0072b2; --plot-federation: #b34a00; --plot-heat: #56b4e9; --plot-before: #aeb7c1;
  --plot-1: #0072b2; --plot-2: #b34a00; --plot-3: #007a5a; --plot-4: #a3527f;
  --plot-5: #8a6d00; --plot-6: #3a8ebd; --plot-7: #59636e;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #0f1318; --card: #171c23; --ink: #e4e9ef; --muted: #9aa5b1; --line: #2d353f;
    --shade: #000000b0;
    --good: #6fd39a; --good-soft: #12301f; --bad: #ff9a8d; --bad-soft: #3a1b18;
    --mixed: #f2bd62; --mixed-soft: #33260f;
    --plot-own: #56b4e9; --plot-federation: #f0a04b; --plot-heat: #0f6fae; --plot-before: #5b6672;
    --plot-1: #56b4e9; --plot-2: #f0a04b; --plot-3: #4fc79f; --plot-4: #d895bb;
    --plot-5: #e3c34f; --plot-6: #8fc7ec; --plot-7: #9aa5b1;
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
th.left, td.left { text-align: left; }
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
