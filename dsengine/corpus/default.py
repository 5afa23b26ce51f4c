"""The corpus of a run that names none: a small synthetic one, made once in the user's cache."""

import os
import shutil
import uuid
from pathlib import Path

NUM_PATCHES = 1024
SIZE = 64  # pixels


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/dsengine, by default ~/.cache/dsengine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dsengine"


def default_corpus() -> Path:
    """The path of the default corpus, made now if it is not there yet; safe when two processes ask at once."""
    from dsengine.corpus.index import open_corpus
    from dsengine.corpus.neighbours import write_neighbours
    from dsengine.corpus.synth import WORLD_VERSION, synthesize  # brings numba, which no other path here needs

    path = cache_folder() / f"synth-v{WORLD_VERSION}-{NUM_PATCHES}x{SIZE}-seed0-neighbours"
    if path.exists():
        return path
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        synthesize(part, num_patches=NUM_PATCHES, size=SIZE, seed=0)
        write_neighbours(open_corpus(part))
        os.rename(part, path)
    except OSError:
        if not path.exists():  # else another process was faster, and theirs is the same
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path
