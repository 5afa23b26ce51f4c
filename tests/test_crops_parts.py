"""Who trains and who is judged in a crop study, and what networks are shown: fields stay whole, missing dates stay missing."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from crops_cases import BANDS, CLASSES, columns, planted, run_of, values  # noqa: E402

import dsengine  # noqa: E402
from dsengine.errors import UsageError  # noqa: E402
from dsengine.evaluate.crops.inputs import encoded, raw, read, standardised  # noqa: E402
from dsengine.evaluate.crops.parts import by_fields, make_task  # noqa: E402
from dsengine.evaluate.crops.settings import Setting  # noqa: E402
from dsengine.evaluate.progress import Progress  # noqa: E402
from dsengine.evaluate.subjects import pretrained  # noqa: E402

GAPPY = [187, 71, 144]  # rows with a date without data, one that is not clear, and one that lacks a band


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crops")


@pytest.fixture(scope="module")
def corpus(folder: Path) -> dsengine.corpus.SeriesCorpus:
    return dsengine.open_corpus(planted(folder / "corpus"))


@given(st.lists(st.tuples(st.integers(0, 25), st.integers(0, 3)), min_size=1, max_size=80), st.integers(0, 2**32 - 1))
def test_fields_are_whole_and_each_class_of_three_fields_or_more_is_in_each_part(rows: list[tuple[int, int]], seed: int) -> None:
    fields, classes = np.array([field for field, _ in rows]), np.array([field % 4 for field, _ in rows])
    code = by_fields(fields, classes, (0.6, 0.2, 0.2), seed=seed)
    assert all(len(set(code[fields == field])) == 1 for field in set(fields.tolist()))
    for c in set(classes.tolist()):
        of_class = set(fields[classes == c].tolist())
        assert len(of_class) < 3 or set(code[classes == c]) == {0, 1, 2}


def test_shares_of_fields_are_those_asked_for_and_the_seed_decides_which() -> None:
    fields = np.repeat(np.arange(1000), 2)
    classes = fields % 2
    code = by_fields(fields, classes, (0.5, 0.2, 0.3), seed=1)
    assert [len(set(fields[(code == k) & (classes == 1)])) for k in range(3)] == [250, 100, 150]
    assert (code != by_fields(fields, classes, (0.5, 0.2, 0.3), seed=2)).any()


def test_the_task_has_every_labelled_row_of_common_classes_once_and_no_field_twice(corpus: dsengine.corpus.SeriesCorpus) -> None:
    task, c = make_task(corpus, Setting()), columns()
    expected = np.flatnonzero(np.isin(c["crop"], (10, 20, 30)))
    assert sorted(task.rows.tolist()) == expected.tolist() and task.names == ("wheat", "rye", "maize") and task.field == "field"
    for part in task.parts.values():
        assert (np.array([10, 20, 30])[part.classes] == c["crop"][part.rows]).all() and (part.fields == c["field"][part.rows]).all()
    fields = [set(part.fields.tolist()) for part in task.parts.values()]
    assert sum(map(len, fields)) == len(set.union(*fields)) and task.left_out["rows_of_rare_classes"] == {"hops": 9}


@pytest.mark.parametrize("split", ["block", "column:field"])
def test_other_rules_keep_fields_whole_too(corpus: dsengine.corpus.SeriesCorpus, split: str) -> None:
    parts = make_task(corpus, Setting(split=split)).parts
    fields = [set(part.fields.tolist()) for part in parts.values()]
    assert all(fields) and sum(map(len, fields)) == len(set.union(*fields))


@pytest.mark.parametrize("split", ["corpus", "column:nodata_fraction"])
def test_a_rule_that_parts_a_field_is_refused_by_name(corpus: dsengine.corpus.SeriesCorpus, split: str) -> None:
    with pytest.raises(UsageError, match=r"split=.*: field 10\d\d is in \w+ and in \w+; legal: .*split=fields"):
        make_task(corpus, Setting(split=split))


def test_task_2_is_judged_on_the_rows_of_its_condition_alone(corpus: dsengine.corpus.SeriesCorpus) -> None:
    task, c = make_task(corpus, Setting(test_where="region == 'south' and year == 2019")), columns()
    assert list(task.parts) == ["train", "val", "test", "elsewhere"]
    assert set(c["year"][task.parts["elsewhere"].rows]) == {2019}
    assert all(set(c["year"][task.parts[name].rows]) == {2018} for name in ("train", "val", "test"))


def test_rows_of_a_field_that_is_also_elsewhere_leave_task_1(corpus: dsengine.corpus.SeriesCorpus) -> None:
    task, c = make_task(corpus, Setting(test_where="id < 30")), columns()  # fields 0 to 9
    here = {field for name in ("train", "val", "test") for field in task.parts[name].fields}
    assert len(task.parts["elsewhere"].rows) and here.isdisjoint(task.parts["elsewhere"].fields)
    cut_through = make_task(corpus, Setting(test_where="id < 31"))  # and a third of field 10
    assert cut_through.left_out["rows_of_fields_that_are_also_elsewhere"] == 2 and c["field"][30] in cut_through.parts["elsewhere"].fields


@pytest.mark.parametrize("change, message", [
    ({"label": "crops"}, "label='crops' is not in"), ({"field": "fild"}, "field=fild: no such index column, did you mean field"),
    ({"split": "place"}, "split='place' is not legal: fields, corpus, block, column:NAME"), ({"min_fields": 40}, "min_fields=40: 0 classes"),
    ({"where": "id < 0"}, "no row of .* has one with id < 0"), ({"test_where": "id < 0"}, "no labelled row in elsewhere"),
    ({"fractions": (0.5, 0.2, 0.1)}, "fractions="), ({"fractions": (0.8, 0.2, 0.0)}, "no labelled row in test")])
def test_what_is_not_legal_is_said_in_one_line(corpus: dsengine.corpus.SeriesCorpus, change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_task(corpus, replace(Setting(), **change))


@pytest.mark.parametrize("change", [{"configs": 0}, {"shrink": 3}, {"networks": ("lstm",)}, {"networks": ()}, {"networks": ("bilstm", "bilstm")},
                                    {"epochs": 0}, {"floors": ("rcf",)}, {"seed": 2**32}, {"min_fields": 2}])
def test_settings_out_of_range_are_refused(change: dict) -> None:
    (name,) = change
    with pytest.raises(UsageError, match=f"{name}="):
        Setting(**change)


def test_raw_series_are_physical_values_with_nan_where_there_is_none(corpus: dsengine.corpus.SeriesCorpus) -> None:
    v, rows = values(), np.array(GAPPY)
    x = raw(corpus, rows, None).x
    for n, row in enumerate(rows):
        for t in range(6):
            for c in range(3):
                gone = v["s2"][row, t, c] == -32768 or not v["clear"][row, t]
                assert np.isnan(x[n, t, c]) if gone else x[n, t, c] == pytest.approx(v["s2"][row, t, c] * 1e-4, rel=1e-6)


def test_sensors_lie_side_by_side_and_blocks_of_rows_join(corpus: dsengine.corpus.SeriesCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(240)
    whole = read(corpus, rows, corpus.bands)
    monkeypatch.setattr("dsengine.evaluate.crops.inputs._AT_ONCE", 7)
    np.testing.assert_array_equal(read(corpus, rows, corpus.bands), whole)
    assert whole.shape == (240, 6, 4)
    np.testing.assert_array_equal(whole[..., 3], values()["rain"][..., 0])


def test_networks_see_z_scores_by_the_train_rows_alone_and_0_where_there_is_nothing() -> None:
    x = np.random.default_rng(0).normal(5, 2, (40, 3, 4)).astype(np.float32)
    x[::7, 1], x[..., 3] = np.nan, 2.5  # a channel that is constant
    z = standardised(x, slice(0, 25), torch.device("cpu")).numpy()
    for c in range(3):
        seen = x[:25, :, c][np.isfinite(x[:25, :, c])].astype(np.float64)
        expected = (x[..., c] - seen.mean()) / seen.std()
        np.testing.assert_allclose(z[..., c], np.nan_to_num(expected), atol=1e-5)
    assert (z[..., 3] == 0).all() and (z[::7, 1] == 0).all()


class TestFeatures:
    """Of frozen encoders."""

    def features(self, corpus: dsengine.corpus.SeriesCorpus, run: Path, rows: np.ndarray, folder: Path, **changes: object) -> np.ndarray:
        subject = pretrained(str(run))
        asked = {"per": "dates", "missing": "refuse", "folder": folder, "device": torch.device("cpu"), **changes}
        with Progress() as progress:
            return encoded(subject, corpus, rows, progress=progress, **asked).x

    def shown(self, corpus: dsengine.corpus.SeriesCorpus, row: int) -> np.ndarray:
        """(T, 3) z-scores of one row, as pretraining would have seen them."""
        v, contract = values(), corpus.contract("s2")
        z = (v["s2"][row] * 1e-4 - np.array(contract.mean)) / np.array(contract.std)
        z[v["s2"][row] == -32768] = 0
        z[~v["clear"][row] | (v["s2"][row] == -32768).all(1)] = np.nan
        return z.astype(np.float32)

    def test_a_pixel_encoder_gives_each_date_its_own_vector(self, corpus: dsengine.corpus.SeriesCorpus, folder: Path) -> None:
        run = run_of(folder / "resmlp", corpus, "resmlp", width=8, blocks=1)
        encoder, rows = dsengine.load_encoder(run)[0], np.array(GAPPY)
        found, pooled = (self.features(corpus, run, rows, folder / "f", per=per) for per in ("dates", "series"))
        for n, row in enumerate(rows):
            dates = self.shown(corpus, row)
            there = np.isfinite(dates).all(1)
            expected = encoder(torch.from_numpy(dates[there])).pooled.detach().numpy()
            np.testing.assert_allclose(found[n, there], expected, atol=1e-5)
            np.testing.assert_allclose(pooled[n, 0], expected.mean(0), atol=1e-5)
            assert np.isnan(found[n, ~there]).all()

    def test_an_encoder_of_series_gives_the_tokens_of_dates_or_one_vector(self, corpus: dsengine.corpus.SeriesCorpus, folder: Path) -> None:
        run = run_of(folder / "temporal", corpus, "temporal", width=8, heads=2, blocks=1, out=4, dates=10)
        encoder, rows = dsengine.load_encoder(run)[0], np.array(GAPPY)
        found, pooled = (self.features(corpus, run, rows, folder / "f", per=per) for per in ("dates", "series"))
        for n, row in enumerate(rows):
            x = torch.from_numpy(self.shown(corpus, row))[None]
            there = np.isfinite(x[0].numpy()).all(1)
            np.testing.assert_allclose(found[n, there], encoder.embed_dates(x)[0, there].detach().numpy(), atol=1e-5)
            np.testing.assert_allclose(pooled[n], encoder(x).pooled.detach().numpy(), atol=1e-5)
            assert np.isnan(found[n, ~there]).all() and pooled.shape == (3, 1, 4)

    def test_encoders_that_do_not_fit_are_refused_with_what_is_legal(self, corpus: dsengine.corpus.SeriesCorpus, folder: Path) -> None:
        image = run_of(folder / "image", corpus, "resnet18")
        with pytest.raises(UsageError, match="is an encoder of images; legal: one of pixels or of series"):
            self.features(corpus, image, np.arange(3), folder / "f")
        other = folder / "other"
        opened = dsengine.open_corpus(planted(folder / "twin"))
        opened.bands = tuple(band._replace(name=f"X{k}") if band.name == BANDS[0] else band for k, band in enumerate(opened.bands))
        run_of(other, dsengine.open_corpus(folder / "twin"), "resmlp", width=8, blocks=1)
        with pytest.raises(UsageError, match="and lacks s2 B02; legal: .*missing=zero"):
            self.features(opened, other, np.arange(3), folder / "f")
        assert np.isfinite(self.features(opened, other, np.arange(3), folder / "f", missing="zero")).any()

    def test_features_are_made_once_and_a_damaged_file_is_named(self, corpus: dsengine.corpus.SeriesCorpus, folder: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
        run = run_of(folder / "once", corpus, "resmlp", width=8, blocks=1)
        first = self.features(corpus, run, np.arange(9), folder / "kept")
        monkeypatch.setattr("dsengine.evaluate.crops.inputs._encode", lambda *_, **__: pytest.fail("made again"))
        np.testing.assert_array_equal(self.features(corpus, run, np.arange(9), folder / "kept"), first)
        (file,) = (folder / "kept").iterdir()
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(dsengine.errors.RunError, match=f"{file.name}: not readable"):
            self.features(corpus, run, np.arange(9), folder / "kept")


def test_classes_of_the_cases_are_what_these_tests_take_them_for() -> None:
    assert set(columns()["crop"].tolist()) == set(CLASSES) and (columns()["crop"] == 40).sum() == 9
    stored, clear = (values()[name][GAPPY] for name in ("s2", "clear"))
    gone = stored == -32768
    assert gone.all(2).any(1).all() and (~clear & ~gone.all(2)).any(1).all() and (clear & gone.any(2) & ~gone.all(2)).any(1).all()
