"""Corpora on disk: `schema` is the contract, `index.open_corpus` the way in, `build.writer` the way out."""

from dsengine.corpus.index import Corpus, Index, open_corpus
from dsengine.corpus.schema import Band, Contract
from dsengine.corpus.series import Series, SeriesCorpus

__all__ = ["Band", "Contract", "Corpus", "Index", "Series", "SeriesCorpus", "open_corpus"]
