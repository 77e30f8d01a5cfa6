"""The page's style sheet."""

from __future__ import annotations

__all__ = ["STYLESHEET"]

STYLESHEET = """
:root { --ink: #24323f; --muted: #6b7985; --line: #e3e8ec; --paper: #fff; --ground: #f4f6f8; --good: #2e7d55;
  --bad: #b93a30 }
* { box-sizing: border-box }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px }
header h1 { display: inline; font-size: 26px; letter-spacing: -.01em; margin: 0 10px 0 0 }
header p { color: var(--muted); margin: 6px 0 18px }
.status { padding: 2px 11px; border-radius: 11px; background: #dfe6ec; font-size: 13px; vertical-align: 4px }
.status.done { background: #d9eee3; color: var(--good) } .status.failed { background: #f7dcd9; color: var(--bad) }
.reason { color: var(--muted) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 14px }
.tile, section, details { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 16px 20px }
.tile { border-top: 3px solid #b9c4cd }
.tile.good { border-top-color: var(--good) } .tile.bad { border-top-color: var(--bad) }
.tile h3 { margin: 0; font-size: 13px; font-weight: 600; color: var(--muted) }
.tile strong { font-size: 23px; font-weight: 650; letter-spacing: -.01em; display: block; margin: 3px 0 }
.tile.bad strong { color: var(--bad) }
.tile p { margin: 0; font-size: 13px; color: var(--muted); line-height: 1.4 }
section, details { margin-top: 16px }
h2, summary { font-size: 17px; font-weight: 650; margin: 0 0 12px }
summary { cursor: pointer; margin: 0 } details[open] summary { margin-bottom: 12px }
svg { width: 100%; height: auto; display: block }
svg text { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif !important }
table { border-collapse: collapse; width: 100%; font-size: 13.5px }
th { text-align: left; color: var(--muted); font-weight: 600; border-bottom: 1px solid var(--line);
  padding: 4px 14px 4px 0 }
td { padding: 4px 14px 4px 0; border-bottom: 1px solid #f0f3f5; vertical-align: top; overflow-wrap: anywhere }
td:first-child { font-variant-numeric: tabular-nums; white-space: nowrap }
.recoveries { padding-left: 22px; margin: 0 } .recoveries li { margin-bottom: 14px } .recoveries p { margin: 0 }
.bar { position: relative; height: 16px; margin: 6px 0 4px; background: #eef2f5; border-radius: 4px;
  overflow: hidden; display: flex }
.bar i { display: block; height: 100% }
.bar b { position: absolute; top: 0; bottom: 0; width: 2px; background: var(--ink) }
.small { color: var(--muted); font-size: 13px; margin: 0 0 10px }
.legend { color: var(--muted); font-size: 13px; margin: 8px 0 0 } .legend span { margin-right: 16px;
  white-space: nowrap }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 5px;
  vertical-align: -1px }
.legend i.recovering { background: #f4d9d6 } .legend b { color: var(--bad); margin-right: 4px }
.legend b.another { color: var(--ink) }
code { background: #eef2f5; padding: 1px 5px; border-radius: 4px; font-size: 13px; overflow-wrap: anywhere }
ul { padding-left: 20px; margin: 0 }
@media print { body { background: none } section, details, .tile { break-inside: avoid } }
"""
