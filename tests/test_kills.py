"""A run killed a hundred times, many of them inside a save, is the run that was not killed, bit for bit; so is one that was stopped or ran out of disk.

KILLS_REPORT=FILE adds the figures to that file as Markdown; those of the last full pass are in bench/results/kills.md.
"""

import collections
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from killing import INTERVAL, NEVER, STEPS, Ended, Zygote, assert_same_run, command, reached, saved, saving, spread  # noqa: E402

WHERE = ("before", "in the middle of", "after")
pytestmark = pytest.mark.kills


class Kill(NamedTuple):
    """One SIGKILL and what it cost."""

    where: str  # "at a random moment", or the call of a save
    in_save: bool  # a checkpoint was on its way
    lost: int  # steps to be done again


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("zygote")) as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(zygote: Zygote, small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """The run to compare with, and how its one start went: `fault` lists the calls of its saves."""
    out = tmp_path_factory.mktemp("whole") / "run"
    ended = zygote.run(command(small_corpus, out), arm=[str(out / "checkpoints"), 0, NEVER])
    assert ended.code == 0, ended.said
    return out, ended


def _report(title: str, rows: list[str]) -> None:
    print(f"\n{title}", *rows, sep="\n")
    if "KILLS_REPORT" in os.environ:
        with open(os.environ["KILLS_REPORT"], "a") as file:
            file.write("\n".join([f"## {title}", "", *rows, "", ""]))


def _after_kill(out: Path, where: str, *, beside: bool) -> Kill:
    """What a kill cost; a checkpoint under its final name that is not whole fails in `saved`."""
    if not out.exists():
        return Kill(where, False, 0)
    kill = Kill(where, saving(out), reached(out) - saved(out))
    # Beside the steps: the one on its way when the next was due was waited for, so that two intervals are never lost.
    assert kill.lost <= INTERVAL + beside * (INTERVAL if kill.in_save else 1), kill
    return kill


@pytest.mark.parametrize("beside, random_kills, kills_in_save", [(False, 60, 60), (True, 30, 30)], ids=["saves the run waits for", "saves beside the steps"])
def test_a_run_killed_again_and_again_equals_the_undisturbed_one(zygote: Zygote, undisturbed: tuple, small_corpus: Path, tmp_path: Path,
                                                                 beside: bool, random_kills: int, kills_in_save: int) -> None:
    whole, first = undisturbed
    draw, kills, runs = random.Random(0), [], 0
    calls = first.fault.split()
    points = collections.deque(spread(draw, calls, kills_in_save))
    moments = random_kills
    while points or moments:
        out, runs = tmp_path / f"run{runs}", runs + 1
        for start in range(1000):
            left = len(calls) * (STEPS - (saved(out) if out.exists() else 0)) // STEPS
            fits = next((point for point in points if point[1] < left), None)
            if start >= 8 or not (fits or moments):
                ended = zygote.run(command(small_corpus, out, beside=beside))
            elif fits and (draw.random() < 0.5 or not moments):
                points.remove(fits)
                ended = zygote.run(command(small_corpus, out, beside=beside), arm=[str(out / "checkpoints"), fits[1], fits[2]])
            else:
                ended = zygote.run(command(small_corpus, out, beside=beside), signal=signal.SIGKILL, after_s=draw.uniform(0, first.seconds))
                moments -= ended.code == -signal.SIGKILL
            if ended.code == 0:
                break
            assert ended.code == -signal.SIGKILL, ended.said
            kills.append(_after_kill(out, ended.fault.strip() or "at a random moment", beside=beside))
        assert_same_run(whole, out)
        shutil.rmtree(out)
    by_place = collections.Counter(kill.where for kill in kills)
    inside = sum(kill.in_save or kill.where.startswith(WHERE) for kill in kills)
    lost = sorted(kill.lost for kill in kills)
    how = "beside the steps" if beside else "while the run waits"
    _report(f"{len(kills)} SIGKILLs in {runs} runs of {STEPS} steps, a checkpoint every {INTERVAL}, {how}", [
        f"- Every one of the {runs} runs ended with the metrics, weights, optimiser state and loader position of the undisturbed run, bitwise.",
        f"- Inside a save: {inside}. Steps to do again: median {lost[len(lost) // 2]}, most {lost[-1]}; with no save on its way at most "
        f"{max((kill.lost for kill in kills if not kill.in_save), default=0)}.",
        "", "| where | kills | most steps lost |", "|---|---:|---:|",
        *(f"| {where} | {count} | {max(kill.lost for kill in kills if kill.where == where)} |" for where, count in sorted(by_place.items()))])
    assert len(kills) >= (random_kills + kills_in_save) * 5 / 6 and inside >= kills_in_save / 2 and len(by_place) >= 12


@pytest.mark.parametrize("beside", [False, True], ids=["saves the run waits for", "saves beside the steps"])
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 1)])
def test_a_run_asked_to_stop_again_and_again_equals_the_undisturbed_one(
        zygote: Zygote, undisturbed: tuple, small_corpus: Path, tmp_path: Path, number: int, code: int, beside: bool) -> None:
    whole, first = undisturbed
    draw, codes, most, early = random.Random(number), collections.Counter(), 0, 0
    for trial in range(4):
        out = tmp_path / f"run{trial}"
        for start in range(7):
            how = {}
            if start == 0:  # anywhere, most likely before the first step
                how = {"signal": number, "after_s": draw.uniform(0, first.seconds)}
            elif start < 6 and reached(out) < STEPS - 6:
                how = {"signal": number, "after_s": draw.uniform(0, 0.02), "lines": [str(out / "metrics.jsonl"), draw.randint(reached(out) + 1, STEPS - 5)]}
            ended = zygote.run(command(small_corpus, out, beside=beside), **how)
            codes[ended.code] += 1
            if ended.code == 0:
                break
            assert ended.code in (code, -number) and "Traceback" not in ended.said, ended.said
            if ended.code == code:
                last = ended.said.strip().splitlines()[-1]
                assert last.startswith("dsengine: stopped by" if code == 75 else "dsengine: interrupted") and "--resume" in last
            early += "outside of training" in ended.said
            if out.exists():
                lost = reached(out) - saved(out)
                assert lost == 0 if ended.code == 75 else lost <= INTERVAL * (1 + beside)
                most = max(most, lost)
        assert_same_run(whole, out, same_saves=code != 75)
    _report(f"{sum(codes.values()) - codes[0]} times {signal.Signals(number).name} in 4 runs, saves {'beside the steps' if beside else 'waited for'}", [
        f"- Exit code {code}: {codes[code]}, of which {early} outside of training; ended by the signal itself, before anything ran: {codes[-number]}. "
        f"Steps to do again: at most {most}. All 4 runs ended as the undisturbed one, bitwise."])
    assert codes[code] - early >= 4


def _mount(folder: Path, how: str) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no right to mount a small disk: {done.stderr.strip()}")


@pytest.mark.parametrize("beside", [False, True], ids=["saves the run waits for", "saves beside the steps"])
def test_a_full_disk_ends_the_run_in_one_line_and_with_room_it_ends_as_the_undisturbed_one(
        zygote: Zygote, undisturbed: tuple, small_corpus: Path, tmp_path: Path, beside: bool) -> None:
    draw, said = random.Random(0), collections.Counter()
    whole = undisturbed[0]
    for trial in range(12):
        disk = tmp_path / f"disk{trial}"
        disk.mkdir()
        kilobytes = 4 * (trial + 1 if trial < 3 else draw.randint(1, 50))  # the first are too small for what comes before a checkpoint
        _mount(disk, f"size={kilobytes}k")
        try:
            ended = zygote.run(command(small_corpus, disk / "run", beside=beside))
            if ended.code:
                last = ended.said.strip().splitlines()[-1]
                assert ended.code in (1, 2) and "Traceback" not in ended.said, ended.said
                assert last.startswith("dsengine: ") and str(disk) in last and "No space left on device" in ended.said, ended.said
            said["not full" if ended.code == 0 else "a checkpoint" if ": checkpoint" in ended.said else "another file"] += 1
            _mount(disk, "remount,size=64m")
            again = zygote.run(command(small_corpus, disk / "run", beside=beside))
            assert again.code == 0, again.said
            assert_same_run(whole, disk / "run")
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    _report(f"12 runs on a tmpfs of 4 to 200 KiB, saves {'beside the steps' if beside else 'waited for'}", [f"- What the disk had no room for: {dict(said)}. Each ended with one line that names the file and says "
                                                   "\"No space left on device\"; with room made, all ended as the undisturbed run, bitwise."])
    assert said["a checkpoint"] >= 2 and said["another file"] >= 2


@pytest.mark.parametrize("size", [3000, 8000, 20000])
def test_a_quota_of_file_size_ends_the_run_in_one_line_and_without_it_it_ends_as_the_undisturbed_one(
        zygote: Zygote, undisturbed: tuple, small_corpus: Path, tmp_path: Path, size: int) -> None:
    out = tmp_path / "run"
    ended = zygote.run(command(small_corpus, out), fsize=size)
    assert ended.code == 1 and "File too large" in ended.said and "Traceback" not in ended.said, ended.said
    assert zygote.run(command(small_corpus, out)).code == 0
    assert_same_run(undisturbed[0], out)
