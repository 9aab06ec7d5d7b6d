"""The page's look, and the one script it has: the button that changes the theme."""

from __future__ import annotations

from questlm.plotting import DARK, LIGHT

__all__ = ["SCRIPT", "STYLESHEET"]


def _variables(theme: dict[str, str]) -> str:
    """The theme as CSS declarations."""
    return "".join(f"--{role}:{color};" for role, color in theme.items())


STYLESHEET = (
    f":root{{color-scheme:light;{_variables(LIGHT)}}}"
    f":root[data-theme=dark]{{color-scheme:dark;{_variables(DARK)}}}"
    f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{_variables(DARK)}}}}}"
    """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth;scroll-padding-top:3.5rem}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums}
main,header>div,footer{max-width:70rem;margin:0 auto;padding:0 1.25rem}
h1{font-size:1.75rem;line-height:1.2;margin:0;letter-spacing:-.015em}
h2{font-size:1.3rem;line-height:1.25;margin:0 0 .35rem;letter-spacing:-.01em}
h3{font-size:1.02rem;margin:0 0 .35rem;overflow-wrap:anywhere}
p{margin:.4rem 0 .9rem;max-width:46rem}
a{color:var(--accent);text-underline-offset:.15em}
header>div{padding-top:2.2rem;padding-bottom:.4rem;display:flex;gap:1rem;align-items:flex-start;
justify-content:space-between}
header p{color:var(--muted);margin:.35rem 0 0}
button{font:inherit;font-size:.875rem;color:var(--ink);background:var(--card);border:1px solid var(--front);
border-radius:.5rem;padding:.35rem .8rem;cursor:pointer;white-space:nowrap}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
nav{position:sticky;top:0;z-index:2;background:var(--page);border-bottom:1px solid var(--rule)}
nav ul{max-width:70rem;margin:0 auto;padding:.55rem 1.25rem;display:flex;gap:1.25rem;list-style:none;overflow-x:auto}
nav a{text-decoration:none;white-space:nowrap;font-size:.9rem}
nav a:hover{text-decoration:underline}
section{margin:2rem 0 2.75rem}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.75rem;margin:1.1rem 0;padding:0}
.facts div{background:var(--card);border:1px solid var(--rule);border-radius:.75rem;padding:.75rem .95rem}
.facts dt{font-size:.8rem;color:var(--muted)}
.facts dd{margin:.1rem 0 0;font-size:1.3rem;font-weight:600;line-height:1.25}
.facts dd small{display:block;font-size:.8rem;font-weight:400;color:var(--muted);line-height:1.35;margin-top:.15rem;
overflow-wrap:anywhere}
figure{margin:1rem 0 1.5rem;background:var(--card);border:1px solid var(--rule);border-radius:.75rem;
padding:1rem 1.1rem}
figure svg{display:block;width:100%;height:auto;margin:0 auto;overflow:visible}
figcaption{margin-top:.8rem;padding-top:.7rem;border-top:1px solid var(--rule);font-size:.9rem;color:var(--muted);
overflow-wrap:anywhere}
figcaption span{display:block;max-width:56rem;white-space:pre-line}
.files{margin-top:.3rem}
.narrow{display:none}
.scroll{overflow-x:auto;margin:1rem 0 1.5rem;background:var(--card);border:1px solid var(--rule);border-radius:.75rem}
table{border-collapse:collapse;font-size:.875rem;min-width:100%}
caption{text-align:left;font-weight:600;padding:.8rem .9rem .3rem}
th,td{padding:.42rem .9rem;text-align:right;white-space:nowrap;border-top:1px solid var(--rule);vertical-align:top;
font-weight:400}
thead th{color:var(--muted);font-size:.92em;border-top:0;vertical-align:bottom}
th:first-child,.text{text-align:left}
tbody th{position:sticky;left:0;background:var(--card);min-width:10rem;max-width:17rem;overflow-wrap:anywhere;
white-space:normal}
tbody tr:hover>*{background:var(--page)}
td.text{white-space:normal;min-width:9rem;overflow-wrap:anywhere}
td.group{text-align:left;white-space:nowrap!important}
.runs{font-size:.8125rem}
.runs th,.runs td{padding:.35rem .6rem}
td div+div{margin-top:.3rem}
td small,th small{display:block;color:var(--muted);font-size:.86em}
.unfinished>*{color:var(--muted);font-style:italic}
.absent{color:var(--muted)}
.name{display:inline-flex;align-items:baseline}
.swatch{flex:none;width:.62em;height:.62em;border-radius:50%;margin-right:.5em}
.law{font-size:1.05rem;margin:.8rem 0}
.law var,th var{font-family:Georgia,"Times New Roman",serif}
.notes{background:var(--card);border:1px solid var(--rule);border-left:4px solid var(--bits-2);border-radius:.5rem;
padding:.6rem 1.1rem;margin:1rem 0;overflow-wrap:anywhere}
.notes ul{margin:.2rem 0;padding-left:1.1rem}
footer{padding-top:.5rem;padding-bottom:2.5rem;color:var(--muted);font-size:.85rem}
@media screen and (max-width:40rem){
main,header>div,footer,nav ul{padding-left:.75rem;padding-right:.75rem}
h1{font-size:1.4rem}
figure{padding:.75rem .55rem}
.facts{grid-template-columns:1fr 1fr;gap:.5rem}
.facts dd{font-size:1.1rem}
.wide{display:none}
.narrow{display:block}
.sideways{overflow-x:auto}
.sideways svg{min-width:40rem}
table{font-size:.8125rem}
tbody th{min-width:9.6rem;max-width:10.5rem}
caption{padding-left:.6rem}
th,td{padding:.4rem .6rem}
}
@media print{
"""
    f":root,:root[data-theme=dark],:root:not([data-theme=light]){{color-scheme:light;{_variables(LIGHT)}--page:#fff}}"
    """
@page{margin:14mm 12mm}
body{font-size:10.5pt}
nav,button,.files{display:none}
main,header>div,footer{max-width:none;padding:0}
section{margin:1rem 0 1.5rem}
figure,.facts div,tr,caption{break-inside:avoid}
h2,h3,caption,thead{break-after:avoid}
thead{display:table-header-group}
.scroll{overflow:visible}
tbody th{position:static}
table{font-size:8pt}
th,td{padding:.2rem .35rem;white-space:normal}
.runs{font-size:6.5pt}
.runs th,.runs td,.runs td.text{padding:.15rem .22rem;min-width:0}
}
"""
)

SCRIPT = """
(function () {
  var root = document.documentElement, button = document.getElementById("theme");
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function current() { return root.dataset.theme || (dark.matches ? "dark" : "light"); }
  function name() { button.textContent = current() === "dark" ? "Light theme" : "Dark theme"; }
  try {
    var kept = localStorage.getItem("questlm-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch (refused) { /* a page opened from a file may have no storage */ }
  button.hidden = false;
  button.addEventListener("click", function () {
    root.dataset.theme = current() === "dark" ? "light" : "dark";
    try { localStorage.setItem("questlm-theme", root.dataset.theme); } catch (refused) { /* as above */ }
    name();
  });
  dark.addEventListener("change", name);
  name();
})();
"""
