"""What a report costs: the short one that training leaves behind, and the whole one beside the encoder alone on as many patches.

Run `pytest bench/bench_report.py --benchmark-enable -s`. The run is synthetic: an untrained ResNet18 saved as training saves it, 20,000 logged records and a
contact sheet of noise, which compresses worse than imagery. On a CPU 96 patches of 64 px, 8 where benches only run as tests. What moves these
numbers: study/report/embeddings.py, study/report/pictures.py (WebP), engine/checkpoint.py (hashes of every file, for each reading).
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from paired import paired_times
from PIL import Image

from dsengine.corpus import open_corpus
from dsengine.corpus.synth import synthesize
from dsengine.encoders import build_encoder
from dsengine.engine import checkpoint
from dsengine.methods import build_method
from dsengine.study.report.write import write_report, write_short_report

SIZE, RECORDS = 64, 20_000


@pytest.fixture(scope="module")
def patches(request: pytest.FixtureRequest) -> int:
    return 96 if request.config.getoption("--benchmark-enable") else 8


@pytest.fixture(scope="module")
def run(patches: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("report")
    path, folder = synthesize(home / "corpus", num_patches=max(patches, 16), size=SIZE), home / "run"
    (folder / "figures").mkdir(parents=True)
    config = {"corpus": str(path), "out": str(folder), "method": {"name": "vae"}, "encoder": {"name": "resnet18"}, "train": {"batch_size": 64, "seed": 0}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    losses = np.random.default_rng(0).normal(1, 0.1, RECORDS)
    records = [{"step": k, "epoch": k // 500, "loss": loss, "lr": 5e-4, "samples_per_s": 900.0, "data_wait": 0.01} for k, loss in enumerate(losses.tolist(), 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (748, 1056, 3), np.uint8)).save(folder / "figures" / "views.png")
    corpus = open_corpus(path)
    method = build_method("vae", encoder=build_encoder("resnet18", len(corpus.bands)))
    checkpoint.save(folder, step=RECORDS, method=method, optimizer=torch.optim.Adam(method.parameters()), loader={}, config=config,
                    contract=corpus.contract(), keep=2)
    return folder


def test_the_short_report_of_a_run(run: Path, benchmark: Callable) -> None:
    path = benchmark.pedantic(lambda: write_short_report(run), rounds=3)
    assert path.stat().st_size < 2_000_000
    print(f"\nshort report: {path.stat().st_size / 1e3:.0f} kB of {RECORDS:,} records and a {(run / 'figures' / 'views.png').stat().st_size / 1e6:.1f} MB sheet")
    benchmark.extra_info.update(bytes=path.stat().st_size, records=RECORDS)


def test_the_whole_report_of_a_run(run: Path, patches: int, tmp_path: Path, benchmark: Callable, request: pytest.FixtureRequest) -> None:
    encoder, _ = checkpoint.load_encoder(run)

    def alone() -> None:
        with torch.inference_mode():
            for start in range(0, patches, 32):
                encoder(torch.randn(min(32, patches - start), encoder.in_channels, SIZE, SIZE).contiguous(memory_format=torch.channels_last))

    whole = lambda: write_report([run], out=tmp_path / "r.html", samples=patches)  # noqa: E731
    times = paired_times(whole, alone, pairs=3 if request.config.getoption("--benchmark-enable") else 1)
    seconds = float(np.median(times.a))
    print(f"\nwhole report of {patches} patches: {seconds:.2f} s, the encoder alone {np.median(times.b):.2f} s, {torch.get_num_threads()} threads")
    benchmark.extra_info.update(seconds=seconds, encoder_s=float(np.median(times.b)), patches=patches)
    assert "Embedding maps" in benchmark.pedantic(whole, rounds=1).read_text()
