"""The frame of a page with plots: its look on light and dark screens, phones and paper, and what its plots share."""

from __future__ import annotations

from mergefront.formatting import html_text

STYLE = """
:root { color-scheme: light dark; --ink: #212529; --page: #ffffff; --faint: #5c636a; --panel: #f1f3f5; --line: #d0d5da;
  --bar: #0072b2; --bad: #a8262f; --warn: #fff3cd; --link: #005f96; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --page: #15181c; --faint: #a3abb3;
  --panel: #22272d; --line: #3a4149; --bar: #56b4e9; --bad: #ff8d93; --warn: #463a10; --link: #6cbcf0; } }
body { font-family: system-ui, sans-serif; line-height: 1.45; margin: 1.5rem auto; padding: 0 1rem; max-width: 1200px;
  color: var(--ink); background: var(--page); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; font-size: 0.9rem; } a { color: var(--link); }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
td, th { padding: 0.3rem 0.7rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { background: var(--panel); } tr.winner { font-weight: 700; }
td.share { white-space: nowrap; padding-bottom: 0.55rem;
  background: linear-gradient(var(--bar), var(--bar)) 0.7rem calc(100% - 3px) / calc((100% - 1.4rem) * var(--share)) 4px
  no-repeat; }
.wide { overflow-x: auto; } .many { min-width: 44rem; } small { color: var(--faint); font-weight: 400; }
pre { background: var(--panel); padding: 0.7rem; overflow-x: auto; }
code { overflow-wrap: anywhere; } img { background: #fff; max-width: 100%; }
.verdict { font-size: 1.05rem; padding: 0.7rem; border-left: 4px solid var(--line); background: var(--panel); }
.worse { color: var(--bad); } .beats { border-color: #009e73; } .line { margin: 0.15rem 0; }
.warning { padding: 0.6rem; background: var(--warn); border-left: 4px solid #e69f00; }
details { margin: 0.4rem 0; } summary { cursor: pointer; }
.button { display: inline-block; margin: 0.4rem 0; padding: 0.2rem 0.8rem; border: 1px solid var(--line);
  border-radius: 0.4rem; text-decoration: none; background: var(--panel); }
@media (max-width: 600px) { td small { display: block; } td, th { padding: 0.3rem 0.45rem; }
  td:nth-child(n+3) { white-space: nowrap; } }
@media print { @page { margin: 12mm; } nav, .button, .modebar, .screen { display: none !important; }
  body { margin: 0; padding: 0; max-width: none; font-size: 0.8rem; } h2 { margin-top: 1.1rem; break-after: avoid; }
  p { margin: 0.4rem 0; } .verdict { font-size: inherit; padding: 0.4rem; print-color-adjust: exact; }
  .wide { overflow: visible; } .many { min-width: 0; } table { font-size: 0.58rem; }
  td, th { padding: 0.1rem 0.3rem; } td.share, th { print-color-adjust: exact; } td.share { padding-bottom: 0.45rem; }
  td:nth-child(n+3) { white-space: nowrap; } tr, .plotly-graph-div { break-inside: avoid; }
  .picture summary { display: none; } .picture img { max-height: var(--tall); }
  #recipes { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 0 0.6rem; }
  #recipes h2 { grid-column: 1 / -1; }
  #recipes details { break-inside: avoid; font-size: 0.65rem; margin: 0 0 0.6rem; }
  #recipes pre { margin: 0.2rem 0; padding: 0.3rem; font-size: 0.55rem; white-space: pre-wrap;
    overflow-wrap: anywhere; } }
"""

SCRIPT = """
const plots = [...document.querySelectorAll('.plotly-graph-div')];
const dark = matchMedia('(prefers-color-scheme: dark)');
function paint(onPaper) {
  const night = dark.matches && !onPaper, line = night ? '#4b545d' : '#adb5bd', grid = night ? '#2c333a' : '#e9ecef';
  const clear = 'rgba(0,0,0,0)', ink = night ? '#e4e7eb' : '#212529';
  for (const plot of plots) {
    const look = {'font.color': ink, paper_bgcolor: clear, plot_bgcolor: clear, 'modebar.bgcolor': clear};
    look['modebar.color'] = '#868e96';
    for (const axis of Object.keys(plot.layout).filter(key => /^[xy]axis/.test(key)))
      Object.assign(look, {[axis + '.gridcolor']: grid, [axis + '.linecolor']: line, [axis + '.tickcolor']: line});
    Plotly.relayout(plot, look);
  }
}
paint(false);
dark.addEventListener('change', () => paint(false));
addEventListener('afterprint', () => paint(false));
addEventListener('beforeprint', () => {
  paint(true);
  document.querySelectorAll('details').forEach(one => one.open = true);
});

// What is selected in one panel, or along one axis, is shown in all of them; trials are told apart by their numbers.
const pairs = plots.find(plot => plot.layout.dragmode === 'select');
const lines = plots.find(plot => plot.data[0].type === 'parcoords');
function brush(chosen, recolour) {
  const places = pairs.data.map(trace => chosen && trace.customdata.flatMap((n, k) => chosen.has(n) ? [k] : []));
  Plotly.restyle(pairs, {selectedpoints: places});
  if (recolour) {
    const {kinds, trials} = lines.layout.meta;
    Plotly.restyle(lines, {'line.color': [kinds.map((kind, k) => !chosen || chosen.has(trials[k]) ? kind : 0)]});
  }
}
function within(value, range) {
  return range[0].length ? range.some(part => within(value, part)) : range[0] <= value && value <= range[1];
}
if (pairs && lines) {
  pairs.on('plotly_selected', event => brush(event && new Set(event.points.map(point => point.customdata)), true));
  pairs.on('plotly_deselect', () => brush(null, true));
  lines.on('plotly_restyle', event => {
    if (!Object.keys(event[0]).some(key => key.includes('constraintrange'))) return;
    const bounded = lines.data[0].dimensions.filter(axis => axis.constraintrange);
    const kept = lines.layout.meta.trials.filter((_, k) =>
      bounded.every(axis => within(axis.values[k], axis.constraintrange)));
    brush(bounded.length ? new Set(kept) : null, false);
  });
}
"""


def web_page(title: str, body: str) -> str:
    """A page that needs nothing else; ``body`` holds the plots, and plotly with the first."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html_text(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n<script>{SCRIPT}</script>\n</body></html>\n"
    )
