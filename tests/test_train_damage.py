"""Training on a damaged corpus: refused by name, then, with the damage in quarantine, done without it and with its count."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from dsengine import cli
from dsengine.corpus import open_corpus
from dsengine.data import order
from dsengine.engine.history import HISTORY, noted, read_history


def test_a_damaged_patch_is_named_and_once_in_quarantine_left_out_with_a_count(small_corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    corpus = shutil.copytree(small_corpus, tmp_path / "corpus")
    ids = order.batch_ids(open_corpus(corpus).rows("train"), seed=0, step=0, global_batch=16)[1]
    shard, patch = corpus / "s1/c/0/0/0/0", int(ids[ids < 64][0])  # one of the first step's
    data = bytearray(shard.read_bytes())
    start, length = np.frombuffer(bytes(data[-16 * 64 - 4:-4]), "<u8").reshape(64, 2)[patch]
    data[int(start + length // 2)] ^= 1
    shard.write_bytes(data)
    flags = ["--corpus", str(corpus), "--gpus", "0", "--set", "train.max_steps=3", "--set", "train.precision=fp32", "--batch-size", "16"]
    assert cli.main(["train", *flags, "--out", str(tmp_path / "refused")]) == 1
    error = capfd.readouterr().err
    assert str(shard) in error and f"patch {patch}:" in error and "crc32c" in error and "verify --quarantine" in error
    assert cli.main(["corpus", "verify", str(corpus), "--quarantine"]) == 0
    capfd.readouterr()
    assert cli.main(["train", *flags, "--out", str(tmp_path / "trained")]) == 0
    assert "patches in quarantine, left out: 1" in "".join(capfd.readouterr())


def test_a_line_of_the_history_that_was_cut_off_costs_that_line_alone(tmp_path: Path) -> None:
    with noted(tmp_path, device="cpu", ranks=1, resumed=False):
        pass
    whole = (tmp_path / HISTORY).read_text()
    (tmp_path / HISTORY).write_text(whole[:-20])  # in the middle of the end
    with noted(tmp_path, device="cpu", ranks=2, resumed=True):
        pass
    assert [(r["event"], r.get("ranks")) for r in read_history(tmp_path)] == [("start", 1), ("start", 2), ("end", None)]
