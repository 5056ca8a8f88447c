"""Imports point one way, and `import nondiff` is light."""

import ast
import importlib.metadata
import pathlib
import subprocess
import sys

import pytest

import nondiff

ROOT = pathlib.Path(nondiff.__file__).parent
PLUGINS = {"trainers", "estimators", "evaluators", "problems"}


def imported(path: pathlib.Path) -> set[str]:
    """Parts of nondiff that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path}: relative import")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("nondiff.") and name.count(".") >= 1}


FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path: pathlib.Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    allowed = {"core"}
    if folder == "testing":
        allowed |= PLUGINS | {"testing"}
    if folder in PLUGINS:
        allowed |= {folder}
    if folder in ("run", "launch"):
        allowed |= PLUGINS | {"run", "launch"}
    assert imported(path) <= allowed
    if folder == "run":
        assert "launch" not in imported(path)


@pytest.mark.parametrize("folder", sorted(PLUGINS))
def test_methods_do_not_import_one_another(folder: str) -> None:
    """Within a folder only shared pieces are imported, which no method defines: noise, weightings."""
    shared = {"nondiff.trainers.gaussian", "nondiff.trainers.weighting"}
    for path in (ROOT / folder).glob("*.py"):
        if path.name == "__init__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"nondiff.{folder}"):
                assert node.module in shared, f"{path.name} imports {node.module}"


def test_import_is_light() -> None:
    """Neither Ray nor an extra is imported with nondiff."""
    extras = {
        requirement.split(";")[0].split("[")[0].strip().split(">")[0].split("=")[0]
        for requirement in importlib.metadata.requires("nondiff") or []
        if "extra ==" in requirement
    } - {"nondiff"}
    assert {"ray", "mlxtend", "matplotlib", "pytest"} <= extras
    code = "import sys, nondiff; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "nondiff" in out
    assert not extras & set(out)
