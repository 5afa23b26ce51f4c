"""Nothing that is loaded is run, nothing is handed to a shell, and no secret of the environment ends up in what a run leaves."""

import ast
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import dsengine
from dsengine import cli
from dsengine.engine import capture
from dsengine.errors import RunError

HERE = Path(__file__).parent
# Modules whose loaders run what a file says.
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "jsonpickle"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp", "yaml.load",
                "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "torch.save"}


def _faults(source: str, name: str) -> Iterator[str]:
    """What in a file of Python must not be there."""
    for node in ast.walk(ast.parse(source)):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            yield from (f"{where}: imports {a.name}" for a in node.names if a.name.split(".")[0] in UNSAFE_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            yield f"{where}: imports {node.module}"
        elif isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
            constant = {key: getattr(value, "value", None) for key, value in given.items()}
            if called in UNSAFE_CALLS:
                yield f"{where}: calls {called}"
            elif called == "torch.load" and constant.get("weights_only") is not True:
                yield f"{where}: torch.load without weights_only=True"
            elif called.endswith(".load") and constant.get("allow_pickle"):
                yield f"{where}: {called} with allow_pickle"
            elif constant.get("shell"):
                yield f"{where}: {called} through a shell"
            elif called.split(".")[-1] in ("broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list", "send_object_list"):
                yield f"{where}: {called} pickles what it sends"
            elif called.split(".")[-1] == "tar" or called.endswith(".extractall") and "filter" not in given:
                yield f"{where}: {called} without a filter"




def test_no_source_loads_what_could_run_or_calls_a_shell(checkout: Path) -> None:
    files = [path for folder in ("dsengine", "kernels") for path in sorted((checkout / folder).rglob("*.py"))]
    found = [fault for path in files for fault in _faults(path.read_text(), str(path.relative_to(checkout)))]
    allowed = [fault for fault in found if "torch.save" in fault and "dsengine/engine/" in fault]
    assert len(files) > 200 and found == allowed, [fault for fault in found if fault not in allowed]


@pytest.mark.parametrize("line", [
    "import pickle", "from pickle import loads", "import dill as d", "eval('1')", "exec(text)", "torch.load(path)", "torch.load(path, weights_only=False)",
    "np.load(path, allow_pickle=True)", "yaml.load(text)", "yaml.unsafe_load(text)", "subprocess.run('ls', shell=True)", "os.system('ls')", "archive.extractall(folder)",
    "torch_dist.broadcast_object_list(objects)"])
def test_the_scan_finds_each_of_them(line: str) -> None:
    assert list(_faults(line, "x.py"))


@pytest.mark.parametrize("line", ["torch.load(path, weights_only=True)", "np.load(path)", "yaml.safe_load(text)", "subprocess.run(['ls'])", "model.eval()"])
def test_the_scan_leaves_the_safe_forms_alone(line: str) -> None:
    assert not list(_faults(line, "x.py"))


@pytest.fixture(scope="module")
def left(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What a run that fails leaves, capture and report with it, where the environment is full of secrets; and the secret."""
    out, secret = tmp_path_factory.mktemp("left") / "run", "c4n4ry-0f-a-s3cret"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "GITHUB_TOKEN",
                     "GOOGLE_APPLICATION_CREDENTIALS", "CDSE_PASSWORD", "HTTP_PROXY"):
            patch.setenv(name, secret)
        argv = ["train", "--corpus", str(small_corpus), "--out", str(out), "--gpus", "0", "--batch-size", "16", "--method", "faults.method", "--encoder", "faults.small",
                *(word for setting in ("method.fault=loss", "method.at=3", "train.log_steps=1", "train.precision=fp32", "data.size=16") for word in ("--set", setting))]
        assert cli.main(argv) == 1
    return out, secret


def test_no_secret_of_the_environment_is_in_anything_a_run_leaves(left: tuple[Path, str]) -> None:
    run, secret = left
    files = [path for path in run.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"config.yaml", "metrics.jsonl", "history.jsonl", "report.html", "capture.json"} <= names
    assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_a_run_folder_is_for_its_owner_alone_and_one_that_was_there_keeps_its_mode(left: tuple[Path, str], small_corpus: Path, tmp_path: Path) -> None:
    assert left[0].stat().st_mode & 0o777 == 0o700
    (tmp_path / "shared").mkdir(mode=0o755)
    dsengine.train(corpus=str(small_corpus), out=str(tmp_path / "shared"), device={"gpus": 0}, train={"max_steps": 1, "batch_size": 8, "heldout_samples": 2})
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o755


def test_a_capture_cannot_point_out_of_its_folder(left: tuple[Path, str], tmp_path: Path) -> None:
    folder = shutil.copytree(left[0] / "captures" / "step-00000003", tmp_path / "copy")
    (tmp_path / "private").write_text("x")
    about = json.loads((folder / "capture.json").read_text())
    about.pop("capture_sha256")
    about["sha256"] = {"../private": "0" * 64}
    about["capture_sha256"] = capture.digest(about)
    (folder / "capture.json").write_text(json.dumps(about))
    with pytest.raises(RunError, match="not readable .KeyError: 'weights.safetensors'"):
        capture.read(folder)


def test_a_capture_of_an_unknown_method_is_refused_in_one_line(left: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = shutil.copytree(left[0] / "captures" / "step-00000003", tmp_path / "copy")
    about = json.loads((folder / "capture.json").read_text())
    about.pop("capture_sha256")
    about["config"]["method"]["name"] = "os"
    about["capture_sha256"] = capture.digest(about)
    (folder / "capture.json").write_text(json.dumps(about))
    assert cli.main(["replay", str(folder)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "cannot be built by this version" in line and "'os'" in line
