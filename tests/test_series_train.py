"""`dsengine train` on pixels and series: runs from start to end, ranks and resumed runs that agree, and each mistake in one line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dsengine
from dsengine import cli
from dsengine.corpus.synth.series import synthesize_series
from dsengine.engine.log import read_metrics

SMALL = {"pixels": ("resmlp", ["encoder.width=16", "encoder.blocks=2", "encoder.dropout=0.1"]),
         "series": ("temporal", ["encoder.width=16", "encoder.heads=2", "encoder.blocks=1", "encoder.out=8", "encoder.dates=36", "encoder.dropout=0.1"])}
METHODS = {"scarf": [], "simclr": ["method.modalities=[s2,planet]"], "supervised": []}
CASES = [(kind, method) for kind in SMALL for method in METHODS]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """192 synthetic rows of each kind."""
    folder = tmp_path_factory.mktemp("tables")
    return {kind: synthesize_series(folder / kind, kind=kind, num_rows=192, seed=3) for kind in SMALL}


def argv(corpus: Path, out: Path, kind: str, method: str, *extra: str) -> list[str]:
    encoder, small = SMALL[kind]
    sets = [*small, *METHODS[method], "train.log_steps=1", "train.bn_group=4", "train.heldout_samples=64", *extra]
    return ["train", "--method", method, "--encoder", encoder, "--corpus", str(corpus), "--out", str(out), "--gpus", "0", "--batch-size", "16",
            *(part for text in sets for part in ("--set", text))]


@pytest.mark.parametrize("kind, method", CASES)
def test_a_run_ends_with_losses_pictures_and_encoders_that_load(corpora: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture, kind: str,
                                                                method: str) -> None:
    assert cli.main(argv(corpora[kind], tmp_path / "run", kind, method, "train.max_steps=3")) == 0
    assert f"{kind} kept in memory: ram" in capsys.readouterr().err
    records = read_metrics(tmp_path / "run")
    assert [r["step"] for r in records] == [1, 2, 3] and all(r["loss"] > 0 for r in records) and records[-1]["heldout_loss"] > 0
    assert {p.name for p in (tmp_path / "run" / "figures").iterdir()} == {"loss.png", "views.png"}
    for name, channels in {"s2": 12, "planet": 36}.items() if method == "simclr" else {"all": 48}.items():
        encoder, contract = dsengine.load_encoder(tmp_path / "run", name)
        assert encoder.in_channels == channels == len(contract.bands) and contract.patch_size == 1
        shape = (2, 36, channels) if kind == "series" else (2, channels)
        assert torch.isfinite(encoder(torch.randn(shape)).pooled).all()


@pytest.mark.parametrize("kind, method", [("pixels", "scarf")])
def test_a_run_on_two_processes_logs_the_losses_of_a_run_on_one(corpora: dict[str, Path], tmp_path: Path, kind: str, method: str) -> None:
    runs = []
    for procs in (1, 2):
        command = argv(corpora[kind], tmp_path / str(procs), kind, method, "train.max_steps=4", "train.precision=fp64", "train.lr=1e-6", f"device.procs={procs}")
        assert cli.main(command) == 0  # of two, in processes of their own
        runs.append(read_metrics(tmp_path / str(procs)))
    assert [r["step"] for r in runs[0]] == [r["step"] for r in runs[1]] == [1, 2, 3, 4]
    for a, b in zip(*runs):
        assert a["ids_crc"] == b["ids_crc"]
        for key in ("loss", "heldout_loss"):
            assert (key in a) == (key in b)
            assert abs(a.get(key, 0) - b.get(key, 0)) <= 1e-9 * abs(a.get(key, 0))


@pytest.mark.parametrize("kind, method", [("pixels", "supervised"), ("series", "scarf")])
def test_a_stopped_and_resumed_run_is_bitwise_the_one_that_was_not_stopped(corpora: dict[str, Path], tmp_path: Path, kind: str, method: str) -> None:
    settings = ("train.precision=fp32", "train.checkpoint_steps=2")
    assert cli.main(argv(corpora[kind], tmp_path / "whole", kind, method, "train.max_steps=7", *settings)) == 0
    assert cli.main(argv(corpora[kind], tmp_path / "parts", kind, method, "train.max_steps=4", *settings)) == 0
    assert cli.main(["train", "--resume", "--out", str(tmp_path / "parts"), "--set", "train.max_steps=7"]) == 0
    whole, parts = ({r["step"]: (r["loss"], r["ids_crc"]) for r in read_metrics(tmp_path / name)} for name in ("whole", "parts"))
    assert whole == parts and set(whole) == set(range(1, 8))
    weights = [load_file(tmp_path / name / "checkpoints" / "step-00000007" / "model.safetensors") for name in ("whole", "parts")]
    assert weights[0].keys() == weights[1].keys() and all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("kind, extra, words", [
    ("pixels", ["--method", "simclr"], ["view 1: ", "is for image patches", "holds pixels"]),
    ("pixels", ["--method", "scarf", "--encoder", "resnet18"], ["encoder resnet18 takes patches", "holds pixels", "legal: resmlp"]),
    ("series", ["--method", "scarf", "--encoder", "resmlp"], ["encoder resmlp takes pixels", "holds series", "legal: temporal"]),
    ("series", ["--method", "scarf", "--set", "data.size=32"], ["data.size=32", "holds series", "leave it out"]),
    ("series", ["--method", "scarf", "--set", "method.sensor=s1"], ["sensor 's1' is not in the corpus"]),
    ("series", ["--method", "scarf", "--resident", "none"], ["resident: 'none'", "always held in memory", "auto, gpu, ram"]),
    ("series", ["--method", "scarf", "--resident", "gpu"], ["resident: 'gpu' on a CPU"]),
    ("series", ["--method", "scarf", "--batch-size", "1000"], ["train.batch_size=1000", "series"]),
    ("series", ["--method", "supervised", "--set", "method.label=crop"], ["method.label='crop'", "landcover"]),
    ("series", ["--method", "scarf", "--set", "encoder.dates=9"], ["encoder.dates=9", "36 dates"]),
])
def test_a_mistake_is_refused_in_one_line(corpora: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture, kind: str, extra: list[str],
                                          words: list[str]) -> None:
    code = cli.main(["train", "--corpus", str(corpora[kind]), "--out", str(tmp_path / "run"), "--gpus", "0", *extra])
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and all(word in err for word in words), err
    assert not (tmp_path / "run").exists()  # nothing is written before all is known to fit


def test_methods_of_tables_bring_corpus_and_encoder_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
                                                                 corpora: dict[str, Path]) -> None:
    from dsengine.corpus import default

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(default, "NUM_ROWS", {"pixels": 300})
    assert cli.main(["train", "--method", "scarf", "--out", str(tmp_path / "run"), "--gpus", "0", "--set", "train.max_steps=1"]) == 0
    assert "resmlp" in (tmp_path / "run" / "config.yaml").read_text()
    assert len(list((tmp_path / "cache" / "dsengine").iterdir())) == 1
    capsys.readouterr()
    for kind, encoder in (("pixels", "resmlp"), ("series", "temporal")):
        assert cli.main(["train", "--method", "supervised", "--corpus", str(corpora[kind]), "--print-config"]) == 0
        assert f"name: {encoder}" in capsys.readouterr().out


def test_images_are_refused_by_a_method_of_tables(small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["train", "--method", "scarf", "--corpus", str(small_corpus), "--out", str(tmp_path / "run"), "--gpus", "0"]) == 2
    assert "method scarf takes pixels or series" in (err := capsys.readouterr().err) and "holds patches; legal: byol, csf" in err and not (tmp_path / "run").exists()
