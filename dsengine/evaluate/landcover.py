"""Land-cover segmentation of class maps: the encoders of Table 9 with the deconvolution head, frozen or fine-tuned, and floors beside them.

Floors: `majority`, the commonest train class everywhere; `pixel`, a logistic regression of each pixel's bands alone; `untrained`, the same
encoder before any training under the same protocol, which with --finetune is the row "None" of Table 9.
"""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dsengine.augment.params import Augment
from dsengine.data import order
from dsengine.data.sample import default_crop
from dsengine.errors import UsageError, nearest
from dsengine.evaluate import baselines, figures, pictures, tables
from dsengine.evaluate.book import Book, Row
from dsengine.evaluate.features import features as feature_file
from dsengine.evaluate.folds import Fold, groups_of, make_folds, some
from dsengine.evaluate.progress import Progress
from dsengine.evaluate.segment import Data, Pairs, Schedule, Segmenter, fit, judge, predicted
from dsengine.evaluate.session import Session, features_folder, header, open_session
from dsengine.evaluate.settings import Common, at_least
from dsengine.evaluate.shown import Shown, arranged, endless, labels, once, plan_of, shown
from dsengine.evaluate.subjects import Subject
from dsengine.evaluate.targets import chosen_label, class_names

FLOORS = ("majority", "pixel", "untrained")


@dataclass(frozen=True, kw_only=True)
class Setting(Common):
    """`evaluate landcover`."""

    finetune: bool = False  # train the encoder too
    epochs: int = 100  # at most
    patience: int = 15  # epochs without a better val figure before training stops
    lr: float = 5e-4  # of Adam
    train_batch: int = 32
    class_weight: Literal["none", "inverse"] = "none"  # inverse: of the class's share of the train pixels, their mean over pixels 1
    channels: int | None = None  # of the head; None: as many as there are classes. The first paper's 7 are five classes and two of no data
    crop: int | None = None  # side of the train crops in pixels, with finetune; None: leaves 16 px to move in, at most 128
    dihedral: Literal["none", "independent"] = "none"  # flips and quarter turns of the train crops, with finetune
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "patience", "train_batch", "crop"):
            at_least(self, name, 1)
        if not self.lr > 0:
            raise UsageError(f"lr={self.lr}: must be above 0")
        for name, default in (("crop", None), ("dihedral", "none")):
            if not self.finetune and getattr(self, name) != default:
                raise UsageError(f"{name}={getattr(self, name)}: crops are drawn only with finetune; frozen maps are of whole crops of `size`")


class Task(NamedTuple):
    """What is the same for all rows."""

    session: Session
    setting: Setting
    label: str
    names: tuple[str, ...]
    folds: list[Fold]
    folder: Path  # of feature files
    progress: Progress
    out: Path


def evaluate(runs: list[str], corpus: str | os.PathLike[str], out: str | os.PathLike[str], setting: Setting = Setting(), *,
             features: str | os.PathLike[str] | None = None, encoder: str = "resnet18", quiet: bool = False) -> Path:
    """Judge `runs` on a class map of `corpus`; returns OUT/results.json. Raises UsageError and RunError as its parts do."""
    floors = FLOORS if setting.floors is None else setting.floors
    if wrong := [name for name in floors if name not in FLOORS]:
        raise UsageError(f"floors: {wrong[0]!r} is unknown, {nearest(wrong[0], FLOORS)}; or none")
    twins = tuple(name for name in floors if name == "untrained")
    session = open_session(runs, corpus, replace(setting, floors=twins), floors=twins, encoder=encoder)
    label = chosen_label(session.corpus, setting.label, kinds=("classmap",), task="landcover")
    names = class_names(session.corpus, label)
    if setting.channels is not None and setting.channels < len(names):
        raise UsageError(f"channels={setting.channels}: label {label} has {len(names)} classes; legal: that many or more")
    folds = make_folds(session.corpus, session.corpus.rows("all", setting.where), split=setting.split, fractions=setting.fractions, seed=setting.seed)
    book = Book(out, evaluation="landcover", header=header(session, setting, label, folds), names=names, figure="iou_weighted",
                num_draws=setting.num_draws, seed=setting.seed)
    with Progress(quiet=quiet) as progress:
        task = Task(session, setting, label, names, folds, features_folder(book.out, features), progress, book.out)
        what = shown(session.subjects[0], session.corpus, size=setting.size, missing=setting.missing)  # of floors without an encoder
        for share in setting.label_fractions:
            for subject in session.subjects:
                key = {"label_fraction": share, "encoder": subject.digest(), "name": subject.name, "seed": setting.seed}
                book.row(key, lambda: _row(task, subject, share))
            for name in floors:
                if name != "untrained":
                    book.row({"label_fraction": share, "floor": name, "shown": what.to_json()}, lambda: _floor_row(task, what, name, share))
    figures.draw(book)
    figures.draw_learning(book)
    return book.finish(tables.markdown(book, figures=("iou_weighted", "miou", "f1_macro", "accuracy")))


def _row(task: Task, subject: Subject, share: float) -> Row:
    setting, found, chosen = task.setting, [], []
    what = shown(subject, task.session.corpus, size=setting.size, missing=setting.missing)
    for fold in task.folds:
        train = some(fold.train, None, share, seed=setting.seed)
        data, test, model = _tuned(task, subject, what, fold, train) if setting.finetune else _frozen(task, subject, what, fold, train)
        schedule = Schedule(epochs=setting.epochs, patience=setting.patience, lr=setting.lr, weight=_weights(task, what, train),
                            autocast=setting.precision == "bf16" or (setting.precision == "auto" and task.session.device.type == "cuda"))
        model.to(task.session.device, memory_format=torch.channels_last)
        with task.progress.task(f"{subject.name} {fold.name}", setting.epochs) as advance:
            history = fit(model, data, schedule, num_classes=len(task.names), device=task.session.device,
                          each=lambda record: advance(1, f"loss {record['loss']:.3f}  val IoU {record['val_iou_weighted']:.3f}"))
        found += judge(model, test(), num_classes=len(task.names), device=task.session.device, autocast=schedule.autocast)
        best = max(history, key=lambda record: record["val_iou_weighted"])
        chosen.append({"fold": fold.name, "train_rows": len(train), "epochs": len(history), "best_epoch": best["epoch"],
                       "val_iou_weighted": best["val_iou_weighted"], "history": history})
        if fold is task.folds[0]:
            _draw_maps(task, model, test(), _images(task, what, fold.test), what, f"maps-{figures.plain(subject.name)}-{share:g}.png")
    protocol = {**_protocol(setting), "size": what.size, "bands": what.bands}
    return _as_row(task, subject.name, subject.kind, subject.about, share, np.array(found), protocol, chosen)


def _floor_row(task: Task, what: Shown, name: str, share: float) -> Row:
    setting, found, chosen = task.setting, [], []
    for fold in task.folds:
        train = some(fold.train, None, share, seed=setting.seed)
        read = lambda rows: _images(task, what, rows)  # noqa: E731
        guess, said = baselines.FITS[name](read(train), len(task.names), seed=setting.seed)
        found += [counts for x, label in read(fold.test) for counts in baselines.judge(guess, x, label, len(task.names))]
        chosen.append({"fold": fold.name, "train_rows": len(train), **said})
    protocol = {"floor": name, "what": baselines.FITS[name].__doc__, "size": what.size, "bands": what.bands}
    return _as_row(task, baselines.TITLES[name], "floor", {"floor": name}, share, np.array(found), protocol, chosen)


def _as_row(task: Task, name: str, kind: str, about: dict[str, Any], share: float, counts: np.ndarray, protocol: dict[str, Any],
            chosen: list[dict[str, Any]]) -> Row:
    groups = groups_of(task.session.corpus, np.concatenate([fold.test for fold in task.folds]), task.setting.unit)
    _, inverse = np.unique(groups, return_inverse=True)
    summed = np.zeros((inverse.max() + 1, *counts.shape[1:]), np.int64)
    np.add.at(summed, inverse, counts)
    return Row(name=name, kind=kind, about=about, facts={"label_fraction": share}, protocol={**protocol, "chosen": chosen}, counts=summed)


def _tuned(task: Task, subject: Subject, what: Shown, fold: Fold, train: np.ndarray) -> tuple[Data, Callable[[], Pairs], Segmenter]:
    """What to train with, the test pairs, and the model: a copy of the encoder, and a head."""
    corpus, setting = task.session.corpus, task.setting
    crop = replace(what, size=min(what.size, default_crop(corpus.patch_size)) if setting.crop is None else setting.crop)
    plan = plan_of(corpus, crop, train, batch_size=setting.train_batch, device=task.session.device, label=task.label, seed=setting.seed,
                   augment=Augment(dihedral=setting.dihedral))
    data = Data(lambda: ((arranged(batch.views[0], what), batch.label) for batch in endless(plan)),
                order.steps_per_epoch(len(train), plan.global_batch), lambda: _images(task, what, fold.val))
    model = Segmenter(copy.deepcopy(subject.encoder), subject.encoder.dim, setting.channels or len(task.names), seed=setting.seed)
    return data, lambda: _images(task, what, fold.test), model


def _frozen(task: Task, subject: Subject, what: Shown, fold: Fold, train: np.ndarray) -> tuple[Data, Callable[[], Pairs], Segmenter]:
    """The same of a head alone, on the maps of a feature file."""
    corpus, setting = task.session.corpus, task.setting
    rows = corpus.rows("all", setting.where)
    file = feature_file(subject, corpus, what, rows, folder=task.folder, progress=task.progress, batch_size=setting.batch_size,
                        device=task.session.device, dense=True)
    plan = plan_of(corpus, what, rows, batch_size=setting.train_batch, label=task.label)
    pair = lambda ids: (torch.from_numpy(file.of(np.sort(ids))), labels(plan, np.sort(ids)))  # noqa: E731
    batch = min(setting.train_batch, len(train))

    def shuffled() -> Iterator[tuple[Tensor, Tensor]]:
        for step in order.walk(train, seed=setting.seed, start=0, global_batch=batch):
            yield pair(step.ids)

    def whole(part: np.ndarray) -> Pairs:
        return (pair(ids) for ids in order.walk_once(part, global_batch=setting.batch_size))

    model = Segmenter(None, subject.encoder.dim, setting.channels or len(task.names), seed=setting.seed)
    return Data(shuffled, order.steps_per_epoch(len(train), batch), lambda: whole(fold.val)), lambda: whole(fold.test), model


def _images(task: Task, what: Shown, rows: np.ndarray) -> Pairs:
    """Views and labels of `rows`, once, in order."""
    plan = plan_of(task.session.corpus, what, rows, batch_size=task.setting.batch_size, device=task.session.device, label=task.label)
    with once(plan) as views:
        for batch in views:
            yield arranged(batch.views[0], what), batch.label


def _draw_maps(task: Task, model: Segmenter, pairs: Pairs, images: Pairs, what: Shown, name: str) -> None:
    """The first test patches: what was shown, the truth, what the model says."""
    with closing(pairs), closing(images):
        x, label = next(pairs)
        guess = predicted(model.eval(), x[:pictures.MOST].to(task.session.device), label.shape[1:], num_classes=len(task.names))
        shown_x = next(images)[0][:pictures.MOST, list(what.places)]
        pictures.draw(shown_x.float().cpu().numpy(), label[:pictures.MOST].cpu().numpy(), guess.cpu().numpy(), what.bands, task.names,
                      path=task.out / "figures" / name)


def _weights(task: Task, what: Shown, train: np.ndarray) -> Tensor | None:
    """(K,) 1 / share of the train pixels, scaled so that the mean over pixels is 1; 1 for a class that is not there."""
    if task.setting.class_weight == "none":
        return None
    plan = plan_of(task.session.corpus, what, train, batch_size=task.setting.batch_size, label=task.label)
    counts = sum(torch.bincount(labels(plan, ids).flatten() + 1, minlength=len(task.names) + 1)[1:].double()
                 for ids in order.walk_once(train, global_batch=task.setting.batch_size))
    present = counts > 0
    return torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), 1.0).float()


def _protocol(setting: Setting) -> dict[str, Any]:
    tuned = {"crop": setting.crop, "dihedral": setting.dihedral} if setting.finetune else {}
    return {"head": "deconvolution head of Table 8", "trained": "encoder and head" if setting.finetune else "head on frozen maps",
            "loss": "cross entropy of logits, pixels without a class ignored", "optimizer": "adam", "lr": setting.lr, "epochs": setting.epochs,
            "stops": f"{setting.patience} epochs without a better weighted mean IoU on val, whose weights are kept", "batch": setting.train_batch,
            "class_weight": setting.class_weight, "channels": setting.channels, "precision": setting.precision, **tuned}
