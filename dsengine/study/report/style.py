"""The style sheet: one column, the system's fonts, light and dark, paper. Colours are named once here; `contrast` is what they are tested by."""

LIGHT = {"paper": "#ffffff", "raised": "#f6f7f8", "ink": "#15191d", "soft": "#59636e", "line": "#d5dade", "accent": "#0b62a8", "alarm": "#a8201a",
         "alarm-paper": "#fdf0ee"}
DARK = {"paper": "#121518", "raised": "#1a1f24", "ink": "#e7ebee", "soft": "#9ba7b2", "line": "#333b43", "accent": "#6cb4f2", "alarm": "#ff9d92",
        "alarm-paper": "#2c1a19"}
# Of lines and dots: told apart by readers with any colour vision in the order given, 3 : 1 against the page in both modes.
SERIES_LIGHT = ("#0b62a8", "#c2500a", "#00795a", "#a53a86", "#8a6a00", "#3c3f9e", "#7d4a2a", "#4b5560")
SERIES_DARK = ("#5aaeee", "#f2904a", "#3fc49a", "#e58ac8", "#d9b13b", "#a3a6f7", "#d39a72", "#a9b4be")
NUM_SERIES = len(SERIES_LIGHT)
MIX = {"light": 0.65, "dark": 0.4}  # of the accent in the fullest cell of a confusion matrix: text on it stays readable


def contrast(a: str, b: str) -> float:
    """Ratio of the luminances of "#rrggbb" colours, 1 to 21, as WCAG 2.2 defines it."""
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def sheet() -> str:
    """The whole style sheet."""
    light = ";".join(f"--{name}:{value}" for name, value in (*LIGHT.items(), *_numbered(SERIES_LIGHT)))
    dark = ";".join(f"--{name}:{value}" for name, value in (*DARK.items(), *_numbered(SERIES_DARK)))
    lines = "".join(f".c{k}{{--c:var(--s{k})}}" for k in range(NUM_SERIES))
    return (f":root{{color-scheme:light dark;--mix:{MIX['light']:.0%};{light}}}"
            f"@media screen and (prefers-color-scheme:dark){{:root{{--mix:{MIX['dark']:.0%};{dark}}}}}{lines}{_RULES}")


def _numbered(colours: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(f"s{k}", colour) for k, colour in enumerate(colours)]


def _luminance(colour: str) -> float:
    parts = [int(colour[k:k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))


_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Liberation Sans",Arial,sans-serif;
 font-variant-numeric:tabular-nums}
main,header,footer{max-width:70rem;margin:0 auto;padding:0 1rem}
header{padding-top:1.6rem}
h1{font-size:1.6rem;line-height:1.2;margin:0 0 .2rem;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.4rem 0 .7rem;padding-top:.5rem;border-top:2px solid var(--ink);overflow-wrap:anywhere}
h3{font-size:1rem;margin:1.5rem 0 .5rem;overflow-wrap:anywhere}
h4{font-size:.92rem;margin:1.1rem 0 .4rem;overflow-wrap:anywhere}
p{margin:.4rem 0;max-width:46rem;overflow-wrap:anywhere}
a{color:var(--accent)}
.lead,.note,figcaption,footer,caption{color:var(--soft)}
.note,figcaption,footer{font-size:.86rem}
.missing{color:var(--soft);border-left:3px solid var(--line);padding:.1rem 0 .1rem .7rem;font-size:.9rem}
nav ul{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;list-style:none;margin:.8rem 0 0;padding:0}
nav a{display:inline-block;padding:.3rem 0}
.alarm{background:var(--alarm-paper);border-left:4px solid var(--alarm);padding:.55rem .8rem;margin:1rem 0}
.alarm ul{margin:.2rem 0 0;padding-left:1.1rem;overflow-wrap:anywhere}
.alarm strong{color:var(--alarm)}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,13.5rem),1fr));gap:0 1.4rem;margin:.6rem 0}
.facts div{border-top:1px solid var(--line);padding:.35rem 0 .4rem;min-width:0}
.facts dt{color:var(--soft);font-size:.82rem}
.facts dd{margin:0;overflow-wrap:anywhere}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:1.2rem 1.6rem;align-items:start}
figure{margin:.6rem 0;min-width:0}
figcaption{margin-bottom:.35rem}
figcaption strong{color:var(--ink);font-size:.95rem;display:block}
.chart{max-width:30rem;margin:0}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:11.5px;fill:var(--soft);font-family:inherit}
svg .label{fill:var(--ink)}
svg .rule{stroke:var(--line);stroke-width:1}
svg .frame{stroke:var(--soft);stroke-width:1}
svg .limit{stroke:var(--alarm);stroke-width:1;stroke-dasharray:2 3}
svg .line{fill:none;stroke:var(--c);stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}
svg .thick{stroke-width:2.2}
svg .dashed{stroke-dasharray:6 4}
svg .dotted{stroke-dasharray:1.5 4}
svg .band{fill:var(--c);opacity:.2}
svg .dot{fill:var(--paper);stroke:var(--c);stroke-width:1.8}
svg .points{fill:none;stroke:var(--c);stroke-width:5.2;stroke-linecap:round}
svg .rim{fill:none;stroke:var(--soft);stroke-width:6.6;stroke-linecap:round}
.legend{display:flex;flex-wrap:wrap;gap:.15rem 1rem;list-style:none;margin:.35rem 0 0;padding:0;font-size:.84rem}
.legend li{display:flex;align-items:center;gap:.4rem;min-width:0;overflow-wrap:anywhere}
.legend svg{width:26px;height:10px;flex:none}
.legend i{width:.85rem;height:.85rem;flex:none;border:1px solid var(--soft);border-radius:2px}
.picture img{max-width:100%;height:auto;display:block;background:#fff;border:1px solid var(--line);border-radius:3px}
.sheets{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,29rem),1fr));gap:1.2rem 1.6rem;align-items:start}
.maps{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr));gap:1rem 1.6rem}
.maps figure{margin:0}
.trio{display:grid;grid-template-columns:repeat(3,1fr);gap:.3rem}
.trio div{min-width:0;font-size:.78rem;color:var(--soft)}
.trio img{width:100%;aspect-ratio:1;display:block;image-rendering:pixelated;border:1px solid var(--line)}
.scroll{overflow-x:auto;margin:.6rem 0;max-width:100%;container-type:inline-size}
table{border-collapse:collapse;font-size:.87rem}
caption{text-align:left;font-size:.86rem;padding-bottom:.3rem;position:sticky;left:0;max-width:100cqw}
th,td{text-align:left;vertical-align:top;padding:.3rem .9rem .3rem 0;border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-weight:600;vertical-align:bottom;border-bottom:1px solid var(--ink)}
tbody th{font-weight:600;position:sticky;left:0;background:var(--paper)}
:not(.confusion)>tbody th{min-width:8.5rem}
td:last-child,th:last-child{padding-right:0}
.number{text-align:right;white-space:nowrap}
.swatch::before{content:"";display:inline-block;width:.8rem;height:.28rem;margin-right:.45rem;vertical-align:.2rem;background:var(--c)}
.confusion td,.confusion th{padding:.25rem .4rem;text-align:right}
.confusion tbody th,.confusion .corner{text-align:left}
.confusion thead th:not(.corner){writing-mode:vertical-rl;transform:rotate(180deg);text-align:left;vertical-align:middle;padding:.4rem .25rem;
 border-bottom:0;border-top:1px solid var(--ink)}
.confusion td{min-width:2.3rem;border:1px solid var(--paper);
 background:color-mix(in srgb,var(--accent) calc(var(--share)*var(--mix)),var(--raised));color:var(--ink)}
.confusion .nil{color:var(--soft)}
.confusion td.own{outline:1.5px solid var(--ink);outline-offset:-2px}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;color:var(--ink)}
details{margin:.5rem 0;border:1px solid var(--line);border-radius:4px}
summary{cursor:pointer;padding:.5rem .8rem;font-weight:600;overflow-wrap:anywhere}
details>:not(summary){margin-left:.8rem;margin-right:.8rem}
pre{background:var(--raised);padding:.7rem .8rem;overflow-x:auto;font:12.5px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
 white-space:pre-wrap;overflow-wrap:anywhere}
footer{margin-top:2.5rem;padding-bottom:2rem}
footer p{border-top:1px solid var(--line);padding-top:.6rem}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
@media (max-width:34rem){.facts{grid-template-columns:1fr 1fr}}
@media print{
 body{font-size:10.5pt}main,header,footer{max-width:none;padding:0}nav{display:none}
 figure,tr,.facts div{break-inside:avoid}h2,h3,h4{break-after:avoid}.scroll{overflow:visible}
 details::details-content{content-visibility:visible;block-size:auto}
 .grid{grid-template-columns:repeat(2,1fr)}table{font-size:7.5pt}.number{white-space:normal}.confusion{break-inside:avoid}
 *{print-color-adjust:exact}
}
"""
