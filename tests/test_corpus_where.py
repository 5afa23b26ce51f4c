"""Conditions on index columns: the same rows as numpy's, unknown values never compare, and nothing but a condition is understood."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsengine.config import assignment, dump, merge, resolve, to_yaml
from dsengine.corpus import Corpus, open_corpus
from dsengine.corpus.build.writer import Block, CorpusWriter
from dsengine.corpus.schema import UNKNOWN_TIME, standard_layout
from dsengine.corpus.where import DEEPEST, MOST_CHARACTERS
from dsengine.data.loader import Loader
from dsengine.data.sample import View
from dsengine.engine.launch import configure
from dsengine.engine.plan import complete
from dsengine.errors import UsageError

N, DAY = 80, 86_400 * 10**9
EPOCH_2020 = 1_577_836_800 * 10**9  # 2020-01-01T00:00:00Z
rng = np.random.default_rng(5)
CLOUD = np.where(np.arange(N) % 7 == 0, np.nan, rng.uniform(0, 1, N)).astype(np.float32)
TIME_S2 = np.where(np.arange(N) % 11 == 0, UNKNOWN_TIME, EPOCH_2020 + rng.integers(0, 730 * DAY, N))
TIME_S1 = np.where(np.arange(N) % 13 == 0, UNKNOWN_TIME, TIME_S2 + np.where(TIME_S2 == UNKNOWN_TIME, 0, rng.integers(-6, 7, N) * DAY))
SHIFT = np.where(np.arange(N) % 5 == 0, np.nan, rng.normal(0, 2, (2, N))).astype(np.float32)
LAT, LON = rng.uniform(-60, 70, N), rng.uniform(-180, 180, N)
SEASON = np.array(["spring", "summer", "autumn 'late'", ""], object)[np.arange(N) % 4]
FOLD = (np.arange(N) % 6).astype(np.uint8)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("where") / "corpus"
    columns = {"lon": LON, "lat": LAT, "cloud_fraction": CLOUD, "time_s2": TIME_S2, "time_s1": TIME_S1, "shift_y": SHIFT[0], "shift_x": SHIFT[1],
               "season": SEASON, "fold": FOLD, "split": np.arange(N) % 3, "source": [f"scene {i // 8}" for i in range(N)]}
    pixels = rng.integers(0, 4000, (N, 14, 16, 16)).astype(np.int16)
    with CorpusWriter(path, layout=standard_layout(16), num_patches=N, made_by={"test": 1}, columns={"season": "str", "fold": "uint8"},
                      split="given") as writer:
        while writer.next_row < N:
            rows = slice(writer.next_row, writer.next_row + writer.next_count)
            writer.append(Block({"s2": pixels[rows, :12], "s1": pixels[rows, 12:]}, {name: values[rows] for name, values in columns.items()}))
        writer.finish()
    return open_corpus(path)


KNOWN = {"cloud": ~np.isnan(CLOUD), "gap": (TIME_S1 != UNKNOWN_TIME) & (TIME_S2 != UNKNOWN_TIME), "shift": ~np.isnan(SHIFT).any(axis=0)}
GAP = np.where(KNOWN["gap"], np.abs(TIME_S1 - TIME_S2), 0) / DAY
CASES = {
    "cloud < 0.4 and gap <= 3 and split == 'train'": (CLOUD < 0.4) & KNOWN["gap"] & (GAP <= 3) & (np.arange(N) % 3 == 0),
    "shift > 2": np.hypot(*SHIFT) > 2,
    "not shift > 2": ~(np.hypot(*SHIFT) > 2),
    "shift_y>=-1.5 or shift_x<+.5": (SHIFT[0] >= -1.5) | (SHIFT[1] < 0.5),
    "lat > 10 and not (lon < 0 or lon >= 9e1)": (LAT > 10) & ~((LON < 0) | (LON >= 90)),
    "-20 <= lat < 20": (LAT >= -20) & (LAT < 20),
    "lat > 0 or lon > 0 and fold == 1": (LAT > 0) | ((LON > 0) & (FOLD == 1)),  # and binds closer
    "0.5 > cloud": CLOUD < 0.5,
    "fold in (1, 3, 5)": np.isin(FOLD, [1, 3, 5]),
    "fold not in (1, 3)": ~np.isin(FOLD, [1, 3]),
    "season in ('spring', \"autumn 'late'\")": np.isin(SEASON.astype(str), ["spring", "autumn 'late'"]),
    "season != 'summer'": SEASON != "summer",
    "source == \"scene 3\"": np.arange(N) // 8 == 3,
    "time_s2 < time_s1": KNOWN["gap"] & (TIME_S2 < TIME_S1),
    "time_s2 >= '2021'": (TIME_S2 != UNKNOWN_TIME) & (TIME_S2 >= EPOCH_2020 + 366 * DAY),
    "time_s2 == '2020-02'": (TIME_S2 >= EPOCH_2020 + 31 * DAY) & (TIME_S2 < EPOCH_2020 + 60 * DAY),
    "time_s2 <= '2020-12-31' and time_s2 > '2020-06-30'": (TIME_S2 >= EPOCH_2020 + 182 * DAY) & (TIME_S2 < EPOCH_2020 + 366 * DAY),
    "time_s2 < '2020-02-01T12:00:01'": (TIME_S2 != UNKNOWN_TIME) & (TIME_S2 < EPOCH_2020 + 31 * DAY + 43_201 * 10**9),
    "cloud == unknown": np.isnan(CLOUD),
    "gap != unknown and season == unknown": KNOWN["gap"] & (SEASON == ""),
    "time_s1 == unknown": TIME_S1 == UNKNOWN_TIME,
    "id > 9223372036854775808 or id == 7": np.arange(N) == 7,
    "nodata == 0": np.ones(N, bool),
}


@pytest.mark.parametrize("text", CASES)
def test_a_condition_holds_where_numpy_says_so(corpus: Corpus, text: str) -> None:
    expected = np.flatnonzero(CASES[text])
    assert 0 < len(expected) <= N
    np.testing.assert_array_equal(corpus.rows("all", text), expected)


@pytest.mark.parametrize("column", ["cloud", "gap", "shift"])
@pytest.mark.parametrize("comparison", ["< 1e9", "<= 1e9", "> -1", ">= -1", "== 0.5", "!= 0.5", "not in (0.5)"])
def test_what_is_unknown_meets_no_comparison(corpus: Corpus, column: str, comparison: str) -> None:
    found = corpus.rows("all", f"{column} {comparison}")
    assert KNOWN[column][found].all()
    if comparison != "== 0.5":
        assert len(found) == KNOWN[column].sum()


def test_a_literal_has_the_precision_of_its_column(corpus: Corpus) -> None:
    value = float(CLOUD[1])
    assert 1 in corpus.rows("all", f"cloud == {value!r}") and 1 not in corpus.rows("all", f"cloud < {value!r}")


WRONG = {
    "clud < 3": r"no column 'clud'; did you mean cloud, fold\? legal: .*season.*, at character 1 of",
    "lat > 0 and clouds < 1": r"no column 'clouds'.*at character 13",
    "cloud < 'a'": r"cloud is a number and 'a' a text; legal: a number, at character 7",
    "season == 3": r"season is a text and 3 a number",
    "season < 'x'": r"season is a text: < is not legal",
    "time_s2 > 5": r"legal: a date such as '2020-06-01'",
    "time_s2 == '2020-13'": r"'2020-13' is no date; legal: '2020', '2020-06'",
    "time_s2 == '20-1-1'": r"is no date",
    "split == 'trian'": r"split is never 'trian'; did you mean train\? legal: test, train, val",
    "cloud < season": r"cloud is a number and season a text",
    "cloud > unknown": r"unknown has no order",
    "1 < 2": r"about no column",
    "cloud = 3": r"did you mean ==\?, at character 7",
    "cloud < 1)": r"\) is not legal here.*at character 10",
    "(cloud < 1": r"the end is not legal here: \), at character 11",
    "cloud": r"the end is not legal here: a comparison",
    "cloud < 1 cloud": r"cloud is not legal here: and, or, or the end, at character 11",
    "cloud in 3": r"3 is not legal here: \(",
    "cloud not 3": r"3 is not legal after `not` here: in",
    "and": r"and is not legal here: a column",
    "": r"the end is not legal here",
    "cloud < 'abc": r"closing quote, at character 9",
    "cloud < 3 # x": r"'#': no part of a condition, at character 11",
    "cloud.__class__ == 1": r"'\.': no part of a condition",
    "__import__('os')": r"no column '__import__'",
    "cloud < 3; 1": r"';': no part",
    "cloud < 0x10": r"'0': no part",
    "(" * (DEEPEST + 1): rf"nested deeper than {DEEPEST}",
    "not " * (DEEPEST + 1) + "cloud < 1": rf"nested deeper than {DEEPEST}",
    "x" * (MOST_CHARACTERS + 1): rf"legal: at most {MOST_CHARACTERS}",
}


def test_a_whole_number_may_have_any_number_of_digits(corpus: Corpus) -> None:
    assert len(corpus.rows("all", f"id < {'9' * 5000}")) == len(corpus) and not len(corpus.rows("all", f"id < -{'9' * 5000}"))


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_is_named_with_its_place(corpus: Corpus, text: str) -> None:
    with pytest.raises(UsageError, match=WRONG[text]) as caught:
        corpus.rows("all", text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("cloudgapinotrund<>=!()'\", .0123_#-\n")) | st.text(max_size=60))
def test_any_text_is_a_condition_or_a_usage_error(corpus: Corpus, text: str) -> None:
    try:
        assert corpus.rows("all", text).dtype == np.int64
    except UsageError:
        pass


def test_rows_of_a_split_are_those_of_the_split_that_meet_the_condition(corpus: Corpus) -> None:
    for split in ("train", "val", "test"):
        both = np.intersect1d(corpus.rows(split), corpus.rows("all", "cloud < 0.4"))
        np.testing.assert_array_equal(corpus.rows(split, "cloud < 0.4"), both)


def test_the_loader_gives_only_patches_that_meet_the_condition_in_the_order_of_the_filtered_rows(corpus: Corpus) -> None:
    rows = corpus.rows("train", "cloud < 0.5")
    with Loader(corpus, [View(size=16)], batch_size=2, seed=1, where="cloud < 0.5") as loader:
        assert loader.steps_per_epoch == len(rows) // 2
        seen = np.concatenate([next(loader).sample_id.numpy() for _ in range(loader.steps_per_epoch)])
        state = loader.state_dict()
    assert set(seen) <= set(rows) and len(set(seen)) == len(rows) // 2 * 2
    other = Loader(corpus, [View(size=16)], batch_size=2, seed=1, where="cloud < 0.5 and id >= 0")
    other.load_state_dict(state)  # the same rows by other words
    with pytest.raises(UsageError, match="rows_crc|num_rows"):
        Loader(corpus, [View(size=16)], batch_size=2, seed=1, where="cloud > 0.5").load_state_dict(state)
    with pytest.raises(UsageError, match="has no patches with cloud < -1"):
        Loader(corpus, [View(size=16)], batch_size=2, where="cloud < -1")


@pytest.mark.parametrize("text", ["cloud < 0.4 and gap <= 3", "season == 'a: b # c'", "'train' == split", "null_column < 1"])
def test_data_where_survives_the_command_line_and_the_file_as_it_stands(text: str, tmp_path: Path) -> None:
    config = resolve(merge(assignment(f"data.where={text}")))
    assert config.data.where == text
    assert resolve(dump(config)).data.where == text
    assert resolve(merge(assignment("data.where=null"))).data.where is None and resolve({}).data.where is None


def test_training_counts_the_filtered_rows_and_a_resumed_run_keeps_its_condition(corpus: Corpus, tmp_path: Path) -> None:
    rows = corpus.rows("train", "cloud < 0.5")
    config = resolve({"corpus": str(corpus.path), "data": {"where": "cloud < 0.5"}, "train": {"batch_size": len(rows)}, "device": {"gpus": 0}})
    assert complete(config, corpus, ranks=1, device=torch.device("cpu")).train.checkpoint_steps == 1  # one batch is an epoch
    for where, match in (("cloud < 0.4", r"train split of \d+ patches with data.where=cloud < 0.4"), ("cloud < 0", "has 0 patches with data.where")):
        with pytest.raises(UsageError, match=match):
            complete(replace(config, data=replace(config.data, where=where)), corpus, ranks=1, device=torch.device("cpu"))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert configure({"out": str(tmp_path)}, resume=True).data.where == "cloud < 0.5"
    with pytest.raises(UsageError, match=r"data.where=cloud < 0.6: the run in .* has cloud < 0.5, and resuming cannot change it"):
        configure({"out": str(tmp_path), "data": {"where": "cloud < 0.6"}}, resume=True)


@pytest.mark.parametrize("call", ["__import__('os').mkdir('BAIT')", "cloud < eval('open(\"BAIT\", \"w\")')", "cloud < 1 or open('BAIT', 'w')"])
def test_a_condition_never_runs_as_code(corpus: Corpus, tmp_path: Path, call: str) -> None:
    bait = tmp_path / "bait"
    with pytest.raises(UsageError):
        corpus.rows("all", call.replace("BAIT", str(bait)))
    assert not bait.exists()
