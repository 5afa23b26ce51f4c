"""What every evaluation begins with: the corpus, who is judged, the device, and the head of results.json."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.build.optional import need
from dsengine.corpus.leakage import leakage
from dsengine.errors import UsageError
from dsengine.evaluate.features import corpus_digest
from dsengine.evaluate.folds import Fold, described
from dsengine.evaluate.settings import Common
from dsengine.evaluate.subjects import Subject, pretrained, untrained, with_floors

NONE = "none"


class Session(NamedTuple):
    """One evaluation's surroundings."""

    corpus: Corpus
    subjects: list[Subject]  # the runs, then floors
    device: torch.device


def open_session(runs: list[str], corpus: str | os.PathLike[str], setting: Common, *, floors: tuple[str, ...], encoder: str) -> Session:
    """The session of `runs`, each DIR, NAME=DIR or `none`, an untrained `encoder`; floors: those that the evaluation has by default."""
    need("sklearn", "evaluate")
    opened = open_corpus(corpus)
    if not isinstance(opened, Corpus):
        raise UsageError(f"corpus: {corpus} holds series or pixels; legal here: a corpus of patches")
    if not runs:
        raise UsageError("run: name a run folder or more, or none")
    contract = opened.contract()
    subjects = [untrained({"name": encoder}, contract, seed=setting.seed) if run == NONE else pretrained(run, part=setting.input) for run in runs]
    names = [subject.name for subject in subjects]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"run: {twice[0]} is the name of two runs; legal: NAME=DIR")
    chosen = floors if setting.floors is None else setting.floors
    return Session(opened, with_floors(subjects, chosen, seed=setting.seed), choose_device(setting.device))


def choose_device(name: str | None) -> torch.device:
    """The device called `name`, or the first GPU, or the CPU."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UsageError(f"device={name!r} is unknown; legal: cpu, cuda, cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device={name}: this machine shows {torch.cuda.device_count()} GPUs; legal: cpu, or one of them")
    return device


def header(session: Session, setting: Common, label: str, folds: list[Fold]) -> dict[str, Any]:
    """What results.json says of all rows."""
    corpus = session.corpus
    counts = [{"name": fold.name, "train": len(fold.train), "val": len(fold.val), "test": len(fold.test)} for fold in folds]
    far = leakage(corpus) if setting.split == "corpus" else None
    return {"corpus": {"path": str(corpus.path), "sha256": corpus_digest(corpus), "num_patches": len(corpus), "label": label},
            "setting": asdict(setting), "folds": counts,
            "split": described(corpus, split=setting.split, fractions=setting.fractions, seed=setting.seed), "distance": None if far is None else far.sentence()}


def features_folder(out: Path, folder: str | os.PathLike[str] | None) -> Path:
    """Where feature files lie: OUT/features unless another folder is shared by several evaluations."""
    return Path(folder) if folder is not None else out / "features"
