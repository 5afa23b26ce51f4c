"""Training on a damaged corpus: refused by name, then, with the damage in quarantine, done without it and with its count."""

import shutil
from pathlib import Path

import pytest

from dsengine import cli


def test_a_damaged_patch_is_named_and_once_in_quarantine_left_out_with_a_count(small_corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    corpus = shutil.copytree(small_corpus, tmp_path / "corpus")
    shard = corpus / "s1/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 4] ^= 1
    shard.write_bytes(data)
    flags = ["--corpus", str(corpus), "--gpus", "0", "--set", "train.max_steps=3", "--set", "train.precision=fp32", "--batch-size", "16"]
    assert cli.main(["train", *flags, "--out", str(tmp_path / "refused")]) == 1
    error = capfd.readouterr().err
    assert str(shard) in error and "crc32c" in error and "verify --quarantine" in error
    assert cli.main(["corpus", "verify", str(corpus), "--quarantine"]) == 0
    capfd.readouterr()
    assert cli.main(["train", *flags, "--out", str(tmp_path / "trained")]) == 0
    assert "patches in quarantine, left out: 1" in "".join(capfd.readouterr())
