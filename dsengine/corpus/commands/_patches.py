"""For commands that are about image patches only."""

from pathlib import Path
from typing import TYPE_CHECKING

from dsengine.errors import UsageError

if TYPE_CHECKING:
    from dsengine.corpus import Corpus


def open_patches(path: Path) -> "Corpus":
    """The corpus at `path`. UsageError where it holds series or pixels."""
    from dsengine.corpus import Corpus, open_corpus

    corpus = open_corpus(path)
    if not isinstance(corpus, Corpus):
        raise UsageError(f"{path} holds {corpus.kind}, not image patches; legal here: a corpus of patches")
    return corpus
