# SPDX-License-Identifier: Apache-2.0
"""How the inspection page looks, and the little script that sorts and filters its table.

Colours: Okabe and Ito, Color universal design (2008), told apart by colour-blind readers; verdicts carry a sign and a word too.
"""

STYLE = """
:root{--paper:#fbfbfa;--card:#fff;--ink:#1c2126;--soft:#5b656e;--rule:#dfe3e6;--track:#eceff1;
--state:#0072b2;--action:#d55e00;--limit:#6b6f74;--keep:#00795a;--look:#a86400;--drop:#b3261e;--barkeep:#4db89a;
--barlook:#e69f00;--bardrop:#d55e00;
--idle:#8a94a022;--seen:#56a0d3;--mono:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
@media(prefers-color-scheme:dark){:root{--paper:#14171a;--card:#1c2024;--ink:#e8eaed;--soft:#a0a9b2;--rule:#30363c;
--track:#262b30;
--state:#56b4e9;--action:#f0a04b;--limit:#9aa2aa;--keep:#4fd1a5;--look:#f2b134;--drop:#ff8a75;--barkeep:#2f9d7d;
--barlook:#e69f00;--bardrop:#e8703a;
--idle:#aab4c026;--seen:#3f8fc4}}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:1320px;margin:0 auto;padding:20px 24px 64px}
h1{font-size:26px;line-height:1.2;margin:2px 0 8px;overflow-wrap:anywhere}
h2{font-size:18px;margin:36px 0 4px}
h3{font-size:15px;margin:0;font-weight:600}
p.lead{color:var(--soft);margin:0 0 12px;max-width:105ch}
.kind{color:var(--soft);font-size:12px;letter-spacing:.08em;text-transform:uppercase}
a{color:var(--state)}
code,.mono{font-family:var(--mono);font-size:.9em}
.facts{display:flex;flex-wrap:wrap;gap:6px 22px;margin:0 0 16px;padding:0}
.facts div{display:flex;gap:6px;align-items:baseline}
.facts dt{color:var(--soft)}.facts dd{margin:0;font-weight:600;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(3,1fr);gap:12px;margin:12px 0}
.tile{background:var(--card);border:1px solid var(--rule);border-left:6px solid;border-radius:8px;padding:10px 14px}
.tile b{display:block;font-size:26px;line-height:1.2}.tile span{color:var(--soft);font-size:13px}
.tile.keep{border-left-color:var(--keep)}.tile.look{border-left-color:var(--look)}.tile.drop{border-left-color:var(--drop)}
.split{display:flex;height:10px;border-radius:5px;overflow:hidden;background:var(--track)}
.split i{display:block}.split .keep{background:var(--barkeep)}.split .look{background:var(--barlook)}
.split .drop{background:var(--bardrop)}
.verdict{display:inline-block;font-weight:600;white-space:nowrap}
.verdict.keep,.verdict.accept{color:var(--keep)}.verdict.look,.verdict.warn{color:var(--look)}
.verdict.drop,.verdict.reject{color:var(--drop)}
.remarks{margin:8px 0;padding-left:20px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:12px}
.chart,.card{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:10px 12px;min-width:0}
.chart h3{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 8px;font-weight:600}
.chart h3 small,.card small{font-weight:400;color:var(--soft)}
.chart p{margin:0;color:var(--soft);font-size:12.5px;line-height:1.35}
svg{display:block;width:100%;height:auto}
svg text{font-size:10px;fill:var(--soft);text-anchor:start}svg text.end{text-anchor:end}svg text.middle{text-anchor:middle}
details .scroll{margin:8px 0}svg text.note{fill:var(--limit)}svg text.label{font-size:12px;fill:var(--ink);text-anchor:middle}
svg text.label.strong{font-weight:600}
svg text.sub{text-anchor:middle}
.grid-line,line.grid{stroke:var(--rule);stroke-width:1}
line.limit{stroke:var(--limit);stroke-width:1.2;stroke-dasharray:5 4}
line.median{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:3 3}
.line{fill:none;stroke-width:1.5;stroke-linejoin:round;vector-effect:non-scaling-stroke}
.line.state{stroke:var(--state)}.line.action{stroke:var(--action);stroke-width:1.3}
.line.many{stroke:var(--state);stroke-opacity:.22;stroke-width:1}.line.odd{stroke:var(--action);stroke-width:1.6}
rect.idle{fill:var(--idle)}
.bar.keep{fill:var(--barkeep)}.bar.look{fill:var(--barlook)}.bar.drop{fill:var(--bardrop)}
.track{fill:var(--track)}.seen{fill:var(--seen)}.gap{fill:var(--drop)}
svg.strip{height:16px;border-radius:3px}
rect.box{fill:var(--card);stroke:var(--rule);stroke-width:1.2}rect.box.in{stroke:var(--state)}rect.box.out{stroke:var(--action)}
rect.box.net{stroke:var(--soft)}
path.arrow{fill:none;stroke:var(--soft);stroke-width:1.2}rect.span{fill:var(--state);fill-opacity:.55}
rect.span.action{fill:var(--action)}rect.room{fill:var(--track)}
rect.step{fill:var(--action);fill-opacity:.35}rect.step.run{fill-opacity:.95}rect.step.seen{fill:var(--state);fill-opacity:.9}
.key{display:flex;flex-wrap:wrap;gap:4px 18px;color:var(--soft);font-size:13px;margin:0 0 8px}
.key span{display:flex;align-items:center;gap:6px}.key svg{width:26px;height:10px;flex:none}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--rule);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th,td{padding:5px 10px;text-align:left;vertical-align:middle;border-bottom:1px solid var(--rule)}
tbody tr:last-child td{border-bottom:0}
th{position:sticky;top:0;background:var(--card);color:var(--soft);font-weight:600;white-space:nowrap;font-size:12.5px}
th[data-sort]{cursor:pointer}th button{all:unset;cursor:pointer}
th button:focus-visible{outline:2px solid var(--state);outline-offset:2px}
th[aria-sort=ascending] button::after{content:" \\25B2"}th[aria-sort=descending] button::after{content:" \\25BC"}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.odd{font-weight:700;color:var(--look)}
#episodes td,#episodes th{padding:4px 8px}th small{font-weight:400}
td.why{min-width:250px;max-width:420px;font-size:13px}td.why small{color:var(--soft);white-space:nowrap}
td.thumbs{white-space:nowrap;padding:3px 6px}
td.thumbs img{width:40px;height:auto;border-radius:3px;vertical-align:middle;margin-right:2px}
td.goal{white-space:nowrap}.tall .scroll{max-height:min(76vh,860px);overflow:auto}
.drawing{overflow-x:auto}.drawing svg{min-width:560px}
td.short{white-space:nowrap}td small.warn{color:var(--look)}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:0 20px;align-items:start}
.columns td{overflow-wrap:anywhere}.columns td:first-child{white-space:nowrap}
td.wide{min-width:320px;width:60%}
.tools{display:flex;flex-wrap:wrap;gap:8px;align-items:center;margin:8px 0}
.tools button,.tools input{font:inherit;font-size:13.5px;padding:4px 12px;border:1px solid var(--rule);border-radius:6px;
background:var(--card);color:var(--ink)}
.tools button[aria-pressed=true]{border-color:var(--ink);box-shadow:inset 0 0 0 1px var(--ink)}
.tools input{flex:0 1 220px;min-width:120px}
.card{margin:14px 0;border-left:6px solid var(--rule);padding:12px 16px;scroll-margin-top:8px}
.card.keep,.card.accept{border-left-color:var(--keep)}.card.look,.card.warn{border-left-color:var(--look)}
.card.drop,.card.reject{border-left-color:var(--drop)}
.card header{display:flex;flex-wrap:wrap;gap:2px 14px;align-items:baseline}
.card header .tick{margin-left:auto;color:var(--soft);font-size:13.5px}td.box{text-align:center}
.card ul{margin:4px 0 6px;padding-left:20px}
.card .facts{font-size:13.5px;gap:2px 18px;margin:6px 0 8px}
.sheet{display:grid;grid-template-columns:repeat(8,minmax(0,144px));gap:6px;margin:6px 0 10px}
figure{margin:0}figure img{display:block;border-radius:3px;width:100%;height:auto;background:var(--track)}
figcaption{font-size:11.5px;color:var(--soft);text-align:center;font-variant-numeric:tabular-nums}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(280px,100%),1fr));gap:8px 14px}
.plots.few{grid-template-columns:repeat(auto-fit,minmax(min(280px,100%),400px))}
td.name{overflow-wrap:anywhere;min-width:180px}
.plots figcaption{text-align:left;font-size:12.5px;color:var(--ink)}
details summary{cursor:pointer;color:var(--soft);font-size:13.5px}
pre{background:var(--track);padding:10px 12px;border-radius:6px;overflow-x:auto;font:12.5px/1.45 var(--mono)}
dl.words{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;font-size:13.5px}dl.words dt{font-weight:600}
dl.words dd{margin:0;color:var(--soft)}
footer{color:var(--soft);font-size:12.5px;margin-top:36px}
@media(max-width:640px){main{padding:12px 12px 48px}.tiles{gap:6px}.tile{padding:8px}.tile b{font-size:20px}
dl.words{grid-template-columns:1fr}
td.why{min-width:200px}.sheet{grid-template-columns:repeat(4,1fr)}.plots,.plots.few,.grid{grid-template-columns:1fr}}
@media print{.tools{display:none}.card{break-inside:avoid}}
"""

SCRIPT = """
(function(){
var table=document.getElementById("episodes");if(!table)return;
var body=table.tBodies[0],rows=Array.from(body.rows),level="",words="",told=document.getElementById("shown");
function filter(){var n=0;rows.forEach(function(r){
var on=(!level||r.dataset.verdict===level)&&(!words||r.textContent.toLowerCase().indexOf(words)>=0);r.hidden=!on;n+=on;});
told.textContent=n+" of "+rows.length;}
document.querySelectorAll("[data-level]").forEach(function(b){b.onclick=function(){level=b.dataset.level;
document.querySelectorAll("[data-level]").forEach(function(o){o.setAttribute("aria-pressed",o===b);});filter();};});
document.getElementById("words").oninput=function(e){words=e.target.value.toLowerCase();filter();};
table.querySelectorAll("th[data-sort]").forEach(function(h){h.onclick=function(){
var down=h.getAttribute("aria-sort")==="ascending",i=h.cellIndex;
table.querySelectorAll("th").forEach(function(o){o.removeAttribute("aria-sort");});
h.setAttribute("aria-sort",down?"descending":"ascending");
function of(r){return r.cells[i].dataset.value;}
rows.sort(function(a,b){var x=of(a),y=of(b);if(x===""||y==="")return(x==="")-(y==="");return(down?-1:1)*(x-y);});
rows.forEach(function(r){body.appendChild(r);});};});
filter();
var command=document.getElementById("command"),boxes=Array.from(document.querySelectorAll("input[data-name]"));
function tell(){var names=[];
boxes.forEach(function(b){if(b.checked&&table.contains(b))names.push(b.dataset.name);});
var move=command.dataset.before+names.join(" ")+command.dataset.after;
command.textContent=names.length?move:"# nothing is ticked";}
boxes.forEach(function(b){b.onchange=function(){
boxes.forEach(function(o){if(o.dataset.name===b.dataset.name)o.checked=b.checked;});tell();};});
tell();
})();
"""
