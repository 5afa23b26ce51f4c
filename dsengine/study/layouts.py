"""Which tables a study has: Table 9 of the first paper (pretraining x encoder), classes behind it (Figure 4), Table I of the third (band x encoder)."""

from collections.abc import Iterable, Sequence

from dsengine.evaluate.book import FIGURES
from dsengine.study.results import Facts, Judged, Result, Score, varying
from dsengine.study.spec import Entry as Choice
from dsengine.study.spec import Study
from dsengine.study.table import Entry, Table, entry, shown

_BY_CLASS = {"iou_weighted": ("iou", "Jaccard index (IoU)")}  # figure -> what is shown of a class; of others F1


def tables(study: Study, judged: Judged) -> list[Table]:
    """Of one evaluation that judges run by run."""
    found = []
    for facts in _groups(judged):
        rows = [result for result in judged.results if _without_band(result.facts) == facts]
        whole = [result for result in rows if dict(result.facts).get("band", "all") == "all"]
        by_band = [result for result in rows if result not in whole]
        about = _said(facts, judged)
        if whole:
            found += [grid(study, judged, whole, about), classes(study, judged, whole, about)]
        if by_band:
            found.append(bands(study, judged, by_band, about))
    return found or [grid(study, judged, [], "")]  # all failed: the table says why


def grid(study: Study, judged: Judged, results: Sequence[Result], about: str) -> Table:
    """Rows: pretraining; columns: encoders."""
    entries = tuple(tuple(_entry(study, judged, results, encoder, method) for encoder in study.encoders) for method in study.methods)
    heads = (("parameters, million", *(_millions(judged, results, encoder) for encoder in study.encoders)),)
    return Table(name=file_name(judged.evaluation.key, about), title=f"{judged.evaluation.title}: {_figure(judged)} on test, %{about}", corner="pretraining",
                 rows=_titles(study.methods), columns=_titles(study.encoders), entries=entries, heads=heads if results else (),
                 notes=tuple(filter(None, (_legend(study, entries), *_floors(judged, results)))))


def classes(study: Study, judged: Judged, results: Sequence[Result], about: str) -> Table:
    """Rows: encoder and pretraining; columns: classes."""
    key, name = by_class(judged)
    pairs = [(encoder, method) for encoder in study.encoders for method in study.methods]
    entries = tuple(tuple(class_entry(results, encoder, method, label, key) for label in judged.classes) for encoder, method in pairs)
    return Table(name=file_name(f"{judged.evaluation.key}-classes", about), title=f"{judged.evaluation.title}: {name} of each class on test, %{about}",
                 corner="encoder, pretraining", rows=tuple(f"{encoder.title}, {method.title}" for encoder, method in pairs),
                 columns=judged.classes, entries=entries, bold=False, notes=("Underlined: the best of a class. - is nothing to score, or not done.",))


def bands(study: Study, judged: Judged, results: Sequence[Result], about: str) -> Table:
    """Rows: bands; columns: foreign weights, then encoder and pretraining."""
    names = tuple(dict.fromkeys(dict(result.facts)["band"] for result in results))
    foreign = tuple(dict.fromkeys(result.name for result in results if result.encoder is None))
    pairs = [(encoder, method) for encoder in study.encoders for method in study.methods]
    entries = []
    for band in names:
        of = [result for result in results if dict(result.facts)["band"] == band]
        strangers = [entry([r.figures[judged.figure] for r in of if r.encoder is None and r.name == name]) for name in foreign]
        entries.append((*strangers, *(_entry(study, judged, of, encoder, method) for encoder, method in pairs)))
    columns = (*foreign, *(method.title if len(study.encoders) == 1 else f"{encoder.title}, {method.title}" for encoder, method in pairs))
    return Table(name=file_name(f"{judged.evaluation.key}-bands", about), title=f"{judged.evaluation.title}: {_figure(judged)} by band on test, %{about}",
                 corner="band", rows=names, columns=columns, entries=tuple(entries), underline=False,
                 notes=("Bold: the best encoder of a band.", *_rest_of_legend(study, entries)))


def class_entry(results: Sequence[Result], encoder: Choice, method: Choice, label: str, key: str) -> Entry:
    """Of one class."""
    return entry([result.classes[label][key] for result in _of(results, encoder, method) if key in result.classes.get(label, {})])


def by_class(judged: Judged) -> tuple[str, str]:
    """What is shown of a class, and its name."""
    return _BY_CLASS.get(judged.figure, ("f1", "F1"))


def comparable(judged: Judged) -> list[tuple[str, list[Result]]]:
    """What each picture is of: (facts in words, results that judge the whole encoder)."""
    found = [(_said(facts, judged), [r for r in judged.results if _without_band(r.facts) == facts and dict(r.facts).get("band", "all") == "all"])
             for facts in _groups(judged)]
    return [(about, results) for about, results in found if results]


def file_name(evaluation: str, about: str) -> str:
    """Of a table or picture: `landcover-label-fraction-0.1`."""
    return evaluation + "".join(f"-{part.strip().replace(' ', '-')}" for part in about.split(",") if part.strip())


def _entry(study: Study, judged: Judged, results: Sequence[Result], encoder: Choice, method: Choice) -> Entry:
    scores = [result.figures.get(judged.figure, Score(*[float("nan")] * 3)) for result in _of(results, encoder, method)]
    errors = [f"{encoder.title}, {method.title}, seed {seed}: {error}" for seed in study.seeds
              if (error := judged.errors.get((encoder.key, method.key, seed))) is not None]
    return entry(scores, errors)


def _of(results: Iterable[Result], encoder: Choice, method: Choice) -> list[Result]:
    return sorted((r for r in results if (r.encoder, r.method) == (encoder.key, method.key)), key=lambda result: result.seed)


def _groups(judged: Judged) -> list[Facts]:
    return list(dict.fromkeys(_without_band(result.facts) for result in judged.results))


def _without_band(facts: Facts) -> Facts:
    return tuple((name, value) for name, value in facts if name != "band")


def _said(facts: Facts, judged: Judged) -> str:
    """The facts in which rows differ, as `, probe linear`."""
    differ = set(varying(judged.results))
    return "".join(f", {name.replace('_', ' ')} {value:g}" if isinstance(value, float) else f", {name.replace('_', ' ')} {value}"
                   for name, value in facts if name in differ)


def _titles(choices: Iterable[Choice]) -> tuple[str, ...]:
    return tuple(choice.title for choice in choices)


def _figure(judged: Judged) -> str:
    return FIGURES.get(judged.figure, judged.figure or "nothing done")


def _legend(study: Study, entries: Sequence[Sequence[Entry]]) -> str:
    marks = [*(["Bold: the best encoder of a pretraining."] if len(study.encoders) > 1 else []),
             *(["Underlined: the best pretraining of an encoder."] if len(study.methods) > 1 else [])]
    return " ".join([*marks, *_rest_of_legend(study, entries)])


def _rest_of_legend(study: Study, entries: Sequence[Sequence[Entry]]) -> list[str]:
    said = []
    if any(of.low == of.low for line in entries for of in line):
        said.append(f"[95 % interval{', its ends averaged over seeds' if len(study.seeds) > 1 else ''}].")
    if len(study.seeds) > 1:
        said.append(f"Mean ± sample deviation of the seeds {', '.join(map(str, study.seeds))}.")
    return said


def _floors(judged: Judged, results: Sequence[Result]) -> tuple[str, ...]:
    """What an encoder has to beat; judged once."""
    floors = [f"{r.name} {shown(entry([r.figures[judged.figure]]), plus_minus='±')}" for r in results if r.encoder is None]
    return (f"Floors: {'; '.join(floors)}.",) if floors else ()


def _millions(judged: Judged, results: Sequence[Result], encoder: Choice) -> str:
    """Parameters of the encoder, with the deconvolution head where there is one."""
    import torch

    from dsengine.encoders import build_encoder
    from dsengine.evaluate.segment import Segmenter

    mine = next((result for result in results if result.encoder == encoder.key and result.bands), None)
    recipe = dict(mine.about.get("encoder") or {}) if mine is not None else {}
    if not recipe:
        return "-"
    with torch.device("meta"):
        module = build_encoder(recipe.pop("name"), len(mine.bands), **recipe)
        if judged.evaluation.command == "landcover":
            module = Segmenter(module, module.dim, judged.evaluation.setting.channels or len(judged.classes), seed=0)
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.1f}"
