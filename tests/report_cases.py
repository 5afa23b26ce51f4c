"""Run folders as training leaves them, written by hand, and a reader of pages that shares nothing with their writer."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from dsengine import plugin
from dsengine.corpus import open_corpus
from dsengine.data.sample import band_numbers, num_channels
from dsengine.encoders import build_encoder
from dsengine.engine import checkpoint
from dsengine.methods import Method, build_method, inputs

VOID = {"meta", "img", "br", "hr", "col", "link", "input", "source"}


def make_run(folder: Path, *, corpus: object = "/nowhere/corpus", method: str = "vae", steps: int = 12, seed: int = 0, lr: float = 5e-4,
             records: list[dict] | None = None, history: bool = True) -> Path:
    """A run without a checkpoint; its loss at step k is 1 / k, its held-out loss 2 / k at every fourth."""
    (folder / "figures").mkdir(parents=True)
    config = {"corpus": str(corpus), "out": str(folder), "method": {"name": method, "beta": 0.0}, "encoder": {"name": "resnet18"},
              "train": {"seed": seed, "batch_size": 16, "bn_group": 16, "precision": "fp32", "lr": lr, "max_steps": None}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    records = made_records(steps) if records is None else records
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if history:
        start = {"event": "start", "time": "2026-01-02T03:04:05+00:00", "resumed": False, "ranks": 1, "versions": {"dsengine": "0.1.0", "torch": "2.13.0"},
                 "machine": {"system": "Linux", "cpu": "A CPU", "cores": 2, "memory_gib": 24.0, "device": "cpu"}}
        end = {"event": "end", "time": "2026-01-02T03:05:05+00:00", "how": "done", "seconds": 60.0}
        (folder / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (start, end)))
    Image.fromarray(np.full((40, 60, 3), 128, np.uint8)).save(folder / "figures" / "views.png")
    return folder


def made_records(steps: int) -> list[dict[str, Any]]:
    """Records of metrics.jsonl."""
    records = [{"step": k, "epoch": (k - 1) // 4, "loss": 1 / k, "lr": 5e-4, "ids_crc": 7, "samples_per_s": 100.0 + k, "data_wait": 0.01,
                "feature_std": 0.8, "feature_rank": 5.0} for k in range(1, steps + 1)]
    for record in records[3::4]:
        record["heldout_loss"] = 2 / record["step"]
    return records


def add_checkpoint(run: Path, corpus_path: Path, *, method: str = "vae", encoder: str = "resnet18", **settings: object) -> Method:
    """Save freshly initialised weights of the method with `settings` into `run`; returns the method."""
    corpus, config = open_corpus(corpus_path), yaml.safe_load((run / "config.yaml").read_text())
    wanted = inputs(method, plugin.configure("dsengine.methods", method, settings))
    torch.manual_seed(1)
    built = build_method(method, encoders={key: build_encoder(encoder, num_channels(view, corpus.bands)) for key, view in wanted.items()}, **settings)
    shown = {key: {"bands": band_numbers(view, corpus.bands), "in_channels": num_channels(view, corpus.bands)} for key, view in wanted.items()}
    config["encoder"] = {"name": encoder}
    checkpoint.save(run, step=12, method=built, optimizer=torch.optim.Adam(built.parameters()), loader={"epoch": 0}, config=config, contract=corpus.contract(),
                    keep=2, inputs=shown)
    return built


class Element:
    """One element, its text and its children."""

    def __init__(self, name: str, attributes: dict[str, str | None], parent: "Element | None") -> None:
        self.name, self.attributes, self.parent = name, attributes, parent
        self.children: list[Element] = []
        self.texts: list[str] = []

    @property
    def text(self) -> str:
        """All text below, whitespace joined."""
        return " ".join(" ".join([*self.texts, *(child.text for child in self.children)]).split())

    def all(self, name: str | None = None, kind: str | None = None) -> "list[Element]":
        """Elements below of this name and class, in document order."""
        found = []
        for child in self.children:
            if name in (None, child.name) and (kind is None or kind in (child.attributes.get("class") or "").split()):
                found.append(child)
            found += child.all(name, kind)
        return found


class Page(HTMLParser):
    """A page read by the standard library; AssertionError for an element that is closed out of order or left open."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.root = self._at = Element("", {}, None)
        self.feed(self.source)
        self.close()
        assert self._at is self.root, f"<{self._at.name}> is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), self._at)
        self._at.children.append(element)
        if tag not in VOID:
            self._at = element

    def handle_endtag(self, tag: str) -> None:
        assert self._at.name == tag, f"</{tag}> closes <{self._at.name}>"
        self._at = self._at.parent

    def handle_data(self, data: str) -> None:
        self._at.texts.append(data)

    def all(self, name: str | None = None, kind: str | None = None) -> list[Element]:
        """As `Element.all`."""
        return self.root.all(name, kind)

    def section(self, title: str) -> Element:
        """The section under the heading `title`."""
        return next(section for section in self.all("section") if section.all("h2") and section.all("h2")[0].text == title)
