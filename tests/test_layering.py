"""Rules of the house that a reader would otherwise have to take on trust."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dsengine import plugin

# Each layer may import itself, the leaves, and the layers named here.
LEAVES = {"errors", "noise", "dist"}
MAY_IMPORT = {
    "errors": set(), "noise": set(), "dist": set(), "typed": set(), "plugin": {"typed"},
    "ops": set(), "kernels": {"ops"}, "corpus": set(),
    "augment": {"ops", "corpus"},
    "data": {"corpus", "augment", "ops", "nn.noise"},
    "nn": {"kernels"},
    "encoders": {"nn", "plugin"},
    "methods": {"nn", "data", "augment", "kernels", "plugin", "encoders"},
    "config": {"plugin", "typed", "engine.settings"},
    "engine": {"corpus", "data", "encoders", "methods", "nn", "config", "plugin"},
    "evaluate": {"corpus", "data", "augment", "encoders", "nn", "engine", "typed", "__version__"},
    "export": {"corpus", "data", "encoders", "engine", "nn", "__version__"},
    "study": {"corpus", "data", "encoders", "engine", "evaluate", "export", "methods", "nn", "config", "plugin", "typed", "__version__"},
    "doctor": {"ops", "corpus"},
    "cli": {"corpus", "engine", "evaluate", "export", "study", "config", "doctor"},
    "__init__": set(),
}


def _files(checkout: Path) -> list[tuple[str, Path]]:
    """(layer, file) of every Python file of the package."""
    files = [(p.relative_to(checkout / "dsengine").parts[0].removesuffix(".py"), p) for p in (checkout / "dsengine").rglob("*.py")]
    return files + [("kernels", p) for p in (checkout / "kernels").rglob("*.py")]


def _imports(path: Path) -> list[str]:
    """Dotted names below dsengine that `path` imports, anywhere in the file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{a.name}" for a in node.names] if node.module == "dsengine" else [node.module]
    return [name.removeprefix("dsengine.") for name in found if name.startswith("dsengine.")]


def test_imports_point_one_way(checkout: Path) -> None:
    wrong = []
    for layer, path in _files(checkout):
        legal = MAY_IMPORT[layer] | LEAVES | {layer}
        wrong += [f"{path}: {name}" for name in _imports(path)
                  if not any(name == ok or name.startswith(f"{ok}.") for ok in legal)]
    assert not wrong, "\n".join(wrong)


def test_every_layer_is_in_the_table_and_none_is_left_over(checkout: Path) -> None:
    assert {layer for layer, _ in _files(checkout)} == set(MAY_IMPORT)


@pytest.mark.parametrize("layer", ["engine", "data"])
def test_engine_and_data_name_no_method(checkout: Path, layer: str) -> None:
    for path in (checkout / "dsengine" / layer).rglob("*.py"):
        for method in plugin.names("dsengine.methods"):
            assert not re.search(rf"\b{method}\b", path.read_text(), re.IGNORECASE), f"{path} names {method}"


def test_files_stay_under_300_lines(checkout: Path) -> None:
    sources = [p for folder in ("dsengine", "kernels", "csrc", "tests", "bench") for p in (checkout / folder).rglob("*")
               if p.suffix in (".py", ".cpp", ".cu", ".h")]
    assert sources
    long = {str(p): n for p in sources if (n := len(p.read_text().splitlines())) > 300}
    assert not long


def test_functions_are_annotated_and_short(checkout: Path) -> None:
    loose, lengths = [], []
    for layer, path in _files(checkout):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lengths.append((node.end_lineno - node.lineno + 1, f"{path}:{node.name}"))
                arguments = [a for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")]
                loose += [f"{path}:{node.name}({a.arg})" for a in arguments if a.annotation is None]
    assert not loose, "\n".join(loose)
    lengths.sort()
    assert lengths[len(lengths) // 2][0] <= 15
    assert lengths[int(len(lengths) * 0.9)][0] <= 40


def test_importing_the_package_is_fast_and_loads_no_torch() -> None:
    code = "import sys, time; t = time.perf_counter(); import dsengine; print(time.perf_counter() - t, 'torch' in sys.modules)"
    seconds, torch_loaded = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert torch_loaded == "False"
    assert float(seconds) < 1.0  # a second is a machine in trouble, not a budget


def test_an_uninstalled_checkout_refuses_to_import_with_the_command_to_run(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "dsengine").symlink_to(checkout / "dsengine")
    code = f"import sys; sys.path[:] = [{str(tmp_path)!r}] + [p for p in sys.path if 'site-packages' not in p]; import dsengine"
    done = subprocess.run([sys.executable, "-S", "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: dsengine is not installed" in done.stderr and "pip install ." in done.stderr


def test_kernels_refuse_any_other_import_name(checkout: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import kernels"], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 1
    assert "installed as dsengine.kernels" in done.stderr


def test_every_folder_of_code_is_a_package_that_a_wheel_holds(checkout: Path) -> None:
    folders = {p.parent for root in ("dsengine", "kernels") for p in (checkout / root).rglob("*.py")}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").exists()]
