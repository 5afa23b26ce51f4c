"""Who trains, who chooses, who is judged: labelled rows parted by whole fields.

    fields        each class's fields in a drawn order, cut by `fractions`; the field's class is that of most of its rows
    corpus        the corpus's own split
    block         by place, a quarter of a degree; a field lies where its first row does
    column:NAME   whole groups of equal value in an index column
No field lies in two parts: a rule that would part one is refused.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dsengine.corpus import SeriesCorpus
from dsengine.corpus.build.grid import COLUMN, SplitRule, assign
from dsengine.corpus.schema import SPLITS
from dsengine.corpus.splits import site_places
from dsengine.data.labels import IGNORED, LabelReader, label_tables
from dsengine.errors import UsageError, nearest
from dsengine.evaluate.crops.settings import SPLIT_RULES, Setting
from dsengine.evaluate.targets import chosen_label, class_names

ELSEWHERE = "elsewhere"  # the part of task 2
JUDGED = ("test", ELSEWHERE)
_FIELD_COLUMNS = ("field", "place")


class Part(NamedTuple):
    """Some labelled rows, ascending."""

    rows: np.ndarray  # (N,) int64
    classes: np.ndarray  # (N,) int64 in [0, K)
    fields: np.ndarray  # (N,) equal for rows of one field

    def of(self, chosen: np.ndarray) -> "Part":
        """Those where `chosen` (N,) is true."""
        return Part(*(column[chosen] for column in self))


class Task(NamedTuple):
    """What is to be learned."""

    label: str
    names: tuple[str, ...]  # of the K classes
    field: str | None  # the index column; None: each row is its own
    parts: dict[str, Part]  # train, val, test, and elsewhere where there is a task 2
    left_out: dict[str, Any]  # classes of too few fields, and rows that had to go

    @property
    def rows(self) -> np.ndarray:
        """Of all parts, one after the other."""
        return np.concatenate([part.rows for part in self.parts.values()])

    def slices(self) -> dict[str, slice]:
        """Where each part lies in `rows`."""
        ends = np.cumsum([len(part.rows) for part in self.parts.values()]).tolist()
        return {name: slice(end - len(part.rows), end) for (name, part), end in zip(self.parts.items(), ends)}


def make_task(corpus: SeriesCorpus, setting: Setting) -> Task:
    """The task of `setting`. Raises UsageError for a label, column, rule or condition that is not legal, and for a part that is empty."""
    label = _label(corpus, setting.label)
    field = _field(corpus, setting.field)
    every = _labelled(corpus, label, field, setting.where)
    apart = np.isin(every.rows, corpus.rows("all", setting.test_where)) if setting.test_where else np.zeros(len(every.rows), bool)
    there, here = every.of(apart), every.of(~apart)
    shared = np.isin(here.fields, there.fields)
    here = here.of(~shared)
    kept = _common_classes(here, setting.min_fields)
    if len(kept) < 2:
        raise UsageError(f"min_fields={setting.min_fields}: {len(kept)} classes of label {label} in {corpus.path} have as many fields; "
                         f"legal: a number that leaves 2, or other rows")
    parts = _parted(corpus, _renumbered(here, kept), setting)
    if setting.test_where:
        parts[ELSEWHERE] = _renumbered(there, kept)
    _check(parts, setting)
    names = class_names(corpus, label)
    counted = np.concatenate((here.classes, there.classes))
    rare = {names[c]: int((counted == c).sum()) for c in np.unique(counted).tolist() if c not in kept}
    return Task(label, tuple(names[c] for c in kept), field, parts,
                {"rows_of_rare_classes": rare, "rows_of_fields_that_are_also_elsewhere": int(shared.sum())})


def by_fields(fields: np.ndarray, classes: np.ndarray, fractions: tuple[float, ...], *, seed: int) -> np.ndarray:
    """(N,) 0, 1 or 2: each class's fields, shuffled, cut into three; of 3 fields or more each part gets one."""
    unique, inverse = np.unique(fields, return_inverse=True)
    counts = np.zeros((len(unique), int(classes.max()) + 1), np.int64)
    np.add.at(counts, (inverse, classes), 1)
    of_field, lot = counts.argmax(1), np.random.Philox(key=np.array([seed, 0x4C0F], np.uint64)).random_raw(len(unique))
    code = np.zeros(len(unique), np.int64)
    for c in np.unique(of_field):
        mine = np.flatnonzero(of_field == c)
        mine = mine[np.argsort(lot[mine], kind="stable")]
        least = 1 if len(mine) >= len(SPLITS) else 0
        test, val = (max(least if fraction else 0, round(fraction * len(mine))) for fraction in (fractions[2], fractions[1]))
        code[mine[:test]], code[mine[test:test + val]] = 2, 1
    return code[inverse]


def described(setting: Setting, corpus: SeriesCorpus) -> dict[str, Any]:
    """The rule, for results.json."""
    if setting.split == "corpus":
        return {"by": "corpus", **{f"corpus_{key}": value for key, value in corpus.attributes.get("splits", {}).items()}}
    return {"by": setting.split, "fractions": list(setting.fractions), "seed": setting.seed}


def _label(corpus: SeriesCorpus, label: str | None) -> str:
    tables = label_tables(corpus)
    if label is None and "crop" in tables and tables["crop"].kind == "class":
        return "crop"
    return chosen_label(corpus, label, kinds=("class",), task="a crop study")


def _field(corpus: SeriesCorpus, name: str | None) -> str | None:
    legal = [column for column in corpus.index if column not in ("id", "split", "quarantine")]
    if name is None:
        return next((column for column in _FIELD_COLUMNS if column in legal), None)
    if name not in legal:
        raise UsageError(f"field={name}: no such index column, {nearest(name, legal)}")
    return name


def _labelled(corpus: SeriesCorpus, label: str, field: str | None, where: str | None) -> Part:
    rows = corpus.rows("all", where)
    classes = LabelReader(corpus, label).read(rows, None).numpy()
    known = classes != IGNORED
    if not known.any():
        raise UsageError(f"label={label}: no row of {corpus.path} has one{'' if where is None else f' with {where}'}")
    values = np.asarray(corpus.index[field])[rows] if field else rows
    return Part(rows, classes, values.astype(str) if values.dtype == object else values).of(known)


def _common_classes(part: Part, min_fields: int) -> list[int]:
    """Classes with rows in at least so many fields."""
    return [c for c in np.unique(part.classes).tolist() if len(np.unique(part.fields[part.classes == c])) >= min_fields]


def _renumbered(part: Part, kept: list[int]) -> Part:
    part = part.of(np.isin(part.classes, kept))
    return part._replace(classes=np.searchsorted(kept, part.classes))


def _parted(corpus: SeriesCorpus, part: Part, setting: Setting) -> dict[str, Part]:
    if setting.split == "fields":
        SplitRule("random", setting.fractions)  # that they are fractions
        codes = by_fields(part.fields, part.classes, setting.fractions, seed=setting.seed)
    elif setting.split == "corpus":
        codes = corpus.index["split"][part.rows]
    elif setting.split == "block" or setting.split.startswith(COLUMN):
        codes = _assigned(dict(corpus.index), SplitRule(setting.split, setting.fractions), seed=setting.seed)[part.rows]
        if setting.split == "block":
            _, first, inverse = np.unique(part.fields, return_index=True, return_inverse=True)
            codes = codes[first][inverse]
    else:
        raise UsageError(f"split={setting.split!r} is not legal: {SPLIT_RULES}")
    return {name: part.of(codes == k) for k, name in enumerate(SPLITS)}


def _assigned(columns: Mapping[str, np.ndarray], rule: SplitRule, *, seed: int) -> np.ndarray:
    lon, lat = site_places(columns, rule.block_deg)
    return assign({**columns, "split_lon": lon, "split_lat": lat}, rule, seed=seed)


def _check(parts: dict[str, Part], setting: Setting) -> None:
    """UsageError for an empty part, for fewer than 2 classes to train on, and for a field in two parts."""
    counts = ", ".join(f"{name} {len(part.rows)}" for name, part in parts.items())
    if empty := [name for name, part in parts.items() if not len(part.rows)]:
        raise UsageError(f"split={setting.split}: no labelled row in {empty[0]} ({counts}); legal: a rule or condition that leaves some in each")
    if len(np.unique(parts["train"].classes)) < 2:
        raise UsageError(f"split={setting.split}: the train part has one class only; legal: a rule that leaves it 2 or more")
    seen: dict[Any, str] = {}
    for name, part in parts.items():
        for field in np.unique(part.fields).tolist():
            if field in seen:
                raise UsageError(f"split={setting.split}: field {field} is in {seen[field]} and in {name}; legal: {SPLIT_RULES} that keep fields "
                                 "whole, such as split=fields")
            seen[field] = name
