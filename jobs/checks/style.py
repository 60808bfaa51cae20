"""The look of the page of features: for light and dark screens, for narrow ones, and for paper."""

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--fg:#1d2327;--dim:#5a6672;--line:#dfe3e6;--card:#fff;--accent:#0b7285;
--good:#2b7a3d;--bad:#b42318;--bar:#4aa3b5;--nulls:#b0b8bf;--before:#1d2327}
@media(prefers-color-scheme:dark){:root{--bg:#14181b;--fg:#e8ebed;--dim:#9aa7b2;--line:#2c3439;--card:#1b2125;
--accent:#5cc4d6;--good:#6fcf86;--bad:#ff8a7a;--bar:#2f8ea1;--nulls:#5a656d;--before:#e8ebed}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1180px;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.7rem;margin:0 0 .25rem}h2{font-size:1.15rem;margin:0 0 .6rem}
section,footer{margin-top:2.2rem}p{margin:.3rem 0}
code{font-family:ui-monospace,"SF Mono",Menlo,Consolas,monospace;font-size:.92em}
.dim,footer{color:var(--dim)}a{color:var(--accent)}
.cards{list-style:none;display:grid;grid-template-columns:repeat(auto-fit,minmax(210px,1fr));gap:.75rem;padding:0;
margin:1.2rem 0 0}
.cards li{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.8rem 1rem;display:grid;
grid-template-columns:1fr auto}
.cards strong{font-size:1.35rem;font-variant-numeric:tabular-nums;grid-row:1;grid-column:1}
.cards span:last-child{grid-column:1/3;color:var(--dim)}
.mark{grid-row:1;grid-column:2;width:1.6rem;height:1.6rem;border-radius:50%;display:grid;place-items:center;
font-weight:700;color:var(--card)}
.good .mark{background:var(--good)}.bad .mark{background:var(--bad)}.bad{border-color:var(--bad)!important}
.look{border-left:4px solid var(--bad);padding:.2rem 0 .2rem 1rem}
.fine{border-left:4px solid var(--good);padding:.2rem 0 .2rem 1rem}
.look ul{margin:.3rem 0;padding-left:1.1rem}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:10px;background:var(--card)}
.wide:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
th,td{padding:.45rem .75rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:middle;
white-space:nowrap}
td:nth-child(2){white-space:normal}
tbody tr:last-child>*{border-bottom:0}thead th{color:var(--dim);font-weight:600;font-size:.85rem}
tbody th{font-weight:500}
.good-word{color:var(--good)}.bad-word{color:var(--bad);font-weight:600}
svg{display:block;overflow:visible}svg .bar{fill:var(--bar)}svg .nulls{fill:var(--nulls)}
svg .before{stroke:var(--before);stroke-width:1.5}svg .line{fill:none;stroke:var(--accent);stroke-width:1.5}
svg .dot{fill:var(--accent)}svg .limit{stroke:var(--bad);stroke-width:1;stroke-dasharray:3 3}
details{margin-top:.8rem}summary{cursor:pointer;margin-bottom:.5rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;margin:0}dt{font-weight:600}dd{margin:0}
@media(max-width:600px){dl{grid-template-columns:1fr}main{padding:1.2rem .8rem 3rem}}
@media print{.wide{overflow:visible}}
"""
