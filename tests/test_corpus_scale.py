"""Many workers, one corpus: the same bytes whoever makes the shards, in whatever order, and whatever ends them."""

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dsengine.corpus import open_corpus
from dsengine.corpus.build import journal
from dsengine.corpus.build.plan import Plan, build_corpus
from dsengine.corpus.build.shard import Block, Outline
from dsengine.corpus.build.summary import Summary
from dsengine.corpus.schema import Layout, standard_layout
from dsengine.corpus.storage import LocalStorage
from dsengine.errors import RunError, UsageError

SCRIPT = Path(__file__).parent / "workers" / "build_small.py"
SHARDS = 8
MANY = 24  # more than workers can make before the one that gets a shard that fails has started, on a busy machine too


def start(out: Path, *flags: str, shards: int = SHARDS) -> subprocess.Popen:
    """The build as a process group of its own."""
    return subprocess.Popen([sys.executable, "-P", SCRIPT, str(out), str(shards), *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)


def build(out: Path, *flags: str, shards: int = SHARDS) -> str:
    """A whole build; returns its standard error. Its exit code must be 0."""
    process = start(out, *flags, shards=shards)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    return errors


def tree(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def await_lines(process: subprocess.Popen, count: int) -> None:
    """Until so many shards are reported."""
    for _ in range(count):
        assert process.stdout.readline()


def group_is_gone(group: int, *, within_s: float) -> bool:
    """Whether no process of a group runs, once it has had a little time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        running = [line for line in subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True).stdout.splitlines()
                   if line.split()[0] == str(group) and not line.split()[1].startswith("Z")]
        if not running:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of the corpus that one process makes."""
    path = tmp_path_factory.mktemp("scale") / "one"
    build(path)
    assert len(open_corpus(path)) == 4 * SHARDS - 1
    return tree(path)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same of more shards."""
    path = tmp_path_factory.mktemp("many") / "one"
    build(path, shards=MANY)
    return tree(path)


@pytest.mark.parametrize("flags", [("--workers", "2"), ("--workers", "4"), ("--dask", "2")], ids=" ".join)
def test_any_number_of_workers_and_a_dask_cluster_write_the_same_bytes(tmp_path: Path, whole: dict[str, bytes], flags: tuple[str, ...]) -> None:
    if "--dask" in flags:
        pytest.importorskip("distributed")
    build(tmp_path / "c", *flags)
    assert tree(tmp_path / "c") == whole


@pytest.mark.parametrize("lines", [1, 3])
def test_after_sigkill_no_worker_is_left_and_the_build_continues_to_the_same_bytes(tmp_path: Path, whole: dict[str, bytes], lines: int) -> None:
    process = start(tmp_path / "c", "--workers", "3", "--pause", "0.1")
    await_lines(process, lines)
    process.kill()
    process.wait()
    assert group_is_gone(process.pid, within_s=5)
    entries = journal.finished_shards(LocalStorage(tmp_path / "c"))
    assert lines <= len(entries) < SHARDS
    build(tmp_path / "c", "--workers", "2")
    assert tree(tmp_path / "c") == whole


def test_ctrl_c_ends_all_processes_at_once(tmp_path: Path, whole: dict[str, bytes]) -> None:
    process = start(tmp_path / "c", "--workers", "2", "--pause", "0.2")
    await_lines(process, 1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors and "In a worker" not in errors
    assert group_is_gone(process.pid, within_s=2)
    build(tmp_path / "c")
    assert tree(tmp_path / "c") == whole


@pytest.mark.parametrize("flags", [("--workers", "3"), ("--workers", "1"), ("--dask", "2")], ids=" ".join)
def test_a_failing_shard_ends_the_build_by_name_and_those_under_way_are_kept(tmp_path: Path, many: dict[str, bytes], flags: tuple[str, ...]) -> None:
    if "--dask" in flags:
        pytest.importorskip("distributed")
    process = start(tmp_path / "c", *flags, "--fail", "2", "--pause", "0.05", shards=MANY)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "/input/8.tif: cannot be read" in errors.splitlines()
    kept = journal.finished_shards(LocalStorage(tmp_path / "c"))
    assert {0, 1} <= kept and 2 not in kept and len(kept) < (MANY if "--dask" in flags else SHARDS) - 1
    build(tmp_path / "c", *flags, shards=MANY)
    assert tree(tmp_path / "c") == many


def test_a_worker_that_dies_is_an_error_that_says_so(tmp_path: Path, whole: dict[str, bytes]) -> None:
    process = start(tmp_path / "c", "--workers", "2", "--die", "3")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and re.search(r"shard [0-9, ]*3: the worker process ended with exit code 9", errors)
    build(tmp_path / "c", "--workers", "2")
    assert tree(tmp_path / "c") == whole


@pytest.mark.parametrize("moment", ["put .journal/header", "put .journal/00000001", "put manifest", "put zarr",
                                    f"unlink .journal/{SHARDS - 1:08d}", "unlink .journal/header"])
def test_killed_at_any_step_the_same_command_ends_with_the_same_bytes(tmp_path: Path, whole: dict[str, bytes], moment: str) -> None:
    """Both sides of the step: before the file has its name, and after."""
    for when in ("before", "after"):
        out = tmp_path / when
        code = f"""
import os, pathlib, signal, sys
sys.argv = ["build", {str(out)!r}, "{SHARDS}"]
sys.path.insert(0, {str(SCRIPT.parent)!r})
import build_small
def dying(real, verb):
    def step(*args, **kwargs):
        hit = (verb + " " + os.path.relpath(args[-1] if verb == "put" else args[0], {str(out)!r})).startswith({moment!r})
        if hit and not (verb == "put" and {moment!r} == "put zarr" and b"complete" in open(args[0], "rb").read() and b'"complete": true' not in
                        open(args[0], "rb").read()):
            if {when!r} == "after":
                real(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return step
os.replace = dying(os.replace, "put")
pathlib.Path.unlink = dying(pathlib.Path.unlink, "unlink")
build_small.main()
"""
        assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, timeout=60).returncode == -signal.SIGKILL
        if (moment, when) == ("unlink .journal/header", "after"):
            with pytest.raises(UsageError, match="is not empty"):  # there is nothing left to continue
                build_corpus(out, tiny(3))
            (out / ".journal").rmdir()
        else:
            build(out)
        assert tree(out) == whole


def tiny(num_patches: int, cut: Callable[[range], Block] | None = None) -> Plan:
    layout = standard_layout(8, sensors=("s1",))
    layout = Layout(arrays=layout.arrays, patch_size=8, resolution_m=10.0, shard_patches=4)
    return Plan(layout=layout, num_patches=num_patches, cut=cut or blank, made_by={})


def blank(rows: range) -> Block:
    return Block({"s1": np.full((len(rows), 2, 8, 8), rows.start, np.int16)}, {"lon": [1.0] * len(rows), "lat": [2.0] * len(rows)})


def test_a_new_writer_waits_for_tasks_of_a_killed_build_and_they_cannot_write_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    storage.put(journal.HEADER, [b"{}"])
    first, entered, leave = journal.admit(storage), threading.Event(), threading.Event()

    def work() -> None:
        with journal.task(storage, first):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait(10)
    with monkeypatch.context() as patched, pytest.raises(UsageError, match="workers of another build are still writing"):
        patched.setattr(journal, "PATIENCE_S", 0.1)
        journal.admit(storage)
    threading.Timer(0.2, leave.set).start()
    second = journal.admit(storage)
    thread.join()
    with pytest.raises(RunError, match="another process has taken this build over"), journal.task(storage, first):
        pass
    with journal.task(storage, second):
        pass


def test_of_writers_that_start_at_once_in_a_new_folder_one_gets_it(tmp_path: Path) -> None:
    def attempt(number: int) -> object:
        together.wait()
        try:
            return journal.claim(LocalStorage(tmp_path / str(trial)), {"number": 0}, overwrite=False)
        except UsageError as error:
            return str(error)

    with ThreadPoolExecutor(6) as pool:
        for trial in range(10):
            together = threading.Barrier(6)
            found = list(pool.map(attempt, range(6)))
            locks = [lock for lock in found if not isinstance(lock, str)]
            assert len(locks) == 1 and all("another process is writing" in text for text in found if isinstance(text, str))
            locks[0].close()


def test_a_task_in_another_folder_than_the_writers_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="do all workers see the same folder"), journal.task(LocalStorage(tmp_path / "other"), "name"):
        pass


def test_workers_and_scheduler_out_of_range_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for flags in ({"workers": 0}, {"workers": 2, "scheduler": "tcp://127.0.0.1:1"}):
        with pytest.raises(UsageError, match="workers"):
            build_corpus(tmp_path / "c", tiny(3), **flags)
    assert not (tmp_path / "c").exists()


def test_a_scheduler_that_does_not_answer_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("dsengine.corpus.build.cluster.TIMEOUT_S", 0.5)
    with pytest.raises(UsageError, match=r"--scheduler tcp://127.0.0.1:9: no scheduler answers"):
        build_corpus(tmp_path / "c", tiny(3), scheduler="tcp://127.0.0.1:9")


@pytest.mark.parametrize("address", ["nonsense", "tcp://host", "else://host:8786"])
def test_an_address_that_is_none_is_refused_at_once(tmp_path: Path, address: str) -> None:
    pytest.importorskip("distributed")
    start = time.monotonic()
    with pytest.raises(UsageError, match=rf"--scheduler {address}: no scheduler answers there .*legal: an address such as tcp://host:8786"):
        build_corpus(tmp_path / "c", tiny(3), scheduler=address)
    gc.collect()  # a client that was begun waits for a minute when it goes
    assert time.monotonic() - start < 20


def test_faults_are_kept_in_row_order_up_to_a_thousand_and_counted() -> None:
    outline = Outline(layout=tiny(1).layout, num_patches=2000, made_by={})
    summary, columns = Summary(outline), {name: [0] * 4 for name in Summary(outline).columns}
    for shard in range(outline.num_shards):
        sums = [[0, 0]] * 4
        summary.add(shard, {"columns": {**columns, "source": [""] * 4}, "labels": {}, "sums": {"s1": sums},
                            "faults": [f"row {row}" for row in outline.rows(shard)]})
    assert summary.root()["num_faults"] == 2000 and summary.root()["faults"] == [f"row {row}" for row in range(1000)]


def test_quarantined_rows_of_a_source_are_in_no_split_and_its_faults_in_the_root(tmp_path: Path) -> None:
    def cut(rows: range) -> Block:
        return blank(rows)._replace(index={**blank(rows).index, "quarantine": [row == 5 for row in rows]}, faults=["row 5: damaged"] * (5 in rows))

    corpus = open_corpus(build_corpus(tmp_path / "c", tiny(9, cut)))
    assert corpus.rows("all").tolist() == [0, 1, 2, 3, 4, 6, 7, 8] and corpus.attributes["faults"] == ["row 5: damaged"]


@pytest.mark.kills
def test_killed_again_and_again_at_random_the_corpus_is_the_same(tmp_path: Path, whole: dict[str, bytes]) -> None:
    rng = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    for trial in range(5):
        out = tmp_path / str(trial)
        for _ in range(30):
            process = start(out, "--workers", str(rng.integers(1, 4)), "--pause", "0.03")
            time.sleep(rng.uniform(0.3, 2.5))
            process.kill()
            process.communicate()
            if process.returncode == 0:
                break
        if (out / ".journal").exists() and any((out / ".journal").iterdir()) or not (out / "zarr.json").exists():
            build(out)
        assert tree(out) == whole
