"""A study as cells: corpora to make, runs to train, evaluations to carry out; each a child process of its own.

A cell's identity is the hash of its complete settings, those of what it builds on included. So a cell that is changed in the file is
another cell, a finished one is never done again, and equal ones are one.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dsengine import config as configuration
from dsengine.corpus import open_corpus
from dsengine.corpus.storage import absolute
from dsengine.errors import UsageError
from dsengine.evaluate.features import corpus_digest
from dsengine.study.spec import NONE, Entry, Evaluation, Study, Synth

JOINT = frozenset({"crops"})  # evaluations that judge all runs of a seed at once, because they compare them
# What no figure of a run depends on.
_FREE = {"data": ("threads", "prefetch", "resident", "timeout_s"), "train": ("log_steps", "checkpoint_steps", "async_save", "keep_checkpoints", "first_conv")}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing to do. Its `about` says what it is of: encoder, method, seed and evaluation, as far as that makes sense."""

    kind: str  # corpus | train | evaluate
    name: str
    settings: dict[str, Any]  # all that decides its outcome
    needs: tuple[str, ...] = ()  # cells that must be done before
    runs: dict[str, str] = field(default_factory=dict)  # of an evaluation: name -> training cell
    about: dict[str, Any] = field(default_factory=dict)
    task: Any = None  # Synth | settings of the run | Evaluation
    corpus: str = ""  # cell or path

    @property
    def id(self) -> str:
        """16 hexadecimal digits."""
        return hashlib.sha256(json.dumps([self.kind, self.settings], sort_keys=True, default=str).encode()).hexdigest()[:16]

    @property
    def folder(self) -> str:
        """Where its outcome lies, in the study's folder."""
        where = {"corpus": "corpora", "train": "runs", "evaluate": f"evaluations/{self.about.get('evaluation')}"}[self.kind]
        return f"{where}/{self.name.replace(' ', '-')}-{self.id[:8]}"


def plan(study: Study) -> list[Cell]:
    """All cells, each after what it needs. UsageError for settings that are not legal and corpora that are not there."""
    found: dict[str, Cell] = {}
    corpora: dict[str, tuple[str, Any]] = {}

    def corpus(of: str | Synth) -> tuple[str, Any]:
        """(cell's id or path, identity)."""
        if repr(of) not in corpora:
            corpora[repr(of)] = _made(of, found) if isinstance(of, Synth) else _there(of)
        return corpora[repr(of)]

    trained = {}
    for encoder, method, seed in _grid(study):
        _check_untrained(encoder, method)
        if method.name != NONE:
            cell = _train(study, encoder, method, seed, *corpus(method.corpus or encoder.corpus or study.corpus))
            trained[encoder.key, method.key, seed] = found.setdefault(cell.id, cell)
    for evaluation in study.evaluations:
        where, identity = corpus(evaluation.corpus)
        make = _joint if evaluation.command in JOINT else _single
        for cell in make(study, evaluation, trained, where, identity):
            found.setdefault(cell.id, cell)
    # A run is judged as soon as it is trained, so that a study cut short has part of its tables; what judges all runs comes last.
    turn = {(encoder.key, method.key, seed): k for k, (encoder, method, seed) in enumerate(_grid(study))}
    return sorted(found.values(), key=lambda cell: -1 if cell.kind == "corpus" else turn.get(place_of(cell), len(turn)))


def place_of(cell: Cell) -> tuple[str | None, str | None, int]:
    """Encoder, method and seed; the first two are None of an evaluation of all runs."""
    return cell.about["encoder"], cell.about["method"], cell.about["seed"]


def _grid(study: Study) -> Iterator[tuple[Entry, Entry, int]]:
    """Seed by seed, so that a study cut short has whole tables of the first ones."""
    return ((encoder, method, seed) for seed in study.seeds for method in study.methods for encoder in study.encoders)


def _made(of: Synth, found: dict[str, Cell]) -> tuple[str, Any]:
    what = f"{of.patches or of.rows} {of.kind}" + (f" of {of.size} px" if of.kind == "patches" else "")
    settings = asdict(of) if of.kind == "patches" else {"kind": of.kind, "rows": of.rows, "seed": of.seed}
    cell = Cell(kind="corpus", name=f"synth {what} seed {of.seed}", settings={"synth": settings}, task=of, about={"corpus": what})
    found[cell.id] = cell
    return cell.id, cell.settings


def _there(path: str) -> tuple[str, Any]:
    opened = open_corpus(path)
    return absolute(path), {"path": absolute(path), "sha256": corpus_digest(opened)}


def _check_untrained(encoder: Entry, method: Entry) -> None:
    if method.name == NONE and encoder.settings:
        raise UsageError(f"encoders.{encoder.key}.{next(iter(encoder.settings))}: the method {NONE} judges an untrained {encoder.name} as it comes; "
                         f"legal: encoders without settings, or a study without {NONE}")


def _train(study: Study, encoder: Entry, method: Entry, seed: int, corpus: str, identity: Any) -> Cell:
    name = f"{encoder.key} {method.key} s{seed}"
    layers = [study.run, encoder.run, method.run, *(o.settings for o in study.overrides if o.fits(encoder.key, method.key, seed))]
    own = {"encoder": {"name": encoder.name, **encoder.settings}, "method": {"name": method.name, **method.settings}, "train": {"seed": seed}}
    try:
        config = configuration.dump(configuration.resolve(configuration.merge(own, *layers)))
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
    if config["train"]["seed"] != seed:
        raise UsageError(f"{name}: train.seed={config['train']['seed']}: the study's `seeds` say it; leave it out")
    settings = {key: value for key, value in config.items() if key not in ("out", "device", "corpus")}
    for section, free in _FREE.items():
        settings[section] = {key: value for key, value in settings[section].items() if key not in free}
    about = {"encoder": encoder.key, "method": method.key, "seed": seed}
    return Cell(kind="train", name=name, settings={**settings, "corpus": identity}, needs=_needs(corpus), about=about, task=config, corpus=corpus)


def _single(study: Study, evaluation: Evaluation, trained: dict, corpus: str, identity: Any) -> Iterator[Cell]:
    """A cell for each encoder, method and seed; the first has what is none of theirs, floors and ImageNet's weights."""
    for k, (encoder, method, seed) in enumerate(_grid(study)):
        run = trained.get((encoder.key, method.key, seed))
        label = f"{encoder.key}-{method.key}"
        runs = {} if run is None else {label: run.id}
        about = {"evaluation": evaluation.key, "encoder": encoder.key, "method": method.key, "seed": seed, "untrained": encoder.name if run is None else None}
        own = replace(evaluation, setting=_seeded(evaluation, seed))
        alone = own if k == 0 else replace(own, setting=replace(own.setting, floors=()), imagenet=None)
        yield _evaluation(alone, f"{label} s{seed}", about, runs, corpus, identity)


def _joint(study: Study, evaluation: Evaluation, trained: dict, corpus: str, identity: Any) -> Iterator[Cell]:
    """A cell for each seed, of all runs."""
    for seed in study.seeds:
        runs = {f"{encoder}-{method}": cell.id for (encoder, method, of), cell in trained.items() if of == seed}
        about = {"evaluation": evaluation.key, "encoder": None, "method": None, "seed": seed, "untrained": None}
        yield _evaluation(replace(evaluation, setting=_seeded(evaluation, seed)), f"all s{seed}", about, runs, corpus, identity)


def _seeded(evaluation: Evaluation, seed: int) -> Any:
    """Its setting with the seed of the runs, unless the file fixes one."""
    return evaluation.setting if "seed" in evaluation.given else replace(evaluation.setting, seed=seed)


def _evaluation(evaluation: Evaluation, name: str, about: dict, runs: dict[str, str], corpus: str, identity: Any) -> Cell:
    setting = {key: value for key, value in asdict(evaluation.setting).items() if key != "device"}
    settings = {"command": evaluation.command, "setting": setting, "things": evaluation.things, "imagenet": evaluation.imagenet,
                "runs": runs or {"untrained": about["untrained"]}, "corpus": identity}
    return Cell(kind="evaluate", name=name, settings=settings, needs=(*_needs(corpus), *runs.values()), runs=runs, about=about, task=evaluation, corpus=corpus)


def _needs(corpus: str) -> tuple[str, ...]:
    """The cell that makes the corpus, if one does: a path is absolute or has a scheme."""
    return () if "/" in corpus else (corpus,)
