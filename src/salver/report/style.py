"""The page's style sheet. Light and dark by the reader's preference; prints on paper."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root{color-scheme:light dark;--bg:#f6f5f1;--card:#fff;--ink:#1d2129;--soft:#5c6370;--line:#e3e1da;--field:#faf9f6;
--good:#12805c;--good-bg:#e2f4ec;
--bad:#b3362b;--bad-bg:#fbe9e7;--wait:#9a6700;--wait-bg:#fbf0d5;--idle:#79808c;--idle-bg:#eeeeec;
--brand:#8a5a1f;--brand-bg:#f6ecdc}
@media (prefers-color-scheme:dark){:root{--bg:#14161a;--card:#1c1f25;--ink:#e8e6e1;--soft:#9aa1ad;--line:#31353d;
--field:#191c21;
--good:#4cc596; --good-bg:#15362a;
--bad:#f08a7e;--bad-bg:#41201c;--wait:#e2b04a;--wait-bg:#3b2e11;--idle:#8b92a0;--idle-bg:#292d34;
--brand:#dcae6d;--brand-bg:#372a17}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1080px;margin:0 auto;padding:40px 24px 64px}
header .mark{color:var(--brand);font-weight:650;letter-spacing:.04em;font-size:13px;text-transform:uppercase}
h1{font-size:30px;line-height:1.2;margin:6px 0 4px;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:19px;margin:44px 0 14px;letter-spacing:-.005em}
h3{font-size:13px;margin:18px 0 6px;color:var(--soft);font-weight:600}
p{margin:0 0 10px;max-width:76ch}
.lead{font-size:17px;color:var(--soft)}
.lead b{color:var(--ink)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(185px,1fr));gap:14px;margin:26px 0 0}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:12px}
.tile{padding:16px 18px}
.tile .what{color:var(--soft);font-size:13px}
.tile .value{font-size:30px;font-weight:650;line-height:1.25;letter-spacing:-.02em}
.tile .more{color:var(--soft);font-size:13px}
.tile.good .value{color:var(--good)}
.card{padding:18px}
.plot{display:block;width:100%;height:auto}
.legend{display:flex;flex-wrap:wrap;gap:6px 18px;color:var(--soft);font-size:13px;margin-top:10px}
.key{display:inline-flex;align-items:center;gap:7px}
.key::before{content:"";width:11px;height:11px;border-radius:50%;background:var(--c)}
.key.accepted,.key.chosen{--c:var(--good)}.key.rejected{--c:var(--bad)}.key.undecided{--c:var(--wait)}
.key.idle{--c:var(--idle)}.key.original{--c:var(--ink)}
.key.chosen::before{box-shadow:0 0 0 2px var(--card),0 0 0 4px var(--good)}
svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--soft)}
svg .axis{font-size:12.5px}
svg .name{font-weight:600;fill:var(--ink);paint-order:stroke;stroke:var(--field);stroke-width:4px;font-size:13px}
svg .field{fill:var(--field);stroke:var(--line)}
svg .grid{stroke:var(--line)}
svg .zero{stroke:var(--soft);stroke-opacity:.6}
svg .margin{stroke:var(--bad);stroke-dasharray:5 4}
svg .margin-text{fill:var(--bad)}
svg .over{fill:var(--bad);fill-opacity:.05}
svg .front{fill:none;stroke:var(--good);stroke-width:2;stroke-opacity:.55}
svg .dot{--c:var(--idle)}
svg .dot.chosen,svg .dot.accepted{--c:var(--good)}
svg .dot.rejected,svg .dot.failed{--c:var(--bad)}
svg .dot.undecided{--c:var(--wait)}
svg .dot.original{--c:var(--ink)}
svg .dot circle{fill:var(--c);fill-opacity:.88;stroke:var(--card);stroke-width:1.5}
svg .dot .ring{fill:none;stroke:var(--c);stroke-width:2}
svg .dot .whisker{stroke:var(--c);stroke-width:2;stroke-opacity:.45}
svg .dot .number{font-size:10px;font-weight:650;fill:var(--card)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%}
th{font-weight:600;color:var(--soft);font-size:13px;text-align:left;padding:8px 12px;
border-bottom:1px solid var(--line);white-space:nowrap}
td{padding:9px 12px;vertical-align:top;border-bottom:1px solid var(--line)}
.n{text-align:right;white-space:nowrap}
.dim{color:var(--soft)}
td .dim{font-size:13px}
.candidates{padding:0}
.candidates tbody td{border-bottom:0;padding-bottom:2px}
.candidates tbody .under>td{padding:0 12px 11px;border-bottom:1px solid var(--line)}
.candidates tbody:last-child .under td{border-bottom:0}
.candidates tbody.chosen{background:var(--good-bg)}
.candidates .title{font-weight:600;overflow-wrap:anywhere;min-width:170px}
.badge{display:inline-block;border-radius:99px;padding:1px 10px;font-size:12.5px;font-weight:600;white-space:nowrap;
color:var(--idle);background:var(--idle-bg)}
.badge.chosen{color:var(--card);background:var(--good)}
.badge.accepted{color:var(--good);background:var(--good-bg)}
.badge.rejected,.badge.failed{color:var(--bad);background:var(--bad-bg)}
.badge.undecided{color:var(--wait);background:var(--wait-bg)}
.badge.original{color:var(--card);background:var(--ink)}
.reason{color:var(--soft)}
summary{cursor:pointer;color:var(--brand);font-size:13px;width:max-content}
summary:focus-visible{outline:2px solid var(--brand);outline-offset:3px;border-radius:3px}
.inside{display:grid;grid-template-columns:repeat(auto-fit,minmax(330px,1fr));gap:2px 28px;padding-bottom:6px}
.inside>div{min-width:0;overflow-x:auto}
.inside .wide{grid-column:1/-1}
.inside{font-size:13.5px}
.inside table{font-size:13px;width:auto}
.inside th,.inside td,.candidates .inside tbody td{padding:4px 26px 4px 0;border-bottom:1px solid var(--line)}
pre,code{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{margin:0;padding:10px 12px;background:var(--field);border:1px solid var(--line);border-radius:8px;overflow-x:auto;
white-space:pre-wrap;overflow-wrap:anywhere}
code{overflow-wrap:anywhere}
.loss{color:var(--bad)}.gain{color:var(--good)}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(330px,1fr));gap:14px}
.facts th{border:0;padding:4px 14px 4px 0;white-space:nowrap;vertical-align:top}
.facts td{border:0;padding:4px 0;overflow-wrap:anywhere}
.facts h3:first-child{margin-top:0}
.steps{list-style:none;margin:0;padding:0}
.steps li{position:relative;padding:0 0 18px 26px;border-left:2px solid var(--line);margin-left:7px}
.steps li:last-child{border-color:transparent;padding-bottom:0}
.steps li::before{content:"";position:absolute;left:-7px;top:5px;width:12px;height:12px;border-radius:50%;
background:var(--brand);border:2px solid var(--card)}
footer{margin-top:44px;color:var(--soft);font-size:13px}
@media (max-width:640px){main{padding:24px 14px}.tile .value{font-size:24px}h1{font-size:24px}}
@media print{body{background:#fff}.tile,.card{break-inside:avoid}main{max-width:none;padding:0}}
"""
