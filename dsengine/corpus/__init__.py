"""Corpora on disk: `schema` is the contract, `index.open_corpus` the way in, `build.writer` the way out."""

from dsengine.corpus.index import Corpus, Index, open_corpus
from dsengine.corpus.schema import Band, Contract

__all__ = ["Band", "Contract", "Corpus", "Index", "open_corpus"]
