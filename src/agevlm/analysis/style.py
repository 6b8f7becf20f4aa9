"""The style sheet of the report: light and dark by the reader's setting, and fit for paper."""

CSS = """
:root {
  color-scheme: light dark;
  --ground: #fbfbfa; --sheet: #ffffff; --ink: #1d2129; --faint: #626b78; --line: #e3e6ea; --shade: #f3f4f6;
  --accent: #1f5fbf; --good: #1c7c4a; --good-ground: #e4f4ea; --bad: #b3261e; --bad-ground: #fbe9e7;
  --note: #7a4d00; --note-ground: #fff4dc;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0f1216; --sheet: #171b21; --ink: #e8eaed; --faint: #9aa3ae; --line: #2b323b; --shade: #1f252d;
    --accent: #7fb2ff; --good: #6fd39a; --good-ground: #15301f; --bad: #ff9a8f; --bad-ground: #3a1a18;
    --note: #ffd17a; --note-ground: #33270d;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5;

    font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 56px 28px 80px; }
h1 { font-size: 2.5rem; line-height: 1.1; letter-spacing: -.025em; margin: .15em 0 .35em; overflow-wrap: anywhere; }
h2 { font-size: 1.45rem; letter-spacing: -.015em; margin: 64px 0 6px; }
h3 { font-size: 1.02rem; margin: 30px 0 10px; }
p { margin: .4em 0 1em; max-width: 46rem; }
.eyebrow { color: var(--accent); font-weight: 650; font-size: .8rem; letter-spacing: .09em;
  text-transform: uppercase; margin: 0; }
.verdict { font-size: 1.22rem; line-height: 1.45; max-width: 50rem; margin: 0 0 .7em; }
header p { max-width: none; }
.verdict strong { font-weight: 680; }
.faint, .intro { color: var(--faint); }
.intro { margin-bottom: 18px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; margin-top: 18px; font-size: .92rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 14px; margin: 34px 0 0; }
.tile { background: var(--sheet); border: 1px solid var(--line); border-radius: 12px; padding: 15px 18px 14px; }
.tile .label { color: var(--faint); font-size: .84rem; }
.tile .value { font-size: 1.95rem; font-weight: 680; letter-spacing: -.03em; line-height: 1.2;
  font-variant-numeric: tabular-nums; }
.tile .value small { font-size: .55em; font-weight: 500; color: var(--faint); letter-spacing: 0; }
.tile .under { color: var(--faint); font-size: .78rem; font-variant-numeric: tabular-nums; }
.tile .bar { height: 4px; border-radius: 2px; background: var(--shade); margin: 7px 0 6px; overflow: hidden; }
.tile .bar i { display: block; height: 100%; background: var(--accent); border-radius: 2px; }
.tile.first { border-color: var(--accent); box-shadow: inset 0 0 0 1px var(--accent); }
.sheet { background: var(--sheet); border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px;
  margin: 0 0 18px; }
.chart img { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 650; padding: 0 0 8px; }
th, td { padding: 8px 10px; border-top: 1px solid var(--line); text-align: right; white-space: nowrap;
  vertical-align: baseline; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
td.wrap { white-space: normal; }
thead th { border-top: 0; color: var(--faint); font-weight: 500; font-size: .84rem; vertical-align: bottom; }
tbody th { font-weight: 500; white-space: normal; }
td small, th small { color: var(--faint); font-weight: 400; }
.modules { display: flex; flex-wrap: wrap; gap: 4px; }
.stages th:last-child, .stages td:last-child { text-align: left; padding-left: 28px; white-space: normal; }
.chip { background: var(--shade); border-radius: 6px; padding: 1px 7px; font-size: .82rem; }
.chip b { font-weight: 600; }
.note { background: var(--note-ground); color: var(--note); border-radius: 10px; padding: 11px 16px;
  margin: 18px 0; font-size: .93rem; }
.note ul { margin: .2em 0; padding-left: 1.2em; }
.count { color: var(--faint); font-weight: 400; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 16px; align-items: start; }
.card { background: var(--sheet); border: 1px solid var(--line); border-radius: 12px; padding: 13px 14px 12px; }
.card header { display: flex; flex-wrap: wrap; gap: 4px 9px; align-items: center; margin-bottom: 10px;
  font-size: .82rem; }
.badge { border-radius: 99px; padding: 1px 9px; font-weight: 620; background: var(--shade); }
.badge.right { color: var(--good); background: var(--good-ground); }
.badge.wrong { color: var(--bad); background: var(--bad-ground); }
.kind { color: var(--faint); }
.reason { color: var(--note); background: var(--note-ground); border-radius: 99px; padding: 1px 9px; }
.panels { display: grid; grid-template-columns: repeat(2, 1fr); gap: 9px; }
.panels.three { grid-template-columns: repeat(3, 1fr); }
figure { margin: 0; }
.frame { position: relative; line-height: 0; border-radius: 7px; overflow: hidden; background: var(--shade); }
.frame img { width: 100%; height: auto; }
.cross { position: absolute; width: 15px; height: 15px; margin: -7.5px 0 0 -7.5px;
  filter: drop-shadow(0 0 1.5px #fff) drop-shadow(0 0 1px #fff);
  background: linear-gradient(#000, #000) 50% / 15px 2px no-repeat,
    linear-gradient(#000, #000) 50% / 2px 15px no-repeat; }
figcaption { font-size: .8rem; line-height: 1.35; margin-top: 5px; }
figcaption small { color: var(--faint); font-size: .92em; }
mark { color: inherit; background: color-mix(in srgb, var(--c) 20%, transparent); border-bottom: 2px solid var(--c);
  border-radius: 3px 3px 0 0; padding: 0 2px; font-weight: 620; }
.card dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 12px; margin: 11px 0 0;
  font-size: .93rem; }
.card dt, .facts dt { color: var(--faint); }
.card dd, .facts dd { margin: 0; overflow-wrap: anywhere; }
.card.wrong .said { color: var(--bad); font-weight: 600; }
.card.right .said { color: var(--good); font-weight: 600; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 5px 22px; font-size: .93rem; margin: 0; }
details { background: var(--sheet); border: 1px solid var(--line); border-radius: 12px; margin: 0 0 12px; }
summary { cursor: pointer; padding: 12px 18px; font-weight: 600; }
pre { margin: 0; padding: 4px 20px 18px; overflow-x: auto;
  font: .84rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; tab-size: 2; }
footer { margin-top: 64px; padding-top: 16px; border-top: 1px solid var(--line); color: var(--faint);
  font-size: .86rem; }
@media (max-width: 900px) { .tiles { grid-template-columns: repeat(2, 1fr); } main { padding: 32px 16px 60px; }
  h1 { font-size: 2rem; } }
@page { margin: 14mm; }
@media print {
  table { font-size: 9pt; } thead th, .chip { font-size: 8pt; }
  th, td { padding: 4px 5px; } .scroll { overflow: visible; }
  .stages th:last-child, .stages td:last-child { padding-left: 12px; }
  :root { --ground: #fff; --sheet: #fff; --ink: #000; --faint: #555; --line: #ccc; --shade: #eee; --accent: #1f5fbf; }
  body { font-size: 9.5pt; } main { max-width: none; padding: 0; } nav { display: none; }
  h2 { margin-top: 26pt; } h2, h3 { break-after: avoid; } .tile, .card, .sheet, tr { break-inside: avoid; }
  .tiles { grid-template-columns: repeat(4, 1fr); } .cards { grid-template-columns: repeat(3, 1fr); }
  .tile .bar i, mark, .badge, .reason, .chip { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
