"""Scene classification band by band, the third paper's evaluation (Jain et al. 2022, Table I): frozen encoder, weighted F1.

Two probes of the pooled features: `mlp`, the paper's "linear classifier with hidden dimension 128" (2048-128-ReLU-K for ResNet50, cross
entropy, 100 epochs), and `linear`, the truly linear one. The paper does not say how it was optimised or which epoch counts: here Adam 1e-3 in
batches of 256 on standardised features, and the epoch with the best weighted F1 on val.

Bands are chosen by name. EuroSAT's files have B8A last, and a reader that names their 13 bands in spectral order takes B09 for B8A, B12 for
B11 and B8A for B12; Table I looks like that (its NNIR, SWIR11 and SWIR12 rows), so those three rows are to be compared with B09, B12 and B8A.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dsengine.corpus import Contract
from dsengine.encoders import build_encoder
from dsengine.errors import UsageError, nearest
from dsengine.evaluate import figures, linear, tables
from dsengine.evaluate.book import Book
from dsengine.evaluate.folds import make_folds
from dsengine.evaluate.metrics import scores
from dsengine.evaluate.probes import Bench, Part, Verdict, grouped, judge_all
from dsengine.evaluate.progress import Progress
from dsengine.evaluate.session import Session, features_folder, header, open_session
from dsengine.evaluate.settings import Common, at_least
from dsengine.evaluate.subjects import FLOORS, Repeated, Subject, with_floors
from dsengine.evaluate.targets import chosen_label, of_patches

KINDS = ("class", "classmap")
PROBES = ("mlp", "linear")
PAPER = {"B02": "Blue", "B03": "Green", "B04": "Red", "B05": "RE5", "B06": "RE6", "B07": "RE7", "B08": "NIR", "B8A": "NNIR", "B11": "SWIR11",
         "B12": "SWIR12"}  # the ten bands and their names in Table I
# What a reader that takes the files' 13 bands for ordered calls these; it takes B11 for B10, which is none of the ten.
IN_FILE_ORDER = {"B8A": "SWIR12", "B09": "NNIR", "B11": "none", "B12": "SWIR11"}


@dataclass(frozen=True, kw_only=True)
class Setting(Common):
    """`evaluate scene`."""

    bands: tuple[str, ...] | None = None  # judged one by one; None: the paper's ten, as far as they are there
    by_band: Literal["auto", "all", "none"] = "auto"  # which encoders: those of one band, all (the other bands being 0), or none
    probes: tuple[str, ...] = PROBES
    hidden: int = 128  # of mlp
    epochs: int = 100  # of mlp
    lr: float = 1e-3  # of mlp
    probe_batch: int = 256  # of mlp
    strengths: tuple[float, ...] = linear.STRENGTHS  # of linear
    max_iter: int = 500  # of linear

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hidden", "epochs", "probe_batch", "max_iter"):
            at_least(self, name, 1)
        if not self.lr > 0 or not self.strengths or min(self.strengths) <= 0:
            raise UsageError(f"lr={self.lr}, strengths={list(self.strengths)}: legal: numbers above 0")
        for name in self.probes:
            if name not in PROBES:
                raise UsageError(f"probes: {name!r} is unknown, {nearest(name, PROBES)}")


def evaluate(runs: list[str], corpus: str | os.PathLike[str], out: str | os.PathLike[str], setting: Setting = Setting(), *,
             features: str | os.PathLike[str] | None = None, encoder: str = "resnet18", imagenet: str | os.PathLike[str] | None = None,
             quiet: bool = False) -> Path:
    """Probe `runs` on scenes of `corpus`; returns OUT/results.json. Raises UsageError and RunError as its parts do.

    imagenet: a file of public weights of a ResNet50 of three channels, which gets each band three times.
    """
    session = open_session(runs, corpus, replace(setting, floors=()), floors=(), encoder=encoder)
    label = chosen_label(session.corpus, setting.label, kinds=KINDS, task="scene")
    targets = of_patches(session.corpus, label, size=setting.size or session.corpus.patch_size, where=setting.where)
    folds = make_folds(session.corpus, targets.rows, split=setting.split, fractions=setting.fractions, seed=setting.seed)
    book = Book(out, evaluation="scene", header=header(session, setting, label, folds), names=targets.names, figure="f1_weighted",
                num_draws=setting.num_draws, seed=setting.seed)
    one_band, whole = _parted(session, setting, imagenet)
    names = _bands(session, setting) if one_band else ()
    known = {"mlp": partial(fit, hidden=setting.hidden, epochs=setting.epochs, lr=setting.lr, batch=setting.probe_batch, seed=setting.seed),
             "linear": partial(linear.fit, strengths=setting.strengths, max_iter=setting.max_iter)}
    probes = {name: known[name] for name in setting.probes}
    protocol = {"features": "pooled, frozen, standardised", "mlp": f"D-{setting.hidden}-ReLU-K, cross entropy, Adam {setting.lr:g}, batch "
                f"{setting.probe_batch}, {setting.epochs} epochs, the best on val by weighted F1",
                "linear": "logistic regression, L-BFGS, C by val accuracy"}
    with Progress(quiet=quiet) as progress:
        bench = Bench(session, targets, folds, setting, features_folder(book.out, features), progress)
        if whole:
            judge_all(book, bench, probes, protocol=protocol, facts={"band": "all"}, subjects=whole)
        for name in names:
            judge_all(book, bench, probes, protocol=protocol, facts={"band": name}, bands=(name,), subjects=one_band)
    figures.draw(book)
    if names:
        figures.draw_bands(book, names)
    return book.finish("\n".join([*band_tables(book, names), tables.markdown(book, figures=("f1_weighted", "f1_macro", "accuracy"))]))


def fit(train: Part, val: Part, test_x: np.ndarray, num_classes: int, *, hidden: int = 128, epochs: int = 100, lr: float = 1e-3, batch: int = 256,
        seed: int = 0) -> Verdict:
    """The verdict of D-hidden-ReLU-K at the epoch with the best weighted F1 on val."""
    x, val_x, test_x = (torch.from_numpy(part).float() for part in linear.standardised(train.x, val.x, test_x))
    y = torch.from_numpy(train.y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(x.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, num_classes))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    best, curve = None, []
    for epoch, order in enumerate(_orders(len(y), epochs, seed=seed)):
        for ids in order.split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(x[ids]), y[ids]).backward()
            optimizer.step()
        with torch.inference_mode():
            counts = grouped(val.y, model(val_x).argmax(1).numpy(), np.zeros(len(val.y)), num_classes)[0]
            curve.append(float(scores(counts)["f1_weighted"]))
            if best is None or curve[-1] > best.chosen["val_f1_weighted"]:
                logits = model(test_x)
                score = logits.softmax(1)[:, 1].numpy().copy() if num_classes == 2 else None
                best = Verdict(logits.argmax(1).numpy().copy(), {"epoch": epoch + 1, "val_f1_weighted": curve[-1]}, score)
    return best._replace(chosen={**best.chosen, "val_by_epoch": curve})


def band_tables(book: Book, names: tuple[str, ...]) -> list[str]:
    """A table a probe and share of labels as Table I: a row a band, a column an encoder."""
    lines: list[str] = []
    rows = [row for row in book.rows if row.facts["band"] in names]
    for probe, share in dict.fromkeys((row.facts["probe"], row.facts["label_fraction"]) for row in rows):
        mine = {(row.facts["band"], row.name): row for row in rows if (row.facts["probe"], row.facts["label_fraction"]) == (probe, share)}
        columns = list(dict.fromkeys(name for _, name in mine))
        cells = [[band, PAPER.get(band, ""), IN_FILE_ORDER.get(band, PAPER.get(band, "")),
                  *(tables.cell(book.interval(mine[band, name], "f1_weighted")) for name in columns)] for band in names]
        lines += [f"# weighted F1 by band, probe {probe}{'' if share == 1 else f', {100 * share:g} % of the labels'}", "",
                  *tables.grid(["band", "name in Table I", "row of Table I that probably is this band", *columns], cells), ""]
    return lines


def _orders(count: int, epochs: int, *, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randperm(count, generator=generator) for _ in range(epochs))


def _parted(session: Session, setting: Setting, imagenet: str | os.PathLike[str] | None) -> tuple[list[Subject], list[Subject]]:
    """Who is judged band by band, and who with all bands; floors behind each."""
    contract = session.corpus.contract()
    runs = [*session.subjects, *([imagenet_subject(imagenet, contract)] if imagenet is not None else [])]
    single = [subject for subject in runs if subject.takes_any or (setting.by_band == "all")]
    if setting.by_band == "none" and (fixed := [subject.name for subject in runs if subject.takes_any]):
        raise UsageError(f"by_band=none: {', '.join(fixed)} takes one band at a time; legal: auto, all")
    if several := [subject.name for subject in single if subject.takes_any and subject.channels != 1]:
        raise UsageError(f"{', '.join(several)}: takes several drawn bands at a time; legal: encoders of one band, or of all")
    floors = FLOORS if setting.floors is None else setting.floors
    both = (single, [subject for subject in runs if subject not in single])
    return tuple(with_floors(part, floors, seed=setting.seed) if part else [] for part in both)


def imagenet_subject(path: str | os.PathLike[str], contract: Contract) -> Subject:
    """ResNet50 with the public weights in `path`, shown one z-scored band three times. UsageError for a file of something else."""
    from dsengine.encoders._weights import load_public

    encoder = build_encoder("resnet50", 3)
    said = load_public(encoder, path, ("B04", "B03", "B02"))
    return Subject(name="ImageNet", kind="pretrained", encoder=Repeated(encoder.eval()), contract=contract,
                   about={"weights": str(path), "said": said})


def _bands(session: Session, setting: Setting) -> tuple[str, ...]:
    there = [band.name for band in session.corpus.bands]
    if setting.bands is not None:
        if wrong := [name for name in setting.bands if name not in there]:
            raise UsageError(f"bands: {session.corpus.path} has no {', '.join(wrong)}; legal: {', '.join(there)}")
        return setting.bands
    found = tuple(name for name in PAPER if name in there)
    return found or tuple(there)
