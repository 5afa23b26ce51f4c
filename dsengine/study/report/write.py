"""Writing the report: one HTML file that needs no network, no script and nothing beside it."""

import os
from collections.abc import Sequence
from pathlib import Path

from dsengine.errors import RunError, UsageError
from dsengine.study.report import folders
from dsengine.study.report.overview import find_corpus
from dsengine.study.report.page import GENERATOR, page

NAME = "report.html"
SAMPLES = 600  # of the embeddings


def write_report(paths: Sequence[str | os.PathLike[str]], *, out: str | os.PathLike[str] | None = None, corpus: str | None = None,
                 label: str | None = None, samples: int = SAMPLES) -> Path:
    """Write the report of run folders and evaluation folders; returns its path.

    out: default RUN/report.html of a single run, else ./report.html; a file of another kind is not overwritten. corpus: where the runs' corpus lies
    now (default: where each was trained). label: what colours the embeddings. samples: of the embeddings, 0 leaves them out.
    Raises UsageError for a folder that is neither, RunError when the file cannot be written.
    """
    if not paths:
        raise UsageError("report: name a run folder or more")
    if samples < 0:
        raise UsageError(f"--samples {samples}: legal: 0 or more")
    given = list(dict.fromkeys(Path(path) for path in paths))
    judged = [path for path in given if not (path / folders.CONFIG).is_file() and (path / folders.RESULTS).is_file()]
    chosen = [path for path in given if path not in judged]
    target = Path(out) if out is not None else (chosen[0] / NAME if len(chosen) == 1 else Path(NAME))
    runs = [folders.read_run(path, name=name) for path, name in zip(chosen, _names(chosen))]
    _check_target(target)
    corpora = [find_corpus(corpus or run.setting("corpus")) for run in runs]
    if corpus is not None and corpora and isinstance(corpora[0], str):
        raise UsageError(f"--corpus {corpus}: {corpora[0]}")
    return _written(target, page(runs, folders.evaluations_of(chosen, judged), corpora, samples=samples, label=label))


def write_short_report(run: Path) -> Path:
    """RUN/report.html as training leaves it: all that is in the run folder, nothing computed."""
    read = folders.read_run(run)
    return _written(run / NAME, page([read], [], [find_corpus(read.setting("corpus"))], samples=0, label=None, short=True))


def _names(paths: Sequence[Path]) -> list[str]:
    """Each folder's name, with as many of its parents as tell it from the others."""
    parts = [path.resolve().parts for path in paths]
    depth = next((k for k in range(1, 12) if len({part[-k:] for part in parts}) == len(set(parts))), 12)
    return ["/".join(part[-depth:]) for part in parts]


def _check_target(target: Path) -> None:
    """UsageError unless the file can be a report: new, or one that this wrote."""
    if target.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {target}: legal: a name that ends in .html")
    if not target.parent.is_dir():
        raise UsageError(f"--out {target}: there is no folder {target.parent}")
    if not target.exists():
        return
    try:
        with open(target, "rb") as file:
            mine = GENERATOR.encode() in file.read(1000)
    except OSError as error:
        raise UsageError(f"--out {target}: {error.strerror}") from error
    if not mine:
        raise UsageError(f"--out {target}: exists and is no report; legal: a new name, or a report to replace")


def _written(target: Path, content: str) -> Path:
    part = target.with_name(f".{target.name}.part")
    try:
        part.write_text(content, encoding="utf-8")
        os.replace(part, target)
    except OSError as error:
        raise RunError(f"{target}: cannot be written ({error.strerror or error})") from error
    return target
