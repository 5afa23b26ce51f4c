"""The command line: its flags are frozen, bad input gets one line and the right exit code, nothing on disk is lost."""

import fcntl
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dsengine import cli
from dsengine.corpus import open_corpus
from dsengine.corpus.seal import seal
from dsengine.engine.log import read_metrics

TRAIN_FLAGS = {"--help", "--method", "--encoder", "--corpus", "--out", "--resume", "--gpus", "--procs", "--nodes", "--resident", "--epochs", "--batch-size",
               "--seed", "--config", "--set", "--print-config", "--dry-run", "--profile"}


def _run(capsys: pytest.CaptureFixture, *argv: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of one command."""
    try:
        code = cli.main([str(a) for a in argv])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def _refused(capsys: pytest.CaptureFixture, *argv: object) -> str:
    """The one line with which a command is refused (exit code 2)."""
    code, _, err = _run(capsys, *argv)
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1, err
    return err


def _subparser(name: str) -> cli._Parser:
    return next(a for a in cli.build_parser([])._actions if hasattr(a, "choices") and a.choices).choices[name]


def test_the_flags_of_train_do_not_grow() -> None:
    assert set(_subparser("train").all_flags()) == TRAIN_FLAGS


def test_print_config_is_complete_and_can_be_given_back(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    code, out, _ = _run(capsys, "train", "--method", "csf", "--epochs", 3, "--set", "method.margin=2", "--set", "train.lr=1e-4", "--print-config")
    settings = yaml.safe_load(out)
    assert code == 0 and settings["train"]["epochs"] == 3 and settings["method"]["margin"] == 2.0 and settings["train"]["lr"] == 1e-4
    (tmp_path / "c.yaml").write_text(out)
    assert _run(capsys, "train", "--config", tmp_path / "c.yaml", "--print-config")[1] == out
    assert yaml.safe_load(_run(capsys, "train", "--config", tmp_path / "c.yaml", "--epochs", 9, "--print-config")[1])["train"]["epochs"] == 9


@pytest.mark.parametrize("argv, words", [
    (["train", "--method", "cfs"], ["method 'cfs'", "csf"]),
    (["train", "--encoder", "resnet"], ["encoder 'resnet'", "resnet18"]),
    (["train", "--set", "train.epoch=3"], ["train.epoch", "epochs"]),
    (["train", "--set", "train.epochs=three"], ["train.epochs must be int", "three"]),
    (["train", "--epoch", "3"], ["--epoch", "--epochs"]),
    (["train", "--epochs", "x"], ["--epochs", "'x'"]),
    (["train", "--config", "/nowhere.yaml"], ["--config /nowhere.yaml", "no such file"]),
    (["train", "--corpus", "/nowhere"], ["/nowhere"]),
    (["train", "--resume"], ["--resume", "--out"]),
    (["tarin"], ["tarin", "train"]),
    ([], ["COMMAND"]),
])
def test_a_wrong_request_is_refused_in_one_line_that_names_it(capsys: pytest.CaptureFixture, argv: list[str], words: list[str]) -> None:
    err = _refused(capsys, *argv)
    assert all(word in err for word in words), err


def test_more_gpus_than_there_are_says_how_many_there_are(capsys: pytest.CaptureFixture, small_corpus: Path, tmp_path: Path) -> None:
    found = torch.cuda.device_count()
    err = _refused(capsys, "train", "--corpus", small_corpus, "--out", tmp_path / "r", "--gpus", found + 1)
    assert f"shows {found} GPU" in err and not (tmp_path / "r").exists()


@pytest.mark.parametrize("setting, words", [
    ("train.batch_size=1000", ["train.batch_size=1000", "train split"]),
    ("train.batch_size=1", ["train.batch_size=1", "at least 2"]),
    ("train.bn_group=5", ["train.bn_group=5", "legal: 1, 2, 4, 8"]),
    ("train.keep_checkpoints=1", ["train.keep_checkpoints=1", "at least 2"]),
    ("data.size=33", ["data.size=33", "32 px"]),
    ("train.lr=0", ["train.lr=0"]),
    ("train.epochs=0", ["train.epochs=0", "at least 1"]),
    ("train.batch_size=0", ["train.batch_size=0", "at least 2"]),
    ("train.bn_group=0", ["train.bn_group=0"]),
    ("train.checkpoint_steps=0", ["train.checkpoint_steps=0"]),
    ("train.seed=-1", ["train.seed=-1"]),
    ("train.weight_decay=-1", ["train.weight_decay=-1"]),
    ("train.warmup_steps=-3", ["train.warmup_steps=-3"]),
    ("train.lr=.inf", ["train.lr", ".inf"]),
    ("data.prefetch=-1", ["data.prefetch=-1"]),
    ("train.first_conv=fast", ["train.first_conv", "fast", "as_is"]),
    ("data.resident=gpu", ["resident: 'gpu' on a CPU", "auto, ram, none"]),
    ("data.resident=disk", ["data.resident", "disk", "auto"]),
    ("data.timeout_s=0", ["data.timeout_s=0"]),
    ("data.size=0", ["data.size=0"]),
    ("method.margin=-1", ["method.margin=-1"]),
    ("method.jitter_strength=[0, 3]", ["method.jitter_strength", "[0, 1.0]"]),
    ("method.warmup=-1", ["warmup", "-1"]),
    ("method.name=..x", ["method '..x'"]),
])
def test_numbers_that_do_not_fit_the_corpus_are_refused_before_a_folder_is_made(
        capsys: pytest.CaptureFixture, small_corpus: Path, tmp_path: Path, setting: str, words: list[str]) -> None:
    err = _refused(capsys, "train", "--corpus", small_corpus, "--out", tmp_path / "r", "--batch-size", 8, "--gpus", 0, "--set", setting)
    assert all(word in err for word in words), err
    assert not (tmp_path / "r").exists()


def test_a_batch_that_does_not_divide_among_ranks_is_refused(capsys: pytest.CaptureFixture, small_corpus: Path) -> None:
    err = _refused(capsys, "train", "--corpus", small_corpus, "--gpus", 0, "--procs", 3, "--batch-size", 16)
    assert "16 does not divide among 3 ranks; legal near it: 15, 18" in err


def test_a_folder_with_something_in_it_is_never_written_to(capsys: pytest.CaptureFixture, small_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    err = _refused(capsys, "train", "--corpus", small_corpus, "--out", out, "--gpus", 0)
    assert str(out) in err and "not empty" in err and "--resume" in err
    assert [p.name for p in out.iterdir()] == ["thesis.txt"] and (out / "thesis.txt").read_text() == "years of work"
    assert "holds no run to resume" in _refused(capsys, "train", "--resume", "--corpus", small_corpus, "--out", out, "--gpus", 0)
    assert "is a file" in _refused(capsys, "train", "--corpus", small_corpus, "--out", out / "thesis.txt", "--gpus", 0)


def test_a_folder_that_cannot_be_written_is_refused(capsys: pytest.CaptureFixture, small_corpus: Path) -> None:
    # /proc refuses everybody, root too.
    err = _refused(capsys, "train", "--corpus", small_corpus, "--out", "/proc/dsengine/run", "--gpus", 0)
    assert "out=/proc/dsengine/run: cannot be written" in err


def test_a_corpus_without_statistics_names_the_command_that_makes_them(capsys: pytest.CaptureFixture, small_corpus: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(small_corpus, corpus)
    meta = json.loads((corpus / "s2" / "zarr.json").read_text())
    for key in ("mean", "std", "count"):
        meta["attributes"].pop(key)
    (corpus / "s2" / "zarr.json").write_text(json.dumps(meta))
    seal(corpus)
    err = _refused(capsys, "train", "--corpus", corpus, "--out", tmp_path / "r", "--gpus", 0)
    assert "dsengine corpus stats" in err


def _short(corpus: Path, out: Path) -> list[object]:
    return ["train", "--corpus", corpus, "--out", out, "--gpus", 0, "--batch-size", 8, "--set", "train.max_steps=2", "--set",
            "train.precision=fp32"]


@pytest.fixture(scope="module")
def finished(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps; copy it before you change it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert cli.main([str(a) for a in _short(small_corpus, out)]) == 0
    return out


def test_a_run_leaves_what_it_promises_and_says_where(finished: Path, capsys: pytest.CaptureFixture) -> None:
    print(cli._summary(finished))
    said = capsys.readouterr().out
    for name in ("config.yaml", "metrics.jsonl", "figures/loss.png", "figures/views.png", "checkpoints/step-00000002"):
        assert (finished / name).exists(), name
    assert all(str(finished / name) in said for name in ("figures/loss.png", "checkpoints/step-00000002"))
    last = read_metrics(finished)[-1]
    assert {"step", "epoch", "loss", "lr", "samples_per_s", "data_wait", "heldout_loss"} <= set(last)
    settings = yaml.safe_load((finished / "config.yaml").read_text())
    open_ended = {"max_steps", "where", "micro_batch", "knn_epochs", "knn_label", "capture_step", "async_save", "prefetch"}
    assert all(v is not None for section in ("train", "data") for k, v in settings[section].items() if k not in open_ended)


def test_tensorboard_reads_what_the_records_hold_and_forgets_what_a_resume_did_again(finished: Path, small_corpus: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    assert cli.main([str(a) for a in [*_short(small_corpus, run), "--resume"]]) == 0
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    for name in ("loss", "samples_per_s", "heldout_loss"):
        want = [(record["step"], pytest.approx(record[name], rel=1e-6)) for record in read_metrics(run) if name in record]
        assert want and [(event.step, event.value) for event in board.Scalars(name)] == want


def test_the_finished_run_gives_its_encoder_back_with_its_contract(finished: Path, small_corpus: Path) -> None:
    import dsengine

    encoder, contract = dsengine.load_encoder(finished)
    assert contract == dsengine.open_corpus(small_corpus).contract()
    assert encoder(torch.randn(2, len(contract.bands), 16, 16)).pooled.shape == (2, 512) and not encoder.training


def test_resuming_on_a_corpus_with_another_band_order_is_refused_and_the_run_stays_as_it_was(
        finished: Path, small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, corpus = tmp_path / "run", tmp_path / "corpus"
    shutil.copytree(finished, run)
    shutil.copytree(small_corpus, corpus)
    meta = json.loads((corpus / "zarr.json").read_text())
    bands = meta["attributes"]["dsengine"]["bands"]
    bands[1], bands[2] = bands[2], bands[1]
    (corpus / "zarr.json").write_text(json.dumps(meta))
    seal(corpus)
    before = (run / "config.yaml").read_text()
    err = _refused(capsys, "train", "--resume", "--out", run, "--corpus", corpus)
    assert "bands differ" in err and "B01, B03, B02" in err and "B01, B02, B03" in err
    assert (run / "config.yaml").read_text() == before


def test_resuming_with_another_setting_is_refused_by_name_and_more_epochs_are_not(
        finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    err = _refused(capsys, "train", "--resume", "--out", run, "--seed", 9)
    assert "train.seed=9" in err and "has 0" in err
    assert _run(capsys, "train", "--resume", "--out", run, "--set", "train.max_steps=3")[0] == 0
    assert [r["step"] for r in read_metrics(run)][-1] == 3


def test_a_run_saved_before_a_setting_existed_resumes_with_its_default_alone(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    saved = (run / "config.yaml").read_text()
    assert "  nesterov: false\n" in saved
    (run / "config.yaml").write_text(saved.replace("  nesterov: false\n", ""))
    assert "train.nesterov=True" in _refused(capsys, "train", "--resume", "--out", run, "--set", "train.nesterov=true")
    assert _run(capsys, "train", "--resume", "--out", run, "--set", "train.max_steps=3")[0] == 0


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_chunk_ends_the_run_with_code_1_and_its_name(capsys: pytest.CaptureFixture, small_corpus: Path, tmp_path: Path, damage: str) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(small_corpus, corpus)
    row = int(open_corpus(corpus).rows("train")[0])
    shard = corpus / "s2" / "c" / str(row // 64) / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    if damage == "flip":
        offset, length = struct.unpack_from("<QQ", content, len(content) - 4 - 16 * 64 + 16 * (row % 64))
        content[offset + length // 2] ^= 0x10  # one bit of one chunk
    shard.write_bytes(content if damage == "flip" else content[: len(content) // 3])
    code, _, err = _run(capsys, "train", "--corpus", corpus, "--out", tmp_path / "r", "--gpus", 0, "--batch-size", 8, "--epochs", 1)
    last = err.strip().splitlines()[-1]
    assert code == 1 and str(shard) in last and "Traceback" not in err, err
    assert f"patch {row}" in last or damage == "truncate", last
    assert f"`dsengine corpus verify --quarantine {corpus}`" in last


def test_a_folder_that_another_process_writes_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    with open(run / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process is writing" in _refused(capsys, "train", "--resume", "--out", run, "--set", "train.max_steps=3")
    assert _run(capsys, "train", "--resume", "--out", run, "--set", "train.max_steps=3")[0] == 0


def test_a_run_that_diverges_stops_by_name_and_keeps_no_bad_checkpoint(capsys: pytest.CaptureFixture, small_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    code, _, err = _run(capsys, "train", "--corpus", small_corpus, "--out", out, "--gpus", 0, "--batch-size", 8, "--set", "train.lr=1e25",
                        "--set", "train.checkpoint_steps=1", "--set", "train.log_steps=1000", "--set", "train.precision=fp32")
    assert code == 1 and "not finite at step" in err and "sample ids" in err
    weights = [load_file(path) for path in out.glob("checkpoints/*/model.safetensors")]
    assert weights and all(torch.isfinite(value.float()).all() for w in weights for value in w.values())


def test_doctor_finds_nothing_broken_and_says_what_is_there(capsys: pytest.CaptureFixture) -> None:
    code, out, _ = _run(capsys, "doctor")
    assert code == 0 and "broken" not in out
    assert all(word in out for word in ("C++ library", "torch", "GPU", "DALI", "zarr"))


@pytest.mark.parametrize("given, found", [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)])
def test_idle_threads_leave_the_cores_to_the_loader_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch, given: dict, found: str | None) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    cli.rest_sooner()
    assert os.environ.get("GOMP_SPINCOUNT") == found


def test_the_command_line_does_not_load_torch_before_it_has_said_so() -> None:
    says = "import dsengine.cli, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", says], check=True, timeout=60)
