"""A build, decided in full before anything is written: what a source makes of its flags, and what the writer carries out."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from dsengine.corpus.build.writer import Block, CorpusWriter
from dsengine.corpus.schema import LabelSpec, Layout


class Grid(NamedTuple):
    """Where one patch lies: north-up, square pixels."""

    epsg: int
    x: float  # upper left corner, metres
    y: float
    size: int  # pixels of the finest grid
    resolution_m: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a build will do. It pickles, so that any process can cut any rows of it.

    `cut(rows)` returns the patches of consecutive rows as a `Block`. It is pure: the same rows are the same bytes in every process
    and after every restart. It raises RunError for input that cannot be read.
    """

    layout: Layout
    num_patches: int
    cut: Callable[[range], Block]
    made_by: dict[str, Any]  # JSON: command, source, options, files; a build continues only under an equal one
    columns: Mapping[str, str] = field(default_factory=dict)  # index columns beyond the standard ones: name -> dtype (or "str")
    seed: int = 0  # of the split
    split: str = "block"  # block: by place (build.grid); given: the source fills index column `split`

    def then(self, step: Callable[[Block], Block], *, labels: tuple[LabelSpec, ...] = ()) -> "Plan":
        """The plan whose blocks go through `step` too, which adds the arrays of `labels`, or index columns."""
        layout = replace(self.layout, labels=(*self.layout.labels, *labels))
        return replace(self, layout=layout, cut=_Then(self.cut, step))


@dataclass(frozen=True)
class _Then:
    """`cut`, then `step`; a class because a lambda does not pickle."""

    cut: Callable[[range], Block]
    step: Callable[[Block], Block]

    def __call__(self, rows: range) -> Block:
        return self.step(self.cut(rows))


def build_corpus(out: str | os.PathLike[str], plan: Plan, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """Carry out `plan` at `out`, or continue an equal build. Returns the path; `progress(done, total)` is called once a shard."""
    with CorpusWriter(out, layout=plan.layout, num_patches=plan.num_patches, made_by=plan.made_by, seed=plan.seed, columns=plan.columns,
                      split=plan.split) as writer:
        while writer.next_row < plan.num_patches:
            writer.append(plan.cut(range(writer.next_row, writer.next_row + writer.next_count)))
            if progress:
                progress(writer.next_row, plan.num_patches)
        return writer.finish()
