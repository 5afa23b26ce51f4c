"""Feature files: what the encoder is shown is what it was trained on, computed once, resumed, and refused when damaged."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from evaluate_cases import planted, untrained_run  # noqa: E402

import dsengine
from dsengine.corpus import Corpus
from dsengine.encoders import Features
from dsengine.errors import RunError, UsageError
from dsengine.evaluate.features import FeatureFile, features
from dsengine.evaluate.progress import Progress
from dsengine.evaluate.shown import arranged, endless, labels, once, plan_of, shown
from dsengine.evaluate.subjects import RandomConvolutions, Repeated, Statistics, Subject, pretrained, twin, with_floors

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return dsengine.open_corpus(planted(tmp_path_factory.mktemp("planted") / "corpus"))


@pytest.fixture(scope="module")
def subject(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return pretrained(str(untrained_run(tmp_path_factory.mktemp("run") / "run", corpus.path)))


class Seen(nn.Module):
    """An encoder of n channels whose features are its input, and which counts what it was shown."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_channels, self.dim, self.shown = channels, channels, 0

    def forward(self, x: torch.Tensor) -> Features:
        self.shown += len(x)
        return Features(x.flatten(1), x)


def physical(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    return corpus.read(rows, "s2").astype(np.float64) * 1e-4


def made(subject: Subject, corpus: Corpus, rows: np.ndarray, folder: Path, **settings: object) -> FeatureFile:
    return features(subject, corpus, shown(subject, corpus), rows, folder=folder, progress=QUIET, batch_size=7, **settings)


def test_an_encoder_sees_its_own_bands_in_its_own_order_by_its_own_statistics(corpus: Corpus, subject: Subject, tmp_path: Path) -> None:
    contract = subject.contract
    other = replace(contract, **{key: tuple(getattr(contract, key)[k] for k in (3, 1)) for key in ("bands", "units", "scale", "offset")},
                    mean=(0.1, 0.3), std=(0.02, 0.5))
    seen = replace(subject, encoder=Seen(2), contract=other)
    rows = np.arange(5, 25)
    file = made(seen, corpus, rows, tmp_path)
    expected = (physical(corpus, rows)[:, [3, 1]] - np.array([0.1, 0.3])[:, None, None]) / np.array([0.02, 0.5])[:, None, None]
    np.testing.assert_allclose(file.x.reshape(expected.shape), expected, atol=2e-4)


def test_bands_that_are_not_there_are_zero_and_a_drawn_one_is_named(corpus: Corpus, subject: Subject, tmp_path: Path) -> None:
    seen = replace(subject, encoder=Seen(4))
    what = shown(seen, corpus, bands=("B03",))
    x = features(seen, corpus, what, np.arange(4), folder=tmp_path, progress=QUIET).x.reshape(4, 4, 16, 16)
    assert (x[:, [0, 1, 3]] == 0).all() and x[:, 2].std() > 0.5
    single = replace(subject, encoder=Seen(1))
    alone = features(single, corpus, shown(single, corpus, bands=("B03",)), np.arange(4), folder=tmp_path, progress=QUIET).x
    np.testing.assert_array_equal(alone.reshape(4, 16, 16), x[:, 2])
    for bands in (None, ("B02", "B03"), ("B99",)):
        with pytest.raises(UsageError, match="1 of B01, B02, B03, B04"):
            shown(single, corpus, bands=bands)


def test_pooled_features_and_maps_are_the_encoders_of_whole_patches(corpus: Corpus, subject: Subject, tmp_path: Path) -> None:
    rows = np.arange(0, 30, 3)
    mean, std = (np.array(v)[:, None, None] for v in (subject.contract.mean, subject.contract.std))
    x = torch.from_numpy((physical(corpus, rows) - mean) / std).float()
    with torch.no_grad():
        expected = subject.encoder(x)
    np.testing.assert_allclose(made(subject, corpus, rows, tmp_path).x, expected.pooled, rtol=1e-3, atol=1e-4)
    maps = made(subject, corpus, rows, tmp_path, dense=True)
    np.testing.assert_allclose(maps.x, expected.dense, rtol=1e-3, atol=1e-4)
    assert isinstance(maps.x, np.memmap) and not maps.x.flags.writeable
    np.testing.assert_array_equal(maps.of(rows[[4, 1]]), maps.x[[4, 1]])
    with pytest.raises(ValueError, match="lacks"):
        maps.of(np.array([1]))


def test_features_are_made_once_and_a_stopped_extraction_goes_on_where_it_was(corpus: Corpus, subject: Subject, tmp_path: Path) -> None:
    seen, rows = replace(subject, encoder=Seen(4)), np.arange(60)
    whole = np.array(made(seen, corpus, rows, tmp_path / "a").x)
    assert seen.encoder.shown == 60
    made(seen, corpus, rows, tmp_path / "a")
    assert seen.encoder.shown == 60  # read
    (home,) = (tmp_path / "a").iterdir()
    described = json.loads((home / "features.json").read_text())
    assert described["contract"] == subject.contract.to_json() and described["done"] == 60 and len(described["sha256"]) == 64
    array = np.lib.format.open_memmap(home / "features.npy", mode="r+")
    array[35:] = -7  # a kill after 35 rows
    array.flush()
    (home / "features.json").write_text(json.dumps({**{k: v for k, v in described.items() if k != "sha256"}, "done": 35}))
    np.testing.assert_array_equal(made(seen, corpus, rows, tmp_path / "a").x, whole)
    assert seen.encoder.shown == 60 + 25


def test_other_weights_rows_or_sizes_are_other_files_and_a_damaged_one_is_named(corpus: Corpus, subject: Subject, tmp_path: Path) -> None:
    seen, rows = replace(subject, encoder=Seen(4)), np.arange(8)
    made(seen, corpus, rows, tmp_path)
    made(seen, corpus, rows + 1, tmp_path)
    features(seen, corpus, shown(seen, corpus, size=8), rows, folder=tmp_path, progress=QUIET)
    seen.encoder.register_buffer("weight", torch.ones(1))
    made(seen, corpus, rows, tmp_path)
    seen.encoder.weight += 1
    made(seen, corpus, rows, tmp_path)
    homes = list(tmp_path.iterdir())
    assert len(homes) == 5
    for home in homes:
        content = bytearray((home / "features.npy").read_bytes())
        content[-3] ^= 4
        (home / "features.npy").write_bytes(content)
    with pytest.raises(RunError, match="does not match its sha256"):
        made(seen, corpus, rows, tmp_path)


def test_units_of_another_kind_and_an_encoder_without_maps_are_refused(corpus: Corpus, subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="B01 is in reflectance, not dB"):
        shown(replace(subject, contract=replace(subject.contract, units=("dB",) * 4)), corpus)
    with pytest.raises(UsageError, match="makes no maps"):
        made(replace(subject, encoder=Statistics(4)), corpus, np.arange(4), tmp_path, dense=True)


def test_floors_are_what_they_say(corpus: Corpus, subject: Subject) -> None:
    x = torch.randn(5, 4, 16, 16)
    expected = np.concatenate([x.numpy().mean((2, 3)), x.numpy().std((2, 3))], axis=1)
    np.testing.assert_allclose(Statistics(4)(x).pooled, expected, atol=1e-6)
    module, by_hand = RandomConvolutions(4, filters=3), np.zeros((5, 6))
    for b in range(5):
        for k in range(3):
            response = np.array([[(module.weight[k].numpy() * x[b, :, i:i + 3, j:j + 3].numpy()).sum() for j in range(14)] for i in range(14)])
            by_hand[b, k], by_hand[b, 3 + k] = np.maximum(response - 1, 0).mean(), np.maximum(-response - 1, 0).mean()
    np.testing.assert_allclose(module(x).pooled, by_hand, atol=1e-5)
    same, fresh = twin(subject, seed=3), twin(subject, seed=4)
    assert same.digest() != fresh.digest() != subject.digest() and same.digest() == twin(subject, seed=3).digest()
    assert {k: v.shape for k, v in same.encoder.state_dict().items()} == {k: v.shape for k, v in subject.encoder.state_dict().items()}
    again = replace(subject, name="again")
    names = [s.name for s in with_floors([subject, again], ("statistics", "untrained"), seed=0)]
    assert names == ["run", "again", "image statistics", "untrained resnet18"]  # a floor is there once


def test_a_row_is_named_by_its_run_or_by_what_stands_before_it(corpus: Corpus, tmp_path: Path) -> None:
    run = untrained_run(tmp_path / "lr=1", corpus.path)
    assert pretrained(str(run)).name == "lr=1" and pretrained(f"mine={run}").name == "mine"
    assert pretrained(f"mine={run}/checkpoints/step-00000003").about["step"] == 3
    assert pretrained(str(run)).digest() == pretrained(f"mine={run}").digest() and pretrained(str(run)).about["method"] == {"name": "csf"}


def test_one_band_repeated_is_the_encoder_of_three_equal_channels() -> None:
    encoder = dsengine.build_encoder("resnet18", 3).eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(Repeated(encoder)(x).pooled, encoder(torch.cat((x, x, x), 1)).pooled)


def test_labels_are_cut_and_classed_as_their_views(corpus: Corpus, subject: Subject) -> None:
    what = shown(replace(subject, encoder=Seen(4)), corpus, size=8)
    plan = plan_of(corpus, what, np.arange(30), batch_size=8, label="cover")
    stored = corpus.labels["cover"][...]
    for batch in once(plan):
        ids = batch.sample_id.numpy()
        np.testing.assert_array_equal(labels(plan, ids), batch.label)
        whole = (physical(corpus, ids)[:, 1] - what.mean[1]) / what.std[1]
        for k, row in enumerate(ids):  # find the crop in the patch by its pixels
            places = [(y, z) for y in range(9) for z in range(9) if np.allclose(whole[k, y:y + 8, z:z + 8], batch.views[0][k, 1], atol=1e-3)]
            (y, z), = places
            cut = stored[row, y:y + 8, z:z + 8].astype(int)
            np.testing.assert_array_equal(batch.label[k], np.where(cut == 0, -1, cut // 10 - 1))
    batches = endless(plan)
    assert next(batches).views[0].shape == (8, 4, 8, 8) and arranged(torch.zeros(2, 4, 8, 8), what).shape == (2, 4, 8, 8)
    batches.close()
