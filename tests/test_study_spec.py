"""Studies as they are written down: what a file may say, what is refused and how, and what decides a cell's identity."""

from pathlib import Path

import pytest
import yaml

from dsengine import cli
from dsengine.errors import UsageError
from dsengine.study import cells, spec

FLAGS = {"--help", "--out", "--corpus", "--variant", "--gpus", "--procs", "--set", "--dry-run", "--rate"}
STUDY = {"corpus": {"synth": {"patches": 32, "size": 32}}, "encoders": ["resnet18"], "methods": ["none", "vae"], "evaluations": ["linear"]}


def load(folder: Path, *settings: str, variant: str | None = None, **changes: object) -> spec.Study:
    (folder / "s.yaml").write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return spec.load(folder / "s.yaml", variant=variant, settings=settings)


def ids(study: spec.Study) -> dict[str, str]:
    return {f"{cell.kind} {cell.name}": cell.id for cell in cells.plan(study)}


def test_the_flags_do_not_grow() -> None:
    study = next(a for a in cli.build_parser([])._actions if hasattr(a, "choices") and a.choices).choices["study"]
    assert set(study.all_flags()) == FLAGS


@pytest.mark.parametrize("name", spec.examples())
def test_shipped_studies_plan_in_every_variant_that_names_its_corpora_and_ask_for_the_others(name: str) -> None:
    with pytest.raises(UsageError, match=r"corpus: the file leaves it to you; legal: --set corpus=PATH or --corpus PATH, or a variant"):
        spec.load(name)
    study = spec.load(name, variant="reduced")
    kinds = [cell.kind for cell in cells.plan(study)]
    assert kinds.count("train") == len(study.encoders) * sum(method.name != "none" for method in study.methods) and "evaluate" in kinds


def test_the_reduced_grid_of_table_9_is_whole() -> None:
    study = spec.load("deepsentinel", variant="reduced")
    assert [e.name for e in study.encoders] == ["resnet18", "resnet34", "resnet18_attn"]
    assert [m.name for m in study.methods] == ["none", "vae", "t2v", "csf"]
    judged = [cell.about for cell in cells.plan(study) if cell.kind == "evaluate"]
    assert len(judged) == 12 and {about["untrained"] for about in judged} == {None, "resnet18", "resnet34", "resnet18_attn"}
    assert study.evaluations[0].setting.finetune


@pytest.mark.parametrize("changes, words", [
    ({"encoder": ["resnet18"]}, ["encoder is not a setting", "encoders"]),
    ({"evaluations": {"lineer": {}}}, ["evaluations.lineer.command=lineer", "linear"]),
    ({"evaluations": {"linear": {"splitt": "block"}}}, ["evaluations.linear.splitt is not a setting", "split"]),
    ({"evaluations": {"linear": {"max_iter": "many"}}}, ["evaluations.linear.max_iter must be int", "many"]),
    ({"evaluations": {"linear": {"imagenet": "f"}}}, ["evaluations.linear.imagenet", "scene"]),
    ({"evaluations": {"linear": {"figure": "acuracy"}}}, ["evaluations.linear.figure=acuracy", "accuracy"]),
    ({"evaluations": {"crops": {"figure": "accuracy"}}}, ["evaluations.crops.figure", "leave it out"]),
    ({"evaluations": {"a/b": {"command": "linear"}}}, ["evaluations.a/b", "names folders"]),
    ({"corpus": {"synt": {}}}, ["corpus.synt is not a setting", "synth"]),
    ({"corpus": {"synth": {"pathces": 3}}}, ["corpus.synth.pathces", "patches"]),
    ({"corpus": {"synth": {"kind": "series", "patches": 3}}}, ["corpus.synth.rows=None, patches=3", "needs rows alone"]),
    ({"corpus": "/nowhere"}, ["/nowhere"]),
    ({"methods": ["vaee"]}, ["resnet18 vaee s0", "method 'vaee'", "vae"]),
    ({"methods": {"vae": {"betta": 1}}}, ["resnet18 vae s0", "betta", "beta"]),
    ({"methods": {"vae": {"train": {"epoch": 1}}}}, ["train.epoch", "epochs"]),
    ({"methods": {"none": {"beta": 1}}}, ["methods.none", "no pretraining"]),
    ({"methods": ["vae", "vae"]}, ["methods: 'vae'", "each once"]),
    ({"methods": None}, ["methods: names none"]),
    ({"encoders": {"resnet50": {"stem": "paper"}}}, ["encoders.resnet50.stem", "none"]),
    ({"encoders": ["resnet"]}, ["encoder 'resnet'", "resnet18"]),
    ({"seeds": [1, 1]}, ["seeds=[1, 1]"]),
    ({"seeds": "one"}, ["seeds"]),
    ({"train": {"seed": 3}}, ["train.seed", "seeds"]),
    ({"device": {"gpus": 1}}, ["device is not a setting"]),
    ({"overrides": [{"encoders": "resnet18", "set": {"train.lr": 1}}]}, ["overrides[0].encoders", "encoder"]),
    ({"overrides": [{"encoder": "resnet34", "set": {"train.lr": 1}}]}, ["overrides[0].encoder", "resnet34", "resnet18"]),
    ({"overrides": [{"encoder": "resnet18"}]}, ["overrides[0]: sets nothing"]),
    ({"overrides": [{"method": "vae", "set": {"train.lrr": 1}}]}, ["train.lrr", "lr"]),
    ({"train": {True: 1}}, ["train: the key True", "is no text"]),
])
def test_what_is_not_legal_is_refused_by_name_with_what_is(tmp_path: Path, changes: dict, words: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        cells.plan(load(tmp_path, **changes))
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize("text, words", [("a: [", "not readable YAML"), ("- a", "must hold"), ("!!python/object:os.system {}", "not readable YAML")])
def test_a_file_that_is_no_study_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UsageError, match=words):
        spec.load(tmp_path / "s.yaml")


def test_names_that_are_nearly_right_are_told_the_right_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean deepsentinel"):
        spec.load("deepsentinal")
    with pytest.raises(UsageError, match="--variant redused: .* did you mean reduced"):
        spec.load("jain", variant="redused")
    with pytest.raises(UsageError, match="--set seeds: must be dotted.key=value"):
        load(tmp_path, "seeds")


def test_later_layers_reach_into_earlier_ones_and_a_list_chooses(tmp_path: Path) -> None:
    changes = {"encoders": {"resnet18": {"title": "R"}, "resnet34": {"train": {"lr": 0.1}}}, "variants": {"v": {"encoders": {"resnet34": {"train": {"epochs": 3}}}}}}
    assert {e.key: (e.title, e.run["train"]) for e in load(tmp_path, variant="v", **changes).encoders} == {
        "resnet18": ("R", {}), "resnet34": ("resnet34", {"lr": 0.1, "epochs": 3})}
    chosen = load(tmp_path, "encoders=[resnet34, resnet50]", "seeds=[4]", "train.lr=1e-3", variant="v", **changes)
    assert {e.key: e.run["train"] for e in chosen.encoders} == {"resnet34": {"lr": 0.1, "epochs": 3}, "resnet50": {}}
    assert chosen.seeds == (4,) and chosen.run["train"] == {"lr": 1e-3}
    (cell,) = [cell for cell in cells.plan(load(tmp_path, "encoders=[resnet34]", variant="v", **changes)) if cell.kind == "train"]
    assert cell.task["train"]["lr"] == 0.1 and cell.task["train"]["epochs"] == 3


def test_identity_is_of_all_that_decides_a_cell_and_of_nothing_else(tmp_path: Path) -> None:
    before = ids(load(tmp_path))
    same = load(tmp_path, title="other", train={"log_steps": 1}, data={"threads": 2, "resident": "none"})
    assert ids(same) == before
    changed = ids(load(tmp_path, train={"lr": 1e-3}))
    assert {name for name in before if before[name] != changed[name]} == {"train resnet18 vae s0", "evaluate resnet18-vae s0"}
    other_corpus = ids(load(tmp_path, corpus={"synth": {"patches": 32, "size": 32, "seed": 1}}))
    assert not set(before.values()) & set(other_corpus.values())
    judged = ids(load(tmp_path, evaluations={"linear": {"max_iter": 9}}))
    assert {name for name in before if before[name] != judged[name]} == {"evaluate resnet18-none s0", "evaluate resnet18-vae s0"}


def test_a_changed_corpus_at_the_same_place_makes_other_cells(tmp_path: Path) -> None:
    from dsengine.corpus.synth import synthesize

    found = []
    for seed in (0, 0, 1):
        path = synthesize(tmp_path / "c", num_patches=4, size=16, seed=seed, overwrite=True)
        found.append(ids(load(tmp_path, corpus=str(path))))
    assert found[0] == found[1] and not set(found[1].values()) & set(found[2].values())


def test_what_is_none_of_the_encoders_is_judged_once_a_seed_sets_the_probe_and_crops_judges_all_at_once(tmp_path: Path) -> None:
    study = load(tmp_path, seeds=[0, 1], evaluations={"linear": {}, "fixed": {"command": "linear", "seed": 7}, "crops": {"corpus": "/x"}})
    with pytest.raises(UsageError, match="/x"):
        cells.plan(study)
    study = load(tmp_path, seeds=[0, 1], evaluations={"linear": {}, "fixed": {"command": "linear", "seed": 7}, "crops": {}})
    every = [cell for cell in cells.plan(study) if cell.kind == "evaluate"]
    linear = [cell for cell in every if cell.about["evaluation"] == "linear"]
    assert [cell.task.setting.floors for cell in linear] == [None, (), (), ()] and [cell.task.setting.seed for cell in linear] == [0, 0, 1, 1]
    assert {cell.task.setting.seed for cell in every if cell.about["evaluation"] == "fixed"} == {7}
    crops = [cell for cell in every if cell.about["evaluation"] == "crops"]
    assert [list(cell.runs) for cell in crops] == [["resnet18-vae"]] * 2 and every[-2:] == crops
