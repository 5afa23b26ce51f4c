"""Adds the rows of other corpora to one that is there. Whole shards stay as they are; the last, partly filled one is written anew.

Everything new is staged beside the corpus and takes its place in one step (`seal.staged`), so a kill leaves the old corpus or the new.
Statistics come from the exact sums that the corpus keeps, so its old pixels are not read again.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dsengine.corpus.build.grid import split_rule
from dsengine.corpus.build.metadata import dump
from dsengine.corpus.build.plan import Plan
from dsengine.corpus.build.shard import Outline, encode_shard
from dsengine.corpus.build.summary import Summary, summed_store
from dsengine.corpus.edit.copy import Changes, copy_plan, faults_of, origin
from dsengine.corpus.index import Corpus, open_corpus
from dsengine.corpus.manifest import MANIFEST, Place, read_manifest
from dsengine.corpus.seal import staged
from dsengine.corpus.stats import BandSums, band_sums, stored_sums
from dsengine.corpus.storage import LocalStorage
from dsengine.errors import UsageError


def append(path: Place, others: Sequence[Place], *, progress: Callable[[int, int], None] | None = None) -> None:
    """Add all rows of `others`, in order, to the corpus at `path`; rows keep their splits, and a neighbour table is dropped.

    UsageError when corpora differ in bands, sizes, labels or columns, when the corpus keeps no sums (an older one: `corpus stats` adds
    them), or another process changes it. RunError when something cannot be read or written; the corpus is then as it was.
    """
    corpus = open_corpus(path)
    plan = copy_plan([path, *others], Changes(), command="corpus append")
    if missing := [name for name, array in corpus.arrays.items() if stored_sums(array.attrs) is None]:
        raise UsageError(f"{path}: array {missing[0]} keeps no sums to add to: run `dsengine corpus stats {path}` first")
    outline = Outline(layout=plan.layout, num_patches=plan.num_patches, made_by=corpus.attributes.get("made_by", {}), columns=plan.columns,
                      split=split_rule("given"))
    manifest: dict[str, str] = {}
    with staged(path, replaces=["index", "neighbours", *(f"labels/{name}" for name in _vectors(outline))], manifest=manifest) as folder:
        staging = LocalStorage(folder)
        summary = _write(staging, corpus, plan, outline, progress)
        content = summed_store(outline, summary)
        root = _root(content["zarr.json"].to_bytes(), corpus, [origin(open_corpus(other)) for other in others])
        content["zarr.json"] = type(content["zarr.json"]).from_bytes(root)
        dump(content, staging)
        manifest.update(read_manifest(staging))
        staging.delete([MANIFEST])  # staged puts it there, after everything else is


def _write(staging: LocalStorage, corpus: Corpus, plan: Plan, outline: Outline, progress: Callable[[int, int], None] | None) -> Summary:
    """Write the shards that are new or changed; returns what all rows say, old ones included."""
    size, summary = outline.layout.shard_patches, Summary(outline)
    first, old = divmod(len(corpus), size)
    if first:  # before the others: faults are kept in row order
        rest = plan.cut(range(first * size, len(corpus))).arrays if old else {}
        summary.add_rows(range(first * size), _kept(corpus, outline, first * size, {name: band_sums(x)[0] for name, x in rest.items()}))
    with ThreadPoolExecutor(2, thread_name_prefix="dsengine-encode") as pool:
        for shard in range(first, outline.num_shards):
            encoded = encode_shard(outline, shard, plan.cut(outline.rows(shard)), spread=pool.map)
            staging.concurrently(lambda item: staging.put(*item), encoded.files)
            summary.add(shard, encoded.entry)
            if progress:
                progress(outline.rows(shard).stop - first * size, outline.num_patches - first * size)
    return summary


def _kept(corpus: Corpus, outline: Outline, count: int, partial: dict[str, BandSums]) -> dict[str, Any]:
    """The first `count` rows of the old corpus, as a journal entry would have them."""
    nothing = {name: BandSums(*([0] * array.shape[1] for _ in BandSums._fields)) for name, array in corpus.arrays.items()}
    sums = {name: [*stored_sums(array.attrs).without(partial.get(name, nothing[name])), array.attrs.get("saturated", nothing[name].count)]
            for name, array in corpus.arrays.items()}
    standard = {name: getattr(corpus.index, name)[:count] for name in corpus.index._fields}
    extra = {name: np.asarray(array[:count]) for name, array in corpus.columns.items()}
    columns = {**standard, **extra, "split_lon": standard["lon"], "split_lat": standard["lat"]}
    labels = {name: np.asarray(corpus.labels[name][:count]) for name in _vectors(outline)}
    wanted = [*outline.column_dtypes(), "nodata_fraction"]
    return {"sums": sums, "columns": {name: columns[name] for name in wanted}, "labels": labels, "faults": faults_of(corpus)}


def _vectors(outline: Outline) -> list[str]:
    """Labels of one value or row a patch: they are written whole, like index columns."""
    return [spec.name for spec in outline.layout.labels if spec.kind != "classmap"]


def _root(written: bytes, corpus: Corpus, added: list[dict[str, Any]]) -> bytes:
    """The root's zarr.json: what the old one said, the new number of patches, and where the new rows came from."""
    node = json.loads(written)
    kept = {key: corpus.attributes[key] for key in ("made_by", "splits") if key in corpus.attributes}
    appended = [*corpus.attributes.get("appended", []), *added]
    node["attributes"]["dsengine"] = {**corpus.attributes, **node["attributes"]["dsengine"], **kept, "appended": appended}
    return json.dumps(node, indent=2).encode()
