"""The corpus of a run that names none: a small synthetic one, made once in the user's cache."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

NUM_PATCHES = 1024
SIZE = 64  # pixels
NUM_ROWS = {"pixels": 32768, "series": 4096}


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/dsengine, by default ~/.cache/dsengine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dsengine"


def default_corpus(kind: str = "patches") -> Path:
    """The path of the default corpus of patches, pixels or series, made now if it is not there yet; safe when two processes ask at once."""
    if kind == "patches":
        from dsengine.corpus.synth import WORLD_VERSION  # brings numba, which no other path here needs

        return _made(f"synth-v{WORLD_VERSION}-{NUM_PATCHES}x{SIZE}-seed0-neighbours", _make_patches)
    from dsengine.corpus.synth.series import SERIES_VERSION, synthesize_series

    name = f"synth-{kind}-v{SERIES_VERSION}-{NUM_ROWS[kind]}-seed0"
    return _made(name, lambda part: synthesize_series(part, kind=kind, num_rows=NUM_ROWS[kind], seed=0))


def _make_patches(part: Path) -> None:
    from dsengine.corpus.index import open_corpus
    from dsengine.corpus.neighbours import write_neighbours
    from dsengine.corpus.synth import synthesize

    synthesize(part, num_patches=NUM_PATCHES, size=SIZE, seed=0)
    write_neighbours(open_corpus(part))


def _made(name: str, make: Callable[[Path], object]) -> Path:
    path = cache_folder() / name
    if path.exists():
        return path
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        make(part)
        os.rename(part, path)
    except OSError:
        if not path.exists():  # else another process was faster, and theirs is the same
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path
