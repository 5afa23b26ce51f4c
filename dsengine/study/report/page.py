"""The page, from top to bottom: what was run, alarms, curves, what each run was shown and made of it, evaluations, settings, machine."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import dsengine
from dsengine.corpus import Corpus, SeriesCorpus
from dsengine.study.report import clouds, evaluations, overview, training
from dsengine.study.report.folders import Evaluation, RunFolder
from dsengine.study.report.html import Html, join, missing, paragraph, tag
from dsengine.study.report.pictures import picture
from dsengine.study.report.style import DARK, LIGHT, sheet

GENERATOR = "dsengine report"
# Nothing is loaded and nothing runs: what a browser is told to hold the page to.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_NOT_PICTURES = ("views", "loss")  # of a run's figures: shown by name, and drawn anew


def page(runs: Sequence[RunFolder], found: Sequence[Evaluation], corpora: Sequence[Corpus | SeriesCorpus | str], *, samples: int, label: str | None,
         short: bool = False) -> str:
    """The whole file. samples: of the embeddings, 0 leaves them out. short: no evaluations are looked for, and it says where they come from."""
    title = _title(runs, found)
    sections = [("runs", "What was run", _runs(runs, corpora)), ("curves", "Training", training.curves(runs))] if runs else []
    sections += [(f"run-{k}", _heading(run, runs), _shown(run, corpus, samples=samples, label=label, short=short))
                 for k, (run, corpus) in enumerate(zip(runs, corpora), 1)]
    if not short:
        sections.append(("evaluations", "Evaluations", evaluations.overview(list(found))))
    if runs:
        sections += [("settings", "Settings", join([overview.differences(runs) if len(runs) > 1 else None, *map(overview.configuration, runs)])),
                     ("machine", "Machine and versions", _machines(runs))]
    links = [tag("li", None, tag("a", {"href": f"#{key}"}, name)) for key, name, _ in sections]
    parts = [tag("section", {"id": key, "aria-labelledby": f"{key}-title"}, tag("h2", {"id": f"{key}-title"}, name), content)
             for key, name, content in sections]
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    head = tag("header", None, tag("h1", None, title), paragraph(_lead(runs, made), kind="lead"),
               tag("nav", {"aria-label": "sections"}, tag("ul", None, *links)))
    end = tag("footer", None, paragraph(f"Made by dsengine {dsengine.__version__} on {made}. The file needs nothing beside it and loads nothing."))
    return _document(title, join([head, tag("main", None, *parts), end]))


def _document(title: str, body: Html) -> str:
    colours = [tag("meta", {"name": "theme-color", "content": theme["paper"], "media": f"(prefers-color-scheme: {mode})"})
               for mode, theme in (("light", LIGHT), ("dark", DARK))]
    head = [tag("meta", {"charset": "utf-8"}), tag("meta", {"name": "generator", "content": GENERATOR}),
            tag("meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY}),
            tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
            tag("meta", {"name": "color-scheme", "content": "light dark"}),
            *colours, tag("title", None, title), tag("style", None, Html(sheet()))]
    return f"<!doctype html>\n{tag('html', {'lang': 'en'}, tag('head', None, *head), tag('body', None, body))}\n"


def _title(runs: Sequence[RunFolder], found: Sequence[Evaluation]) -> str:
    if not runs:
        return f"{len(found)} evaluation{'s' * (len(found) != 1)}"
    return runs[0].name if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.name for run in runs[:4])}{', ...' if len(runs) > 4 else ''}"


def _lead(runs: Sequence[RunFolder], made: str) -> str:
    if len(runs) != 1:
        return f"Report of {made}"
    run = runs[0]
    method, encoder = (run.setting(key, "name") or f"unknown {key}" for key in ("method", "encoder"))
    return f"{method}, {encoder} on {Path(str(run.setting('corpus') or '-')).name}"


def _runs(runs: Sequence[RunFolder], corpora: Sequence[Corpus | SeriesCorpus | str]) -> Html:
    shown = overview.summary(runs[0], corpora[0]) if len(runs) == 1 else overview.comparison(runs)
    return join([training.alarm_list(runs), shown])


def _heading(run: RunFolder, runs: Sequence[RunFolder]) -> str:
    return "Views and embeddings" if len(runs) == 1 else run.name


def _shown(run: RunFolder, corpus: Corpus | SeriesCorpus | str, *, samples: int, label: str | None, short: bool) -> Html:
    """What the run was shown, what its method drew, what its encoder makes of the corpus."""
    facts = [] if isinstance(corpus, str) else [f" of {corpus.path.name}"]
    views = run.path / "figures" / "views.png"
    parts: list[Html | None] = [tag("h3", None, "What the method was shown")]
    parts.append(picture(views, "The first samples of the first batch, every view of each, z-scores of -2 ... 2.5 from black to white",
                         alt=f"contact sheet of the views of the first batch{''.join(facts)}")
                 if views.exists() else missing("No contact sheet: figures/views.png is written after the first step."))
    drawn = sorted(path for path in (run.path / "figures").glob("*.png") if path.stem not in _NOT_PICTURES)
    parts.append(tag("h3", None, "What the method drew"))
    parts += [picture(path, f"{path.stem.replace('_', ' ').capitalize()} of the last logged batch, below the view it was made of",
                      alt=f"{path.stem.replace('_', ' ')} beside its input") for path in drawn]
    if not drawn:
        parts.append(missing(f"No reconstructions: {run.setting('method', 'name') or 'the method'} draws none."))
    if samples:
        parts += [tag("h3", None, "Embeddings"), clouds.section(run, corpus, samples=samples, label=label)]
    elif not short:
        parts.append(missing("No embeddings: --samples 0."))
    else:
        parts.append(missing(f"Embeddings and evaluations are not in this short report: `dsengine report {run.path}` adds them."))
    return join(parts)


def _machines(runs: Sequence[RunFolder]) -> Html:
    return join(join([tag("h3", None, run.name) if len(runs) > 1 else None, overview.surroundings(run)]) for run in runs)
