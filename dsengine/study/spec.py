"""A study as it is written down: YAML -> `Study`, typed; an unknown key names its neighbours. docs/study.md is the user's page.

    title: ...
    corpus: PATH, or {synth: {patches: 384, size: 64}}
    encoders: [NAME, ...], or {KEY: {name, title, corpus, settings of the encoder, train: {}, data: {}}}
    methods:  the same; `none` is no pretraining
    seeds: [0, 1]
    train: {}, data: {}                                   of every training, as in a run's config.yaml
    overrides: [{encoder, method, seed: whom, set: {train.lr: 1e-4}}]
    evaluations: {KEY: {command, title, corpus, figure, things, imagenet, settings of the evaluation}}
    variants: {NAME: any of these keys, put over the others with --variant NAME}
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from dsengine import config as configuration
from dsengine import typed
from dsengine.errors import UsageError, nearest

EXAMPLES = Path(__file__).parent / "examples"
NONE = "none"  # the method that is no pretraining
OPEN = "?"  # a corpus that the user must name
COMMANDS = ("landcover", "scene", "linear", "knn", "patches", "crops")
_KEYS = ("title", "corpus", "encoders", "methods", "seeds", "train", "data", "overrides", "evaluations", "variants")
_SECTIONS = ("train", "data")
_CHOICES = ("encoders", "methods", "evaluations")
_KEY = re.compile(r"[A-Za-z0-9_.+-]+")


@dataclass(frozen=True, kw_only=True)
class Synth:
    """A synthetic corpus, made by the study; `dsengine corpus synth` and `neighbours`."""

    kind: str = "patches"
    patches: int | None = None
    rows: int | None = None
    size: int = 128
    seed: int = 0
    neighbours: bool = True  # of patches, which t2v needs

    def __post_init__(self) -> None:
        if self.kind not in ("patches", "pixels", "series"):
            raise UsageError(f"kind={self.kind!r}: legal: patches, pixels, series")
        wanted, other = ("patches", "rows") if self.kind == "patches" else ("rows", "patches")
        if getattr(self, wanted) is None or getattr(self, other) is not None:
            raise UsageError(f"{wanted}={getattr(self, wanted)}, {other}={getattr(self, other)}: a synthetic corpus of {self.kind} needs {wanted} alone")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An encoder or a method of the study."""

    key: str
    name: str
    title: str
    settings: dict[str, Any]  # of the encoder or method
    run: dict[str, Any]  # train, data and encoders of its runs
    corpus: "str | Synth | None" = None  # None: the study's


@dataclass(frozen=True, kw_only=True)
class Override:
    """Settings of some trainings; None: of any."""

    encoders: tuple[str, ...] | None
    methods: tuple[str, ...] | None
    seeds: tuple[int, ...] | None
    settings: dict[str, Any]

    def fits(self, encoder: str, method: str, seed: int) -> bool:
        """Whether it is about this cell."""
        return all(legal is None or value in legal for value, legal in ((encoder, self.encoders), (method, self.methods), (seed, self.seeds)))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How runs are judged."""

    key: str
    command: str
    title: str
    corpus: "str | Synth"
    figure: str | None  # that the table shows; None: the evaluation's own
    things: str | None
    imagenet: str | None
    setting: Any  # the evaluation's frozen Setting
    given: frozenset[str]  # which of its fields the file names


@dataclass(frozen=True, kw_only=True)
class Study:
    """Encoders x methods x seeds x evaluations."""

    title: str
    corpus: "str | Synth"
    encoders: tuple[Entry, ...]
    methods: tuple[Entry, ...]
    seeds: tuple[int, ...] = (0,)
    run: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[Override, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()


def examples() -> list[str]:
    """Names of the studies that ship."""
    return sorted(path.stem for path in EXAMPLES.glob("*.yaml"))


def load(name: str | Path, *, variant: str | None = None, settings: Iterable[str] = ()) -> Study:
    """The study in a YAML file, or a shipped one by its name. settings: `dotted.key=value`, over the file's.

    Raises UsageError for a file that does not read and for every key and value that is not legal.
    """
    path = Path(name)
    if not path.is_file() and path.name == str(name):
        path = EXAMPLES / f"{path.name.removesuffix('.yaml')}.yaml"
        if not path.exists():
            raise UsageError(f"study {name}: no such file, and no study of that name ships; {nearest(str(name), examples())}")
    raw = _mapped(_read(path))
    variants = _section(raw.pop("variants", None), "variants")
    if variant is not None and variant not in variants:
        raise UsageError(f"--variant {variant}: {name} has none of that name; " + (nearest(variant, variants) if variants else "it has no variants"))
    layers = [_section(variants[variant], f"variants.{variant}")] if variant is not None else []
    for layer in (*layers, *(configuration.nest(key, typed.from_text(value)) for key, value in map(_assignment, settings))):
        raw = configuration.merge(_narrowed(raw, layer), _mapped(layer))
    return parse(raw, default_title=path.stem)


def parse(raw: dict[str, Any], *, default_title: str = "study") -> Study:
    """The study that nested settings describe."""
    _check_keys(raw, [key for key in _KEYS if key != "variants"], "")
    corpus = _corpus(raw.get("corpus", OPEN), "corpus")
    encoders = _entries(raw.get("encoders"), "encoders")
    methods = _entries(raw.get("methods"), "methods")
    seeds = typed.coerce(raw.get("seeds", [0]), tuple[int, ...], "seeds")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UsageError(f"seeds={list(seeds)}: legal: one or more numbers from 0, each once")
    known = {"encoder": [e.key for e in encoders], "method": [m.key for m in methods], "seed": list(seeds)}
    overrides = typed.coerce(raw.get("overrides") or [], tuple[dict, ...], "overrides")
    evaluations = tuple(_evaluation(key, _section(given, f"evaluations.{key}"), corpus)
                        for key, given in _section(raw.get("evaluations"), "evaluations").items())
    return Study(title=str(raw.get("title", default_title)), corpus=corpus, encoders=encoders, methods=methods, seeds=seeds,
                 run={name: _section(raw.get(name), name) for name in _SECTIONS}, evaluations=evaluations,
                 overrides=tuple(_override(given, f"overrides[{k}]", known) for k, given in enumerate(overrides)))


def setting_of(command: str) -> type:
    """The Setting of an evaluation."""
    from importlib import import_module

    return import_module(f"dsengine.evaluate.{command}{'.settings' if command == 'crops' else ''}").Setting


def _read(path: Path) -> dict[str, Any]:
    try:
        return _section(yaml.safe_load(path.read_text()), str(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"study {path}: not readable YAML ({' '.join(str(error).split())})") from error


def _mapped(raw: dict[str, Any]) -> dict[str, Any]:
    """`raw` with lists of encoders, methods and evaluations as {key: settings}, so that later layers can reach into them."""
    def mapped(value: Any, where: str) -> Any:
        if not isinstance(value, list):
            return value
        found = [(one.get("name"), one) if isinstance(one, dict) else (one, {}) for one in value]
        keys = [key for key, _ in found]
        if wrong := [key for key in keys if not isinstance(key, str) or keys.count(key) > 1]:
            raise UsageError(f"{where}: {wrong[0]!r}: legal: names, each once; or {{KEY: {{name: NAME, ...}}}} to have one name twice")
        return {key: {**settings} for key, settings in found}

    return {key: mapped(value, key) if key in _CHOICES else value for key, value in raw.items()}


def _narrowed(raw: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    """`raw` with no other encoders, methods and evaluations than those that `layer` lists, where it has a list of them."""
    chosen = {key: mapped for key, mapped in _mapped(layer).items() if key in _CHOICES and isinstance(layer[key], list)}
    return {**raw, **{key: {one: _section(raw.get(key), key).get(one) or {} for one in mapped} for key, mapped in chosen.items()}}


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {text}: must be dotted.key=value")
    return key.strip(), value


def _section(value: Any, where: str) -> dict[str, Any]:
    """A mapping; nothing is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{where}: must hold `key: value` lines, got {value!r}")
    if wrong := [key for key in value if not isinstance(key, str)]:
        raise UsageError(f"{where}: the key {wrong[0]!r} is no text; legal: names (quote one that YAML takes for a number or a truth value)")
    return value


def _check_keys(given: Iterable[str], legal: Iterable[str], where: str) -> None:
    for key in given:
        if key not in legal:
            raise UsageError(f"{f'{where}.' if where else ''}{key} is not a setting; {nearest(str(key), legal)}")


def _corpus(value: Any, where: str) -> "str | Synth":
    if value == OPEN:
        raise UsageError(f"{where}: the file leaves it to you; legal: --set {where}=PATH{' or --corpus PATH' if where == 'corpus' else ''}, or a variant that names one")
    if isinstance(value, (str, Path)):
        return str(value)
    given = _section(value, where)
    _check_keys(given, ("synth",), where)
    return typed.fill(Synth, _section(given.get("synth"), f"{where}.synth"), prefix=f"{where}.synth")


def _entries(value: Any, where: str) -> tuple[Entry, ...]:
    given = _section(value, where)
    if not given:
        raise UsageError(f"{where}: names none; legal: a list of names, or {{KEY: {{name: NAME, ...}}}}")
    return tuple(_entry(key, dict(_section(settings, f"{where}.{key}")), where) for key, settings in given.items())


def _entry(key: str, settings: dict[str, Any], where: str) -> Entry:
    _check_key(key, where)
    name, title, corpus = (settings.pop(part, default) for part, default in (("name", key), ("title", key), ("corpus", None)))
    run = {part: _section(settings.pop(part, None), f"{where}.{key}.{part}") for part in _SECTIONS}
    if where == "methods" and "encoders" in settings:
        run["encoders"] = _section(settings.pop("encoders"), f"{where}.{key}.encoders")
    if name == NONE and (settings or any(run.values())):
        raise UsageError(f"{where}.{key}: {NONE} is no pretraining and has no settings, got {', '.join([*settings, *(part for part in run if run[part])])}")
    return Entry(key=key, name=str(name), title=str(title), settings=settings, run=run,
                 corpus=None if corpus is None else _corpus(corpus, f"{where}.{key}.corpus"))


def _check_key(key: str, where: str) -> None:
    if not _KEY.fullmatch(key):
        raise UsageError(f"{where}.{key}: legal are letters, digits, _ . + -, for it names folders; a `title` may be anything")


def _override(given: dict[str, Any], where: str, known: dict[str, list]) -> Override:
    _check_keys(given, (*known, "set"), where)
    chosen = {}
    for key, legal in known.items():
        values = given.get(key)
        values = None if values is None else tuple(values) if isinstance(values, list) else (values,)
        if wrong := [value for value in values or () if value not in legal]:
            raise UsageError(f"{where}.{key}: {wrong[0]!r} is none of the study's; {nearest(str(wrong[0]), map(str, legal))}")
        chosen[f"{key}s"] = values
    nested = [configuration.nest(key, value) for key, value in _section(given.get("set"), f"{where}.set").items()]
    if not nested:
        raise UsageError(f"{where}: sets nothing; legal: set: {{train.lr: 1e-4}}")
    return Override(**chosen, settings=configuration.merge(*nested))


def _check_figure(where: str, command: str, figure: Any) -> None:
    from dsengine.evaluate.book import FIGURES

    if figure is not None and (command == "crops" or figure not in FIGURES):
        legal = "win matrices are of accuracy; leave it out" if command == "crops" else nearest(str(figure), FIGURES)
        raise UsageError(f"{where}.figure={figure}: is not legal; {legal}")


def _evaluation(key: str, given: dict[str, Any], corpus: "str | Synth") -> Evaluation:
    _check_key(key, "evaluations")
    where, given = f"evaluations.{key}", dict(given)
    command, title, own, figure, things, imagenet = (given.pop(part, default) for part, default in (
        ("command", key), ("title", key), ("corpus", None), ("figure", None), ("things", None), ("imagenet", None)))
    if command not in COMMANDS:
        raise UsageError(f"{where}.command={command}: is no evaluation; {nearest(str(command), COMMANDS)}")
    _check_figure(where, command, figure)
    for name, value, of in (("things", things, "patches"), ("imagenet", imagenet, "scene")):
        if value is not None and command != of:
            raise UsageError(f"{where}.{name}: belongs to {of}, not to {command}")
    setting = setting_of(command)
    own_keys = {name: f"{where}.{name}" for name in ("command", "title", "corpus", "figure", "things", "imagenet")}
    legal = [f.name for f in fields(setting)]
    _check_keys(given, [*legal, *own_keys], where)
    return Evaluation(key=key, command=command, title=str(title), corpus=corpus if own is None else _corpus(own, f"{where}.corpus"), figure=figure,
                      things=things, imagenet=imagenet, setting=typed.fill(setting, given, prefix=where), given=frozenset(given))
